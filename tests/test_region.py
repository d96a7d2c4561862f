"""What each worker does is done once for each of them, alone or in threads, by one compilation."""

import subprocess
import sys
from typing import NamedTuple

import numba
import numpy as np
import pytest

import nbnorm
from nbnorm._cpu import stages
from nbnorm._cpu.launch import Kernel
from nbnorm._cpu.region import each_worker
from nbnorm._cpu.vector import routine

MOST = numba.config.NUMBA_NUM_THREADS


class Pair(NamedTuple):
    one: np.ndarray
    other: np.ndarray


@routine
def note(taken, worker, workers, times, pair, nothing, slope):
    times[worker] += 1
    pair.one[worker], pair.other[worker] = slope * worker, workers
    if nothing is not None:
        times[worker] = -1


@Kernel
def noted(times, pair, nothing, slope, workers, share_out):
    each_worker(note, workers, share_out, times, pair, nothing, slope)


@pytest.mark.parametrize("workers", sorted({1, min(2, MOST), MOST}))
def test_each_worker_comes_once(workers):
    for _ in range(100):
        times, pair = np.zeros(MOST, np.int64), Pair(np.full(MOST, np.nan), np.full(MOST, np.nan))
        noted(times, pair, None, 0.5, workers)
        absent = [np.nan] * (MOST - workers)
        np.testing.assert_array_equal(times, [1] * workers + [0] * (MOST - workers))
        np.testing.assert_array_equal(pair.one, [*(0.5 * np.arange(workers)), *absent])
        np.testing.assert_array_equal(pair.other, [workers] * workers + absent)


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")
def test_a_kernel_is_compiled_once_for_any_number_of_workers():
    times, pair = np.zeros(MOST, np.int64), Pair(np.zeros(MOST), np.zeros(MOST))
    kernel = Kernel(noted.compiled.dispatcher.py_func)
    for workers in (1, MOST, 1):
        kernel(times, pair, None, 2.0, workers)
    assert times.tolist() == [3, *[1] * (MOST - 1)]
    assert len(kernel.compiled.dispatcher.signatures) == 1


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")
def test_a_body_owns_no_array(monkeypatch):
    """Else threads would wait for each other at every view: a count is one number for all of them."""
    kernel = Kernel(stages.fused_columns.compiled.dispatcher.py_func)
    kernel.compiled.dispatcher = kernel.compiled._compile_anew()  # what comes from the cache cannot be read
    monkeypatch.setattr(stages, "fused_columns", kernel)
    y, _ = nbnorm.batch_norm_training(np.float32([[1], [3]]), nbnorm.BatchNormState(1, eps=1e-12))
    assert y.tolist() == [[-1], [1]]
    (code,) = kernel.compiled.dispatcher.inspect_llvm().values()
    assert "of_range" in code
    assert "call void @NRT_incref" not in code


OUTSIDE = """
import sys, numpy as np
from nbnorm._cpu.launch import Kernel
from nbnorm._cpu.region import each_worker
from nbnorm._cpu.vector import routine

@routine
def write(taken, worker, workers, values, place):
    values[place] = 1 + worker // 2

def body(values, place, workers, share_out):
    each_worker(write, workers, share_out, values, place)

kernel = Kernel(body)
kernel(values := np.zeros(3), 2, int(sys.argv[1]))
print(values.tolist() == [0, 0, 1])
kernel(values, 3, int(sys.argv[1]))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_where_indices_are_checked_what_fails_in_a_thread_is_raised(workers, monkeypatch):
    monkeypatch.setenv("NUMBA_BOUNDSCHECK", "1")
    monkeypatch.setenv("NUMBA_NUM_THREADS", "2")
    done = subprocess.run([sys.executable, "-c", OUTSIDE, str(workers)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "True\n")
    assert "IndexError: index" in done.stderr
