"""What gpu.py measures: the three operations in nbnorm, as a CuPy expression, and in PyTorch, on the same numbers.
Beside nbnorm as it is, what its one-launch kernels change.

Every operation takes the number of a set (x and dy): a loop over the sets reads memory that no cache holds any more.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import prod
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

import nbnorm
from nbnorm._layout import layout_of

PASSES = {"training": 3, "backward": 5, "inference": 2}  # tensors read and written, of which the bytes are counted
EPS = 1e-5
Array = Any
Operations = dict[str, Callable[[int], Any]]


class Row(NamedTuple):
    """A shape (N, C, ...), and whether the channels come last in memory."""

    name: str
    shape: tuple[int, ...]
    last: bool

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def axis(self) -> int:
        """The channels' in memory."""
        return len(self.shape) - 1 if self.last else 1

    @property
    def axes(self) -> tuple[int, ...]:
        """All others."""
        return tuple(i for i in range(len(self.shape)) if i != self.axis)

    @property
    def torch_form(self) -> str:
        """PyTorch's module for a table, or the memory order."""
        return "channels last" if self.last else ("BatchNorm1d", "NCL", "NCHW", "NCDHW")[len(self.shape) - 2]


def shape(text: str) -> Row:
    """The row for "32x64x112x112", or "32x64x112x112:last"."""
    sizes, colon, order = text.partition(":")
    found = tuple(map(int, sizes.split("x")))
    if not 2 <= len(found) <= 5 or min(found) < 1 or prod(found) == found[1] or order != ("last" if colon else ""):
        raise ValueError(text)
    return Row(text, found, bool(colon))


class Data(NamedTuple):
    """x and dy in the host's memory and, once for each set, in the GPU's."""

    row: Row
    x: np.ndarray
    dy: np.ndarray
    xs: list[Array]
    dys: list[Array]


class System(NamedTuple):
    operations: Operations
    results: dict[str, Callable[[Any], Array]]  # y of what "training" returned, dx of what "backward" did
    host: Callable[[Array], np.ndarray]  # a part of it, in x's order of the axes


@lru_cache
def _noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(1_000_003, dtype=np.float32)  # a prime: no two rows are equal


def data(cupy: ModuleType, row: Row, dtype: np.dtype, sets: int = 1, mean: float = 0.0) -> Data:
    N, C, *rest = row.shape
    in_memory = (N, *rest, C) if row.last else row.shape
    x = (np.resize(_noise(0), in_memory) + np.float32(mean)).astype(dtype)
    dy = np.resize(_noise(1), in_memory).astype(dtype)
    return Data(row, x, dy, [cupy.asarray(x) for _ in range(sets)], [cupy.asarray(dy) for _ in range(sets)])


def nbnorm_system(cupy: ModuleType, data: Data) -> System:
    xs, dys, axis = data.xs, data.dys, data.row.axis
    state = nbnorm.BatchNormState(data.row.shape[1], eps=EPS, device="cuda")
    saved = [nbnorm.batch_norm_training(x, state, axis=axis)[1] for x in xs]
    operations: Operations = {
        "training": lambda i: nbnorm.batch_norm_training(xs[i], state, axis=axis),
        "backward": lambda i: nbnorm.batch_norm_backward(dys[i], saved[i]),
        "inference": lambda i: nbnorm.batch_norm_inference(xs[i], state, axis=axis),
    }
    return System(operations, {kind: lambda result: result[0] for kind in ("training", "backward")}, cupy.asnumpy)


def two_launches_system(cupy: ModuleType, data: Data) -> System:
    """nbnorm without the kernels of fused.py: the operations that are one launch with them, maybe none."""
    from nbnorm._cuda import plan, stages

    def with_two(call: Callable[[int], Any]) -> Callable[[int], Any]:
        def switched(i: int) -> Any:
            stages.room_of = lambda *args, **options: None
            try:
                return call(i)
            finally:
                stages.room_of = usual

        return switched

    usual, x, (operations, *results) = stages.room_of, data.xs[0], nbnorm_system(cupy, data)
    cut = plan.cut(layout_of(x, (data.row.axis,)).shape, x.itemsize)
    arrays = {"training": 1, "backward": 2}
    changed = [kind for kind, number in arrays.items() if usual(cut, x.itemsize, number)]
    return System({kind: with_two(operations[kind]) for kind in changed}, *results)


def cupy_system(cupy: ModuleType, data: Data) -> System:
    """The formulas as one writes them, sums in float32."""
    xs, dys, n = data.xs, data.dys, data.row.size // data.row.shape[1]
    options = {"axis": data.row.axes, "dtype": np.float32, "keepdims": True}
    mean, var = xs[0].mean(**options), xs[0].var(**options)
    inv_std = 1 / cupy.sqrt(var + np.float32(EPS))
    running_mean, running_var = cupy.zeros(mean.shape, np.float32), cupy.ones(mean.shape, np.float32)
    gamma, beta = cupy.ones(mean.shape, np.float32), cupy.zeros(mean.shape, np.float32)

    def normalized(x: Array, mean: Array, var: Array) -> Array:
        y = gamma * (x - mean) / cupy.sqrt(var + np.float32(EPS)) + beta
        return y.astype(x.dtype, copy=False)

    def training(i: int) -> Array:
        mean, var = xs[i].mean(**options), xs[i].var(**options)
        running_mean[...] = 0.9 * running_mean + 0.1 * mean
        running_var[...] = 0.9 * running_var + 0.1 * n / (n - 1) * var
        return normalized(xs[i], mean, var)

    def backward(i: int) -> tuple[Array, Array, Array]:
        x_hat = (xs[i] - mean) * inv_std
        dbeta, dgamma = dys[i].sum(**options), (dys[i] * x_hat).sum(**options)
        dx = gamma * inv_std * (dys[i] - dbeta / n - x_hat * (dgamma / n))
        return dx.astype(dys[i].dtype, copy=False), dgamma, dbeta

    def inference(i: int) -> Array:
        return normalized(xs[i], running_mean, running_var)

    operations: Operations = {"training": training, "backward": backward, "inference": inference}
    results = {"training": lambda y: y, "backward": lambda gradients: gradients[0]}
    return System(operations, results, cupy.asnumpy)


def torch_system(cupy: ModuleType, data: Data) -> System:
    """PyTorch's module in the same memory order, on tensors of its own; parameters in float32."""
    import torch

    def tensors(array: np.ndarray) -> list[Any]:
        one = torch.from_numpy(array.astype(np.float32)).to("cuda", getattr(torch, array.dtype.name))
        one = one.movedim(data.row.axis, 1)
        return [one, *(one.clone() for _ in data.xs[1:])]

    kind = {2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d, 5: torch.nn.BatchNorm3d}
    module, frozen = (kind[data.x.ndim](data.row.shape[1], eps=EPS, device="cuda") for _ in range(2))
    frozen.eval()
    xs, dys = [x.requires_grad_() for x in tensors(data.x)], tensors(data.dy)
    ys = [module(x) for x in xs]

    def backward(i: int) -> Any:
        return torch.autograd.grad(ys[i], (xs[i], module.weight, module.bias), dys[i], retain_graph=True)

    def inference(i: int) -> Any:
        with torch.inference_mode():
            return frozen(xs[i])

    def in_order(tensor: Any) -> Any:
        return tensor.detach().movedim(1, data.row.axis)

    operations: Operations = {"training": lambda i: module(xs[i]), "backward": backward, "inference": inference}
    results = {"training": in_order, "backward": lambda gradients: in_order(gradients[0])}
    return System(operations, results, lambda part: part.float().cpu().numpy())


SYSTEMS = {
    "nbnorm": nbnorm_system, "two launches": two_launches_system, "CuPy": cupy_system, "PyTorch": torch_system,
}  # fmt: skip
