"""Threads: how many a call gets, and which threads of a process may enter a parallel region."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import llvmlite.binding
import numba
import numpy as np

# With fewer values read and written a parallel region costs more than it saves (docs/kernels.md). Values, not bytes:
# so little data is in a cache, and the arithmetic is nearly the same whatever the dtype.
SERIAL_BELOW = 200_000

# How often a waiting OpenMP thread looks before it sleeps: 20 to 40 microseconds, a little more than the gap between
# calls. libgomp itself takes half of it when it knows of more threads than processors.
SPINS = "2000"

_limit: int | None = None  # what set_num_threads was given


def set_num_threads(n: int | None) -> None:
    """Let every call of nbnorm in this process use up to `n` threads, whatever Numba's own setting is.

    Parameters
    ----------
    n : int or None
        1 up to ``numba.config.NUMBA_NUM_THREADS``, which is the number of processors unless the environment
        variable of that name says otherwise before Numba is imported. None: follow ``numba.set_num_threads``, as
        in the beginning.

    Raises
    ------
    TypeError, ValueError
        When n is not an int, or out of range.

    Notes
    -----
    Any number gives the same bits. Numba's own number of threads, which is one of each Python thread, is what it
    was when a call returns. `threadpoolctl` does not limit Numba. A process forked from one that uses OpenMP has
    one thread whatever is set.

    Examples
    --------
    >>> import nbnorm
    >>> nbnorm.set_num_threads(1)
    >>> nbnorm.get_num_threads()
    1
    >>> nbnorm.set_num_threads(None)
    """
    global _limit
    settings: Any = numba.config
    most = settings.NUMBA_NUM_THREADS
    if n is not None:
        if not isinstance(n, int | np.integer) or isinstance(n, bool):
            raise TypeError(f"n is a {type(n).__qualname__}; expected an int, or None to follow numba.set_num_threads")
        if not 1 <= n <= most:
            raise ValueError(
                f"n is {n!r:.20}; expected 1 to {most}; NUMBA_NUM_THREADS, set before the start, allows more"
            )
    _limit = None if n is None else int(n)


def get_num_threads() -> int:
    """How many threads a large call of nbnorm uses in this Python thread.

    Examples
    --------
    >>> import nbnorm
    >>> nbnorm.get_num_threads() >= 1
    True
    """
    if guard.forked:
        return 1
    return numbas_own() if _limit is None else _limit


@functools.cache
def wait_briefly() -> None:
    """Load libgomp, unless it is there, so that its threads wait for some twenty microseconds and then sleep.

    They would look for milliseconds otherwise, on a core that another process needs: beside two busy processes a call
    then takes up to a hundred times as long (docs/kernels.md). libgomp reads the environment when it is loaded, and
    only then; what the user has set there stands. os.environ never shows the setting, nor does a later child.
    """
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return
    os.putenv("GOMP_SPINCOUNT", SPINS)
    try:
        importlib.import_module("numba.np.ufunc.omppool")
    except ImportError:  # no libgomp here: Numba takes another layer
        pass
    finally:
        os.unsetenv("GOMP_SPINCOUNT")


def numbas_own() -> int:
    """Numba's number of threads, which it starts at this question."""
    wait_briefly()
    return numba.get_num_threads()


@functools.cache
def sharing_out() -> int:
    """The address of Numba's function that calls another one in its threads, which are started now (region.py)."""
    numbas_own()
    address = llvmlite.binding.address_of_symbol("numba_parallel_for")
    if address is None:
        raise RuntimeError(
            f"Numba {numba.__version__} has no numba_parallel_for; nbnorm.set_num_threads(1) does without"
        )
    return address


def workers_for(values: int) -> int:
    """How many workers a call deserves that reads and writes so many values; counted twice what it reads twice."""
    return 1 if values < SERIAL_BELOW else get_num_threads()


@contextlib.contextmanager
def exactly(workers: int) -> Iterator[None]:
    """Numba uses this many threads; afterwards as many as the caller had chosen."""
    own = numbas_own()
    try:
        numba.set_num_threads(workers)
        yield
    finally:
        numba.set_num_threads(own)


class Guard:
    """Which threads may enter a parallel region.

    Numba's `workqueue` layer aborts the process when two threads are in a region at once; until the first region
    has run, the layer is unknown. After a fork a child of an OpenMP parent dies at its first region.
    """

    def __init__(self) -> None:
        # An RLock, since its release fails in a thread that does not have it (Kernel leans on that).
        self.lock = threading.RLock()
        self.any_thread_may_run = False
        self.forked = False

    def after_fork_in_child(self) -> None:
        self.lock = threading.RLock()
        with contextlib.suppress(ValueError):  # no region has run in the parent: the child starts its own threads
            self.forked = self.forked or numba.threading_layer() == "omp"


guard = Guard()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=guard.after_fork_in_child)
