"""What goes wrong in the middle: a failure anywhere, a signal, a copy while another thread trains. No state is torn."""

import contextlib
import copy
import json
import os
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
from common import random_state, sample, snapshot
from test_processes import run

import nbnorm
from nbnorm import training
from nbnorm._running import lock

ALLOCATIONS = {"zeros", "empty", "ones", "empty_like", "array", "ascontiguousarray", "ndarray.astype", "ndarray.copy"}
SIGNALS = 100_000 if os.environ.get("NBNORM_STRESS") else int(os.environ.get("NBNORM_SIGNALS", "20000"))

# ---- a failure at every call


class Failing:
    """A profiler that raises MemoryError at the event of a number; without one it counts them."""

    def __init__(self, number=None):
        self.number, self.events, self.allocates = number, 0, False

    def __call__(self, frame, event, argument):
        if event == "c_call" and argument.__name__ == "release":
            return  # giving a lock back cannot fail, and without it the next thread would wait for ever
        self.events += 1
        if self.events == self.number:
            sys.setprofile(None)
            self.allocates = event == "c_call" and argument.__qualname__ in ALLOCATIONS
            raise MemoryError("injected")

    def run(self, call):
        sys.setprofile(self)
        try:
            call()
        finally:
            sys.setprofile(None)


def is_free(lock):
    """Whether another thread can have it."""

    def take_and_give_back():
        return lock.acquire(blocking=False) and lock.release() is None

    with ThreadPoolExecutor(1) as other:
        return other.submit(take_and_give_back).result()


def strided(like):
    return np.full((like.shape[0], *like.shape[1:-1], 2 * like.shape[-1]), 7, like.dtype)[..., ::2]


def dense(like):
    return np.full(like.shape, 7, like.dtype)


CALLS = {
    "training": lambda g, out: nbnorm.batch_norm_training(g.x, g.state, out=out),
    "training with an activation": lambda g, out: nbnorm.batch_norm_training(g.x, g.state, out=out, activation="relu"),
    "frozen training": lambda g, out: nbnorm.batch_norm_training(g.x, g.state, use_running=True, out=out),
    "inference": lambda g, out: nbnorm.batch_norm_inference(g.x, g.state, out=out),
    "backward": lambda g, out: nbnorm.batch_norm_backward(g.dy, g.saved, out=out),
    "reset": lambda g, out: g.state.reset_running(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("make_out", [dense, strided])
@pytest.mark.parametrize(("shape", "momentum"), [((8, 3, 6), 0.1), ((4, 3, 80), None)], ids=["columns", "segments"])
def test_a_failure_anywhere_leaves_all_or_nothing(given, rng, call, make_out, shape, momentum):
    """Before the first byte of `out` is written everything has been allocated; a state is that before or after."""
    given.state, given.x, given.dy = random_state(rng, 3, momentum=momentum), sample(rng, shape), sample(rng, shape)
    _, given.saved = nbnorm.batch_norm_training(given.x, given.state)
    start = pickle.dumps(given.state)

    def fresh():
        given.state = pickle.loads(start)
        return make_out(given.x)

    call(given, fresh())  # compiles, which would take minutes under a profiler
    out = fresh()
    before = snapshot(given.state), out.tobytes()
    counting = Failing()
    counting.run(lambda: call(given, out))
    after = snapshot(given.state), out.tobytes()
    assert counting.events >= 8
    allocations = 0
    for number in range(1, counting.events):
        out = fresh()
        failing = Failing(number)
        with contextlib.suppress(MemoryError):
            failing.run(lambda: call(given, out))  # noqa: B023
        found = snapshot(given.state), out.tobytes()
        assert found[0] in (before[0], after[0]), f"a torn state after event {number}"
        assert found[1] in (before[1], after[1]), f"half an output after event {number}"
        if found[0] != before[0]:
            assert found[1] == after[1], "the state knows a batch that has no output"
        if failing.allocates:
            allocations += 1
            assert found == before, f"an allocation after something has changed, at event {number}"
    if call is not CALLS["reset"]:
        assert allocations >= 1
    assert is_free(lock)
    out = fresh()
    call(given, out)
    assert (snapshot(given.state), out.tobytes()) == after


def test_a_failure_between_ghost_batches_leaves_whole_steps(given, monkeypatch):
    of_first = copy.deepcopy(given.state)
    nbnorm.batch_norm_training(given.x[:4], of_first)
    counted, left = training.counted, [1]

    def once(*arguments):
        if not left:
            raise MemoryError("injected")
        left.pop()
        return counted(*arguments)

    monkeypatch.setattr(training, "counted", once)
    with pytest.raises(MemoryError):
        nbnorm.batch_norm_training(given.x, given.state, ghost=4)
    assert snapshot(given.state) == snapshot(of_first)


# ---- signals


@pytest.mark.longer
def test_a_signal_never_tears_a_state():
    done = run("interrupts", SIGNALS)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["digests"] == [[SIGNALS, 0, 0, True]]


def test_an_update_in_numpy_would_be_torn():
    ((hits, torn, lost, free),) = json.loads(run("interrupts_of_an_update_in_numpy", 2_000).stdout)["digests"]
    assert (hits, lost, free) == (2_000, 0, True)
    assert torn > 0


# ---- copies


def torn_copies(state, duplicate, times=300):
    """How many copies mix two moments, while a thread trains with means and variances (2, 2) and (-10, 50)."""
    x = np.repeat(np.float32([[1], [3]]), state.num_features, 1)
    stop, torn = threading.Event(), 0

    def train():
        while not stop.is_set():
            nbnorm.batch_norm_training(x, state)
            nbnorm.batch_norm_training(x * -5, state)

    nbnorm.batch_norm_training(x, state)
    thread = threading.Thread(target=train)
    thread.start()
    try:
        for _ in range(times):
            mean, var = duplicate(state)
            torn += set(zip(mean.tolist(), var.tolist(), strict=True)) not in ({(2, 2)}, {(-10, 50)})
    finally:
        stop.set()
        thread.join()
    return torn


def statistics(state):
    return state.running_mean, state.running_var


def of_dict(state):
    found = state.state_dict()
    return found["running_mean"], found["running_var"]


def of_map(at_0, at_1):
    """Mean and variance of y = (x - mean)/sqrt(var), from its values at 0 and 1."""
    inv_std = at_1 - at_0
    return (-at_0 / inv_std).round(3), (inv_std**-2).round(3)


def of_affine(state):
    scale, shift = state.as_affine()
    return of_map(shift, shift + scale)


def of_inference(state):
    return of_map(*nbnorm.batch_norm_inference(np.repeat([[0.0], [1.0]], state.num_features, 1), state))


COPIES = {
    "copy": lambda state: statistics(copy.copy(state)),
    "deepcopy": lambda state: statistics(copy.deepcopy(state)),
    "pickle": lambda state: statistics(pickle.loads(pickle.dumps(state))),
    "state_dict": of_dict,
    "as_affine": of_affine,
    "inference": of_inference,
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_a_copy_made_while_another_thread_trains_is_of_one_moment(duplicate):
    assert torn_copies(nbnorm.BatchNormState(3_000, momentum=1.0), duplicate) == 0


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_a_copy_made_while_another_thread_assigns_is_of_one_moment(name):
    state = nbnorm.BatchNormState(1_000_000)
    values = [np.full(state.shape, number) for number in (1.0, 2.0)]
    setattr(state, name, values[0])
    stop, torn = threading.Event(), 0

    def assign():
        while not stop.is_set():
            for one in values:
                setattr(state, name, one)

    with ThreadPoolExecutor(1) as other:
        assigned = other.submit(assign)
        try:
            for _ in range(30):
                found = state.state_dict()[name]
                torn += (found != found[0]).any()
        finally:
            stop.set()
        assigned.result(timeout=60)
    assert torn == 0


ROWS = np.eye(3, dtype=np.float32)
WAITING = {
    **COPIES,
    "training": lambda state: nbnorm.batch_norm_training(ROWS, state),
    "frozen training": lambda state: nbnorm.batch_norm_training(ROWS, state, use_running=True, update_running=False),
    "renormalization": lambda state: nbnorm.batch_norm_training(
        ROWS, state, renorm=nbnorm.Renorm(2, 1), update_running=False
    ),
    "update": lambda state: state.update(nbnorm.batch_stats(ROWS)),
    "assignment": lambda state: setattr(state, "running_var", [1.0, 2.0, 3.0]),
    "reset": lambda state: state.reset_running(),
    "samples": lambda state: state.num_samples,
    "assigned samples": lambda state: setattr(state, "num_samples", 6),
    "assigned batches": lambda state: setattr(state, "num_batches", 2),
}


def assert_waits_for_its_turn(call):
    state = nbnorm.BatchNormState(3)
    call(state)  # compiled now
    with ThreadPoolExecutor(1) as other:
        with lock:
            waiting = other.submit(call, state)
            assert wait([waiting], timeout=0.1).not_done == {waiting}
        waiting.result(timeout=60)


@pytest.mark.parametrize("call", WAITING.values(), ids=WAITING)
def test_whatever_reads_or_changes_a_state_waits_for_its_turn(call):
    assert_waits_for_its_turn(call)
