"""Sums: what reduce accumulates, a tuple of vectors.

A pair (s, q) for narrow types, whose values and products leave float64 bits to spare. For float64 data four,
(s, q, s_lost, q_lost): what the additions lose is kept beside them (docs/math.md, Eq. 15). In a pass over x of which
not every value counts there is one more that counts, and for float64 data what that loses.

Each function of one vector a sum stands twice: in plain Python, to be read, and as what Numba compiles for any length.
"""

from __future__ import annotations

from numba import types
from numba.core.typing import signature
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import lower_builtin, overload

from nbnorm._channel_rows import COUNT, PRODUCT, SUM
from nbnorm._cpu.arrays import address_of
from nbnorm._cpu.vector import INLINED, LANES, first, fold, function, once, routine, smaller, vector, zeros
from nbnorm._cpu.vector_memory import columns_at_once, kind_of_columns, load_columns, load_part, masked, store
from nbnorm._floats import DOUBLE, I32, I64, number
from nbnorm._formulas import accumulate, accumulate_compensated, count_compensated, join_compensated


def terms_of(x, dy, w):
    """How many sums a pass over x, and dy or None, has, with values that count by w or None."""
    return (4 if x.itemsize == 8 else 2) * (3 if w is not None and dy is None else 2) // 2


def _terms_of(x, dy, w):
    """The same of their types."""
    return (4 if x.dtype == types.float64 else 2) * (3 if w is not types.none and dy is types.none else 2) // 2


def _in_place(plain, kind):
    """Let Numba put what this decorates where `plain` is called, of whose arguments the first three are x, dy and w,
    the others integers: an overload, a function of its own, would take longer to compile."""

    @infer_global(plain)
    class _(AbstractTemplate):
        key = plain

        def generic(self, args, kws):
            return signature(kind(*args[:3]), *args)

    def register(emit):
        @lower_builtin(plain, types.VarArg(types.Any))
        def _(ctx, builder, sig, args):
            others = [
                address_of(ctx, builder, kind, value, I64(0), DOUBLE)
                if isinstance(kind, types.Array)
                else ctx.cast(builder, value, kind, types.int64)
                for kind, value in zip(sig.args[3:], args[3:], strict=True)
            ]
            result = sig.return_type
            return ctx.make_tuple(builder, result, emit(builder, result.dtype, _terms_of(*sig.args[:3]), *others))

    return register


def _vectors(x, dy, w):
    return types.UniTuple(vector, _terms_of(x, dy, w))


def _of_columns(x, dy, w):
    return types.UniTuple(kind_of_columns(w), _terms_of(x, dy, w))


def _numbers(x, dy, w):
    return types.UniTuple(types.float64, 3)


def no_sums(x, dy, w):
    """Where sums begin."""
    return (zeros(),) * terms_of(x, dy, w)


@_in_place(no_sums, _vectors)
def _(builder, kind, terms):
    return [number(kind.lanes, 0.0)] * terms


def add(sums, v, u):
    """One more vector of values in the sums; a count stays as it is."""
    if len(sums) < 4:
        return (*accumulate(*sums[:2], v, u), *sums[2:])
    return (*accumulate_compensated(*sums[:4], v, u), *sums[4:])


@overload(add, jit_options=INLINED)
def _(sums, v, u):
    return {
        2: lambda sums, v, u: accumulate(sums[0], sums[1], v, u),
        3: lambda sums, v, u: (*accumulate(sums[0], sums[1], v, u), sums[2]),
        4: lambda sums, v, u: accumulate_compensated(sums[0], sums[1], sums[2], sums[3], v, u),
        6: lambda sums, v, u: (*accumulate_compensated(sums[0], sums[1], sums[2], sums[3], v, u), sums[4], sums[5]),
    }[len(sums)]


def add_values(sums, v, u, often):
    """One more vector of values, which count so often, where that is not known."""
    s = add(sums, v, u)
    if len(s) == 3:
        return (*s[:2], s[2] + often)
    return (*s[:4], *count_compensated(*s[4:], often)) if len(s) == 6 else s


@overload(add_values, jit_options=INLINED)
def _(sums, v, u, often):
    return {
        2: lambda sums, v, u, often: add(sums, v, u),
        3: lambda sums, v, u, often: (*add(sums[:2], v, u), sums[2] + often),
        4: lambda sums, v, u, often: add(sums, v, u),
        6: lambda sums, v, u, often: (*add(sums[:4], v, u), *count_compensated(sums[4], sums[5], often)),
    }[len(sums)]


def join(sums, others):
    """Two sums together."""
    if len(sums) < 4:
        return tuple(a + b for a, b in zip(sums, others, strict=True))
    both = join_compensated(sums[:4], others[:4])
    return both if len(sums) == 4 else (*both, *count_compensated(sums[4], sums[5] + others[5], others[4]))


@overload(join, jit_options=INLINED)
def _(sums, others):
    return {
        2: lambda sums, others: (sums[0] + others[0], sums[1] + others[1]),
        3: lambda sums, others: (sums[0] + others[0], sums[1] + others[1], sums[2] + others[2]),
        4: lambda sums, others: join_compensated(sums, others),
        6: lambda sums, others: (
            *join_compensated(sums[:4], others[:4]),
            *count_compensated(sums[4], sums[5] + others[5], others[4]),
        ),
    }[len(sums)]


def _three_numbers(sums, plus, none):
    """s, q and the count, of which what was lost is a part."""
    count = none if len(sums) % 3 else sums[2] if len(sums) == 3 else plus(*sums[4:])
    return [*sums[:2], count] if len(sums) < 4 else [plus(sums[0], sums[2]), plus(sums[1], sums[3]), count]


def totals(sums):
    """The lanes together: two numbers and the count, 0 where it is known."""
    return _three_numbers([fold(v) for v in sums], lambda a, b: a + b, 0.0)


@overload(totals, jit_options=INLINED)
def _(sums):
    return {
        2: lambda sums: (fold(sums[0]), fold(sums[1]), 0.0),
        3: lambda sums: (fold(sums[0]), fold(sums[1]), fold(sums[2])),
        4: lambda sums: (fold(sums[0]) + fold(sums[2]), fold(sums[1]) + fold(sums[3]), 0.0),
        6: lambda sums: (
            fold(sums[0]) + fold(sums[2]),
            fold(sums[1]) + fold(sums[3]),
            fold(sums[4]) + fold(sums[5]),
        ),
    }[len(sums)]


def column_totals(x, dy, w, memory, at, width):
    """The numbers of one column, which `store_sums` left in memory; as `totals` with zeros in the other lanes."""
    return _three_numbers([memory[at + r * width] for r in range(terms_of(x, dy, w))], lambda a, b: a + b, 0.0)


@_in_place(column_totals, _numbers)
def _(builder, kind, terms, memory, at, width):
    places = _rows(builder, terms, memory, at, width, DOUBLE)
    return _three_numbers([builder.load(place) for place in places], builder.fadd, DOUBLE(0.0))


def load_sums(x, dy, w, memory, at, width):
    """The sums of columns_at_once(w), which `store_sums` left in memory."""
    return tuple(load_columns(w, memory, at + r * width) for r in range(terms_of(x, dy, w)))


@_in_place(load_sums, _of_columns)
def _(builder, kind, terms, memory, at, width):
    return [builder.load(place, align=8) for place in _rows(builder, terms, memory, at, width, kind.lanes)]


def load_sums_part(x, dy, w, memory, at, width, n):
    """The same of the first n lanes, 0 in the others."""
    return tuple(load_part(memory, at + r * width, n, LANES) for r in range(terms_of(x, dy, w)))


@_in_place(load_sums_part, _vectors)
def _(builder, kind, terms, memory, at, width, n):
    lanes, mask = kind.lanes, first(builder, n, LANES)
    return [
        masked(builder, "load", lanes, lanes, [place, I32(8), mask, number(lanes, 0.0)])
        for place in _rows(builder, terms, memory, at, width, lanes)
    ]


def _rows(builder, terms, memory, at, width, kind):
    """Where they lie: a row of memory for each, `width` apart."""
    places = (builder.add(at, builder.mul(I64(r), width)) for r in range(terms))
    return [builder.bitcast(builder.gep(memory, [place]), kind.as_pointer()) for place in places]


@once
def store_sums(memory, at, width, sums):
    """A row of memory for each."""
    for r in range(len(sums)):
        store(memory, at + r * width, sums[r])


@routine
def keep_sums(dy, w, c, s, q, count, stats, sums):
    """What was found of channel c; the count only where it is not known."""
    sums[SUM, c], sums[PRODUCT, c] = s, q
    if w is not None:  # noqa: SIM102  the compiler prunes what stands under a test of None and nothing else
        if dy is None:
            stats[COUNT, c] = count


# ---- of many columns


@function
def add_sums(x, dy, w, acc, at, width):
    """acc[:] += acc[at:], the sums of `width` columns."""
    for j in range(0, width, columns_at_once(w)):
        sums = join(load_sums(x, dy, w, acc, j, width), load_sums(x, dy, w, acc, at + j, width))
        store_sums(acc, j, width, sums)


@once
def channel_totals(x, dy, w, acc, width, c, C, S, tile):
    """s, q and the count of all columns of channel c, S neighbours in each of `tile` copies."""
    sums = no_sums(x, dy, w)
    for t in range(tile):
        j, end = (t * C + c) * S, (t * C + c + 1) * S
        while j < end:
            n = smaller(LANES, end - j)
            sums = join(sums, load_sums_part(x, dy, w, acc, j, width, n))
            j += LANES
    return totals(sums)
