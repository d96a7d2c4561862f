"""The vector value on a GPU: what one 16-byte access brings, as float64 or (`single`) float32, that behaves like one
number.

A kernel gets an array of values as a pointer to *packs*: groups of 1, 2, 4 or 8 values that are read or written by
one instruction. The number of lanes is part of the pointer's type, indices count packs, and a pack's address is a
multiple of its size. `fetch` brings what lies in memory, `values` or `values_as` widens it, `store` rounds once on the
way back (intrinsics_memory.py); `+ - *` and `fma` work lane by lane, on two vectors or on a vector and a number. A
pointer that is None brings None, a named tuple of pointers one of vectors.

Nothing here checks a bound. simulator.py has the same names in NumPy.
"""

from __future__ import annotations

import operator

from llvmlite import ir

from nbnorm import _emitted, _formulas
from nbnorm._cuda.launch import extending, types
from nbnorm._floats import DOUBLE, FLOAT, I32, MEMORY, call_fma, splat

intrinsic, overload = extending.intrinsic, extending.overload
ELEMENT = {types.float32: FLOAT, types.float64: DOUBLE}
routine = extending.register_jitable(forceinline=True)


class Pack(types.Type):
    """`lanes` values of `dtype` side by side in memory: what a pointer points to."""

    def __init__(self, dtype, lanes):
        self.dtype, self.lanes = dtype, lanes
        super().__init__(name=f"Pack({dtype} x {lanes})")


class Vector(types.Type):
    """Numba's type of the vector value."""

    def __init__(self, lanes, number=types.float64):
        self.lanes, self.number = lanes, number
        super().__init__(name=f"Vector({number} x {lanes})")


class Raw(types.Type):
    """A pack as it lies in memory: what `fetch` brings, in a quarter of the registers of its Vector or half."""

    def __init__(self, pack):
        self.pack = pack
        super().__init__(name=f"Raw({pack.dtype} x {pack.lanes})")


@extending.register_model(Pack)
class PackModel(extending.models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.VectorType(MEMORY[fe_type.dtype.name], fe_type.lanes))


@extending.register_model(Vector)
class VectorModel(extending.models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.VectorType(ELEMENT[fe_type.number], fe_type.lanes))


def access(pack):
    """The LLVM type that one instruction reads or writes, and its size in bytes.

    16-bit values go in words of two, or the compiler would read them one by one.
    """
    size = pack.dtype.bitwidth // 8 * pack.lanes
    if pack.dtype.bitwidth == 16 and pack.lanes > 1:
        return ir.VectorType(I32, pack.lanes // 2), size
    return ir.VectorType(MEMORY[pack.dtype.name], pack.lanes), size


@extending.register_model(Raw)
class RawModel(extending.models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, access(fe_type.pack)[0])


# ---- arithmetic


def as_vectors(context, builder, result, kinds, values):
    """Every value as a vector of the result's lanes."""
    for kind, value in zip(kinds, values, strict=True):
        if isinstance(kind, Vector):
            yield value
        else:
            yield splat(builder, context.cast(builder, value, kind, result.number), result.lanes)


def lane_by_lane(kinds):
    """The vector type of an operation on these types; None if there is no vector among them."""
    vectors = [kind for kind in kinds if isinstance(kind, Vector)]
    return vectors[0] if vectors and all(isinstance(kind, Vector | types.Number) for kind in kinds) else None


def _register(op, instruction):
    @intrinsic
    def both(typingctx, a, b):
        result = lane_by_lane((a, b))

        def emit(context, builder, sig, args):
            return getattr(builder, instruction)(*as_vectors(context, builder, result, sig.args, args))

        return result(a, b), emit

    @overload(op, inline="always")
    def _(a, b):
        if lane_by_lane((a, b)) is not None:
            return lambda a, b: both(a, b)


for _op, _instruction in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
    _register(_op, _instruction)


@intrinsic
def _fma(typingctx, a, b, c):
    narrow = {a, b, c} == {types.float32}
    result = lane_by_lane((a, b, c)) or (types.float32 if narrow else types.float64)

    def emit(context, builder, sig, args):
        if not isinstance(result, Vector):
            values = (context.cast(builder, v, kind, result) for kind, v in zip(sig.args, args, strict=True))
            return call_fma(builder, *values)
        vectors = list(as_vectors(context, builder, result, sig.args, args))
        total = ir.Constant(vectors[0].type, ir.Undefined)
        for lane in range(result.lanes):
            of_lane = call_fma(builder, *(builder.extract_element(v, I32(lane)) for v in vectors))
            total = builder.insert_element(total, of_lane, I32(lane))
        return total

    return result(a, b, c), emit


@overload(_formulas.fma, inline="always")
def _(a, b, c):
    return lambda a, b, c: _fma(a, b, c)


activated, gated = intrinsic(_emitted.activated(types)), intrinsic(_emitted.gated(types))


@intrinsic
def zeros(typingctx, packs):
    """0 in every lane of a vector as `packs` has them."""

    def emit(context, builder, sig, args):
        kind = ir.VectorType(DOUBLE, packs.dtype.lanes)
        return ir.Constant(kind, [0.0] * kind.count)

    return Vector(packs.dtype.lanes)(packs), emit


@intrinsic
def fold(typingctx, vector):
    """Sum of the lanes, by halves: a fixed tree."""

    def emit(context, builder, sig, args):
        values = [builder.extract_element(args[0], I32(lane)) for lane in range(vector.lanes)]
        while len(values) > 1:
            half = len(values) // 2
            values = [builder.fadd(values[i], values[i + half]) for i in range(half)]
        return values[0]

    return types.float64(vector), emit
