"""The vector value in memory: packs that are read, kept as they are or widened, and rounded once on the way back;
single values; shared memory; and what threads of a warp pass on to each other."""

from __future__ import annotations

from llvmlite import ir

from nbnorm._cuda.intrinsics import ELEMENT, Raw, Vector, access, intrinsic, routine
from nbnorm._cuda.launch import cuda, types
from nbnorm._cuda.plan import ACCESS
from nbnorm._floats import DOUBLE, FLOAT, I16, I32, MEMORY, narrow, widen

SHARED = 3  # LLVM's address space


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


def _unpack(builder, raw, pack, element):
    """The values of what was read."""
    if raw.type.element != I32:
        return widen(builder, raw, pack.dtype.name, element)
    vector = ir.Constant(ir.VectorType(element, pack.lanes), ir.Undefined)
    for lane in range(pack.lanes):
        word = builder.extract_element(raw, I32(lane // 2))
        half = builder.trunc(builder.lshr(word, I32(16)) if lane % 2 else word, I16)
        vector = builder.insert_element(vector, widen(builder, half, pack.dtype.name, element), I32(lane))
    return vector


def _pack(builder, vector, kind, pack):
    """What is to be written for these values."""
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
        kind, size = access(packs.dtype)
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


@intrinsic
def values_as(typingctx, k, raw):
    """The same as float32 where k, a number or a vector value, is that."""
    found, emit = _values(raw, number_of(k))
    return found.return_type(k, raw), lambda context, builder, sig, args: emit(context, builder, sig, args[1:])


def number_of(k):
    """What a number or a vector value has in its lanes."""
    return getattr(k, "number", types.float32 if k is types.float32 else types.float64)


def _values(raw, number=types.float64):
    if isinstance(raw, types.BaseNamedTuple):
        return _of_each(raw, _values)
    if raw is types.none:
        return types.none(raw), lambda context, builder, sig, args: context.get_dummy_value()
    kind = Vector(raw.pack.lanes, number)
    return kind(raw), lambda context, builder, sig, args: _unpack(builder, args[0], raw.pack, ELEMENT[number])


@intrinsic
def ahead(typingctx, packs, i, here):
    """Ask for pack i, where `here` holds: it is on its way to the second-level cache when this returns."""

    def emit(context, builder, sig, args):
        if packs is not types.none:
            with builder.if_then(args[2]):
                place = builder.gep(args[0], [args[1]])
                kind = ir.FunctionType(ir.VoidType(), [place.type])
                builder.call(ir.InlineAsm(kind, "prefetch.L2 [$0];", "l", side_effect=True), [place])
        return context.get_dummy_value()

    return types.void(packs, types.int64, types.boolean), emit


@intrinsic
def store(typingctx, packs, i, vector):
    """Pack i = vector."""

    def emit(context, builder, sig, args):
        kind, _ = access(packs.dtype)
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
    kind, size = access(pack)
    builder.store(raw, builder.bitcast(builder.gep(args[0], [args[1]]), kind.as_pointer()), align=size)


def _place(builder, pack, pointer, i):
    """Address of value i."""
    first = builder.bitcast(pointer, MEMORY[pack.dtype.name].as_pointer())
    return builder.gep(first, [i])


@intrinsic
def element(typingctx, packs, i):
    """Value i, as a float64."""
    return _element(packs)


@intrinsic
def element_as(typingctx, k, packs, i):
    """The same as float32 where k is that."""
    found, emit = _element(packs, number_of(k))
    return found.return_type(k, *found.args), lambda context, builder, sig, args: emit(context, builder, sig, args[1:])


def _element(packs, number=types.float64):
    if isinstance(packs, types.BaseNamedTuple):
        return _of_each(packs, _element, types.int64)
    if packs is types.none:
        return types.none(packs, types.int64), lambda context, builder, sig, args: context.get_dummy_value()

    def emit(context, builder, sig, args):
        place = _place(builder, packs.dtype, *args)
        return widen(builder, builder.load(place), packs.dtype.dtype.name, ELEMENT[number])

    return number(packs, types.int64), emit


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

    return types.void(packs, types.int64, types.float32 if value is types.float32 else types.float64), emit


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


@routine
def from_further(value, delta):
    """`value` of the thread `delta` further on in the warp, where there is one."""
    return cuda.shfl_down_sync(0xFFFFFFFF, value, delta)


@intrinsic
def load_table(typingctx, table, i, packs):
    """table[i : i + lanes] of an array in shared memory."""

    def emit(context, builder, sig, args):
        kind = ir.VectorType(ELEMENT[table.dtype], packs.dtype.lanes)
        data = context.make_array(table)(context, builder, args[0]).data
        vector = ir.Constant(kind, ir.Undefined)
        for lane in range(kind.count):
            place = builder.gep(data, [builder.add(args[1], ir.Constant(args[1].type, lane))])
            vector = builder.insert_element(vector, builder.load(place), I32(lane))
        return vector

    return Vector(packs.dtype.lanes, table.dtype)(table, types.int64, packs), emit


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
