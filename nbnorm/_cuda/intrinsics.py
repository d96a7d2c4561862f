"""The vector value on a GPU: what one 16-byte access brings, widened to float64, that behaves like one number.

A kernel gets an array of values as a pointer to *packs*: groups of 1, 2, 4 or 8 values that are read or written by
one instruction. The number of lanes is part of the pointer's type, indices count packs, and a pack's address is a
multiple of its size. `load` widens what lies in memory, `store` rounds once on the way back; `+ - *` and `fma`
work lane by lane, on two vectors or on a vector and a number. A pointer that is None loads as None, a
named tuple of pointers as one of vectors.

Nothing here checks a bound. simulator.py has the same names in NumPy.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba import int64

from nbnorm import _formulas
from nbnorm._counted import Both, Tangent
from nbnorm._cuda.launch import cuda, extending, types
from nbnorm._cuda.plan import ACCESS, PLACES
from nbnorm._floats import DOUBLE, FLOAT, I16, I32, MEMORY, narrow, number, widen

intrinsic, overload = extending.intrinsic, extending.overload
routine = extending.register_jitable(forceinline=True)
SHARED = 3  # LLVM's address space


class Pack(types.Type):
    """`lanes` values of `dtype` side by side in memory: what a pointer points to."""

    def __init__(self, dtype, lanes):
        self.dtype, self.lanes = dtype, lanes
        super().__init__(name=f"Pack({dtype} x {lanes})")


class Vector(types.Type):
    """Numba's type of the vector value."""

    def __init__(self, lanes):
        self.lanes = lanes
        super().__init__(name=f"Vector({lanes})")


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
        super().__init__(dmm, fe_type, ir.VectorType(DOUBLE, fe_type.lanes))


@extending.register_model(Raw)
class RawModel(extending.models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _access(fe_type.pack)[0])


# ---- arithmetic


def _splat(builder, value, lanes):
    kind = ir.VectorType(DOUBLE, lanes)
    vector = ir.Constant(kind, ir.Undefined)
    for lane in range(lanes):
        vector = builder.insert_element(vector, value, I32(lane))
    return vector


def _vectors(context, builder, result, kinds, values):
    """Every value as a vector of the result's lanes."""
    for kind, value in zip(kinds, values, strict=True):
        if isinstance(kind, Vector):
            yield value
        else:
            yield _splat(builder, context.cast(builder, value, kind, types.float64), result.lanes)


def _lane_by_lane(kinds):
    """The vector type of an operation on these types; None if there is no vector among them."""
    vectors = [kind for kind in kinds if isinstance(kind, Vector)]
    return vectors[0] if vectors and all(isinstance(kind, Vector | types.Number) for kind in kinds) else None


def _register(op, instruction):
    @intrinsic
    def both(typingctx, a, b):
        result = _lane_by_lane((a, b))

        def emit(context, builder, sig, args):
            return getattr(builder, instruction)(*_vectors(context, builder, result, sig.args, args))

        return result(a, b), emit

    @overload(op, inline="always")
    def _(a, b):
        if _lane_by_lane((a, b)) is not None:
            return lambda a, b: both(a, b)


for _op, _instruction in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
    _register(_op, _instruction)


@intrinsic
def _fma(typingctx, a, b, c):
    result = _lane_by_lane((a, b, c)) or types.float64

    def emit(context, builder, sig, args):
        function_type = ir.FunctionType(DOUBLE, [DOUBLE] * 3)
        function = builder.module.globals.get("llvm.fma.f64") or ir.Function(
            builder.module, function_type, "llvm.fma.f64"
        )
        if result is types.float64:
            values = (context.cast(builder, v, kind, result) for kind, v in zip(sig.args, args, strict=True))
            return builder.call(function, list(values))
        vectors = list(_vectors(context, builder, result, sig.args, args))
        total = ir.Constant(vectors[0].type, ir.Undefined)
        for lane in range(result.lanes):
            of_lane = builder.call(function, [builder.extract_element(v, I32(lane)) for v in vectors])
            total = builder.insert_element(total, of_lane, I32(lane))
        return total

    return result(a, b, c), emit


@overload(_formulas.fma, inline="always")
def _(a, b, c):
    return lambda a, b, c: _fma(a, b, c)


def _lessened(builder, v, slope):
    """slope*v, and 0 for slope 0 whatever v is."""
    factor = _splat(builder, slope, v.type.count) if isinstance(v.type, ir.VectorType) else slope
    is_zero = builder.fcmp_ordered("==", slope, DOUBLE(0.0))
    return builder.select(is_zero, number(v.type, 0.0), builder.fmul(v, factor))


@intrinsic
def activated(typingctx, z, slope):
    """Eq. 34: z where it is positive or NaN, else slope*z. Of vectors and of numbers."""

    def emit(context, builder, sig, args):
        at_most_0 = builder.fcmp_ordered("<=", args[0], number(args[0].type, 0.0))
        return builder.select(at_most_0, _lessened(builder, *args), args[0])

    return z(z, types.float64), emit


@intrinsic
def gated(typingctx, g, z, slope):
    """Eq. 35: g where z is positive, else slope*g."""

    def emit(context, builder, sig, args):
        positive = builder.fcmp_ordered(">", args[1], number(args[1].type, 0.0))
        return builder.select(positive, args[0], _lessened(builder, args[0], args[2]))

    return g(g, z, types.float64), emit


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


# ---- memory


@intrinsic
def lanes(typingctx, packs):
    """How many values a pack has."""
    count = packs.dtype.lanes
    return types.int64(packs), lambda context, builder, sig, args: ir.Constant(ir.IntType(64), count)


@intrinsic
def pack_at(typingctx, packs, i):
    """The first pack at or behind value i."""
    count = packs.dtype.lanes

    def emit(context, builder, sig, args):
        kind = args[1].type
        behind = builder.add(args[1], ir.Constant(kind, count - 1))
        return builder.lshr(behind, ir.Constant(kind, count.bit_length() - 1))  # lanes are a power of two

    return types.int64(packs, types.int64), emit


def _access(pack):
    """The LLVM type that one instruction reads or writes, and its size in bytes.

    16-bit values go in words of two, or the compiler would read them one by one.
    """
    size = pack.dtype.bitwidth // 8 * pack.lanes
    if pack.dtype.bitwidth == 16 and pack.lanes > 1:
        return ir.VectorType(I32, pack.lanes // 2), size
    return ir.VectorType(MEMORY[pack.dtype.name], pack.lanes), size


def _unpack(builder, raw, pack):
    """float64 values of what was read."""
    if raw.type.element != I32:
        return widen(builder, raw, pack.dtype.name)
    vector = ir.Constant(ir.VectorType(DOUBLE, pack.lanes), ir.Undefined)
    for lane in range(pack.lanes):
        word = builder.extract_element(raw, I32(lane // 2))
        half = builder.trunc(builder.lshr(word, I32(16)) if lane % 2 else word, I16)
        vector = builder.insert_element(vector, widen(builder, half, pack.dtype.name), I32(lane))
    return vector


def _pack(builder, vector, kind, pack):
    """What is to be written for float64 values."""
    raw = narrow(builder, vector, pack.dtype.name)
    if kind.element != I32:
        return raw
    words = ir.Constant(kind, ir.Undefined)
    for i in range(kind.count):
        low, high = (builder.zext(builder.extract_element(raw, I32(2 * i + part)), I32) for part in (0, 1))
        words = builder.insert_element(words, builder.or_(low, builder.shl(high, I32(16))), I32(i))
    return words


def _of_each(items, typed, *others):
    """Typing and code for a named tuple of pointers, or of what they brought, from what `typed` gives for one of them.
    `others` are the arguments behind it."""
    signatures, emitters = zip(*(typed(one) for one in items.types), strict=True)
    result = types.BaseTuple.from_types([one.return_type for one in signatures], items.instance_class)

    def emit(context, builder, sig, args):
        values = []
        for place, (one, emitter) in enumerate(zip(signatures, emitters, strict=True)):
            values.append(emitter(context, builder, one, [builder.extract_value(args[0], place), *args[1:]]))
        return context.make_tuple(builder, result, values)

    return result(items, *others), emit


@intrinsic
def four_at_once(typingctx, x, dy, other, slope, w):
    """Whether a thread has four packs of each array on their way, not two: of one array, or of packs of half size."""
    arrays = 3 - (dy, other).count(types.none)
    small = slope is types.none and w is types.none and x.dtype.lanes * x.dtype.dtype.bitwidth <= 8 * ACCESS // 2
    answer = arrays == 1 or (small and arrays == 2)
    return types.boolean(x, dy, other, slope, w), lambda context, builder, sig, args: context.get_constant(
        sig.return_type, answer
    )


@intrinsic
def fetch(typingctx, packs, i, here):
    """Pack i as it lies in memory, where `here` holds; else anything."""
    return _fetch(packs)


def _fetch(packs):
    others = types.int64, types.boolean
    if isinstance(packs, types.BaseNamedTuple):
        return _of_each(packs, _fetch, *others)
    if packs is types.none:
        return types.none(packs, *others), lambda context, builder, sig, args: context.get_dummy_value()

    def emit(context, builder, sig, args):
        kind, size = _access(packs.dtype)
        before = builder.basic_block
        with builder.if_then(context.cast(builder, args[2], types.boolean, types.boolean)):
            place = builder.bitcast(builder.gep(args[0], [args[1]]), kind.as_pointer())
            there = builder.load(place, align=size)
            inside = builder.basic_block
        raw = builder.phi(kind)
        raw.add_incoming(ir.Constant(kind, ir.Undefined), before)
        raw.add_incoming(there, inside)
        return raw

    return Raw(packs.dtype)(packs, *others), emit


@intrinsic
def values(typingctx, raw):
    """The float64 values of what `fetch` brought."""
    return _values(raw)


def _values(raw):
    if isinstance(raw, types.BaseNamedTuple):
        return _of_each(raw, _values)
    if raw is types.none:
        return types.none(raw), lambda context, builder, sig, args: context.get_dummy_value()
    return Vector(raw.pack.lanes)(raw), lambda context, builder, sig, args: _unpack(builder, args[0], raw.pack)


@intrinsic
def store(typingctx, packs, i, vector):
    """Pack i = vector."""

    def emit(context, builder, sig, args):
        kind, _ = _access(packs.dtype)
        _write(builder, args, _pack(builder, args[2], kind, packs.dtype), packs.dtype)
        return context.get_dummy_value()

    return types.void(packs, types.int64, vector), emit


@intrinsic
def put_by(typingctx, packs, i, raw):
    """The same of what `fetch` brought."""

    def emit(context, builder, sig, args):
        _write(builder, args, args[2], packs.dtype)
        return context.get_dummy_value()

    return types.void(packs, types.int64, raw), emit


def _write(builder, args, raw, pack):
    kind, size = _access(pack)
    builder.store(raw, builder.bitcast(builder.gep(args[0], [args[1]]), kind.as_pointer()), align=size)


def _place(builder, pack, pointer, i):
    """Address of value i."""
    first = builder.bitcast(pointer, MEMORY[pack.dtype.name].as_pointer())
    return builder.gep(first, [i])


@intrinsic
def element(typingctx, packs, i):
    """Value i, as a float64."""
    return _element(packs)


def _element(packs):
    if isinstance(packs, types.BaseNamedTuple):
        return _of_each(packs, _element, types.int64)
    if packs is types.none:
        return types.none(packs, types.int64), lambda context, builder, sig, args: context.get_dummy_value()

    def emit(context, builder, sig, args):
        place = _place(builder, packs.dtype, *args)
        return widen(builder, builder.load(place), packs.dtype.dtype.name)

    return types.float64(packs, types.int64), emit


@intrinsic
def element_to_compare(typingctx, packs, i):
    """The same, as a float32 where memory holds no more: a median of float64 takes four times the instructions."""
    dtype = packs.dtype.dtype
    result = types.float64 if dtype is types.float64 else types.float32

    def emit(context, builder, sig, args):
        raw = builder.load(_place(builder, packs.dtype, *args))
        return widen(builder, raw, dtype.name, DOUBLE if result is types.float64 else FLOAT)

    return result(packs, types.int64), emit


@intrinsic
def put(typingctx, packs, i, value):
    """Value i = value."""

    def emit(context, builder, sig, args):
        pack = packs.dtype
        builder.store(narrow(builder, args[2], pack.dtype.name), _place(builder, pack, args[0], args[1]))
        return context.get_dummy_value()

    return types.void(packs, types.int64, types.float64), emit


@intrinsic
def room(typingctx, packs, first):
    """Pack `first` of the block's dynamic shared memory, of the kind of `packs`."""

    def emit(context, builder, sig, args):
        name = "dynamic_shared_memory"
        memory = builder.module.globals.get(name)
        if memory is None:
            memory = ir.GlobalVariable(builder.module, ir.ArrayType(ir.IntType(8), 0), name, addrspace=SHARED)
            memory.linkage, memory.align = "external", ACCESS
        kind = context.get_value_type(packs)
        generic = builder.addrspacecast(memory, ir.IntType(8).as_pointer())
        return builder.gep(builder.bitcast(generic, kind), [args[1]])

    return packs(packs, types.int64), emit


def from_further(value, delta):
    """`value` of the thread `delta` further on in the warp, where there is one."""
    raise NotImplementedError


@overload(from_further, inline="always")
def _(value, delta):
    return lambda value, delta: cuda.shfl_down_sync(0xFFFFFFFF, value, delta)


@intrinsic
def load_table(typingctx, table, i, packs):
    """table[i : i + lanes] of a float64 array in shared memory."""

    def emit(context, builder, sig, args):
        kind = ir.VectorType(DOUBLE, packs.dtype.lanes)
        data = context.make_array(table)(context, builder, args[0]).data
        vector = ir.Constant(kind, ir.Undefined)
        for lane in range(kind.count):
            place = builder.gep(data, [builder.add(args[1], ir.Constant(args[1].type, lane))])
            vector = builder.insert_element(vector, builder.load(place), I32(lane))
        return vector

    return Vector(packs.dtype.lanes)(table, types.int64, packs), emit


@intrinsic
def store_table(typingctx, table, i, vector):
    """table[i : i + lanes] = vector."""

    def emit(context, builder, sig, args):
        data = context.make_array(table)(context, builder, args[0]).data
        for lane in range(vector.lanes):
            place = builder.gep(data, [builder.add(args[1], ir.Constant(args[1].type, lane))])
            builder.store(builder.extract_element(args[2], I32(lane)), place)
        return context.get_dummy_value()

    return types.void(table, types.int64, vector), emit


# ---- which lanes count: numbers, 0 where one does not


def _number_where(test):
    """An intrinsic: 1 in the lanes that pass, 0 in the others; of a number one number."""

    def typed(typingctx, v):
        result = _lane_by_lane((v,)) or types.float64

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
    result = _lane_by_lane((m, v)) or types.float64

    def emit(context, builder, sig, args):
        if result is types.float64:
            m, v = args
        else:
            m, v = _vectors(context, builder, result, sig.args, args)
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


def _field(given, index):
    """Typing and code for a field of a named tuple; without an index None."""
    if index is None:
        return types.none(given), lambda context, builder, sig, args: context.get_dummy_value()
    return given.types[index](given), lambda context, builder, sig, args: builder.extract_value(args[0], index)


def _itself(given):
    return given(given), lambda context, builder, sig, args: args[0]


@intrinsic
def leading(typingctx, dy):
    """dy itself; of a Tangent or a Both the first."""
    return _field(dy, 0) if isinstance(dy, types.BaseNamedTuple) else _itself(dy)


@intrinsic
def is_tangent(typingctx, dy):
    """Whether dy is a Tangent: a constant for LLVM."""
    answer = getattr(dy, "instance_class", None) is Tangent
    return types.boolean(dy), lambda context, builder, sig, args: context.get_constant(types.boolean, answer)


@intrinsic
def of_dy(typingctx, dy):
    """dy itself; of a Both its dy, of a Tangent None."""
    if not isinstance(dy, types.BaseNamedTuple):
        return _itself(dy)
    return _field(dy, {Tangent: None, Both: 0}[dy.instance_class])


@intrinsic
def of_ddx(typingctx, dy):
    """The ddx of a Tangent or a Both; else None."""
    return _field(dy, len(dy) - 1 if isinstance(dy, types.BaseNamedTuple) else None)


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
