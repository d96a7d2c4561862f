"""The vector value: 32 float64 lanes that behave like one number inside a kernel.

`load` widens whatever the array stores, `store` rounds once on the way back, and `+ - *` and `fma` work lane by
lane. LLVM splits the value into as many registers as the CPU has use for, so one accumulator is several
independent chains, and every CPU does the same IEEE operations in the same order: no fastmath, no contraction.

Numba has no 16-bit floats on the CPU, so those arrays come in as integers that stand for them (_floats.py).

Indices count elements of a contiguous 1-d array; nothing here checks a bound. An array that is None loads as None.
Parts of a vector come in two widths, a literal: LANES, or FEW for at most that many lanes. The values are the same,
FEW takes a quarter of the instructions.
"""

from __future__ import annotations

import operator
import platform
from typing import Any

from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.core.datamodel import PrimitiveModel
from numba.extending import intrinsic, overload, register_model

from nbnorm import _formulas
from nbnorm._cpu import vector_python
from nbnorm._floats import DOUBLE, FLOAT, HALF, I16, I32, MEMORY, narrow, number, widen

LANES = 32
FEW = 8
X86 = ("x86_64", "AMD64")
LINE = vector_python.LINE  # bytes of a cache line, and the alignment of a streaming store

I8, I64 = ir.IntType(8), ir.IntType(64)
LANES_OF_DOUBLE = ir.VectorType(DOUBLE, LANES)

# x/0 is infinite: Numba's default raises, and the test for it keeps LLVM from dividing eight channels at a time.
OPTIONS: dict[str, Any] = {"error_model": "numpy"}
routine = njit(forceinline=True, **OPTIONS)
function = njit(**OPTIONS)  # not forced into its caller


class Vector(types.Type):
    """Numba's type of the vector value."""

    def __init__(self) -> None:
        super().__init__(name="Vector")


vector = Vector()


@register_model(Vector)
class VectorModel(PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, LANES_OF_DOUBLE)


# ---- arithmetic


def _register(op, instruction):
    @intrinsic
    def lane_by_lane(typingctx, a, b):
        return a(a, b), lambda ctx, b, sig, args: getattr(b, instruction)(*args)

    @overload(op, inline="always")
    def _(a, b):
        if isinstance(a, Vector) and isinstance(b, Vector):
            return lambda a, b: lane_by_lane(a, b)


for _op, _instruction in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
    _register(_op, _instruction)


def _call_fma(builder, a, b, c):
    kind = a.type
    name = f"llvm.fma.v{LANES}f64" if isinstance(kind, ir.VectorType) else "llvm.fma.f64"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
    return builder.call(function, (a, b, c))


@intrinsic
def _fma(typingctx, a, b, c):
    return a(a, b, c), lambda ctx, builder, sig, args: _call_fma(builder, *args)


@overload(_formulas.fma, inline="always")
def _(a, b, c):
    return lambda a, b, c: _fma(a, b, c)


def _splat(builder, value, width=LANES):
    undefined = ir.Constant(ir.VectorType(value.type, width), ir.Undefined)
    first = builder.insert_element(undefined, value, I32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, width), [0] * width))


@intrinsic
def minus(typingctx, a, b):
    """a - b. On x86 as a + b*(-1), the same number: conversions and additions share two of the four floating-point
    units of a Zen core, products use the others. Not for what `keep` gets: LLVM 22 may then load a part unmasked.
    """

    def emit(ctx, builder, sig, args):
        if platform.machine() not in X86:
            return builder.fsub(*args)
        # LLVM must not see that it is -1, or it makes a subtraction of it again.
        hide = ir.InlineAsm(ir.FunctionType(DOUBLE, [DOUBLE]), "", "=x,0", side_effect=False)
        minus_one = builder.call(hide, [DOUBLE(-1.0)], attrs=("readnone",))
        return _call_fma(builder, args[1], _splat(builder, minus_one), args[0])

    return a(a, b), emit


def _resized(builder, value, width):
    """The first `width` lanes of a vector, or the vector and zeros behind it."""
    picks = [min(lane, value.type.count) for lane in range(width)]
    zero = ir.Constant(value.type, [0.0] * value.type.count)
    return builder.shuffle_vector(value, zero, ir.Constant(ir.VectorType(I32, width), picks))


def _slice(builder, value, start, width):
    """`width` lanes of a vector, from `start` on."""
    picks = ir.Constant(ir.VectorType(I32, width), list(range(start, start + width)))
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), picks)


@intrinsic
def zeros(typingctx):
    """0 in every lane."""
    return vector(), lambda ctx, builder, sig, args: ir.Constant(LANES_OF_DOUBLE, [0.0] * LANES)


@intrinsic
def fold(typingctx, v):
    """Sum of the lanes, by halves: a fixed tree."""

    def emit(ctx, builder, sig, args):
        (value,) = args
        width = LANES
        while width > 1:
            width //= 2
            value = builder.fadd(_slice(builder, value, 0, width), _slice(builder, value, width, width))
        return builder.extract_element(value, I32(0))

    return types.float64(v), emit


def _first(builder, n, width):
    """<width x i1> whose first n lanes are set."""
    indices = ir.Constant(ir.VectorType(I32, width), list(range(width)))
    return builder.icmp_signed("<", indices, _splat(builder, builder.trunc(n, I32), width))


@intrinsic(prefer_literal=True)
def keep(typingctx, v, n, width):
    """The first n <= width lanes of v, 0 in the others."""

    def emit(ctx, builder, sig, args):
        part = _resized(builder, args[0], width.literal_value)
        zero = ir.Constant(part.type, [0.0] * width.literal_value)
        kept = builder.select(_first(builder, args[1], width.literal_value), part, zero)
        return _resized(builder, kept, LANES)

    return v(v, types.int64, width), emit


# ---- what lies in memory against what lies in a register


def _address(ctx, builder, array_type, array, index, kind):
    data = ctx.make_array(array_type)(ctx, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), kind.as_pointer())


def _memory(array_type, width=LANES):
    """LLVM type of `width` elements, and the size of one in bytes."""
    return ir.VectorType(MEMORY[array_type.dtype.name], width), array_type.dtype.bitwidth // 8


@intrinsic
def element(typingctx, array, i):
    """array[i] as a float64."""

    def emit(ctx, builder, sig, args):
        pointer = _address(ctx, builder, sig.args[0], args[0], args[1], MEMORY[array.dtype.name])
        return widen(builder, builder.load(pointer), array.dtype.name)

    return types.float64(array, types.int64), emit


def _absent(array, *others):
    """What loads return for an array that is None."""
    return types.none(array, *others), lambda ctx, builder, sig, args: ctx.get_dummy_value()


@intrinsic
def load(typingctx, array, i):
    """array[i : i + LANES]."""
    if array is types.none:
        return _absent(array, types.int64)

    def emit(ctx, builder, sig, args):
        kind, size = _memory(array)
        pointer = _address(ctx, builder, sig.args[0], args[0], args[1], kind)
        return widen(builder, builder.load(pointer, align=size), array.dtype.name)

    return vector(array, types.int64), emit


def _masked(builder, verb, kind, result, arguments):
    element = {HALF: "f16", FLOAT: "f32", DOUBLE: "f64", I16: "i16"}[kind.element]
    name = f"llvm.masked.{verb}.v{kind.count}{element}.p0"
    function_type = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)


@intrinsic(prefer_literal=True)
def load_part(typingctx, array, i, n, width):
    """array[i : i + n] in the first n <= width lanes, 0 in the others; nothing behind it is touched."""
    if array is types.none:
        return _absent(array, types.int64, types.int64, width)

    def emit(ctx, builder, sig, args):
        kind, size = _memory(array, width.literal_value)
        pointer = _address(ctx, builder, sig.args[0], args[0], args[1], kind)
        arguments = [pointer, I32(size), _first(builder, args[2], width.literal_value), number(kind, 0)]
        raw = _masked(builder, "load", kind, kind, arguments)
        return _resized(builder, widen(builder, raw, array.dtype.name), LANES)

    return vector(array, types.int64, types.int64, width), emit


@intrinsic
def store(typingctx, array, i, v):
    """array[i : i + LANES] = v."""

    def emit(ctx, builder, sig, args):
        # float32 in parts that come out of a conversion as they are: a whole would be shuffled together first.
        width = FEW if array.dtype.name == "float32" else LANES
        kind, size = _memory(array, width)
        pointer = _address(ctx, builder, sig.args[0], args[0], args[1], kind)
        for part in range(LANES // width):
            raw = narrow(builder, _slice(builder, args[2], part * width, width), array.dtype.name)
            builder.store(raw, builder.gep(pointer, [I32(part)]), align=size)
        return ctx.get_dummy_value()

    return types.void(array, types.int64, v), emit


@intrinsic(prefer_literal=True)
def store_part(typingctx, array, i, n, v, width):
    """array[i : i + n] = the first n <= width lanes of v."""

    def emit(ctx, builder, sig, args):
        kind, size = _memory(array, width.literal_value)
        pointer = _address(ctx, builder, sig.args[0], args[0], args[1], kind)
        raw = narrow(builder, _resized(builder, args[3], width.literal_value), array.dtype.name)
        mask = _first(builder, args[2], width.literal_value)
        _masked(builder, "store", kind, ir.VoidType(), [raw, pointer, I32(size), mask])
        return ctx.get_dummy_value()

    return types.void(array, types.int64, types.int64, v, width), emit


@intrinsic
def stream(typingctx, array, i, v):
    """Like `store`, past the caches; the address must be a multiple of LINE bytes."""

    def emit(ctx, builder, sig, args):
        kind, _ = _memory(array)
        pointer = _address(ctx, builder, sig.args[0], args[0], args[1], kind)
        instruction = builder.store(narrow(builder, args[2], array.dtype.name), pointer, align=LINE)
        instruction.set_metadata("nontemporal", builder.module.add_metadata([I32(1)]))
        return ctx.get_dummy_value()

    return types.void(array, types.int64, v), emit


@intrinsic
def prefetch(typingctx, array, i):
    """Ask for array[i : i + LANES], which may lie beyond the end, to be in the second-level cache soon."""
    if array is types.none:
        return _absent(array, types.int64)

    def emit(ctx, builder, sig, args):
        _, size = _memory(array)
        pointer = _address(ctx, builder, sig.args[0], args[0], args[1], I8)
        name, function_type = "llvm.prefetch.p0", ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
        function = cgutils.get_or_insert_function(builder.module, function_type, name)
        for start in range(0, LANES * size, LINE):
            builder.call(function, [builder.gep(pointer, [I32(start)]), I32(0), I32(2), I32(1)])
        return ctx.get_dummy_value()

    return types.void(array, types.int64), emit


@intrinsic
def fence(typingctx):
    """Order streaming stores before whatever follows. Only x86 needs an instruction for it."""

    def emit(ctx, builder, sig, args):
        if platform.machine() in X86:
            function_type = ir.FunctionType(ir.VoidType(), [])
            name = "llvm.x86.sse.sfence"
            builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), [])
        return ctx.get_dummy_value()

    return types.void(), emit


@intrinsic
def until_line(typingctx, array, i):
    """How many elements lie between array[i] and the next address that is a multiple of LINE bytes."""

    def emit(ctx, builder, sig, args):
        kind, size = _memory(array)
        pointer = _address(ctx, builder, sig.args[0], args[0], args[1], kind)
        address = builder.ptrtoint(pointer, I64)
        return builder.udiv(builder.and_(builder.neg(address), I64(LINE - 1)), I64(size))

    return types.int64(array, types.int64), emit


@intrinsic
def _broadcast(typingctx, value):
    return vector(types.float64), lambda ctx, builder, sig, args: _splat(builder, args[0])


def lanes(values, i):
    """What position i is multiplied with or added to: a slice of a table, a vector, or one number in every lane."""
    return vector_python.lanes(values, i)


@overload(lanes, inline="always")
def _(values, i):
    if isinstance(values, types.Array):
        return lambda values, i: load(values, i)
    if isinstance(values, Vector):
        return lambda values, i: values
    return lambda values, i: _broadcast(values)


if config.DISABLE_JIT:
    from nbnorm._cpu.vector_python import *  # type: ignore[assignment]  # noqa: F403
