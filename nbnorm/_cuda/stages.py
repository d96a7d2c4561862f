"""The stages on CuPy arrays: scratch memory, the cut of the work, and the launches.

Arrays lie in memory as the elements of an (N, C, S) array, `shape`; gamma and beta may be None, stats is (5, C).
Everything that can fail has been checked by the caller; nothing here waits for the GPU.
"""

from __future__ import annotations

from typing import Any

from nbnorm._cuda import plan
from nbnorm._cuda.apply import (
    apply_columns,
    apply_segments,
    gradient_segments,
    normalize_segments,
    running_columns,
    running_segments,
)
from nbnorm._cuda.finalize import POOLED, ROWS, finalize, finalize_gradient
from nbnorm._cuda.launch import Kind, pointer
from nbnorm._cuda.memory import in_memory, scratch
from nbnorm._cuda.reduce import reduce_columns, reduce_segments
from nbnorm._update import Update

Array = Any
Shape = tuple[int, int, int]
F64: Kind = "float64"


def training_forward(
    x: Array, y: Array, shape: Shape, gamma: Array, beta: Array, eps: float, stats: Array, update: Update | None
) -> None:  # fmt: skip
    """y and stats from x, and the batch into the running statistics: reduce, finalize, apply."""
    cut = plan.cut(shape, x.itemsize)
    pack, count = (in_memory(x.dtype), cut.lanes), float(shape[0] * shape[2])
    running, momentum, running_kinds = _running(update)
    parts = _reduce(cut, pack, x, None, stats, running[2], running_kinds[2])
    arrays = pointer(stats), pointer(gamma), pointer(beta), *running
    kinds = F64, _kind(gamma), _kind(beta), *running_kinds
    if cut.segments:
        normalize_segments(
            cut.grid, cut.threads, (pack, pack, F64, *kinds), pointer(x), pointer(y), pointer(parts), *arrays,
            *cut.numbers, count, eps, momentum,
        )  # fmt: skip
    else:
        coef = scratch(ROWS * shape[1])
        _finalize(cut, shape, (F64, *kinds, F64), pointer(parts), *arrays, pointer(coef), count, eps, momentum)
        _apply(cut, pack, x, None, y, coef)


def batch_statistics(x: Array, shape: Shape, stats: Array, update: Update | None) -> None:
    """stats of x, and the batch into the running statistics."""
    cut = plan.cut(shape, x.itemsize)
    running, momentum, kinds = _running(update)
    parts = _reduce(cut, (in_memory(x.dtype), cut.lanes), x, None, stats, running[2], kinds[2])
    absent = pointer(None)
    _finalize(
        cut, shape, (F64, F64, None, None, *kinds, None), pointer(parts), pointer(stats), absent, absent, *running,
        absent, float(shape[0] * shape[2]), 1.0, momentum,
    )  # fmt: skip


def running_forward(
    x: Array, y: Array, shape: Shape, gamma: Array, beta: Array, eps: float, mean: Array, var: Array,
    stats: Array | None,
) -> None:  # fmt: skip
    """y from x and the running statistics, which also fill stats but for m2."""
    cut = plan.cut(shape, x.itemsize)
    pack = in_memory(x.dtype), cut.lanes
    kernel = running_segments if cut.segments else running_columns
    kernel(
        cut.grid, cut.threads, (pack, pack, _kind(stats), _kind(gamma), _kind(beta), F64, F64), pointer(x), pointer(y),
        pointer(stats), pointer(gamma), pointer(beta), pointer(mean), pointer(var), *cut.numbers, eps,
    )  # fmt: skip


def backward(dy: Array, x: Array, dx: Array, shape: Shape, stats: Array, dgamma: Array, dbeta: Array) -> None:
    """dx, and dgamma and dbeta where they are not None, from the stats of the forward pass."""
    cut = plan.cut(shape, x.itemsize)
    pack, count = (in_memory(x.dtype), cut.lanes), float(shape[0] * shape[2])
    parts = _reduce(cut, pack, x, dy, stats, pointer(None), None)
    if cut.segments:
        gradient_segments(
            cut.grid, cut.threads, (pack, pack, pack, F64, F64, _kind(dgamma), _kind(dbeta)),
            pointer(x), pointer(dy), pointer(dx), pointer(parts), pointer(stats), pointer(dgamma), pointer(dbeta),
            *cut.numbers, count,
        )  # fmt: skip
    else:
        coef = _finalize_gradient(cut, shape, parts, stats, dgamma, dbeta, count, frozen=0)
        _apply(cut, pack, x, dy, dx, coef)


def running_backward(dy: Array, x: Array, dx: Array, shape: Shape, stats: Array, dgamma: Array, dbeta: Array) -> None:
    """The same for statistics that do not depend on x: dx = gamma * inv_std * dy."""
    cut = plan.cut(shape, x.itemsize)
    pack, count = (in_memory(x.dtype), cut.lanes), float(shape[0] * shape[2])
    parts = _reduce(cut, pack, x, dy, stats, pointer(None), None, centred=0)
    coef = _finalize_gradient(cut, shape, parts, stats, dgamma, dbeta, count, frozen=1)
    _apply(cut, pack, dy, None, dx, coef)


def _reduce(
    cut: plan.Cut, pack: Kind, x: Array, dy: Array | None, stats: Array, counters: Any, counters_kind: Kind,
    centred: int = 1,
) -> Array:  # fmt: skip
    """The parts, which the caller keeps until the last launch that reads them."""
    parts = scratch(_at_h(cut) + cut.numbers[1] + 1)
    kernel = reduce_segments if cut.segments else reduce_columns
    kernel(
        cut.grid, cut.threads, (pack, None if dy is None else pack, F64, F64, counters_kind),
        pointer(x), pointer(dy), pointer(stats), pointer(parts), counters, *cut.numbers, centred,
    )  # fmt: skip
    return parts


def _finalize(cut: plan.Cut, shape: Shape, kinds: tuple[Kind, ...], *values: Any) -> None:
    *arrays, count, eps, momentum = values
    C = shape[1]
    finalize((C, 1), plan.FINALIZE, kinds, *arrays, C, cut.run, cut.copies, _at_h(cut), count, eps, momentum)


def _finalize_gradient(
    cut: plan.Cut, shape: Shape, parts: Array, stats: Array, dgamma: Array, dbeta: Array, count: float, frozen: int
) -> Array:  # fmt: skip
    C = shape[1]
    coef = scratch(ROWS * C)
    finalize_gradient(
        (C, 1), plan.FINALIZE, (F64, F64, _kind(dgamma), _kind(dbeta), F64),
        pointer(parts), pointer(stats), pointer(dgamma), pointer(dbeta), pointer(coef),
        C, cut.run, cut.copies, _at_h(cut), frozen, count,
    )  # fmt: skip
    return coef


def _apply(cut: plan.Cut, pack: Kind, x: Array, dy: Array | None, y: Array, coef: Array) -> None:
    kernel = apply_segments if cut.segments else apply_columns
    kernel(
        cut.grid, cut.threads, (pack, None if dy is None else pack, pack, F64),
        pointer(x), pointer(dy), pointer(y), pointer(coef), *cut.numbers,
    )  # fmt: skip


def _at_h(cut: plan.Cut) -> int:
    """Where behind the sums the origins of dy begin in the parts."""
    return 2 * cut.columns * cut.grid[1]


def _kind(array: Array | None) -> Kind:
    return None if array is None else in_memory(array.dtype)


def _running(update: Update | None) -> tuple[tuple[Any, Any, Any], float, tuple[Kind, Kind, Kind]]:
    """What kernels get of the running statistics: mean, var and counters, the momentum, and the kinds of the arrays."""
    if update is None:
        absent = pointer(None)
        return (absent, absent, absent), 0.0, (None, None, None)
    momentum = POOLED if update.momentum is None else update.momentum
    return (pointer(update.mean), pointer(update.var), pointer(update.counters)), momentum, (F64, F64, "int64")
