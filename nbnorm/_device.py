"""Devices: "cpu", "cuda:0", "cuda:1", ..., and the array library of each. CuPy is imported only for the latter."""

from __future__ import annotations

import contextlib
import importlib
import sys
from importlib import metadata
from types import ModuleType
from typing import Any

import numpy as np

from nbnorm import _needed

GPU_PACKAGES = 'pip install cupy-cuda13x "numba-cuda[cu13]" "numpy<2.5" (an older driver: cupy-cuda12x, [cu12])'


def resolve(device: str) -> str:
    """`device` with its number; "cuda" is the current one.

    Raises
    ------
    ValueError
        When there is no such device.
    ImportError, RuntimeError
        When CuPy or the driver of the GPU is missing: theirs, with a line of advice.
    """
    kind, _, number = device.partition(":") if isinstance(device, str) else ("", "", "")
    if device == "cpu":
        return device
    if kind != "cuda" or (":" in device and not number.isdecimal()):
        raise ValueError(f"device is {device!r:.40}; expected 'cpu', 'cuda' or 'cuda:0' with the number of a GPU")
    cupy = library(device)
    try:
        count, current = cupy.cuda.runtime.getDeviceCount(), cupy.cuda.runtime.getDevice()
    except Exception as error:
        error.add_note("CUDA is not usable here; device='cpu' and NumPy arrays need none (python -m nbnorm info)")
        raise
    if number and int(number) >= count:
        raise ValueError(f"device is {device!r:.40}; this machine has {count} GPUs, counted from 0")
    return f"cuda:{int(number) if number else current}"


def library(device: str) -> ModuleType:
    """NumPy or CuPy."""
    if device == "cpu":
        return np
    with _needed.package('device="cuda"', GPU_PACKAGES):
        import cupy
    return cupy


def zeros_like(array: Any) -> Any:
    """On its device, which is current; lazy for a lazy array, which NumPy asks for it. 0*array may be NaN."""
    return library(of(array)).zeros_like(array)


def compiler_problem() -> str | None:
    """Why the numba-cuda that is installed cannot compile for this NumPy, and the way out; None when it can.

    At its first kernel numba-cuda 0.30 registers all of NumPy's functions that it knows, and NumPy 2.5 has dropped one.
    """
    import numba

    settings: Any = numba.config
    if hasattr(np, "row_stack") or settings.ENABLE_CUDASIM:
        return None
    try:
        importlib.import_module("numba.cuda.np.arrayobj")
    except AttributeError as error:
        found = f"numba-cuda {metadata.version('numba-cuda')} does not work with NumPy {np.__version__}"
        return f'{found} ({error}): pip install "numpy<2.5"'
    except ImportError:  # no numba-cuda, or another one than those that register them there
        return None
    return None


def current(device: str) -> contextlib.AbstractContextManager:
    """Makes the device current inside."""
    if device == "cpu":
        return contextlib.nullcontext()
    return library(device).cuda.Device(int(device.partition(":")[2]))


def of(array: Any) -> str:
    """Where an array is."""
    cupy = sys.modules.get("cupy")  # whoever has an array of it has imported it
    return f"cuda:{array.device.id}" if cupy is not None and isinstance(array, cupy.ndarray) else "cpu"


def host(array: Any) -> Any:
    """A CuPy array as a NumPy array; anything else as NumPy understands it."""
    place = of(array)
    with current(place):  # `get` takes the stream of the device that is current, whatever the array's is
        return np.asarray(array) if place == "cpu" else array.get()


def moved(array: Any, device: str) -> Any:
    """An array, or None, on a device that is current: itself if it is there, otherwise a copy."""
    if array is None:
        return None
    if device == "cpu":
        return host(array)
    xp, there = library(device), of(array)
    if there in ("cpu", device):
        return xp.asarray(array)
    # Streams of two GPUs do not wait for each other: not for what is written there, nor for what is read.
    with current(there):
        xp.cuda.get_current_stream().synchronize()
    copy = xp.asarray(array)
    xp.cuda.get_current_stream().synchronize()
    return copy
