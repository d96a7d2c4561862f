"""The stages on NumPy arrays: scratch memory, and the choice between the fused and the split driver.

Arrays come in as memory.py reads them: flat, contiguous, 16-bit floats as integers. `shape` is their (N, C, S).
gamma and beta may be None, stats is (5, C).
Everything that can fail has been checked by the caller.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nbnorm._counted import Counted, Gradient, in_rows, throughout
from nbnorm._cpu import plan
from nbnorm._cpu.apply import apply_columns, apply_segments, running_columns, running_segments
from nbnorm._cpu.arrays import OF_MAP
from nbnorm._cpu.counted import first_short
from nbnorm._cpu.finalize import (
    POOLED,
    SCALE,
    SHIFT,
    A,
    B,
    H,
    commit_finite,
    commit_pooled,
    commit_running,
    finalize,
    finalize_given,
)
from nbnorm._cpu.fused import fused_columns, fused_segments
from nbnorm._cpu.maps import signs_for_map
from nbnorm._cpu.reduce import reduce_columns, reduce_segments
from nbnorm._cpu.sums import terms_of
from nbnorm._cpu.threads import workers_for
from nbnorm._formulas import GAMMA, INV_STD, SIGN_SCALE
from nbnorm._running import Running

Array = NDArray
Shape = tuple[int, int, int]

ABSENT = np.empty(0, np.float32)
EVERY = Counted(
    None, 0, 0, 0, 0, None, 0, 0, 0, 0, False
)  # every value counts, and where x is not finite it has no part


def training_forward(
    x: Array, y: Array, shape: Shape, gamma: Array | None, beta: Array | None, eps: float, stats: Array,
    w: Counted | None = None, running: Running | None = None, momentum: float | None = None,
    residual: Array | None = None, slope: float | None = None,
) -> bool:  # fmt: skip
    """y and stats from x: reduce, finalize, apply. Returns False: `commit` has to fold the batch into `running`."""
    _fused_or_split(
        x, None, residual, slope, w, y, shape, stats, _parameter(gamma), _parameter(beta), None, None, eps
    )  # fmt: skip
    return False


def batch_statistics(x: Array, shape: Shape, stats: Array, w: Counted | None = None) -> None:
    """stats of x, but for gamma."""
    sums = np.zeros((3, shape[1]))
    _reduce(x, None, None, w, True, shape, stats, sums)
    finalize(None, stats, sums, ABSENT, ABSENT, None, None, 1.0, _count(shape, w), np.empty((4, shape[1])))


def short_channel(x: Array, shape: Shape, w: Counted, least: float) -> int | None:
    """The first channel whose values do not count more than `least` times in all."""
    answer = np.empty(1, np.int64)
    first_short(x, w, least, *shape, answer)
    return None if answer[0] == shape[1] else int(answer[0])


def running_forward(
    x: Array, y: Array, shape: Shape, gamma: Array | None, beta: Array | None, eps: float, running: Running,
    stats: Array | None, residual: Array | None = None, slope: float | None = None,
) -> None:  # fmt: skip
    """y from x and the running statistics, which also fill stats, unless None, with the variance for m2."""
    N, C, S = shape
    gamma, beta = _parameter(gamma), _parameter(beta)
    tensors = 2 if residual is None else 3
    workers, cut = workers_for(tensors * x.size), plan.mapping(tensors, x.itemsize, N, C, S)
    both = np.empty(8 * C + 5 * workers * cut.width)  # statistics, parameters, coefficients, tables of columns
    with running.lock:  # the statistics of one moment; a copy, so that no call holds the lock for its kernel
        both[: 2 * C] = running.both
    if cut.K:
        running_columns(
            x, residual, slope, y, both, gamma, beta, eps, stats, cut.width, N, C, S, cut.K, cut.abreast, cut.streaming,
            workers,
        )  # fmt: skip
    else:
        running_segments(x, residual, slope, y, both, gamma, beta, eps, stats, N, C, S, cut.streaming, workers)


def keep_signs(stats: Array, gamma: Array | None, beta: Array | None, eps: float, count: float | None) -> None:
    """The map of x as numbers of stats, for a backward pass that asks for the sign of y; m2/count is the variance."""
    # These rows lie as in coef, of which only they are written: y is there already, so nothing may fail any more.
    finalize_given(stats, _parameter(gamma), _parameter(beta), eps, count, stats[SIGN_SCALE - SCALE :])


def backward(
    dy: Array, x: Array, dx: Array, shape: Shape, stats: Array, dgamma: Array | None, dbeta: Array | None,
    w: Counted | None = None, slope: float | None = None,
) -> None:  # fmt: skip
    """dx, and dgamma and dbeta where they are not None, from the stats of the forward pass."""
    _fused_or_split(
        x, dy, None, slope, w, dx, shape, stats, None, None, _parameter(dgamma), _parameter(dbeta), 0.0
    )  # fmt: skip


def running_backward(
    dy: Array, x: Array, dx: Array, shape: Shape, stats: Array, dgamma: Array | None, dbeta: Array | None,
    w: Counted | None = None, slope: float | None = None,
) -> None:  # fmt: skip
    """The same for statistics that do not depend on x: dx = gamma * inv_std * dy."""
    sums = np.zeros((3, shape[1]))
    _reduce(x, dy, slope, w, False, shape, stats, sums)
    # Before dx, which may lie over dy, is written: then nothing is left that could fail. The count is not needed.
    count, coef = _values(shape), np.empty((4, shape[1]))
    finalize(dy, stats, sums, None, None, _parameter(dgamma), _parameter(dbeta), 0.0, count, coef)
    _apply_frozen(dy, x, slope, w, dx, shape, stats)


def residual_gradient(
    dy: Array, y: Array | None, x: Array, dresidual: Array, shape: Shape, slope: float | None, w: Counted | None
) -> None:  # fmt: skip
    """What of dy gets through the activation, which is known by the sign of y (no y: all), and 0 where x is missing."""
    stats, coef = np.zeros((5, shape[1])), np.zeros((6, shape[1]))
    coef[A] = coef[B] = 1.0
    if y is not None:
        _apply(y, dy, None, slope, EVERY, dresidual, shape, stats, coef)
        dy = dresidual
    if w is not None:
        _apply(x, dy, None, None, w, dresidual, shape, stats, coef)


def commit(running: Running, momentum: float | None, stats: Array, count: float | None) -> None:
    """Fold a batch into the running statistics and count it, in one step that cannot fail."""
    with running.lock:
        ddof, both, counters = running.ddof, running.both, running.counters
        samples = running.samples if count is not None else running.count_each()
        samples = samples if samples is None else samples.reshape(-1)
        if running.skip_nonfinite:
            commit_finite(stats, count, POOLED if momentum is None else momentum, ddof, both, counters, samples)
        elif momentum is None:
            commit_pooled(stats, count, ddof, both, counters, samples)
        else:
            commit_running(stats, count, momentum, ddof, both, counters, samples)


def _parameter(values: Array | None) -> Array:
    """Gamma, beta or a gradient in the one form that kernels know: flat float32 numbers, the halves of float64 ones
    where they are float64, none in the place of None. A view; nothing is copied."""
    if values is None:
        return ABSENT
    if values.itemsize == 8:
        return values.reshape(-1).view(ABSENT.dtype)
    return values if values.ndim == 1 else values.reshape(-1)


def _count(shape: Shape, w: Counted | None) -> float | None:
    """Values per channel; None when they are counted."""
    return _values(shape) if w is None else None


def _values(shape: Shape) -> float:
    return float(shape[0] * shape[2])


def fits_cache(shape: Shape, itemsize: int, workers: int) -> bool:
    """Whether channels of segments stay in cache between reduce and apply, with work for all."""
    N, C, S = shape
    balanced = workers == 1 or C % workers == 0 or 4 * workers <= C
    return N * S * itemsize <= plan.CHANNEL_BYTES and balanced


def _fused_or_split(
    x: Array, dy: Array | None, residual: Array | None, slope: float | None, w: Counted | None, y: Array, shape: Shape,
    stats: Array, gamma: Array | None, beta: Array | None, dgamma: Array | None, dbeta: Array | None, eps: float,
) -> None:  # fmt: skip
    """y and stats from x, gamma and beta; with dy an array dx, dgamma and dbeta. The other pair is None."""
    N, C, S = shape
    inputs = 1 if dy is None and residual is None else 2
    workers = workers_for((2 * inputs + 1) * x.size)
    streaming = plan.streams((inputs + 1) * x.nbytes)
    count, of_channels = _count(shape, w), (7 if dy is None else 9) * C
    if S >= plan.SHORT or not in_rows(w, S):
        cut = plan.segments(N, S)
        if fits_cache(shape, x.itemsize, workers):
            fused_segments(
                x, dy, residual, slope, w, y, stats, gamma, beta, dgamma, dbeta, eps, count, np.empty(of_channels), N,
                C, S, *cut, streaming, workers,
            )  # fmt: skip
            return
    else:
        blocks = plan.blocks(N, C, S, throughout(w, C, S), workers)
        if blocks is not None:
            channels, width, rows = blocks
            terms = terms_of(x, dy, w)
            room = (2 * terms + (5 if dy is None or slope is None else 7)) * width
            fused_columns(
                x, dy, residual, slope, w, y, stats, gamma, beta, dgamma, dbeta, eps, count,
                np.empty(of_channels + 7 + workers * room), room, terms, width, channels, N, C, S, rows,
                streaming, workers,
            )  # fmt: skip
            return
    sums = np.zeros((3, C))
    coef = np.empty((4, C), OF_MAP[x.itemsize]) if dy is None else _of_gradient(stats, slope)
    _reduce(x, dy, None if dy is None else slope, w, True, shape, stats, sums)
    finalize(dy, stats, sums, gamma, beta, dgamma, dbeta, eps, count, coef)
    _apply(x, dy, residual, slope, w, y, shape, stats, coef)


def _of_gradient(stats: Array, slope: float | None) -> Array:
    """Room for the coefficients of a backward map; with a slope those that tell the sign of y are there."""
    if slope is None:
        return np.empty((4, stats.shape[1]))
    coef = np.zeros((6, stats.shape[1]))
    signs_for_map(stats, ..., coef)
    return coef


def _reduce(
    x: Array, dy: Gradient | None, slope: float | None, w: Counted | None, centred: bool, shape: Shape, stats: Array,
    sums: Array,
) -> None:  # fmt: skip
    N, C, S = shape
    workers = workers_for((1 if dy is None else 2) * x.size)
    if S >= plan.SHORT or not in_rows(w, S):
        cut = plan.segments(N, S)
        parts = np.empty((C * cut.chunks, 3))
        reduce_segments(x, dy, slope, w, centred, stats, sums, parts, N, C, S, *cut, workers)
    else:
        cols = plan.columns(N, C, S, throughout(w, C, S))
        terms = terms_of(x, dy, w)
        acc, tables = np.empty(cols.blocks * terms * cols.width), 2 if slope is None else 4
        reduce_columns(
            x, dy, slope, w, centred, stats, sums, acc, np.empty((workers, tables, plan.PANEL + plan.LANES)), N, C, S,
            cols.tile, cols.block, cols.blocks, terms, cols.width, workers,
        )  # fmt: skip


def _apply_frozen(
    dy: Array, x: Array, slope: float | None, w: Counted | None, dx: Array, shape: Shape, stats: Array
) -> None:  # fmt: skip
    """x is read only where some of its values may not be there, or for the sign of y."""
    a = stats[GAMMA] * stats[INV_STD]
    if w is None and slope is None:
        coef = np.zeros((4, shape[1]))
        coef[SCALE] = a
        _apply(dy, None, None, None, None, dx, shape, np.zeros((5, shape[1])), coef)
    else:
        coef = _of_gradient(stats, slope)
        coef[A], coef[SCALE], coef[SHIFT], coef[H] = a, 0.0, 0.0, 0.0
        # The map has no use for x but its sign, and infinity times 0 must not spoil what is let through.
        _apply(x, dy, None, slope, EVERY if w is None else w, dx, shape, stats, coef)


def _apply(
    x: Array, dy: Gradient | None, other: Array | None, slope: float | None, w: Counted | None, y: Array, shape: Shape,
    stats: Array, coef: Array,
) -> None:  # fmt: skip
    """The map of each channel, as maps.py has it; w is only asked for backwards."""
    N, C, S = shape
    tensors, w = sum(array is not None for array in (x, dy, other, y)), w if dy is not None else None
    runs = in_rows(w, S), throughout(w, C, S)
    workers, cut = workers_for(tensors * x.size), plan.mapping(tensors, x.itemsize, N, C, S, *runs)
    if cut.K:
        rows = 5 if dy is None or (other is None and slope is None) else 7
        tables = np.empty((workers, rows * cut.width), coef.dtype)
        apply_columns(
            x, dy, other, slope, w, y, stats, coef, tables, N, C, S, cut.K, cut.abreast, cut.streaming, workers
        )  # fmt: skip
    else:
        apply_segments(x, dy, other, slope, w, y, stats, coef, N, C, S, cut.streaming, workers)
