"""Maps in float32 on a GPU: which they are, their coefficients, and what they do otherwise (Eq. 19 and 42)."""

from __future__ import annotations

from llvmlite import ir
from numba import float32, float64

from nbnorm._cuda.coefficients import OF_ONE, OF_TWO
from nbnorm._cuda.intrinsics import intrinsic, overload
from nbnorm._cuda.intrinsics_memory import number_of
from nbnorm._cuda.launch import cuda, types
from nbnorm._cuda.plan import TABLES
from nbnorm._floats import DOUBLE, FLOAT, call_fma
from nbnorm._formulas import affine, fma
from nbnorm._single_map import affine_in_single
from nbnorm._traced import Traced, traced, value_of


def _leading_digits(a):
    """By way of float32, whose range the numbers have. This compiler may fuse a product and a difference, which would
    leave all digits."""
    return Traced(a.builder, a.builder.fpext(a.builder.fptrunc(a.value, FLOAT), DOUBLE))


def _quotient(a, b):
    """By the instruction for a reciprocal of 20 digits, once improved: a division takes longer than all the rest."""
    builder, a = b.builder, value_of(a, DOUBLE)
    kind = ir.FunctionType(DOUBLE, [DOUBLE])
    name = "llvm.nvvm.rcp.approx.ftz.d"
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    inverse = builder.call(function, [b.value])
    first = builder.fmul(a, inverse)
    left = call_fma(builder, builder.fsub(DOUBLE(-0.0), b.value), first, a)
    return Traced(builder, call_fma(builder, left, inverse, first))


FORMULAS = traced(leading_digits=_leading_digits, quotient=_quotient)


def _in_single(packs, dy, other, slope, w):
    """Maps of x alone, and of x and dy where every value counts and nothing asks for the sign of y."""
    plain = dy is types.none or {other, slope, w} == {types.none}
    return packs.dtype.dtype.bitwidth <= 32 and plain


def _coefficients(context, builder, formula, args, places):
    """Those of a formula in seven rows, of which the others are 0."""
    found = FORMULAS[formula](*(Traced(builder, value) for value in args))
    rows = [FLOAT(0.0)] * 7
    for place, one in zip(places, found, strict=True):
        rows[place] = builder.fptrunc(one.value, FLOAT)
    return rows


def _tuple_of(number):
    return types.UniTuple(number, 7)


@intrinsic
def map_of_x(typingctx, packs, k, scale, shift, varies):
    """As coefficients.py has them, of y = scale*(x - k) + shift."""
    single = _in_single(packs, *[types.none] * 4)
    result = _tuple_of(types.float32 if single else types.float64)

    def emit(context, builder, sig, args):
        rows = [*args[1:4], *[DOUBLE(0.0)] * 4]
        if single:
            rows = _coefficients(context, builder, "single_map", args[1:], OF_ONE)
        return context.make_tuple(builder, result, rows)

    return result(packs, types.float64, types.float64, types.float64, types.boolean), emit


@intrinsic
def map_of_two(typingctx, packs, other, slope, w, k, scale, shift, a, h, b, o):
    """As coefficients.py has them, of dx = a*(dy - h) + scale*(x - k) + shift; b and o for float64."""
    single = _in_single(packs, packs, other, slope, w)
    result = _tuple_of(types.float32 if single else types.float64)

    def emit(context, builder, sig, args):
        rows = k, scale, shift, a, h, _, _ = args[4:]
        if single:
            rows = _coefficients(context, builder, "single_map_of_two", (h, a, k, scale, shift), OF_TWO)
        return context.make_tuple(builder, result, rows)

    return result(packs, other, slope, w, *[types.float64] * 7), emit


def tables_for(packs, dy, other, slope, w):
    """Shared memory for the coefficients of a block's columns."""
    return cuda.shared.array(TABLES, float32 if _in_single(packs, dy, other, slope, w) else float64)


@overload(tables_for, inline="always")
def _(packs, dy, other, slope, w):
    if _in_single(packs, dy, other, slope, w):
        return lambda packs, dy, other, slope, w: cuda.shared.array(TABLES, float32)
    return lambda packs, dy, other, slope, w: cuda.shared.array(TABLES, float64)


# What the next two do stands in their overloads.


def deviation(x, origin, offset, power):
    """What a map scales: x - origin, or for float32 x, which has another one (Eq. 19), power*x + offset."""


@overload(deviation, inline="always")
def _(x, origin, offset, power):
    if number_of(x) is types.float32:
        return lambda x, origin, offset, power: fma(x, power, offset)
    return lambda x, origin, offset, power: x - origin


def placed(u, scale, lost, shift):
    """y of a deviation."""


@overload(placed, inline="always")
def _(u, scale, lost, shift):
    if number_of(u) is types.float32:
        return lambda u, scale, lost, shift: affine_in_single(u, scale, lost, shift)
    return lambda u, scale, lost, shift: affine(u, scale, shift)
