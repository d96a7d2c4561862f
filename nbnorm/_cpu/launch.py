"""Launch: one body compiled twice, for all threads and for one, and the choice between the two.

Both twins give the same bits (reduce.py says why), so the choice is free: small arrays are not worth a parallel
region, and where a parallel region would be unsafe the serial twin answers.
"""

from __future__ import annotations

import contextlib
import os
import threading
import types
import warnings
from collections.abc import Callable
from typing import Any

import numba

# Below this many bytes read and written a parallel region costs more than it saves (docs/kernels.md).
SERIAL_BELOW = 128 << 10


def compiled(body: Callable[..., None], **options: Any) -> Any:
    """`njit` with the disk cache if there is a place for one."""
    try:
        return numba.njit(nogil=True, cache=True, **options)(body)
    except RuntimeError as error:  # Numba: "no locator available"
        warnings.warn(
            f"kernels are compiled anew in every process ({error}); set NUMBA_CACHE_DIR to a writable directory",
            RuntimeWarning,
            stacklevel=2,
        )
        return numba.njit(nogil=True, **options)(body)


class Kernel:
    """A kernel body and its two compilations. Calls go to one of them; compilation happens at the first call.

    The last argument of a body is the number of workers.
    """

    def __init__(self, body: Callable[..., None]) -> None:
        self.__name__, self.__doc__ = body.__name__, body.__doc__
        self.parallel = compiled(body, parallel=True)
        # Numba's disk cache knows a function by file, name and line but not by `parallel`: under the same name
        # the serial twin would be handed the parallel code.
        name = body.__name__ + "_serial"
        twin = types.FunctionType(
            body.__code__.replace(co_name=name, co_qualname=name), body.__globals__, name, None, body.__closure__
        )
        twin.__qualname__, twin.__module__ = name, body.__module__
        self.serial = compiled(twin)

    def __call__(self, workers: int, *args: Any) -> None:
        """Run on `args` with at most this many workers."""
        if workers == 1:
            self.serial(*args, 1)
        elif _guard.any_thread_may_run:
            self.parallel(*args, workers)
        elif _guard.lock.acquire(blocking=False):
            try:
                self.parallel(*args, workers)
                _guard.any_thread_may_run = numba.threading_layer() != "workqueue"
            finally:
                _guard.lock.release()
        else:
            self.serial(*args, 1)


def workers_for(nbytes: int) -> int:
    """How many workers a call deserves that reads and writes this much."""
    return 1 if nbytes < SERIAL_BELOW or _guard.forked else numba.get_num_threads()


class _Guard:
    """Which threads may enter a parallel region.

    Numba's `workqueue` layer aborts the process when two threads are in a region at once; until the first region
    has run, the layer is unknown. After a fork a child of an OpenMP parent dies at its first region.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.any_thread_may_run = False
        self.forked = False

    def after_fork_in_child(self) -> None:
        self.lock = threading.Lock()
        with contextlib.suppress(ValueError):  # no region has run in the parent: the child starts its own threads
            self.forked = self.forked or numba.threading_layer() == "omp"


_guard = _Guard()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _guard.after_fork_in_child())
