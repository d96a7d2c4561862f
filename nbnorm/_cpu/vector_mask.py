"""Masks: which lanes of a vector count. One bit a lane; None is a mask of every lane."""

from __future__ import annotations

from llvmlite import ir
from numba import config, types
from numba.core import cgutils

from nbnorm._cpu.arrays import nothing
from nbnorm._cpu.intrinsic import intrinsic
from nbnorm._cpu.vector import LANES, Vector, first, vector
from nbnorm._floats import number

I1 = ir.IntType(1)
mask = Vector("Mask", I1)


@intrinsic
def below(typingctx, n):
    """The first n lanes."""
    return mask(types.int64), lambda ctx, builder, sig, args: first(builder, args[0], LANES)


@intrinsic
def finite(typingctx, v):
    """Neither NaN nor infinite."""

    def emit(ctx, builder, sig, args):
        kind = args[0].type
        fabs = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind]), f"llvm.fabs.v{LANES}f64")
        return builder.fcmp_ordered("<", builder.call(fabs, args), number(kind, float("inf")))

    return mask(v), emit


@intrinsic
def positive(typingctx, v):
    """Greater than 0; None of None."""
    if v is types.none:
        return nothing(types.none(v))
    return mask(v), lambda ctx, builder, sig, args: builder.fcmp_ordered(">", args[0], number(args[0].type, 0.0))


@intrinsic
def joined(typingctx, a, b):
    """Lanes of both."""
    if a is types.none and b is types.none:
        return nothing(types.none(a, b))
    if a is types.none or b is types.none:
        return mask(a, b), lambda ctx, builder, sig, args: args[a is types.none]
    return mask(a, b), lambda ctx, builder, sig, args: builder.and_(*args)


@intrinsic
def either(typingctx, a, b):
    """Lanes of one or both."""
    return mask(a, b), lambda ctx, builder, sig, args: builder.or_(*args)


@intrinsic
def kept(typingctx, m, v):
    """v in the lanes of the mask, 0 in the others whatever v is there."""
    return v(m, v), lambda ctx, builder, sig, args: builder.select(*args, number(args[1].type, 0.0))


@intrinsic
def often(typingctx, m, factor):
    """How often each lane counts: once, or `factor` times unless that is None, in the lanes of the mask."""

    def emit(ctx, builder, sig, args):
        once = number(vector.lanes, 1.0)
        return builder.select(args[0], once if factor is types.none else args[1], number(vector.lanes, 0.0))

    return vector(m, factor), emit


if config.DISABLE_JIT:
    from nbnorm._cpu.vector_python import (  # noqa: F401
        below,
        either,
        finite,
        joined,
        kept,
        often,
        positive,
    )
