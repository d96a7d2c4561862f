"""The running statistics of a state as kernels see them."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

from numpy.typing import NDArray


class Running(NamedTuple):
    """What inference reads and a training step folds its batch into; counters has batches and values per channel."""

    mean: NDArray
    var: NDArray
    counters: NDArray
    momentum: float | None  # None: exact pooling
    lock: contextlib.AbstractContextManager  # for kernels of the CPU; those of a GPU run in the order of their stream
