"""Maps: the affine map of a channel on what a thread reads of it (docs/math.md, Eq. 7, 13, 19, 29, 34, 35 and 42).

y = scale*(x - k) + shift, or with dy an array dx = a*(dy - h) + scale*(x - k) + shift, and with `other`, ddx, too
dx = a*(dy - h) + b*(ddx - o) + scale*(x - k) + shift, in float64; with coefficients in float32 their forms in float32
(coefficients.py). One read of each input, one write. `coef` is k, scale, shift, a, h, b, o.

With a `slope` there is an activation. Forwards `other` is a residual, or None; backwards b and o are scale and shift of
y, whose sign says how much of dy is let through.
"""

from __future__ import annotations

from numba import int32

from nbnorm._cuda.coefficients import ORIGIN_OF_DDX, ORIGIN_OF_X, SCALE, SHIFT, A, B, H
from nbnorm._cuda.counted import counted_image, times, times_in_row, times_in_segment
from nbnorm._cuda.origins import let_through
from nbnorm._cuda.vector import (
    activated,
    deviation,
    element_as,
    finite,
    four_at_once,
    kept,
    lanes,
    leading,
    load_table,
    of_ddx,
    placed,
    put,
    routine,
    store,
    values_as,
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
from nbnorm._formulas import affine_of_three, affine_of_two


@routine
def image(x, dy, other, slope, coef):
    """The map of values or packs x, dy and other (or None)."""
    k, scale, shift, a, h, b, o = coef
    u = deviation(x, k, o, b)
    if dy is None:
        return beside(placed(u, scale, k, shift), other, slope)
    if slope is not None:
        u = kept(finite(x), u)  # frozen statistics have no use for u, which must not spoil what is let through
    v = deviation(dy, h, h, k)  # dy - h in float64, k*dy + h in float32
    if other is None:
        return affine_of_two(v, a, u, scale, shift)
    return affine_of_three(other - o, b, v, a, u, scale, shift)


@routine
def beside(z, residual, slope):
    """Eq. 34."""
    if residual is not None:
        z = z + residual
    if slope is not None:
        z = activated(z, slope)
    return z


@routine
def map_one(x, dy, other, slope, w, y, at, n, c, s, coef):
    """Value (n, c, s), which is at `at` and in no pack."""
    v, z = element_as(coef[0], x, at), element_as(coef[0], other, at)
    g = let_through_by(v, element_as(coef[0], dy, at), slope, coef)
    if dy is None:
        put(y, at, image(v, None, z, slope, coef))
    elif w is None:
        put(y, at, image(v, leading(g), z, slope, coef))
    else:
        put(y, at, counted_image(v, leading(g), of_ddx(g), z, times(w, x, at, n, c, s), coef))


@routine
def let_through_by(x, dy, slope, coef):
    k, _, _, _, _, b, o = coef
    return let_through(x, dy, slope, k, b, o)


# ---- segments


@routine
def map_pack(y, x, dy, other, slope, w, packs, n, c, at, C, S, coef):
    """Store the image of what lies at `at`, in segment n of channel c."""
    v, z = values_as(coef[0], x), values_as(coef[0], other)
    g = let_through_by(v, values_as(coef[0], dy), slope, coef)
    if w is None:
        result = image(v, leading(g), z, slope, coef)
    else:
        m = times_in_segment(w, v, packs, n, c, at * lanes(packs) - (n * C + c) * S)
        result = counted_image(v, leading(g), of_ddx(g), z, m, coef)
    store(y, at, result)


@routine
def map_segments(
    begun, x, dy, other, slope, w, y, x_room, dy_room, c, p, t, T, N, C, S, SV, P, coef
):  # fmt: skip
    """The packs that first_packs has begun with, and a share of what is in none."""
    j, left, place, step, at, n, v, g, z = begun
    row = -C * S
    if four_at_once(x, dy, other, slope, w):
        while left > 3 * T:
            left = int32(left - 4 * T)
            j -= 4 * T
            next_at, next_n, place = four_places(x, place, step, row, SV, True)
            next_v = four_packs(x, next_at, x_room, j, -T, T, left)
            next_g = four_packs(dy, next_at, dy_room, j, -T, T, left)
            next_z = four_packs(other, next_at, None, j, -T, T, left)
            map_pack(y, v[0], g[0], z[0], slope, w, x, n[0], c, at[0], C, S, coef)
            map_pack(y, v[1], g[1], z[1], slope, w, x, n[1], c, at[1], C, S, coef)
            map_pack(y, v[2], g[2], z[2], slope, w, x, n[2], c, at[2], C, S, coef)
            map_pack(y, v[3], g[3], z[3], slope, w, x, n[3], c, at[3], C, S, coef)
            at, n, v, g, z = next_at, next_n, next_v, next_g, next_z
        if left > 0:
            map_pack(y, v[0], g[0], z[0], slope, w, x, n[0], c, at[0], C, S, coef)
        if left > T:
            map_pack(y, v[1], g[1], z[1], slope, w, x, n[1], c, at[1], C, S, coef)
        if left > 2 * T:
            map_pack(y, v[2], g[2], z[2], slope, w, x, n[2], c, at[2], C, S, coef)
    else:
        while left > T:
            left = int32(left - 2 * T)
            j -= 2 * T
            next_at, next_n, place = two_places(x, place, step, row, SV, True)
            next_v = two_packs(x, next_at, x_room, j, -T, T, left)
            next_g = two_packs(dy, next_at, dy_room, j, -T, T, left)
            next_z = two_packs(other, next_at, None, j, -T, T, left)
            map_pack(y, v[0], g[0], z[0], slope, w, x, n[0], c, at[0], C, S, coef)
            map_pack(y, v[1], g[1], z[1], slope, w, x, n[1], c, at[1], C, S, coef)
            at, n, v, g, z = next_at, next_n, next_v, next_g, next_z
        if left > 0:
            map_pack(y, v[0], g[0], z[0], slope, w, x, n[0], c, at[0], C, S, coef)
    rest = S - SV * lanes(x)
    if rest > 0:
        n_of, r, dn, dr = first_rest(p * T + t, rest, P * T)
        while n_of < N:
            s = place_of_rest(n_of, r, c, C, S, SV, lanes(x), x)
            map_one(x, dy, other, slope, w, y, (n_of * C + c) * S + s, n_of, c, s, coef)
            n_of, r = n_of + dn, r + dr
            if r >= rest:
                n_of, r = n_of + 1, r - rest


# ---- columns


@routine
def keep_column(tables, width, j, dy, coef):
    """Coefficients of column j of a block, as far as its map has a use for them."""
    k, scale, shift, a, h, b, o = coef
    tables[ORIGIN_OF_X * width + j], tables[SCALE * width + j], tables[SHIFT * width + j] = k, scale, shift
    if dy is not None:
        tables[A * width + j], tables[H * width + j] = a, h
    tables[B * width + j], tables[ORIGIN_OF_DDX * width + j] = b, o


@routine
def column_of(tables, width, j):
    """The coefficients of a column; the compiler leaves out those that are not used."""
    return (
        tables[ORIGIN_OF_X * width + j], tables[SCALE * width + j], tables[SHIFT * width + j], tables[A * width + j],
        tables[H * width + j], tables[B * width + j], tables[ORIGIN_OF_DDX * width + j],
    )  # fmt: skip


@routine
def columns_of(tables, width, j, x):
    """The same of as many columns as a pack has."""
    return (
        load_table(tables, ORIGIN_OF_X * width + j, x), load_table(tables, SCALE * width + j, x),
        load_table(tables, SHIFT * width + j, x), load_table(tables, A * width + j, x),
        load_table(tables, H * width + j, x), load_table(tables, B * width + j, x),
        load_table(tables, ORIGIN_OF_DDX * width + j, x),
    )  # fmt: skip


@routine
def map_row(y, at, x, dy, other, slope, w, packs, n, j, places, coef):
    """Store the image of what lies at `at`, in column j of a block and in the row that begins with sample n."""
    v, z = values_as(coef[0], x), values_as(coef[0], other)
    g = let_through_by(v, values_as(coef[0], dy), slope, coef)
    if w is None:
        result = image(v, leading(g), z, slope, coef)
    else:
        m = times_in_row(w, v, packs, n, j, places)
        result = counted_image(v, leading(g), of_ddx(g), z, m, coef)
    store(y, at, result)


@routine
def map_columns(begun, x, dy, other, slope, w, y, tables, places, g, p, t, T, N, C, S, K, tile, across, down, P):
    """Block (g, p), cut as in reduce_columns. `tables` has the coefficients of its columns, `places` those in masks."""
    L = lanes(x)
    rows, first, width = N // tile, g * across * L, across * L
    row, at, step, left, v, q, z = begun
    if left > 0:
        i = t % across * L
        coef = columns_of(tables, width, i, x)
        n, dn = row * tile, -down * tile  # the sample that a row begins with
        if four_at_once(x, dy, other, slope, w):
            while left > 3 * down:
                left = int32(left - 4 * down)
                to = at
                at += 4 * step
                next_v, next_q = four_rows(x, at, step, left, down), four_rows(dy, at, step, left, down)
                next_z = four_rows(other, at, step, left, down)
                map_row(y, to, v[0], q[0], z[0], slope, w, x, n, i, places, coef)
                map_row(y, to + step, v[1], q[1], z[1], slope, w, x, n + dn, i, places, coef)
                map_row(y, to + 2 * step, v[2], q[2], z[2], slope, w, x, n + 2 * dn, i, places, coef)
                map_row(y, to + 3 * step, v[3], q[3], z[3], slope, w, x, n + 3 * dn, i, places, coef)
                v, q, z = next_v, next_q, next_z
                n += 4 * dn
            if left > 0:
                map_row(y, at, v[0], q[0], z[0], slope, w, x, n, i, places, coef)
            if left > down:
                map_row(y, at + step, v[1], q[1], z[1], slope, w, x, n + dn, i, places, coef)
            if left > 2 * down:
                map_row(y, at + 2 * step, v[2], q[2], z[2], slope, w, x, n + 2 * dn, i, places, coef)
        else:
            while left > down:
                left = int32(left - 2 * down)
                to = at
                at += 2 * step
                next_v, next_q = two_rows(x, at, step, left, down), two_rows(dy, at, step, left, down)
                next_z = two_rows(other, at, step, left, down)
                map_row(y, to, v[0], q[0], z[0], slope, w, x, n, i, places, coef)
                map_row(y, to + step, v[1], q[1], z[1], slope, w, x, n + dn, i, places, coef)
                v, q, z = next_v, next_q, next_z
                n += 2 * dn
            if left > 0:
                map_row(y, at, v[0], q[0], z[0], slope, w, x, n, i, places, coef)
    rest = N % tile * C * S if p == P - 1 else 0  # of the row that is not whole
    j, end = first + t, min(K, first + width, rest)
    while j < end:  # a range would divide by its step
        i, at = j - first, rows * K + j
        coef = column_of(tables, width, i)
        n = rows * tile + j // (C * S)
        map_one(x, dy, other, slope, w, y, at, n, j // S % C, j % S, coef)
        j += T
