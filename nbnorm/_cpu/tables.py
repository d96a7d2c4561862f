"""Tables: the numbers of channels, one for each column, so that lanes which run along columns can load them; and what
maps make of coefficients (coefficients.py), which are such tables or a number or a vector for each row of them.
"""

from __future__ import annotations

from numba import config, types
from numba.core import cgutils

from nbnorm._cpu.arrays import address_of
from nbnorm._cpu.coefficients import OF_ONE, OF_TWO, ORIGIN_OF_DDX, B, H, K, own_k
from nbnorm._cpu.intrinsic import intrinsic
from nbnorm._cpu.vector import LANES, first, function, narrow, narrow_single, smaller, vector
from nbnorm._cpu.vector_memory import is_single, kind_of, lanes, load_part_as, store
from nbnorm._floats import I64, splat


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


@function
def spread_map(tables, dy, other, slope, origins, coef, filled, j, n, C, S):
    """The same of every row that the map reads. `filled` tables have, in float64, what sums read: k, h, and in the rows
    of b and o the sign of y.
    """
    of_three = dy is not None and (other is not None or slope is not None)
    for row in range(OF_ONE if dy is None else OF_TWO):
        of_sums, unread = B <= row <= K or row == H, B <= row <= ORIGIN_OF_DDX and not of_three
        if is_single(coef) or not (unread or (filled and of_sums)):
            spread(tables[row], own_k(origins, coef) if row == K else coef[row], j, n, C, S)


# ---- what maps read


def _row(ctx, builder, array_type, array, row, i, kind):
    """array[row, i], of an LLVM type, from which on so many are loaded."""
    columns = builder.extract_value(cgutils.create_struct_proxy(array_type)(ctx, builder, array).shape, 1)
    pointer = address_of(ctx, builder, array_type, array, builder.add(builder.mul(I64(row), columns), i), kind)
    return builder.load(pointer, align=array_type.dtype.bitwidth // 8)


@intrinsic(prefer_literal=True)
def lanes_of(typingctx, coef, row, i):
    """Of tables coef[row, i : i + LANES]; else that row, a vector or one number in every lane."""
    kind = kind_of(coef)

    def emit(ctx, builder, sig, args):
        if isinstance(coef, types.Array):
            return _row(ctx, builder, coef, args[0], row.literal_value, args[2], kind.lanes)
        value = builder.extract_value(args[0], row.literal_value)
        return value if coef.dtype == kind else splat(builder, value, kind.lanes.count)

    return kind(coef, row, types.int64), emit


def _rows(dy):
    return OF_ONE if dy is types.none else OF_TWO


@intrinsic
def lanes_of_columns(typingctx, dy, w, tables, i):
    """A vector for each row, tables[:, i : i + columns_at_once(w)]."""
    kind = kind_of(tables)
    kind = {vector: narrow}.get(kind, narrow_single) if w is types.none else kind
    result = types.UniTuple(kind, _rows(dy))

    def emit(ctx, builder, sig, args):
        loaded = [_row(ctx, builder, tables, args[2], row, args[3], kind.lanes) for row in range(_rows(dy))]
        return ctx.make_tuple(builder, result, loaded)

    return result(dy, w, tables, types.int64), emit


@intrinsic
def numbers_of(typingctx, dy, coef, k, c):
    """A number for each row, coef[:, c], but k[c] for that of K."""
    result = types.UniTuple(coef.dtype, _rows(dy))

    def emit(ctx, builder, sig, args):
        element = ctx.get_data_type(coef.dtype)
        loaded = [_row(ctx, builder, coef, args[1], row, args[3], element) for row in range(_rows(dy))]
        loaded[K] = builder.load(address_of(ctx, builder, k, args[2], args[3], element))
        return ctx.make_tuple(builder, result, loaded)

    return result(dy, coef, k, types.int64), emit


@intrinsic
def blended(typingctx, own, following, n):
    """A vector for each row: the number of `own` in n lanes, that of `following` in the others."""
    kind = kind_of(own)
    result = types.UniTuple(kind, own.count)

    def emit(ctx, builder, sig, args):
        width = kind.lanes.count
        its = first(builder, args[2], width)
        rows = []
        for row in range(own.count):
            numbers = (splat(builder, builder.extract_value(one, row), width) for one in args[:2])
            rows.append(builder.select(its, *numbers))
        return ctx.make_tuple(builder, result, rows)

    return result(own, own, types.int64), emit


if config.DISABLE_JIT:
    from nbnorm._cpu.vector_python import blended, lanes_of, lanes_of_columns, numbers_of  # noqa: F401
