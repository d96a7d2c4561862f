"""Memory: NumPy arrays and what lies under them."""

from __future__ import annotations

import contextlib
import ctypes

import numpy as np
from numpy.typing import NDArray

from nbnorm import _arguments
from nbnorm._layout import Layout

xp = np
Array = np.ndarray
_HERE = contextlib.nullcontext()


def values(name: str, array: NDArray) -> NDArray:
    """`array` as a plain, native, aligned ndarray: itself, or one copy of what is none.

    Raises
    ------
    TypeError
        When the dtype is not one of the four.
    """
    if type(array) is not np.ndarray:
        array = np.asarray(array)
    elif array.dtype in _arguments.NATIVE and array.flags.aligned:  # the usual case, without a call
        return array
    native = _arguments.dtype(name, array.dtype)
    if array.dtype is not native:
        array = array.astype(native, order="K", copy=False)
    if not array.flags.aligned:
        array = array.copy(order="K")
    return array


def on_device_of(array: NDArray) -> contextlib.AbstractContextManager:
    """Nothing to do: there is one CPU."""
    return _HERE


def device(array: NDArray) -> str:
    """Where it is, as a state names it."""
    return "cpu"


def address(array: NDArray) -> int:
    """Of the first element."""
    return array.ctypes.data


def footprint(array: NDArray) -> NDArray:
    """A NumPy array at the same addresses."""
    return array


def may_overlap(a: NDArray, b: NDArray) -> bool:
    """Whether the addresses between their first and last elements meet."""
    return np.may_share_memory(a, b)


def read(layout: Layout, array: NDArray) -> NDArray:
    """The elements in this order, flat, as kernels know them: a view where possible, otherwise a copy. Only to read."""
    flat = array.ravel("K") if layout.holds(array) else np.ascontiguousarray(array.transpose(layout.order)).reshape(-1)
    if not flat.flags.writeable:
        flat = _as_if_writable(flat)
    return flat if flat.itemsize != 2 else _raw(flat)


def write(layout: Layout, array: NDArray) -> NDArray:
    """Where to write the elements of `array` in this order: its own memory where possible."""
    flat = array.ravel("K") if layout.holds(array) else np.empty(array.size, array.dtype)
    return flat if flat.itemsize != 2 else _raw(flat)


def span(array: NDArray) -> tuple[NDArray, int]:
    """All memory from the first to the last address of `array`, flat, and the place of its first element there."""
    if array.flags.forc:  # the usual case, and a twentieth of the detour below; empty arrays are, too
        flat = np.asarray(array).ravel("K")  # of a memmap too a plain array
        return flat if flat.flags.writeable else _as_if_writable(flat), 0
    last = [(length - 1) * stride // array.itemsize for length, stride in zip(array.shape, array.strides, strict=True)]
    first = -sum(min(0, reach) for reach in last)
    lowest = array[tuple(slice(None, None, -1) if reach < 0 else slice(None) for reach in last)]
    flat = np.lib.stride_tricks.as_strided(lowest, (1 + sum(map(abs, last)),), (array.itemsize,))
    return flat if flat.flags.writeable else _as_if_writable(flat), first


def scratch(size: int) -> NDArray[np.float64]:
    """Room for float64 values that nobody needs after the call."""
    return np.empty(size)


def kept(array: NDArray) -> NDArray:
    """Nothing to do: the CPU repeats no call behind its caller's back."""
    return array


def refuse_in_capture(what: str) -> None:
    """Nothing to do: no call is captured."""


def finish(layout: Layout, target: NDArray, array: NDArray) -> None:
    """Bring what was written to `write(layout, array)` into `array`."""
    if target.base is not array and target.size and not np.may_share_memory(target, array):
        ordered = array.transpose(layout.order)
        ordered[...] = target.view(array.dtype).reshape(ordered.shape)


def _raw(array: NDArray) -> NDArray:
    """What kernels know 16-bit floats as: the integers that stand for them (_floats.py)."""
    return array.view(np.uint16 if array.dtype == np.float16 else np.int16)


def _as_if_writable(array: NDArray) -> NDArray:
    """The same memory without the read-only flag.

    Kernels never write to what they read, but Numba would compile each of them once more for read-only arrays.
    """
    memory = (ctypes.c_char * array.nbytes).from_address(array.ctypes.data)
    memory.owner = array  # type: ignore[attr-defined]  # an address alone would not keep it
    return np.ndarray(array.size, array.dtype, memory)  # type: ignore[arg-type]  # any buffer will do
