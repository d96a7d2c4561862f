"""_cpu/frontend.py: what it leaves out of Numba's work, and what it remembers of it."""

import itertools
import math
import operator
import sys

import pytest
from numba import config, njit, types
from numba.core.compiler import DefaultPassBuilder, Flags, StateDict
from numba.core.registry import cpu_target

from nbnorm._cpu import finalize, frontend, fused, part, reduce

pytestmark = pytest.mark.skipif(config.DISABLE_JIT, reason="asks the compiler")

OF_TWO = [
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.iadd),
    *(operator.isub, operator.imul, operator.and_, operator.or_, operator.lshift, operator.rshift),
    *(operator.lt, operator.le, operator.eq, operator.ne, operator.gt, operator.ge),
]
OF_ONE = [bool, operator.neg, operator.pos, operator.invert, operator.not_]
NUMBERS = [types.int64, types.uint64, types.float32, types.float64, types.boolean, types.literal(3)]


@pytest.fixture
def numbas(monkeypatch):
    """Numba's own, with nothing remembered yet."""
    monkeypatch.setattr(frontend, "_signatures", {})
    context = cpu_target.typing_context
    context.refresh()
    return context


def resolved(context, function, args):
    """The signature, or None of what has none."""
    try:
        return context.resolve_function_type(context.resolve_value_type(function), args, {})
    except Exception:
        return None


def test_what_is_remembered_is_what_numba_says(numbas):
    ours, found = frontend._Typing(numbas), []
    for number, functions in ((1, OF_ONE), (2, OF_TWO)):
        for function, args in itertools.product(functions, itertools.product(NUMBERS, repeat=number)):
            found.append((function, args, resolved(ours, function, args)))
    for function, args, first in found:
        assert resolved(numbas, function, args) == first
        assert resolved(ours, function, args) is first
    assert len(frontend._signatures) == sum(first is not None for *_, first in found) > 600


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (operator.getitem, (types.float64[::1], types.int64)),
        (operator.add, (types.float64[::1], types.float64[::1])),
        (len, (types.float64[::1],)),
        (math.sqrt, (types.float64,)),
        (max, (types.int64, types.int64)),
    ],
    ids=str,
)
def test_nothing_else_is_remembered(numbas, function, args):
    found = resolved(frontend._Typing(numbas), function, args)
    assert found is not None
    assert found == resolved(numbas, function, args)
    assert frontend._signatures == {}


def test_all_other_passes_stay_in_their_order():
    def state():
        return StateDict({"flags": Flags(), "func_ir": None, "typingctx": None})

    numbas = [one for one, _ in DefaultPassBuilder.define_nopython_pipeline(state()).passes]
    (ours,) = frontend.passes(given := state())
    assert [one for one, _ in ours.passes] == [one for one in numbas if one.name() not in frontend.IDLE]
    assert sum(one.name() in frontend.IDLE for one in numbas) == len(frontend.IDLE)
    assert isinstance(given.typingctx, frontend._Typing)


def test_every_kernel_is_compiled_so():
    for compiled, its in (
        (fused.fused_columns.compiled.dispatcher, frontend.KernelCompiler),
        (finalize.finalize.dispatcher, frontend.KernelCompiler),
        (fused.fuse_columns, part.PartCompiler),
        (reduce.sum_columns, part.PartCompiler),
    ):
        assert compiled._compiler.pipeline_class is its


def test_a_kernel_is_compiled_with_room_for_frames():
    """In a frame after which so much of one piece of memory is left that no call needs another."""
    frames = []

    class Compiler(frontend.KernelCompiler):
        def define_pipelines(self):
            frame = sys._getframe()
            while frame is not None:
                frames.append(frame.f_code)
                frame = frame.f_back
            return super().define_pipelines()

    assert njit(pipeline_class=Compiler)(lambda n: 2 * n)(21) == 42
    (room,) = {code.co_stacksize for code in frames if code.co_stacksize > 1000}
    piece = 16 * 1024  # of CPython, which doubles it until a frame fits in
    while piece < 8 * room:
        piece *= 2
    assert piece - 8 * room > 512 * 1024
    assert frontend._with_room(divmod, 7, 2) == (3, 1)
