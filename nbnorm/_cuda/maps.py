"""Maps: the affine map of a channel on what a thread reads of it (docs/math.md, Eq. 7, 13, 29, 34 and 35).

y = scale*(x - k) + shift, or with dy an array dx = a*(dy - h) + scale*(x - k) + shift, and with `other`, ddx, too
dx = a*(dy - h) + b*(ddx - o) + scale*(x - k) + shift. One read of each input, one write, in float64 between them.
With a `slope` there is an activation. Forwards `other` is a residual, or None; backwards b and o are scale and shift of
y, whose sign says how much of dy is let through.
"""

from __future__ import annotations

from numba import int32

from nbnorm._cuda.counted import counted_image, times, times_in_row, times_in_segment
from nbnorm._cuda.finalize import ORIGIN_OF_DDX, ORIGIN_OF_X, SCALE, SHIFT, A, B, H
from nbnorm._cuda.origins import let_through
from nbnorm._cuda.vector import (
    activated,
    element,
    finite,
    four_at_once,
    kept,
    lanes,
    leading,
    load_table,
    of_ddx,
    put,
    routine,
    store,
    values,
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
from nbnorm._formulas import affine, affine_of_three, affine_of_two


@routine
def image(x, dy, other, slope, k, scale, shift, a, h, b, o):
    """The map of values or packs x, dy and other (or None)."""
    u = x - k
    if dy is None:
        return beside(affine(u, scale, shift), other, slope)
    if slope is not None:
        u = kept(finite(x), u)  # frozen statistics have no use for u, which must not spoil what is let through
    if other is None:
        return affine_of_two(dy - h, a, u, scale, shift)
    return affine_of_three(other - o, b, dy - h, a, u, scale, shift)


@routine
def beside(z, residual, slope):
    """Eq. 34."""
    if residual is not None:
        z = z + residual
    if slope is not None:
        z = activated(z, slope)
    return z


@routine
def map_one(x, dy, other, slope, w, y, at, n, c, s, k, scale, shift, a, h, b, o):
    """Value (n, c, s), which is at `at` and in no pack."""
    v, z = element(x, at), element(other, at)
    g = let_through(v, element(dy, at), slope, k, b, o)
    if dy is None:
        put(y, at, image(v, None, z, slope, k, scale, shift, a, h, b, o))
    elif w is None:
        put(y, at, image(v, leading(g), z, slope, k, scale, shift, a, h, b, o))
    else:
        m = times(w, x, at, n, c, s)
        put(y, at, counted_image(v, leading(g), of_ddx(g), z, m, k, scale, shift, a, h, b, o))


# ---- segments


@routine
def map_pack(y, x, dy, other, slope, w, packs, n, c, at, C, S, k, scale, shift, a, h, b, o):
    """Store the image of what lies at `at`, in segment n of channel c."""
    v = values(x)
    g = let_through(v, values(dy), slope, k, b, o)
    if w is None:
        result = image(v, leading(g), values(other), slope, k, scale, shift, a, h, b, o)
    else:
        m = times_in_segment(w, v, packs, n, c, at * lanes(packs) - (n * C + c) * S)
        result = counted_image(v, leading(g), of_ddx(g), values(other), m, k, scale, shift, a, h, b, o)
    store(y, at, result)


@routine
def map_segments(
    begun, x, dy, other, slope, w, y, x_room, dy_room, c, p, t, T, N, C, S, SV, P, k, scale, shift, a, h, b, o
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
            map_pack(y, v[0], g[0], z[0], slope, w, x, n[0], c, at[0], C, S, k, scale, shift, a, h, b, o)
            map_pack(y, v[1], g[1], z[1], slope, w, x, n[1], c, at[1], C, S, k, scale, shift, a, h, b, o)
            map_pack(y, v[2], g[2], z[2], slope, w, x, n[2], c, at[2], C, S, k, scale, shift, a, h, b, o)
            map_pack(y, v[3], g[3], z[3], slope, w, x, n[3], c, at[3], C, S, k, scale, shift, a, h, b, o)
            at, n, v, g, z = next_at, next_n, next_v, next_g, next_z
        if left > 0:
            map_pack(y, v[0], g[0], z[0], slope, w, x, n[0], c, at[0], C, S, k, scale, shift, a, h, b, o)
        if left > T:
            map_pack(y, v[1], g[1], z[1], slope, w, x, n[1], c, at[1], C, S, k, scale, shift, a, h, b, o)
        if left > 2 * T:
            map_pack(y, v[2], g[2], z[2], slope, w, x, n[2], c, at[2], C, S, k, scale, shift, a, h, b, o)
    else:
        while left > T:
            left = int32(left - 2 * T)
            j -= 2 * T
            next_at, next_n, place = two_places(x, place, step, row, SV, True)
            next_v = two_packs(x, next_at, x_room, j, -T, T, left)
            next_g = two_packs(dy, next_at, dy_room, j, -T, T, left)
            next_z = two_packs(other, next_at, None, j, -T, T, left)
            map_pack(y, v[0], g[0], z[0], slope, w, x, n[0], c, at[0], C, S, k, scale, shift, a, h, b, o)
            map_pack(y, v[1], g[1], z[1], slope, w, x, n[1], c, at[1], C, S, k, scale, shift, a, h, b, o)
            at, n, v, g, z = next_at, next_n, next_v, next_g, next_z
        if left > 0:
            map_pack(y, v[0], g[0], z[0], slope, w, x, n[0], c, at[0], C, S, k, scale, shift, a, h, b, o)
    rest = S - SV * lanes(x)
    if rest > 0:
        n_of, r, dn, dr = first_rest(p * T + t, rest, P * T)
        while n_of < N:
            s = place_of_rest(n_of, r, c, C, S, SV, lanes(x), x)
            map_one(x, dy, other, slope, w, y, (n_of * C + c) * S + s, n_of, c, s, k, scale, shift, a, h, b, o)
            n_of, r = n_of + dn, r + dr
            if r >= rest:
                n_of, r = n_of + 1, r - rest


# ---- columns


@routine
def map_row(y, at, x, dy, other, slope, w, packs, n, j, places, k, scale, shift, a, h, b, o):
    """Store the image of what lies at `at`, in column j of a block and in the row that begins with sample n."""
    v = values(x)
    g = let_through(v, values(dy), slope, k, b, o)
    if w is None:
        result = image(v, leading(g), values(other), slope, k, scale, shift, a, h, b, o)
    else:
        m = times_in_row(w, v, packs, n, j, places)
        result = counted_image(v, leading(g), of_ddx(g), values(other), m, k, scale, shift, a, h, b, o)
    store(y, at, result)


@routine
def map_columns(begun, x, dy, other, slope, w, y, tables, places, g, p, t, T, N, C, S, K, tile, across, down, P):
    """Block (g, p), cut as in reduce_columns. `tables` has the coefficients of its columns, `places` those in masks."""
    L = lanes(x)
    rows, first, width = N // tile, g * across * L, across * L
    row, at, step, left, v, q, z = begun
    if left > 0:
        i = t % across * L
        k, scale = load_table(tables, ORIGIN_OF_X * width + i, x), load_table(tables, SCALE * width + i, x)
        shift = load_table(tables, SHIFT * width + i, x)
        a, h = k, k
        if dy is not None:
            a, h = load_table(tables, A * width + i, x), load_table(tables, H * width + i, x)
        b, o = a, h
        if dy is not None:
            if other is not None:
                b, o = load_table(tables, B * width + i, x), load_table(tables, ORIGIN_OF_DDX * width + i, x)
            if slope is not None:
                b, o = load_table(tables, B * width + i, x), load_table(tables, ORIGIN_OF_DDX * width + i, x)
        n, dn = row * tile, -down * tile  # the sample that a row begins with
        if four_at_once(x, dy, other, slope, w):
            while left > 3 * down:
                left = int32(left - 4 * down)
                to = at
                at += 4 * step
                next_v, next_q = four_rows(x, at, step, left, down), four_rows(dy, at, step, left, down)
                next_z = four_rows(other, at, step, left, down)
                map_row(y, to, v[0], q[0], z[0], slope, w, x, n, i, places, k, scale, shift, a, h, b, o)
                map_row(y, to + step, v[1], q[1], z[1], slope, w, x, n + dn, i, places, k, scale, shift, a, h, b, o)
                map_row(
                    y, to + 2 * step, v[2], q[2], z[2], slope, w, x, n + 2 * dn, i, places, k, scale, shift, a, h, b, o
                )
                map_row(
                    y, to + 3 * step, v[3], q[3], z[3], slope, w, x, n + 3 * dn, i, places, k, scale, shift, a, h, b, o
                )
                v, q, z = next_v, next_q, next_z
                n += 4 * dn
            if left > 0:
                map_row(y, at, v[0], q[0], z[0], slope, w, x, n, i, places, k, scale, shift, a, h, b, o)
            if left > down:
                map_row(y, at + step, v[1], q[1], z[1], slope, w, x, n + dn, i, places, k, scale, shift, a, h, b, o)
            if left > 2 * down:
                map_row(
                    y, at + 2 * step, v[2], q[2], z[2], slope, w, x, n + 2 * dn, i, places, k, scale, shift, a, h, b, o
                )
        else:
            while left > down:
                left = int32(left - 2 * down)
                to = at
                at += 2 * step
                next_v, next_q = two_rows(x, at, step, left, down), two_rows(dy, at, step, left, down)
                next_z = two_rows(other, at, step, left, down)
                map_row(y, to, v[0], q[0], z[0], slope, w, x, n, i, places, k, scale, shift, a, h, b, o)
                map_row(y, to + step, v[1], q[1], z[1], slope, w, x, n + dn, i, places, k, scale, shift, a, h, b, o)
                v, q, z = next_v, next_q, next_z
                n += 2 * dn
            if left > 0:
                map_row(y, at, v[0], q[0], z[0], slope, w, x, n, i, places, k, scale, shift, a, h, b, o)
    rest = N % tile * C * S if p == P - 1 else 0  # of the row that is not whole
    j, end = first + t, min(K, first + width, rest)
    while j < end:  # a range would divide by its step
        i, at = j - first, rows * K + j
        k, scale, shift = tables[i], tables[SCALE * width + i], tables[SHIFT * width + i]
        a, h, b, o = 0.0, 0.0, 0.0, 0.0
        if dy is not None:
            a, h = tables[A * width + i], tables[H * width + i]
            if other is not None:
                b, o = tables[B * width + i], tables[ORIGIN_OF_DDX * width + i]
            if slope is not None:
                b, o = tables[B * width + i], tables[ORIGIN_OF_DDX * width + i]
        n = rows * tile + j // (C * S)
        map_one(x, dy, other, slope, w, y, at, n, j // S % C, j % S, k, scale, shift, a, h, b, o)
        j += T
