"""The stages on CuPy arrays: scratch memory, the cut of the work, and the choice between one launch and several.

Arrays lie in memory as the elements of an (N, C, S) array, `shape`; gamma and beta may be None, stats has the rows that
_channel_rows.py names, a column for each channel.
Everything that can fail has been checked by the caller; but for `short_channel`, and statistics of values with weights,
nothing here waits for the GPU.
"""

from __future__ import annotations

from nbnorm._channel_rows import SIGN_SCALE
from nbnorm._counted import Counted, channels_apart
from nbnorm._cuda import plan
from nbnorm._cuda.apply import normalize_columns, normalize_segments
from nbnorm._cuda.coefficients import ROWS, ROWS_OF_THREE, SCALE, SHIFT, A, B
from nbnorm._cuda.commits import POOLED
from nbnorm._cuda.counted import first_short
from nbnorm._cuda.finalize import UNKNOWN, finalize, finalize_given, move_origins
from nbnorm._cuda.fused import fused_gradient_segments, fused_segments
from nbnorm._cuda.kinds import F64, Array, kind, kind_of_counted, kind_of_number
from nbnorm._cuda.launch import counted, number, pointer, roomy
from nbnorm._cuda.memory import in_memory, refuse_in_capture, scratch
from nbnorm._cuda.passes import (
    apply,
    at_h,
    by_channel,
    coefficients,
    count_or_unknown,
    cut_of_gradient,
    cut_of_map,
    cut_of_statistics,
    cut_of_sums,
    gradient,
    reduce,
    sign_rows,
)
from nbnorm._cuda.plan import Shape
from nbnorm._formulas import LOOKS
from nbnorm._running import Running


def training_forward(
    x: Array, y: Array, shape: Shape, gamma: Array | None, beta: Array | None, eps: float, stats: Array,
    w: Counted | None = None, running: Running | None = None, momentum: float | None = None,
    residual: Array | None = None, slope: float | None = None,
) -> bool:  # fmt: skip
    """y and stats from x: reduce, finalize, apply; with an activation and no residual those of `keep_signs` too.

    Returns whether the batch has been folded into `running` on the way; otherwise `commit` has to.
    """
    sums = cut_of_statistics(shape, x.itemsize, w)
    pack, count = (in_memory(x.dtype), sums.lanes), float(shape[0] * shape[2])
    if w is not None:
        parts, coef = reduce(sums, pack, x, None, None, w, stats), scratch(ROWS * shape[1])
        _finalize(sums, shape, parts, stats, gamma, beta, coef, UNKNOWN, eps)
        looks = 0 if w.weights is None else LOOKS
        while looks and _have_moved(x, stats):
            parts = reduce(sums, pack, x, None, None, w, stats, centred=0)
            _finalize(sums, shape, parts, stats, gamma, beta, coef, UNKNOWN, eps)
            looks -= 1
        apply(sums, pack, x, None, residual, slope, None, y, coef)
        if slope is not None and residual is None:
            _keep(coef, stats)
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
            (pack, added, kind_of_number(slope), pack, F64, kind(gamma), kind(beta), kind(mean), kind(var),
             kind(counters)),
            pointer(x), pointer(residual), number(slope), pointer(y), pointer(stats), pointer(gamma), pointer(beta),
            pointer(mean), pointer(var), pointer(counters), *cut.numbers, count, eps,
            0.0 if momentum is None else momentum, ddof, room=room,
        )  # fmt: skip
        return running is not None
    parts = reduce(sums, (pack[0], sums.lanes), x, None, None, None, stats, counters=counters if pooled else None)
    kernel = normalize_segments if cut.segments else normalize_columns
    kernel(
        cut.grid, cut.threads,
        (pack, added, kind_of_number(slope), pack, F64, F64, kind(gamma), kind(beta), kind(mean), kind(var),
         kind(counters)),
        pointer(x), pointer(residual), number(slope), pointer(y), pointer(parts), pointer(stats), pointer(gamma),
        pointer(beta), pointer(mean), pointer(var), pointer(counters), *cut.numbers, sums.run, sums.copies,
        at_h(sums), count, eps, POOLED if momentum is None else momentum, ddof,
    )  # fmt: skip
    return running is not None


def batch_statistics(x: Array, shape: Shape, stats: Array, w: Counted | None = None) -> None:
    """stats of x, but for inv_std and gamma."""
    cut = cut_of_statistics(shape, x.itemsize, w)
    pack, count = (in_memory(x.dtype), cut.lanes), float(shape[0] * shape[2]) if w is None else UNKNOWN
    parts = reduce(cut, pack, x, None, None, w, stats)
    _finalize(cut, shape, parts, stats, None, None, None, count, 1.0)
    looks = 0 if w is None or w.weights is None else LOOKS
    while looks and _have_moved(x, stats):
        parts = reduce(cut, pack, x, None, None, w, stats, centred=0)
        _finalize(cut, shape, parts, stats, None, None, None, count, 1.0)
        looks -= 1


def _have_moved(x: Array, stats: Array) -> bool:
    """Whether origins were so far from the mean that they are there now, and stats are to be found anew. Waits for the
    GPU.
    """
    C, some = stats.shape[1], scratch(1)
    some[...] = 0
    move_origins(*by_channel(C), (F64, F64), pointer(stats), pointer(some), C, int(x.dtype.itemsize < 8))
    return bool(some.get()[0])


def short_channel(x: Array, shape: Shape, w: Counted, least: float) -> int | None:
    """The first channel whose values do not count more than `least` times in all. Waits for the GPU."""
    refuse_in_capture("training with where=, weights= or nan=")
    N, C, S = shape[0], channels_apart(w, shape[1]), shape[2]
    short = scratch(C)
    if x.size:
        first_short(
            (C, 1), plan.THREADS, ((in_memory(x.dtype), 1), kind_of_counted(w), F64),
            pointer(x), counted(w), pointer(short), N, C, S, least,
        )  # fmt: skip
    else:
        short[...] = 1.0
    found = short.get().nonzero()[0]
    return int(found[0]) if found.size else None


def keep_signs(stats: Array, gamma: Array | None, beta: Array | None, eps: float, count: float | None) -> None:
    """The map of x as numbers of stats, for a backward pass that asks for the sign of y; m2/count is the variance."""
    C = stats.shape[1]
    coef = scratch(ROWS * C)
    finalize_given(
        *by_channel(C), (F64, kind(gamma), kind(beta), F64),
        pointer(stats), pointer(gamma), pointer(beta), pointer(coef), C, count_or_unknown(count), eps,
    )  # fmt: skip
    _keep(coef, stats)


def _keep(coef: Array, stats: Array) -> None:
    """The map of x for signs."""
    C = stats.shape[1]
    stats[SIGN_SCALE:] = coef[SCALE * C : (SHIFT + 1) * C].reshape(2, C)


def backward(
    dy: Array, x: Array, dx: Array, shape: Shape, stats: Array, dgamma: Array | None, dbeta: Array | None,
    w: Counted | None = None, slope: float | None = None,
) -> None:  # fmt: skip
    """dx, and dgamma and dbeta where they are not None, from the stats of the forward pass."""
    cut = cut_of_gradient(shape, x.itemsize, w, slope)
    pack, count = (in_memory(x.dtype), cut.lanes), float(shape[0] * shape[2])
    if w is not None:
        parts = reduce(cut, pack, x, dy, slope, w, stats)
        coef = coefficients(cut, shape, parts, stats, dgamma, dbeta, UNKNOWN, frozen=0)
        apply(cut, pack, x, dy, None, slope, w, dx, coef, sign_rows(stats, slope))
        return
    room = room_of(cut, x.itemsize, arrays=2)
    if room is not None:
        fused_gradient_segments(
            cut.grid, cut.threads, (pack, pack, kind_of_number(slope), pack, F64, kind(dgamma), kind(dbeta)),
            pointer(x), pointer(dy), number(slope), pointer(dx), pointer(stats), pointer(dgamma), pointer(dbeta),
            *cut.numbers, count, room=room,
        )  # fmt: skip
        return
    sums = cut_of_sums(shape, x.itemsize, slope)
    parts = reduce(sums, (pack[0], sums.lanes), x, dy, slope, None, stats)
    gradient(cut, pack, x, dy, slope, dx, sums, parts, stats, dgamma, dbeta, count)


def residual_gradient(
    dy: Array, y: Array | None, x: Array, dresidual: Array, shape: Shape, slope: float | None, w: Counted | None
) -> None:  # fmt: skip
    """What of dy gets through the activation, which is known by the sign of y (no y: all), and 0 where x is missing."""
    C, cut = shape[1], cut_of_gradient(shape, x.itemsize, w, slope)
    pack, coef = (in_memory(x.dtype), cut.lanes), scratch(ROWS_OF_THREE * C).reshape(ROWS_OF_THREE, C)
    coef[...] = 0
    coef[A] = coef[B] = 1
    if y is not None:
        apply(cut, pack, y, dy, None, slope, None, dresidual, coef, coef[B:])
        dy = dresidual
    if w is not None:
        apply(cut, pack, x, dy, None, None, w, dresidual, coef)


def room_of(cut: plan.Cut, itemsize: int, arrays: int) -> int | None:
    """Bytes of shared memory for one launch on the current GPU; None where that takes two."""
    room = plan.room_of(cut, itemsize, arrays)
    return room if room is not None and (room <= plan.ROOM or roomy()) else None


def _finalize(
    cut: plan.Cut, shape: Shape, parts: Array, stats: Array, gamma: Array | None, beta: Array | None,
    coef: Array | None, count: float, eps: float,
) -> None:  # fmt: skip
    finalize(
        (shape[1], 1), cut.finalize_threads, (F64, F64, kind(gamma), kind(beta), kind(coef)),
        pointer(parts), pointer(stats), pointer(gamma), pointer(beta), pointer(coef),
        shape[1], cut.run, cut.copies, count, eps,
    )  # fmt: skip
