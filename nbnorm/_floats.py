"""What lies in memory against the float64 or float32 that kernels compute with: the conversions, in LLVM instructions.

For scalars and for vectors, for both targets. `dtype` is Numba's name of what memory holds; 16-bit floats come as
the integers that stand for them: uint16 is float16, int16 is bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from llvmlite import ir

I16, I32, I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
HALF, FLOAT, DOUBLE = ir.HalfType(), ir.FloatType(), ir.DoubleType()
MEMORY = {"float64": DOUBLE, "float32": FLOAT, "uint16": I16, "int16": I16}


def of_map(itemsize: int, backward: bool, gated: bool, counted: bool) -> np.dtype:
    """What a map of values of this size is computed in: dx in float64 where an activation lets a part of dy through, or
    not every value counts."""
    return _DOUBLE if itemsize == 8 or (backward and (gated or counted)) else _SINGLE


_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)  # objects, which np.empty takes sooner than types


def like(kind: ir.Type, element: ir.Type) -> ir.Type:
    """`element`, or a vector of as many as `kind` has."""
    return ir.VectorType(element, kind.count) if isinstance(kind, ir.VectorType) else element


def number(kind: ir.Type, value: float) -> ir.Constant:
    """A constant of this type, in every lane."""
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def splat(builder: ir.IRBuilder, value: ir.Value, lanes: int) -> ir.Value:
    """A number in every lane of a vector."""
    undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, value, I32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def widen(builder: ir.IRBuilder, raw: ir.Value, dtype: str, element: ir.Type = DOUBLE) -> ir.Value:
    """A raw scalar or vector as float64, or as float32 where memory holds no more: exact."""
    single, word = like(raw.type, FLOAT), like(raw.type, I32)
    if dtype == "float64":
        return raw
    if dtype == "uint16":
        raw = builder.fpext(builder.bitcast(raw, like(raw.type, HALF)), single)
    elif dtype == "int16":
        raw = builder.bitcast(builder.shl(builder.zext(raw, word), number(word, 16)), single)
    return raw if element is FLOAT else builder.fpext(raw, like(raw.type, DOUBLE))


def shifted(builder: ir.IRBuilder, words: ir.Value) -> ir.Value:
    """The upper halves of 32-bit words."""
    return builder.trunc(builder.lshr(words, number(words.type, 16)), like(words.type, I16))


def narrow(
    builder: ir.IRBuilder, value: ir.Value, dtype: str, upper_halves: Callable[..., ir.Value] = shifted
) -> ir.Value:
    """The raw form of float64 or float32 values, rounded to nearest even (16-bit types through float32)."""
    if dtype == "float64":
        return value
    kind = like(value.type, FLOAT)
    single = value if value.type == kind else builder.fptrunc(value, kind)
    if dtype == "float32":
        return single
    short, word = like(value.type, I16), like(value.type, I32)
    if dtype == "uint16":
        return builder.bitcast(builder.fptrunc(single, like(value.type, HALF)), short)
    bits = builder.bitcast(single, word)
    odd = builder.and_(builder.lshr(bits, number(word, 16)), number(word, 1))
    rounded = builder.add(bits, builder.add(odd, number(word, 0x7FFF)))
    is_nan = builder.fcmp_unordered("uno", single, single)
    rounded = builder.select(is_nan, number(word, 0x7FC00000), rounded)
    return upper_halves(builder, rounded)


def call_fma(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """LLVM's own, of numbers or vectors."""
    kind = a.type
    lanes = f"v{kind.count}" if isinstance(kind, ir.VectorType) else ""
    name = f"llvm.fma.{lanes}{'f32' if like(kind, FLOAT) == kind else 'f64'}"
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
    return builder.call(function, (a, b, c))
