"""The stages on CuPy arrays: scratch memory, the cut of the work, and the launches.

Arrays lie in memory as the elements of an (N, C, S) array, `shape`; gamma and beta may be None, stats is (5, C).
Everything that can fail has been checked by the caller; but for `short_channel` nothing here waits for the GPU.
"""

from __future__ import annotations

from typing import Any

from nbnorm._counted import Counted, each
from nbnorm._cuda import plan
from nbnorm._cuda.apply import (
    apply_columns,
    apply_segments,
    gradient_columns,
    gradient_segments,
    normalize_columns,
    normalize_segments,
    running_columns,
    running_segments,
)
from nbnorm._cuda.combine import finalize_given
from nbnorm._cuda.counted import first_short
from nbnorm._cuda.finalize import (
    POOLED,
    ROWS,
    ROWS_OF_THREE,
    SCALE,
    SHIFT,
    UNKNOWN,
    A,
    B,
    commit_batch,
    count_channels,
    finalize,
    finalize_gradient,
)
from nbnorm._cuda.fused import fused_gradient_segments, fused_segments
from nbnorm._cuda.launch import COUNTED, NUMBER, Kind, counted, number, pointer, pointers, roomy
from nbnorm._cuda.memory import in_memory, scratch
from nbnorm._cuda.reduce import reduce_columns, reduce_segments
from nbnorm._formulas import DEVIATION, M2, ORIGIN, SIGN_SCALE
from nbnorm._running import Running

Array = Any
Shape = tuple[int, int, int]
F64: Kind = "float64"


def training_forward(
    x: Array, y: Array, shape: Shape, gamma: Array | None, beta: Array | None, eps: float, stats: Array,
    w: Counted | None = None, running: Running | None = None, momentum: float | None = None,
    residual: Array | None = None, slope: float | None = None,
) -> bool:  # fmt: skip
    """y and stats from x: reduce, finalize, apply.

    Returns whether the batch has been folded into `running` on the way; otherwise `commit` has to.
    """
    sums = _cut(shape, x.itemsize, w)
    pack, count = (in_memory(x.dtype), sums.lanes), float(shape[0] * shape[2])
    if w is not None:
        parts, coef = _reduce(sums, pack, x, None, None, w, stats), scratch(ROWS * shape[1])
        _finalize(sums, shape, parts, stats, gamma, beta, coef, UNKNOWN, eps)
        _apply(sums, pack, x, None, residual, slope, None, y, coef)
        return False
    cut = cut_of_map(shape, x.itemsize, residual)
    pack = in_memory(x.dtype), cut.lanes
    added = None if residual is None else pack
    if running is not None and (running.skip_nonfinite or running.samples is not None):
        running = None
    pooled, mean, var, counters, ddof = False, None, None, None, 0.0
    if running is not None:
        pooled, mean, var, counters, ddof = momentum is None, running.mean, running.var, running.counters, running.ddof
    room = room_of(cut, x.itemsize, arrays=1)
    if room is not None and not pooled:
        fused_segments(
            cut.grid, cut.threads,
            (pack, added, _kind_of_number(slope), pack, F64, _kind(gamma), _kind(beta), _kind(mean), _kind(var),
             _kind(counters)),
            pointer(x), pointer(residual), number(slope), pointer(y), pointer(stats), pointer(gamma), pointer(beta),
            pointer(mean), pointer(var), pointer(counters), *cut.numbers, count, eps,
            0.0 if momentum is None else momentum, ddof, room=room,
        )  # fmt: skip
        return running is not None
    parts = _reduce(sums, (pack[0], sums.lanes), x, None, None, None, stats, counters=counters if pooled else None)
    kernel = normalize_segments if cut.segments else normalize_columns
    kernel(
        cut.grid, cut.threads,
        (pack, added, _kind_of_number(slope), pack, F64, F64, _kind(gamma), _kind(beta), _kind(mean), _kind(var),
         _kind(counters)),
        pointer(x), pointer(residual), number(slope), pointer(y), pointer(parts), pointer(stats), pointer(gamma),
        pointer(beta), pointer(mean), pointer(var), pointer(counters), *cut.numbers, sums.run, sums.copies,
        _at_h(sums), count, eps, POOLED if momentum is None else momentum, ddof,
    )  # fmt: skip
    return running is not None


def batch_statistics(x: Array, shape: Shape, stats: Array, w: Counted | None = None) -> None:
    """stats of x, but for gamma."""
    cut = _cut(shape, x.itemsize, w)
    parts = _reduce(cut, (in_memory(x.dtype), cut.lanes), x, None, None, w, stats)
    count = float(shape[0] * shape[2]) if w is None else UNKNOWN
    _finalize(cut, shape, parts, stats, None, None, None, count, 1.0)


def short_channel(x: Array, shape: Shape, w: Counted, least: float) -> int | None:
    """The first channel whose values do not count more than `least` times in all. Waits for the GPU."""
    short = scratch(shape[1])
    if x.size:
        first_short(
            (shape[1], 1), plan.THREADS, ((in_memory(x.dtype), 1), _kind_of(w), F64),
            pointer(x), counted(w), pointer(short), *shape, least,
        )  # fmt: skip
    else:
        short[...] = 1.0
    found = short.get().nonzero()[0]
    return int(found[0]) if found.size else None


def commit(running: Running, momentum: float | None, stats: Array, count: float | None) -> None:
    """Fold a batch into the running statistics and count it, in one step that cannot fail."""
    samples = running.samples if count is not None else running.count_each()
    commit_batch(
        (1, 1), plan.THREADS, (F64, F64, F64, "int64", _kind(samples)),
        pointer(stats), pointer(running.mean), pointer(running.var), pointer(running.counters), pointer(samples),
        stats.shape[1], int(running.skip_nonfinite), UNKNOWN if count is None else count,
        POOLED if momentum is None else momentum, running.ddof,
    )  # fmt: skip


def running_forward(
    x: Array, y: Array, shape: Shape, gamma: Array, beta: Array, eps: float, running: Running,
    stats: Array | None, residual: Array | None = None, slope: float | None = None,
) -> None:  # fmt: skip
    """y from x and the running statistics, which also fill stats, in the place of m2 the variance."""
    if stats is not None and not x.size:  # a shard without values, whose statistics are needed all the same
        stats[ORIGIN], stats[DEVIATION], stats[M2] = running.mean.reshape(-1), 0.0, running.var.reshape(-1)
        finalize_given(
            (max(1, shape[1]), 1), 1, (F64, _kind(gamma), _kind(beta), F64),
            pointer(stats), pointer(gamma), pointer(beta), pointer(scratch(ROWS * shape[1])), shape[1], 1.0, eps,
        )  # fmt: skip
        return
    cut = cut_of_map(shape, x.itemsize, residual)
    pack = in_memory(x.dtype), cut.lanes
    kernel = running_segments if cut.segments else running_columns
    added = None if residual is None else pack
    kernel(
        cut.grid, cut.threads,
        (pack, added, _kind_of_number(slope), pack, _kind(stats), _kind(gamma), _kind(beta), F64, F64),
        pointer(x), pointer(residual), number(slope), pointer(y), pointer(stats), pointer(gamma), pointer(beta),
        pointer(running.mean), pointer(running.var), *cut.numbers, eps,
    )  # fmt: skip


def keep_signs(stats: Array, gamma: Array | None, beta: Array | None, eps: float, count: float | None) -> None:
    """The map of x as numbers of stats, for a backward pass that asks for the sign of y; m2/count is the variance."""
    C = stats.shape[1]
    coef = scratch(ROWS * C).reshape(ROWS, C)
    finalize_given(
        (max(1, -(-C // plan.THREADS)), 1), plan.THREADS, (F64, _kind(gamma), _kind(beta), F64),
        pointer(stats), pointer(gamma), pointer(beta), pointer(coef), C, UNKNOWN if count is None else count, eps,
    )  # fmt: skip
    stats[SIGN_SCALE:] = coef[SCALE : SHIFT + 1]


def backward(
    dy: Array, x: Array, dx: Array, shape: Shape, stats: Array, dgamma: Array, dbeta: Array, w: Counted | None = None,
    slope: float | None = None,
) -> None:  # fmt: skip
    """dx, and dgamma and dbeta where they are not None, from the stats of the forward pass."""
    cut = _cut_of_gradient(shape, x.itemsize, w, slope)
    pack, count = (in_memory(x.dtype), cut.lanes), float(shape[0] * shape[2])
    if w is not None:
        parts = _reduce(cut, pack, x, dy, slope, w, stats)
        coef = _finalize_gradient(cut, shape, parts, stats, dgamma, dbeta, UNKNOWN, frozen=0)
        _apply(cut, pack, x, dy, None, slope, w, dx, coef, _signs(stats, slope))
        return
    room = room_of(cut, x.itemsize, arrays=2)
    if room is not None:
        fused_gradient_segments(
            cut.grid, cut.threads, (pack, pack, _kind_of_number(slope), pack, F64, _kind(dgamma), _kind(dbeta)),
            pointer(x), pointer(dy), number(slope), pointer(dx), pointer(stats), pointer(dgamma), pointer(dbeta),
            *cut.numbers, count, room=room,
        )  # fmt: skip
        return
    sums = _cut_of_sums(shape, x.itemsize, slope)
    parts = _reduce(sums, (pack[0], sums.lanes), x, dy, slope, None, stats)
    _gradient(cut, pack, x, dy, slope, dx, sums, parts, stats, dgamma, dbeta, count)


def running_backward(
    dy: Array, x: Array, dx: Array, shape: Shape, stats: Array, dgamma: Array, dbeta: Array, w: Counted | None = None,
    slope: float | None = None,
) -> None:  # fmt: skip
    """The same for statistics that do not depend on x: dx = gamma * inv_std * dy."""
    cut = _cut_of_gradient(shape, x.itemsize, w, slope)
    pack, count = (in_memory(x.dtype), cut.lanes), float(shape[0] * shape[2])
    parts = _reduce(cut, pack, x, dy, slope, w, stats, centred=0)
    if w is None and slope is None:
        _gradient(cut, pack, None, dy, None, dx, cut, parts, stats, dgamma, dbeta, count)
    else:
        coef = _finalize_gradient(cut, shape, parts, stats, dgamma, dbeta, count, frozen=1)
        _apply(cut, pack, x, dy, None, slope, w, dx, coef, _signs(stats, slope))


def residual_gradient(
    dy: Array, y: Array | None, x: Array, dresidual: Array, shape: Shape, slope: float | None, w: Counted | None
) -> None:  # fmt: skip
    """What of dy gets through the activation, which is known by the sign of y (no y: all), and 0 where x is missing."""
    C, cut = shape[1], _cut_of_gradient(shape, x.itemsize, w, slope)
    pack, coef = (in_memory(x.dtype), cut.lanes), scratch(ROWS_OF_THREE * C).reshape(ROWS_OF_THREE, C)
    coef[...] = 0
    coef[A] = coef[B] = 1
    if y is not None:
        _apply(cut, pack, y, dy, None, slope, None, dresidual, coef, coef[B:])
        dy = dresidual
    if w is not None:
        _apply(cut, pack, x, dy, None, None, w, dresidual, coef)


def room_of(cut: plan.Cut, itemsize: int, arrays: int) -> int | None:
    """Bytes of shared memory for one launch on the current GPU; None where that takes two."""
    room = plan.room_of(cut, itemsize, arrays)
    return room if room is not None and (room <= plan.ROOM or roomy()) else None


def _gradient(
    cut: plan.Cut, pack: Kind, x: Array | None, dy: Array, slope: float | None, dx: Array, sums: plan.Cut, parts: Array,
    stats: Array, dgamma: Array | None, dbeta: Array | None, count: float,
) -> None:  # fmt: skip
    """The map of dy and x with the parts of `sums`, which may have been cut another way."""
    kernel = gradient_segments if cut.segments else gradient_columns
    kernel(
        cut.grid, cut.threads,
        (None if x is None else pack, pack, _kind_of_number(slope), pack, F64, F64, _kind(dgamma), _kind(dbeta)),
        pointer(x), pointer(dy), number(slope), pointer(dx), pointer(parts), pointer(stats), pointer(dgamma),
        pointer(dbeta), *cut.numbers, sums.run, sums.copies, _at_h(sums), count,
    )  # fmt: skip


def _reduce(
    cut: plan.Cut, pack: Kind, x: Array, dy: Array | None, slope: float | None, w: Counted | None, stats: Array,
    centred: int = 1, counters: Array | None = None,
) -> Array:  # fmt: skip
    """The parts, which the caller keeps until the last launch that reads them; and the count where it is not known.

    With counters also what they have seen, for the kernel that changes them.
    """
    C, at_count = cut.numbers[1], _at_h(cut) + cut.numbers[1]
    counting = w is not None and dy is None
    parts = scratch(at_count + (cut.columns * cut.grid[1] if counting else 0))
    kernel = reduce_segments if cut.segments else reduce_columns
    kernel(
        cut.grid, cut.threads,
        (pack, _packs(dy, pack), _kind_of_number(slope), _kind_of(w), F64, F64, _kind(counters)),
        pointer(x), pointers(dy), number(slope), counted(w), pointer(stats), pointer(parts), pointer(counters),
        *cut.numbers, centred,
    )  # fmt: skip
    if counting:
        count_channels(
            (C, 1), cut.finalize_threads, (F64, F64), pointer(parts), pointer(stats), C, cut.run, cut.copies, at_count
        )
    return parts


def _finalize(
    cut: plan.Cut, shape: Shape, parts: Array, stats: Array, gamma: Array | None, beta: Array | None,
    coef: Array | None, count: float, eps: float,
) -> None:  # fmt: skip
    finalize(
        (shape[1], 1), cut.finalize_threads, (F64, F64, _kind(gamma), _kind(beta), _kind(coef)),
        pointer(parts), pointer(stats), pointer(gamma), pointer(beta), pointer(coef),
        shape[1], cut.run, cut.copies, count, eps,
    )  # fmt: skip


def _finalize_gradient(
    cut: plan.Cut, shape: Shape, parts: Array, stats: Array, dgamma: Array, dbeta: Array, count: float, frozen: int
) -> Array:  # fmt: skip
    """For values that do not count alike."""
    C = shape[1]
    coef = scratch(ROWS * C)
    finalize_gradient(
        (C, 1), cut.finalize_threads, (F64, F64, _kind(dgamma), _kind(dbeta), F64),
        pointer(parts), pointer(stats), pointer(dgamma), pointer(dbeta), pointer(coef),
        C, cut.run, cut.copies, _at_h(cut), frozen, count,
    )  # fmt: skip
    return coef


def _apply(
    cut: plan.Cut, pack: Kind, x: Array, dy: Array | None, other: Array | None, slope: float | None, w: Counted | None,
    y: Array, coef: Array, signs: Array | None = None,
) -> None:  # fmt: skip
    """The map of each channel, as apply.py has it; `signs` (2, C) where dy is let through by the sign of y."""
    kernel = apply_segments if cut.segments else apply_columns
    kinds = (_packs(array, pack) for array in (x, dy, other))
    kernel(
        cut.grid, cut.threads, (*kinds, _kind_of_number(slope), _kind_of(w), pack, F64, _kind(signs)),
        pointer(x), pointers(dy), pointer(other), number(slope), counted(w), pointer(y), pointer(coef), pointer(signs),
        *cut.numbers,
    )  # fmt: skip


def _signs(stats: Array, slope: float | None) -> Array | None:
    return None if slope is None else stats[SIGN_SCALE:]


def cut_of_map(shape: Shape, itemsize: int, residual: Array | None) -> plan.Cut:
    """For y of x, where every value counts once."""
    return plan.cut(shape, itemsize) if residual is None else plan.cut_of_two(shape, itemsize)


def _cut(shape: Shape, itemsize: int, w: Counted | None) -> plan.Cut:
    if w is None:
        return plan.cut(shape, itemsize)
    return plan.cut_counted(shape, itemsize, _beside_a_mask(w))


def _beside_a_mask(w: Counted) -> int:
    """The bytes of a weight, where there is a mask too."""
    return 0 if w.where is None or w.weights is None else w.weights.itemsize


def _cut_of_gradient(shape: Shape, itemsize: int, w: Counted | None, slope: float | None) -> plan.Cut:
    if w is None:
        return plan.cut_of_two(shape, itemsize)
    return (plan.cut_counted if slope is None else plan.cut_gated)(shape, itemsize, _beside_a_mask(w))


def _cut_of_sums(shape: Shape, itemsize: int, slope: float | None) -> plan.Cut:
    return plan.cut(shape, itemsize) if slope is None else plan.cut_of_two(shape, itemsize)


def _at_h(cut: plan.Cut) -> int:
    """Where behind the sums the origins of dy begin in the parts."""
    return 2 * cut.columns * cut.grid[1]


def _kind_of(w: Counted | None) -> Kind:
    return None if w is None else (_kind(w.where), _kind(w.weights), COUNTED)


def _packs(array: Array | None, pack: Kind) -> Kind:
    """The kind of an array, or of a Tangent or a Both of arrays, in packs."""
    return None if array is None else each(lambda _: pack, array) if isinstance(array, tuple) else pack


def _kind_of_number(value: float | None) -> Kind:
    return None if value is None else NUMBER


def _kind(array: Array | None) -> Kind:
    return None if array is None else in_memory(array.dtype)
