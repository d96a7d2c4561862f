"""Who computes what: every task once, whoever comes when."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from nbnorm._cpu.deal import even, portion, portion_from_the_end, share, take
from nbnorm._cpu.launch import Kernel
from nbnorm._cpu.region import each_worker
from nbnorm._cpu.vector import LANES, routine
from nbnorm._cpu.vector_memory import LINE


def dealt(order, workers, tasks, backwards):
    """How often each task was given away, and what each worker got, which take portions in this order and then, one
    after the other, all that is left."""
    counters, times = np.zeros((workers, LINE), np.uint8), np.zeros((workers, tasks), np.int64)
    taken = [0] * workers if numba.config.DISABLE_JIT else counters.ctypes.data
    deal(taken, order, np.zeros(workers, np.int64), workers, tasks, backwards, times)
    return times


@numba.njit
def deal(taken, order, done, workers, tasks, backwards, times):
    for worker in order:
        if backwards:
            done[worker], first, last = portion_from_the_end(taken, done[worker], worker, workers, tasks)
        else:
            done[worker], first, last = portion(taken, done[worker], worker, workers, tasks)
        times[worker, first:last] += 1


@numba.njit
def shares_and_widths(worker, workers, tasks, columns, most):
    return share(worker, workers, tasks), even(columns, most)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_every_task_is_given_away_once(rng, workers, backwards):
    for tasks in (0, 1, 2, 5, 31, 64, 257):
        order = rng.integers(workers, size=rng.integers(40))  # then each asks until there is nothing in all its shares
        order = np.concatenate([order, np.repeat(rng.permutation(workers), 7 * workers)])
        assert np.array_equal(dealt(order, workers, tasks, backwards).sum(0), np.ones(tasks))


@routine
def takes(taken, worker, workers, got):
    for i in range(worker * got.size // workers, (worker + 1) * got.size // workers):
        got[i] = 2 * take(taken, i % 2) + i % 2


@Kernel
def taken_at_once(got, workers, share_out):
    """What all threads get who take of two shares, by turns: of one alone LLVM could count in a register."""
    each_worker(takes, workers, share_out, got)


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="ONE THREAD: nobody else takes")
def test_two_threads_never_take_the_same_portion():
    """Many times, since on busy cores the threads are rarely there together."""
    for _ in range(50):
        got = np.empty(1_000 if numba.config.DISABLE_JIT else 500_000, np.int64)
        taken_at_once(got, 2)
        assert np.bincount(got, minlength=got.size).max() == 1


@pytest.mark.parametrize("backwards", [False, True])
def test_one_that_comes_late_is_not_waited_for(backwards):
    times = dealt(np.array([0] * 20 + [1] * 20), 2, 100, backwards)
    assert times[0].sum() == 100
    assert times[1].sum() == 0


@pytest.mark.parametrize("backwards", [False, True])
def test_who_comes_in_time_gets_its_share(backwards):
    """Which is where it found its data before, in the other direction too."""
    times = dealt(np.array([0, 1] * 20), 2, 100, backwards)
    assert np.array_equal(times[0], np.arange(100) < 50)
    assert np.array_equal(times[1], np.arange(100) >= 50)


def test_parts_of_columns_are_about_as_wide_as_each_other():
    for most in (2 * LANES, 1024):
        for columns in (1, 31, 32, 33, most - 1, most, most + 1, 3 * most + 5, 40 * most + 1):
            (first, last), width = shares_and_widths(0, 2, 10, columns, most)
            assert (first, last) == (0, 5)
            parts = -(-columns // width)
            assert width % LANES == 0
            assert width <= most
            assert parts <= -(-columns // most)
            assert width - (columns - (parts - 1) * width) < parts * LANES  # what the last one has less
