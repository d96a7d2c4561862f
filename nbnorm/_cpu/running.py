"""The stages of running statistics: a batch is folded into them, normalized with them, and the way back.

Arguments are those of stages.py.
"""

from __future__ import annotations

import numpy as np

from nbnorm._channel_rows import COUNT, COUNTED_STATS, DEVIATION, GAMMA, INV_STD, M2, ORIGIN, STATS, SUMS
from nbnorm._counted import Counted
from nbnorm._cpu import plan
from nbnorm._cpu.apply import running_columns, running_segments
from nbnorm._cpu.coefficients import OF_ONE, SCALE, SHIFT, A, H
from nbnorm._cpu.commits import POOLED, commit_finite, commit_pooled, commit_running
from nbnorm._cpu.finalize import finalize, finalize_scale
from nbnorm._cpu.memory import Array
from nbnorm._cpu.passes import EVERY, apply, as_parameter, empty_coefficients, reduce
from nbnorm._cpu.plan import Shape
from nbnorm._cpu.threads import workers_for
from nbnorm._running import Running, copied, undisturbed


@undisturbed
def commit(running: Running, momentum: float | None, stats: Array, count: float | None) -> None:
    """Fold a batch into the running statistics and count it, in one step that cannot fail."""
    ddof, both, counters = running.ddof, running.both, running.counters
    samples = running.samples if count is not None else running.count_each()
    samples = samples if samples is None else samples.reshape(-1)
    if running.skip_nonfinite:
        commit_finite(stats, count, POOLED if momentum is None else momentum, ddof, both, counters, samples)
    elif momentum is None:
        commit_pooled(stats, count, ddof, both, counters, samples)
    else:
        commit_running(stats, count, momentum, ddof, both, counters, samples)


def stats_of(mean: Array, m2: Array, count: Array | None) -> Array:
    """stats with a mean that is all origin, for `commit`; count is None when all channels have the same."""
    stats = np.empty((STATS if count is None else COUNTED_STATS, mean.size))
    stats[ORIGIN], stats[DEVIATION], stats[M2] = mean, 0.0, m2
    if count is not None:
        stats[COUNT] = count
    return stats


def running_forward(
    x: Array, y: Array, shape: Shape, gamma: Array | None, beta: Array | None, eps: float, running: Running,
    stats: Array | None, residual: Array | None = None, slope: float | None = None,
) -> None:  # fmt: skip
    """y from x and the running statistics, which also fill stats, unless None, with the variance for m2."""
    N, C, S = shape
    gamma, beta = as_parameter(gamma), as_parameter(beta)
    tensors = 2 if residual is None else 3
    workers, cut = workers_for(tensors * x.size), plan.mapping(tensors, x.itemsize, N, C, S)
    # Statistics, parameters, coefficients, and tables of columns.
    scratch = np.empty((4 + OF_ONE) * C + workers * (OF_ONE * cut.width + plan.LANES))
    scratch[: 2 * C] = copied(running.both)  # a copy, so that no call keeps others waiting for its kernel
    if cut.K:
        running_columns(
            x, residual, slope, y, scratch, gamma, beta, eps, stats, cut.width, N, C, S, cut.K, cut.streaming,
            workers,
        )  # fmt: skip
    else:
        running_segments(x, residual, slope, y, scratch, gamma, beta, eps, stats, N, C, S, cut.streaming, workers)


def running_backward(
    dy: Array, x: Array, dx: Array, shape: Shape, stats: Array, dgamma: Array | None, dbeta: Array | None,
    w: Counted | None = None, slope: float | None = None,
) -> None:  # fmt: skip
    """As `backward`, for statistics that do not depend on x: dx = gamma * inv_std * dy."""
    sums = np.zeros((SUMS, shape[1]))
    reduce(x, dy, slope, w, False, shape, stats, sums)
    # Before dx, which may lie over dy, is written: then nothing is left that could fail. The count is not needed.
    count, coef = float(shape[0] * shape[2]), empty_coefficients(x, dy, slope, w, stats)
    finalize(dy, stats, sums, None, None, as_parameter(dgamma), as_parameter(dbeta), 0.0, count, coef)
    apply_frozen(stats[GAMMA] * stats[INV_STD], dy, x, slope, w, dx, shape, stats)


def apply_frozen(
    a: Array, dy: Array, x: Array, slope: float | None, w: Counted | None, dx: Array, shape: Shape, stats: Array
) -> None:  # fmt: skip
    """dx = a*dy; x is read only where some of its values may not be there, or for the sign of y."""
    if w is None and slope is None:
        coef = empty_coefficients(dy, None, None, None, stats)
        finalize_scale(a, coef)
        apply(dy, None, None, None, None, dx, shape, np.zeros((STATS, shape[1])), coef)
    else:
        coef = empty_coefficients(x, dy, slope, EVERY, stats)
        coef[A], coef[SCALE], coef[SHIFT], coef[H] = a, 0.0, 0.0, 0.0
        # The map has no use for x but its sign, and infinity times 0 must not spoil what is let through.
        apply(x, dy, None, slope, EVERY if w is None else w, dx, shape, stats, coef)
