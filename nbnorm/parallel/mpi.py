"""MPI: the ranks of a communicator. Needs the extra `mpi` (mpi4py)."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbnorm import _options


class _Gather:
    """Everyone's numbers by one MPI_Allgather."""

    def __init__(self, comm: Any, gpu_aware: bool) -> None:
        self.comm, self.gpu_aware = comm, gpu_aware

    def __call__(self, packed: NDArray[np.float64]) -> NDArray[np.float64]:
        if not hasattr(packed, "get"):
            return self._gather(packed, np)
        cupy: Any = sys.modules["cupy"]
        if not self.gpu_aware:
            return cupy.asarray(self._gather(packed.get(), np))
        cupy.cuda.get_current_stream().synchronize()  # MPI knows of no streams: the numbers must be there
        return self._gather(packed, cupy)

    def _gather(self, packed: Any, xp: Any) -> Any:
        everyone = xp.empty((self.comm.Get_size(), packed.size))
        self.comm.Allgather(packed, everyone)
        return everyone

    def __repr__(self) -> str:
        return f"nbnorm.parallel.mpi.sync(<{self.comm.Get_size()} ranks>, gpu_aware={self.gpu_aware})"


def sync(comm: Any, *, gpu_aware: bool = False) -> _Gather:
    """What `batch_norm_training` takes as `sync`, for the ranks of a communicator.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
        Each of its ranks has a shard of the batch. A communicator of its own (``comm.Dup()``) keeps the messages apart
        from others that are under way.
    gpu_aware : bool
        Give MPI the memory of the GPU, for which the MPI library must have been built. Otherwise the few kilobytes of
        a CuPy array go through the host.

    Returns
    -------
    callable
        Of the form `nbnorm.parallel.Sync`.

    Raises
    ------
    TypeError
        When comm is no communicator, or gpu_aware no flag.

    Examples
    --------
    >>> from mpi4py import MPI  # doctest: +SKIP
    >>> import nbnorm.parallel.mpi
    >>> everyone = nbnorm.parallel.mpi.sync(MPI.COMM_WORLD)  # doctest: +SKIP
    >>> y, saved = nbnorm.batch_norm_training(x, state, sync=everyone)  # doctest: +SKIP
    """
    if not hasattr(comm, "Allgather"):
        raise TypeError(f"comm is a {type(comm).__qualname__}; expected a communicator, such as mpi4py.MPI.COMM_WORLD")
    _options.flag("gpu_aware", gpu_aware)
    return _Gather(comm, gpu_aware)
