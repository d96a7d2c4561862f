"""The stages of forward mode and of the double backward pass, for whole batches and for shards.

As in stages.py and shards.py; ddx, the tangent of x or the cotangent of dx, may be None, which is 0. directions (2, C)
are tangents or cotangents of the parameters, sums is (8, C), of which forward mode has the last four rows. Where some
values do not count once (`w`) a ddx that is not None is wanted, and the `count` of a function is None, in every shard.
"""

from __future__ import annotations

from nbnorm._channel_rows import DDX, DOUBLE_SUMS, ORIGIN
from nbnorm._counted import Both, Counted, Tangent
from nbnorm._cuda import plan
from nbnorm._cuda.coefficients import ROWS, ROWS_OF_THREE
from nbnorm._cuda.finalize_derivatives import (
    add_double_shards,
    finalize_frozen_second,
    finalize_second,
    finalize_tangent,
    shard_dgamma,
    shard_double_sums,
)
from nbnorm._cuda.kinds import F64, Array, kind
from nbnorm._cuda.launch import pointer
from nbnorm._cuda.memory import in_memory, kept, scratch, xp
from nbnorm._cuda.passes import apply, at_h, by_channel, count_or_unknown, cut_of_gradient, reduce
from nbnorm._cuda.plan import Shape
from nbnorm._cuda.shards import gradient_sums


def apply_tangent(
    ddx: Array | None, x: Array, ddy: Array, shape: Shape, stats: Array, sums: Array, directions: Array,
    count: float | None, w: Counted | None = None,
) -> None:  # fmt: skip
    """The tangent of y, or the gradient of dy; sums (4, C) are those of ddx, 0 with frozen statistics."""
    C = shape[1]
    coef = scratch(ROWS * C)
    finalize_tangent(
        *by_channel(C), (F64, F64, F64, F64),
        pointer(stats), pointer(sums), pointer(directions), pointer(coef), C, count_or_unknown(count),
    )  # fmt: skip
    if x.size:
        cut = cut_of_gradient(shape, x.itemsize, w, None)
        given = ddx if w is None else Tangent(ddx)
        apply(cut, (in_memory(x.dtype), cut.lanes), x, given, None, None, w, ddy, coef)


def tangent_sums(
    ddx: Array, x: Array, shape: Shape, stats: Array, own: Array, sums: Array, count: float | None,
    w: Counted | None = None,
) -> None:  # fmt: skip
    """What forward mode has to know of this shard; own is its stats."""
    gradient_sums(ddx if w is None else Tangent(ddx), x, shape, stats, own, sums, count, w)


def double_sums(
    ddx: Array | None, dy: Array, x: Array, shape: Shape, stats: Array, own: Array | None, sums: Array,
    count: float | None, w: Counted | None = None,
) -> None:  # fmt: skip
    """What a double backward pass has to know of this shard; own is its stats, None with running statistics."""
    sums[...] = 0
    if not x.size:
        return
    cut = (plan.cut if w is None else plan.cut_gated)(shape, x.itemsize)
    pack, behind = (in_memory(x.dtype), cut.lanes), at_h(cut)
    of_dy = of_ddx = of_both = None
    if own is not None:
        of_dy = reduce(cut, pack, x, dy, None, w, stats)
        if ddx is not None:
            of_ddx = reduce(cut, pack, x, ddx if w is None else Tangent(ddx), None, w, stats)
    if ddx is not None:
        centred = int(own is not None)
        if w is None:  # dy has its origins there
            origins = kept(xp.zeros(shape[1])) if of_dy is None else of_dy[behind:]
            of_both = reduce(cut, pack, dy, ddx, None, None, origins, centred)
        else:  # x says which values are there
            origins = kept(stats.copy())
            origins[ORIGIN] = 0 if of_ddx is None else of_ddx[behind : behind + shape[1]]
            of_both = reduce(cut, pack, x, Both(dy, ddx), None, w, origins, centred)
    shard_double_sums(
        (shape[1], 1), cut.finalize_threads, (kind(of_dy), kind(of_ddx), kind(of_both), F64, kind(own), F64),
        pointer(of_dy), pointer(of_ddx), pointer(of_both), pointer(stats), pointer(own), pointer(sums),
        shape[1], cut.run, cut.copies, behind, count_or_unknown(count),
    )  # fmt: skip


def merge_double_sums(counts: Array, gathered: Array, sums: Array) -> None:
    """sums of the whole batch from those of each rank."""
    C, on_device = sums.shape[1], kept(xp.asarray(counts))
    add_double_shards(
        *by_channel(C), (F64, F64, F64), pointer(on_device), pointer(gathered), pointer(sums),
        C, *counts.shape,
    )  # fmt: skip


def shard_gamma(
    own: Array, own_stats: Array, own_count: float | None, sums: Array, count: float | None, stats: Array, dgamma: Array
) -> None:  # fmt: skip
    """This shard's part of the gradient of gamma."""
    C = sums.shape[1]
    shard_dgamma(
        *by_channel(C), (F64, F64, F64, F64, kind(dgamma)),
        pointer(own), pointer(own_stats), pointer(sums), pointer(stats), pointer(dgamma),
        C, count_or_unknown(own_count), count_or_unknown(count),
    )  # fmt: skip


def apply_second(
    ddx: Array | None, dy: Array, x: Array, dx: Array, shape: Shape, stats: Array, sums: Array, directions: Array,
    dgamma: Array | None, count: float | None, w: Counted | None = None,
) -> None:  # fmt: skip
    """dx, and dgamma unless it is None, from the sums of the whole batch."""
    C = shape[1]
    coef = scratch(ROWS_OF_THREE * C)
    finalize_second(
        *by_channel(C), (F64, F64, F64, kind(dgamma), F64),
        pointer(stats), pointer(sums), pointer(directions), pointer(dgamma), pointer(coef), C, count_or_unknown(count),
    )  # fmt: skip
    if x.size:
        of_arrays = plan.cut_of_two if ddx is None else plan.cut_of_three
        cut = (of_arrays if w is None else plan.cut_gated)(shape, x.itemsize)
        apply(cut, (in_memory(x.dtype), cut.lanes), x, dy, ddx, None, w, dx, coef)


def apply_frozen_second(
    dy: Array, x: Array, dx: Array, shape: Shape, stats: Array, sums: Array, directions: Array, dgamma: Array | None,
    w: Counted | None = None,
) -> None:  # fmt: skip
    """The same for statistics that do not depend on x."""
    C = shape[1]
    coef = scratch(ROWS * C)
    finalize_frozen_second(
        *by_channel(C), (F64, F64, F64, kind(dgamma), F64),
        pointer(stats), pointer(sums), pointer(directions), pointer(dgamma), pointer(coef), C, int(w is not None),
    )  # fmt: skip
    if not dy.size:
        return
    cut = cut_of_gradient(shape, dy.itemsize, w, None)
    pack = in_memory(dy.dtype), cut.lanes
    if w is None:
        apply(cut, pack, dy, None, None, None, None, dx, coef)
    else:
        apply(cut, pack, x, dy, None, None, w, dx, coef)


def double_backward(
    ddx: Array | None, dy: Array, x: Array, ddy: Array, dx: Array, shape: Shape, stats: Array, directions: Array,
    dgamma: Array | None, w: Counted | None = None,
) -> None:  # fmt: skip
    """ddy, dx, and dgamma unless it is None, of a whole batch that was normalized with its own statistics."""
    C, count = shape[1], float(shape[0] * shape[2]) if w is None else None
    sums = scratch(DOUBLE_SUMS * C).reshape(DOUBLE_SUMS, C)
    double_sums(ddx, dy, x, shape, stats, stats, sums, count, w)
    apply_tangent(ddx, x, ddy, shape, stats, sums[DDX:], directions, count, w)
    apply_second(ddx, dy, x, dx, shape, stats, sums, directions, dgamma, count, w)
