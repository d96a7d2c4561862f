"""Devices: "cpu", "cuda:0", "cuda:1", ..., and the array library of each. CuPy is imported only for the latter."""

from __future__ import annotations

import contextlib
from types import ModuleType
from typing import Any

import numpy as np


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
    try:
        import cupy
    except ImportError as error:
        error.add_note(
            'device="cuda" needs CuPy: pip install "nbnorm[cuda13]", or "nbnorm[cuda12]" for an older driver'
        )
        raise
    return cupy


def current(device: str) -> contextlib.AbstractContextManager:
    """Makes the device current inside."""
    if device == "cpu":
        return contextlib.nullcontext()
    return library(device).cuda.Device(int(device.partition(":")[2]))


def of(array: Any) -> str:
    """Where an array is."""
    return f"cuda:{array.device.id}" if hasattr(array, "get") and hasattr(array, "dtype") else "cpu"


def host(array: Any) -> Any:
    """A CuPy array as a NumPy array; anything else as NumPy understands it."""
    return np.asarray(array) if of(array) == "cpu" else array.get()


def moved(array: Any, device: str) -> Any:
    """An array, or None, on a device that is current: itself if it is there, otherwise a copy."""
    if array is None:
        return None
    return host(array) if device == "cpu" else library(device).asarray(array)
