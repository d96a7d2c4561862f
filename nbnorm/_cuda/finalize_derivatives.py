"""Finalize of forward mode and of the double backward pass (docs/math.md, Eq. 25 to 33). O(C), in float64.

`sums` (8, C), of which forward mode has the last four rows, holds sums of v*(x - mean) and w*(x - mean), not of v*u and
w*u; `directions` (2, C) are tangents of gamma and beta, or cotangents of their gradients.
_channel_rows.py names the rows.
A thread works on one channel, but where parts are summed.
"""

from __future__ import annotations

from numba import float64

from nbnorm._channel_rows import (
    CROSS,
    DDX,
    DEVIATION,
    DOUBLE_SUMS,
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
from nbnorm._cuda.coefficients import ORIGIN_OF_DDX, ORIGIN_OF_X, SCALE, SHIFT, VARIES, A, B, H
from nbnorm._cuda.combine import keep_frozen_map, leader
from nbnorm._cuda.finalize import channel_sums, count_of
from nbnorm._cuda.launch import Kernel, cuda
from nbnorm._cuda.plan import PAIRS
from nbnorm._formulas import (
    centred_product,
    covariance,
    moved_product,
    moved_sums,
    normalized_mean,
    second_dgamma,
    second_map,
    shard_offset,
    shard_second_dgamma,
    tangent_map,
)


@Kernel
def shard_double_sums(of_dy, of_ddx, of_both, stats, own, sums, C, run, copies, at_h, count):
    """Block c: the sums of channel c, from the parts of the pairs (x, dy), (x, ddx) and (dy, ddx).

    own has the shard's stats; it is None with statistics that are no batch's, where only the last pair counts.
    """
    c, t, T = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    shared = cuda.shared.array(PAIRS, float64)
    if own is not None:
        k, d = stats[ORIGIN * C + c], stats[DEVIATION * C + c]
        s, q = channel_sums(of_dy, shared, c, C, run, copies, t, T)
        if t == 0:
            sums[SUM * C + c], sums[PRODUCT * C + c] = s, centred_product(s, q, d)
            sums[DY_ORIGIN * C + c] = of_dy[at_h + c]
            its_n = count_of(count, c, C, own)
            sums[OFFSET * C + c] = shard_offset(own[ORIGIN * C + c], own[DEVIATION * C + c], k, d, its_n)
        if of_ddx is not None:
            cuda.syncthreads()  # every thread has read the totals
            s, q = channel_sums(of_ddx, shared, c, C, run, copies, t, T)
            if t == 0:
                sums[(DDX + SUM) * C + c], sums[(DDX + PRODUCT) * C + c] = s, centred_product(s, q, d)
                sums[(DDX + DY_ORIGIN) * C + c] = of_ddx[at_h + c]
            cuda.syncthreads()
    if of_both is not None:
        s, q = channel_sums(of_both, shared, c, C, run, copies, t, T)
        if t == 0:
            sums[CROSS * C + c] = q


@Kernel
def finalize_tangent(stats, sums, directions, coef, C, count):
    """The map of ddx and x to the tangent of y, or to the gradient of dy; sums are those of ddx."""
    c = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if c < C:
        t, d, inv_std = sums[SUM * C + c], stats[DEVIATION * C + c], stats[INV_STD * C + c]
        n = count_of(count, c, C, stats)
        alpha = normalized_mean(sums[PRODUCT * C + c], inv_std, n)
        a, scale, shift = tangent_map(
            t, alpha, d, n, stats[GAMMA * C + c], inv_std, directions[OF_GAMMA * C + c], directions[OF_BETA * C + c]
        )
        coef[ORIGIN_OF_X * C + c], coef[SCALE * C + c], coef[SHIFT * C + c] = stats[ORIGIN * C + c], scale, shift
        coef[A * C + c], coef[H * C + c], coef[VARIES * C + c] = a, sums[DY_ORIGIN * C + c], 1.0


@Kernel
def finalize_second(stats, sums, directions, dgamma, coef, C, count):
    """The map of dy, ddx and x to the gradient of x, and the gradient of gamma unless dgamma is None."""
    c = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if c < C:
        d, inv_std = stats[DEVIATION * C + c], stats[INV_STD * C + c]
        s, t, n = sums[SUM * C + c], sums[(DDX + SUM) * C + c], count_of(count, c, C, stats)
        alpha = normalized_mean(sums[(DDX + PRODUCT) * C + c], inv_std, n)
        delta = normalized_mean(sums[PRODUCT * C + c], inv_std, n)
        sigma = covariance(sums[CROSS * C + c], s, t, n)
        a, b, scale, shift = second_map(
            s, t, alpha, delta, sigma, d, n, stats[GAMMA * C + c], inv_std, directions[OF_GAMMA * C + c]
        )
        coef[ORIGIN_OF_X * C + c], coef[SCALE * C + c], coef[SHIFT * C + c] = stats[ORIGIN * C + c], scale, shift
        coef[A * C + c], coef[H * C + c] = a, sums[DY_ORIGIN * C + c]
        coef[B * C + c], coef[ORIGIN_OF_DDX * C + c] = b, sums[(DDX + DY_ORIGIN) * C + c]
        if dgamma is not None:
            dgamma[c] = second_dgamma(alpha, delta, sigma, inv_std, n)


@Kernel
def finalize_frozen_second(stats, sums, directions, dgamma, coef, C, absent):
    """The same for statistics that do not depend on x: a map of dy alone, or (`absent`) also of x, which may have no
    value; the origins in the sums are 0."""
    c = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if c < C:
        keep_frozen_map(coef, c, C, directions[OF_GAMMA * C + c] * stats[INV_STD * C + c], stats, absent)
        if dgamma is not None:
            dgamma[c] = stats[INV_STD * C + c] * sums[CROSS * C + c]


@Kernel
def add_double_shards(counts, gathered, sums, C, ranks, width):
    """The sums of all shards together, Eq. 18 and 32; their e is 0."""
    c = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if c < C:
        row, i = DOUBLE_SUMS * C + 1, c % width
        first = leader(counts, i, width, ranks) * row + c
        h, o = gathered[first + DY_ORIGIN * C], gathered[first + (DDX + DY_ORIGIN) * C]
        s, p, t, r, cross = 0.0, 0.0, 0.0, 0.0, 0.0
        for rank in range(ranks):
            at, n = rank * row + c, counts[rank * width + i]
            its_h, its_o = gathered[at + DY_ORIGIN * C], gathered[at + (DDX + DY_ORIGIN) * C]
            its_s, its_t, e = gathered[at + SUM * C], gathered[at + (DDX + SUM) * C], gathered[at + OFFSET * C]
            cross += moved_product(gathered[at + CROSS * C], its_s, its_t, its_h, h, its_o, o, n)
            moved_s, its_p = moved_sums(its_s, gathered[at + PRODUCT * C], e, its_h, h, n)
            moved_t, its_r = moved_sums(its_t, gathered[at + (DDX + PRODUCT) * C], e, its_o, o, n)
            s, p, t, r = s + moved_s, p + its_p, t + moved_t, r + its_r
        sums[SUM * C + c], sums[PRODUCT * C + c] = s, p
        sums[DY_ORIGIN * C + c], sums[OFFSET * C + c] = h, 0.0
        sums[(DDX + SUM) * C + c], sums[(DDX + PRODUCT) * C + c] = t, r
        sums[(DDX + DY_ORIGIN) * C + c], sums[CROSS * C + c] = o, cross


@Kernel
def shard_dgamma(own, own_stats, sums, stats, dgamma, C, own_count, count):
    """A shard's part of the gradient of gamma, from its sums and those of the whole batch."""
    c = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if c < C:
        inv_std, h, o = stats[INV_STD * C + c], own[DY_ORIGIN * C + c], own[(DDX + DY_ORIGIN) * C + c]
        s, t = own[SUM * C + c], own[(DDX + SUM) * C + c]
        its_n, n = count_of(own_count, c, C, own_stats), count_of(count, c, C, stats)
        mean_dy = sums[DY_ORIGIN * C + c] + sums[SUM * C + c] / n
        product = moved_product(own[CROSS * C + c], s, t, h, mean_dy, o, 0.0, its_n)
        _, ddx_xmu = moved_sums(t, own[(DDX + PRODUCT) * C + c], own[OFFSET * C + c], o, 0.0, its_n)
        delta = normalized_mean(sums[PRODUCT * C + c], inv_std, n)
        dgamma[c] = shard_second_dgamma(product, ddx_xmu, delta, inv_std)
