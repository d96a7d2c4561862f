"""Reduce: the sums of v and v*u over a channel, u = x - k and v = dy - h (docs/math.md, Eq. 3 and 10).

With `dy` None (the compiler knows its type, so the test costs nothing) v is u itself and the sums give the
statistics of x; with an array they are those of the backward pass. One read of each array, front to back.

Two shapes of the same work. *Segments*: channels first, lanes run along the S values of one (n, c), several n
abreast. *Columns*: lanes run along the columns of a (rows, K) matrix, whose column j belongs to channel j // S % C.

The order of every sum follows from the shape alone: lanes, then chunks from left to right. Workers only choose
who computes a chunk, so their number cannot change a bit.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from nbnorm._cpu.launch import Kernel
from nbnorm._cpu.plan import AHEAD, PANEL
from nbnorm._cpu.sums import add, column_totals, join, load_sums, load_sums_part, no_sums, store_sums, totals
from nbnorm._cpu.vector import FEW, LANES, function, keep, minus, once, routine, zeros
from nbnorm._cpu.vector_memory import element, lanes, load, load_part, load_part_as, prefetch, store
from nbnorm._formulas import DY_ORIGIN, ORIGIN, PRODUCT, SUM, ninther, sample_index

# Rows (or segments) per step, for one and for two arrays. As a constant trip count each row gets a load instruction
# of its own and the CPU's prefetcher sees plain streams; docs/kernels.md has what other numbers gave.
# Of this type, and not Python's, a routine that gets them is not compiled for each number: LLVM sees it all the same.
ROWS_OF_ONE, ROWS_OF_TWO, ONE_ROW = np.intp(8), np.intp(4), np.intp(1)


@routine
def share(w, workers, tasks):
    """First and last task of worker w. prange counts in uint64, which would turn index sums into floats."""
    w = np.intp(w)
    return w * tasks // workers, (w + 1) * tasks // workers


@routine
def sample(x, c, part, N, C, S):
    return element(x, sample_index(c, part, N, C, S))


@routine
def origin(x, c, N, C, S):
    """k, from nine values."""
    return ninther(
        sample(x, c, np.intp(0), N, C, S), sample(x, c, np.intp(1), N, C, S), sample(x, c, np.intp(2), N, C, S),
        sample(x, c, np.intp(3), N, C, S), sample(x, c, np.intp(4), N, C, S), sample(x, c, np.intp(5), N, C, S),
        sample(x, c, np.intp(6), N, C, S), sample(x, c, np.intp(7), N, C, S), sample(x, c, np.intp(8), N, C, S),
    )  # fmt: skip


@routine
def origins(x, dy, centred, stats, sums, first, last, N, C, S):
    """The origin of x in stats or, when the sums are to be `centred`, of dy in sums, for channels first:last.

    Frozen statistics do not depend on x, so that the sum of u is not known and dy must keep its origin 0.
    """
    for c in range(first, last):
        if dy is None:
            stats[ORIGIN, np.uintp(c)] = origin(x, c, N, C, S)
        elif centred:
            sums[DY_ORIGIN, np.uintp(c)] = origin(dy, c, N, C, S)


@routine
def rows_sums(x, dy, i, rows, stride, k, h, sums):
    for r in range(rows):
        u = minus(load(x, i + r * stride), k)
        sums = add(sums, u if dy is None else minus(load(dy, i + r * stride), h), u)
    return sums


@routine
def rows_sums_part(x, dy, i, rows, stride, n, k, h, sums):
    """The same for the first n lanes; the others add 0, whatever k and h hold there."""
    for r in range(rows):
        u = keep(load_part(x, i + r * stride, n, LANES) - k, n, LANES)
        sums = add(sums, u if dy is None else keep(load_part(dy, i + r * stride, n, LANES) - h, n, LANES), u)
    return sums


@routine
def rows_sums_few(x, dy, i, rows, stride, n, k, h, sums):
    """`rows_sums_part` for n <= FEW."""
    for r in range(rows):
        u = keep(load_part(x, i + r * stride, n, FEW) - k, n, FEW)
        sums = add(sums, u if dy is None else keep(load_part(dy, i + r * stride, n, FEW) - h, n, FEW), u)
    return sums


# ---- segments


@routine
def span_sums(x, dy, i, end, rows, stride, k, h, sums):
    while i + LANES <= end:
        sums = rows_sums(x, dy, i, rows, stride, k, h, sums)
        i += LANES
    if i + FEW < end:
        sums = rows_sums_part(x, dy, i, rows, stride, end - i, k, h, sums)
    elif i < end:
        sums = rows_sums_few(x, dy, i, rows, stride, end - i, k, h, sums)
    return sums


@routine
def chunk_bounds(t, per, piece, N, S):
    """Segments n0:n1 and values i0:i1 of each that make up chunk t of a channel."""
    pieces = (S + piece - 1) // piece
    n0, i0 = t // pieces * per, t % pieces * piece
    return n0, min(N, n0 + per), i0, min(S, i0 + piece)


@function
def chunk_sums(x, dy, c, t, per, piece, N, C, S, k, h):
    n, n1, i0, i1 = chunk_bounds(t, per, piece, N, S)
    rows = ROWS_OF_ONE if dy is None else ROWS_OF_TWO
    kv, hv, sums = lanes(k, 0), lanes(h, 0), no_sums(x)
    while n < n1:
        b = (n * C + c) * S
        if n + rows <= n1:
            sums = span_sums(x, dy, b + i0, b + i1, rows, C * S, kv, hv, sums)
            n += rows
        else:
            sums = span_sums(x, dy, b + i0, b + i1, ONE_ROW, C * S, kv, hv, sums)
            n += 1
    return totals(sums)


@Kernel
def reduce_segments(x, dy, centred, stats, sums, parts, N, C, S, per, piece, chunks, workers):
    """sums (3, C), and stats[ORIGIN] when dy is None; parts (C * chunks, 2) is scratch."""
    origins(x, dy, centred, stats, sums, 0, C, N, C, S)
    for w in prange(workers):
        first, last = share(w, workers, C * chunks)
        for j in range(first, last):
            c, k, h = j // chunks, stats[ORIGIN, j // chunks], sums[DY_ORIGIN, j // chunks]
            parts[j, 0], parts[j, 1] = chunk_sums(x, dy, c, j % chunks, per, piece, N, C, S, k, h)
    for c in range(C):
        s, q = 0.0, 0.0
        for j in range(c * chunks, (c + 1) * chunks):
            s += parts[j, 0]
            q += parts[j, 1]
        sums[SUM, c], sums[PRODUCT, c] = s, q


# ---- columns


@function
def spread(table, values, j, n, C, S):
    """table[:n] = what belongs to columns j : j + n, a value of each column's channel; columns repeat for ever.

    Whole vectors are stored, so the table has LANES more places.
    """
    c, i = j // S % C, 0
    if S == 1:
        first = n if C >= LANES else min(n, (LANES + C - 1) // C * C)  # whole periods of at least a vector
        while i < first:
            m = min(first - i, C - c, LANES)
            store(table, i, load_part_as(values, values, c, m, LANES))
            i += m
            c = c + m if c + m < C else 0
        while i < n:
            store(table, i, lanes(table, i - first))
            i += LANES
        return
    end = S - j % S  # of this channel's columns, counted from j
    while i < n:
        value = lanes(values[c], 0)
        while i < min(end, n):  # what is stored beyond `end` the next channel overwrites
            store(table, i, value)
            i += LANES
        i, end = end, end + S
        c = c + 1 if c + 1 < C else 0


@function
def column_sums(x, dy, i, rows, stride, cols, k, h, acc, at, width):
    """Add `rows` rows of `cols` columns from x[i] into the sums at acc[at:]; k and h have the columns' origins."""
    step = ROWS_OF_ONE if dy is None else ROWS_OF_TWO
    ahead = max(step * stride, AHEAD)
    for r in range(0, rows, step):
        start, n = i + r * stride, min(step, rows - r)
        j = 0
        while j + LANES <= cols:
            kv, hv, sums = load(k, j), load(h, j), load_sums(x, acc, at + j, width)
            if n == step:
                for q in range(step):
                    prefetch(x, start + j + q * stride + ahead)
                    prefetch(dy, start + j + q * stride + ahead)
                sums = rows_sums(x, dy, start + j, step, stride, kv, hv, sums)
            else:
                sums = rows_sums(x, dy, start + j, n, stride, kv, hv, sums)
            store_sums(acc, at + j, width, sums)
            j += LANES
        if j < cols:
            kv, hv, sums = load(k, j), load(h, j), load_sums(x, acc, at + j, width)
            sums = rows_sums_part(x, dy, start + j, n, stride, cols - j, kv, hv, sums)
            store_sums(acc, at + j, width, sums)


@function
def add_sums(x, acc, at, width):
    """acc[:] += acc[at:], the sums of `width` columns."""
    for j in range(0, width, LANES):
        store_sums(acc, j, width, join(load_sums(x, acc, j, width), load_sums(x, acc, at + j, width)))


@routine
def channel_totals(x, acc, width, c, C, S, tile):
    """Two numbers: the sums of the columns of channel c, S neighbours in each of `tile` copies, together."""
    sums = no_sums(x)
    for t in range(tile):
        j, end = (t * C + c) * S, (t * C + c + 1) * S
        while j < end:
            sums = join(sums, load_sums_part(x, acc, j, width, min(LANES, end - j)))
            j += LANES
    return totals(sums)


@once
def channels_totals(x, acc, width, first, last, S, tile, sums):
    """The sums of channels first:last, whose columns begin at acc[0]."""
    C = last - first
    if S * tile == 1:
        for c in range(C):
            at = np.uintp(first + c)  # for an index that may be negative LLVM would take channel by channel
            sums[SUM, at], sums[PRODUCT, at] = column_totals(x, acc, c, width)
    else:
        for c in range(C):
            sums[SUM, first + c], sums[PRODUCT, first + c] = channel_totals(x, acc, width, c, C, S, tile)


@Kernel
def reduce_columns(x, dy, centred, stats, sums, acc, tables, N, C, S, tile, block, blocks, terms, width, workers):
    """sums (3, C), and stats[ORIGIN] when dy is None.

    acc (blocks * terms * width) and tables (workers, 2, PANEL + LANES) are scratch; terms is the length of the sums.
    """
    K = C * S * tile
    rows, rest = N // tile, N % tile * C * S
    origins(x, dy, centred, stats, sums, 0, C, N, C, S)
    for w in prange(workers):
        first, last = share(w, workers, (width + PANEL - 1) // PANEL * blocks)
        k, h, filled = tables[w, 0], tables[w, 1], -1
        for task in range(first, last):
            panel, b = task // blocks, task % blocks
            j = panel * PANEL
            n, cols = min(block, rows - b * block), min(PANEL, K - j)
            if filled != panel:
                spread(k, stats[ORIGIN], j, cols, C, S)
                if dy is not None:
                    spread(h, sums[DY_ORIGIN], j, cols, C, S)
                filled = panel
            at = b * terms * width + j
            for r in range(terms):
                for i in range(at + r * width, at + r * width + cols, LANES):
                    store(acc, i, zeros())
            column_sums(x, dy, b * block * K + j, n, K, cols, k, h, acc, at, width)
            if rest > j and b == blocks - 1:
                column_sums(x, dy, rows * K + j, ONE_ROW, K, min(cols, rest - j), k, h, acc, at, width)
    for b in range(1, blocks):
        add_sums(x, acc, b * terms * width, width)
    channels_totals(x, acc, width, 0, C, S, tile, sums)
