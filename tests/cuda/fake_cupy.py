"""A stand-in for CuPy on machines without a GPU: its arrays are NumPy's, at home on a pretended device.

Only what nbnorm uses of CuPy. With it the simulator runs the public functions on the CUDA backend as they are.
"""

from __future__ import annotations

import sys
import threading
import types

import numpy as np

thread = threading.local()  # its `context` is that of the device which this thread has chosen, as cuda.core sees it


class Device:
    """A number, and inside `with` the current device."""

    count = 2
    current = 0

    def __init__(self, number=None):
        self.id = Device.current if number is None else number
        self.before = []

    def __enter__(self):
        self.before.append(Device.current)
        _set_device(self.id)
        return self

    def __exit__(self, *error):
        _set_device(self.before.pop())


def _set_device(number):
    Device.current = thread.context = number


class _Memory:
    def __init__(self, array):
        self.ptr, self.device_id = array.__array_interface__["data"][0], array.device_number


class ndarray(np.ndarray):
    """Like `cupy.ndarray`: no flags but contiguity, `get`, `data.ptr`; refuses to become a NumPy array by itself.

    It lives on the device that was current when it was made. Only views, `get` and copies work from another one.
    """

    def __array_finalize__(self, base):
        self.device_number = base.device_number if isinstance(base, ndarray) else Device.current

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

    def copy(self, order="C"):
        """On the current device."""
        return _at_a_boundary(_plain(self).copy(order))

    def astype(self, dtype, order="K", copy=True):
        """On the current device too."""
        same = self.dtype == dtype and not copy
        return self if same else _at_a_boundary(_here(self).astype(dtype, order))

    def __array_function__(self, function, kinds, args, kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        out = kwargs.pop("out", ())
        if any(isinstance(a, np.ndarray) and not isinstance(a, ndarray) and a.ndim for a in inputs):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        if out:
            kwargs["out"] = tuple(map(_here, out))
        result = np.asarray(getattr(ufunc, method)(*map(_here, inputs), **kwargs)).view(ndarray)
        return out[0] if out else result

    def __getitem__(self, index):
        return _view(_plain(self)[index], self)

    def __setitem__(self, index, value):
        if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and not isinstance(value, ndarray)):
            raise TypeError(f"Unsupported type {type(value)}")
        _here(self)[index] = _here(value)


def _view(values, array):
    """Values of an array, where it is."""
    found = np.asarray(values).view(ndarray)
    found.device_number = array.device_number
    return found


def _plain(value):
    """For NumPy."""
    return value.view(np.ndarray) if isinstance(value, ndarray) else value


def _here(value):
    """For NumPy, if a kernel of the current device may use it."""
    if isinstance(value, ndarray) and value.device_number != Device.current:
        raise ValueError(f"The device where the array resides ({value.device_number}) is different from the current")
    return _plain(value)


def _made(function, use=_here):
    def make(*args, **kwargs):
        return _at_a_boundary(np.asarray(function(*map(use, args), **kwargs)).view(ndarray))

    return make


def _asarray(value, *args):
    same = isinstance(value, ndarray) and value.device_number == Device.current and not args
    return value if same else _made(np.asarray, _plain)(value, *args)


def _at_a_boundary(array):
    """CuPy's pool gives out memory at multiples of 512 bytes; NumPy does not."""
    room = np.empty(array.nbytes + 512, np.uint8)
    start = -room.__array_interface__["data"][0] % 512
    steps = array.strides if array.size else None
    copy = np.ndarray(array.shape, array.dtype, room[start:], strides=steps)
    copy[...] = array.view(np.ndarray)
    return copy.view(ndarray)


def _root(array):
    return array if not isinstance(array.base, np.ndarray) else _root(array.base)


def from_elsewhere(values):
    """Values of a NumPy array, where they are, as an array of another library's memory: with an owner of its own."""
    return np.asarray(types.SimpleNamespace(__array_interface__=values.__array_interface__)).view(ndarray)


def made():
    """This, as a module."""
    cupy = types.ModuleType("cupy")
    ndarray.__module__ = "cupy"
    for name in ("empty", "zeros", "ones", "full", "sqrt", "where", "ascontiguousarray"):
        setattr(cupy, name, _made(getattr(np, name)))
    cupy.zeros_like = _made(np.zeros_like, _plain)
    cupy.empty_like, cupy.array, cupy.asarray = _made(np.empty_like, _plain), _made(np.array, _plain), _asarray
    cupy.broadcast_to = lambda array, shape: _view(np.broadcast_to(_plain(array), shape), array)
    strided = np.lib.stride_tricks.as_strided
    tricks = types.SimpleNamespace(as_strided=lambda a, shape, strides: _view(strided(_plain(a), shape, strides), a))
    cupy.lib = types.SimpleNamespace(stride_tricks=tricks)
    cupy.stack = lambda arrays: _made(np.stack)([*map(_here, arrays)])
    cupy.concatenate = lambda arrays, axis=0: _made(np.concatenate)([*map(_here, arrays)], axis)
    cupy.may_share_memory = lambda a, b: _root(a) is _root(b) and np.may_share_memory(_plain(a), _plain(b))
    cupy.ndarray = ndarray
    cupy.asnumpy = lambda array: array.get()
    Device.current = 0
    vars(thread).clear()
    runtime = types.SimpleNamespace(
        getDevice=lambda: Device.current,
        getDeviceCount=lambda: Device.count,
        setDevice=_set_device,
        deviceGetAttribute=lambda attribute, device: 0,  # a GPU that has nothing
    )
    # The current one of every device.
    streams = [types.SimpleNamespace(ptr=0, synchronize=lambda: None) for _ in range(Device.count)]
    cupy.cuda = types.SimpleNamespace(
        Device=Device, runtime=runtime, streams=streams, get_current_stream=lambda: streams[Device.current]
    )
    return cupy


def install():
    """Make `import cupy` give this."""
    sys.modules["cupy"] = made()
    return sys.modules["cupy"]
