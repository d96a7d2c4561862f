"""Masks: which lanes of a vector count. One bit a lane; None is a mask of every lane.

`holds` and `factors` read what a user gave for each position, in steps of any size: 1 is a vector load, 0 one value for
all lanes, and any other a loop.
"""

from __future__ import annotations

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from nbnorm._cpu.vector import LANES, Vector, first, splat, vector
from nbnorm._cpu.vector_memory import I8, I64, _address, _masked
from nbnorm._floats import DOUBLE, I32, MEMORY, number, widen

I1 = ir.IntType(1)
mask = Vector("Mask", I1)
STORED = {**MEMORY, "uint8": I8}


def _nothing(signature):
    return signature, lambda ctx, builder, sig, args: ctx.get_dummy_value()


# ---- of lanes


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
def present(typingctx, v, omit):
    """All lanes, or with `omit` those that are not NaN."""

    def emit(ctx, builder, sig, args):
        is_number = builder.fcmp_ordered("ord", args[0], args[0])
        return builder.or_(is_number, splat(builder, builder.not_(builder.trunc(args[1], I1))))

    return mask(v, types.boolean), emit


@intrinsic
def positive(typingctx, v):
    """Greater than 0; None of None."""
    if v is types.none:
        return _nothing(types.none(v))
    return mask(v), lambda ctx, builder, sig, args: builder.fcmp_ordered(">", args[0], number(args[0].type, 0.0))


@intrinsic
def joined(typingctx, a, b):
    """Lanes of both."""
    if a is types.none and b is types.none:
        return _nothing(types.none(a, b))
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


# ---- from memory


def _gatherer(module, element):
    """An LLVM function (address, step, n) of <LANES x element>, whose first n lanes lie `step` apart."""
    name = f"nbnorm_gather_{element}"
    if name in module.globals:
        return module.globals[name]
    kind = ir.VectorType(element, LANES)
    function = ir.Function(module, ir.FunctionType(kind, [element.as_pointer(), I64, I64]), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block())
    pointer, step, n = function.args
    room = builder.alloca(kind)
    builder.store(number(kind, 0), room)
    places = builder.bitcast(room, element.as_pointer())
    with cgutils.for_range(builder, n) as loop:
        value = builder.load(builder.gep(pointer, [builder.mul(loop.index, step)]))
        builder.store(value, builder.gep(places, [loop.index]))
    builder.ret(builder.load(room))
    return function


def _strided(ctx, builder, array, raw_array, i, step, n):
    """array[i + lane*step] of n lanes (all of them when it is None) as a raw vector."""
    element = STORED[array.dtype.name]
    kind, size = ir.VectorType(element, LANES), array.dtype.bitwidth // 8
    pointer = _address(ctx, builder, array, raw_array, i, element)
    found = []
    with builder.if_else(builder.icmp_signed("==", step, I64(1)), likely=True) as (beside, apart):
        with beside:
            place = builder.bitcast(pointer, kind.as_pointer())
            if n is None:
                raw = builder.load(place, align=size)
            else:
                arguments = [place, I32(size), first(builder, n, LANES), number(kind, 0)]
                raw = _masked(builder, "load", kind, kind, arguments)
            found.append((raw, builder.block))
        with apart:
            with builder.if_else(builder.icmp_signed("==", step, I64(0)), likely=True) as (same, others):
                with same:
                    found.append((splat(builder, builder.load(pointer)), builder.block))
                with others:
                    gather = _gatherer(builder.module, element)
                    count = I64(LANES) if n is None else n
                    found.append((builder.call(gather, (pointer, step, count)), builder.block))
            both = builder.phi(kind)
            for raw, block in found[1:]:
                both.add_incoming(raw, block)
            found[1:] = [(both, builder.block)]
    result = builder.phi(kind)
    for raw, block in found:
        result.add_incoming(raw, block)
    return result


def _holds(array, *others):
    signature = (array, types.int64, types.int64, *others)
    if array is types.none:
        return _nothing(types.none(*signature))

    def emit(ctx, builder, sig, args):
        raw = _strided(ctx, builder, array, args[0], args[1], args[2], args[3] if others else None)
        return builder.icmp_unsigned("!=", raw, number(raw.type, 0))

    return mask(*signature), emit


def _factors(array, *others):
    signature = (array, types.int64, types.int64, *others)
    if array is types.none:
        return _nothing(types.none(*signature))

    def emit(ctx, builder, sig, args):
        raw = _strided(ctx, builder, array, args[0], args[1], args[2], args[3] if others else None)
        return widen(builder, raw, array.dtype.name, DOUBLE)

    return vector(*signature), emit


@intrinsic
def holds(typingctx, array, i, step):
    """Which of array[i], array[i + step], ... are not 0; None of None."""
    return _holds(array)


@intrinsic
def holds_part(typingctx, array, i, step, n):
    """The same of the first n lanes; nothing behind them is touched."""
    return _holds(array, types.int64)


@intrinsic
def factors(typingctx, array, i, step):
    """array[i], array[i + step], ...; None of None."""
    return _factors(array)


@intrinsic
def factors_part(typingctx, array, i, step, n):
    """The same of the first n lanes, 0 in the others; nothing behind them is touched."""
    return _factors(array, types.int64)


if config.DISABLE_JIT:
    from nbnorm._cpu.vector_python import (  # type: ignore[assignment]  # noqa: F401
        below,
        either,
        factors,
        factors_part,
        finite,
        holds,
        holds_part,
        joined,
        kept,
        often,
        positive,
        present,
    )
