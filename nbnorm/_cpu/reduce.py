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

from nbnorm._channel_rows import DY_ORIGIN, ORIGIN, SIGN_SCALE, SIGN_SHIFT
from nbnorm._cpu.arrays import matrix
from nbnorm._cpu.cursor import cursor, rows_of, shifted
from nbnorm._cpu.deal import NONE_DONE, even, portion
from nbnorm._cpu.launch import Kernel
from nbnorm._cpu.origins import origins
from nbnorm._cpu.plan import PANEL
from nbnorm._cpu.region import each_worker
from nbnorm._cpu.rows import ONE_ROW
from nbnorm._cpu.sums import add_sums
from nbnorm._cpu.sums_of_columns import channels_totals, column_sums
from nbnorm._cpu.sums_of_segments import add_chunks, chunk_sums, room_of_worker
from nbnorm._cpu.tables import spread
from nbnorm._cpu.vector import LANES, routine, smaller, zeros
from nbnorm._cpu.vector_memory import store, until_line

# ---- segments


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
    """sums (3, C), and when dy is None stats[ORIGIN], if `centred`, and stats[COUNT] unless w is.

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
