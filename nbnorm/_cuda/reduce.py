"""Reduce: the sums of v and v*u over a channel, u = x - k and v = dy - h (docs/math.md, Eq. 3 and 10).

One read of each array.

Every block leaves the two sums of each of its columns in `parts`; a channel of the segments is one column. The order
of every sum follows from the cut of plan.py: a thread's packs front to back, lanes and threads in a tree, parts in
a tree (finalize.py). Sums are float64; for float64 data too, because each of thousands of lanes adds few values.

`parts` is flat: pairs (s, q) of (column, part), then h of each channel; in a forward pass what `counters`, unless None,
say was seen before is there, and where not every value counts once (`w` is not None) behind it the count of each
(column, part).
"""

from __future__ import annotations

from numba import float64

from nbnorm._channel_rows import ORIGIN
from nbnorm._cuda.block import block_sums
from nbnorm._cuda.counted import keep_places, times
from nbnorm._cuda.launch import Kernel, cuda
from nbnorm._cuda.origins import origins, signs_of
from nbnorm._cuda.plan import PAIRS, VALUES, WIDTH
from nbnorm._cuda.sums import column_sum, rest_terms, row_sums, segment_sums
from nbnorm._cuda.vector import lanes, places_for, routine, store_table
from nbnorm._cuda.walk import channel_of, first_of_channel, first_packs, first_rows
from nbnorm._running import SAMPLES


@routine
def keep_origins(dy, c, k, h, C, stats, parts, at_h, centred):
    if dy is None:
        if centred:  # else it is there, and other blocks read it
            stats[ORIGIN * C + c] = k
    else:
        parts[at_h + c] = h


@routine
def keep_sums(parts, c, p, P, s, q):
    parts[2 * (c * P + p)], parts[2 * (c * P + p) + 1] = s, q


@routine
def keep_seen(counters, parts, at_h, once):
    if counters is not None:  # noqa: SIM102  the compiler prunes what stands under a test of None and nothing else
        if once:
            parts[at_h] = float64(counters[SAMPLES])


@Kernel
def reduce_segments(x, dy, slope, w, stats, parts, counters, N, C, S, SV, per, P, centred):
    """Block (c, p): part p of channel c."""
    c, p, t, T = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x, cuda.blockDim.x
    shared = cuda.shared.array(PAIRS, float64)
    begun = first_packs(x, dy, None, slope, w, None, None, c, p, t, T, N, C, S, SV, per, False)
    k, h = origins(x, dy, slope, w, centred, c, N, C, S, stats)
    scale, shift = signs_of(slope, c, C, stats)
    s, q, count = segment_sums(
        begun, x, dy, slope, w, None, None, c, p, t, T, N, C, S, SV, P, k, h, scale, shift
    )  # fmt: skip
    total_s, total_q = block_sums(s, q, shared, t, T)
    if t == 0:
        keep_sums(parts, c, p, P, total_s, total_q)
        if p == 0:
            keep_origins(dy, c, k, h, C, stats, parts, 2 * C * P, centred)
            keep_seen(counters, parts, 2 * C * P, c == 0)
    if w is not None:  # noqa: SIM102  the compiler prunes what stands under a test of None and nothing else
        if dy is None:
            cuda.syncthreads()
            total, _ = block_sums(count, 0.0, shared, t, T)
            if t == 0:
                parts[2 * C * P + C + c * P + p] = total


@Kernel
def reduce_columns(x, dy, slope, w, stats, parts, counters, N, C, S, K, tile, across, down, per, P, centred):
    """Block (b, p): `across` packs side by side, rows p*per to (p + 1)*per."""
    b, p, t, T = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x, cuda.blockDim.x
    k_table = cuda.shared.array(WIDTH, float64)
    h_table = cuda.shared.array(WIDTH, float64)
    table = cuda.shared.array(VALUES, float64)
    scales, shifts = k_table, h_table
    if slope is not None:
        scales = cuda.shared.array(WIDTH, float64)
        shifts = cuda.shared.array(WIDTH, float64)
    places = places_for(w)
    L = lanes(x)
    KV, rows = K // L, N // tile
    first, width = b * across * L, across * L  # columns of this block
    last = min(K, first + width)
    begun = first_rows(x, dy, None, slope, w, b, p, t, KV, rows, across, down, per, False)
    j = first + t
    while j < last:  # a range would divide by its step
        c = channel_of(j, C, S)
        k, h = origins(x, dy, slope, w, centred, c, N, C, S, stats)
        k_table[j - first], h_table[j - first] = k, h
        if slope is not None:
            scales[j - first], shifts[j - first] = signs_of(slope, c, C, stats)
        if w is not None:
            keep_places(w, places, j - first, j // (C * S), c, j % S)
        if p == 0 and first_of_channel(j, C, S):
            keep_origins(dy, c, k, h, C, stats, parts, 2 * K * P, centred)
            keep_seen(counters, parts, 2 * K * P, c == 0)
        j += T
    cuda.syncthreads()
    if w is not None:  # registers hold no packs while values that count are looked for
        begun = first_rows(x, dy, None, slope, w, b, p, t, KV, rows, across, down, per, False)
    beside, below = t % across, t // across
    s, q, count = row_sums(
        begun, x, dy, slope, w, beside * L, places, k_table, h_table, scales, shifts, tile, down
    )  # fmt: skip
    rest = N % tile * C * S if p == P - 1 else 0
    for which in range(2):
        if below < down:
            store_table(table, below * width + beside * L, q if which else s)
        cuda.syncthreads()
        j = first + t
        while j < last:
            total = column_sum(table, j - first, width, down)
            if j < rest:
                n, c = rows * tile + j // (C * S), j // S % C
                i = j - first
                total += rest_terms(
                    x, dy, slope, w, rows * K + j, n, c, j % S, k_table[i], h_table[i], scales[i], shifts[i]
                )[which]  # fmt: skip
            parts[2 * (j * P + p) + which] = total
            j += T
        cuda.syncthreads()
    if w is not None:  # noqa: SIM102  the compiler prunes what stands under a test of None and nothing else
        if dy is None:
            if below < down:
                store_table(table, below * width + beside * L, count)
            cuda.syncthreads()
            j = first + t
            while j < last:
                total = column_sum(table, j - first, width, down)
                if j < rest:
                    total += times(w, x, rows * K + j, rows * tile + j // (C * S), j // S % C, j % S)
                parts[2 * K * P + C + j * P + p] = total
                j += T
