"""The running statistics of a state as kernels see them, and the lock for them."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import ClassVar

from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Running:
    """What inference reads and a training step folds its batch into."""

    mean: NDArray
    var: NDArray
    both: NDArray  # the flat array of which these are views: one copy has both as they are at one moment
    counters: NDArray  # batches, values per channel

    # For arrays of the CPU; kernels of a GPU run in the order of their stream. One for all states, held for
    # microseconds (but for the first commit, which compiles), so that a fork can wait for it: a child gets whole states
    # and a free lock. An RLock, since a signal handler that saves a state may interrupt the thread that has it.
    lock: ClassVar = threading.RLock()


def _after_fork_in_child() -> None:
    Running.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: Running.lock.acquire(),
        after_in_parent=lambda: Running.lock.release(),
        after_in_child=_after_fork_in_child,
    )
