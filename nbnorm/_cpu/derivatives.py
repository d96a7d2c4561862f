"""The stages of forward mode and of the double backward pass, for whole batches and for shards.

As in stages.py and shards.py; ddx, the tangent of x or the cotangent of dx, may be None, which is 0. directions (2, C)
are tangents or cotangents of the parameters, sums is (8, C), of which forward mode has the last four rows. Where some
values do not count once (`w`) a ddx that is not None is wanted, and the `count` of a function is None, in every shard.
"""

from __future__ import annotations

import numpy as np

from nbnorm._channel_rows import CROSS, DDX, DOUBLE_SUMS, DY_ORIGIN, INV_STD, OF_GAMMA, OFFSET, ORIGIN, PRODUCT, SUMS
from nbnorm._counted import Both, Counted, Tangent
from nbnorm._cpu import plan
from nbnorm._cpu.coefficients import OF_TWO
from nbnorm._cpu.combine import centre_sums
from nbnorm._cpu.finalize_derivatives import (
    add_double_shards,
    finalize_second,
    finalize_tangent,
    frozen_dgamma,
    shard_dgamma,
)
from nbnorm._cpu.fused_derivatives import fused_double_segments
from nbnorm._cpu.memory import Array
from nbnorm._cpu.passes import apply, as_parameter, empty_coefficients, reduce, scratch_of_segments
from nbnorm._cpu.plan import Shape
from nbnorm._cpu.running import apply_frozen
from nbnorm._cpu.shards import gradient_sums
from nbnorm._cpu.stages import plain_count
from nbnorm._cpu.sums import terms_of
from nbnorm._cpu.threads import workers_for


def apply_tangent(
    ddx: Array | None, x: Array, ddy: Array, shape: Shape, stats: Array, sums: Array, directions: Array,
    count: float | None, w: Counted | None = None,
) -> None:  # fmt: skip
    """The tangent of y, or the gradient of dy; sums (4, C) are those of ddx, 0 with frozen statistics."""
    # With a tangent of x the map is that of a backward pass, without the one of a forward pass, but in float64.
    coef = np.empty((OF_TWO, shape[1])) if ddx is None else empty_coefficients(x, ddx, None, w, stats)
    finalize_tangent(stats, sums, directions, count, coef)
    apply(x, ddx if w is None else Tangent(ddx), None, None, w, ddy, shape, stats, coef)


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
    centred, pair = own is not None, np.zeros((SUMS, shape[1]))
    if centred:
        reduce(x, dy, None, w, True, shape, stats, sums[:OFFSET])
        centre_sums(stats, own, count, sums)
        if ddx is not None:
            reduce(x, ddx if w is None else Tangent(ddx), None, w, True, shape, stats, sums[DDX:CROSS])
            centre_sums(stats, None, count, sums[DDX:])
    if ddx is not None:
        if w is None:
            reduce(dy, ddx, None, None, centred, shape, sums[DY_ORIGIN:], pair)
        else:  # x says which values are there
            origins = stats.copy()
            origins[ORIGIN] = sums[DDX + DY_ORIGIN]
            reduce(x, Both(dy, ddx), None, w, centred, shape, origins, pair)
        sums[CROSS] = pair[PRODUCT]


def merge_double_sums(counts: Array, gathered: Array, sums: Array) -> None:
    """sums of the whole batch from those of each rank."""
    add_double_shards(counts, gathered, sums)


def shard_gamma(
    own: Array, own_stats: Array, own_count: float | None, sums: Array, count: float | None, stats: Array, dgamma: Array
) -> None:  # fmt: skip
    """This shard's part of the gradient of gamma."""
    shard_dgamma(own, own_stats, own_count, sums, count, stats, as_parameter(dgamma))


def apply_second(
    ddx: Array | None, dy: Array, x: Array, dx: Array, shape: Shape, stats: Array, sums: Array, directions: Array,
    dgamma: Array | None, count: float | None, w: Counted | None = None,
) -> None:  # fmt: skip
    """dx, and dgamma unless it is None, from the sums of the whole batch."""
    coef = np.empty((OF_TWO, shape[1]))
    finalize_second(stats, sums, directions, as_parameter(dgamma), count, coef)
    apply(x, dy, ddx, None, w, dx, shape, stats, coef)


def apply_frozen_second(
    dy: Array, x: Array, dx: Array, shape: Shape, stats: Array, sums: Array, directions: Array, dgamma: Array | None,
    w: Counted | None = None,
) -> None:  # fmt: skip
    """The same for statistics that do not depend on x."""
    frozen_dgamma(sums, stats, as_parameter(dgamma))
    apply_frozen(directions[OF_GAMMA] * stats[INV_STD], dy, x, None, w, dx, shape, stats)


def double_backward(
    ddx: Array | None, dy: Array, x: Array, ddy: Array, dx: Array, shape: Shape, stats: Array, directions: Array,
    dgamma: Array | None, w: Counted | None = None,
) -> None:  # fmt: skip
    """ddy, dx, and dgamma unless it is None, of a whole batch that was normalized with its own statistics."""
    N, C, S = shape
    sums, count = np.empty((DOUBLE_SUMS, C)), plain_count(shape, w)
    workers = workers_for(8 * x.size)
    fused = plan.in_segments(S, True) and plan.fits_cache(N, C, S, x.itemsize, workers)
    if ddx is not None and w is None and fused:
        cut = plan.segments(N, C, S, workers)
        scratch, room = scratch_of_segments(terms_of(x, dy, w), C, cut, workers, 6 * C * cut.chunks)
        fused_double_segments(
            ddx, dy, x, ddy, dx, stats, sums, empty_coefficients(x, ddx, None, None, stats), np.empty((OF_TWO, C)),
            directions, as_parameter(dgamma), scratch, room, N, C, S, *cut, plan.streams(5 * x.nbytes), workers,
        )  # fmt: skip
        return
    double_sums(ddx, dy, x, shape, stats, stats, sums, count, w)
    apply_tangent(ddx, x, ddy, shape, stats, sums[DDX:], directions, count, w)
    apply_second(ddx, dy, x, dx, shape, stats, sums, directions, dgamma, count, w)
