"""NCCL: one process a GPU. Needs CuPy (extras `cuda12`, `cuda13`) and nvidia-nccl-cu12 or -cu13."""

from __future__ import annotations

from typing import Any

from nbnorm import _device, _needed

with _needed.package("nbnorm.parallel.nccl", _device.GPU_PACKAGES):
    import cupy
    from cupy.cuda import nccl

if nccl.available is False:  # the module is there, and has nothing else
    raise ImportError(
        "nbnorm.parallel.nccl: CuPy finds no NCCL; install nvidia-nccl-cu13, for CUDA 12 nvidia-nccl-cu12"
    )


class _Gather:
    """Everyone's numbers by one ncclAllGather on CuPy's current stream."""

    def __init__(self, comm: Any) -> None:
        self.comm = comm

    def __call__(self, packed: Any) -> Any:
        own = cupy.asarray(packed)
        everyone = cupy.empty((self.comm.size(), own.size))
        stream = cupy.cuda.get_current_stream().ptr
        self.comm.allGather(own.data.ptr, everyone.data.ptr, own.size, nccl.NCCL_FLOAT64, stream)
        return everyone if hasattr(packed, "get") else everyone.get()

    def __repr__(self) -> str:
        return f"nbnorm.parallel.nccl.sync(<{self.comm.size()} ranks>)"


def sync(comm: Any) -> _Gather:
    """What `batch_norm_training` takes as `sync`, for the ranks of an NCCL communicator.

    Parameters
    ----------
    comm : cupy.cuda.nccl.NcclCommunicator
        Each of its ranks is a process with a GPU, current when nbnorm is called, and has a shard of the batch.

    Returns
    -------
    callable
        Of the form `nbnorm.parallel.Sync`.

    Raises
    ------
    TypeError
        When comm is no communicator.

    Notes
    -----
    Everything stays on the GPU and in the order of the stream, but for the first message of a forward pass and the mark
    of success of a backward pass: the host waits for them, since it may have to raise an error. So such a call cannot
    be captured in a CUDA graph.
    """
    if not hasattr(comm, "allGather"):
        raise TypeError(
            f"comm is a {type(comm).__qualname__}; expected a cupy.cuda.nccl.NcclCommunicator(ranks, unique_id, rank)"
        )
    return _Gather(comm)
