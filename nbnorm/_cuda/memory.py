"""Memory: CuPy arrays and what lies under them. Everything comes from CuPy's pool, on CuPy's current stream.

CuPy is taken from `sys.modules`: whoever has an array of it has imported it.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from nbnorm import _arguments
from nbnorm._cuda import plan
from nbnorm._cuda.launch import refuse_after_fork
from nbnorm._cuda.plan import ACCESS
from nbnorm._layout import Layout

xp: Any = sys.modules["cupy"]
Array: type = xp.ndarray


def values(name: str, array: Any) -> Any:
    """`array`, if its dtype is one of the four."""
    _arguments.dtype(name, array.dtype)
    return array


def on_device_of(array: Any) -> contextlib.AbstractContextManager:
    """Makes the array's device current, if it is not, and its context that of this thread."""
    refuse_after_fork()
    number = array.data.device_id
    if number != xp.cuda.runtime.getDevice():
        return xp.cuda.Device(number)
    if number not in _contexts.bound:
        xp.cuda.runtime.setDevice(number)
        _contexts.bound.add(number)
    return _HERE


class _Contexts(threading.local):
    """The devices that this thread has chosen once.

    A new thread has no context: asking for the current device makes none, a call that allocates nothing neither, and
    cuda.core launches into the one that is there.
    """

    def __init__(self) -> None:
        self.bound: set[int] = set()


_HERE, _contexts = contextlib.nullcontext(), _Contexts()


def device(array: Any) -> str:
    """Where it is, as a state names it."""
    return f"cuda:{array.data.device_id}"


def address(array: Any) -> int:
    """Of the first element, on its device."""
    return array.data.ptr


def footprint(array: Any) -> np.ndarray:
    """A NumPy array at the same addresses, to compare them: nobody may read it."""
    interface = {"data": (address(array), False), "shape": array.shape, "strides": array.strides,
                 "typestr": f"|V{array.itemsize}", "version": 3}  # fmt: skip
    return np.asarray(SimpleNamespace(__array_interface__=interface))


def may_overlap(a: Any, b: Any) -> bool:
    """Whether the addresses between their first and last elements meet.

    CuPy's own test sees only what one allocation of its has; memory that came by DLPack has many owners.
    """
    geometry, other = (a.shape, a.strides, a.itemsize), (b.shape, b.strides, b.itemsize)
    first, end = _reach(*geometry)
    b_first, b_end = (first, end) if other == geometry else _reach(*other)
    distance = b.data.ptr - a.data.ptr
    return first < distance + b_end and distance + b_first < end


@lru_cache(1024)
def _reach(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """How far from its first element an array begins and ends, in bytes."""
    if 0 in shape:
        return 0, 0
    reaches = [(length - 1) * stride for length, stride in zip(shape, strides, strict=True)]
    return sum(min(0, reach) for reach in reaches), sum(max(0, reach) for reach in reaches) + itemsize


def read(layout: Layout, array: Any) -> Any:
    """An array that has the elements in this order in memory, aligned as its packs need it: itself, or a copy."""
    if layout.holds(array) and _aligned(layout, array):
        return array
    return kept(xp.array(array.transpose(layout.order), order="C", copy=True))


def write(layout: Layout, array: Any) -> Any:
    """Where to write the elements of `array` in this order: itself where possible."""
    if layout.holds(array) and _aligned(layout, array):
        return array
    return kept(xp.empty(array.size, array.dtype))


def _aligned(layout: Layout, array: Any) -> bool:
    return array.data.ptr % ACCESS == 0 or array.data.ptr % plan.alignment(layout.shape, array.itemsize) == 0


def finish(layout: Layout, target: Any, array: Any) -> None:
    """Bring what was written to `write(layout, array)` into `array`."""
    if target is not array:
        ordered = array.transpose(layout.order)
        ordered[...] = target.reshape(ordered.shape)


def span(array: Any) -> tuple[Any, int]:
    """All memory from the first to the last address of `array`, flat, and the place of its first element there."""
    if not array.size:
        return xp.empty(0, array.dtype), 0
    last = [(length - 1) * stride // array.itemsize for length, stride in zip(array.shape, array.strides, strict=True)]
    lowest = array[tuple(slice(None, None, -1) if reach < 0 else slice(None) for reach in last)]
    flat = xp.lib.stride_tricks.as_strided(lowest, (1 + sum(map(abs, last)),), (array.itemsize,))
    return kept(flat), -sum(min(0, reach) for reach in last)


def scratch(size: int) -> Any:
    """Room for float64 values that nobody needs once the call's kernels have run."""
    return kept(xp.empty(size))


def kept(array: Any) -> Any:
    """`array`, which CuPy's pool must not give to anybody else if it belongs to a CUDA graph.

    A graph that is replayed writes where it wrote when it was captured, for as long as the process lives.
    """
    if _is_captured():
        _OF_GRAPHS.append(array)
    return array


_OF_GRAPHS: list[Any] = []


def refuse_in_capture(what: str) -> None:
    """Before anything that waits for the GPU.

    Raises
    ------
    RuntimeError
        When the current stream is being captured. The driver's own error would name nothing, and spoil the capture.
    """
    if _is_captured():
        raise RuntimeError(
            f"{what} waits for the GPU, which a stream that is being captured cannot; call it before begin_capture"
        )


def _is_captured() -> bool:
    stream = xp.cuda.get_current_stream()
    return stream.ptr > 1 and stream.is_capturing()  # the default one, 0 or 1, cannot be, nor be asked meanwhile


@lru_cache
def in_memory(dtype: np.dtype) -> str:
    """Numba's name of what kernels find in memory: 16-bit floats are the integers that stand for them."""
    return {"float16": "uint16", "bfloat16": "int16"}.get(dtype.name, dtype.name)
