"""The running statistics of a state: the one owner of them, of their counters, and of the lock for them."""

from __future__ import annotations

import os
import threading
from collections import deque
from itertools import starmap
from operator import setitem
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from nbnorm import _device
from nbnorm._batch_stats import BatchStats

BATCHES, SAMPLES = range(2)  # places in `counters`


class Running:
    """What inference reads and a training step folds its batch into.

    `both` is the flat array of which mean and var are views: one copy of it has the two as they are at one moment.
    `counters` has batches and values per channel.
    """

    __slots__ = ("both", "counters", "mean", "var")

    # For arrays of the CPU; kernels of a GPU run in the order of their stream. One for all states, held for
    # microseconds (but for the first commit, which compiles), so that a fork can wait for it: a child gets whole states
    # and a free lock. An RLock, since a signal handler that saves a state may interrupt the thread that has it.
    lock: ClassVar = threading.RLock()

    def __init__(self, moments: NDArray, counters: NDArray) -> None:
        """Of `moments`, shape (2, *channels): means and variances."""
        self.mean, self.var, self.both, self.counters = moments[0], moments[1], moments.reshape(-1), counters

    @classmethod
    def fresh(cls, shape: tuple[int, ...], xp: Any) -> Running:
        """Of no batch: mean 0, variance 1, counters 0."""
        running = cls(xp.zeros((2, *shape)), xp.zeros(2, np.int64))
        running.var[...] = 1
        return running

    def reset(self) -> None:
        """Forget every batch."""
        values = (self.mean, ..., 0), (self.var, ..., 1), (self.counters, ..., 0)
        with self.lock, _device.current(_device.of(self.both)):
            # One call without a line of Python in it: no signal arrives between the arrays.
            deque(starmap(setitem, values), maxlen=0)

    def copy(self) -> Running:
        """Everything as it is at one moment."""
        with self.lock, _device.current(_device.of(self.both)):
            return Running(self._moments().copy(), self.counters.copy())

    def to(self, device: str) -> Running:
        """The same with its arrays on a device, copied if they are elsewhere."""
        return Running(*(_device.moved(array, device) for array in (self._moments(), self.counters)))

    def update(self, kernels: ModuleType, momentum: float | None, stats: BatchStats, count: float) -> None:
        """Fold the statistics of a batch in and count it; training does so from those of its kernels."""
        with kernels.on_device_of(stats.mean):
            kernels.commit(self, momentum, kernels.rows(stats.mean.reshape(-1), stats.m2.reshape(-1)), count)

    def _moments(self) -> NDArray:
        return self.both.reshape(2, *self.mean.shape)

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle, which would not keep mean and var views of one array."""
        return Running, (self._moments(), self.counters)


def _after_fork_in_child() -> None:
    Running.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: Running.lock.acquire(),
        after_in_parent=lambda: Running.lock.release(),
        after_in_child=_after_fork_in_child,
    )
