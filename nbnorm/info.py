"""What this installation consists of, and a short self-test against the formula written in NumPy."""

from __future__ import annotations

import argparse
import ctypes.util
import importlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

from nbnorm import __version__, _device

DISTRIBUTION = "numba-batchnorm"  # what it is called where packages are installed from
PACKAGES = ("numpy", "numba", "llvmlite", "ml_dtypes")
INTEGRATIONS = ("scikit-learn", "xarray", "dask", "distributed", "mpi4py", "safetensors", "onnx")
GPU_PACKAGES = ("numba-cuda", "cupy-cuda12x", "cupy-cuda13x", "cupy")
LAYERS = {"tbb": "tbbpool", "omp": "omppool", "workqueue": "workqueue"}
SHAPE = (16, 3, 8, 9)  # of the self-test; one dtype and one order, since compilation is what takes time
_TESTED = f"one training and one backward pass of float32 {SHAPE} against NumPy"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`info` has no options."""


def run(args: argparse.Namespace) -> int:
    """Print the report; 0 when the self-test passes, 1 when it fails."""
    for label, text in report():
        _say(label, text)
    _say("self-test", f"{_TESTED}; compiles for some seconds unless the cache has it ...")
    start = time.perf_counter()
    failures = list(self_test())
    for failure in failures:
        _say("", failure)
    _say("self-test", f"{'FAIL' if failures else 'PASS'} after {time.perf_counter() - start:.1f} s")
    return 1 if failures else 0


def _say(label: str, text: str) -> None:
    print(f"{label:<16}{text}", flush=True)


def report() -> Iterator[tuple[str, str]]:
    """Pairs of a label and what is to be known of it. Starts no thread of Numba's and no GPU."""
    import numba

    from nbnorm._cpu.reduce import reduce_segments

    settings: Any = numba.config
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    yield "nbnorm", f"{__version__} in {Path(__file__).parent}"
    installed = f"{DISTRIBUTION} {_version(DISTRIBUTION) or '(not installed: runs from its folder)'}"
    if (place := _installed_in()) and place.resolve() != Path(__file__).resolve().parent:
        installed += f" in {place}: NOT THIS ONE, which is first on sys.path and has a kernel cache of its own"
    yield "installed as", installed
    if other := _version("nbnorm"):
        yield "CONFUSION", f"nbnorm {other} is installed too, another project: uninstall both, then install this one"
    for name in PACKAGES:
        yield name, _version(name) or "not installed"
    yield "threads", f"{settings.NUMBA_NUM_THREADS} for kernels, {os.cpu_count()} processors"
    layers = "; ".join(f"{layer}: {_layer(module)}" for layer, module in LAYERS.items())
    yield "threading layer", f"setting {settings.THREADING_LAYER!r}; {layers}"
    if (cache := reduce_segments.compiled.cache_path) is None:
        yield (
            "kernel cache",
            "NONE: every process compiles anew; set NUMBA_CACHE_DIR to a directory that can be written",
        )
    else:
        yield (
            "kernel cache",
            f"{cache} ({'writable' if _writable(Path(cache)) else 'NOT WRITABLE: set NUMBA_CACHE_DIR'})",
        )
    yield "integrations", _those_installed(INTEGRATIONS)
    yield "GPU packages", _those_installed(GPU_PACKAGES)
    if problem := _device.compiler_problem():
        yield "CUDA", f"NOT USABLE: {problem}"
    yield "CUDA driver", ctypes.util.find_library("cuda") or "none"


def self_test() -> Iterator[str]:
    """What disagrees with the NumPy formula, a line each; nothing when all is well."""
    import nbnorm

    rng = np.random.default_rng(0)
    x, dy = (rng.normal(2, 3, SHAPE).astype(np.float32) for _ in range(2))
    state = nbnorm.BatchNormState(SHAPE[1], momentum=1.0)
    y, saved = nbnorm.batch_norm_training(x, state)
    gradients = nbnorm.batch_norm_backward(dy, saved)
    expected_y, expected_dx = _formula(x.astype(np.float64), dy.astype(np.float64), state.eps)
    # Far more than float32 arithmetic loses here, and far less than any mistake.
    for what, found, expected in (("y", y, expected_y), ("dx", gradients.dx, expected_dx)):
        error = np.abs(found - expected).max() / np.abs(expected).max()
        if not error <= 2 * len(SHAPE) * np.finfo(np.float32).eps:
            yield f"{what} of float32 {SHAPE}: relative error {error:.1e}"


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


def _those_installed(names: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {version}" for name in names if (version := _version(name))) or "none"


def _installed_in() -> Path | None:
    """Where the package is that was installed, which a folder before it on sys.path hides; None without one."""
    try:
        found = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None
    about = json.loads(found.read_text("direct_url.json") or "{}")
    if about.get("dir_info", {}).get("editable"):
        return Path(url2pathname(urlsplit(about["url"]).path), "nbnorm")
    return Path(str(found.locate_file("nbnorm")))


def _layer(module: str) -> str:
    """Whether a threading layer of Numba's can run here: a slim container has no OpenMP library."""
    name = f"numba.np.ufunc.{module}"
    if find_spec(name) is None:
        return "not built"
    try:
        importlib.import_module(name)
    except ImportError:
        return "built, cannot be loaded"
    return "ready"


def _writable(directory: Path) -> bool:
    """Whether a file can be made in the directory, or in its first parent that exists."""
    while not directory.is_dir() and directory != directory.parent:
        directory = directory.parent
    try:
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False
