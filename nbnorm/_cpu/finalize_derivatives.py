"""Finalize of forward mode and of the double backward pass (docs/math.md, Eq. 25 to 33). O(C), in float64.

`sums` (8, C), of which forward mode has the last four rows, holds sums of v*(x - mean) and w*(x - mean), not of v*u and
w*u; `directions` (2, C) are tangents of gamma and beta, or cotangents of their gradients.
_channel_rows.py names the rows.
"""

from __future__ import annotations

from nbnorm._channel_rows import (
    CROSS,
    DDX,
    DEVIATION,
    DY_ORIGIN,
    GAMMA,
    INV_STD,
    OF_BETA,
    OF_GAMMA,
    OFFSET,
    ORIGIN,
    PRODUCT,
    SUM,
)
from nbnorm._cpu.coefficients import ORIGIN_OF_DDX, SCALE, SHIFT, A, B, H, set_gradient_map
from nbnorm._cpu.combine import leader
from nbnorm._cpu.finalize import count_of, set_parameter
from nbnorm._cpu.launch import Compiled
from nbnorm._cpu.vector import routine
from nbnorm._formulas import (
    covariance,
    gamma_gradient,
    moved_product,
    moved_sums,
    normalized_mean,
    second_dgamma,
    second_map,
    shard_second_dgamma,
    tangent_map,
)


@routine
def tangent_channel(c, stats, sums, directions, count, coef):
    """The map of ddx and x to the tangent of y, or to the gradient of dy; sums are those of ddx."""
    t, d, inv_std = sums[SUM, c], stats[DEVIATION, c], stats[INV_STD, c]
    alpha = normalized_mean(sums[PRODUCT, c], inv_std, count)
    a, scale, shift = tangent_map(
        t, alpha, d, count, stats[GAMMA, c], inv_std, directions[OF_GAMMA, c], directions[OF_BETA, c]
    )
    set_gradient_map(coef, c, sums[DY_ORIGIN, c], a, stats[ORIGIN, c], scale, shift)


@routine
def second_channel(c, stats, sums, directions, dgamma, count, coef):
    """The map of dy, ddx and x to the gradient of x, and the gradient of gamma where there is a place for it."""
    s, t, d, inv_std = sums[SUM, c], sums[DDX + SUM, c], stats[DEVIATION, c], stats[INV_STD, c]
    alpha = normalized_mean(sums[DDX + PRODUCT, c], inv_std, count)
    delta = normalized_mean(sums[PRODUCT, c], inv_std, count)
    sigma = covariance(sums[CROSS, c], s, t, count)
    coef[A, c], coef[B, c], coef[SCALE, c], coef[SHIFT, c] = second_map(
        s, t, alpha, delta, sigma, d, count, stats[GAMMA, c], inv_std, directions[OF_GAMMA, c]
    )
    coef[H, c], coef[ORIGIN_OF_DDX, c] = sums[DY_ORIGIN, c], sums[DDX + DY_ORIGIN, c]
    set_parameter(dgamma, c, stats.shape[1], second_dgamma(alpha, delta, sigma, inv_std, count))


@Compiled
def finalize_tangent(stats, sums, directions, count, coef):
    for c in range(stats.shape[1]):
        tangent_channel(c, stats, sums, directions, count_of(count, c, stats), coef)


@Compiled
def finalize_second(stats, sums, directions, dgamma, count, coef):
    for c in range(stats.shape[1]):
        second_channel(c, stats, sums, directions, dgamma, count_of(count, c, stats), coef)


@Compiled
def add_double_shards(counts, gathered, sums):
    """The sums of all shards together, Eq. 18 and 32; their e is 0."""
    C = sums.shape[1]
    for c in range(C):
        i = c % counts.shape[1]
        first = gathered[leader(counts, i)]
        h, o = first[DY_ORIGIN * C + c], first[(DDX + DY_ORIGIN) * C + c]
        s, p, t, r, cross = 0.0, 0.0, 0.0, 0.0, 0.0
        for rank in range(counts.shape[0]):
            row, n = gathered[rank], counts[rank, i]
            its_h, its_o, e = row[DY_ORIGIN * C + c], row[(DDX + DY_ORIGIN) * C + c], row[OFFSET * C + c]
            its_s, its_t = row[SUM * C + c], row[(DDX + SUM) * C + c]
            cross += moved_product(row[CROSS * C + c], its_s, its_t, its_h, h, its_o, o, n)
            its_s, its_p = moved_sums(its_s, row[PRODUCT * C + c], e, its_h, h, n)
            its_t, its_r = moved_sums(its_t, row[(DDX + PRODUCT) * C + c], e, its_o, o, n)
            s, p, t, r = s + its_s, p + its_p, t + its_t, r + its_r
        sums[SUM, c], sums[PRODUCT, c], sums[DY_ORIGIN, c], sums[OFFSET, c] = s, p, h, 0.0
        sums[DDX + SUM, c], sums[DDX + PRODUCT, c], sums[DDX + DY_ORIGIN, c], sums[CROSS, c] = t, r, o, cross


@Compiled
def shard_dgamma(own, own_stats, own_count, sums, count, stats, dgamma):
    """A shard's part of the gradient of gamma, from its sums and those of the whole batch."""
    C = sums.shape[1]
    for c in range(C):
        its_n, n = count_of(own_count, c, own_stats), count_of(count, c, stats)
        inv_std, h, o = stats[INV_STD, c], own[DY_ORIGIN, c], own[DDX + DY_ORIGIN, c]
        mean_dy = sums[DY_ORIGIN, c] + sums[SUM, c] / n
        product = moved_product(own[CROSS, c], own[SUM, c], own[DDX + SUM, c], h, mean_dy, o, 0.0, its_n)
        _, ddx_xmu = moved_sums(own[DDX + SUM, c], own[DDX + PRODUCT, c], own[OFFSET, c], o, 0.0, its_n)
        delta = normalized_mean(sums[PRODUCT, c], inv_std, n)
        set_parameter(dgamma, c, C, shard_second_dgamma(product, ddx_xmu, delta, inv_std))


@Compiled
def frozen_dgamma(sums, stats, dgamma):
    """The gradient of gamma with statistics that do not depend on x: the origins are 0."""
    C = sums.shape[1]
    for c in range(C):
        set_parameter(dgamma, c, C, gamma_gradient(sums[CROSS, c], stats[INV_STD, c]))
