"""Memory: vectors from arrays and into them.

Loads widen whatever the array stores to float64, or to float32 (`single`); stores round once. Numba has no 16-bit
floats on the CPU, so those arrays come in as integers that stand for them (_floats.py). Indices count elements of a
contiguous 1-d array; nothing here checks a bound. An array that is None loads as None, a named tuple of arrays as one
of vectors.
"""

from __future__ import annotations

import platform

from llvmlite import ir
from numba import config, types
from numba.core import cgutils

from nbnorm._cpu.arrays import address_of, nothing, of_each
from nbnorm._cpu.intrinsic import intrinsic
from nbnorm._cpu.plan import LINE
from nbnorm._cpu.vector import (
    FEW,
    LANES,
    X86,
    Vector,
    first,
    is_float32,
    lanes_from,
    narrow,
    resized,
    single,
    vector,
)
from nbnorm._floats import DOUBLE, FLOAT, I16, I32, I64, MEMORY, number, splat, widen
from nbnorm._floats import narrow as round_to

I8 = ir.IntType(8)


def _memory(array_type, width):
    """LLVM type of `width` elements, and the size of one in bytes."""
    return ir.VectorType(MEMORY[array_type.dtype.name], width), array_type.dtype.bitwidth // 8


def _is_single(k):
    k = getattr(k, "dtype", k)  # of an array or a tuple
    return is_float32(k) or k == types.float32


def kind_of(k):
    """The vector that k is, or that `lanes` makes of it; k may be what `lanes_of` takes."""
    k = getattr(k, "dtype", k)
    return k if isinstance(k, Vector) else single if _is_single(k) else vector


def _load(array, result, *others):
    """Typing and code of a load into a vector of this kind; `others` are arguments before the array."""
    if array is types.none:
        return nothing(types.none(*others, array, types.int64))
    if isinstance(array, types.BaseNamedTuple):
        return of_each(array, len(others), lambda one: _load(one, result, *others))

    def emit(ctx, builder, sig, args):
        kind, size = _memory(array, result.lanes.count)
        pointer = address_of(ctx, builder, array, args[-2], args[-1], kind)
        return widen(builder, builder.load(pointer, align=size), array.dtype.name, result.lanes.element)

    return result(*others, array, types.int64), emit


@intrinsic
def load_as(typingctx, k, array, i):
    """array[i : i + n], as what `lanes` makes of k: float32 where that is, and as many as that has."""
    return _load(array, kind_of(k), k)


def kind_of_columns(w):
    """What sums of columns are, with values that count by w or None: masks have LANES."""
    return narrow if w is types.none else vector


@intrinsic
def columns_at_once(typingctx, w):
    """How many: a constant for LLVM."""
    answer = kind_of_columns(w).lanes.count
    return types.int64(w), lambda ctx, builder, sig, args: I64(answer)


@intrinsic
def load_columns(typingctx, w, array, i):
    """array[i : i + columns_at_once(w)]."""
    return _load(array, kind_of_columns(w), w)


def masked(builder, verb, kind, result, arguments):
    element = {FLOAT: "f32", DOUBLE: "f64", I16: "i16", I8: "i8"}[kind.element]
    name = f"llvm.masked.{verb}.v{kind.count}{element}.p0"
    function_type = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)


def _load_part(array, width, result, *others):
    if array is types.none:
        return nothing(types.none(*others, array, types.int64, types.int64, width))
    if isinstance(array, types.BaseNamedTuple):
        return of_each(array, len(others), lambda one: _load_part(one, width, result, *others))

    def emit(ctx, builder, sig, args):
        raw_array, i, n, _ = args[-4:]
        kind, size = _memory(array, width.literal_value)
        pointer = address_of(ctx, builder, array, raw_array, i, kind)
        arguments = [pointer, I32(size), first(builder, n, width.literal_value), number(kind, 0)]
        raw = masked(builder, "load", kind, kind, arguments)
        return resized(builder, widen(builder, raw, array.dtype.name, result.lanes.element), result.lanes.count)

    return result(*others, array, types.int64, types.int64, width), emit


@intrinsic(prefer_literal=True)
def load_part(typingctx, array, i, n, width):
    """array[i : i + n] in the first n <= width lanes, 0 in the others; nothing behind it is touched."""
    return _load_part(array, width, vector)


@intrinsic(prefer_literal=True)
def load_part_as(typingctx, k, array, i, n, width):
    """The same as what `lanes` makes of k."""
    return _load_part(array, width, kind_of(k), k)


def _narrow(builder, values, dtype):
    return round_to(builder, values, dtype, _picked)


def _picked(builder, words):
    """Their upper halves by a shuffle, which x86 has for two registers at a time; a GPU would spill."""
    halves = builder.bitcast(words, ir.VectorType(I16, 2 * words.type.count))
    picks = ir.Constant(ir.VectorType(I32, words.type.count), list(range(1, 2 * words.type.count, 2)))
    return builder.shuffle_vector(halves, ir.Constant(halves.type, ir.Undefined), picks)


@intrinsic
def store(typingctx, array, i, v):
    """array[i : i + LANES] = v, or as many as v has."""

    def emit(ctx, builder, sig, args):
        # float32 in parts that come out of a conversion as they are: a whole would be shuffled together first.
        lanes = args[2].type.count
        width = FEW if array.dtype.name == "float32" else lanes
        kind, size = _memory(array, width)
        pointer = address_of(ctx, builder, sig.args[0], args[0], args[1], kind)
        for part in range(lanes // width):
            raw = _narrow(builder, lanes_from(builder, args[2], part * width, width), array.dtype.name)
            builder.store(raw, builder.gep(pointer, [I32(part)]), align=size)
        return ctx.get_dummy_value()

    return types.void(array, types.int64, v), emit


@intrinsic(prefer_literal=True)
def store_part(typingctx, array, i, n, v, width):
    """array[i : i + n] = the first n <= width lanes of v."""

    def emit(ctx, builder, sig, args):
        kind, size = _memory(array, width.literal_value)
        pointer = address_of(ctx, builder, sig.args[0], args[0], args[1], kind)
        raw = _narrow(builder, resized(builder, args[3], width.literal_value), array.dtype.name)
        mask = first(builder, args[2], width.literal_value)
        masked(builder, "store", kind, ir.VoidType(), [raw, pointer, I32(size), mask])
        return ctx.get_dummy_value()

    return types.void(array, types.int64, types.int64, v, width), emit


@intrinsic
def stream(typingctx, array, i, v):
    """Like `store`, past the caches; the address must be a multiple of LINE bytes."""

    def emit(ctx, builder, sig, args):
        kind, _ = _memory(array, LANES)
        pointer = address_of(ctx, builder, sig.args[0], args[0], args[1], kind)
        instruction = builder.store(_narrow(builder, args[2], array.dtype.name), pointer, align=LINE)
        instruction.set_metadata("nontemporal", builder.module.add_metadata([I32(1)]))
        return ctx.get_dummy_value()

    return types.void(array, types.int64, v), emit


@intrinsic
def prefetch(typingctx, k, array, i):
    """Ask for what `load_as` would load, and what may lie beyond the end, to be in the second-level cache soon."""
    return _prefetch(array, k)


def _prefetch(array, k):
    if isinstance(array, types.BaseNamedTuple):
        return of_each(array, 1, lambda one: _prefetch(one, k))
    if array is types.none:
        return nothing(types.void(k, array, types.int64))
    lanes = kind_of(k).lanes.count

    def emit(ctx, builder, sig, args):
        _, size = _memory(array, lanes)
        pointer = address_of(ctx, builder, array, args[1], args[2], I8)
        name, function_type = "llvm.prefetch.p0", ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
        function = cgutils.get_or_insert_function(builder.module, function_type, name)
        for start in range(0, lanes * size, LINE):
            builder.call(function, [builder.gep(pointer, [I32(start)]), I32(0), I32(2), I32(1)])
        return ctx.get_dummy_value()

    return types.void(k, array, types.int64), emit


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
        kind, size = _memory(array, LANES)
        pointer = address_of(ctx, builder, sig.args[0], args[0], args[1], kind)
        address = builder.ptrtoint(pointer, I64)
        return builder.udiv(builder.and_(builder.neg(address), I64(LINE - 1)), I64(size))

    return types.int64(array, types.int64), emit


@intrinsic
def lanes(typingctx, values, i):
    """What position i is multiplied with or added to: a slice of a table, or one number in every lane.

    It is float32 where that is, otherwise float64.
    """
    kind = kind_of(values)
    if isinstance(values, types.Array):
        return _load(values, kind)
    number = types.float32 if kind is single else types.float64
    return kind(number, types.int64), lambda ctx, builder, sig, args: splat(builder, args[0], LANES)


@intrinsic
def is_single(typingctx, k):
    """Whether k, what `lanes` or `lanes_of` takes, is float32: a constant for LLVM."""
    answer = _is_single(k)
    return types.boolean(k), lambda ctx, builder, sig, args: ctx.get_constant(types.boolean, answer)


if config.DISABLE_JIT:
    from nbnorm._cpu.vector_python import (  # noqa: F401
        columns_at_once,
        fence,
        is_single,
        lanes,
        load_as,
        load_columns,
        load_part,
        load_part_as,
        prefetch,
        store,
        store_part,
        stream,
        until_line,
    )
