"""A batch in shards, one to a process: the contract between nbnorm and whatever carries messages.

`batch_norm_training(x, state, sync=...)` takes any callable of the form below. It is called with a small array of
this rank's and returns everyone's; what these numbers mean, and merging them exactly, in the order of the ranks,
is nbnorm's business. So all ranks find the same bits, and a new way of communication is ten lines:

- `packed` is one-dimensional float64, and of the same length on every rank. Its numbers are copied, never added.
- The result has a row of every rank, in an order that is the same everywhere, and is of the same kind as `packed`:
  C-contiguous, a NumPy array for a NumPy array, a CuPy array on the same device for a CuPy array.
- All ranks make the same calls in the same order: a forward pass two, a backward pass one, and none where
  nothing is to be known: docs/parallel.md. A rank that fails before its
  call makes it all the same, with a mark that makes the others raise; a rank that dies is the messenger's to notice.

`nbnorm.parallel.mpi` and `nbnorm.parallel.nccl` have ready ones; docs/parallel.md says which to take. They and
`nbnorm.parallel.dask` are loaded when they are first used, and need the package of that name.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Sync(Protocol):
    """What batch_norm_training takes as `sync`."""

    def __call__(self, packed: NDArray[np.float64], /) -> NDArray[np.float64]:
        """Everyone's `packed`, shape (ranks, packed.size)."""
        ...


_MODULES = ("dask", "mpi", "nccl")


def __dir__() -> list[str]:
    return ["Sync", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'nbnorm.parallel' has no attribute {name!r}")
    return importlib.import_module(f"nbnorm.parallel.{name}")
