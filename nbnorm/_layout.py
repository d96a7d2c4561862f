"""Layout: any array with its channel axes anywhere, as flat contiguous (N, C, S) values and back."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Axis = int | tuple[int, ...]


class Layout(NamedTuple):
    """An order of the axes in which the channel axes are one run: N before it, C in it, S behind it."""

    order: tuple[int, ...]
    shape: tuple[int, int, int]

    def holds(self, array: NDArray) -> bool:
        """Whether the elements of `array` are contiguous in this order."""
        return array.transpose(self.order).flags.c_contiguous

    def read(self, array: NDArray) -> NDArray:
        """The elements in this order, flat: a view where possible, otherwise a copy. For reading only."""
        flat = np.ascontiguousarray(array.transpose(self.order)).reshape(-1)
        return flat if flat.flags.writeable else _as_if_writable(flat)

    def write(self, array: NDArray) -> NDArray:
        """Where to write the elements of `array` in this order: its own memory where possible."""
        ordered = array.transpose(self.order)
        return ordered.reshape(-1) if ordered.flags.c_contiguous else np.empty(array.size, array.dtype)

    def finish(self, flat: NDArray, array: NDArray) -> None:
        """Bring what was written to `write(array)` into `array`."""
        if flat.size and not np.may_share_memory(flat, array):
            ordered = array.transpose(self.order)
            ordered[...] = flat.reshape(ordered.shape)


def layout_of(array: NDArray, axes: tuple[int, ...]) -> Layout:
    """The layout closest to how `array` lies in memory."""
    return _layout(array.shape, array.strides, axes)


@lru_cache(1024)
def _layout(shape: tuple[int, ...], strides: tuple[int, ...], axes: tuple[int, ...]) -> Layout:
    order = sorted(range(len(shape)), key=lambda i: -abs(strides[i]))
    # An axis of length 1 has any stride and lies wherever it is convenient.
    long = [i for i in order if shape[i] != 1]
    channels = [i for i in axes if shape[i] != 1]
    first = long.index(channels[0]) if channels else 0
    if long[first : first + len(channels)] != channels:
        long = [i for i in long if i not in channels] + channels
        first = len(long) - len(channels)
    before, behind = long[:first], long[first + len(channels) :]
    short = [i for i in order if shape[i] == 1]
    sizes = (prod(shape[i] for i in part) for part in (before, channels, behind))
    return Layout((*short, *long), (*sizes,))  # type: ignore[arg-type]


def _as_if_writable(array: NDArray) -> NDArray:
    """The same memory without the read-only flag.

    Kernels never write to what they read, but Numba would compile each of them once more for read-only arrays.
    """
    memory = (ctypes.c_char * array.nbytes).from_address(array.ctypes.data)
    return np.ndarray(array.size, array.dtype, memory)  # type: ignore[arg-type]  # any buffer will do
