"""Region: what one worker does, done for each of them, in this thread or in Numba's threads.

A parallel loop of Numba's is machine code of its own, compiled beside that for one thread. Here both are the same code:
Numba's function that shares a loop out among its threads, whichever threading layer it has chosen, is an address among
the arguments of a kernel, and is not asked where one worker does it all.
"""

from __future__ import annotations

from types import SimpleNamespace

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.core.callconv import RETCODE_OK, errcode_t, excinfo_ptr_t

from nbnorm._cpu.intrinsic import intrinsic
from nbnorm._cpu.vector_memory import I8, LINE
from nbnorm._floats import I32, I64

POINTER = I8.as_pointer()
OF_RANGE = ir.FunctionType(ir.VoidType(), [POINTER.as_pointer(), I64.as_pointer(), I64.as_pointer(), POINTER])
SHARING_OUT = ir.FunctionType(ir.VoidType(), [OF_RANGE.as_pointer(), *OF_RANGE.args, I64, I64, I64])


@intrinsic
def each_worker(typingctx, body, workers, share_out, *arguments):
    """body(taken, worker, workers, *arguments) for each worker; `taken` are counters for deal.py. Not in a loop: what
    it needs is on the stack of the kernel.

    Arrays are contiguous, and come without their owner: a body counts no references.
    """
    signature = typingctx.resolve_function_type(body, (types.int64, types.int64, types.int64, *arguments), {})

    def emit(ctx, builder, sig, args):
        compiled = body.dispatcher.get_compile_result(signature)
        ctx.add_linking_libs([compiled.library])
        _, workers, share_out, *given = args
        failure = [ir.Constant(errcode_t, 0), ir.Constant(excinfo_ptr_t, None)]
        known = [*failure, _counters(builder, workers), workers]
        for kind, value in zip(arguments, given, strict=True):
            known += _parts(ctx, builder, kind, value)
        shared = builder.alloca(ir.LiteralStructType([value.type for value in known]))
        for i, value in enumerate(known):
            builder.store(value, _field(builder, shared, i))
        of_range = _of_range(builder, _of_one(ctx, builder, shared.type, compiled.fndesc, signature))

        first, number, step = (builder.alloca(kind) for kind in (POINTER, I64, I64))
        for place, value in ((first, ir.Constant(POINTER, None)), (number, workers), (step, I64(1))):
            builder.store(value, place)
        own = [first, number, step, builder.bitcast(shared, POINTER)]
        with builder.if_else(builder.icmp_signed("==", workers, I64(1))) as (alone, together):
            with alone:
                builder.call(of_range, own)
            with together:
                address = builder.inttoptr(share_out, SHARING_OUT.as_pointer())
                builder.call(address, [of_range, *own, I64(0), I64(1), workers])
        if config.BOUNDSCHECK:  # nothing else in a body can fail, and a way out has counts of references
            code, cause = (builder.load(_field(builder, shared, i)) for i in range(2))
            with cgutils.if_unlikely(builder, builder.icmp_unsigned("!=", code, RETCODE_OK)):
                ctx.call_conv.return_status_propagate(builder, SimpleNamespace(code=code, excinfoptr=cause))
        return ctx.get_dummy_value()

    return types.void(body, types.int64, types.int64, *arguments), emit


def _counters(builder, workers):
    """0 for each worker: the address of a cache line for each, on the stack of the kernel."""
    size = builder.mul(workers, I64(LINE))
    memory = builder.alloca(I8, size)
    memory.align = LINE
    cgutils.memset(builder, memory, size, 0)
    return builder.ptrtoint(memory, I64)


def _field(builder, struct, i):
    return builder.gep(struct, [I32(0), I32(i)], inbounds=True)


def _inner(outer, name, kind):
    """A function beside the one of this builder, with a builder."""
    function = ir.Function(outer.module, kind, outer.module.get_unique_name(f"{outer.function.name}.{name}"))
    function.linkage = "internal"
    function.attributes.add("noinline")  # else LLVM optimizes its code once more in what calls it
    return function, ir.IRBuilder(function.append_basic_block("entry"))


def _of_range(outer, of_one):
    """What Numba's function calls in each thread, for the workers from args[0] on, dims[0] of them."""
    function, builder = _inner(outer, "of_range", OF_RANGE)
    args, dims, _, data = function.args
    first, number = builder.ptrtoint(builder.load(args), I64), builder.load(dims)
    with cgutils.for_range(builder, number) as loop:
        builder.call(of_one, [builder.add(first, loop.index), data])
    builder.ret_void()
    return function


def _of_one(ctx, outer, shared, body, signature):
    """The body, with the arguments that lie in `data`."""
    function, builder = _inner(outer, "of_one", ir.FunctionType(ir.VoidType(), [I64, POINTER]))
    worker, data = function.args
    data = builder.bitcast(data, shared)
    taken, workers, *parts = (builder.load(_field(builder, data, i)) for i in range(2, len(shared.pointee.elements)))
    rest = iter(parts)
    given = [_whole(ctx, builder, kind, rest) for kind in signature.args[3:]]
    status, _ = ctx.call_internal_no_propagate(builder, body, signature, [taken, worker, workers, *given])
    if config.BOUNDSCHECK:
        with cgutils.if_unlikely(builder, status.is_error):
            builder.store(status.code, _field(builder, data, 0))
            builder.store(status.excinfoptr, _field(builder, data, 1))
    builder.ret_void()
    return function


# ---- what is handed over of an argument: of arrays address and shape


def _parts(ctx, builder, kind, value):
    if kind == types.none:
        return []
    if isinstance(kind, types.BaseTuple):
        each = (builder.extract_value(value, i) for i in range(len(kind)))
        return [part for one, its in zip(kind.types, each, strict=True) for part in _parts(ctx, builder, one, its)]
    if isinstance(kind, types.Array):
        assert kind.layout == "C"
        array = cgutils.create_struct_proxy(kind)(ctx, builder, value)
        return [array.data, *cgutils.unpack_tuple(builder, array.shape)]
    return [value]


def _whole(ctx, builder, kind, parts):
    if kind == types.none:
        return ctx.get_dummy_value()
    if isinstance(kind, types.BaseTuple):
        return ctx.make_tuple(builder, kind, [_whole(ctx, builder, one, parts) for one in kind.types])
    if not isinstance(kind, types.Array):
        return next(parts)
    array = cgutils.create_struct_proxy(kind)(ctx, builder)
    array.data, shape = next(parts), [next(parts) for _ in range(kind.ndim)]
    array.nitems, array.itemsize = I64(1), I64(ctx.get_abi_sizeof(ctx.get_data_type(kind.dtype)))
    strides: list[ir.Value] = []
    for length in reversed(shape):
        strides.insert(0, builder.mul(array.itemsize, array.nitems))
        array.nitems = builder.mul(array.nitems, length)
    array.shape, array.strides = cgutils.pack_array(builder, shape), cgutils.pack_array(builder, strides)
    array.meminfo, array.parent = (ir.Constant(a.type, None) for a in (array.meminfo, array.parent))
    return array._getvalue()


if config.DISABLE_JIT:
    from nbnorm._cpu.vector_python import each_worker  # noqa: F401
