"""Programs for test_processes.py, each run in a process of its own that would die if a guard failed.

`python processes.py NAME ...` prints a JSON list of digests: one for every thread, child or pool worker that computed.
"""

import contextlib
import copy
import ctypes
import gc
import itertools
import json
import mmap
import multiprocessing
import os
import signal
import sys
import threading
import zlib
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numba
import numpy as np

import nbnorm
from nbnorm import _cpu
from nbnorm._cpu import plan, threads
from nbnorm._running import lock

SHAPES = ((8, 4, 100, 100), (8_400, 24))  # large enough for a parallel region, small enough for 2,000 of them


def batch(shape):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, np.float32) + 3 for _ in range(2)]


def step(x, dy):
    """A checksum of all that a training step, its backward and an inference compute."""
    state = nbnorm.BatchNormState(x.shape[1])
    y, saved = nbnorm.batch_norm_training(x, state)
    assert threads.workers_for(x.size) == threads.get_num_threads()  # as the sums of x, which read and write least
    arrays = (y, *nbnorm.batch_norm_backward(dy, saved), nbnorm.batch_norm_inference(x, state), state.running_var)
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(array, checksum)
    return checksum


def digest(_=None, times=1):
    """The checksums of `times` steps a shape; several, where they are not always the same."""
    batches = [batch(shape) for shape in SHAPES]
    return sorted({json.dumps([step(x, dy) for x, dy in batches]) for _ in range(times)})


def layer():
    """The threading layer that has run, if any."""
    try:
        return numba.threading_layer()
    except ValueError:
        return "none"


# ---- the programs


def alone():
    return [digest()]


def python_threads(number, times):
    """That many threads, all of which make the first call of the process together."""
    barrier = threading.Barrier(int(number))

    def work(_):
        barrier.wait()
        return digest(times=int(times))

    with ThreadPoolExecutor(int(number)) as pool:
        return list(pool.map(work, range(int(number))))


def python_threads_without_the_guard(number, times):
    threads.guard.any_thread_may_run = True
    return python_threads(number, times)


def children(method, warmth):
    """Two processes by a start method; the parent has run the kernels ("warm") or not ("cold")."""
    found = [digest()] if warmth == "warm" else []
    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        found += pool.map(digest, range(2), 1)
    return [*found, digest()]


def child_without_the_guard():
    digest()
    child = os.fork()
    if not child:
        threads.guard.forked = False
        digest()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return [[f"killed by {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "alive"]]


def grandchild():
    """Forks of a fork, and Numba's layer started anew in neither."""
    digest()
    found = multiprocessing.get_context("fork").Queue()

    def run(generations):
        found.put(digest())
        if generations:
            other = multiprocessing.get_context("fork").Process(target=run, args=(generations - 1,))
            other.start()
            other.join()
            assert other.exitcode == 0

    run(2)
    return [found.get(timeout=60) for _ in range(3)]


def fork_amid_training(times):
    """Children forked while another thread trains with a state: its lock is free there, and the state whole."""
    state, x = nbnorm.BatchNormState(64, momentum=1.0), np.repeat(np.float32([[1], [3]]), 64, 1)
    stop, exits = threading.Event(), []

    def train():
        while not stop.is_set():
            for factor in (1, -5):
                nbnorm.batch_norm_training(x * factor, state)

    digest()
    nbnorm.batch_norm_training(x, state)
    trainer = threading.Thread(target=train)
    trainer.start()
    for _ in range(int(times)):
        child = os.fork()
        if not child:
            found = state.state_dict()
            pairs = set(zip(found["running_mean"].tolist(), found["running_var"].tolist(), strict=True))
            os._exit(0 if pairs in ({(2.0, 2.0)}, {(-10.0, 50.0)}) else 3)
        exits.append(os.waitpid(child, 0)[1])
    stop.set()
    trainer.join()
    return [[str(sorted(set(exits)))]]


class Interrupt(RuntimeError):
    """What the signal handler raises: of the kind that a lock raises which is given back twice."""


def interrupts(number):
    """A timer interrupts training, inference, copying and resetting: how often the state was torn,
    what was raised and did not arrive, and whether the lock is free after.

    The mean of a batch is the number of batches before it, plus 1, so that a whole state has mean == num_batches in
    every channel. The handler itself reads the state, as one that saves a checkpoint does.
    """
    state = nbnorm.BatchNormState(300, momentum=1.0)
    offsets = np.repeat(np.float32([[-1], [1]]), 300, 1)
    out = np.empty_like(offsets)
    torn = hits = raised = 0

    def is_whole(found):
        seen = found.num_batches
        var = 2.0 if seen else 1.0
        return np.all(found.running_mean == seen) and np.all(found.running_var == var) and found.num_samples == 2 * seen

    def handler(*_):
        nonlocal torn, raised
        raised += 1
        torn += not is_whole(copy.copy(state))
        raise Interrupt

    signal.signal(signal.SIGALRM, handler)
    rng = np.random.default_rng(0)
    nbnorm.batch_norm_training(offsets + 1, state)
    nbnorm.batch_norm_inference(offsets, state)  # imports its module: below that would be interrupted each time

    def train():  # a loop right in the `try` would be no part of it where it begins anew (Python 3.14)
        x, before = offsets + (state.num_batches + 1), raised
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(5e-6, 80e-6))
        while raised == before:
            nbnorm.batch_norm_training(x, state, out=out)
            x += 1
            nbnorm.batch_norm_inference(x, state, out=out)
            if state.num_batches > 50:
                state.reset_running()
                x = offsets + 1

    while hits < int(number):
        try:
            train()
        except Interrupt:
            hits += 1
        torn += not is_whole(copy.copy(state))

    def is_free():
        return lock.acquire(blocking=False) and lock.release() is None

    with ThreadPoolExecutor(1) as other:
        free = other.submit(is_free).result()
    return [[hits, torn, raised - hits, free]]


def interrupts_of_an_update_in_numpy(number):
    """The same with the update that one would write: the test can fail."""

    def commit(running, momentum, stats, count):
        running.mean[...] = stats[0] + stats[1]
        running.var[...] = stats[2] / (count - 1)
        counters = running.counters
        counters += (1, int(count), 0)

    _cpu.commit = commit
    return interrupts(number)


def executor(method):
    """concurrent.futures with processes, used from two threads."""
    digest()
    with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool:
        return list(pool.map(digest, range(3)))


def joblib_backend(backend):
    import joblib

    return joblib.Parallel(n_jobs=2, backend=backend)(joblib.delayed(digest)() for _ in range(4))


# ---- memory


def growth(number, leak=None):
    """Bytes by which the process grows in so many calls, of every function and of calls that fail."""
    state, kept = nbnorm.BatchNormState(4), []
    arrays = [np.ones((rows, 4, size), np.float32) for rows in (2, 9) for size in (1, 70)]

    def calls(number):
        for i in range(number // 4):
            x = arrays[i % len(arrays)]
            y, saved = nbnorm.batch_norm_training(x, state)
            nbnorm.batch_norm_backward(y, saved)
            nbnorm.batch_norm_inference(x, state, out=y)
            with contextlib.suppress(ValueError):
                nbnorm.batch_norm_inference(x, state, out=y[1:])
            if leak:
                kept.append(saved.mean)

    def resident():
        gc.collect()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE

    calls(5_000)
    before = resident()
    calls(int(number))
    return [[resident() - before]]


# ---- guard pages


class Guarded:
    """Memory between two pages whose touch kills the process."""

    def __init__(self, values, at_end):
        page = mmap.PAGESIZE
        pages = -(-values.nbytes // page)
        self.memory = mmap.mmap(-1, (pages + 2) * page)
        offset = page + (pages * page - values.nbytes if at_end else 0)
        self.array = np.ndarray(values.shape, values.dtype, self.memory, offset)
        self.array[...] = values
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        for at in (start, start + (pages + 1) * page):
            if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(at), ctypes.c_size_t(page), 0):
                raise OSError(ctypes.get_errno(), "mprotect")


GUARDED_SHAPES = (
    (3, 2, 64), (3, 2, 65), (5, 35, 65), (9, 1, 101), (2, 3, 71), (1, 2, 96), (2, 1, 50_000), (5, 3, 40_001),
    (2, 3, 7, 7), (33, 5, 3), (64, 160, 7, 7), (2, 1), (3, 31), (17, 32), (300, 33), (5_001, 3), (700, 129),
    (40, 3_001),
)  # fmt: skip


def guard_pages():
    """Every function, on arrays that begin or end at a guard page; how many calls lived and gave the bits of others."""
    rng, calls, cache_bytes = np.random.default_rng(0), 0, plan.CACHE_BYTES
    for shape, plan.CACHE_BYTES in itertools.product(GUARDED_SHAPES, (cache_bytes, 0)):  # without a cache, all stream
        plan.mapping.cache_clear()
        for dtype in ("float16", "float32", "float64"):
            plain = [rng.standard_normal(shape).astype(dtype) for _ in range(2)]
            for at_end in (False, True):
                guarded = [Guarded(values, at_end) for values in (*plain, plain[0])]
                (x, dy, out), found = (one.array for one in guarded), []
                for given, gradient, target in ((*plain, None), (x, dy, out)):
                    state = nbnorm.BatchNormState(shape[1])
                    y, saved = nbnorm.batch_norm_training(given, state, out=target)
                    found.append([y.tobytes()])
                    dx, dgamma, dbeta = nbnorm.batch_norm_backward(gradient, saved, out=target)
                    found[-1] += [array.tobytes() for array in (dx, dgamma, dbeta, nbnorm.batch_stats(given).m2)]
                    found[-1].append(nbnorm.batch_norm_inference(given, state, out=target).tobytes())
                    if dtype == "float32":  # the map of three arrays; compiling it takes long
                        second = nbnorm.batch_norm_double_backward(given, None, None, gradient, saved)
                        found[-1] += [array.tobytes() for array in second]
                assert found[0] == found[1], (shape, dtype, at_end)
                calls += 4
    return [[calls]]


def touch(place):
    """What guard_pages would be spared: one value read beside an array."""
    one = Guarded(np.zeros(mmap.PAGESIZE, np.uint8), at_end=True)
    beside = ctypes.addressof(ctypes.c_char.from_buffer(one.memory)) + mmap.PAGESIZE
    return [[ctypes.string_at(beside + (-1 if place == "before" else mmap.PAGESIZE), 1)[0]]]


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    digests = globals()[name](*arguments)
    print(json.dumps({"layer": layer(), "digests": digests}))
