"""_cpu/frontend.py: what it leaves out of Numba's work, and what it remembers of it."""

import itertools
import operator

import pytest
from numba import config, types
from numba.core.compiler import DefaultPassBuilder, Flags, StateDict
from numba.core.cpu import ParallelOptions
from numba.core.registry import cpu_target

from nbnorm._cpu import frontend

BOTH = [*("add", "sub", "mul", "truediv", "floordiv", "mod", "iadd", "isub", "imul"), "and_", "or_", "lshift", "rshift"]
RELATIONS = ["lt", "le", "eq", "ne", "gt", "ge"]
ONE = ["neg", "pos", "invert", "not_"]
NUMBERS = [types.int64, types.uint64, types.float32, types.float64, types.boolean, types.literal(3)]


@pytest.fixture
def numbas():
    context = cpu_target.typing_context
    context.refresh()
    return context


def resolved(context, function, args):
    """The signature, or None of what has none."""
    try:
        return context.resolve_function_type(context.resolve_value_type(function), args, {})
    except Exception:
        return None


@pytest.mark.skipif(config.DISABLE_JIT, reason="asks the compiler")
@pytest.mark.parametrize(
    ("name", "number"), [*((name, 2) for name in BOTH + RELATIONS), *((name, 1) for name in ONE), ("bool", 1)]
)
def test_what_is_remembered_is_what_numba_says(numbas, name, number, monkeypatch):
    monkeypatch.setattr(frontend, "_signatures", {})
    function, ours = getattr(operator, name, bool), frontend._Typing(numbas)
    for args in itertools.product(NUMBERS, repeat=number):
        expected = resolved(numbas, function, args)
        first, again = resolved(ours, function, args), resolved(ours, function, args)
        assert first == again == expected
        assert first is again
    assert frontend._signatures


@pytest.mark.skipif(config.DISABLE_JIT, reason="asks the compiler")
def test_what_is_not_about_numbers_is_asked_again(numbas, monkeypatch):
    monkeypatch.setattr(frontend, "_signatures", {})
    ours, array = frontend._Typing(numbas), types.float64[::1]
    for function, args in ((operator.getitem, (array, types.int64)), (operator.add, (array, array)), (len, (array,))):
        found = resolved(ours, function, args)
        assert found is not None
        assert found == resolved(numbas, function, args)
    assert frontend._signatures == {}


@pytest.mark.skipif(config.DISABLE_JIT, reason="asks the compiler")
@pytest.mark.parametrize("parallel", [False, True])
def test_all_other_passes_stay_in_their_order(parallel):
    def state():
        flags = Flags()
        flags.auto_parallel = ParallelOptions(parallel)
        return StateDict({"flags": flags, "func_ir": None, "typingctx": None})

    numbas = DefaultPassBuilder.define_nopython_pipeline(state()).passes
    (ours,) = frontend.passes(state())
    left_out = [one for one, _ in numbas if one in frontend.IDLE]
    assert [one for one, _ in ours.passes] == [one for one, _ in numbas if one not in frontend.IDLE]
    assert len(left_out) == 2 + parallel
