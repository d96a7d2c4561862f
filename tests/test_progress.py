"""A first call says what it compiles, to those who ask; a later one says nothing."""

import gc
import logging
import re

import numba
import numpy as np
import pytest

from nbnorm._cpu import launch, progress
from nbnorm._cpu.commits import commit_running
from nbnorm._cpu.vector import routine


@pytest.fixture
def kernel():
    """As when the cache is empty."""
    compiled = launch.Compiled(commit_running.dispatcher.py_func)
    compiled.dispatcher = compiled._compile_anew()
    return compiled


def commit(kernel):
    both, counters = np.float64([1, 2, 3, 5]), np.zeros(3, np.int64)
    kernel(np.float64([[4, 4], [0, 2], [6, 9], [1, 1], [1, 1]]), 4.0, 0.5, 1, both, counters, None)
    np.testing.assert_array_equal(both, [2.5, 4, 2.5, 4])
    assert counters.tolist() == [1, 4, 0]


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")
def test_a_kernel_that_is_compiled_is_a_line_before_and_one_after(kernel, caplog, capfd):
    caplog.set_level(logging.INFO, "nbnorm")
    commit(kernel)
    commit(kernel)
    numba.njit(lambda: 0)()  # somebody else's
    assert {(name, level) for name, level, _ in caplog.record_tuples} == {("nbnorm", logging.INFO)}
    before, after = caplog.messages
    assert before == "compiling commit_running"
    seconds = re.fullmatch(r"compiled commit_running in (\d+\.\d) s", after)
    assert 0 < float(seconds[1]) < 600
    assert capfd.readouterr() == ("", "")


def test_nothing_is_shown_to_those_who_do_not_ask(kernel, capfd):
    commit(kernel)
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def thresholds():
    own = gc.get_threshold()
    yield
    gc.set_threshold(*own)


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")
@pytest.mark.parametrize(
    ("own", "meanwhile"),
    [((700, 10, 5), (50_000, 20, 100)), ((10**6, 10, 5), (10**6, 20, 100)), ((0, 10, 5), (0, 10, 5))],
    ids=str,
)
def test_the_garbage_collector_looks_less_often_meanwhile(kernel, own, meanwhile, thresholds, monkeypatch):
    gc.set_threshold(*own)
    seen = []
    monkeypatch.setattr(progress.log, "info", lambda *line: seen.append(gc.get_threshold()))
    commit(kernel)
    assert (seen, gc.get_threshold()) == ([meanwhile, own], own)


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")
def test_what_somebody_sets_meanwhile_stands(kernel, thresholds, monkeypatch):
    monkeypatch.setattr(
        progress.log, "info", lambda line, *values: line.startswith("compiling") and gc.set_threshold(9)
    )
    commit(kernel)
    assert gc.get_threshold()[0] == 9


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")
def test_a_routine_is_a_part_of_its_kernel_and_has_no_code_of_its_own():
    double = routine(lambda v: 2 * v)

    @numba.njit(**launch.KERNEL)
    def kernel(values):
        for i in range(values.size):
            values[i] = double(values[i])

    kernel(values := np.arange(3.0))
    np.testing.assert_array_equal(values, [0, 2, 4])
    (routine_compiled,) = double.overloads.values()
    (kernel_compiled,) = kernel.overloads.values()
    addresses = [
        one.library.get_pointer_to_function(one.fndesc.llvm_func_name) for one in (routine_compiled, kernel_compiled)
    ]
    assert [address > 0 for address in addresses] == [False, True]
