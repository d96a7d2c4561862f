"""Rows: what a step of reduce adds to the sums, a vector or a part of one from each of several rows (or segments)."""

from __future__ import annotations

import numpy as np

from nbnorm._cpu.arrays import leading, of_ddx, of_dy
from nbnorm._cpu.counted import add_counted, lanes_that_count
from nbnorm._cpu.cursor import shifted
from nbnorm._cpu.origins import let_through
from nbnorm._cpu.sums import add
from nbnorm._cpu.vector import FEW, LANES, keep, minus, narrow, routine, vector
from nbnorm._cpu.vector_mask import below
from nbnorm._cpu.vector_memory import load_as, load_part, load_part_as, prefetch

ALL = np.intp(LANES)  # not a literal, as in maps.py
# Rows (or segments) per step, for one and for two arrays. As a constant trip count each row gets a load instruction
# of its own and the CPU's prefetcher sees plain streams; docs/kernels.md has what other numbers gave.
# Of this type, and not Python's, a routine that gets them is not compiled for each number: LLVM sees it all the same.
ROWS_OF_ONE, ROWS_OF_TWO, ONE_ROW = np.intp(8), np.intp(4), np.intp(1)


@routine
def ask_for_rows(x, dy, i, rows, stride, k):
    """For what a step from i on reads. A row alone the CPU sees coming, and would be held up."""
    if rows > 1:
        for r in range(rows):
            prefetch(k, x, i + r * stride)
            prefetch(k, dy, i + r * stride)


@routine
def rows_sums(x, dy, slope, w, i, rows, stride, k, h, scale, shift, sums):
    """The sums, and `rows` vectors more, the first of which is at x[i] and at the cursor."""
    for r in range(rows):
        v, g = load_as(k, x, i + r * stride), load_as(k, dy, i + r * stride)
        u = minus(v, k)
        if slope is not None:
            g = let_through(g, u, slope, scale, shift)
        if w is None:
            sums = add(sums, u if dy is None else minus(leading(g), h), u)
        else:
            m, factor = lanes_that_count(shifted(w, r, 0, 0), v, ALL)
            sums = add_counted(sums, v, of_dy(g), of_ddx(g), u, m, factor, None, k, h)
    return sums


@routine
def rows_sums_part(x, dy, slope, w, i, rows, stride, n, k, h, scale, shift, sums):
    """The same for the first n lanes; the others add 0, whatever k and h hold there."""
    for r in range(rows):
        v, g = load_part(x, i + r * stride, n, LANES), load_part(dy, i + r * stride, n, LANES)
        if slope is not None:
            g = let_through(g, v - k, slope, scale, shift)
        if w is None:
            u = keep(v - k, n, LANES)
            sums = add(sums, u if dy is None else keep(leading(g) - h, n, LANES), u)
        else:
            m, factor = lanes_that_count(shifted(w, r, 0, 0), v, n)
            sums = add_counted(sums, v, of_dy(g), of_ddx(g), v - k, m, factor, below(n), k, h)
    return sums


@routine
def rows_sums_few(x, dy, slope, w, i, rows, stride, n, k, h, scale, shift, sums):
    """`rows_sums_part` for n <= FEW."""
    for r in range(rows):
        v, g = load_part_as(k, x, i + r * stride, n, FEW), load_part_as(k, dy, i + r * stride, n, FEW)
        if slope is not None:
            g = let_through(g, v - k, slope, scale, shift)
        if w is None:
            u = keep(v - k, n, FEW)
            sums = add(sums, u if dy is None else keep(leading(g) - h, n, FEW), u)
        else:
            m, factor = lanes_that_count(shifted(w, r, 0, 0), v, n)
            sums = add_counted(sums, v, of_dy(g), of_ddx(g), v - k, m, factor, below(n), k, h)
    return sums


@routine
def rows_sums_rest(x, dy, slope, w, i, rows, stride, n, k, h, scale, shift, sums):
    """The same for fewer columns than are summed at once."""
    if w is None:
        return rows_sums_of_few(x, dy, slope, w, i, rows, stride, n, k, h, scale, shift, sums)
    return rows_sums_part(x, dy, slope, w, i, rows, stride, n, k, h, scale, shift, sums)


rows_sums_of_few = rows_sums_part if narrow is vector else rows_sums_few
