"""What the families share: named cases, data, the operations on a backend, and the timer."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from timeit import default_timer
from typing import Any

import numba
import numpy as np
from asv_runner.benchmarks.mark import SkipNotImplemented

import nbnorm

# Numba reads half of itself when the first function is compiled, or found in its cache: once, before a server forks
# a process for each benchmark.
numba.njit(lambda: None)()

CASES = {  # shape in memory, and the channel axis
    "resnet50 stem": ((32, 64, 112, 112), 1),
    "resnet50 stage 1": ((32, 64, 56, 56), 1),
    "resnet50 stage 1, channels last": ((32, 56, 56, 64), 3),
    "resnet50 stage 3": ((32, 256, 14, 14), 1),
    "resnet50 stage 3, channels last": ((32, 14, 14, 256), 3),
    "resnet50 stage 4": ((32, 2048, 7, 7), 1),
    "volume": ((2, 32, 64, 64, 64), 1),
    "tabular": ((65536, 256), 1),
    "tall": ((1_000_000, 32), 1),
    "odd": ((17, 33, 31, 29), 1),
    "small": ((128, 64), 1),
}
DTYPES = ("float16", "bfloat16", "float64")  # beside float32, of which every case is measured
DTYPE_CASES = ("resnet50 stage 1", "resnet50 stage 1, channels last")
BACKENDS = ("numpy", "cupy") if find_spec("cupy") else ("numpy",)  # no rows of what is not there


def timer() -> float:
    """Seconds, after the work on the GPU, if there is one, is done."""
    cupy = sys.modules.get("cupy")
    if cupy is not None:
        cupy.cuda.get_current_stream().synchronize()
    return default_timer()


@lru_cache
def operation(name: str, case: str, dtype: str, backend: str) -> Callable[[], Any]:
    """An operation on x and dy of a case, called once, which compiles it.

    Cached: asv runs `setup` again before each call that it times.
    """
    xp = module(backend)
    shape, axis = CASES[case]
    x, dy = (xp.asarray(values) for values in data(shape, dtype))
    state = nbnorm.BatchNormState(shape[axis], device="cuda" if backend == "cupy" else "cpu")
    y, saved = nbnorm.batch_norm_training(x, state, axis=axis) if name == "backward" else (xp.empty_like(x), None)
    calls: dict[str, Callable[[], Any]] = {
        "training": lambda: nbnorm.batch_norm_training(x, state, axis=axis),
        "backward": lambda: nbnorm.batch_norm_backward(dy, saved),
        "inference": lambda: nbnorm.batch_norm_inference(x, state, axis=axis),
        "inference out": lambda: nbnorm.batch_norm_inference(x, state, axis=axis, out=y),
        "stats": lambda: nbnorm.batch_stats(x, axis=axis),
    }
    calls[name]()
    return calls[name]


def data(shape: tuple[int, ...], dtype: str, mean: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """x and dy: a million normal numbers again and again, a prime number of them so that no two rows are equal."""
    numbers = np.random.default_rng(0).standard_normal((2, 1_000_003), dtype=np.float32) + np.float32(mean)
    x, dy = (np.resize(one.astype(dtype_of(dtype)), shape) for one in numbers)
    return x, dy


def dtype_of(name: str) -> np.dtype:
    return np.dtype(_needed("ml_dtypes").bfloat16 if name == "bfloat16" else name)


def module(backend: str) -> Any:
    """NumPy or CuPy; the benchmark is skipped where there is none, or no GPU."""
    xp = _needed(backend)
    if backend == "cupy" and not xp.is_available():
        raise SkipNotImplemented("no GPU")
    return xp


def _needed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SkipNotImplemented(str(error)) from error
