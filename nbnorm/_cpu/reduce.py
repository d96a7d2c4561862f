"""Reduce: the sums of g and g*u over a channel, u = x - k (docs/math.md, Eq. 3 and 10).

With `dy` None (the compiler knows its type, so the test costs nothing) g is u itself and the sums give the
statistics of x; with an array they are those of the backward pass. One read of each array, front to back.

Two shapes of the same work. *Segments*: channels first, lanes run along the S values of one (n, c), several n
abreast. *Columns*: lanes run along the columns of a (rows, K) matrix, whose column j belongs to channel j // S % C.

The order of every sum follows from the shape alone: lanes, then chunks from left to right. Workers only choose
who computes a chunk, so their number cannot change a bit.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from nbnorm._cpu.launch import Kernel
from nbnorm._cpu.plan import PANEL
from nbnorm._cpu.vector import FEW, LANES, element, fold, keep, lanes, load, load_part, routine, store, zeros
from nbnorm._formulas import ORIGIN, accumulate

# Rows (or segments) per step, for one and for two arrays. As a constant trip count each row gets a load instruction
# of its own and the CPU's prefetcher sees plain streams; docs/kernels.md has what other numbers gave.
ROWS_OF_ONE, ROWS_OF_TWO = 8, 4


@routine
def share(w, workers, tasks):
    """First and last task of worker w. prange counts in uint64, which would turn index sums into floats."""
    w = np.intp(w)
    return w * tasks // workers, (w + 1) * tasks // workers


@routine
def origin(x, c, N, C, S):
    """k, Eq. 2: the median of three values, so that x - k is exact and one outlier cannot be k."""
    first = element(x, c * S)
    middle = element(x, ((N // 2) * C + c) * S + S // 2)
    last = element(x, ((N - 1) * C + c) * S + S - 1)
    return max(min(first, middle), min(max(first, middle), last))


@routine
def rows_sums(x, dy, i, rows, stride, k, s, q):
    for r in range(rows):
        u = load(x, i + r * stride) - k
        g = u if dy is None else load(dy, i + r * stride)
        s, q = accumulate(s, q, g, u)
    return s, q


@routine
def rows_sums_part(x, dy, i, rows, stride, n, k, s, q):
    """The same for the first n lanes; the others add 0, whatever k holds there."""
    for r in range(rows):
        u = keep(load_part(x, i + r * stride, n, LANES) - k, n, LANES)
        g = u if dy is None else load_part(dy, i + r * stride, n, LANES)
        s, q = accumulate(s, q, g, u)
    return s, q


@routine
def rows_sums_few(x, dy, i, rows, stride, n, k, s, q):
    """`rows_sums_part` for n <= FEW."""
    for r in range(rows):
        u = keep(load_part(x, i + r * stride, n, FEW) - k, n, FEW)
        g = u if dy is None else load_part(dy, i + r * stride, n, FEW)
        s, q = accumulate(s, q, g, u)
    return s, q


# ---- segments


@routine
def span_sums(x, dy, i, end, rows, stride, k, s, q):
    while i + LANES <= end:
        s, q = rows_sums(x, dy, i, rows, stride, k, s, q)
        i += LANES
    if i + FEW < end:
        s, q = rows_sums_part(x, dy, i, rows, stride, end - i, k, s, q)
    elif i < end:
        s, q = rows_sums_few(x, dy, i, rows, stride, end - i, k, s, q)
    return s, q


@routine
def chunk_bounds(t, per, piece, N, S):
    """Segments n0:n1 and values i0:i1 of each that make up chunk t of a channel."""
    pieces = (S + piece - 1) // piece
    n0, i0 = t // pieces * per, t % pieces * piece
    return n0, min(N, n0 + per), i0, min(S, i0 + piece)


@njit
def chunk_sums(x, dy, c, t, per, piece, N, C, S, k):
    n, n1, i0, i1 = chunk_bounds(t, per, piece, N, S)
    rows = ROWS_OF_ONE if dy is None else ROWS_OF_TWO
    kv, s, q = lanes(k, 0), zeros(), zeros()
    while n < n1:
        b = (n * C + c) * S
        if n + rows <= n1:
            s, q = span_sums(x, dy, b + i0, b + i1, rows, C * S, kv, s, q)
            n += rows
        else:
            s, q = span_sums(x, dy, b + i0, b + i1, 1, C * S, kv, s, q)
            n += 1
    return fold(s), fold(q)


@Kernel
def reduce_segments(x, dy, stats, sums, parts, N, C, S, per, piece, chunks, workers):
    """sums (2, C), and stats[ORIGIN] when dy is None; parts (C * chunks, 2) is scratch."""
    if dy is None:
        for c in range(C):
            stats[ORIGIN, c] = origin(x, c, N, C, S)
    for w in prange(workers):
        first, last = share(w, workers, C * chunks)
        for j in range(first, last):
            c = j // chunks
            parts[j, 0], parts[j, 1] = chunk_sums(x, dy, c, j % chunks, per, piece, N, C, S, stats[ORIGIN, c])
    for c in range(C):
        s, q = 0.0, 0.0
        for j in range(c * chunks, (c + 1) * chunks):
            s += parts[j, 0]
            q += parts[j, 1]
        sums[0, c], sums[1, c] = s, q


# ---- columns


@routine
def spread(table, values, j, n, C, S):
    """table[:n] = what belongs to columns j : j + n, a value of each column's channel; columns repeat for ever.

    Whole vectors are stored, so the table has LANES more places.
    """
    c, i = j // S % C, 0
    if S == 1:
        for i in range(n):  # a slice assignment would do, and compile for a second longer
            table[i] = values[c]
            c = c + 1 if c + 1 < C else 0
        return
    end = S - j % S  # of this channel's columns, counted from j
    while i < n:
        value = lanes(values[c], 0)
        while i < min(end, n):  # what is stored beyond `end` the next channel overwrites
            store(table, i, value)
            i += LANES
        i, end = end, end + S
        c = c + 1 if c + 1 < C else 0


@njit
def column_sums(x, dy, i, rows, stride, cols, k, at, acc, a, b):
    """Add `rows` rows of `cols` columns from x[i] into acc[a:] and acc[b:]; k[at:] are the columns' origins."""
    step = ROWS_OF_ONE if dy is None else ROWS_OF_TWO
    for r in range(0, rows, step):
        start, n = i + r * stride, min(step, rows - r)
        j = 0
        while j + LANES <= cols:
            kv, s, q = load(k, at + j), load(acc, a + j), load(acc, b + j)
            if n == step:
                s, q = rows_sums(x, dy, start + j, step, stride, kv, s, q)
            else:
                s, q = rows_sums(x, dy, start + j, n, stride, kv, s, q)
            store(acc, a + j, s)
            store(acc, b + j, q)
            j += LANES
        if j < cols:
            kv, s, q = load(k, at + j), load(acc, a + j), load(acc, b + j)
            s, q = rows_sums_part(x, dy, start + j, n, stride, cols - j, kv, s, q)
            store(acc, a + j, s)
            store(acc, b + j, q)


@njit
def add_vectors(acc, to, start, n):
    """acc[to : to + n] += acc[start : start + n], whole vectors."""
    for j in range(0, n, LANES):
        store(acc, to + j, load(acc, to + j) + load(acc, start + j))


@routine
def channel_total(acc, a, c, C, S, tile):
    """Columns of channel c: S neighbours in each of `tile` copies."""
    total = 0.0
    for t in range(tile):
        for j in range(a + (t * C + c) * S, a + (t * C + c + 1) * S):
            total += acc[j]
    return total


@Kernel
def reduce_columns(x, dy, stats, sums, acc, tables, N, C, S, tile, block, blocks, width, workers):
    """sums (2, C), and stats[ORIGIN] when dy is None.

    acc (blocks * 2 * width) and tables (workers, PANEL + LANES) are scratch.
    """
    K = C * S * tile
    rows, rest = N // tile, N % tile * C * S
    if dy is None:
        for c in range(C):
            stats[ORIGIN, c] = origin(x, c, N, C, S)
    for w in prange(workers):
        first, last = share(w, workers, (width + PANEL - 1) // PANEL * blocks)
        table, filled = tables[w], -1
        for task in range(first, last):
            panel, b = task // blocks, task % blocks
            j = panel * PANEL
            n, cols = min(block, rows - b * block), min(PANEL, K - j)
            if filled != panel:
                spread(table, stats[ORIGIN], j, cols, C, S)
                filled = panel
            a = b * 2 * width + j
            acc[a : a + cols] = 0.0
            acc[a + width : a + width + cols] = 0.0
            column_sums(x, dy, b * block * K + j, n, K, cols, table, 0, acc, a, a + width)
            if rest > j and b == blocks - 1:
                column_sums(x, dy, rows * K + j, 1, K, min(cols, rest - j), table, 0, acc, a, a + width)
    for b in range(1, blocks):
        add_vectors(acc, 0, b * 2 * width, 2 * width)
    for c in range(C):
        sums[0, c] = channel_total(acc, 0, c, C, S, tile)
        sums[1, c] = channel_total(acc, width, c, C, S, tile)
