"""The rows of peers.py: shapes with a memory order, named groups of them, and their data."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np

GROUPS = {
    "usual": (
        "32x64x56x56", "32x256x14x14", "64x512x7x7", "8x64x112x112", "2x32x64x64x64", "32x3x224x224", "32x64x112x112",
        "32x2048x7x7", "17x33x31x29", "32x64x56x56:last", "32x256x14x14:last", "8x64x112x112:last",
        "32x3x224x224:last", "4096x1024", "65536x64", "65536x256", "1000000x32", "200000x17", "20000x1000", "128x512",
        "128x64",
    ),
    "odd": (  # nobody tunes for these
        "32x3x56x56", "32x17x28x28", "32x96x28x28", "8x1000x14x14", "32x17x28x28:last", "32x96x28x28:last",
        "8x1000x14x14:last", "32x256x5x5", "32x192x13x13", "16x64x31x17", "1x64x112x112", "1x256x14x14:last",
        "32x64x56x56:sliced", "32x64x56x56:transposed",
    ),
    "large": ("32x64x112x112", "64x64x112x112:last", "4x32x64x64x64", "1000000x32", "65536x512"),  # beyond the caches
    "small": ("128x64", "128x512", "32x64x7x7", "32x64x7x7:last"),
    "tiny": ("6x5", "4x3x5x2", "4x3x5x2:last"),  # where no time means anything: for tests
}  # fmt: skip
ORDERS = ("", "last", "sliced", "transposed")
DTYPES = ("float16", "bfloat16", "float32", "float64")
GAP = 8


class Row(NamedTuple):
    """A shape (N, C, ...), and where its values lie in memory.

    Channels first in C order; channels last; sliced, which is the middle of an array whose last axis is longer; or
    transposed, which is Fortran order.
    """

    name: str
    shape: tuple[int, ...]
    order: str

    @property
    def axes(self) -> tuple[int, ...]:
        """All but the channels'."""
        return (0, *range(2, len(self.shape)))

    @property
    def count(self) -> int:
        """Of the values of a channel."""
        return prod(self.shape) // self.shape[1]

    @property
    def dense(self) -> bool:
        return self.order in ("", "last")

    def in_memory(self) -> tuple[int, ...]:
        """The shape of the array that lies there in C order, and of which `view` makes (N, C, ...)."""
        N, C, *rest = self.shape
        if self.order == "last":
            return (N, *rest, C)
        if self.order == "transposed":
            return self.shape[::-1]
        return (*self.shape[:-1], self.shape[-1] + (GAP if self.order == "sliced" else 0))

    def view(self, array: Any) -> Any:
        """Of a NumPy array or a tensor."""
        permute = array.permute if hasattr(array, "permute") else array.transpose
        last = len(self.shape) - 1
        if self.order == "last":
            return permute(0, last, *range(1, last))
        if self.order == "transposed":
            return permute(*range(last, -1, -1))
        return array[..., GAP // 2 : -GAP // 2] if self.order == "sliced" else array


def row(text: str) -> Row:
    """The row for "32x64x56x56", or "32x64x56x56:last"."""
    sizes, _, order = text.partition(":")
    shape = tuple(map(int, sizes.split("x")))
    if not 2 <= len(shape) <= 5 or min(shape) < 1 or prod(shape) == shape[1] or order not in ORDERS:
        raise ValueError(text)
    return Row(text, shape, order)


def rows(text: str) -> list[Row]:
    """Those of a group, or one."""
    return [row(name) for name in GROUPS.get(text, (text,))]


class Data(NamedTuple):
    """float32 numbers that every dtype holds exactly, so that all systems work on the same; as they lie in memory."""

    row: Row
    x: np.ndarray
    dy: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray  # the running statistics of inference
    var: np.ndarray


def data(row: Row) -> Data:
    """Normal numbers, rounded to 1/32: the significand of bfloat16 has 8 bits."""
    rng = np.random.default_rng(0)

    def numbers(shape: tuple[int, ...]) -> np.ndarray:
        some = rng.standard_normal(min(prod(shape), 1_000_003), dtype=np.float32)  # a prime: no two rows are equal
        return np.resize(np.clip(np.round(32 * some) / 32, -4, 4), shape)

    x, dy = numbers(row.in_memory()), numbers(row.in_memory())
    gamma, beta, mean, var = (numbers(row.shape[1:2]) for _ in range(4))
    return Data(row, x, dy, 1 + gamma / 4, beta, mean, 1 + np.abs(var))
