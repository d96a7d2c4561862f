"""The vector value: 32 lanes that behave like one number inside a kernel, float64 or (`single`) float32; and fewer for
sums and maps of columns (`narrow`, `narrow_single`) where registers are few.

`+ - *`, `minus` and `fma` work lane by lane; vector_memory.py has the loads and stores. LLVM splits the value into as
many registers as the CPU has use for, so one accumulator is several independent chains, and every CPU does the same
IEEE operations in the same order: no fastmath, no contraction.

Parts of a vector come in two widths, a literal: LANES, or FEW for at most that many lanes. The values are the same, FEW
takes a quarter of the instructions.
"""

from __future__ import annotations

import operator
import platform
from typing import Any

from llvmlite import ir
from numba import config, njit, types
from numba.core.codegen import get_host_cpu_features
from numba.core.datamodel import PrimitiveModel
from numba.extending import lower_builtin, overload, register_model, type_callable

from nbnorm import _emitted, _formulas
from nbnorm._cpu.intrinsic import intrinsic
from nbnorm._cpu.part import PartCompiler
from nbnorm._cpu.plan import FEW, LANES
from nbnorm._floats import DOUBLE, FLOAT, I32, call_fma, number, splat

X86 = ("x86_64", "AMD64")

# x/0 is infinite: Numba's default raises, and the test for it keeps LLVM from dividing eight channels at a time.
OPTIONS: dict[str, Any] = {"error_model": "numpy"}
# What is compiled into others needs no way in from Python or C, each of which costs as much as the code itself.
NO_WAY_IN: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
INNER: dict[str, Any] = {**OPTIONS, **NO_WAY_IN, "pipeline_class": PartCompiler}
INLINED: Any = {**INNER, "forceinline": True}
routine = njit(**INLINED)
function = njit(**INNER)  # not forced into its caller
once = njit(inline="always", **INNER)  # part of its caller before types are known: for what a kernel does in one place


class Vector(types.Type):
    """Numba's type of the vector value."""

    def __init__(self, name: str, element: ir.Type, lanes: int = LANES) -> None:
        super().__init__(name=name)
        self.lanes = ir.VectorType(element, lanes)


vector, single = Vector("Vector", DOUBLE), Vector("Single", FLOAT)
# Sums of columns have six vectors at hand: k, h, dy, x and two sums; maps seven coefficients. 32 registers of 8 float64
# hold them, 16 of 4 would spill half of them at every step. A column's bits are the same either way.
FEATURES = get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
LARGE_REGISTERS = "+avx512f" in FEATURES.split(",")
narrow = vector if LARGE_REGISTERS or config.DISABLE_JIT else Vector("Narrow", DOUBLE, FEW)
narrow_single = single if narrow is vector else Vector("NarrowSingle", FLOAT, FEW)


def is_float32(kind):
    return isinstance(kind, Vector) and kind.lanes.element == FLOAT


@register_model(Vector)
class VectorModel(PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, fe_type.lanes)


# ---- arithmetic


def _register(op, instruction):
    @type_callable(op)
    def _(context):
        return lambda a, b: a if isinstance(a, Vector) and a == b else None

    @lower_builtin(op, Vector, Vector)
    def _(ctx, builder, sig, args):
        return getattr(builder, instruction)(*args)


for _op, _instruction in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
    _register(_op, _instruction)


@intrinsic
def _fma(typingctx, a, b, c):
    return a(a, b, c), lambda ctx, builder, sig, args: call_fma(builder, *args)


@overload(_formulas.fma, jit_options=INLINED)
def _(a, b, c):
    return lambda a, b, c: _fma(a, b, c)


def _difference(builder, a, b):
    if platform.machine() not in X86:
        return builder.fsub(a, b)
    # LLVM must not see that it is -1, or it makes a subtraction of it again.
    hide = ir.InlineAsm(ir.FunctionType(DOUBLE, [DOUBLE]), "", "=x,0", side_effect=False)
    minus_one = builder.call(hide, [DOUBLE(-1.0)], attrs=("readnone",))
    return call_fma(builder, b, splat(builder, minus_one, a.type.count), a)


@intrinsic
def minus(typingctx, a, b):
    """a - b. On x86 as a + b*(-1), the same number: conversions and additions share two of the four floating-point
    units of a Zen core, products use the others. Not for what `keep` gets: LLVM 22 may then load a part unmasked.
    """
    return a(a, b), lambda ctx, builder, sig, args: _difference(builder, *args)


@intrinsic
def deviation(typingctx, x, origin, offset, power):
    """What a map scales: x - origin, or for float32 x, which has another one (Eq. 19), power*x + offset."""

    def emit(ctx, builder, sig, args):
        if is_float32(x):
            return call_fma(builder, args[3], args[0], args[2])
        return _difference(builder, *args[:2])

    return x(x, origin, offset, power), emit


activated, gated = intrinsic(_emitted.activated(types)), intrinsic(_emitted.gated(types))


def _chosen(relation):
    """min or max of two integers: what Numba makes of those is two functions for every signature, compiled anew."""

    def typer(typingctx, a, b):
        def emit(ctx, builder, sig, args):
            return builder.select(builder.icmp_signed(relation, *args), *args)

        return types.int64(types.int64, types.int64), emit

    return intrinsic(typer)


smaller, larger = _chosen("<"), _chosen(">")


def resized(builder, value, width):
    """The first `width` lanes of a vector, or the vector and zeros behind it."""
    picks = [min(lane, value.type.count) for lane in range(width)]
    zero = ir.Constant(value.type, [0.0] * value.type.count)
    return builder.shuffle_vector(value, zero, ir.Constant(ir.VectorType(I32, width), picks))


def lanes_from(builder, value, start, width):
    """`width` lanes of a vector, from `start` on."""
    picks = ir.Constant(ir.VectorType(I32, width), list(range(start, start + width)))
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), picks)


@intrinsic
def zeros(typingctx):
    """0 in every lane."""
    return vector(), lambda ctx, builder, sig, args: ir.Constant(vector.lanes, [0.0] * LANES)


@intrinsic
def fold(typingctx, v):
    """Sum of the lanes, by halves: a fixed tree."""

    def emit(ctx, builder, sig, args):
        (value,) = args
        width = value.type.count
        while width > 1:
            width //= 2
            value = builder.fadd(lanes_from(builder, value, 0, width), lanes_from(builder, value, width, width))
        return builder.extract_element(value, I32(0))

    return types.float64(v), emit


def first(builder, n, width):
    """<width x i1> whose first n lanes are set."""
    indices = ir.Constant(ir.VectorType(I32, width), list(range(width)))
    return builder.icmp_signed("<", indices, splat(builder, builder.trunc(n, I32), width))


@intrinsic(prefer_literal=True)
def keep(typingctx, v, n, width):
    """The first n <= width lanes of v, 0 in the others."""

    def emit(ctx, builder, sig, args):
        part = resized(builder, args[0], width.literal_value)
        kept = builder.select(first(builder, args[1], width.literal_value), part, number(part.type, 0.0))
        return resized(builder, kept, args[0].type.count)

    return v(v, types.int64, width), emit


if config.DISABLE_JIT:
    from nbnorm._cpu.vector_python import (  # noqa: F401
        activated,
        deviation,
        fold,
        gated,
        keep,
        larger,
        minus,
        smaller,
        zeros,
    )
