"""Reduce: the sums of v and v*u over a channel, u = x - k and v = dy - h (docs/math.md, Eq. 3 and 10).

With `dy` None (the compiler knows its type, so the test costs nothing) v is u itself and the sums give the
statistics of x; with an array they are those of the backward pass. One read of each array, front to back.

Two shapes of the same work. *Segments*: channels first, lanes run along the S values of one (n, c), several n
abreast, and on into the next c of a block. *Columns*: lanes run along the columns of a (rows, K) matrix, whose column
j belongs to channel j // S % C.

The order of every sum follows from the shape alone: lanes, then chunks from left to right. Workers only choose
who computes a chunk, so their number cannot change a bit.
"""

from __future__ import annotations

import numpy as np

from nbnorm._cpu.arrays import matrix
from nbnorm._cpu.cursor import cursor, rows_of, shifted
from nbnorm._cpu.deal import NONE_DONE, chunk_bounds, even, portion
from nbnorm._cpu.launch import Kernel
from nbnorm._cpu.origins import origins, signs_of
from nbnorm._cpu.plan import AHEAD, PANEL
from nbnorm._cpu.region import each_worker
from nbnorm._cpu.rows import ALL, rows_sums, rows_sums_few, rows_sums_part, rows_sums_rest
from nbnorm._cpu.sums import (
    add_sums,
    channel_totals,
    column_totals,
    high_half,
    load_sums,
    load_sums_part,
    low_half,
    no_sums,
    store_sums,
    totals,
    whole,
)
from nbnorm._cpu.tables import spread
from nbnorm._cpu.vector import (
    FEW,
    HALF,
    LANES,
    function,
    larger,
    narrow,
    once,
    routine,
    smaller,
    vector,
    zeros,
)
from nbnorm._cpu.vector_memory import (
    columns_at_once,
    lanes,
    load_columns,
    prefetch,
    store,
    until_line,
)
from nbnorm._formulas import COUNT, DY_ORIGIN, ORIGIN, PRODUCT, SIGN_SCALE, SIGN_SHIFT, SUM, two_sum, with_lost

# Rows (or segments) per step, for one and for two arrays. As a constant trip count each row gets a load instruction
# of its own and the CPU's prefetcher sees plain streams; docs/kernels.md has what other numbers gave.
# Of this type, and not Python's, a routine that gets them is not compiled for each number: LLVM sees it all the same.
ROWS_OF_ONE, ROWS_OF_TWO, ONE_ROW = np.intp(8), np.intp(4), np.intp(1)
AGAIN = 512  # values of each row that the second half of the lanes still finds in a first-level cache


@routine
def keep_sums(dy, w, c, s, q, count, stats, sums):
    """What was found of channel c; the count only where it is not known."""
    sums[SUM, c], sums[PRODUCT, c] = s, q
    if w is not None:  # noqa: SIM102  the compiler prunes what stands under a test of None and nothing else
        if dy is None:
            stats[COUNT, c] = count


@routine
def ask_for_rows(x, dy, i, rows, stride, k):
    """For what a step from i on reads. A row alone the CPU sees coming, and would be held up."""
    if rows > 1:
        for r in range(rows):
            prefetch(k, x, i + r * stride)
            prefetch(k, dy, i + r * stride)


# ---- segments


@routine
def lanes_sums(x, dy, slope, w, i, end, rows, stride, ahead, k, h, scale, shift, sums):
    """Of every LANES values from i on those that the sums have lanes for."""
    while i < end:
        ask_for_rows(x, dy, i + ahead, rows, stride, k)
        sums = rows_sums(x, dy, slope, w, i, rows, stride, k, h, scale, shift, sums)
        i += LANES
        w = shifted(w, 0, 0, LANES)
    return sums


@routine
def halves_sums(x, dy, slope, w, i, end, rows, stride, ahead, k, h, scale, shift, sums):
    """The same, one half of the lanes after the other."""
    if w is None:
        k, h, scale, shift = low_half(k), low_half(h), low_half(scale), low_half(shift)
        low, high = low_half(sums), high_half(sums)
        while i < end:
            stop = smaller(end, i + AGAIN)
            low = lanes_sums(x, dy, slope, None, i, stop, rows, stride, ahead, k, h, scale, shift, low)
            high = lanes_sums(x, dy, slope, None, i + HALF, stop, rows, stride, ahead, k, h, scale, shift, high)
            i = stop
        return whole(low, high)
    return lanes_sums(x, dy, slope, w, i, end, rows, stride, ahead, k, h, scale, shift, sums)


whole_sums = lanes_sums if narrow is vector else halves_sums


@routine
def span_sums(x, dy, slope, w, i, end, rows, stride, ahead, k, h, scale, shift, sums):
    whole_vectors = (end - i) // LANES * LANES
    sums = whole_sums(x, dy, slope, w, i, i + whole_vectors, rows, stride, ahead, k, h, scale, shift, sums)
    i += whole_vectors
    w = shifted(w, 0, 0, whole_vectors)
    if i + FEW < end:
        sums = rows_sums_part(x, dy, slope, w, i, rows, stride, end - i, k, h, scale, shift, sums)
    elif i < end:
        sums = rows_sums_few(x, dy, slope, w, i, rows, stride, end - i, k, h, scale, shift, sums)
    return sums


@function
def chunk_sums(x, dy, slope, w, first, last, t, per, piece, chunks, N, C, S, k, h, stats, acc, parts):
    """parts[c * chunks + t] = s, q and the count, 0 where it is known, of chunk t of the channels first:last, whose
    origins k and h have. Their segments lie one behind the other, and are read so: channel by channel, short ones would
    begin anew too often for the CPU to see them coming. Meanwhile acc has the sums of each; a channel alone needs none.
    """
    n, n1, i0, i1 = chunk_bounds(t, per, piece, N, S)
    rows, width = ROWS_OF_ONE if dy is None else ROWS_OF_TWO, (last - first) * LANES
    ahead = smaller(S, AHEAD)  # behind a short segment lies that of the next channel
    sums, alone = no_sums(x, dy, w), last - first == 1
    if not alone:
        for at in range(0, width, LANES):
            store_sums(acc, at, width, sums)
    while n < n1:
        several = n + rows <= n1
        for c in range(first, last):
            b, its, at = (n * C + c) * S, shifted(w, n, c, i0), (c - first) * LANES
            scale, shift = signs_of(slope, stats, c)
            kv, hv, scale_v, shift_v = lanes(k[c], 0), lanes(h[c], 0), lanes(scale, 0), lanes(shift, 0)
            if not alone:
                sums = load_sums_part(x, dy, w, acc, at, width, ALL)
            if several:
                sums = span_sums(x, dy, slope, its, b + i0, b + i1, rows, C * S, ahead, kv, hv, scale_v, shift_v, sums)
            else:
                sums = span_sums(
                    x, dy, slope, its, b + i0, b + i1, ONE_ROW, C * S, ahead, kv, hv, scale_v, shift_v, sums
                )  # fmt: skip
            if not alone:
                store_sums(acc, at, width, sums)
        n += rows if several else 1
    for c in range(first, last):
        j = c * chunks + t
        if not alone:
            sums = load_sums_part(x, dy, w, acc, (c - first) * LANES, width, ALL)
        parts[j, 0], parts[j, 1], parts[j, 2] = totals(sums)


@routine
def total_of_chunks(parts, c, chunks, i):
    """Number i of the chunks of channel c together, from left to right."""
    total, lost = 0.0, 0.0
    for j in range(c * chunks, (c + 1) * chunks):
        total, error = two_sum(total, parts[j, i])
        lost += error
    return with_lost(total, lost)


@routine
def add_chunks(dy, w, parts, first, last, chunks, stats, sums):
    """The sums of channels first:last, from those of their chunks."""
    for c in range(first, last):
        s, q = total_of_chunks(parts, c, chunks, 0), total_of_chunks(parts, c, chunks, 1)
        keep_sums(dy, w, c, s, q, total_of_chunks(parts, c, chunks, 2), stats, sums)


@routine
def room_of_worker(scratch, at, worker, room):
    """What lies behind scratch[:at] for one worker, from where a line begins."""
    return scratch[at + until_line(scratch, at) + worker * room :]


@routine
def sum_segments(
    taken, worker, workers, x, dy, slope, w, stats, sums, scratch, room, N, C, S, per, piece, chunks, channels
):  # fmt: skip
    """What one worker does."""
    parts, acc = matrix(scratch, 0, C * chunks, 3), room_of_worker(scratch, 3 * C * chunks, worker, room)
    its, k, h, blocks = cursor(w), stats[ORIGIN], sums[DY_ORIGIN], (C + channels - 1) // channels
    done, j, last = portion(taken, NONE_DONE, worker, workers, blocks * chunks)
    while j < last:
        c, t = j // chunks * channels, j % chunks
        c1 = smaller(C, c + channels)
        chunk_sums(x, dy, slope, its, c, c1, t, per, piece, chunks, N, C, S, k, h, stats, acc, parts)
        j += 1
        if j == last:
            done, j, last = portion(taken, done, worker, workers, blocks * chunks)


@Kernel
def reduce_segments(
    x, dy, slope, w, centred, stats, sums, scratch, room, N, C, S, per, piece, chunks, channels, workers, share_out
):  # fmt: skip
    """sums (3, C), and when dy is None stats[ORIGIN], if `centred`, and stats[COUNT] unless w is; scratch is as
    `scratch_of_segments` makes it.
    """
    origins(x, dy, slope, cursor(w), centred, stats, sums, 0, C, N, C, S)
    each_worker(
        sum_segments, workers, share_out, x, dy, slope, w, stats, sums, scratch, room, N, C, S, per, piece, chunks,
        channels,
    )  # fmt: skip
    add_chunks(dy, w, matrix(scratch, 0, C * chunks, 3), 0, C, chunks, stats, sums)


# ---- columns


@function
def column_sums(x, dy, slope, w, i, rows, stride, cols, k, h, scale, shift, acc, at, width):
    """Add `rows` rows of `cols` columns from x[i] into the sums at acc[at:]; k and h have the columns' origins,
    scale and shift, where there is a slope, those of y.

    For the cursor a row is a sample.
    """
    step = ROWS_OF_ONE if dy is None else ROWS_OF_TWO
    ahead = larger(step * stride, AHEAD)
    for r in range(0, rows, step):
        start, n = i + r * stride, smaller(step, rows - r)
        j = 0
        while j + columns_at_once(w) <= cols:
            kv, hv, its = load_columns(w, k, j), load_columns(w, h, j), shifted(w, r, 0, j)
            of_scale, of_shift, sums = kv, hv, load_sums(x, dy, w, acc, at + j, width)
            if slope is not None:
                of_scale, of_shift = load_columns(w, scale, j), load_columns(w, shift, j)
            if n == step:
                ask_for_rows(x, dy, start + j + ahead, step, stride, kv)
                sums = rows_sums(x, dy, slope, its, start + j, step, stride, kv, hv, of_scale, of_shift, sums)
            else:
                sums = rows_sums(x, dy, slope, its, start + j, n, stride, kv, hv, of_scale, of_shift, sums)
            store_sums(acc, at + j, width, sums)
            j += columns_at_once(w)
        if j < cols:
            kv, hv, its = load_columns(w, k, j), load_columns(w, h, j), shifted(w, r, 0, j)
            of_scale, of_shift, sums = kv, hv, load_sums(x, dy, w, acc, at + j, width)
            if slope is not None:
                of_scale, of_shift = load_columns(w, scale, j), load_columns(w, shift, j)
            sums = rows_sums_rest(
                x, dy, slope, its, start + j, n, stride, cols - j, kv, hv, of_scale, of_shift, sums
            )  # fmt: skip
            store_sums(acc, at + j, width, sums)


@once
def channels_totals(x, dy, w, acc, width, first, last, S, tile, stats, sums):
    """The sums of channels first:last, whose columns begin at acc[0], and their counts where they are not known."""
    C = last - first
    if S * tile == 1:
        for c in range(C):
            at = np.uintp(first + c)  # for an index that may be negative LLVM would take channel by channel
            s, q, count = column_totals(x, dy, w, acc, c, width)
            keep_sums(dy, w, at, s, q, count, stats, sums)
    else:
        for c in range(C):
            s, q, count = channel_totals(x, dy, w, acc, width, c, C, S, tile)
            keep_sums(dy, w, first + c, s, q, count, stats, sums)


@routine
def sum_columns(
    taken, worker, workers, x, dy, slope, w, stats, sums, acc, tables, N, C, S, tile, block, blocks, terms, width
):  # fmt: skip
    """What one worker does."""
    K = C * S * tile
    rows, rest = N // tile, N % tile * C * S
    wide = even(width, PANEL)
    tasks = (width + wide - 1) // wide * blocks
    numbers = 2 if slope is None else 4
    its = rows_of(cursor(w), tile)
    k, h, filled = tables[worker * numbers], tables[worker * numbers + 1], -1
    scale, shift = k, h
    if slope is not None:
        scale, shift = tables[worker * numbers + 2], tables[worker * numbers + 3]
    done, first, last = portion(taken, NONE_DONE, worker, workers, tasks)
    while first < last:
        panel, b = first // blocks, first % blocks
        j = panel * wide
        n, cols = smaller(block, rows - b * block), smaller(wide, K - j)
        if filled != panel:
            spread(k, stats[ORIGIN], j, cols, C, S)
            if dy is not None:
                spread(h, sums[DY_ORIGIN], j, cols, C, S)
            if slope is not None:
                spread(scale, stats[SIGN_SCALE], j, cols, C, S)
                spread(shift, stats[SIGN_SHIFT], j, cols, C, S)
            filled = panel
        at = b * terms * width + j
        for r in range(terms):
            for i in range(at + r * width, at + r * width + cols, LANES):
                store(acc, i, zeros())
        of_block, of_rest = shifted(its, b * block, 0, j), shifted(its, rows, 0, j)
        column_sums(x, dy, slope, of_block, b * block * K + j, n, K, cols, k, h, scale, shift, acc, at, width)
        if rest > j and b == blocks - 1:
            i, n = rows * K + j, smaller(cols, rest - j)
            column_sums(x, dy, slope, of_rest, i, ONE_ROW, K, n, k, h, scale, shift, acc, at, width)
        first += 1
        if first == last:
            done, first, last = portion(taken, done, worker, workers, tasks)


@Kernel
def reduce_columns(
    x, dy, slope, w, centred, stats, sums, scratch, N, C, S, tile, block, blocks, terms, width, workers, share_out
):  # fmt: skip
    """sums (3, C), and when dy is None stats[ORIGIN], and stats[COUNT] unless w is.

    scratch has, 7 numbers later at most, where a line begins, sums and counts (blocks, terms, width) and tables
    (workers, 2, or with a slope 4, PANEL + LANES).
    """
    origins(x, dy, slope, cursor(w), centred, stats, sums, 0, C, N, C, S)
    acc, numbers = scratch[until_line(scratch, 0) :], 2 if slope is None else 4
    tables = matrix(acc, blocks * terms * width, workers * numbers, PANEL + LANES)
    each_worker(
        sum_columns, workers, share_out, x, dy, slope, w, stats, sums, acc, tables, N, C, S, tile, block, blocks, terms,
        width,
    )  # fmt: skip
    for b in range(1, blocks):
        add_sums(x, dy, w, acc, b * terms * width, width)
    channels_totals(x, dy, w, acc, width, 0, C, S, tile, stats, sums)
