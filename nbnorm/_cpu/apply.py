"""Apply: the affine map of each channel (maps.py), over segments and over columns as in reduce.py.

Walked back to front: what reduce read last is still in cache (a block of columns in the fused driver is there as a
whole).

`streaming` stores go past the caches and need whole lines of y, so runs start and end on line boundaries; others are
faster there, so rows of columns do where that costs nothing.
"""

from __future__ import annotations

from nbnorm._channel_rows import ORIGIN
from nbnorm._cpu.arrays import matrix, matrix_of_map
from nbnorm._cpu.coefficients import OF_ONE, OF_TWO
from nbnorm._cpu.cursor import cursor, rows_of, shifted
from nbnorm._cpu.deal import NONE_DONE, even, portion_from_the_end, share
from nbnorm._cpu.finalize import finalize_running
from nbnorm._cpu.launch import Kernel
from nbnorm._cpu.maps import NONE, ORDINARY, rows_run, run
from nbnorm._cpu.plan import AHEAD, FAR, MAP_OF_ONE, MAP_OF_TWO, MAP_WIDTH, PAGE
from nbnorm._cpu.region import each_worker
from nbnorm._cpu.tables import spread_map
from nbnorm._cpu.vector import LANES, larger, once, routine, smaller
from nbnorm._cpu.vector_memory import LINE, columns_at_once, fence, until_line
from nbnorm._cpu.walk import GROUP, map_segments

MANY = 256  # rows that share tables

# ---- segments


@Kernel
def apply_segments(x, dy, other, slope, w, y, stats, coef, N, C, S, streaming, workers, share_out):
    each_worker(
        map_segments, workers, share_out, x, dy, other, slope, cursor(w), y, stats[ORIGIN], coef, N, C, S, streaming
    )  # fmt: skip


@Kernel
def running_segments(x, residual, slope, y, scratch, gamma, beta, eps, stats, N, C, S, streaming, workers, share_out):
    """With the running statistics, which fill stats too, unless None. `scratch` ((4 + OF_ONE) * C) has what
    `finalize_running` needs, and behind it room for coefficients.
    """
    origins, coef = scratch, matrix_of_map(x, None, None, None, scratch, 4 * C, OF_ONE, C)  # means, which come first
    finalize_running(scratch, gamma, beta, eps, stats, coef)
    each_worker(map_segments, workers, share_out, x, None, residual, slope, None, y, origins, coef, N, C, S, streaming)


# ---- columns


@once
def line_start(i, size, edge, line):
    """The next i where a line begins: runs end and begin there. One line begins at `edge`, each has `line` values."""
    if 0 < i < size:
        i += (edge - i) & (line - 1)
    return smaller(i, size)


@once
def block(x, dy, other, slope, w, y, r0, r1, j0, j1, K, size, tables, streaming):
    """Columns j0:j1 of rows r0:r1; the tables begin at column j0, the cursor at row 0.

    A group of rows at a time, from the last to the first, forwards in a group. In a group one panel of columns after
    the other: its part of the tables stays in the first-level cache, the rows in their memory pages.
    """
    group, panel = larger(1, GROUP // (j1 - j0)), MAP_OF_ONE if dy is None else MAP_OF_TWO
    far, ahead = size > FAR, NONE
    if streaming or far:
        ahead = larger(K, AHEAD) if group > 1 else AHEAD  # the next row, or further on in this one
    # The lines of rows that lie whole pages apart share the few places of one address in a first-level cache: mapping
    # such rows abreast was slower with LANES columns at once. With fewer it is faster all the same.
    abreast = not streaming and (columns_at_once(w) < LANES or K * y.itemsize % PAGE != 0)
    edge = until_line(y, 0)
    line = LINE // y.itemsize if w is None and not abreast else 1  # a mask is that of rows
    while r1 > r0:
        r = larger(r0, r1 - group)
        for j in range(j0, j1, panel):
            stop = smaller(j1, j + panel)
            m = r
            if abreast:
                full = smaller(r1, size // K) - r  # the last row of all may be shorter
                its = shifted(w, r, 0, j)
                i, cols, t = r * K + j, stop - j, j - j0
                end = i + (full - 1) * K + cols
                rows_run(x, dy, other, slope, its, y, i, end, K, cols, tables, t, ORDINARY, far)
                m += full
            while m < r1:
                i, end = line_start(m * K + j, size, edge, line), line_start(m * K + stop, size, edge, line)
                its = shifted(w, m, 0, i - m * K)
                run(x, dy, other, slope, its, y, i, end, tables, i - m * K - j0, streaming, ahead)
                m += 1
        r1 = r


@once
def in_step(tables, y):
    """Where tables begin that lie to the lines of memory as y does: vectors of them that belong to whole lines of y are
    whole lines too. Half lines take two loads each.
    """
    return (until_line(tables, 0) - until_line(y, 0)) & (LINE // tables.itemsize - 1)


@routine
def map_columns(taken, worker, workers, x, dy, other, slope, w, y, origins, coef, tables, N, C, S, K, streaming):
    """What one worker does."""
    size = N * C * S
    wide = even(K, MAP_WIDTH)
    rows, parts = (size + K - 1) // K, (K + wide - 1) // wide
    # Tables are built for a part of a piece, so it has many rows.
    pieces = 1 if parts >= 4 * workers else smaller(rows, larger(workers, smaller(rows // MANY, size // GROUP)))
    done, first, last = portion_from_the_end(taken, NONE_DONE, worker, workers, parts * pieces)
    its_own = tables[worker]
    at = in_step(its_own, y)
    own = matrix(its_own, at, OF_ONE if dy is None else OF_TWO, smaller(K, MAP_WIDTH) + 3 * LANES)
    while first < last:
        task = last - 1
        r0, r1 = share(task // parts, pieces, rows)
        j = task % parts * wide
        j1 = smaller(K, j + wide)
        n = j1 - j + 2 * LANES  # a run that ends on a line boundary, and its last vector, reach beyond j1
        spread_map(own, dy, other, slope, origins, coef, False, j, n, C, S)
        its = rows_of(w, K // (C * S))
        block(x, dy, other, slope, its, y, r0, r1, j, j1, K, size, own, streaming)
        last -= 1
        if first == last:
            done, first, last = portion_from_the_end(taken, done, worker, workers, parts * pieces)
    if streaming:
        fence()


@Kernel
def apply_columns(x, dy, other, slope, w, y, stats, coef, tables, N, C, S, K, streaming, workers, share_out):
    """K = C * S * a number of rows; tables (workers, OF_ONE * (min(K, MAP_WIDTH) + 3 * LANES) + LANES)
    is scratch, with dy OF_TWO in the place of OF_ONE.
    """
    each_worker(
        map_columns, workers, share_out, x, dy, other, slope, cursor(w), y, stats[ORIGIN], coef, tables, N, C, S, K,
        streaming,
    )  # fmt: skip


@Kernel
def running_columns(
    x, residual, slope, y, scratch, gamma, beta, eps, stats, width, N, C, S, K, streaming, workers, share_out
):  # fmt: skip
    """The same for columns; behind those values of `scratch` are the tables, of this width."""
    origins, coef = scratch, matrix_of_map(x, None, None, None, scratch, 4 * C, OF_ONE, C)  # means, which come first
    tables = matrix_of_map(x, None, None, None, scratch, (4 + OF_ONE) * C, workers, OF_ONE * width + LANES)
    finalize_running(scratch, gamma, beta, eps, stats, coef)
    each_worker(
        map_columns, workers, share_out, x, None, residual, slope, None, y, origins, coef, tables, N, C, S, K, streaming
    )
