"""The sums of columns: lanes run along the columns of a (rows, K) matrix, several rows abreast."""

from __future__ import annotations

import numpy as np

from nbnorm._cpu.cursor import shifted
from nbnorm._cpu.plan import AHEAD
from nbnorm._cpu.rows import ROWS_OF_ONE, ROWS_OF_TWO, ask_for_rows, rows_sums, rows_sums_rest
from nbnorm._cpu.sums import channel_totals, column_totals, keep_sums, load_sums, store_sums
from nbnorm._cpu.vector import function, larger, once, smaller
from nbnorm._cpu.vector_memory import columns_at_once, load_columns


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
