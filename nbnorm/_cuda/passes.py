"""Passes: one launch over whole arrays each, with its cut of the work and its scratch memory.

The stages are made of them: of batches (stages.py), with running statistics, of shards and of derivatives.
"""

from __future__ import annotations

from nbnorm._channel_rows import SIGN_SCALE
from nbnorm._counted import Counted
from nbnorm._cuda import plan
from nbnorm._cuda.apply import apply_columns, apply_segments, gradient_columns, gradient_segments
from nbnorm._cuda.coefficients import ROWS
from nbnorm._cuda.finalize import UNKNOWN, count_channels, finalize_gradient
from nbnorm._cuda.kinds import F64, Array, kind, kind_of_counted, kind_of_number, packs
from nbnorm._cuda.launch import Kind, counted, number, pointer, pointers
from nbnorm._cuda.memory import scratch
from nbnorm._cuda.plan import Shape
from nbnorm._cuda.reduce import reduce_columns, reduce_segments


def reduce(
    cut: plan.Cut, pack: Kind, x: Array, dy: Array | None, slope: float | None, w: Counted | None, stats: Array,
    centred: int = 1, counters: Array | None = None,
) -> Array:  # fmt: skip
    """The parts, which the caller keeps until the last launch that reads them; and the count where it is not known.

    With counters also what they have seen, for the kernel that changes them.
    """
    C, at_count = cut.numbers[1], at_h(cut) + cut.numbers[1]
    counting = w is not None and dy is None
    parts = scratch(at_count + (cut.columns * cut.grid[1] if counting else 0))
    kernel = reduce_segments if cut.segments else reduce_columns
    kernel(
        cut.grid, cut.threads,
        (pack, packs(dy, pack), kind_of_number(slope), kind_of_counted(w), F64, F64, kind(counters)),
        pointer(x), pointers(dy), number(slope), counted(w), pointer(stats), pointer(parts), pointer(counters),
        *cut.numbers, centred,
    )  # fmt: skip
    if counting:
        count_channels(
            (C, 1), cut.finalize_threads, (F64, F64), pointer(parts), pointer(stats), C, cut.run, cut.copies, at_count
        )
    return parts


def coefficients(
    cut: plan.Cut, shape: Shape, parts: Array, stats: Array, dgamma: Array, dbeta: Array, count: float, frozen: int
) -> Array:  # fmt: skip
    """Those of the map of dy and x, and dgamma and dbeta, where values do not count alike or stats are constants."""
    C = shape[1]
    coef = scratch(ROWS * C)
    finalize_gradient(
        (C, 1), cut.finalize_threads, (F64, F64, kind(dgamma), kind(dbeta), F64),
        pointer(parts), pointer(stats), pointer(dgamma), pointer(dbeta), pointer(coef),
        C, cut.run, cut.copies, at_h(cut), frozen, count,
    )  # fmt: skip
    return coef


def apply(
    cut: plan.Cut, pack: Kind, x: Array, dy: Array | None, other: Array | None, slope: float | None, w: Counted | None,
    y: Array, coef: Array, signs: Array | None = None,
) -> None:  # fmt: skip
    """The map of each channel, as apply.py has it; `signs` (2, C) where dy is let through by the sign of y."""
    kernel = apply_segments if cut.segments else apply_columns
    kinds = (packs(array, pack) for array in (x, dy, other))
    kernel(
        cut.grid, cut.threads, (*kinds, kind_of_number(slope), kind_of_counted(w), pack, F64, kind(signs)),
        pointer(x), pointers(dy), pointer(other), number(slope), counted(w), pointer(y), pointer(coef), pointer(signs),
        *cut.numbers,
    )  # fmt: skip


def gradient(
    cut: plan.Cut, pack: Kind, x: Array | None, dy: Array, slope: float | None, dx: Array, sums: plan.Cut, parts: Array,
    stats: Array, dgamma: Array | None, dbeta: Array | None, count: float,
) -> None:  # fmt: skip
    """The map of dy and x with the parts of `sums`, which may have been cut another way."""
    kernel = gradient_segments if cut.segments else gradient_columns
    kernel(
        cut.grid, cut.threads,
        (None if x is None else pack, pack, kind_of_number(slope), pack, F64, F64, kind(dgamma), kind(dbeta)),
        pointer(x), pointer(dy), number(slope), pointer(dx), pointer(parts), pointer(stats), pointer(dgamma),
        pointer(dbeta), *cut.numbers, sums.run, sums.copies, at_h(sums), count,
    )  # fmt: skip


def sign_rows(stats: Array, slope: float | None) -> Array | None:
    """The map that tells the sign of y, where there was an activation."""
    return None if slope is None else stats[SIGN_SCALE:]


def at_h(cut: plan.Cut) -> int:
    """Where behind the sums the origins of dy begin in the parts."""
    return 2 * cut.columns * cut.grid[1]


def cut_of_statistics(shape: Shape, itemsize: int, w: Counted | None) -> plan.Cut:
    """For the sums of x."""
    return plan.cut(shape, itemsize) if w is None else plan.cut_counted(shape, itemsize, _beside_a_mask(w))


def cut_of_map(shape: Shape, itemsize: int, residual: Array | None) -> plan.Cut:
    """For y of x, where every value counts once."""
    return plan.cut(shape, itemsize) if residual is None else plan.cut_of_two(shape, itemsize)


def cut_of_gradient(shape: Shape, itemsize: int, w: Counted | None, slope: float | None) -> plan.Cut:
    """For the sums and the map of dy and x."""
    if w is None:
        return plan.cut_of_two(shape, itemsize)
    return (plan.cut_counted if slope is None else plan.cut_gated)(shape, itemsize, _beside_a_mask(w))


def cut_of_sums(shape: Shape, itemsize: int, slope: float | None) -> plan.Cut:
    """For the sums alone, where every value counts once."""
    return plan.cut(shape, itemsize) if slope is None else plan.cut_of_two(shape, itemsize)


def _beside_a_mask(w: Counted) -> int:
    """The bytes of a weight, where there is a mask too."""
    return 0 if w.where is None or w.weights is None else w.weights.itemsize


def count_or_unknown(count: float | None) -> float:
    return UNKNOWN if count is None else count


def by_channel(C: int) -> tuple[tuple[int, int], int]:
    """Grid and block for a thread a channel."""
    return (max(1, -(-C // plan.THREADS)), 1), plan.THREADS
