"""The sums of channels first: lanes run along the S values of one (n, c), a segment, several n abreast."""

from __future__ import annotations

from nbnorm._cpu.cursor import shifted
from nbnorm._cpu.deal import chunk_bounds
from nbnorm._cpu.halves import HALF_LANES, high_half, low_half, whole
from nbnorm._cpu.origins import signs_of
from nbnorm._cpu.plan import AHEAD
from nbnorm._cpu.rows import (
    ALL,
    ONE_ROW,
    ROWS_OF_ONE,
    ROWS_OF_TWO,
    ask_for_rows,
    rows_sums,
    rows_sums_few,
    rows_sums_part,
)
from nbnorm._cpu.sums import keep_sums, load_sums_part, no_sums, store_sums, totals
from nbnorm._cpu.vector import FEW, LANES, function, narrow, routine, smaller, vector
from nbnorm._cpu.vector_memory import lanes, until_line
from nbnorm._formulas import two_sum, with_lost

AGAIN = 512  # values of each row that the second half of the lanes still finds in a first-level cache


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
            high = lanes_sums(x, dy, slope, None, i + HALF_LANES, stop, rows, stride, ahead, k, h, scale, shift, high)
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
