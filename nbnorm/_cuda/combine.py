"""Combine: what the shards of a batch know of each channel, put together. O(ranks * C), float64.

`gathered` has a row of every rank, `row` numbers long, with the rows of its array behind each other, `counts` (ranks,
width) their values per channel, width 1 or C. The origin of a rank with the most values becomes everyone's. Sums run in
the order of the ranks: every rank finds the same bits. A thread works on one channel.
"""

from __future__ import annotations

from numba import float64

from nbnorm._channel_rows import (
    COUNT,
    DEVIATION,
    DY_ORIGIN,
    GAMMA,
    INV_STD,
    M2,
    OFFSET,
    ORIGIN,
    PRODUCT,
    SHARD_SUMS,
    SUM,
)
from nbnorm._cuda.coefficients import ORIGIN_OF_X, SCALE, SHIFT, VARIES, A, H
from nbnorm._cuda.finalize import channel_sums, count_of
from nbnorm._cuda.launch import Kernel, cuda
from nbnorm._cuda.plan import PAIRS
from nbnorm._cuda.vector import routine
from nbnorm._formulas import centred_product, gamma_gradient, gradient_map, moved, moved_sums, pool, shard_offset


@routine
def leader(counts, i, width, ranks):
    """The first rank with the most values."""
    result = 0
    for r in range(1, ranks):
        if counts[r * width + i] > counts[result * width + i]:
            result = r
    return result


@Kernel
def merge_shards(counts, gathered, stats, C, ranks, width, row, counting):
    """Origin, d and m2 of all shards together, Eq. 16 and 8; and the count, where stats has a place for it."""
    c = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if c < C:
        i = c % width
        k = gathered[leader(counts, i, width, ranks) * row + ORIGIN * C + c]
        count, d, m2 = 0.0, 0.0, 0.0
        for r in range(ranks):
            at = r * row + c
            its_d = moved(gathered[at + ORIGIN * C], gathered[at + DEVIATION * C], k)
            count, d, m2 = pool(count, d, m2, counts[r * width + i], its_d, gathered[at + M2 * C])
        stats[ORIGIN * C + c], stats[DEVIATION * C + c], stats[M2 * C + c] = k, d, m2
        if counting:
            stats[COUNT * C + c] = count


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
            e = shard_offset(own[ORIGIN * C + c], own[DEVIATION * C + c], k, d, count_of(count, c, C, own))
        sums[SUM * C + c], sums[PRODUCT * C + c] = s, centred_product(s, q, d)
        sums[DY_ORIGIN * C + c], sums[OFFSET * C + c] = parts[at_h + c], e


@Kernel
def add_shards(counts, gathered, sums, C, ranks, width):
    """The sums of all shards together, Eq. 18; their e is 0."""
    c = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if c < C:
        row, i = SHARD_SUMS * C + 1, c % width
        h = gathered[leader(counts, i, width, ranks) * row + DY_ORIGIN * C + c]
        s, p = 0.0, 0.0
        for r in range(ranks):
            at = r * row + c
            its_s, its_p = moved_sums(
                gathered[at + SUM * C], gathered[at + PRODUCT * C], gathered[at + OFFSET * C],
                gathered[at + DY_ORIGIN * C], h, counts[r * width + i],
            )  # fmt: skip
            s += its_s
            p += its_p
        sums[SUM * C + c], sums[PRODUCT * C + c] = s, p
        sums[DY_ORIGIN * C + c], sums[OFFSET * C + c] = h, 0.0


@Kernel
def whole_gradients(sums, stats, own, dgamma, dbeta, C, count):
    """dgamma and dbeta of the shard or the batch whose sums these are, and whose stats `own`."""
    c = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if c < C:
        n, h = count_of(count, c, C, own), sums[DY_ORIGIN * C + c]
        sum_dy, sum_dy_xmu = moved_sums(
            sums[SUM * C + c], sums[PRODUCT * C + c], sums[OFFSET * C + c], h, 0.0, n
        )  # fmt: skip
        if dgamma is not None:
            dgamma[c] = gamma_gradient(sum_dy_xmu, stats[INV_STD * C + c])
        if dbeta is not None:
            dbeta[c] = sum_dy


@routine
def keep_frozen_map(coef, c, C, a, stats, absent):
    """a*dy, of dy alone, or (`absent`) also of x, which may have no value or is asked for the sign of y."""
    k, scale, of_dy = 0.0, a, 0.0
    if absent:
        k, scale, of_dy = stats[ORIGIN * C + c], 0.0, a
    coef[ORIGIN_OF_X * C + c], coef[SCALE * C + c], coef[SHIFT * C + c] = k, scale, 0.0
    coef[A * C + c], coef[H * C + c], coef[VARIES * C + c] = of_dy, 0.0, 1.0


@Kernel
def finalize_sums(sums, stats, coef, C, absent, count):
    """Eq. 12 from the sums of the whole batch; without them gamma*inv_std*dy, of dy alone, or (`absent`) also of x,
    which may have no value or is asked for the sign of y."""
    c = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if c < C:
        gamma, inv_std = stats[GAMMA * C + c], stats[INV_STD * C + c]
        if sums is None:
            keep_frozen_map(coef, c, C, gamma * inv_std, stats, absent)
        else:
            a, scale, shift = gradient_map(
                sums[SUM * C + c],
                sums[PRODUCT * C + c],
                stats[DEVIATION * C + c],
                count_of(count, c, C, stats),
                gamma,
                inv_std,
            )
            coef[ORIGIN_OF_X * C + c], coef[SCALE * C + c], coef[SHIFT * C + c] = stats[ORIGIN * C + c], scale, shift
            coef[A * C + c], coef[H * C + c] = a, sums[DY_ORIGIN * C + c]
