"""Sums: what reduce.py and fused.py add up, by thread and by block (docs/math.md, Eq. 3 and 10).

With `dy` None (the compiler knows its type, so the test costs nothing) v is u itself and the sums give the
statistics of x; with an array they are those of the backward pass.
"""

from __future__ import annotations

from numba import int32

from nbnorm._cuda.counted import add_counted, counted_terms, times, times_in_row, times_in_segment
from nbnorm._cuda.origins import let_through
from nbnorm._cuda.vector import (
    element,
    fold,
    four_at_once,
    lanes,
    leading,
    load_table,
    of_ddx,
    of_dy,
    put_by,
    routine,
    values,
    zeros,
)
from nbnorm._cuda.walk import (
    first_rest,
    four_packs,
    four_places,
    four_rows,
    place_of_rest,
    two_packs,
    two_places,
    two_rows,
)
from nbnorm._formulas import accumulate


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
def row_sums(begun, x, dy, slope, w, j, places, k_table, h_table, scales, shifts, tile, down):
    """The rows that first_rows has begun with, of the pack in column j of a block: sums and counts of a thread."""
    row, a, step, left, v, g, _ = begun
    sums = zeros(x), zeros(x), zeros(x)
    if left > 0:
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
    return sums


@routine
def column_sum(table, j, width, down):
    """Of `down` rows, in four chains of additions."""
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    row = 0
    while row + 3 < down:
        at = row * width + j
        a, b = a + table[at], b + table[at + width]
        c, d = c + table[at + 2 * width], d + table[at + 3 * width]
        row += 4
    while row < down:
        a += table[row * width + j]
        row += 1
    return (a + b) + (c + d)
