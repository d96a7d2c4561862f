"""The simulator, as turns.py runs it, shows what is wrong with a kernel whose threads do not wait for each other."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import SIMULATED

pytestmark = pytest.mark.skipif(not SIMULATED, reason="ONLY THE SIMULATOR has threads that take turns")

THREADS = 8

if SIMULATED:
    from numba import cuda

    @cuda.jit
    def turned_around(x, waits):
        t, kept = cuda.threadIdx.x, cuda.shared.array(THREADS, np.float64)
        kept[t] = x[t]
        if waits:
            cuda.syncthreads()
        x[t] = kept[THREADS - 1 - t]

    @cuda.jit
    def added(x, total, takes_turns):
        for t in range(THREADS):
            if t == cuda.threadIdx.x:
                total[0] += x[t]
            if takes_turns:
                cuda.syncthreads()

    @cuda.jit
    def one_fails(x):
        if cuda.threadIdx.x == 3:
            raise ZeroDivisionError
        cuda.syncthreads()
        x[cuda.threadIdx.x] = 0.0


def test_a_barrier_that_is_missing():
    x = np.arange(float(THREADS))
    turned_around[1, THREADS](x, True)
    assert x.tolist() == list(range(THREADS))[::-1]
    turned_around[1, THREADS](x, False)
    assert x.tolist() != list(range(THREADS))


def test_a_sum_that_all_threads_write():
    x, total = np.arange(float(THREADS)), np.zeros(1)
    added[1, THREADS](x, total, True)
    assert total[0] == x.sum()
    total[0] = 0
    added[1, THREADS](x, total, False)
    assert total[0] < x.sum()


def test_a_thread_that_fails():
    """The others end without a value, and the next kernel runs."""
    x = np.arange(float(THREADS))
    with pytest.raises(ZeroDivisionError):
        one_fails[1, THREADS](x)
    assert x.tolist() == list(range(THREADS))
    turned_around[1, THREADS](x, True)
    assert x.tolist() == list(range(THREADS))[::-1]
