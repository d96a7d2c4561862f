"""The stages of a batch that is one shard of several: between them its caller exchanges small arrays with the others.

As in stages.py; sums is (4, C), counts a NumPy array. Shards may be empty.
"""

from __future__ import annotations

from typing import Any

from nbnorm._cuda import plan
from nbnorm._cuda.combine import (
    add_shards,
    finalize_given,
    finalize_sums,
    merge_shards,
    shard_sums,
    whole_gradients,
)
from nbnorm._cuda.finalize import ROWS
from nbnorm._cuda.launch import pointer
from nbnorm._cuda.memory import in_memory, kept, scratch, xp
from nbnorm._cuda.stages import F64, _apply, _at_h, _kind, _reduce
from nbnorm._formulas import DEVIATION, M2, ORIGIN

Array = Any
Shape = tuple[int, int, int]


def rows(mean: Array, m2: Array) -> Array:
    """stats with a mean that is all origin, for `commit`."""
    stats = scratch(5 * mean.size).reshape(5, mean.size)
    stats[ORIGIN], stats[DEVIATION], stats[M2] = mean, 0.0, m2
    return stats


def merge_statistics(counts: Array, gathered: Array, stats: Array) -> None:
    """stats of the whole batch, but for inv_std and gamma, from those of each rank."""
    C, on_device = stats.shape[1], kept(xp.asarray(counts))
    merge_shards(
        *_by_channel(C), (F64, F64, F64), pointer(on_device), pointer(gathered), pointer(stats),
        C, counts.size, int(counts.argmax()),
    )  # fmt: skip


def normalize(
    x: Array, y: Array, shape: Shape, gamma: Array | None, beta: Array | None, eps: float, count: float, stats: Array
) -> None:  # fmt: skip
    """y from x and the stats of the whole batch, which get inv_std and gamma."""
    C = shape[1]
    coef = scratch(ROWS * C)
    finalize_given(
        *_by_channel(C), (F64, _kind(gamma), _kind(beta), F64),
        pointer(stats), pointer(gamma), pointer(beta), pointer(coef), C, count, eps,
    )  # fmt: skip
    if x.size:
        cut = plan.cut(shape, x.itemsize)
        _apply(cut, (in_memory(x.dtype), cut.lanes), x, None, y, coef)


def gradient_sums(dy: Array, x: Array, shape: Shape, stats: Array, own: Array | None, sums: Array) -> None:
    """What the backward pass has to know of this shard; own is its stats, None with running statistics."""
    if not x.size:
        sums[...] = 0
        return
    cut = plan.cut(shape, x.itemsize)
    parts = _reduce(cut, (in_memory(x.dtype), cut.lanes), x, dy, stats, centred=int(own is not None))
    shard_sums(
        (shape[1], 1), cut.finalize_threads, (F64, F64, _kind(own), F64),
        pointer(parts), pointer(stats), pointer(own), pointer(sums),
        shape[1], cut.run, cut.copies, _at_h(cut), float(shape[0] * shape[2]),
    )  # fmt: skip


def merge_gradient_sums(counts: Array, gathered: Array, sums: Array) -> None:
    """sums of the whole batch from those of each rank."""
    C, on_device = sums.shape[1], kept(xp.asarray(counts))
    add_shards(
        *_by_channel(C), (F64, F64, F64), pointer(on_device), pointer(gathered), pointer(sums),
        C, counts.size, int(counts.argmax()),
    )  # fmt: skip


def parameter_gradients(sums: Array, count: float, stats: Array, dgamma: Array | None, dbeta: Array | None) -> None:
    """dgamma and dbeta, where they are not None, of the shard or the batch whose sums these are."""
    C = sums.shape[1]
    whole_gradients(
        *_by_channel(C), (F64, F64, _kind(dgamma), _kind(dbeta)),
        pointer(sums), pointer(stats), pointer(dgamma), pointer(dbeta), C, count,
    )  # fmt: skip


def apply_gradients(
    dy: Array, x: Array, dx: Array, shape: Shape, stats: Array, sums: Array | None, count: float
) -> None:  # fmt: skip
    """dx from the sums of the whole batch; without them that of statistics which do not depend on x."""
    C = shape[1]
    coef = scratch(ROWS * C)
    finalize_sums(*_by_channel(C), (_kind(sums), F64, F64), pointer(sums), pointer(stats), pointer(coef), C, count)
    if not x.size:
        return
    cut = plan.cut(shape, x.itemsize)
    pack = in_memory(x.dtype), cut.lanes
    if sums is None:
        _apply(cut, pack, dy, None, dx, coef)
    else:
        _apply(cut, pack, x, dy, dx, coef)


def _by_channel(C: int) -> tuple[tuple[int, int], int]:
    """Grid and block for a thread a channel."""
    return (max(1, -(-C // plan.THREADS)), 1), plan.THREADS
