"""The stages on NumPy arrays: scratch memory, and the choice between the fused and the split driver.

Arrays come in flat and contiguous, `shape` is their (N, C, S); gamma, beta and the running statistics are float64.
Everything that can fail has been checked by the caller.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nbnorm._cpu import plan
from nbnorm._cpu.apply import apply_columns, apply_segments
from nbnorm._cpu.finalize import SCALE, finalize, finalize_running
from nbnorm._cpu.fused import fused_columns, fused_segments
from nbnorm._cpu.reduce import reduce_columns, reduce_segments
from nbnorm._cpu.threads import workers_for
from nbnorm._formulas import INV_STD

Array = NDArray
Shape = tuple[int, int, int]


def training_forward(x: Array, y: Array, shape: Shape, gamma: Array, beta: Array, eps: float, stats: Array) -> None:
    """y and stats (4, C) from x: reduce, finalize, apply."""
    _fused_or_split(_raw(x), None, _raw(y), shape, stats, np.zeros((3, shape[1])), gamma, beta, eps)


def backward(dy: Array, x: Array, dx: Array, shape: Shape, gamma: Array, stats: Array, sums: Array) -> None:
    """dx and sums (3, C): sum_dy and sum_dy_xmu, from the stats of the forward pass."""
    _fused_or_split(_raw(x), _raw(dy), _raw(dx), shape, stats, sums, gamma, gamma, 0.0)


def batch_statistics(x: Array, shape: Shape, stats: Array) -> None:
    """stats (4, C) of x."""
    _, C, _ = shape
    unit, sums = np.ones(C), np.zeros((3, C))
    _reduce(_raw(x), None, True, shape, stats, sums)
    finalize(None, stats, sums, unit, unit, 1.0, _count(shape), np.empty((4, C)))


def running_forward(
    x: Array, y: Array, shape: Shape, gamma: Array, beta: Array, eps: float, mean: Array, var: Array, stats: Array
) -> None:  # fmt: skip
    """y from x and the running statistics, which also fill stats (4, C) but for m2."""
    coef = np.empty((4, shape[1]))
    finalize_running(mean, var, gamma, beta, eps, stats, coef)
    _apply(_raw(x), None, _raw(y), shape, stats, coef)


def running_backward(dy: Array, x: Array, dx: Array, shape: Shape, gamma: Array, stats: Array, sums: Array) -> None:
    """The same as `backward` for statistics that do not depend on x: dx = gamma * inv_std * dy."""
    coef = np.zeros((4, shape[1]))
    coef[SCALE] = gamma * stats[INV_STD]
    _reduce(_raw(x), _raw(dy), False, shape, stats, sums)
    _apply(_raw(dy), None, _raw(dx), shape, np.zeros((4, shape[1])), coef)


def _raw(array: Array) -> Array:
    """What the kernels read: 16-bit floats as the integers that stand for them (vector.py)."""
    if array.itemsize != 2:
        return array
    return array.view(np.uint16 if array.dtype == np.float16 else np.int16)


def _terms(x: Array) -> int:
    """Sums that reduce keeps of each column: two, and for float64 data what they lose."""
    return 4 if x.itemsize == 8 else 2


def _count(shape: Shape) -> float:
    return float(shape[0] * shape[2])


def _fused_or_split(
    x: Array, dy: Array | None, y: Array, shape: Shape, stats: Array, sums: Array,
    gamma: Array, beta: Array, eps: float,
) -> None:  # fmt: skip
    N, C, S = shape
    coef = np.empty((4, C))
    traffic = (2 if dy is None else 3) * x.nbytes
    workers, streaming = workers_for(traffic), plan.streams(traffic)
    if S >= plan.SHORT:
        cut = plan.segments(N, S)
        balanced = workers == 1 or C % workers == 0 or 4 * workers <= C
        if N * S * x.itemsize <= plan.CHANNEL_BYTES and balanced:
            fused_segments(
                workers, x, dy, y, stats, sums, coef, gamma, beta, eps, N, C, S, *cut, streaming
            )  # fmt: skip
            return
    else:
        cols = plan.columns(N, C, S)
        if cols.channels:
            channels = min(cols.channels, -(-C // workers), max(1, -(-512 // S)))
            width = plan.up(channels * S, plan.LANES) + plan.LANES  # a vector reaches beyond its columns
            terms = _terms(x)
            scratch = np.empty((workers, (2 * terms + 5) * width))
            fused_columns(
                workers, x, dy, y, stats, sums, coef, gamma, beta, eps, scratch, terms, width, channels, N, C, S,
                cols.block, streaming,
            )  # fmt: skip
            return
    _reduce(x, dy, True, shape, stats, sums)
    finalize(dy, stats, sums, gamma, beta, eps, _count(shape), coef)
    _apply(x, dy, y, shape, stats, coef)


def _reduce(x: Array, dy: Array | None, centred: bool, shape: Shape, stats: Array, sums: Array) -> None:
    N, C, S = shape
    workers = workers_for((1 if dy is None else 2) * x.nbytes)
    if S >= plan.SHORT:
        cut = plan.segments(N, S)
        reduce_segments(workers, x, dy, centred, stats, sums, np.empty((C * cut.chunks, 2)), N, C, S, *cut)
    else:
        cols = plan.columns(N, C, S)
        terms = _terms(x)
        acc, tables = np.empty(cols.blocks * terms * cols.width), np.empty((workers, 2, plan.PANEL + plan.LANES))
        reduce_columns(
            workers, x, dy, centred, stats, sums, acc, tables, N, C, S,
            cols.tile, cols.block, cols.blocks, terms, cols.width,
        )  # fmt: skip


def _apply(x: Array, dy: Array | None, y: Array, shape: Shape, stats: Array, coef: Array) -> None:
    N, C, S = shape
    traffic = (2 if dy is None else 3) * x.nbytes
    workers, streaming = workers_for(traffic), plan.streams(traffic)
    if S >= plan.SHORT:
        apply_segments(workers, x, dy, y, stats, coef, N, C, S, streaming)
    else:
        K = plan.columns(N, C, S).map_K
        tables = np.empty((workers, 5, min(K, plan.MAP_WIDTH) + 3 * plan.LANES))
        apply_columns(workers, x, dy, y, stats, coef, tables, N, C, S, K, streaming)
