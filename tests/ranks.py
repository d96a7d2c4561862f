"""A group of ranks in the threads of one process, and a whole batch cut into their shards."""

from __future__ import annotations

import copy
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

import nbnorm

PATIENCE = 60  # seconds until a rank that waits alone gives up


class Sync:
    """The contract of nbnorm.parallel with a list and a barrier."""

    def __init__(self, rank, slots, barrier, turn):
        self.rank, self.slots, self.barrier, self.turn = rank, slots, barrier, turn
        self.sizes = []  # of the messages that were sent

    def __call__(self, packed):
        self.sizes.append(packed.size)
        on_gpu = hasattr(packed, "get")
        self.slots[self.rank] = packed.get() if on_gpu else packed.copy()
        self.turn.release()
        try:
            self.barrier.wait()
            everyone = np.stack(self.slots)
            self.barrier.wait()  # nobody sends again before all have read
        finally:
            self.turn.acquire()
        return sys.modules["cupy"].asarray(everyone) if on_gpu else everyone


def run(size, work):
    """What work(rank, sync) returns, or the exception it raises, for each rank.

    The ranks take turns, like threads of old Python: Numba's CUDA simulator has room for one at a time.
    """
    slots, barrier, turn = [None] * size, threading.Barrier(size, timeout=PATIENCE), threading.Lock()

    def caught(rank):
        with turn:
            try:
                return work(rank, Sync(rank, slots, barrier, turn))
            except Exception as error:
                return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(caught, range(size)))


def work_of(results):
    """The results, none of which may be an exception."""
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


class Step(NamedTuple):
    """What a training step and its backward pass gave on one rank."""

    state: nbnorm.BatchNormState
    y: np.ndarray
    saved: nbnorm.Saved
    dx: np.ndarray
    dgamma: np.ndarray
    dbeta: np.ndarray
    sizes: list[int]


def shards(array, sizes, axis=0):
    """Parts of the array along an axis; sizes add up to its length."""
    assert sum(sizes) == array.shape[axis]
    return np.split(array, np.cumsum(sizes)[:-1], axis)


def step_in_shards(x, dy, state, sizes, axis=1, param_grads="local", **options):
    """A step with the batch cut along axis 0, by the channel axis `axis`; each rank has a state of its own."""
    parts = list(zip(shards(x, sizes), shards(dy, sizes), strict=True))

    def work(rank, sync):
        own_x, own_dy = parts[rank]
        own = copy.deepcopy(state)
        y, saved = nbnorm.batch_norm_training(own_x, own, axis=axis, sync=sync, **options)
        gradients = nbnorm.batch_norm_backward(own_dy, saved, param_grads=param_grads)
        return Step(own, y, saved, *gradients, sync.sizes)

    return work_of(run(len(sizes), work))
