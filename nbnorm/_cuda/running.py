"""The stages of running statistics: a batch is folded into them, normalized with them, and the way back.

Arguments are those of stages.py.
"""

from __future__ import annotations

from nbnorm._channel_rows import COUNT, DEVIATION, M2, ORIGIN
from nbnorm._counted import Counted
from nbnorm._cuda import plan
from nbnorm._cuda.apply import running_columns, running_segments
from nbnorm._cuda.commits import POOLED, commit_batch
from nbnorm._cuda.kinds import F64, Array, kind, kind_of_number
from nbnorm._cuda.launch import number, pointer
from nbnorm._cuda.memory import in_memory, kept, scratch
from nbnorm._cuda.passes import (
    apply,
    coefficients,
    count_or_unknown,
    cut_of_gradient,
    cut_of_map,
    gradient,
    reduce,
    sign_rows,
)
from nbnorm._cuda.plan import Shape
from nbnorm._cuda.shards import normalize
from nbnorm._running import Running


def commit(running: Running, momentum: float | None, stats: Array, count: float | None) -> None:
    """Fold a batch into the running statistics and count it, in one step that cannot fail."""
    samples = running.samples if count is not None else running.count_each()
    if samples is not None:  # which `reset` lets go of
        samples = kept(samples)
    commit_batch(
        (1, 1), plan.THREADS, (F64, F64, F64, "int64", kind(samples)),
        pointer(stats), pointer(running.mean), pointer(running.var), pointer(running.counters), pointer(samples),
        stats.shape[1], int(running.skip_nonfinite), count_or_unknown(count),
        POOLED if momentum is None else momentum, running.ddof,
    )  # fmt: skip


def stats_of(mean: Array, m2: Array, count: Array | None) -> Array:
    """stats with a mean that is all origin, for `commit`; count is None when all channels have the same."""
    number = 5 if count is None else 6
    stats = scratch(number * mean.size).reshape(number, mean.size)
    stats[ORIGIN], stats[DEVIATION], stats[M2] = mean, 0.0, m2
    if count is not None:
        stats[COUNT] = count
    return stats


def running_forward(
    x: Array, y: Array, shape: Shape, gamma: Array | None, beta: Array | None, eps: float, running: Running,
    stats: Array | None, residual: Array | None = None, slope: float | None = None,
) -> None:  # fmt: skip
    """y from x and the running statistics, which also fill stats, in the place of m2 the variance."""
    if stats is not None and not x.size:  # a shard without values, whose statistics are needed all the same
        stats[ORIGIN], stats[DEVIATION], stats[M2] = running.mean.reshape(-1), 0.0, running.var.reshape(-1)
        normalize(x, y, shape, gamma, beta, eps, 1.0, stats)
        return
    cut = cut_of_map(shape, x.itemsize, residual)
    pack = in_memory(x.dtype), cut.lanes
    kernel = running_segments if cut.segments else running_columns
    added = None if residual is None else pack
    kernel(
        cut.grid, cut.threads,
        (pack, added, kind_of_number(slope), pack, kind(stats), kind(gamma), kind(beta), F64, F64),
        pointer(x), pointer(residual), number(slope), pointer(y), pointer(stats), pointer(gamma), pointer(beta),
        pointer(running.mean), pointer(running.var), *cut.numbers, eps,
    )  # fmt: skip


def running_backward(
    dy: Array, x: Array, dx: Array, shape: Shape, stats: Array, dgamma: Array | None, dbeta: Array | None,
    w: Counted | None = None, slope: float | None = None,
) -> None:  # fmt: skip
    """As `backward`, for statistics that do not depend on x: dx = gamma * inv_std * dy."""
    cut = cut_of_gradient(shape, x.itemsize, w, slope)
    pack, count = (in_memory(x.dtype), cut.lanes), float(shape[0] * shape[2])
    parts = reduce(cut, pack, x, dy, slope, w, stats, centred=0)
    if w is None and slope is None:
        gradient(cut, pack, None, dy, None, dx, cut, parts, stats, dgamma, dbeta, count)
    else:
        coef = coefficients(cut, shape, parts, stats, dgamma, dbeta, count, frozen=1)
        apply(cut, pack, x, dy, None, slope, w, dx, coef, sign_rows(stats, slope))
