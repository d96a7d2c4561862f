"""Combine: what the shards of a batch know of each channel, put together. O(ranks * C), float64.

`gathered` has a row of every rank, with the rows of its array behind each other, `counts` (ranks, 1 or C) their values
per channel. The origin of a rank with the most values becomes everyone's. Sums run in the order of the ranks: every
rank finds the same bits.
"""

from __future__ import annotations

from nbnorm._channel_rows import COUNT, DEVIATION, DY_ORIGIN, GAMMA, INV_STD, M2, OFFSET, ORIGIN, PRODUCT, SUM
from nbnorm._cpu.coefficients import set_gradient_map
from nbnorm._cpu.finalize import count_of, set_parameter_gradients
from nbnorm._cpu.launch import Compiled
from nbnorm._cpu.vector import function
from nbnorm._formulas import centred_product, gradient_map, moved, moved_sums, pool, shard_offset


@function
def leader(counts, i):
    """The first rank with the most values."""
    result = 0
    for r in range(1, counts.shape[0]):
        if counts[r, i] > counts[result, i]:
            result = r
    return result


@Compiled
def merge_shards(counts, gathered, stats):
    """Origin, d and m2 of all shards together, Eq. 16 and 8; and the count, where stats has a place for it."""
    C = stats.shape[1]
    for c in range(C):
        i = c % counts.shape[1]
        k = gathered[leader(counts, i), ORIGIN * C + c]
        count, d, m2 = 0.0, 0.0, 0.0
        for r in range(counts.shape[0]):
            its_d = moved(gathered[r, ORIGIN * C + c], gathered[r, DEVIATION * C + c], k)
            count, d, m2 = pool(count, d, m2, counts[r, i], its_d, gathered[r, M2 * C + c])
        stats[ORIGIN, c], stats[DEVIATION, c], stats[M2, c] = k, d, m2
        if stats.shape[0] > COUNT:
            stats[COUNT, c] = count


@Compiled
def centre_sums(stats, own, count, sums):
    """s and q of a shard become s, p and e, Eq. 17; own has the shard's origin and d, None when mean is no batch's."""
    for c in range(stats.shape[1]):
        k, d = stats[ORIGIN, c], stats[DEVIATION, c]
        sums[PRODUCT, c] = centred_product(sums[SUM, c], sums[PRODUCT, c], d)
        if own is not None:
            sums[OFFSET, c] = shard_offset(own[ORIGIN, c], own[DEVIATION, c], k, d, count_of(count, c, own))


@Compiled
def add_shards(counts, gathered, sums):
    """The sums of all shards together, Eq. 18; their e is 0."""
    C = sums.shape[1]
    for c in range(C):
        i = c % counts.shape[1]
        h = gathered[leader(counts, i), DY_ORIGIN * C + c]
        s, p = 0.0, 0.0
        for r in range(counts.shape[0]):
            row = gathered[r]
            its_s, its_p = moved_sums(
                row[SUM * C + c], row[PRODUCT * C + c], row[OFFSET * C + c], row[DY_ORIGIN * C + c], h, counts[r, i]
            )
            s += its_s
            p += its_p
        sums[SUM, c], sums[PRODUCT, c], sums[DY_ORIGIN, c], sums[OFFSET, c] = s, p, h, 0.0


@Compiled
def whole_gradients(sums, stats, own, dgamma, dbeta, count):
    """dgamma and dbeta of the shard or the batch whose sums these are, and whose stats `own`."""
    C = sums.shape[1]
    for c in range(C):
        n, h = count_of(count, c, own), sums[DY_ORIGIN, c]
        sum_dy, sum_dy_xmu = moved_sums(sums[SUM, c], sums[PRODUCT, c], sums[OFFSET, c], h, 0.0, n)
        set_parameter_gradients(dgamma, dbeta, c, C, sum_dy, sum_dy_xmu, stats[INV_STD, c])


@Compiled
def finalize_sums(sums, stats, coef, count):
    """Eq. 12, from the sums of the whole batch."""
    for c in range(sums.shape[1]):
        n = count_of(count, c, stats)
        a, scale, shift = gradient_map(
            sums[SUM, c], sums[PRODUCT, c], stats[DEVIATION, c], n, stats[GAMMA, c], stats[INV_STD, c]
        )
        set_gradient_map(coef, c, sums[DY_ORIGIN, c], a, stats[ORIGIN, c], scale, shift)
