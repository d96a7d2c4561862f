"""Apply: the kernels that map each channel (maps.py).

They differ in where a channel's coefficients come from. Blocks go from the last part of the last channel to the first
of the first, and so do their threads: what reduce read last is still in the second-level cache.
"""

from __future__ import annotations

from numba import float64

from nbnorm._cuda.coefficients import ORIGIN_OF_DDX, ORIGIN_OF_X, SCALE, SHIFT, VARIES, A, B, H
from nbnorm._cuda.commits import POOLED, commit_first, known_running
from nbnorm._cuda.counted import keep_places
from nbnorm._cuda.finalize import (
    HALF,
    channel_sums,
    finalize_backward,
    finalize_forward,
    keep_sign_map,
    known_backward,
    known_forward,
    running_coefficients,
    sums_of_channels,
)
from nbnorm._cuda.launch import Kernel, cuda
from nbnorm._cuda.maps import keep_column, map_columns, map_segments
from nbnorm._cuda.origins import signs_of
from nbnorm._cuda.plan import PAIRS
from nbnorm._cuda.vector import lanes, map_of_two, map_of_x, places_for, routine, tables_for
from nbnorm._cuda.walk import alone, channel_of, first_of_channel, first_packs, first_rows, rows_ahead, turned


@routine
def known_map(x, dy, other, slope, w, coef, signs, c, C):
    """Of channel c."""
    k, scale, shift = coef[ORIGIN_OF_X * C + c], coef[SCALE * C + c], coef[SHIFT * C + c]
    if dy is None:
        return map_of_x(x, k, scale, shift, coef[VARIES * C + c] > 0.0)
    b, o = 0.0, 0.0
    if other is not None:
        b, o = coef[B * C + c], coef[ORIGIN_OF_DDX * C + c]
    if slope is not None:
        b, o = signs[c], signs[C + c]
    return map_of_two(x, other, slope, w, k, scale, shift, coef[A * C + c], coef[H * C + c], b, o)


# ---- segments


@Kernel
def normalize_segments(
    x, residual, slope, y, parts, stats, gamma, beta, mean, var, counters, N, C, S, SV, per, P,
    run, copies, at_h, count, eps, momentum, ddof,
):  # fmt: skip
    """Block (c, p) of a training forward; the first of a channel keeps its statistics, and folds them in."""
    c, p, t, T = C - 1 - cuda.blockIdx.x, P - 1 - cuda.blockIdx.y, cuda.threadIdx.x, cuda.blockDim.x
    shared = cuda.shared.array(PAIRS, float64)
    begun = first_packs(x, None, residual, slope, None, None, None, c, p, t, T, N, C, S, SV, per, True)
    s, q = channel_sums(parts, shared, c, C, run, copies, t, T)
    first = p == P - 1 and t == 0
    known, old = known_forward(c, C, stats, gamma, beta), known_running(c, mean, var)
    k, scale, shift, new, m2 = finalize_forward(s, q, c, C, first, known, stats, eps, count)
    keep_sign_map(c, C, first, slope, residual, scale, shift, stats)
    seen = parts[at_h] if momentum == POOLED else 0.0  # kept by reduce.py
    commit_first(c, first, new, m2, seen, old, mean, var, counters, momentum, ddof, count)
    map_segments(
        begun, x, None, residual, slope, None, y, None, None, c, p, t, T, N, C, S, SV, P,
        map_of_x(x, k, scale, shift, m2 > 0.0),
    )  # fmt: skip


@Kernel
def gradient_segments(
    x, dy, slope, dx, parts, stats, dgamma, dbeta, N, C, S, SV, per, P, run, copies, at_h, count
):  # fmt: skip
    """Block (c, p) of a backward pass; the first of a channel keeps dgamma and dbeta.

    x is None where the statistics do not depend on it: dx = gamma*inv_std*dy.
    """
    c, p, t, T = C - 1 - cuda.blockIdx.x, P - 1 - cuda.blockIdx.y, cuda.threadIdx.x, cuda.blockDim.x
    shared = cuda.shared.array(PAIRS, float64)
    begun = first_packs(dy, x, None, slope, None, None, None, c, p, t, T, N, C, S, SV, per, True)
    known, h = known_backward(c, C, stats), parts[at_h + c]
    s, q = channel_sums(parts, shared, c, C, run, copies, t, T)
    k, scale, shift, a, h = finalize_backward(s, q, c, p == P - 1 and t == 0, h, known, dgamma, dbeta, count)
    if x is None:
        map_segments(
            alone(begun), dy, None, None, None, None, dx, None, None, c, p, t, T, N, C, S, SV, P,
            map_of_x(dy, 0.0, a, 0.0, True),
        )  # fmt: skip
    else:
        b, o = signs_of(slope, c, C, stats)
        map_segments(
            turned(begun), x, dy, None, slope, None, dx, None, None, c, p, t, T, N, C, S, SV, P,
            map_of_two(x, None, slope, None, k, scale, shift, a, h, b, o),
        )  # fmt: skip


@Kernel
def running_segments(x, residual, slope, y, stats, gamma, beta, mean, var, N, C, S, SV, per, P, eps):
    """Block (c, p) with the running statistics."""
    c, p, t, T = C - 1 - cuda.blockIdx.x, P - 1 - cuda.blockIdx.y, cuda.threadIdx.x, cuda.blockDim.x
    begun = first_packs(x, None, residual, slope, None, None, None, c, p, t, T, N, C, S, SV, per, True)
    k, scale, shift = running_coefficients(c, C, p == 0 and t == 0, stats, gamma, beta, mean, var, eps)
    map_segments(
        begun, x, None, residual, slope, None, y, None, None, c, p, t, T, N, C, S, SV, P,
        map_of_x(x, k, scale, shift, True),
    )  # fmt: skip


@Kernel
def apply_segments(x, dy, other, slope, w, y, coef, signs, N, C, S, SV, per, P):
    """Block (c, p) with coefficients that are known."""
    c, p, t, T = C - 1 - cuda.blockIdx.x, P - 1 - cuda.blockIdx.y, cuda.threadIdx.x, cuda.blockDim.x
    begun = first_packs(x, dy, other, slope, w, None, None, c, p, t, T, N, C, S, SV, per, True)
    its = known_map(x, dy, other, slope, w, coef, signs, c, C)
    map_segments(begun, x, dy, other, slope, w, y, None, None, c, p, t, T, N, C, S, SV, P, its)


# ---- columns


@routine
def channels_between(first, last, C, S):
    """How many channels columns first to last have, which go around: each counts once."""
    return min(C, last - first if S == 1 else (last - 1) // S - first // S + 1)


@Kernel
def normalize_columns(
    x, residual, slope, y, parts, stats, gamma, beta, mean, var, counters, N, C, S, K, tile, across, down, per, P,
    run, copies, at_h, count, eps, momentum, ddof,
):  # fmt: skip
    """Block (b, p) of a training forward; the first of a channel keeps its statistics, and folds them in."""
    b, p = cuda.gridDim.x - 1 - cuda.blockIdx.x, P - 1 - cuda.blockIdx.y
    t, T = cuda.threadIdx.x, cuda.blockDim.x
    tables = tables_for(x, None, residual, slope, None)
    shared = cuda.shared.array(PAIRS, float64)
    rows_ahead(x, residual, b, p, t, K // lanes(x), N // tile, across, down, per, True)
    width = across * lanes(x)
    first, last = b * width, min(K, b * width + width)
    lead = first if S == 1 else first // S
    sums_of_channels(parts, shared, lead, channels_between(first, last, C, S), C, run, copies, t, T)
    begun = first_rows(x, None, residual, slope, None, b, p, t, K // lanes(x), N // tile, across, down, per, True)
    seen = parts[at_h] if momentum == POOLED else 0.0  # kept by reduce.py
    j = first + t
    while j < last:
        c, i = channel_of(j, C, S), channel_of(j - lead * S, C, S)
        keeps, known = p == P - 1 and first_of_channel(j, C, S), known_forward(c, C, stats, gamma, beta)
        old = known_running(c, mean, var)
        k, scale, shift, new, m2 = finalize_forward(
            shared[i], shared[HALF + i], c, C, keeps, known, stats, eps, count
        )  # fmt: skip
        commit_first(c, keeps, new, m2, seen, old, mean, var, counters, momentum, ddof, count)
        keep_sign_map(c, C, keeps, slope, residual, scale, shift, stats)
        keep_column(tables, width, j - first, None, map_of_x(x, k, scale, shift, m2 > 0.0))
        j += T
    cuda.syncthreads()
    map_columns(begun, x, None, residual, slope, None, y, tables, None, b, p, t, T, N, C, S, K, tile, across, down, P)


@Kernel
def gradient_columns(
    x, dy, slope, dx, parts, stats, dgamma, dbeta, N, C, S, K, tile, across, down, per, P, run, copies, at_h, count
):  # fmt: skip
    """Block (b, p) of a backward pass, as gradient_segments."""
    b, p = cuda.gridDim.x - 1 - cuda.blockIdx.x, P - 1 - cuda.blockIdx.y
    t, T = cuda.threadIdx.x, cuda.blockDim.x
    tables = tables_for(dy, x, None, slope, None)
    shared = cuda.shared.array(PAIRS, float64)
    rows_ahead(dy, x, b, p, t, K // lanes(dy), N // tile, across, down, per, True)
    width = across * lanes(dy)
    first, last = b * width, min(K, b * width + width)
    lead = first if S == 1 else first // S
    sums_of_channels(parts, shared, lead, channels_between(first, last, C, S), C, run, copies, t, T)
    begun = first_rows(dy, x, None, slope, None, b, p, t, K // lanes(dy), N // tile, across, down, per, True)
    j = first + t
    while j < last:
        c, i = channel_of(j, C, S), channel_of(j - lead * S, C, S)
        keeps, known = p == P - 1 and first_of_channel(j, C, S), known_backward(c, C, stats)
        k, scale, shift, a, h = finalize_backward(
            shared[i], shared[HALF + i], c, keeps, parts[at_h + c], known, dgamma, dbeta, count
        )  # fmt: skip
        if x is None:
            keep_column(tables, width, j - first, None, map_of_x(dy, 0.0, a, 0.0, True))
        else:
            y_scale, y_shift = signs_of(slope, c, C, stats)
            its = map_of_two(dy, None, slope, None, k, scale, shift, a, h, y_scale, y_shift)
            keep_column(tables, width, j - first, dy, its)
        j += T
    cuda.syncthreads()
    if x is None:
        map_columns(
            alone(begun), dy, None, None, None, None, dx, tables, None, b, p, t, T, N, C, S, K, tile, across, down, P
        )
    else:
        map_columns(
            turned(begun), x, dy, None, slope, None, dx, tables, None, b, p, t, T, N, C, S, K, tile, across, down, P
        )


@Kernel
def apply_columns(x, dy, other, slope, w, y, coef, signs, N, C, S, K, tile, across, down, per, P):
    """Block (b, p) with coefficients that are known."""
    b, p = cuda.gridDim.x - 1 - cuda.blockIdx.x, P - 1 - cuda.blockIdx.y
    t, T = cuda.threadIdx.x, cuda.blockDim.x
    tables, places = tables_for(x, dy, other, slope, w), places_for(w)
    begun = first_rows(x, dy, other, slope, w, b, p, t, K // lanes(x), N // tile, across, down, per, True)
    width = across * lanes(x)
    j = t
    while j < min(width, K - b * width):
        c = channel_of(b * width + j, C, S)
        keep_column(tables, width, j, dy, known_map(x, dy, other, slope, w, coef, signs, c, C))
        if w is not None:
            keep_places(w, places, j, (b * width + j) // (C * S), c, (b * width + j) % S)
        j += T
    cuda.syncthreads()
    map_columns(begun, x, dy, other, slope, w, y, tables, places, b, p, t, T, N, C, S, K, tile, across, down, P)


@Kernel
def running_columns(x, residual, slope, y, stats, gamma, beta, mean, var, N, C, S, K, tile, across, down, per, P, eps):
    """Block (b, p) with the running statistics."""
    b, p = cuda.gridDim.x - 1 - cuda.blockIdx.x, P - 1 - cuda.blockIdx.y
    t, T = cuda.threadIdx.x, cuda.blockDim.x
    tables = tables_for(x, None, residual, slope, None)
    begun = first_rows(x, None, residual, slope, None, b, p, t, K // lanes(x), N // tile, across, down, per, True)
    width = across * lanes(x)
    j = t
    while j < min(width, K - b * width):
        column = b * width + j
        first = p == 0 and first_of_channel(column, C, S)
        k, scale, shift = running_coefficients(channel_of(column, C, S), C, first, stats, gamma, beta, mean, var, eps)
        keep_column(tables, width, j, None, map_of_x(x, k, scale, shift, True))
        j += T
    cuda.syncthreads()
    map_columns(begun, x, None, residual, slope, None, y, tables, None, b, p, t, T, N, C, S, K, tile, across, down, P)
