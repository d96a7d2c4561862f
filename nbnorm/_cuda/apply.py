"""Apply: the affine map of each channel (docs/math.md, Eq. 7, 13, 29, 34 and 35).

y = scale*(x - k) + shift, or with dy an array dx = a*(dy - h) + scale*(x - k) + shift, and with `other`, ddx, too
dx = a*(dy - h) + b*(ddx - o) + scale*(x - k) + shift. One read of each input, one write, in float64 between them.
With a `slope` there is an activation. Forwards `other` is a residual, or None; backwards b and o are scale and shift of
y, whose sign says how much of dy is let through.
Blocks go from the last part of the last channel to the first of the first: what reduce read last is still in the
second-level cache. Meanwhile the first packs come nearer (`ahead`) while a block finds its coefficients.

The kernels differ in where a channel's coefficients come from; segments and columns each have one loop.
"""

from __future__ import annotations

from numba import float64

from nbnorm._cuda.counted import counted_image, keep_places, times, times_in_row, times_in_segment
from nbnorm._cuda.finalize import (
    HALF,
    ORIGIN_OF_DDX,
    ORIGIN_OF_X,
    SCALE,
    SHIFT,
    A,
    B,
    H,
    channel_sums,
    commit_first,
    finalize_backward,
    finalize_forward,
    running_coefficients,
    sums_of_channels,
)
from nbnorm._cuda.launch import Kernel, cuda
from nbnorm._cuda.plan import PAIRS, TABLES
from nbnorm._cuda.reduce import following, let_through, rest_of_segments, signs_of
from nbnorm._cuda.vector import (
    activated,
    ahead,
    element,
    finite,
    kept,
    lanes,
    leading,
    load,
    load_table,
    of_ddx,
    places_for,
    put,
    routine,
    store,
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
def recall(x, at, room, j):
    """Pack `at` in memory, or from where reduce.py kept it."""
    return load(x, at) if room is None else load(room, j)


@routine
def segment_image(x, dy, other, slope, w, packs, n, c, at, C, S, k, scale, shift, a, h, b, o):
    """`image` of the pack at `at` in segment n of channel c."""
    g = let_through(x, dy, slope, k, b, o)
    if w is None:
        result = image(x, leading(g), other, slope, k, scale, shift, a, h, b, o)
    else:
        m = times_in_segment(w, x, packs, n, c, at * lanes(packs) - (n * C + c) * S)
        result = counted_image(x, leading(g), of_ddx(g), other, m, k, scale, shift, a, h, b, o)
    return result


@routine
def map_segments(
    x, dy, other, slope, w, y, x_room, dy_room, c, p, t, T, N, C, S, SV, per, P, k, scale, shift, a, h, b, o
):  # fmt: skip
    """Part p of channel c, cut as in segment_sums."""
    j, end = p * per + t, min(N * SV, (p + 1) * per)
    n, i, dn, di = j // SV, j % SV, T // SV, T % SV
    if dy is None:
        while j + 3 * T < end:  # all loads before the first store: the compiler must not move them across
            a0, n, i = following(n, i, dn, di, c, C, S, SV, x)
            a1, n, i = following(n, i, dn, di, c, C, S, SV, x)
            a2, n, i = following(n, i, dn, di, c, C, S, SV, x)
            a3, n, i = following(n, i, dn, di, c, C, S, SV, x)
            x0, x1 = recall(x, a0, x_room, j), recall(x, a1, x_room, j + T)
            x2, x3 = recall(x, a2, x_room, j + 2 * T), recall(x, a3, x_room, j + 3 * T)
            r0, r1, r2, r3 = load(other, a0), load(other, a1), load(other, a2), load(other, a3)
            store(y, a0, image(x0, None, r0, slope, k, scale, shift, a, h, b, o))
            store(y, a1, image(x1, None, r1, slope, k, scale, shift, a, h, b, o))
            store(y, a2, image(x2, None, r2, slope, k, scale, shift, a, h, b, o))
            store(y, a3, image(x3, None, r3, slope, k, scale, shift, a, h, b, o))
            j += 4 * T
    else:
        while j + T < end:
            n0, i0 = n, i
            a0, n1, i1 = following(n0, i0, dn, di, c, C, S, SV, x)
            a1, n, i = following(n1, i1, dn, di, c, C, S, SV, x)
            x0, x1 = recall(x, a0, x_room, j), recall(x, a1, x_room, j + T)
            dy0, dy1 = recall(dy, a0, dy_room, j), recall(dy, a1, dy_room, j + T)
            z0, z1 = load(other, a0), load(other, a1)
            store(y, a0, segment_image(x0, dy0, z0, slope, w, x, n0, c, a0, C, S, k, scale, shift, a, h, b, o))
            store(y, a1, segment_image(x1, dy1, z1, slope, w, x, n1, c, a1, C, S, k, scale, shift, a, h, b, o))
            j += 2 * T
    while j < end:
        n0, i0 = n, i
        a0, n, i = following(n0, i0, dn, di, c, C, S, SV, x)
        x0, dy0 = recall(x, a0, x_room, j), recall(dy, a0, dy_room, j)
        z0 = load(other, a0)
        store(y, a0, segment_image(x0, dy0, z0, slope, w, x, n0, c, a0, C, S, k, scale, shift, a, h, b, o))
        j += T
    m, rest = p * T + t, N * (S - SV * lanes(x))
    while m < rest:
        n, s = rest_of_segments(m, c, C, S, SV, x)
        map_one(x, dy, other, slope, w, y, (n * C + c) * S + s, n, c, s, k, scale, shift, a, h, b, o)
        m += P * T


@routine
def segments_ahead(x, dy, c, p, t, T, N, C, S, SV, per):
    """Ask for what map_segments reads first."""
    j, end = p * per + t, min(N * SV, (p + 1) * per)
    n, i, dn, di = j // SV, j % SV, T // SV, T % SV
    for _ in range(4 if dy is None else 2):
        if j < end:
            at, n, i = following(n, i, dn, di, c, C, S, SV, x)
            ahead(x, at)
            ahead(dy, at)
            j += T


@Kernel
def normalize_segments(
    x, residual, slope, y, parts, stats, gamma, beta, mean, var, counters, N, C, S, SV, per, P,
    count, eps, momentum, ddof,
):  # fmt: skip
    """Block (c, p) of a training forward; the first of a channel keeps its statistics, and folds them in."""
    c, p, t, T = C - 1 - cuda.blockIdx.x, P - 1 - cuda.blockIdx.y, cuda.threadIdx.x, cuda.blockDim.x
    shared = cuda.shared.array(PAIRS, float64)
    segments_ahead(x, None, c, p, t, T, N, C, S, SV, per)
    s, q = channel_sums(parts, shared, c, C, P, 1, t, T)
    first = p == P - 1 and t == 0
    k, scale, shift = finalize_forward(s, q, c, C, first, stats, gamma, beta, eps, count)
    commit_first(c, C, first, parts, 2 * C * P, stats, mean, var, counters, momentum, ddof, count)
    map_segments(
        x, None, residual, slope, None, y, None, None, c, p, t, T, N, C, S, SV, per, P, k, scale, shift,
        0.0, 0.0, 0.0, 0.0,
    )  # fmt: skip


@Kernel
def gradient_segments(x, dy, slope, dx, parts, stats, dgamma, dbeta, N, C, S, SV, per, P, count):
    """Block (c, p) of a backward pass; the first of a channel keeps dgamma and dbeta.

    x is None where the statistics do not depend on it: dx = gamma*inv_std*dy.
    """
    c, p, t, T = C - 1 - cuda.blockIdx.x, P - 1 - cuda.blockIdx.y, cuda.threadIdx.x, cuda.blockDim.x
    shared = cuda.shared.array(PAIRS, float64)
    segments_ahead(dy, x, c, p, t, T, N, C, S, SV, per)
    s, q = channel_sums(parts, shared, c, C, P, 1, t, T)
    k, scale, shift, a, h = finalize_backward(
        s, q, c, C, p == P - 1 and t == 0, parts[2 * C * P + c], stats, dgamma, dbeta, count
    )
    if x is None:
        map_segments(
            dy, None, None, None, None, dx, None, None, c, p, t, T, N, C, S, SV, per, P, 0.0, a, 0.0, 0.0, 0.0, 0.0, 0.0
        )  # fmt: skip
    else:
        b, o = signs_of(slope, c, C, stats)
        map_segments(
            x, dy, None, slope, None, dx, None, None, c, p, t, T, N, C, S, SV, per, P, k, scale, shift, a, h, b, o
        )  # fmt: skip


@Kernel
def running_segments(x, residual, slope, y, stats, gamma, beta, mean, var, N, C, S, SV, per, P, eps):
    """Block (c, p) with the running statistics."""
    c, p, t, T = C - 1 - cuda.blockIdx.x, P - 1 - cuda.blockIdx.y, cuda.threadIdx.x, cuda.blockDim.x
    k, scale, shift = running_coefficients(c, C, p == 0 and t == 0, stats, gamma, beta, mean, var, eps)
    map_segments(
        x, None, residual, slope, None, y, None, None, c, p, t, T, N, C, S, SV, per, P, k, scale, shift,
        0.0, 0.0, 0.0, 0.0,
    )  # fmt: skip


@Kernel
def apply_segments(x, dy, other, slope, w, y, coef, signs, N, C, S, SV, per, P):
    """Block (c, p) with coefficients that are known."""
    c, p, t, T = C - 1 - cuda.blockIdx.x, P - 1 - cuda.blockIdx.y, cuda.threadIdx.x, cuda.blockDim.x
    k, scale, shift = coef[ORIGIN_OF_X * C + c], coef[SCALE * C + c], coef[SHIFT * C + c]
    a, h = 0.0, 0.0
    if dy is not None:
        a, h = coef[A * C + c], coef[H * C + c]
    b, o = 0.0, 0.0
    if dy is not None:
        if other is not None:
            b, o = coef[B * C + c], coef[ORIGIN_OF_DDX * C + c]
        if slope is not None:
            b, o = signs[c], signs[C + c]
    map_segments(
        x, dy, other, slope, w, y, None, None, c, p, t, T, N, C, S, SV, per, P, k, scale, shift, a, h, b, o
    )  # fmt: skip


# ---- columns


@routine
def row_image(x, dy, other, slope, w, packs, n, j, places, k, scale, shift, a, h, b, o):
    """`image` of the pack in column j of a block and in the row that begins with sample n."""
    g = let_through(x, dy, slope, k, b, o)
    if w is None:
        result = image(x, leading(g), other, slope, k, scale, shift, a, h, b, o)
    else:
        m = times_in_row(w, x, packs, n, j, places)
        result = counted_image(x, leading(g), of_ddx(g), other, m, k, scale, shift, a, h, b, o)
    return result


@routine
def map_columns(x, dy, other, slope, w, y, tables, places, g, p, t, T, N, C, S, K, tile, across, down, per, P):
    """Block (g, p), cut as in reduce_columns. `tables` has the coefficients of its columns, `places` those in masks."""
    L = lanes(x)
    KV, rows = K // L, N // tile
    first, width = g * across * L, across * L
    beside, below = t % across, t // across
    if g * across + beside < KV and below < down:
        i = beside * L
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
        at, step = (p * per + below) * KV + g * across + beside, down * KV
        end = min(rows, (p + 1) * per) * KV
        n, dn = (p * per + below) * tile, down * tile  # the sample that a row begins with
        if dy is None:
            # Beside a residual the coefficients of 8 columns leave registers for two rows.
            while (other is None or L < 8) and at + 3 * step < end:
                x0, x1, x2, x3 = load(x, at), load(x, at + step), load(x, at + 2 * step), load(x, at + 3 * step)
                r0, r1 = load(other, at), load(other, at + step)
                r2, r3 = load(other, at + 2 * step), load(other, at + 3 * step)
                store(y, at, image(x0, None, r0, slope, k, scale, shift, a, h, b, o))
                store(y, at + step, image(x1, None, r1, slope, k, scale, shift, a, h, b, o))
                store(y, at + 2 * step, image(x2, None, r2, slope, k, scale, shift, a, h, b, o))
                store(y, at + 3 * step, image(x3, None, r3, slope, k, scale, shift, a, h, b, o))
                at += 4 * step
            if other is not None:
                while L >= 8 and at + step < end:
                    x0, x1, r0, r1 = load(x, at), load(x, at + step), load(other, at), load(other, at + step)
                    store(y, at, image(x0, None, r0, slope, k, scale, shift, a, h, b, o))
                    store(y, at + step, image(x1, None, r1, slope, k, scale, shift, a, h, b, o))
                    at += 2 * step
        else:
            while L < 8 and at + step < end:  # the coefficients of 8 columns leave no registers for two rows
                x0, x1, dy0, dy1 = load(x, at), load(x, at + step), load(dy, at), load(dy, at + step)
                z0, z1 = load(other, at), load(other, at + step)
                store(y, at, row_image(x0, dy0, z0, slope, w, x, n, i, places, k, scale, shift, a, h, b, o))
                second = row_image(x1, dy1, z1, slope, w, x, n + dn, i, places, k, scale, shift, a, h, b, o)
                store(y, at + step, second)
                at += 2 * step
                n += 2 * dn
        while at < end:
            x0, dy0, z0 = load(x, at), load(dy, at), load(other, at)
            store(y, at, row_image(x0, dy0, z0, slope, w, x, n, i, places, k, scale, shift, a, h, b, o))
            at += step
            n += dn
    rest = N % tile * C * S if p == P - 1 else 0  # of the row that is not whole
    for j in range(first + t, min(K, first + width, rest), T):
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


@routine
def columns_ahead(x, dy, b, p, t, N, K, tile, across, down, per):
    """Ask for what map_columns reads first."""
    KV = K // lanes(x)
    beside, below = t % across, t // across
    if b * across + beside < KV and below < down:
        at, end = (p * per + below) * KV + b * across + beside, min(N // tile, (p + 1) * per) * KV
        for _ in range(4 if dy is None else 2):
            if at < end:
                ahead(x, at)
                ahead(dy, at)
                at += down * KV


@routine
def channels_between(first, last, C, S):
    """How many channels columns first to last have, which go around: each counts once."""
    return min(C, (last - 1) // S - first // S + 1)


@Kernel
def normalize_columns(
    x, residual, slope, y, parts, stats, gamma, beta, mean, var, counters, N, C, S, K, tile, across, down, per, P,
    count, eps, momentum, ddof,
):  # fmt: skip
    """Block (b, p) of a training forward; the first of a channel keeps its statistics, and folds them in."""
    b, p = cuda.gridDim.x - 1 - cuda.blockIdx.x, P - 1 - cuda.blockIdx.y
    t, T = cuda.threadIdx.x, cuda.blockDim.x
    tables = cuda.shared.array(TABLES, float64)
    shared = cuda.shared.array(PAIRS, float64)
    columns_ahead(x, None, b, p, t, N, K, tile, across, down, per)
    width = across * lanes(x)
    first, last = b * width, min(K, b * width + width)
    lead = first // S
    shares = sums_of_channels(
        parts, shared, lead, channels_between(first, last, C, S), C, S * P, tile, t, T
    )  # fmt: skip
    for j in range(first + t, last, T):
        c, i = j // S % C, (j // S - lead) % C * shares
        keeps = p == P - 1 and j < C * S and j % S == 0
        k, scale, shift = finalize_forward(
            shared[i], shared[HALF + i], c, C, keeps, stats, gamma, beta, eps, count
        )  # fmt: skip
        commit_first(c, C, keeps, parts, 2 * K * P, stats, mean, var, counters, momentum, ddof, count)
        tables[ORIGIN_OF_X * width + j - first], tables[SCALE * width + j - first] = k, scale
        tables[SHIFT * width + j - first] = shift
    cuda.syncthreads()
    map_columns(x, None, residual, slope, None, y, tables, None, b, p, t, T, N, C, S, K, tile, across, down, per, P)


@Kernel
def gradient_columns(x, dy, slope, dx, parts, stats, dgamma, dbeta, N, C, S, K, tile, across, down, per, P, count):
    """Block (b, p) of a backward pass, as gradient_segments."""
    b, p = cuda.gridDim.x - 1 - cuda.blockIdx.x, P - 1 - cuda.blockIdx.y
    t, T = cuda.threadIdx.x, cuda.blockDim.x
    tables = cuda.shared.array(TABLES, float64)
    shared = cuda.shared.array(PAIRS, float64)
    columns_ahead(dy, x, b, p, t, N, K, tile, across, down, per)
    width = across * lanes(dy)
    first, last = b * width, min(K, b * width + width)
    lead = first // S
    shares = sums_of_channels(
        parts, shared, lead, channels_between(first, last, C, S), C, S * P, tile, t, T
    )  # fmt: skip
    for j in range(first + t, last, T):
        c, i = j // S % C, (j // S - lead) % C * shares
        keeps = p == P - 1 and j < C * S and j % S == 0
        k, scale, shift, a, h = finalize_backward(
            shared[i], shared[HALF + i], c, C, keeps, parts[2 * K * P + c], stats, dgamma, dbeta, count
        )
        if x is None:
            k, scale, shift = 0.0, a, 0.0
        tables[ORIGIN_OF_X * width + j - first], tables[SCALE * width + j - first] = k, scale
        tables[SHIFT * width + j - first] = shift
        tables[A * width + j - first], tables[H * width + j - first] = a, h
        if slope is not None:
            tables[B * width + j - first], tables[ORIGIN_OF_DDX * width + j - first] = signs_of(slope, c, C, stats)
    cuda.syncthreads()
    if x is None:
        map_columns(dy, None, None, None, None, dx, tables, None, b, p, t, T, N, C, S, K, tile, across, down, per, P)
    else:
        map_columns(x, dy, None, slope, None, dx, tables, None, b, p, t, T, N, C, S, K, tile, across, down, per, P)


@Kernel
def apply_columns(x, dy, other, slope, w, y, coef, signs, N, C, S, K, tile, across, down, per, P):
    """Block (b, p) with coefficients that are known."""
    b, p = cuda.gridDim.x - 1 - cuda.blockIdx.x, P - 1 - cuda.blockIdx.y
    t, T = cuda.threadIdx.x, cuda.blockDim.x
    tables = cuda.shared.array(TABLES, float64)
    places = places_for(w)
    width, used = across * lanes(x), 3 if dy is None else 5 if other is None else 7
    for j in range(t, min(width, K - b * width), T):
        c = (b * width + j) // S % C
        for row in range(used):
            tables[row * width + j] = coef[row * C + c]
        if signs is not None:
            tables[B * width + j], tables[ORIGIN_OF_DDX * width + j] = signs[c], signs[C + c]
        if w is not None:
            keep_places(w, places, j, (b * width + j) // (C * S), c, (b * width + j) % S)
    cuda.syncthreads()
    map_columns(x, dy, other, slope, w, y, tables, places, b, p, t, T, N, C, S, K, tile, across, down, per, P)


@Kernel
def running_columns(x, residual, slope, y, stats, gamma, beta, mean, var, N, C, S, K, tile, across, down, per, P, eps):
    """Block (b, p) with the running statistics."""
    b, p = cuda.gridDim.x - 1 - cuda.blockIdx.x, P - 1 - cuda.blockIdx.y
    t, T = cuda.threadIdx.x, cuda.blockDim.x
    tables = cuda.shared.array(TABLES, float64)
    width = across * lanes(x)
    for j in range(t, min(width, K - b * width), T):
        column = b * width + j
        first = p == 0 and column < C * S and column % S == 0
        k, scale, shift = running_coefficients(column // S % C, C, first, stats, gamma, beta, mean, var, eps)
        tables[ORIGIN_OF_X * width + j], tables[SCALE * width + j], tables[SHIFT * width + j] = k, scale, shift
    cuda.syncthreads()
    map_columns(x, None, residual, slope, None, y, tables, None, b, p, t, T, N, C, S, K, tile, across, down, per, P)
