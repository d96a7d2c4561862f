"""nbnorm for peers.py, and the copies that say what the memory allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import asv_shared  # noqa: F401  names a cache for the kernels of these sources, before Numba is imported
import numba
import numpy as np
from peers_rows import Data
from peers_systems import EPS, System, WrongResult, numpy_dtype, parameter_type

import nbnorm
from nbnorm._cpu.launch import Kernel
from nbnorm._cpu.region import each_worker
from nbnorm._cpu.vector import LANES, routine, zeros
from nbnorm._cpu.vector_memory import fence, load_as, stream


@routine
def share_streamed(taken, w, workers, source, target, vectors):  # type: ignore[no-untyped-def]
    for v in range(w * vectors // workers, (w + 1) * vectors // workers):
        stream(target, v * LANES, load_as(zeros(), source, v * LANES))
    fence()


@Kernel
def copy_streaming(source, target, vectors, workers, share_out):  # type: ignore[no-untyped-def]
    """With stores past the caches; float64, target on a line boundary."""
    each_worker(share_streamed, workers, share_out, source, target, vectors)


@routine
def share_copied(taken, w, workers, source, target, vectors):  # type: ignore[no-untyped-def]
    first, end = w * vectors // workers * LANES, (w + 1) * vectors // workers * LANES
    target[first:end] = source[first:end]


@Kernel
def copy_plainly(source, target, vectors, workers, share_out):  # type: ignore[no-untyped-def]
    """With whatever the compiler makes of it."""
    each_worker(share_copied, workers, share_out, source, target, vectors)


def nbnorm_system(data: Data, dtype: str) -> System:
    x, dy = (data.row.view(values.astype(numpy_dtype(dtype))) for values in (data.x, data.dy))
    state, frozen = (nbnorm.BatchNormState(x.shape[1], eps=EPS, dtype=parameter_type(dtype)) for _ in range(2))
    for one in (state, frozen):
        one.gamma, one.beta = data.gamma, data.beta
    frozen.running_mean, frozen.running_var = data.mean, data.var
    _, saved = nbnorm.batch_norm_training(x, frozen, update_running=False)
    out = np.empty_like(x)
    vectors, threads = -(-x.nbytes // (8 * LANES)), nbnorm.get_num_threads()
    source = np.random.default_rng(0).random(vectors * LANES)
    target = _on_a_line(source)
    copies: dict[str, Callable[[], Any]] = {
        "copy, NumPy": lambda: np.copyto(target, source),
        "copy, plain": lambda: copy_plainly(source, target, vectors, threads),
        "copy, streaming": lambda: copy_streaming(source, target, vectors, threads),
    }
    for name, copy in copies.items():
        target[:] = 0
        copy()
        if not np.array_equal(target, source):
            raise WrongResult(f"{name} does not copy")
    calls: dict[str, Callable[[], Any]] = {
        "training": lambda: nbnorm.batch_norm_training(x, state),
        "backward": lambda: nbnorm.batch_norm_backward(dy, saved),
        "inference": lambda: nbnorm.batch_norm_inference(x, frozen),
        "training out": lambda: nbnorm.batch_norm_training(x, state, out=out),
        "backward out": lambda: nbnorm.batch_norm_backward(dy, saved, out=out),
        "inference out": lambda: nbnorm.batch_norm_inference(x, frozen, out=out),
    }
    version = f"{nbnorm.__version__} (Numba {numba.__version__})"
    return System(version, calls | copies, lambda _: (state.running_mean, state.running_var), np.asarray)


def _on_a_line(array: np.ndarray) -> np.ndarray:
    """An array like this one that starts on a cache line."""
    room = np.zeros(array.size + 8)
    start = -(room.ctypes.data // 8) % 8
    return room[start : start + array.size]
