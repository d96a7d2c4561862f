"""Cursor: where masks and weights of a vector lie, as addresses, so that no loop counts references to arrays.

It is None in a kernel without them, and so is what comes from it: there is nothing to type or to compile.
`holds` and `factors` read what a user gave for each position, in steps of any size: 1 is a vector load, 0 one value for
all lanes, and any other a loop.
"""

from __future__ import annotations

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.core.datamodel import StructModel
from numba.extending import register_model

from nbnorm._cpu.arrays import nothing
from nbnorm._cpu.intrinsic import intrinsic
from nbnorm._cpu.vector import LANES, first, vector
from nbnorm._cpu.vector_mask import mask
from nbnorm._cpu.vector_memory import I8, masked
from nbnorm._floats import DOUBLE, I32, I64, MEMORY, number, splat, widen

STORED = {**MEMORY, "uint8": I8}


class Cursor(types.Type):
    """The dtypes of a mask and of weights, by name, or None."""

    def __init__(self, where: str | None, weights: str | None) -> None:
        super().__init__(name=f"Cursor({where}, {weights})")
        self.where, self.weights = where, weights


ARRAYS, AXES = ("where", "weights"), ("n", "c", "s")


@register_model(Cursor)
class CursorModel(StructModel):
    """Addresses, and strides in bytes."""

    def __init__(self, dmm, fe_type):
        numbers = [f"{array}_{of}" for array in ARRAYS for of in ("0", *AXES)]
        super().__init__(dmm, fe_type, [(name, types.int64) for name in numbers] + [("omit", types.boolean)])


def _fields(ctx, builder, w, value=None):
    return cgutils.create_struct_proxy(w)(ctx, builder, value=value)


@intrinsic
def cursor(typingctx, w):
    """Of value (0, 0, 0), from a _counted.Counted; None of None."""
    if w is types.none:
        return nothing(types.none(w))
    kinds = dict(zip(w.fields, w.types, strict=True))
    kind = Cursor(*(getattr(getattr(kinds[array], "dtype", None), "name", None) for array in ARRAYS))

    def emit(ctx, builder, sig, args):
        given = {name: builder.extract_value(args[0], i) for i, name in enumerate(w.fields)}
        result = _fields(ctx, builder, kind)
        for array in ARRAYS:
            size, address = 0, I64(0)
            if kinds[array] is not types.none:
                size = kinds[array].dtype.bitwidth // 8
                address = builder.ptrtoint(
                    cgutils.create_struct_proxy(kinds[array])(ctx, builder, given[array]).data, I64
                )
            address = builder.add(address, builder.mul(given[f"{array}_0"], I64(size)))
            setattr(result, f"{array}_0", address)
            for axis in AXES:
                setattr(result, f"{array}_{axis}", builder.mul(given[f"{array}_{axis}"], I64(size)))
        result.omit = given["omit"]
        return result._getvalue()

    return kind(w), emit


@intrinsic
def shifted(typingctx, w, n, c, s):
    """The cursor of what lies n samples, c channels and s values further on; None of None."""
    numbers = (types.int64,) * 3
    if w is types.none:
        return nothing(types.none(w, *numbers))

    def emit(ctx, builder, sig, args):
        result = _fields(ctx, builder, w, args[0])
        for array in ARRAYS:
            address = getattr(result, f"{array}_0")
            for axis, steps in zip(AXES, args[1:], strict=True):
                address = builder.add(address, builder.mul(steps, getattr(result, f"{array}_{axis}")))
            setattr(result, f"{array}_0", address)
        return result._getvalue()

    return w(w, *numbers), emit


@intrinsic
def rows_of(typingctx, w, n):
    """A cursor for rows of n samples each, where it was for samples; None of None."""
    if w is types.none:
        return nothing(types.none(w, types.int64))

    def emit(ctx, builder, sig, args):
        result = _fields(ctx, builder, w, args[0])
        for array in ARRAYS:
            setattr(result, f"{array}_n", builder.mul(args[1], getattr(result, f"{array}_n")))
        return result._getvalue()

    return w(w, types.int64), emit


@intrinsic
def if_backward(typingctx, dy, w):
    """w, a cursor or a slope, in a backward pass; None forwards, where sums and maps have no use for it."""
    if dy is types.none or w is types.none:
        return nothing(types.none(dy, w))
    return w(dy, w), lambda ctx, builder, sig, args: args[1]


@intrinsic
def omits(typingctx, w):
    """Whether a NaN is a missing value."""
    return types.boolean(w), lambda ctx, builder, sig, args: _fields(ctx, builder, w, args[0]).omit


@intrinsic
def present(typingctx, v, w):
    """All lanes, or where w omits NaN those that are not."""

    def emit(ctx, builder, sig, args):
        outside = builder.block
        with builder.if_then(_fields(ctx, builder, w, args[1]).omit, likely=False):
            is_number = builder.fcmp_ordered("ord", args[0], args[0])
            inside = builder.block
        result = builder.phi(is_number.type)
        result.add_incoming(number(is_number.type, 1), outside)
        result.add_incoming(is_number, inside)
        return result

    return mask(v, w), emit


@intrinsic
def counts(typingctx, w):
    """How often the one value that is there counts, if it is no missing one."""

    def emit(ctx, builder, sig, args):
        here, result = _fields(ctx, builder, w, args[0]), DOUBLE(1.0)
        if w.weights is not None:
            pointer = builder.inttoptr(here.weights_0, STORED[w.weights].as_pointer())
            result = widen(builder, builder.load(pointer), w.weights)
        if w.where is not None:
            held = builder.load(builder.inttoptr(here.where_0, I8.as_pointer()))
            result = builder.select(builder.icmp_unsigned("!=", held, I8(0)), result, DOUBLE(0.0))
        return result

    return types.float64(w), emit


# ---- from memory


def _gatherer(module, element):
    """An LLVM function (address, step, n) of <LANES x element>, whose first n lanes lie `step` bytes apart."""
    name = f"nbnorm_gather_{element}"
    if name in module.globals:
        return module.globals[name]
    kind = ir.VectorType(element, LANES)
    function = ir.Function(module, ir.FunctionType(kind, [I64, I64, I64]), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block())
    address, step, n = function.args
    room = builder.alloca(kind)
    builder.store(number(kind, 0), room)
    places = builder.bitcast(room, element.as_pointer())
    with cgutils.for_range(builder, n) as loop:
        place = builder.inttoptr(builder.add(address, builder.mul(loop.index, step)), element.as_pointer())
        builder.store(builder.load(place), builder.gep(places, [loop.index]))
    builder.ret(builder.load(room))
    return function


def _strided(builder, address, step, dtype, n):
    """The values that lie `step` bytes apart of the first n lanes as a raw vector, 0 in the others."""
    element, size = STORED[dtype], {"uint8": 1, "float32": 4, "float64": 8}[dtype]
    kind, pointer = ir.VectorType(element, LANES), builder.inttoptr(address, element.as_pointer())
    found = []
    with builder.if_else(builder.icmp_signed("==", step, I64(size)), likely=True) as (beside, apart):
        with beside:
            arguments = [
                builder.bitcast(pointer, kind.as_pointer()),
                I32(size),
                first(builder, n, LANES),
                number(kind, 0),
            ]
            found.append((masked(builder, "load", kind, kind, arguments), builder.block))
        with apart:
            with builder.if_else(builder.icmp_signed("==", step, I64(0)), likely=True) as (same, others):
                with same:
                    found.append((splat(builder, builder.load(pointer), LANES), builder.block))
                with others:
                    gather = _gatherer(builder.module, element)
                    found.append((builder.call(gather, (address, step, n)), builder.block))
            both = builder.phi(kind)
            for raw, block in found[1:]:
                both.add_incoming(raw, block)
            found[1:] = [(both, builder.block)]
    result = builder.phi(kind)
    for raw, block in found:
        result.add_incoming(raw, block)
    return result


@intrinsic
def holds(typingctx, w, n):
    """Which of the first n values the mask has; None without one. Nothing behind them is touched."""
    if w.where is None:
        return nothing(types.none(w, types.int64))

    def emit(ctx, builder, sig, args):
        here = _fields(ctx, builder, w, args[0])
        raw = _strided(builder, here.where_0, here.where_s, w.where, args[1])
        return builder.icmp_unsigned("!=", raw, number(raw.type, 0))

    return mask(w, types.int64), emit


@intrinsic
def factors(typingctx, w, n):
    """The weights of the first n values; None without them. Nothing behind them is touched."""
    if w.weights is None:
        return nothing(types.none(w, types.int64))

    def emit(ctx, builder, sig, args):
        here = _fields(ctx, builder, w, args[0])
        return widen(builder, _strided(builder, here.weights_0, here.weights_s, w.weights, args[1]), w.weights, DOUBLE)

    return vector(w, types.int64), emit


if config.DISABLE_JIT:
    from nbnorm._cpu.vector_python import (  # noqa: F401
        counts,
        cursor,
        factors,
        holds,
        if_backward,
        omits,
        present,
        rows_of,
        shifted,
    )
