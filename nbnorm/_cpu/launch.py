"""Launch: a body is compiled once, and a call runs it in all threads or in this one.

Both give the same bits (reduce.py says why), so the choice is free: small arrays are not worth a parallel region, and
where a parallel region would be unsafe this thread does it alone.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import numba

from nbnorm._cpu.frontend import KernelCompiler
from nbnorm._cpu.progress import progress
from nbnorm._cpu.threads import exactly, guard, numbas_own, sharing_out
from nbnorm._cpu.vector import OPTIONS
from nbnorm._kernel_cache import comes_from_the_cache, only_own_entries, unreadable_file
from nbnorm._running import raised_by_a_handler

# A kernel is called from Python only, and needs no way in from C.
KERNEL: dict[str, Any] = {**OPTIONS, "nogil": True, "no_cfunc_wrapper": True, "pipeline_class": KernelCompiler}
ALONE = 0  # in the place of the address


def _kernel(body: Callable[..., None], **options: Any) -> Any:
    dispatcher = numba.njit(**KERNEL, **options)(body)
    progress.kernels.add(dispatcher)
    return dispatcher


class Compiled:
    """A body compiled with Numba's disk cache, or without where that cannot be written or read.

    A file of the cache that is damaged is removed, and so written anew when the body is compiled.
    """

    def __init__(self, body: Callable[..., None]) -> None:
        self.__name__, self.__doc__ = body.__name__, body.__doc__
        self._compile_anew = lambda: _kernel(body)
        self._with_cache: Any = None
        self._removed: set[str] = set()  # files of the cache, each at most once
        try:
            self.dispatcher = self._with_cache = only_own_entries(_kernel(body, cache=True))
        except RuntimeError as error:  # Numba: "no locator available"
            self._leave_the_cache(error)

    def __call__(self, *args: Any) -> None:
        dispatcher = self.dispatcher
        try:
            dispatcher(*args)
        except Exception as error:
            if not self.recovers_from(dispatcher, error):
                raise  # such as what a signal handler of the user has raised
            self(*args)

    def recovers_from(self, dispatcher: Any, error: Exception) -> bool:
        """Whether the cache was the cause of this dispatcher's error, and another call may go well."""
        if dispatcher is not self._with_cache or not comes_from_the_cache(error):
            return False
        if self.dispatcher is dispatcher and not self._removes_damage(error):  # another thread may have been here
            self._leave_the_cache(error)
        return True

    @property
    def cache_path(self) -> str | None:
        """The directory with the compiled kernel; None when there is none, as with NUMBA_DISABLE_JIT."""
        return getattr(getattr(self.dispatcher, "stats", None), "cache_path", None)

    def _removes_damage(self, error: Exception) -> bool:
        """Whether the error was a damaged file, which is gone now."""
        path = unreadable_file(error)
        if path is None:
            return False
        try:
            if path in self._removed and os.path.exists(path):  # damaged again: there is no end to it
                return False
            self._removed.add(path)
            os.unlink(path)
        except FileNotFoundError:  # another thread or process has seen it, too
            pass
        except OSError:
            return False
        _warn("a damaged file of the kernel cache is written anew", error, path)
        return True

    def _leave_the_cache(self, error: Exception) -> None:
        self.dispatcher = self._compile_anew()
        _warn(
            "kernels are compiled anew in every process", error,
            "empty the directory that `python -m nbnorm info` names, or set NUMBA_CACHE_DIR to a writable one",
        )  # fmt: skip


def _warn(what: str, error: Exception, more: str) -> None:
    """Once a process of each."""
    if what not in _said:
        _said.add(what)
        warnings.warn(f"{what}: {type(error).__name__} {error!s:.300}; {more}", RuntimeWarning, stacklevel=2)


_said = set[str]()


class Kernel:
    """A body whose last arguments are the number of workers and, for several, the address of what shares them out.

    There may be as many workers as Numba has threads: its workqueue has no more queues.
    """

    def __init__(self, body: Callable[..., None]) -> None:
        self.__name__, self.__doc__ = body.__name__, body.__doc__
        self.compiled = Compiled(body)

    def __call__(self, *args: Any) -> None:
        """Run with args[-1] workers, or in this thread alone."""
        if args[-1] == 1:
            dispatcher = self.compiled.dispatcher
            try:  # what self.compiled does, a tenth of a microsecond earlier
                dispatcher(*args, ALONE)
            except Exception as error:
                if not self.compiled.recovers_from(dispatcher, error):
                    raise
                self.compiled(*args, ALONE)
        elif guard.any_thread_may_run:
            self.together(*args)
        else:
            # An interrupt may come between any two calls. Asking and entering are therefore inside the same `try`, and
            # giving back is the first call behind it: it fails, and may, where this thread does not have the lock.
            try:
                if guard.lock.acquire(blocking=False):
                    self.together(*args)
                    guard.any_thread_may_run = numba.threading_layer() != "workqueue"
                else:
                    self.compiled(*args[:-1], 1, ALONE)
            finally:
                try:
                    guard.lock.release()
                except RuntimeError as error:
                    if raised_by_a_handler(error):
                        raise

    def together(self, *args: Any) -> None:
        """Run in Numba's threads. With OpenMP these, and this one, then have that number of threads."""
        if args[-1] == numbas_own():
            self.compiled(*args, sharing_out())
        else:
            with exactly(args[-1]):
                self.compiled(*args, sharing_out())
