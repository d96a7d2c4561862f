"""Which lanes of a vector value count: as numbers, 0 where one does not; and the fields of a Tangent or a Both."""

from __future__ import annotations

from llvmlite import ir
from numba import int64

from nbnorm import _emitted
from nbnorm._cuda.intrinsics import Vector, as_vectors, intrinsic, lane_by_lane, overload
from nbnorm._cuda.launch import cuda, types
from nbnorm._cuda.plan import PLACES
from nbnorm._floats import DOUBLE, I32, number, widen


def _number_where(test):
    """An intrinsic: 1 in the lanes that pass, 0 in the others; of a number one number."""

    def typed(typingctx, v):
        result = lane_by_lane((v,)) or types.float64

        def emit(context, builder, sig, args):
            holds = test(builder, args[0])
            kind = args[0].type
            return builder.select(holds, number(kind, 1.0), number(kind, 0.0))

        return result(v), emit

    return intrinsic(typed)


def _is_finite(builder, v):
    # v - v is 0 for all but NaN and infinities
    return builder.fcmp_ordered("==", builder.fsub(v, v), number(v.type, 0.0))


finite = _number_where(_is_finite)
ordered = _number_where(lambda builder, v: builder.fcmp_ordered("ord", v, v))


@intrinsic
def kept(typingctx, m, v):
    """v where m is greater than 0, 0 elsewhere whatever v is there."""
    result = lane_by_lane((m, v)) or types.float64

    def emit(context, builder, sig, args):
        if result is types.float64:
            m, v = args
        else:
            m, v = as_vectors(context, builder, result, sig.args, args)
        return builder.select(builder.fcmp_ordered(">", m, number(m.type, 0.0)), v, number(v.type, 0.0))

    return result(m, v), emit


def joined(a, b):
    """Their product; of one and None the one."""
    return b if a is None else a if b is None else a * b


@overload(joined, inline="always")
def _(a, b):
    if a is types.none:
        return lambda a, b: b
    return (lambda a, b: a) if b is types.none else (lambda a, b: a * b)


leading, is_tangent = intrinsic(_emitted.leading(types)), intrinsic(_emitted.is_tangent(types))
of_dy, of_ddx = intrinsic(_emitted.of_dy(types)), intrinsic(_emitted.of_ddx(types))


def places_for(w):
    """Shared memory for the places of a block's columns in a mask and, WIDTH behind them, in weights; None of None."""
    return None if w is None else cuda.shared.array(PLACES, int64)


@overload(places_for, inline="always")
def _(w):
    return (lambda w: None) if w is types.none else (lambda w: cuda.shared.array(PLACES, int64))


def _often(builder, raw, dtype):
    """How often a value counts, from what a mask or weights have of it."""
    if dtype.bitwidth == 8:
        return builder.uitofp(builder.icmp_unsigned("!=", raw, ir.Constant(raw.type, 0)), DOUBLE)
    return widen(builder, raw, dtype.name)


def _gathered(builder, array, packs, pointer, place_of):
    """A vector of what lies at place_of(lane)."""
    vector = ir.Constant(ir.VectorType(DOUBLE, packs.dtype.lanes), ir.Undefined)
    for lane in range(packs.dtype.lanes):
        raw = builder.load(builder.gep(pointer, [place_of(lane)]))
        vector = builder.insert_element(vector, _often(builder, raw, array.dtype), I32(lane))
    return vector


@intrinsic
def lanes_from(typingctx, array, i, step, packs):
    """How often values count by array[i], array[i + step], ...: as many as a pack has; None of None."""
    signature = array, types.int64, types.int64, packs
    if array is types.none:
        return types.none(*signature), lambda context, builder, sig, args: context.get_dummy_value()

    def emit(context, builder, sig, args):
        pointer, first, stride, _ = args
        return _gathered(
            builder, array, packs, pointer,
            lambda lane: builder.add(first, builder.mul(stride, ir.Constant(stride.type, lane))),
        )  # fmt: skip

    return Vector(packs.dtype.lanes)(*signature), emit


@intrinsic
def lanes_at(typingctx, array, i, places, j, packs):
    """The same by array[i + places[j]], array[i + places[j + 1]], ..."""
    signature = array, types.int64, places, types.int64, packs
    if array is types.none:
        return types.none(*signature), lambda context, builder, sig, args: context.get_dummy_value()

    def emit(context, builder, sig, args):
        pointer, first, table, at, _ = args
        data = context.make_array(places)(context, builder, table).data

        def place_of(lane):
            place = builder.gep(data, [builder.add(at, ir.Constant(at.type, lane))])
            return builder.add(first, builder.load(place))

        return _gathered(builder, array, packs, pointer, place_of)

    return Vector(packs.dtype.lanes)(*signature), emit
