"""What a training step changes in a state: the running statistics as kernels see them."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

from numpy.typing import NDArray


class Update(NamedTuple):
    """Running statistics to fold a batch into, of any shape; counters has batches and values per channel."""

    mean: NDArray
    var: NDArray
    counters: NDArray
    momentum: float | None  # None: exact pooling
    lock: contextlib.AbstractContextManager  # for kernels of the CPU; those of a GPU run in the order of their stream
