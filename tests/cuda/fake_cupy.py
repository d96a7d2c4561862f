"""A stand-in for CuPy on machines without a GPU: its arrays are NumPy's, at home on a pretended device.

Only what nbnorm uses of CuPy. With it the simulator runs the public functions on the CUDA backend as they are.
"""

from __future__ import annotations

import sys
import types

import numpy as np


class _Memory:
    def __init__(self, array):
        self.ptr, self.device_id = array.__array_interface__["data"][0], array.device_number


class ndarray(np.ndarray):
    """Like `cupy.ndarray`: no flags but contiguity, `get`, `data.ptr`; refuses to become a NumPy array by itself."""

    device_number = 0

    @property
    def data(self):
        return _Memory(self)

    @property
    def device(self):
        return Device(self.device_number)

    @property
    def flags(self):
        real = super().flags
        return types.SimpleNamespace(c_contiguous=real.c_contiguous, f_contiguous=real.f_contiguous)

    def get(self):
        return np.array(self.view(np.ndarray), order="C")

    def __array_function__(self, function, kinds, args, kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        out = kwargs.pop("out", ())
        plain = [a.view(np.ndarray) if isinstance(a, ndarray) else a for a in inputs]
        if any(isinstance(a, np.ndarray) and not isinstance(a, ndarray) and a.ndim for a in inputs):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        if out:
            kwargs["out"] = tuple(a.view(np.ndarray) for a in out)
        result = np.asarray(getattr(ufunc, method)(*plain, **kwargs)).view(ndarray)
        return out[0] if out else result

    def __getitem__(self, index):
        return np.asarray(self.view(np.ndarray)[index]).view(ndarray)

    def __setitem__(self, index, value):
        if isinstance(value, np.ndarray) and not isinstance(value, ndarray):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        self.view(np.ndarray)[index] = value.view(np.ndarray) if isinstance(value, ndarray) else value


def _made(function):
    def make(*args, **kwargs):
        if function is np.asarray and isinstance(args[0], ndarray):
            return args[0]
        args = [a.view(np.ndarray) if isinstance(a, np.ndarray) else a for a in args]
        result = np.asarray(function(*args, **kwargs)).view(ndarray)
        return _at_a_boundary(result)

    return make


def _at_a_boundary(array):
    """CuPy's pool gives out memory at multiples of 512 bytes; NumPy does not."""
    room = np.empty(array.nbytes + 512, np.uint8)
    start = -room.__array_interface__["data"][0] % 512
    steps = array.strides if array.size else None
    copy = np.ndarray(array.shape, array.dtype, room[start:], strides=steps)
    copy[...] = array.view(np.ndarray)
    return copy.view(ndarray)


class Device:
    def __init__(self, number):
        self.id = number

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def install():
    """Make `import cupy` give this."""
    cupy = types.ModuleType("cupy")
    ndarray.__module__ = "cupy"
    for name in ("empty", "zeros", "ones", "full", "empty_like", "asarray", "array", "sqrt"):
        setattr(cupy, name, _made(getattr(np, name)))
    cupy.broadcast_to = lambda array, shape: np.broadcast_to(array.view(np.ndarray), shape).view(ndarray)
    cupy.concatenate = lambda arrays, axis: _made(np.concatenate)([a.view(np.ndarray) for a in arrays], axis)
    cupy.may_share_memory = lambda a, b: np.may_share_memory(a.view(np.ndarray), b.view(np.ndarray))
    cupy.ndarray = ndarray
    cupy.asnumpy = lambda array: array.get()
    runtime = types.SimpleNamespace(getDevice=lambda: 0, getDeviceCount=lambda: 2)
    stream = types.SimpleNamespace(ptr=0)
    cupy.cuda = types.SimpleNamespace(Device=Device, runtime=runtime, get_current_stream=lambda: stream)
    sys.modules["cupy"] = cupy
    return cupy
