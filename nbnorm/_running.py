"""The running statistics of a state as kernels see them, and the lock for them."""

from __future__ import annotations

import os
import threading
from typing import ClassVar

from numpy.typing import NDArray


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

    def __init__(self, mean: NDArray, var: NDArray, both: NDArray, counters: NDArray) -> None:
        self.mean, self.var, self.both, self.counters = mean, var, both, counters


def _after_fork_in_child() -> None:
    Running.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: Running.lock.acquire(),
        after_in_parent=lambda: Running.lock.release(),
        after_in_child=_after_fork_in_child,
    )
