"""Tables: the numbers of channels, one for each column, so that lanes which run along columns can load them."""

from __future__ import annotations

from numba.extending import overload

from nbnorm._cpu.vector import INLINED, LANES, function, smaller
from nbnorm._cpu.vector_memory import lanes, load_part_as, store


@function
def spread(table, values, j, n, C, S):
    """table[:n] = what belongs to columns j : j + n, a value of each column's channel; columns repeat for ever.

    Whole vectors are stored, so the table has LANES more places.
    """
    c, i = j // S % C, 0
    if S == 1:
        first = n if C >= LANES else smaller(n, (LANES + C - 1) // C * C)  # whole periods of at least a vector
        while i < first:
            m = smaller(smaller(first - i, C - c), LANES)
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
        while i < smaller(end, n):  # what is stored beyond `end` the next channel overwrites
            store(table, i, value)
            i += LANES
        i, end = end, end + S
        c = c + 1 if c + 1 < C else 0


def own_table(table, tables, row):
    """`table`, or where those of the map are float32 and it is not this row of them."""
    return table if tables.itemsize == 8 else tables[row]


@overload(own_table, jit_options=INLINED)
def _(table, tables, row):
    if table.dtype == tables.dtype:
        return lambda table, tables, row: table
    return lambda table, tables, row: tables[row]
