"""What this installation consists of, and a short self-test against the formula written in NumPy."""

from __future__ import annotations

import argparse
import ctypes.util
import os
import platform
import tempfile
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ("nbnorm", "numpy", "numba", "llvmlite", "ml_dtypes")
GPU_PACKAGES = ("numba-cuda", "cupy-cuda12x", "cupy-cuda13x", "cupy")
LAYERS = {"tbb": "tbbpool", "omp": "omppool", "workqueue": "workqueue"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`info` has no options."""


def run(args: argparse.Namespace) -> int:
    """Print the report; 0 when the self-test passes, 1 when it fails."""
    for label, text in report():
        print(f"{label:<16}{text}")
    failures = list(self_test())
    for failure in failures:
        print(f"{'':<16}{failure}")
    print(f"{'self-test':<16}{'FAIL' if failures else 'PASS'}")
    return 1 if failures else 0


def report() -> Iterator[tuple[str, str]]:
    """Pairs of a label and what is to be known of it. Starts no thread and no GPU."""
    import numba

    from nbnorm._cpu.reduce import reduce_segments

    settings: Any = numba.config
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for name in PACKAGES:
        yield name, _version(name) or "not installed"
    yield "threads", f"{settings.NUMBA_NUM_THREADS} for kernels, {os.cpu_count()} processors"
    built = [layer for layer, module in LAYERS.items() if find_spec(f"numba.np.ufunc.{module}")]
    yield "threading layer", f"setting {settings.THREADING_LAYER!r}; {', '.join(built)} built; not started yet"
    cache = Path(reduce_segments.serial.cache_path or "none")
    yield "kernel cache", f"{cache} ({'writable' if _writable(cache) else 'NOT WRITABLE: set NUMBA_CACHE_DIR'})"
    found = [f"{name} {version}" for name in GPU_PACKAGES if (version := _version(name))]
    yield "GPU packages", ", ".join(found) or "none"
    yield "CUDA driver", ctypes.util.find_library("cuda") or "none"


def self_test() -> Iterator[str]:
    """What disagrees with the NumPy formula, a line each; nothing when all is well."""
    import nbnorm

    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        for shape in ((16, 3, 8, 9), (500, 24)):
            x, dy = (rng.normal(2, 3, shape).astype(dtype) for _ in range(2))
            state = nbnorm.BatchNormState(shape[1], momentum=1.0)
            y, saved = nbnorm.batch_norm_training(x, state)
            gradients = nbnorm.batch_norm_backward(dy, saved)
            expected_y, expected_dx = _formula(x.astype(np.float64), dy.astype(np.float64), state.eps)
            # One rounding to the dtype, and as much again for the float64 arithmetic of both sides.
            for what, found, expected in (("y", y, expected_y), ("dx", gradients.dx, expected_dx)):
                error = np.abs(found - expected).max() / np.abs(expected).max()
                if not error <= 2 * len(shape) * np.finfo(dtype).eps:
                    yield f"{what} of {np.dtype(dtype)} {shape}: relative error {error:.1e}"


def _formula(x: np.ndarray, dy: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    axes = (0, *range(2, x.ndim))
    centred = x - x.mean(axes, keepdims=True)
    inv_std = 1 / np.sqrt((centred**2).mean(axes, keepdims=True) + eps)
    y = centred * inv_std
    dx = inv_std * (dy - dy.mean(axes, keepdims=True) - y * (dy * y).mean(axes, keepdims=True))
    return y, dx


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _writable(directory: Path) -> bool:
    """Whether a file can be made in the directory, or in its first parent that exists."""
    while not directory.is_dir() and directory != directory.parent:
        directory = directory.parent
    try:
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False
