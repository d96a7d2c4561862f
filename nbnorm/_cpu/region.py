"""Region: what one worker does, done for each of them, in this thread or in Numba's threads.

Numba's own parallel loop makes a kernel of its own, which has to be compiled beside that for one thread. Here both are
the same code: Numba's function that shares work out among its threads, whichever its threading layer is, is an address
among the arguments, and not needed for one worker.
"""

from __future__ import annotations

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.core.callconv import RETCODE_OK, errcode_t, excinfo_ptr_t

from nbnorm._cpu.intrinsic import intrinsic
from nbnorm._cpu.vector_memory import I8, LINE
from nbnorm._floats import I32, I64

POINTER = I8.as_pointer()
OF_RANGE = ir.FunctionType(ir.VoidType(), [POINTER.as_pointer(), I64.as_pointer(), I64.as_pointer(), POINTER])
SHARING_OUT = ir.FunctionType(ir.VoidType(), [OF_RANGE.as_pointer(), *OF_RANGE.args, I64, I64, I32])


@intrinsic
def each_worker(typingctx, body, workers, threads, *arguments):
    """body(taken, worker, workers, *arguments) for each worker; `taken` are counters for deal.py.

    Arrays come without their owner: a body counts no references.
    """
    signature = typingctx.resolve_function_type(body, (types.int64, types.int64, types.int64, *arguments), {})

    def emit(ctx, builder, sig, args):
        compiled = body.dispatcher.get_compile_result(signature)
        ctx.add_linking_libs([compiled.library])
        _, workers, threads, *given = args
        failure = [ir.Constant(errcode_t, 0), ir.Constant(excinfo_ptr_t, None)]
        known = [*failure, _counters(builder, workers), workers, *given]
        shared = builder.alloca(ir.LiteralStructType([value.type for value in known]))
        for i, value in enumerate(known):
            builder.store(value, _field(builder, shared, i))
        of_range = _of_range(ctx, builder, shared.type, compiled.fndesc, signature)

        first, number, step = (builder.alloca(kind) for kind in (POINTER, I64, I64))
        for place, value in ((first, ir.Constant(POINTER, None)), (number, workers), (step, I64(1))):
            builder.store(value, place)
        own = [first, number, step, builder.bitcast(shared, POINTER)]
        with builder.if_else(builder.icmp_signed("==", workers, I64(1))) as (alone, together):
            with alone:
                builder.call(of_range, own)
            with together:
                share_out = builder.inttoptr(threads, SHARING_OUT.as_pointer())
                builder.call(share_out, [of_range, *own, I64(0), I64(1), builder.trunc(workers, I32)])
        if config.BOUNDSCHECK:  # nothing else in a body can fail, and a way out has counts of references
            code, cause = (builder.load(_field(builder, shared, i)) for i in range(2))
            with cgutils.if_unlikely(builder, builder.icmp_unsigned("!=", code, RETCODE_OK)):
                ctx.call_conv.return_status_propagate(builder, _Failure(code, cause))
        return ctx.get_dummy_value()

    return types.void(body, types.int64, types.int64, *arguments), emit


class _Failure:
    """As much of Numba's status as is handed on."""

    def __init__(self, code, excinfoptr):
        self.code, self.excinfoptr = code, excinfoptr


def _field(builder, struct, i):
    return builder.gep(struct, [I32(0), I32(i)], inbounds=True)


def _unowned(ctx, builder, kind, value):
    """Arrays, also those of a tuple, without what counts references to them."""
    if isinstance(kind, types.Array):
        array = cgutils.create_struct_proxy(kind)(ctx, builder, value)
        array.meminfo, array.parent = (ir.Constant(a.type, None) for a in (array.meminfo, array.parent))
        return array._getvalue()
    if isinstance(kind, types.BaseTuple):
        parts = [_unowned(ctx, builder, one, builder.extract_value(value, i)) for i, one in enumerate(kind.types)]
        return ctx.make_tuple(builder, kind, parts)
    return value


def _counters(builder, workers):
    """0 for each worker: the address of a cache line for each, on the stack of the kernel."""
    size = builder.mul(workers, I64(LINE))
    memory = builder.alloca(I8, size)
    memory.align = LINE
    cgutils.memset(builder, memory, size, 0)
    return builder.ptrtoint(memory, I64)


def _of_range(ctx, kernel, shared, body, signature):
    """What Numba's function calls in each thread, for the workers from args[0] on, dims[0] of them."""
    name = kernel.module.get_unique_name(f"{kernel.function.name}.of_range")
    function = ir.Function(kernel.module, OF_RANGE, name)
    function.linkage = "internal"
    function.attributes.add("noinline")  # it is called in two places
    args, dims, _, data = function.args
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    first, number = builder.ptrtoint(builder.load(args), I64), builder.load(dims)
    data = builder.bitcast(data, shared)
    taken, workers, *given = (builder.load(_field(builder, data, i)) for i in range(2, len(shared.pointee.elements)))
    given = [_unowned(ctx, builder, kind, value) for kind, value in zip(signature.args[3:], given, strict=True)]
    with cgutils.for_range(builder, number) as loop:
        worker = builder.add(first, loop.index)
        status, _ = ctx.call_internal_no_propagate(builder, body, signature, [taken, worker, workers, *given])
        if config.BOUNDSCHECK:
            with cgutils.if_unlikely(builder, status.is_error):
                builder.store(status.code, _field(builder, data, 0))
                builder.store(status.excinfoptr, _field(builder, data, 1))
    builder.ret_void()
    return function


if config.DISABLE_JIT:
    from nbnorm._cpu.vector_python import each_worker  # noqa: F401
