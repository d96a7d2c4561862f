"""Launch: a kernel body compiled for the types it gets, started on CuPy's current stream from raw pointers.

This is the only module that imports `numba.cuda`. Numba compiles and loads a kernel; cuda.core starts it, because
Numba's own dispatcher unpacks every array anew at every launch, which takes longer than many a kernel.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from itertools import chain
from typing import Any

import numba
from numba import cuda as numba_cuda

from nbnorm._counted import Both, Counted, Tangent, each
from nbnorm._cuda.plan import LARGE_ROOM, ROOM
from nbnorm._kernel_cache import only_own_entries

_settings: Any = numba.config
SIMULATED = bool(_settings.ENABLE_CUDASIM)
cuda: Any
extending: Any
types: Any

if SIMULATED:
    from numba.cuda.simulator.kernel import _get_kernel_context

    from nbnorm._cuda.simulator import Packs

    class _RunningKernel:
        """`numba.cuda` as the kernel sees it that the simulator runs, in whichever module its parts stand."""

        def __getattr__(self, name: str) -> Any:
            return getattr(_get_kernel_context(), name)

    cuda = _RunningKernel()
    extending = types = None
else:
    from numba.cuda import extending, types  # noqa: F401  for intrinsics.py

    cuda = numba_cuda

# Of an array argument: (dtype, lanes) of packs, dtype of plain values, absent; of a Counted those of its two arrays, a
# Tangent or a Both of those of its arrays.
Kind = tuple[str, int] | str | tuple["Kind", "Kind", str] | Tangent | Both | None
COUNTED = "counted"
NUMBER = "number"  # a float64, in the place of an array since it may be absent, too
_SHARED_MEMORY_OPTIN = 97  # CUDA's number of cudaDevAttrMaxSharedMemoryPerBlockOptin


class Kernel:
    """A kernel body. It is compiled at the first call for the kinds of its arrays, and cached on disk.

    Arrays are the first arguments of a body, numbers the last: int is int64, float is float64.
    """

    def __init__(self, body: Callable[..., None]) -> None:
        self.body, self.__name__, self.__doc__ = body, body.__name__, body.__doc__
        self.dispatcher = _dispatcher(body)
        self.ready: dict[tuple, Any] = {}

    def __call__(
        self, grid: tuple[int, int], block: int, kinds: tuple[Kind, ...], *values: Any, room: int = 0
    ) -> None:  # fmt: skip
        """Start grid[0] x grid[1] blocks. `values` are what `pointer` made of the arrays, then the numbers.

        `room` is in bytes the dynamic shared memory of a block.
        """
        if SIMULATED:
            self.dispatcher[grid, block, 0, room](*_simulated(kinds, values))
            return
        cupy_cuda = sys.modules["cupy"].cuda
        more = room > ROOM  # than a block has that does not ask
        key = kinds, cupy_cuda.runtime.getDevice(), more
        start = self.ready.get(key)
        if start is None:
            compiled = self.dispatcher.compile(self.signature(kinds, values))
            if more:
                _allow_room(compiled)
            start = self.ready[key] = _starter(compiled, any(isinstance(value, tuple) for value in values))
        start(cupy_cuda.get_current_stream().ptr, grid, block, room, *values)

    def signature(self, kinds: tuple[Kind, ...], values: tuple) -> tuple:
        """Numba's types of the arguments."""
        numbers = values[len(kinds) :]
        return (*map(_pointer_type, kinds), *(types.int64 if isinstance(v, int) else types.float64 for v in numbers))


def _starter(compiled: Any, nested: bool) -> Callable[..., None]:
    """A function (stream, grid, block, room, *values) that starts a compiled kernel; with `nested` some are tuples."""
    kernel = _loaded(compiled)
    if kernel is None:
        return partial(_numbas_own_launch, compiled)
    from cuda.core import launch

    def start(stream: int, grid: tuple[int, int], block: int, room: int, *values: Any) -> None:
        launch(_stream_of(stream), _configuration(grid, block, room), kernel, *values)

    return _flattening(start) if nested else start


def _numbas_own_launch(
    compiled: Any, stream: int, grid: tuple[int, int], block: int, room: int, *values: Any
) -> None:  # fmt: skip
    compiled.launch(values, (*grid, 1), (block, 1, 1), stream=_stream_of(stream), sharedmem=room)


def _flattening(start: Callable[..., None]) -> Callable[..., None]:
    """The same for values of which one is a tuple: a compiled kernel has a parameter for each of its numbers."""

    def flat(stream: Any, grid: Any, block: int, room: int, *values: Any) -> None:
        start(stream, grid, block, room, *chain(*(v if isinstance(v, tuple) else (v,) for v in values)))

    return flat


@lru_cache(256)
def _stream_of(handle: int) -> Any:
    try:
        from cuda.core import Stream
    except ImportError:  # an old one
        return numba_cuda.external_stream(handle)
    return Stream.from_handle(handle)


@lru_cache(1024)
def _configuration(grid: tuple[int, int], block: int, room: int) -> Any:
    from cuda.core import LaunchConfig

    return LaunchConfig(grid=grid, block=block, shmem_size=room)


def _loaded(compiled: Any) -> Any:
    """What cuda.core starts: behind a private attribute of Numba's, so it may go; then Numba's own launch serves.

    It also does where cuda.core is older than the names that are used here.
    """
    if not _cuda_core_launches():
        return None
    try:
        return compiled._codelibrary.get_cufunc().kernel
    except AttributeError:
        return None


def roomy() -> bool:
    """Whether a block of the current GPU may have plan.LARGE_ROOM: on compute capability 9.0 and 10.0."""
    return not SIMULATED and _cuda_core_launches() and _is_roomy(sys.modules["cupy"].cuda.runtime.getDevice())


@lru_cache
def _is_roomy(device: int) -> bool:
    return sys.modules["cupy"].cuda.runtime.deviceGetAttribute(_SHARED_MEMORY_OPTIN, device) >= 227 << 10


@lru_cache
def _cuda_core_launches() -> bool:
    try:
        from cuda.core import LaunchConfig, launch  # noqa: F401
    except ImportError:  # an old one
        return False
    return True


def _allow_room(compiled: Any) -> None:
    """Let blocks of a kernel have plan.LARGE_ROOM on the current GPU."""
    from cuda.bindings import driver

    kernel = _loaded(compiled)
    if kernel is None:
        raise RuntimeError("Numba has changed how it keeps a compiled kernel: please use an older numba-cuda, 0.30.4")
    what = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    _, device = driver.cuCtxGetDevice()
    (error,) = driver.cuKernelSetAttribute(what, LARGE_ROOM, kernel.handle, device)
    if error != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"{error.name}: no {LARGE_ROOM} bytes of shared memory for a block")


class _AbsentAsNull:
    """For Numba's own launch, which cannot pass None: a null pointer takes its place."""

    @staticmethod
    def prepare_args(kind: Any, value: Any, **_: Any) -> tuple[Any, Any]:
        return (types.CPointer(types.int8), 0) if kind is types.none else (kind, value)


def _dispatcher(body: Callable[..., None]) -> Any:
    """Numba's compiler for a body, with the disk cache if there is a place for one."""
    if SIMULATED:
        return numba_cuda.jit(body)
    # Two blocks of 256 threads fit on every multiprocessor: at most 128 registers a thread.
    options = {"launch_bounds": (256, 2), "extensions": [_AbsentAsNull]}
    try:
        return only_own_entries(numba_cuda.jit(body, cache=True, **options))
    except RuntimeError:  # Numba: "no locator available"
        text = "CUDA kernels are compiled anew in every process; set NUMBA_CACHE_DIR to a writable directory"
        warnings.warn(text, RuntimeWarning, stacklevel=1)  # one place and one text: shown once
        return numba_cuda.jit(body, **options)


@lru_cache
def _pointer_type(kind: Kind) -> Any:
    from nbnorm._cuda.intrinsics import Pack

    if kind is None:
        return types.none
    if kind == NUMBER:
        return types.float64
    if isinstance(kind, str):
        return types.CPointer(getattr(types, kind))
    if isinstance(kind, Tangent | Both):
        return types.NamedTuple([_pointer_type(one) for one in kind], type(kind))
    if len(kind) == 3:
        place, (where, weights) = [types.int64] * 4, map(_pointer_type, kind[:2])
        return types.NamedTuple([where, *place, weights, *place, types.int64], Counted)
    dtype, lanes = kind
    return types.CPointer(Pack(getattr(types, dtype), lanes))


# ---- CuPy: processes, the memory


def refuse_after_fork() -> None:
    """The driver would only speak of an initialization error."""
    if _forked:
        raise RuntimeError(
            "CUDA was in use before this process was forked and cannot be used in it; "
            'start processes with multiprocessing.get_context("spawn")'
        )


_forked = False


def _after_fork_in_child() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):  # this module is imported by the first call on a GPU
    os.register_at_fork(after_in_child=_after_fork_in_child)


def pointer(array: Any) -> Any:
    """What a kernel gets for an array; memory order is all that counts."""
    if SIMULATED:
        return None if array is None else _flat(array)
    return 0 if array is None else array.data.ptr


def pointers(arrays: Any) -> Any:
    """The same of a Tangent or a Both, and of an array."""
    return each(pointer, arrays) if isinstance(arrays, tuple) else pointer(arrays)


def number(value: float | None) -> Any:
    """The same of a number."""
    return pointer(None) if value is None else float(value)


def counted(w: Counted | None) -> Any:
    """The same of a Counted."""
    return (
        pointer(None) if w is None else w._replace(where=pointer(w.where), weights=pointer(w.weights), omit=int(w.omit))  # type: ignore[arg-type]  # of kernels a number
    )


def _flat(array: Any) -> Any:
    import numpy as np

    flat = np.ndarray.view(np.lib.stride_tricks.as_strided(array, (array.size,), (array.itemsize,)), np.ndarray)
    if array.itemsize == 2:
        return flat.view(np.uint16 if array.dtype == np.float16 else np.int16)
    return flat


def _simulated(kinds: tuple[Kind, ...], values: tuple) -> list:
    def packed(kind: Any, value: Any) -> Any:
        if isinstance(kind, Tangent | Both):
            return each(lambda one: Packs(one, kind[0][1]), value)
        return Packs(value, kind[1]) if isinstance(kind, tuple) and len(kind) == 2 else value

    return [*map(packed, kinds, values), *values[len(kinds) :]]
