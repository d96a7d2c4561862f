"""Arrays: what kernels make of them without a copy, single numbers, and the fields of named tuples of arrays.

A Tangent or a Both (_counted.py) may lie in the place of dy, of arrays or of the vectors that were loaded from them.
Indices count elements of a contiguous 1-d array; nothing here checks a bound.
"""

from __future__ import annotations

from llvmlite import ir
from numba import config, from_dtype, types
from numba.core import cgutils

from nbnorm import _emitted
from nbnorm._cpu.intrinsic import intrinsic
from nbnorm._floats import DOUBLE, I64, MEMORY, of_map, widen


def address_of(ctx, builder, array_type, array, index, kind):
    """Of array[index], for a load or a store of this LLVM type.

    By the fields of the array, since `make_array` looks each time whether anyone has defined an array of another form.
    """
    data = cgutils.create_struct_proxy(array_type)(ctx, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), kind.as_pointer())


def nothing(signature):
    """Typing and code of what returns None."""
    return signature, lambda ctx, builder, sig, args: ctx.get_dummy_value()


# ---- matrices


@intrinsic
def matrix(typingctx, memory, at, rows, columns):
    """memory[at : at + rows * columns] as an array of two dimensions. It owns nothing and costs nothing, unlike
    `reshape`, which takes a tenth of a second to compile."""
    return _matrix(memory.dtype, memory)


@intrinsic
def matrix_of_map(typingctx, x, dy, slope, w, memory, at, rows, columns):
    """The same for coefficients of the map of these (coefficients.py), in memory of float64 numbers: of float32 ones it
    has twice as many rows.
    """
    backward, gated, counted = (one is not types.none for one in (dy, slope, w))
    return _matrix(from_dtype(of_map(x.dtype.bitwidth // 8, backward, gated, counted)), memory, x, dy, slope, w)


def _matrix(dtype, memory, *others):
    """`others` are arguments before the memory."""
    kind = types.Array(dtype, 2, "C")

    def emit(ctx, builder, sig, args):
        args = args[len(others) :]
        flat, result = (
            cgutils.create_struct_proxy(memory)(ctx, builder, args[0]),
            cgutils.create_struct_proxy(kind)(ctx, builder),
        )
        size, columns = I64(dtype.bitwidth // 8), args[3]
        rows = builder.mul(args[2], I64(memory.dtype.bitwidth // dtype.bitwidth))
        result.data = builder.bitcast(builder.gep(flat.data, [args[1]]), result.data.type)
        result.nitems, result.itemsize = builder.mul(rows, columns), size
        result.shape = cgutils.pack_array(builder, [rows, columns])
        result.strides = cgutils.pack_array(builder, [builder.mul(columns, size), size])
        for owner in ("meminfo", "parent"):
            setattr(result, owner, ir.Constant(getattr(flat, owner).type, None))
        return result._getvalue()

    return kind(*others, memory, types.intp, types.intp, types.intp), emit


# ---- one number


@intrinsic
def element(typingctx, array, i):
    """array[i] as a float64; of a Tangent or a Both that of the first array."""
    arrays = array.types if isinstance(array, types.BaseNamedTuple) else [array]
    dtype = arrays[0].dtype.name

    def emit(ctx, builder, sig, args):
        data = args[0] if arrays[0] is array else builder.extract_value(args[0], 0)
        return widen(builder, builder.load(address_of(ctx, builder, arrays[0], data, args[1], MEMORY[dtype])), dtype)

    return types.float64(array, types.int64), emit


@intrinsic
def double(typingctx, array, i):
    """The float64 number whose halves are array[2*i] and array[2*i + 1]."""

    def emit(ctx, builder, sig, args):
        return builder.load(_double(ctx, builder, sig, args))

    return types.float64(array, types.uintp), emit


@intrinsic
def set_double(typingctx, array, i, number):
    """Write it."""

    def emit(ctx, builder, sig, args):
        builder.store(args[2], _double(ctx, builder, sig, args))
        return ctx.get_dummy_value()

    return types.void(array, types.uintp, types.float64), emit


def _double(ctx, builder, sig, args):
    return builder.gep(address_of(ctx, builder, sig.args[0], args[0], I64(0), DOUBLE), [args[1]])


# ---- named tuples


leading, is_tangent = intrinsic(_emitted.leading(types)), intrinsic(_emitted.is_tangent(types))
of_dy, of_ddx = intrinsic(_emitted.of_dy(types)), intrinsic(_emitted.of_ddx(types))


def of_each(arrays, place, typed):
    """Typing and code for a named tuple of arrays, argument `place`, from what `typed` gives for one of them."""
    found = [typed(array) for array in arrays.types]
    signatures, emitters = zip(*found, strict=True)
    results = [one.return_type for one in signatures]
    result = types.BaseTuple.from_types(results, arrays.instance_class) if results[0] != types.void else types.void
    kinds = list(signatures[0].args)
    kinds[place] = arrays

    def emit(ctx, builder, sig, args):
        values, own = [], list(args)
        for i, (one, emitter) in enumerate(zip(signatures, emitters, strict=True)):
            own[place] = builder.extract_value(args[place], i)
            values.append(emitter(ctx, builder, one, own))
        return ctx.get_dummy_value() if result == types.void else ctx.make_tuple(builder, result, values)

    return result(*kinds), emit


if config.DISABLE_JIT:
    from nbnorm._cpu.vector_python import (  # noqa: F401
        double,
        element,
        is_tangent,
        leading,
        matrix,
        matrix_of_map,
        of_ddx,
        of_dy,
        set_double,
    )
