"""A first call says what it compiles, to those who ask, and compiles its own twin only; a later one says nothing."""

import logging
import re

import numba
import numpy as np
import pytest

from nbnorm._cpu import launch
from nbnorm._cpu.finalize import commit_running


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


def body(values, workers):
    for w in numba.prange(workers):
        values[w] = workers


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_call_waits_for_its_own_twin_only(workers):
    kernel, values = launch.Kernel(body), np.zeros(2)
    kernel(values, workers)
    np.testing.assert_array_equal(values, [workers, workers * (workers == 2)])
    twins = kernel.serial, kernel.parallel
    assert [len(twin.dispatcher.signatures) for twin in twins] == ([1, 0] if workers == 1 else [0, 1])
