"""Passes: one kernel over whole arrays each, with its cut of the work and its scratch memory.

The stages are made of them: of batches (stages.py), with running statistics, of shards and of derivatives.
"""

from __future__ import annotations

import numpy as np

from nbnorm._counted import Counted, Gradient, in_rows, throughout
from nbnorm._cpu import plan
from nbnorm._cpu.apply import apply_columns, apply_segments
from nbnorm._cpu.coefficients import OF_ONE, OF_TWO, signs_for_map
from nbnorm._cpu.memory import Array
from nbnorm._cpu.plan import Shape
from nbnorm._cpu.reduce import reduce_columns, reduce_segments
from nbnorm._cpu.sums import terms_of
from nbnorm._cpu.threads import workers_for
from nbnorm._floats import of_map

ABSENT = np.empty(0, np.float32)
# Every value counts, and where x is not finite it has no part.
EVERY = Counted(None, 0, 0, 0, 0, None, 0, 0, 0, 0, False)


def reduce(
    x: Array, dy: Gradient | None, slope: float | None, w: Counted | None, centred: bool, shape: Shape, stats: Array,
    sums: Array,
) -> None:  # fmt: skip
    """The sums of each channel, and of dy their origins."""
    N, C, S = shape
    workers = workers_for((1 if dy is None else 2) * x.size)
    if plan.in_segments(S, in_rows(w, S)):
        cut = plan.segments(N, C, S, workers)
        scratch, room = scratch_of_segments(terms_of(x, dy, w), C, cut, workers)
        reduce_segments(x, dy, slope, w, centred, stats, sums, scratch, room, N, C, S, *cut, workers)
    else:
        cols = plan.columns(N, C, S, throughout(w, C, S))
        terms = terms_of(x, dy, w)
        tables = workers * (2 if slope is None else 4) * (plan.PANEL + plan.LANES)
        scratch = np.empty(7 + cols.blocks * terms * cols.width + tables)
        reduce_columns(
            x, dy, slope, w, centred, stats, sums, scratch, N, C, S, cols.tile, cols.block, cols.blocks, terms,
            cols.width, workers,
        )  # fmt: skip


def scratch_of_segments(
    terms: int, C: int, cut: plan.Segments, workers: int, others: int = 0
) -> tuple[Array, int]:  # fmt: skip
    """Behind so many other numbers 3 for each chunk of each channel, and 7 later at most, where a line begins, for each
    worker the sums of a block, of which the second result says how many they are.
    """
    room = terms * cut.channels * plan.LANES
    return np.empty(others + 3 * C * cut.chunks + 7 + workers * room), room


def apply(
    x: Array, dy: Gradient | None, other: Array | None, slope: float | None, w: Counted | None, y: Array, shape: Shape,
    stats: Array, coef: Array,
) -> None:  # fmt: skip
    """The map of each channel, as maps.py has it; w is only asked for backwards."""
    N, C, S = shape
    tensors, w = sum(array is not None for array in (x, dy, other, y)), w if dy is not None else None
    runs = in_rows(w, S), throughout(w, C, S)
    workers, cut = workers_for(tensors * x.size), plan.mapping(tensors, x.itemsize, N, C, S, *runs)
    if cut.K:
        tables = np.empty((workers, (OF_ONE if dy is None else OF_TWO) * cut.width + plan.LANES), coef.dtype)
        apply_columns(
            x, dy, other, slope, w, y, stats, coef, tables, N, C, S, cut.K, cut.streaming, workers
        )  # fmt: skip
    else:
        apply_segments(x, dy, other, slope, w, y, stats, coef, N, C, S, cut.streaming, workers)


def empty_coefficients(
    x: Array, dy: Gradient | None, slope: float | None, w: Counted | None, stats: Array
) -> Array:  # fmt: skip
    """Room for the coefficients of a map; backwards with a slope those that tell the sign of y are there."""
    kind = of_map(x.itemsize, dy is not None, slope is not None, w is not None)
    coef = np.empty((OF_ONE if dy is None else OF_TWO, stats.shape[1]), kind)
    if dy is not None and slope is not None:
        signs_for_map(stats, ..., coef)
    return coef


def as_parameter(values: Array | None) -> Array:
    """Gamma, beta or a gradient in the one form that kernels know: flat float32 numbers, the halves of float64 ones
    where they are float64, none in the place of None. A view; nothing is copied."""
    if values is None:
        return ABSENT
    if values.itemsize == 8:
        return values.reshape(-1).view(ABSENT.dtype)
    return values if values.ndim == 1 else values.reshape(-1)
