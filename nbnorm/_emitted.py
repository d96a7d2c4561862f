"""What both targets emit alike: typing and LLVM code as Numba's `intrinsic` wants them, for each target to make known.

A function gets the target's `types`, since numba-cuda has its own. _emitted_python.py has the same in NumPy.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from nbnorm._counted import Both, Tangent
from nbnorm._floats import DOUBLE, FLOAT, like, number, splat


def _everywhere(builder: ir.IRBuilder, value: ir.Value, kind: ir.Type) -> ir.Value:
    """A number as a vector, where `kind` is one."""
    return splat(builder, value, kind.count) if isinstance(kind, ir.VectorType) else value


def _lessened(builder: ir.IRBuilder, v: ir.Value, slope: ir.Value) -> ir.Value:
    """slope*v, and 0 for slope 0 whatever v is."""
    factor = builder.fptrunc(slope, FLOAT) if like(v.type, FLOAT) == v.type else slope
    product = builder.fmul(v, _everywhere(builder, factor, v.type))
    is_0 = builder.fcmp_ordered("==", slope, DOUBLE(0.0))
    return builder.select(_everywhere(builder, is_0, v.type), number(v.type, 0.0), product)


def activated(types: Any) -> Any:
    """Eq. 34: z where it is positive or NaN, else slope*z. Of vectors and of numbers."""

    def typed(typingctx, z, slope):
        def emit(ctx, builder, sig, args):
            at_most_0 = builder.fcmp_ordered("<=", args[0], number(args[0].type, 0.0))
            return builder.select(at_most_0, _lessened(builder, *args), args[0])

        return z(z, types.float64), emit

    return typed


def gated(types: Any) -> Any:
    """Eq. 35: g where z is positive, else slope*g."""

    def typed(typingctx, g, z, slope):
        def emit(ctx, builder, sig, args):
            positive = builder.fcmp_ordered(">", args[1], number(args[1].type, 0.0))
            return builder.select(positive, args[0], _lessened(builder, args[0], args[2]))

        return g(g, z, types.float64), emit

    return typed


# ---- what stands in the place of dy: values, or a Tangent or a Both of them


def leading(types: Any) -> Any:
    """dy itself; of a Tangent or a Both the first."""

    def typed(typingctx, dy):
        return _field(types, dy, 0) if isinstance(dy, types.BaseNamedTuple) else _itself(dy)

    return typed


def of_dy(types: Any) -> Any:
    """dy itself; of a Both its dy, of a Tangent None."""

    def typed(typingctx, dy):
        if not isinstance(dy, types.BaseNamedTuple):
            return _itself(dy)
        return _field(types, dy, {Tangent: None, Both: 0}[dy.instance_class])

    return typed


def of_ddx(types: Any) -> Any:
    """The ddx of a Tangent or a Both; else None."""

    def typed(typingctx, dy):
        return _field(types, dy, len(dy) - 1 if isinstance(dy, types.BaseNamedTuple) else None)

    return typed


def is_tangent(types: Any) -> Any:
    """Whether dy is a Tangent: a constant for LLVM."""

    def typed(typingctx, dy):
        answer = getattr(dy, "instance_class", None) is Tangent
        return types.boolean(dy), lambda ctx, builder, sig, args: ctx.get_constant(types.boolean, answer)

    return typed


def _field(types: Any, given: Any, index: int | None) -> Any:
    """Typing and code for a field of a named tuple; without an index None."""
    if index is None:
        return types.none(given), lambda ctx, builder, sig, args: ctx.get_dummy_value()
    return given.types[index](given), lambda ctx, builder, sig, args: builder.extract_value(args[0], index)


def _itself(given: Any) -> Any:
    return given(given), lambda ctx, builder, sig, args: args[0]
