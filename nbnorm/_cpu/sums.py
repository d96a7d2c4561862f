"""Sums: what reduce accumulates, a tuple of vectors.

A pair (s, q) for narrow types, whose values and products leave float64 bits to spare. For float64 data four,
(s, q, s_lost, q_lost): what the additions lose is kept beside them (docs/math.md, Eq. 15).

Each function stands twice: in plain Python, to be read, and as what Numba compiles for either length.
"""

from __future__ import annotations

from numba import types
from numba.extending import overload

from nbnorm._cpu.vector import INLINED, LANES, fold, routine, zeros
from nbnorm._cpu.vector_memory import load, load_part, store
from nbnorm._formulas import accumulate, accumulate_compensated, join_compensated


def no_sums(x):
    """Where sums over values of x begin."""
    return (zeros(),) * (4 if x.itemsize == 8 else 2)


@overload(no_sums, jit_options=INLINED)
def _(x):
    if x.dtype == types.float64:
        return lambda x: (zeros(), zeros(), zeros(), zeros())
    return lambda x: (zeros(), zeros())


def add(sums, v, u):
    """One more vector of values in the sums."""
    return accumulate(*sums, v, u) if len(sums) == 2 else accumulate_compensated(*sums, v, u)


@overload(add, jit_options=INLINED)
def _(sums, v, u):
    if len(sums) == 2:
        return lambda sums, v, u: accumulate(sums[0], sums[1], v, u)
    return lambda sums, v, u: accumulate_compensated(sums[0], sums[1], sums[2], sums[3], v, u)


def join(sums, others):
    """Two sums together."""
    return (sums[0] + others[0], sums[1] + others[1]) if len(sums) == 2 else join_compensated(sums, others)


@overload(join, jit_options=INLINED)
def _(sums, others):
    if len(sums) == 2:
        return lambda sums, others: (sums[0] + others[0], sums[1] + others[1])
    return lambda sums, others: join_compensated(sums, others)


def totals(sums):
    """The lanes together: two numbers."""
    s, q, *lost = (fold(v) for v in sums)
    return (s + lost[0], q + lost[1]) if lost else (s, q)


@overload(totals, jit_options=INLINED)
def _(sums):
    if len(sums) == 2:
        return lambda sums: (fold(sums[0]), fold(sums[1]))
    return lambda sums: (fold(sums[0]) + fold(sums[2]), fold(sums[1]) + fold(sums[3]))


def column_totals(x, memory, at, width):
    """The two numbers of one column, which `store_sums` left in memory; as `totals` with zeros in the other lanes."""
    s, q = memory[at], memory[at + width]
    return (s + memory[at + 2 * width], q + memory[at + 3 * width]) if x.itemsize == 8 else (s, q)


@overload(column_totals, jit_options=INLINED)
def _(x, memory, at, width):
    if x.dtype == types.float64:
        return lambda x, memory, at, width: (
            memory[at] + memory[at + 2 * width], memory[at + width] + memory[at + 3 * width]
        )  # fmt: skip
    return lambda x, memory, at, width: (memory[at], memory[at + width])


def load_sums(x, memory, at, width):
    """The sums over values of x that `store_sums` left in memory."""
    return tuple(load(memory, at + r * width) for r in range(4 if x.itemsize == 8 else 2))


@overload(load_sums, jit_options=INLINED)
def _(x, memory, at, width):
    if x.dtype == types.float64:
        return lambda x, memory, at, width: (
            load(memory, at), load(memory, at + width), load(memory, at + 2 * width), load(memory, at + 3 * width)
        )  # fmt: skip
    return lambda x, memory, at, width: (load(memory, at), load(memory, at + width))


def load_sums_part(x, memory, at, width, n):
    """The same of the first n lanes, 0 in the others."""
    return tuple(load_part(memory, at + r * width, n, LANES) for r in range(4 if x.itemsize == 8 else 2))


@overload(load_sums_part, jit_options=INLINED)
def _(x, memory, at, width, n):
    if x.dtype == types.float64:
        return lambda x, memory, at, width, n: (
            load_part(memory, at, n, LANES), load_part(memory, at + width, n, LANES),
            load_part(memory, at + 2 * width, n, LANES), load_part(memory, at + 3 * width, n, LANES)
        )  # fmt: skip
    return lambda x, memory, at, width, n: (load_part(memory, at, n, LANES), load_part(memory, at + width, n, LANES))


@routine
def store_sums(memory, at, width, sums):
    """A row of memory for each, `width` apart."""
    for r in range(len(sums)):
        store(memory, at + r * width, sums[r])


# ---- the count: a vector, and a row of memory behind the sums; None where it is known (w is None, or dy an array)


def _known(dy, w):
    return w is types.none or dy is not types.none


def no_count(dy, w):
    """Where the count begins of a pass over x, and dy or None, with values that count by w or None."""
    return None if w is None or dy is not None else zeros()


@overload(no_count, jit_options=INLINED)
def _(dy, w):
    return (lambda dy, w: None) if _known(dy, w) else (lambda dy, w: zeros())


def add_count(count, w):
    """And one more vector."""
    return None if count is None else count + w


@overload(add_count, jit_options=INLINED)
def _(count, w):
    return (lambda count, w: None) if count is types.none else (lambda count, w: count + w)


def total_count(count):
    """The lanes together; 0 of None."""
    return 0.0 if count is None else fold(count)


@overload(total_count, jit_options=INLINED)
def _(count):
    return (lambda count: 0.0) if count is types.none else (lambda count: fold(count))


@routine
def store_count(sums, memory, at, width, count):
    if count is not None:
        store(memory, at + len(sums) * width, count)


def load_count(sums, dy, w, memory, at, width):
    """The count that `store_count` left in memory behind sums like these."""
    return None if w is None or dy is not None else load(memory, at + len(sums) * width)


@overload(load_count, jit_options=INLINED)
def _(sums, dy, w, memory, at, width):
    if _known(dy, w):
        return lambda sums, dy, w, memory, at, width: None
    return lambda sums, dy, w, memory, at, width: load(memory, at + len(sums) * width)


def load_count_part(sums, dy, w, memory, at, width, n):
    """The same of the first n lanes, 0 in the others."""
    return None if w is None or dy is not None else load_part(memory, at + len(sums) * width, n, LANES)


@overload(load_count_part, jit_options=INLINED)
def _(sums, dy, w, memory, at, width, n):
    if _known(dy, w):
        return lambda sums, dy, w, memory, at, width, n: None
    return lambda sums, dy, w, memory, at, width, n: load_part(memory, at + len(sums) * width, n, LANES)


def column_count(x, dy, w, memory, at, width):
    """The count of one column; 0 where it is known."""
    return 0.0 if w is None or dy is not None else memory[at + (4 if x.itemsize == 8 else 2) * width]


@overload(column_count, jit_options=INLINED)
def _(x, dy, w, memory, at, width):
    if _known(dy, w):
        return lambda x, dy, w, memory, at, width: 0.0
    if x.dtype == types.float64:
        return lambda x, dy, w, memory, at, width: memory[at + 4 * width]
    return lambda x, dy, w, memory, at, width: memory[at + 2 * width]
