"""Combine: what the shards of a batch know of each channel, put together. O(ranks * C), float64.

`gathered` has a row of every rank, `row` numbers long, with the rows of its array behind each other; `leader` is a rank
with the most values, whose origin becomes everyone's. Sums run in the order of the ranks: every rank finds the same
bits. A thread works on one channel.
"""

from __future__ import annotations

from numba import float64

from nbnorm._cuda.finalize import ORIGIN_OF_X, SCALE, SHIFT, A, H, channel_sums, parameter
from nbnorm._cuda.launch import Kernel, cuda
from nbnorm._cuda.plan import PAIRS
from nbnorm._formulas import (
    DEVIATION,
    DY_ORIGIN,
    GAMMA,
    INV_STD,
    M2,
    OFFSET,
    ORIGIN,
    PRODUCT,
    SUM,
    centred_product,
    gradient_map,
    inverse_std,
    moved,
    moved_sums,
    normalizing_map,
    pool,
)


@Kernel
def merge_shards(counts, gathered, stats, C, ranks, leader):
    """Origin, d and m2 of all shards together: Eq. 16 and 8."""
    c = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if c < C:
        row = 3 * C
        k = gathered[leader * row + ORIGIN * C + c]
        count, d, m2 = 0.0, 0.0, 0.0
        for r in range(ranks):
            at = r * row + c
            its_d = moved(gathered[at + ORIGIN * C], gathered[at + DEVIATION * C], k)
            count, d, m2 = pool(count, d, m2, counts[r], its_d, gathered[at + M2 * C])
        stats[ORIGIN * C + c], stats[DEVIATION * C + c], stats[M2 * C + c] = k, d, m2


@Kernel
def finalize_given(stats, gamma, beta, coef, C, count, eps):
    """Eq. 5 and 6, for stats whose d and m2 are known."""
    c = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if c < C:
        inv_std, scale = inverse_std(stats[M2 * C + c] / count, eps), parameter(gamma, c, 1.0)
        stats[INV_STD * C + c], stats[GAMMA * C + c] = inv_std, scale
        scale, shift = normalizing_map(stats[DEVIATION * C + c], inv_std, scale, parameter(beta, c, 0.0))
        coef[ORIGIN_OF_X * C + c], coef[SCALE * C + c], coef[SHIFT * C + c] = stats[ORIGIN * C + c], scale, shift


@Kernel
def shard_sums(parts, stats, own, sums, C, run, copies, at_h, count):
    """Block c: s, p, h and e of channel c, Eq. 17; own has the shard's stats, None when the mean is no batch's."""
    c, t, T = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    shared = cuda.shared.array(PAIRS, float64)
    s, q = channel_sums(parts, shared, c, C, run, copies, t, T)
    if t == 0:
        k, d = stats[ORIGIN * C + c], stats[DEVIATION * C + c]
        e = 0.0
        if own is not None:
            e = count * (moved(own[ORIGIN * C + c], own[DEVIATION * C + c], k) - d)
        sums[SUM * C + c], sums[PRODUCT * C + c] = s, centred_product(s, q, d)
        sums[DY_ORIGIN * C + c], sums[OFFSET * C + c] = parts[at_h + c], e


@Kernel
def add_shards(counts, gathered, sums, C, ranks, leader):
    """The sums of all shards together, Eq. 18; their e is 0."""
    c = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if c < C:
        row = 4 * C + 1
        h = gathered[leader * row + DY_ORIGIN * C + c]
        s, p = 0.0, 0.0
        for r in range(ranks):
            at = r * row + c
            its_s, its_p = moved_sums(
                gathered[at + SUM * C], gathered[at + PRODUCT * C], gathered[at + OFFSET * C],
                gathered[at + DY_ORIGIN * C], h, counts[r],
            )  # fmt: skip
            s += its_s
            p += its_p
        sums[SUM * C + c], sums[PRODUCT * C + c] = s, p
        sums[DY_ORIGIN * C + c], sums[OFFSET * C + c] = h, 0.0


@Kernel
def whole_gradients(sums, stats, dgamma, dbeta, C, count):
    """dgamma and dbeta of the shard or the batch whose sums these are."""
    c = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if c < C:
        sum_dy, sum_dy_xmu = moved_sums(
            sums[SUM * C + c], sums[PRODUCT * C + c], sums[OFFSET * C + c], sums[DY_ORIGIN * C + c], 0.0, count
        )
        if dgamma is not None:
            dgamma[c] = sum_dy_xmu * stats[INV_STD * C + c]
        if dbeta is not None:
            dbeta[c] = sum_dy


@Kernel
def finalize_sums(sums, stats, coef, C, count):
    """Eq. 12 from the sums of the whole batch; without them the map of dy alone, gamma*inv_std*dy."""
    c = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if c < C:
        gamma, inv_std = stats[GAMMA * C + c], stats[INV_STD * C + c]
        if sums is None:
            coef[ORIGIN_OF_X * C + c], coef[SCALE * C + c], coef[SHIFT * C + c] = 0.0, gamma * inv_std, 0.0
        else:
            a, scale, shift = gradient_map(
                sums[SUM * C + c], sums[PRODUCT * C + c], stats[DEVIATION * C + c], count, gamma, inv_std
            )
            coef[ORIGIN_OF_X * C + c], coef[SCALE * C + c], coef[SHIFT * C + c] = stats[ORIGIN * C + c], scale, shift
            coef[A * C + c], coef[H * C + c] = a, sums[DY_ORIGIN * C + c]
