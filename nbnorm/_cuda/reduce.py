"""Reduce: the sums of v and v*u over a channel, u = x - k and v = dy - h (docs/math.md, Eq. 3 and 10).

With `dy` None (the compiler knows its type, so the test costs nothing) v is u itself and the sums give the
statistics of x; with an array they are those of the backward pass. One read of each array.

Every block leaves the two sums of each of its columns in `parts`; a channel of the segments is one column. The order
of every sum follows from the cut of plan.py: a thread's packs front to back, lanes and threads in a tree, parts in
a tree (finalize.py). Sums are float64; for float64 data too, because each of thousands of lanes adds few values.

`parts` is flat: pairs (s, q) of (column, part), then h of each channel; in a forward pass what `counters`, unless None,
say was seen before is there, and where not every value counts once (`w` is not None) behind it the count of each
(column, part).
"""

from __future__ import annotations

from numba import float64, int32

from nbnorm._cuda import plan
from nbnorm._cuda.counted import (
    add_counted,
    counted_origin,
    counted_terms,
    found,
    keep_places,
    per_time,
    times,
    times_in_row,
    times_in_segment,
)
from nbnorm._cuda.launch import Kernel, cuda
from nbnorm._cuda.plan import PAIRS, VALUES, WIDTH
from nbnorm._cuda.vector import (
    element,
    element_to_compare,
    fold,
    four_at_once,
    from_further,
    gated,
    is_tangent,
    lanes,
    leading,
    load_table,
    of_ddx,
    of_dy,
    places_for,
    put_by,
    routine,
    store_table,
    values,
    zeros,
)
from nbnorm._cuda.walk import (
    channel_of,
    first_of_channel,
    first_packs,
    first_rest,
    first_rows,
    four_packs,
    four_places,
    four_rows,
    place_of_rest,
    two_packs,
    two_places,
    two_rows,
)
from nbnorm._formulas import COUNT, ORIGIN, SIGN_SCALE, SIGN_SHIFT, accumulate, affine, gate, ninther, sample_index
from nbnorm._running import SAMPLES


@routine
def sample(x, c, part, N, C, S):
    return element_to_compare(x, sample_index(c, part, N, C, S))


@routine
def origin(x, c, N, C, S):
    """k, from nine values."""
    k = ninther(
        sample(x, c, 0, N, C, S), sample(x, c, 1, N, C, S), sample(x, c, 2, N, C, S),
        sample(x, c, 3, N, C, S), sample(x, c, 4, N, C, S), sample(x, c, 5, N, C, S),
        sample(x, c, 6, N, C, S), sample(x, c, 7, N, C, S), sample(x, c, 8, N, C, S),
    )  # fmt: skip
    return float64(k)


@routine
def channel_origin(array, x, w, average, c, N, C, S):
    """Of x or dy."""
    return origin(array, c, N, C, S) if w is None else counted_origin(array, x, w, average, c, N, C, S)


@routine
def average_of(dy, w, c, N, C, S, stats):
    """How often a value of channel c counts on average; -1 for a Tangent, which is weighted as x is."""
    average = -1.0
    if w is not None:
        average = -1.0 if is_tangent(dy) else stats[COUNT * C + c] / (N * S)
    return average


@routine
def gated_sample(dy, x, slope, w, stats, c, part, N, C, S):
    """Of what is let through of dy."""
    i = sample_index(c, part, N, C, S) if w is None else found(x, w, c, part, N, C, S)
    z = affine(element(x, i) - stats[ORIGIN * C + c], stats[SIGN_SCALE * C + c], stats[SIGN_SHIFT * C + c])
    g = gate(element(dy, i), z, slope)
    if w is not None:
        g = per_time(g, w, x, i, c, average_of(dy, w, c, N, C, S, stats), C, S)
    return g


@routine
def gated_origin(dy, x, slope, w, stats, c, N, C, S):
    """h where an activation lets dy through: 0 where it lets nothing, so that nothing comes back."""
    there = 0
    if w is not None:
        there = found(x, w, c, 0, N, C, S)
    h = 0.0
    if there >= 0:
        h = ninther(
            gated_sample(dy, x, slope, w, stats, c, 0, N, C, S), gated_sample(dy, x, slope, w, stats, c, 1, N, C, S),
            gated_sample(dy, x, slope, w, stats, c, 2, N, C, S), gated_sample(dy, x, slope, w, stats, c, 3, N, C, S),
            gated_sample(dy, x, slope, w, stats, c, 4, N, C, S), gated_sample(dy, x, slope, w, stats, c, 5, N, C, S),
            gated_sample(dy, x, slope, w, stats, c, 6, N, C, S), gated_sample(dy, x, slope, w, stats, c, 7, N, C, S),
            gated_sample(dy, x, slope, w, stats, c, 8, N, C, S),
        )  # fmt: skip
    return h


@routine
def origins(x, dy, slope, w, centred, c, N, C, S, stats):
    """k and h of channel c; k is found in the forward pass and taken from it in the backward pass.

    Frozen statistics do not depend on x, so that the sum of u is not known and dy must keep its origin 0.
    """
    k, h = 0.0, 0.0
    if dy is None:
        k = channel_origin(x, x, w, None, c, N, C, S)
    else:
        k = stats[ORIGIN * C + c]
        if centred:
            if slope is not None:
                h = gated_origin(dy, x, slope, w, stats, c, N, C, S)
            else:
                h = channel_origin(leading(dy), x, w, average_of(dy, w, c, N, C, S, stats), c, N, C, S)
    return k, h


@routine
def signs_of(slope, c, C, stats):
    """Scale and shift of y in channel c, where its sign is asked for."""
    scale, shift = 0.0, 0.0
    if slope is not None:
        scale, shift = stats[SIGN_SCALE * C + c], stats[SIGN_SHIFT * C + c]
    return scale, shift


@routine
def let_through(x, dy, slope, k, scale, shift):
    """Eq. 35, of values or packs; in a forward pass dy is None."""
    result = dy
    if dy is not None:  # noqa: SIM102  the compiler prunes what stands under a test of None and nothing else
        if slope is not None:
            result = gated(dy, affine(x - k, scale, shift), slope)
    return result


@routine
def keep_origins(dy, c, k, h, C, stats, parts, at_h):
    if dy is None:
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


@routine
def add(s, q, x, dy, k, h):
    """The sums and one more value or pack of each array."""
    u = x - k
    if dy is None:
        s, q = accumulate(s, q, u, u)
    else:
        s, q = accumulate(s, q, dy - h, u)
    return s, q


@routine
def block_sums(s, q, shared, t, threads):
    """Sums over the threads of a block, known to all of them: in a tree over each warp, then from warp to warp."""
    delta = plan.WARP // 2
    while delta > 0:
        s += from_further(s, delta)
        q += from_further(q, delta)
        delta //= 2
    if t % plan.WARP == 0:
        shared[2 * (t // plan.WARP)], shared[2 * (t // plan.WARP) + 1] = s, q
    cuda.syncthreads()
    total_s, total_q = shared[0], shared[1]
    for warp in range(1, threads // plan.WARP):
        total_s += shared[2 * warp]
        total_q += shared[2 * warp + 1]
    return total_s, total_q


@routine
def rest_terms(x, dy, slope, w, i, n, c, s, k, h, scale, shift):
    """The terms and the count of value i, (n, c, s), which is in no pack."""
    value = element(x, i)
    g = let_through(value, element(dy, i), slope, k, scale, shift)
    often = 0.0
    if w is None:
        u = value - k
        v = u if dy is None else leading(g) - h
    else:
        often = times(w, x, i, n, c, s)
        v, u = counted_terms(value, of_dy(g), of_ddx(g), often, k, h)
    total_s, total_q = accumulate(0.0, 0.0, v, u)
    return total_s, total_q, often


# ---- segments


@routine
def add_and_keep(sums, x, dy, slope, w, packs, n, c, at, C, S, k, h, scale, shift, x_room, dy_room, j):
    """`add`, of the pack at `at` in segment n of channel c; what has a room (fused.py) is kept there, as pack j."""
    s, q, count = sums
    if x_room is not None:
        put_by(x_room, j, x)
    if dy_room is not None:
        put_by(dy_room, j, dy)
    v = values(x)
    g = let_through(v, values(dy), slope, k, scale, shift)
    if w is None:
        s, q = add(s, q, v, leading(g), k, h)
    else:
        m = times_in_segment(w, v, packs, n, c, at * lanes(packs) - (n * C + c) * S)
        s, q, count = add_counted(s, q, count, v, of_dy(g), of_ddx(g), m, k, h)
    return s, q, count


@routine
def segment_sums(
    begun, x, dy, slope, w, x_room, dy_room, c, p, t, T, N, C, S, SV, P, k, h, scale, shift
):  # fmt: skip
    """The packs that first_packs has begun with, and a share of what is in none: the sums and the count, 0 where it is
    known, of thread t."""
    sums, row = (zeros(x), zeros(x), zeros(x)), C * S
    j, left, place, step, at, n, v, g, _ = begun
    if four_at_once(x, dy, None, slope, w):
        while left > 3 * T:
            left = int32(left - 4 * T)
            next_at, next_n, place = four_places(x, place, step, row, SV, False)
            next_v = four_packs(x, next_at, None, j, T, T, left)
            next_g = four_packs(dy, next_at, None, j, T, T, left)
            sums = add_and_keep(
                sums, v[0], g[0], slope, w, x, n[0], c, at[0], C, S, k, h, scale, shift, x_room, dy_room, j
            )  # fmt: skip
            sums = add_and_keep(
                sums, v[1], g[1], slope, w, x, n[1], c, at[1], C, S, k, h, scale, shift, x_room, dy_room, j + T
            )  # fmt: skip
            sums = add_and_keep(
                sums, v[2], g[2], slope, w, x, n[2], c, at[2], C, S, k, h, scale, shift, x_room, dy_room, j + 2 * T
            )  # fmt: skip
            sums = add_and_keep(
                sums, v[3], g[3], slope, w, x, n[3], c, at[3], C, S, k, h, scale, shift, x_room, dy_room, j + 3 * T
            )  # fmt: skip
            at, n, v, g = next_at, next_n, next_v, next_g
            j += 4 * T
        if left > 0:
            sums = add_and_keep(
                sums, v[0], g[0], slope, w, x, n[0], c, at[0], C, S, k, h, scale, shift, x_room, dy_room, j
            )  # fmt: skip
        if left > T:
            sums = add_and_keep(
                sums, v[1], g[1], slope, w, x, n[1], c, at[1], C, S, k, h, scale, shift, x_room, dy_room, j + T
            )  # fmt: skip
        if left > 2 * T:
            sums = add_and_keep(
                sums, v[2], g[2], slope, w, x, n[2], c, at[2], C, S, k, h, scale, shift, x_room, dy_room, j + 2 * T
            )  # fmt: skip
    else:
        while left > T:
            left = int32(left - 2 * T)
            next_at, next_n, place = two_places(x, place, step, row, SV, False)
            next_v = two_packs(x, next_at, None, j, T, T, left)
            next_g = two_packs(dy, next_at, None, j, T, T, left)
            sums = add_and_keep(
                sums, v[0], g[0], slope, w, x, n[0], c, at[0], C, S, k, h, scale, shift, x_room, dy_room, j
            )  # fmt: skip
            sums = add_and_keep(
                sums, v[1], g[1], slope, w, x, n[1], c, at[1], C, S, k, h, scale, shift, x_room, dy_room, j + T
            )  # fmt: skip
            at, n, v, g = next_at, next_n, next_v, next_g
            j += 2 * T
        if left > 0:
            sums = add_and_keep(
                sums, v[0], g[0], slope, w, x, n[0], c, at[0], C, S, k, h, scale, shift, x_room, dy_room, j
            )  # fmt: skip
    total_s, total_q, total = fold(sums[0]), fold(sums[1]), fold(sums[2])
    rest = S - SV * lanes(x)
    if rest > 0:
        n_of, r, dn, dr = first_rest(p * T + t, rest, P * T)
        while n_of < N:
            s_in = place_of_rest(n_of, r, c, C, S, SV, lanes(x), x)
            more_s, more_q, often = rest_terms(
                x, dy, slope, w, (n_of * C + c) * S + s_in, n_of, c, s_in, k, h, scale, shift
            )  # fmt: skip
            total_s += more_s
            total_q += more_q
            total += often
            n_of, r = n_of + dn, r + dr
            if r >= rest:
                n_of, r = n_of + 1, r - rest
    return total_s, total_q, total


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
            keep_origins(dy, c, k, h, C, stats, parts, 2 * C * P)
            keep_seen(counters, parts, 2 * C * P, c == 0)
    if w is not None:  # noqa: SIM102  the compiler prunes what stands under a test of None and nothing else
        if dy is None:
            cuda.syncthreads()
            total, _ = block_sums(count, 0.0, shared, t, T)
            if t == 0:
                parts[2 * C * P + C + c * P + p] = total


# ---- columns


@routine
def add_in_row(sums, x, dy, slope, w, packs, n, j, places, k, h, scale, shift):
    """`add`, of the pack in column j of a block and in the row that begins with sample n."""
    s, q, count = sums
    v = values(x)
    g = let_through(v, values(dy), slope, k, scale, shift)
    if w is None:
        s, q = add(s, q, v, leading(g), k, h)
    else:
        m = times_in_row(w, v, packs, n, j, places)
        s, q, count = add_counted(s, q, count, v, of_dy(g), of_ddx(g), m, k, h)
    return s, q, count


@routine
def column_sum(table, j, width, down):
    total = 0.0
    for row in range(down):
        total += table[row * width + j]
    return total


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
    row, a, step, left, v, g, _ = first_rows(x, dy, None, slope, w, b, p, t, KV, rows, across, down, per, False)
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
            keep_origins(dy, c, k, h, C, stats, parts, 2 * K * P)
            keep_seen(counters, parts, 2 * K * P, c == 0)
        j += T
    cuda.syncthreads()
    beside, below = t % across, t // across
    sums = zeros(x), zeros(x), zeros(x)
    if left > 0:
        j = beside * L
        k, h = load_table(k_table, j, x), load_table(h_table, j, x)
        scale, shift = k, h
        if slope is not None:
            scale, shift = load_table(scales, j, x), load_table(shifts, j, x)
        n, dn = row * tile, down * tile  # the sample that a row begins with
        if four_at_once(x, dy, None, slope, w):
            while left > 3 * down:
                left = int32(left - 4 * down)
                a += 4 * step
                next_v, next_g = four_rows(x, a, step, left, down), four_rows(dy, a, step, left, down)
                sums = add_in_row(sums, v[0], g[0], slope, w, x, n, j, places, k, h, scale, shift)
                sums = add_in_row(sums, v[1], g[1], slope, w, x, n + dn, j, places, k, h, scale, shift)
                sums = add_in_row(sums, v[2], g[2], slope, w, x, n + 2 * dn, j, places, k, h, scale, shift)
                sums = add_in_row(sums, v[3], g[3], slope, w, x, n + 3 * dn, j, places, k, h, scale, shift)
                v, g = next_v, next_g
                n += 4 * dn
            if left > 0:
                sums = add_in_row(sums, v[0], g[0], slope, w, x, n, j, places, k, h, scale, shift)
            if left > down:
                sums = add_in_row(sums, v[1], g[1], slope, w, x, n + dn, j, places, k, h, scale, shift)
            if left > 2 * down:
                sums = add_in_row(sums, v[2], g[2], slope, w, x, n + 2 * dn, j, places, k, h, scale, shift)
        else:
            while left > down:
                left = int32(left - 2 * down)
                a += 2 * step
                next_v, next_g = two_rows(x, a, step, left, down), two_rows(dy, a, step, left, down)
                sums = add_in_row(sums, v[0], g[0], slope, w, x, n, j, places, k, h, scale, shift)
                sums = add_in_row(sums, v[1], g[1], slope, w, x, n + dn, j, places, k, h, scale, shift)
                v, g = next_v, next_g
                n += 2 * dn
            if left > 0:
                sums = add_in_row(sums, v[0], g[0], slope, w, x, n, j, places, k, h, scale, shift)
    s, q, count = sums
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
