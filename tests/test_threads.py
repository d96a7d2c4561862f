"""The bits do not depend on the number of threads, or on the driver; how many threads, and when one works alone."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
from common import same_bits

import nbnorm
from nbnorm._cpu import launch, plan, stages, threads
from nbnorm._cpu.reduce import reduce_segments

SHAPES = {
    "channels first": ((32, 8, 28, 28), 1),
    "channels first, uneven": ((5, 7, 41, 13), 1),
    "one channel": ((3, 1, 300_000), 1),
    "few channels": ((4, 3, 128, 128), 1),
    "small images": ((64, 96, 7, 7), 1),
    "channels last": ((9, 28, 28, 96), -1),
    "table": ((30_000, 17), 1),
    "tall table": ((200_000, 3), 1),
    "wide table": ((40, 5_000), 1),
}
PROGRAM = """
import hashlib, json, sys
import numba, numpy as np, nbnorm
from nbnorm._cpu import threads as counting

counting.SERIAL_BELOW = 0

def digests(dtype, shape, axis):
    rng = np.random.default_rng(0)
    x, dy = ((rng.standard_normal(shape) + 3).astype(dtype) for _ in range(2))
    state = nbnorm.BatchNormState(shape[axis])
    y, saved = nbnorm.batch_norm_training(x, state, axis=axis)
    arrays = [y, *nbnorm.batch_norm_backward(dy, saved), nbnorm.batch_norm_inference(x, state, axis=axis)]
    arrays += [state.running_mean, state.running_var, *nbnorm.batch_stats(x, axis=axis)]
    return [hashlib.sha256(array.tobytes()).hexdigest()[:12] for array in arrays]

for threads in (1, 2, 3, 7):
    numba.set_num_threads(threads)
    found = {f"{dtype} {name}": digests(dtype, *case) for dtype in sys.argv[2:]
             for name, case in json.loads(sys.argv[1]).items()}
    print(json.dumps([threads, numba.threading_layer() if threads > 1 else "", found]))
"""


def test_thread_counts_1_2_3_and_7_give_the_same_bits():
    environment = {**os.environ, "NUMBA_NUM_THREADS": "7"}
    command = [sys.executable, "-W", "error", "-c", PROGRAM, json.dumps(SHAPES), "float32", "float64"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [threads for threads, _, _ in lines] == [1, 2, 3, 7]
    assert all(layer for threads, layer, _ in lines if threads > 1), "no parallel region has run"
    alone = lines[0][2]
    different = {(threads, case) for threads, _, found in lines for case in alone if found[case] != alone[case]}
    assert different == set()


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize(("shape", "axis"), [((64, 8, 30, 30), 1), ((32, 512, 7, 7), 1)])
def test_fused_and_split_drivers_give_the_same_bits(shape, axis, kind, monkeypatch):
    rng = np.random.default_rng(0)
    x, dy = ((rng.standard_normal(shape) + 3).astype(kind) for _ in range(2))
    used = []

    def counted(kernel):
        return lambda *args: (used.append(kernel), kernel(*args))

    for name in ("fused_segments", "fused_columns"):
        monkeypatch.setattr(stages, name, counted(getattr(stages, name)))

    def step():
        state = nbnorm.BatchNormState(shape[axis])
        y, saved = nbnorm.batch_norm_training(x, state)
        return [a.tobytes() for a in (y, state.running_var, *nbnorm.batch_norm_backward(dy, saved))]

    fused = step()
    assert len(used) == 2
    monkeypatch.setattr(plan, "CHANNEL_BYTES", 0)
    monkeypatch.setattr(plan, "blocks", lambda *shape: None)
    assert step() == fused
    assert len(used) == 2


# ---- how waiting threads wait

WAITING = """
import os, numpy as np, nbnorm
from nbnorm._cpu import threads
threads.SERIAL_BELOW = 0
x = np.arange(24.0).reshape(4, 2, 3)
print(nbnorm.batch_stats(x).mean.tolist(), "GOMP_SPINCOUNT" in os.environ, os.popen("echo [$GOMP_SPINCOUNT]").read())
"""


@pytest.mark.parametrize(
    ("set_by_the_user", "expected"),
    [({}, threads.SPINS), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "active"}, "30000000000")],
)
def test_threads_wait_briefly_unless_the_user_says_how(set_by_the_user, expected):
    """libgomp prints what it found when it was loaded; neither this process nor its children see our setting."""
    own = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment = {**own, "OMP_DISPLAY_ENV": "verbose", "NUMBA_NUM_THREADS": "2", **set_by_the_user}
    done = subprocess.run([sys.executable, "-c", WAITING], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("NO LIBGOMP: another layer waits in its own way")
    assert f"GOMP_SPINCOUNT = '{expected}'" in done.stderr
    spins = set_by_the_user.get("GOMP_SPINCOUNT", "")
    assert done.stdout.split() == ["[10.0,", "13.0]", str(bool(spins)), f"[{spins}]"]


# ---- how many: a number that Numba has not been told


@pytest.fixture
def number_of_threads():
    """Numba's setting, and nbnorm's, as they were."""
    own = numba.get_num_threads()
    yield own
    nbnorm.set_num_threads(None)
    numba.set_num_threads(own)


def seen_by_kernels(monkeypatch):
    """The number of workers of every launch in threads from now on."""
    seen, dispatcher = [], reduce_segments.compiled.dispatcher

    def spy(*args):
        *others, workers, address = args
        if address != launch.ALONE:
            seen.append(workers)
        dispatcher(*others, 1, launch.ALONE)

    monkeypatch.setattr(reduce_segments.compiled, "dispatcher", spy)
    return seen


LARGE = np.random.default_rng(0).standard_normal((3, 1, 90_000), np.float32)  # beyond threads.SERIAL_BELOW


def test_nbnorm_uses_the_number_it_was_told_and_leaves_numbas_as_it_was(number_of_threads, monkeypatch):
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", max(4, number_of_threads))
    told = []
    monkeypatch.setattr(threads.numba, "set_num_threads", told.append)
    seen = seen_by_kernels(monkeypatch)
    expected = nbnorm.batch_stats(LARGE)
    assert told == []  # never set, nothing done
    for n in (2, 3):
        nbnorm.set_num_threads(n)
        assert nbnorm.get_num_threads() == n
        assert all(same_bits(a, b) for a, b in zip(nbnorm.batch_stats(LARGE), expected, strict=True))
        assert told == ([] if n == number_of_threads else [n, number_of_threads])
        assert seen.pop() == n
        told.clear()
    nbnorm.set_num_threads(1)
    nbnorm.batch_stats(LARGE)
    assert told == []


def test_a_limit_that_is_taken_away_meanwhile_leaves_it_as_it_was(number_of_threads, monkeypatch):
    """OpenMP's region gives this thread, too, the number that the region has."""
    if number_of_threads < 2:
        pytest.skip("ONE THREAD: there is no other number to restore")
    numba.set_num_threads(1)
    nbnorm.set_num_threads(2)
    run = reduce_segments.together
    monkeypatch.setattr(reduce_segments, "together", lambda *args: (nbnorm.set_num_threads(None), run(*args)))
    nbnorm.batch_stats(LARGE)
    assert numba.get_num_threads() == 1


def test_an_exception_leaves_numbas_number_as_it_was_too(number_of_threads, monkeypatch):
    if number_of_threads < 2:
        pytest.skip("ONE THREAD: there is no other number to restore")
    numba.set_num_threads(1)
    nbnorm.set_num_threads(2)

    def interrupted(*args):
        assert numba.get_num_threads() == 2
        raise KeyboardInterrupt

    monkeypatch.setattr(reduce_segments.compiled, "dispatcher", interrupted)
    with pytest.raises(KeyboardInterrupt):
        nbnorm.batch_stats(LARGE)
    assert numba.get_num_threads() == 1
    nbnorm.set_num_threads(None)
    assert nbnorm.get_num_threads() == 1


def test_the_number_may_be_one_of_numpys(number_of_threads):
    nbnorm.set_num_threads(np.int64(1))
    assert type(nbnorm.get_num_threads()) is int
    assert nbnorm.get_num_threads() == 1


@pytest.mark.parametrize(
    ("n", "error"),
    [(0, ValueError), (-1, ValueError), (10**30, ValueError), (1.0, TypeError), ("2", TypeError), (True, TypeError)],
)
def test_the_number_must_be_one_that_numba_has(n, error):
    with pytest.raises(error, match=r"^n is .*expected") as caught:
        nbnorm.set_num_threads(n)
    assert len(str(caught.value)) < 200
    assert nbnorm.get_num_threads() == numba.get_num_threads()


@pytest.fixture
def unknown_layer(monkeypatch):
    monkeypatch.setattr(threads.guard, "any_thread_may_run", False)
    monkeypatch.setattr(launch.numba, "threading_layer", lambda: "workqueue")
    monkeypatch.setattr(launch, "numbas_own", lambda: 2)
    monkeypatch.setattr(threads, "get_num_threads", lambda: 2)


def test_while_a_thread_is_in_a_parallel_region_another_works_alone(unknown_layer, monkeypatch):
    ran = []
    monkeypatch.setattr(
        reduce_segments.compiled, "dispatcher", lambda *args: ran.append(args[-2] if args[-1] else "alone")
    )
    nbnorm.batch_stats(LARGE)
    with threads.guard.lock, ThreadPoolExecutor(1) as other:
        other.submit(nbnorm.batch_stats, LARGE).result()
    other = ThreadPoolExecutor(1)
    other.submit(nbnorm.batch_stats, LARGE).result()
    assert ran == [2, "alone", 2]


def test_an_interrupt_never_leaves_the_guard_locked(unknown_layer, monkeypatch):
    """Ctrl-C is delivered when a call returns: here when the lock's does, and when the kernel's does."""

    class Interrupted:
        def __init__(self, lock):
            self.lock, self.release = lock, lock.release

        def acquire(self, blocking):
            assert self.lock.acquire(blocking)
            raise KeyboardInterrupt

    def interrupted(*args):
        raise KeyboardInterrupt

    lock = threads.guard.lock
    monkeypatch.setattr(threads.guard, "lock", Interrupted(lock))
    with pytest.raises(KeyboardInterrupt):
        nbnorm.batch_stats(LARGE)
    monkeypatch.setattr(threads.guard, "lock", lock)
    monkeypatch.setattr(reduce_segments.compiled, "dispatcher", interrupted)
    with pytest.raises(KeyboardInterrupt):
        nbnorm.batch_stats(LARGE)

    def is_free():
        return lock.acquire(blocking=False) and lock.release() is None

    with ThreadPoolExecutor(1) as other:
        assert other.submit(is_free).result(), "the lock is still held"
