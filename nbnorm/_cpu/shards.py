"""The stages of a batch that is one shard of several: between them its caller exchanges small arrays with the others.

As in stages.py; sums is (4, C), counts (ranks, 1), or (ranks, C) of values of which some do not count; then the `count`
of a function is None, and a sixth row of stats has it. Shards may be empty.
"""

from __future__ import annotations

from nbnorm._channel_rows import COUNT, GAMMA, INV_STD, OFFSET
from nbnorm._counted import Counted, Gradient
from nbnorm._cpu.combine import add_shards, centre_sums, finalize_sums, merge_shards, whole_gradients
from nbnorm._cpu.finalize import finalize_given
from nbnorm._cpu.memory import Array
from nbnorm._cpu.passes import apply, as_parameter, empty_coefficients, reduce
from nbnorm._cpu.plan import Shape
from nbnorm._cpu.running import apply_frozen


def merge_statistics(counts: Array, gathered: Array, stats: Array) -> None:
    """stats of the whole batch, but for inv_std and gamma, from those of each rank."""
    merge_shards(counts, gathered, stats)


def normalize(
    x: Array, y: Array, shape: Shape, gamma: Array | None, beta: Array | None, eps: float, count: float | None,
    stats: Array, residual: Array | None = None, slope: float | None = None,
) -> None:  # fmt: skip
    """y from x and the stats of the whole batch, which get inv_std and gamma."""
    coef = empty_coefficients(x, None, None, None, stats)
    finalize_given(stats, as_parameter(gamma), as_parameter(beta), eps, count, coef)
    apply(x, None, residual, slope, None, y, shape, stats, coef)


def gradient_sums(
    dy: Gradient, x: Array, shape: Shape, stats: Array, own: Array | None, sums: Array, count: float | None,
    w: Counted | None, slope: float | None = None,
) -> None:  # fmt: skip
    """What the backward pass has to know of this shard; own is its stats, None with running statistics."""
    sums[...] = 0
    if x.size:
        if w is not None and own is not None:  # the origin of dy is that of values which count as often as here
            stats = stats.copy()
            stats[COUNT] = own[COUNT]
        reduce(x, dy, slope, w, own is not None, shape, stats, sums[:OFFSET])
        centre_sums(stats, own, count, sums)


def merge_gradient_sums(counts: Array, gathered: Array, sums: Array) -> None:
    """sums of the whole batch from those of each rank."""
    add_shards(counts, gathered, sums)


def parameter_gradients(
    sums: Array, count: float | None, stats: Array, own: Array, dgamma: Array | None, dbeta: Array | None
) -> None:  # fmt: skip
    """dgamma and dbeta, where not None, of the shard or the batch whose sums these are and whose stats `own`."""
    whole_gradients(sums, stats, own, as_parameter(dgamma), as_parameter(dbeta), count)


def apply_gradients(
    dy: Array, x: Array, dx: Array, shape: Shape, stats: Array, sums: Array | None, count: float | None,
    w: Counted | None, slope: float | None = None,
) -> None:  # fmt: skip
    """dx from the sums of the whole batch; without them that of statistics which do not depend on x."""
    if sums is None:
        apply_frozen(stats[GAMMA] * stats[INV_STD], dy, x, slope, w, dx, shape, stats)
        return
    coef = empty_coefficients(x, dy, slope, w, stats)
    finalize_sums(sums, stats, coef, count)
    apply(x, dy, None, slope, w, dx, shape, stats, coef)
