"""The stages of a batch that is one shard of several: between them its caller exchanges small arrays with the others.

As in stages.py; sums is (4, C), counts a NumPy array (ranks, 1), or (ranks, C) of values of which some do not count;
then the `count` of a function is None, and a sixth row of stats has it. Shards may be empty.
"""

from __future__ import annotations

from nbnorm._channel_rows import COUNT
from nbnorm._counted import Counted, Tangent
from nbnorm._cuda import plan
from nbnorm._cuda.coefficients import ROWS
from nbnorm._cuda.combine import add_shards, finalize_sums, merge_shards, shard_sums, whole_gradients
from nbnorm._cuda.finalize import finalize_given
from nbnorm._cuda.kinds import F64, Array, kind
from nbnorm._cuda.launch import pointer
from nbnorm._cuda.memory import in_memory, kept, scratch, xp
from nbnorm._cuda.passes import (
    apply,
    at_h,
    by_channel,
    count_or_unknown,
    cut_of_gradient,
    cut_of_map,
    reduce,
    sign_rows,
)
from nbnorm._cuda.plan import Shape


def merge_statistics(counts: Array, gathered: Array, stats: Array) -> None:
    """stats of the whole batch, but for inv_std and gamma, from those of each rank."""
    C, on_device = stats.shape[1], kept(xp.asarray(counts))
    merge_shards(
        *by_channel(C), (F64, F64, F64), pointer(on_device), pointer(gathered), pointer(stats),
        C, *counts.shape, gathered.shape[1], int(len(stats) > COUNT),
    )  # fmt: skip


def normalize(
    x: Array, y: Array, shape: Shape, gamma: Array | None, beta: Array | None, eps: float, count: float | None,
    stats: Array, residual: Array | None = None, slope: float | None = None,
) -> None:  # fmt: skip
    """y from x and the stats of the whole batch, which get inv_std and gamma."""
    C = shape[1]
    coef = scratch(ROWS * C)
    finalize_given(
        *by_channel(C), (F64, kind(gamma), kind(beta), F64),
        pointer(stats), pointer(gamma), pointer(beta), pointer(coef), C, count_or_unknown(count), eps,
    )  # fmt: skip
    if x.size:
        cut = cut_of_map(shape, x.itemsize, residual)
        apply(cut, (in_memory(x.dtype), cut.lanes), x, None, residual, slope, None, y, coef)


def gradient_sums(
    dy: Array, x: Array, shape: Shape, stats: Array, own: Array | None, sums: Array, count: float | None,
    w: Counted | None, slope: float | None = None,
) -> None:  # fmt: skip
    """What the backward pass has to know of this shard; own is its stats, None with running statistics."""
    if not x.size:
        sums[...] = 0
        return
    if w is not None and own is not None:  # the origin of dy is that of values which count as often as here
        stats = kept(stats.copy())
        stats[COUNT] = own[COUNT]
    cut = plan.cut_gated(shape, x.itemsize) if isinstance(dy, Tangent) else cut_of_gradient(shape, x.itemsize, w, slope)
    parts = reduce(cut, (in_memory(x.dtype), cut.lanes), x, dy, slope, w, stats, centred=int(own is not None))
    shard_sums(
        (shape[1], 1), cut.finalize_threads, (F64, F64, kind(own), F64),
        pointer(parts), pointer(stats), pointer(own), pointer(sums),
        shape[1], cut.run, cut.copies, at_h(cut), count_or_unknown(count),
    )  # fmt: skip


def merge_gradient_sums(counts: Array, gathered: Array, sums: Array) -> None:
    """sums of the whole batch from those of each rank."""
    C, on_device = sums.shape[1], kept(xp.asarray(counts))
    add_shards(
        *by_channel(C), (F64, F64, F64), pointer(on_device), pointer(gathered), pointer(sums),
        C, *counts.shape,
    )  # fmt: skip


def parameter_gradients(
    sums: Array, count: float | None, stats: Array, own: Array, dgamma: Array | None, dbeta: Array | None
) -> None:  # fmt: skip
    """dgamma and dbeta, where not None, of the shard or the batch whose sums these are and whose stats `own`."""
    C = sums.shape[1]
    whole_gradients(
        *by_channel(C), (F64, F64, F64, kind(dgamma), kind(dbeta)),
        pointer(sums), pointer(stats), pointer(own), pointer(dgamma), pointer(dbeta), C, count_or_unknown(count),
    )  # fmt: skip


def apply_gradients(
    dy: Array, x: Array, dx: Array, shape: Shape, stats: Array, sums: Array | None, count: float | None,
    w: Counted | None, slope: float | None = None,
) -> None:  # fmt: skip
    """dx from the sums of the whole batch; without them that of statistics which do not depend on x."""
    C = shape[1]
    coef = scratch(ROWS * C)
    finalize_sums(
        *by_channel(C), (kind(sums), F64, F64), pointer(sums), pointer(stats), pointer(coef),
        C, int(w is not None or slope is not None), count_or_unknown(count),
    )  # fmt: skip
    if not x.size:
        return
    cut = cut_of_gradient(shape, x.itemsize, w, slope)
    pack = in_memory(x.dtype), cut.lanes
    if sums is None and w is None and slope is None:
        apply(cut, pack, dy, None, None, None, None, dx, coef)
    else:
        apply(cut, pack, x, dy, None, slope, w, dx, coef, sign_rows(stats, slope))
