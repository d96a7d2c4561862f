"""Apply: the affine map of each channel (docs/math.md, Eq. 7 and 13).

y = scale*(x - k) + shift, or with dy an array dx = a*(dy - h) + scale*(x - k) + shift. One read of each input, one
write, in float64 between them. Walked back to front: what reduce read last is still in cache.

`streaming` stores go past the caches and need whole lines of y, so runs start and end on line boundaries.
"""

from __future__ import annotations

from numba import njit, prange

from nbnorm._cpu.finalize import SCALE, SHIFT, A, H
from nbnorm._cpu.launch import Kernel
from nbnorm._cpu.plan import CHUNK, MAP_OF_ONE, MAP_OF_TWO, MAP_WIDTH
from nbnorm._cpu.reduce import chunk_bounds, share, spread
from nbnorm._cpu.vector import (
    FEW,
    LANES,
    fence,
    lanes,
    load,
    load_part,
    routine,
    store,
    store_part,
    stream,
    until_line,
)
from nbnorm._formulas import ORIGIN, affine, affine_of_two

GROUP = 65_536  # values that are walked forwards before going back


@routine
def image(x, dy, k, h, a, scale, shift, t):
    """The map of vectors x and dy (or None); coefficients are numbers, or tables read at t."""
    u = x - lanes(k, t)
    if dy is None:
        return affine(u, lanes(scale, t), lanes(shift, t))
    return affine_of_two(dy - lanes(h, t), lanes(a, t), u, lanes(scale, t), lanes(shift, t))


@routine
def run_part(x, dy, y, i, n, k, h, a, scale, shift, t):
    """y[i : i + n], n < LANES."""
    v, g = load_part(x, i, n, LANES), load_part(dy, i, n, LANES)
    store_part(y, i, n, image(v, g, k, h, a, scale, shift, t), LANES)


@routine
def run(x, dy, y, i, end, k, h, a, scale, shift, t, streaming):
    """y[i:end]; coefficients are numbers, or tables read from position t on."""
    if streaming:
        n = min(end - i, until_line(y, i))
        if n > 0:
            run_part(x, dy, y, i, n, k, h, a, scale, shift, t)
            i += n
            t += n
        while i + LANES <= end:
            stream(y, i, image(load(x, i), load(dy, i), k, h, a, scale, shift, t))
            i += LANES
            t += LANES
    else:
        while i + LANES <= end:
            store(y, i, image(load(x, i), load(dy, i), k, h, a, scale, shift, t))
            i += LANES
            t += LANES
    if i < end:
        run_part(x, dy, y, i, end - i, k, h, a, scale, shift, t)


# ---- segments


@routine
def segment(x, dy, y, c, i, end, stats, coef, streaming):
    """A run of values of channel c."""
    k, h, a, scale, shift = stats[ORIGIN, c], coef[H, c], coef[A, c], coef[SCALE, c], coef[SHIFT, c]
    few = (end - i) % LANES
    if streaming or few > FEW:
        few = 0
    run(x, dy, y, i, end - few, k, h, a, scale, shift, 0, streaming)
    if few:
        v, g = load_part(x, end - few, few, FEW), load_part(dy, end - few, few, FEW)
        store_part(y, end - few, few, image(v, g, k, h, a, scale, shift, 0), FEW)


@njit
def chunk(x, dy, y, c, t, per, piece, N, C, S, stats, coef, streaming):
    n0, n1, i0, i1 = chunk_bounds(t, per, piece, N, S)
    for n in range(n1 - 1, n0 - 1, -1):
        b = (n * C + c) * S
        segment(x, dy, y, c, b + i0, b + i1, stats, coef, streaming)


@Kernel
def apply_segments(x, dy, y, stats, coef, N, C, S, streaming, workers):
    piece = min(S, CHUNK)
    pieces = (S + piece - 1) // piece
    for w in prange(workers):
        first, last = share(w, workers, N * C * pieces)
        for j in range(last - 1, first - 1, -1):
            b, i = j // pieces, j % pieces * piece
            segment(x, dy, y, b % C, b * S + i, b * S + min(S, i + piece), stats, coef, streaming)
        if streaming:
            fence()


# ---- columns


@routine
def line_start(y, i, size, streaming):
    """The next i on a line boundary of y: where one run ends and the next begins."""
    if streaming and 0 < i < size:
        i = min(size, i + until_line(y, i))
    return min(i, size)


@njit
def columns(x, dy, y, r0, r1, j0, j1, K, size, k, h, a, scale, shift, streaming):
    """Columns j0:j1 of rows r0:r1; the tables begin at column j0.

    A group of rows at a time, from the last to the first, forwards in a group. In a group one panel of columns after
    the other: its part of the tables stays in the first-level cache, the rows in their memory pages.
    """
    group, panel = max(1, GROUP // K), MAP_OF_ONE if dy is None else MAP_OF_TWO
    while r1 > r0:
        for j in range(j0, j1, panel):
            for r in range(max(r0, r1 - group), r1):
                i = line_start(y, r * K + j, size, streaming)
                end = line_start(y, r * K + min(j1, j + panel), size, streaming)
                run(x, dy, y, i, end, k, h, a, scale, shift, i - r * K - j0, streaming)
        r1 -= group


@Kernel
def apply_columns(x, dy, y, stats, coef, tables, N, C, S, K, streaming, workers):
    """K = C * S * a number of rows; tables (workers, 5, min(K, MAP_WIDTH) + 3 * LANES) is scratch."""
    size = N * C * S
    rows, parts = (size + K - 1) // K, (K + MAP_WIDTH - 1) // MAP_WIDTH
    pieces = 1 if parts >= 4 * workers else min(rows, workers)  # tables are built once a piece
    for w in prange(workers):
        first, last = share(w, workers, parts * pieces)
        k, scale, shift, a, h = tables[w, 0], tables[w, 1], tables[w, 2], tables[w, 3], tables[w, 4]
        for task in range(last - 1, first - 1, -1):
            r0, r1 = share(task % pieces, pieces, rows)
            j = task // pieces * MAP_WIDTH
            j1 = min(K, j + MAP_WIDTH)
            n = j1 - j + 2 * LANES  # a run that ends on a line boundary, and its last vector, reach beyond j1
            spread(k, stats[ORIGIN], j, n, C, S)
            spread(scale, coef[SCALE], j, n, C, S)
            spread(shift, coef[SHIFT], j, n, C, S)
            if dy is not None:
                spread(a, coef[A], j, n, C, S)
                spread(h, coef[H], j, n, C, S)
            columns(x, dy, y, r0, r1, j, j1, K, size, k, h, a, scale, shift, streaming)
        if streaming:
            fence()
