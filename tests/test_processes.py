"""Threads, forks and threading layers: nothing dies, and every thread and process computes the same bits.

What must not kill a process runs in one of its own (processes.py). The tests named "without" show that it would die
if the guard were away; when one of them fails, Numba has changed and the guard can go.
"""

import functools
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).with_name("processes.py")
LIBRARIES = Path(sys.prefix) / "lib"  # where pip puts libtbb.so.12, which the loader does not search
STRESS = os.environ.get("NBNORM_STRESS")
CALLS, FORKS = (2_000, 200) if STRESS else (int(os.environ.get("NBNORM_STEPS", n)) for n in (100, 200))
PATIENCE = 1_800 if STRESS else 600  # seconds; kernels may have to be compiled first, on busy cores
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="NO FORK TESTS: this system cannot fork")


def _openmp_problem():
    """A Numba may be built with OpenMP where its library is missing, as in a slim container."""
    try:
        importlib.import_module("numba.np.ufunc.omppool")
    except ImportError as error:
        return str(error)
    return None


needs_openmp = pytest.mark.skipif(_openmp_problem() is not None, reason=f"NO OPENMP TESTS: {_openmp_problem()}")
LAYERS = [
    "workqueue",
    pytest.param("omp", marks=needs_openmp),
    pytest.param(
        "tbb",
        marks=pytest.mark.skipif(not list(LIBRARIES.glob("libtbb.so.12*")), reason="NO TBB TESTS: pip install tbb"),
    ),
]
every_layer = pytest.mark.parametrize("layer", LAYERS)


def run(*arguments, layer="default", threads=4):
    search = os.pathsep.join(filter(None, [str(LIBRARIES), os.environ.get("LD_LIBRARY_PATH")]))
    environment = {
        **os.environ,
        "NUMBA_THREADING_LAYER": layer,
        "NUMBA_NUM_THREADS": str(threads),
        "LD_LIBRARY_PATH": search,
    }
    command = [sys.executable, str(PROGRAMS), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE)


@functools.cache
def serial_bits():
    """What one thread computes."""
    done = run("alone", threads=1)
    assert done.returncode == 0, done.stderr
    (bits,) = json.loads(done.stdout)["digests"]
    return bits


def check(done, layer, number):
    """The program has lived, on that layer, and every one of its threads and processes had the serial bits."""
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["digests"] == [serial_bits()] * number
    assert found["layer"] == layer


@pytest.mark.longer
@every_layer
def test_eight_threads_compute_the_same_bits_from_the_first_call_on(layer):
    check(run("python_threads", 8, CALLS, layer=layer), layer, 8)


def test_without_the_guard_two_threads_kill_a_workqueue_process():
    done = run("python_threads_without_the_guard", 8, 1_000, layer="workqueue")
    assert done.returncode == -signal.SIGABRT
    assert "Concurrent access has been detected" in done.stderr


@pytest.mark.each_value
@every_layer
@needs_fork
@pytest.mark.parametrize("warmth", ["cold", "warm"])
def test_forked_children_live_and_compute_the_same_bits(warmth, layer):
    check(run("children", "fork", warmth, layer=layer), layer, 3 + (warmth == "warm"))


@needs_fork
@needs_openmp
@pytest.mark.parametrize(("method", "warmth"), [("forkserver", "cold"), ("spawn", "warm")])
def test_children_that_inherit_nothing_compute_the_same_bits(method, warmth):
    check(run("children", method, warmth, layer="omp"), "omp", 3 + (warmth == "warm"))


@needs_fork
@needs_openmp
def test_without_the_guard_a_forked_child_of_an_openmp_parent_is_killed():
    done = run("child_without_the_guard", layer="omp")
    assert json.loads(done.stdout)["digests"] == [[f"killed by {signal.SIGTERM:d}"]], done.stderr


@every_layer
@needs_fork
def test_forks_of_forks_live(layer):
    check(run("grandchild", layer=layer), layer, 3)


@pytest.mark.longer
@needs_fork
def test_a_child_forked_while_another_thread_trains_has_a_whole_state_and_a_free_lock():
    done = run("fork_amid_training", FORKS)
    assert json.loads(done.stdout)["digests"] == [["[0]"]], done.stderr


INTERRUPTED_FORK = """
import ctypes, functools, os, signal, threading
signal.signal(signal.SIGALRM, signal.default_int_handler)
interrupt = functools.partial(getattr(ctypes.CDLL(None), "raise"), signal.SIGALRM)  # Python notices a little later
os.register_at_fork(after_in_parent=interrupt)
from nbnorm._running import lock
found = []
try:
    if os.fork() == 0:
        os._exit(0)
except KeyboardInterrupt:
    found.append("interrupted")
other = threading.Thread(target=lambda: found.append(lock.acquire(blocking=False)))
other.start()
other.join()
print(found)
"""


@needs_fork
def test_a_signal_at_the_time_of_a_fork_leaves_the_lock_free():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED_FORK], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == "['interrupted', True]\n", done.stderr


@needs_fork
@needs_openmp
@pytest.mark.parametrize(
    "method", ["fork", pytest.param("spawn", marks=pytest.mark.exhaustive("children that inherit nothing"))]
)
def test_a_process_pool_of_the_standard_library_computes_the_same_bits(method):
    check(run("executor", method, layer="omp"), "omp", 3)


@pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing"])
def test_joblib_computes_the_same_bits(backend):
    pytest.importorskip("joblib", reason="NO JOBLIB TESTS: pip install joblib")
    done = run("joblib_backend", backend, layer="workqueue")
    check(done, "workqueue" if backend == "threading" else "none", 4)
