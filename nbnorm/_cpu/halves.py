"""Halves of the lanes, for CPUs without registers of 512 bits.

Sums of segments have no tables, but two sums of 32 float64 would be 16 registers, all there are: so a run is read for
the lower half of the lanes, then again for the upper.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils

from nbnorm._cpu.intrinsic import intrinsic
from nbnorm._cpu.vector import LANES, Vector, lanes_from, vector
from nbnorm._floats import DOUBLE, I32

HALF_LANES = LANES // 2
half = Vector("Half", DOUBLE, HALF_LANES)


def _half(start):
    def typer(typingctx, values):
        several = isinstance(values, types.UniTuple)
        result = types.UniTuple(half, len(values)) if several else half

        def emit(ctx, builder, sig, args):
            vectors = cgutils.unpack_tuple(builder, args[0]) if several else args
            parts = [lanes_from(builder, one, start, HALF_LANES) for one in vectors]
            return ctx.make_tuple(builder, result, parts) if several else parts[0]

        return result(values), emit

    return intrinsic(typer)


low_half, high_half = _half(0), _half(HALF_LANES)  # of a vector, or of each in a tuple


@intrinsic
def whole(typingctx, low, high):
    """The way back, for tuples."""
    result = types.UniTuple(vector, len(low))

    def emit(ctx, builder, sig, args):
        picks = ir.Constant(ir.VectorType(I32, LANES), list(range(LANES)))
        pairs = zip(*(cgutils.unpack_tuple(builder, one) for one in args), strict=True)
        return ctx.make_tuple(builder, result, [builder.shuffle_vector(a, b, picks) for a, b in pairs])

    return result(low, high), emit
