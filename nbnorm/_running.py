"""The running statistics of a state: the one owner of them and of their counters, and the lock for them."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from functools import wraps
from itertools import chain, starmap
from operator import methodcaller, setitem
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from nbnorm import _device

BATCHES, SAMPLES, SKIPPED = range(3)  # places in `counters`
Given = ParamSpec("Given")
Result = TypeVar("Result")

# For arrays of the CPU; kernels of a GPU run in the order of their stream. One for all states, held for microseconds
# (but for the first commit, which compiles), so that a fork can wait for it: a child gets whole states and a free lock,
# unless a signal's handler raises while the fork waits, which then goes on.
# An RLock, since a signal handler that saves a state may interrupt the thread that has it.
lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    # None of these is a Python function, which a signal of the time of the fork would end before its first line.
    os.register_at_fork(
        before=lock.acquire,
        after_in_parent=lock.release,
        after_in_child=lock._at_fork_reinit,  # type: ignore[attr-defined]  # as the standard library's locks
    )


def raised_by_a_handler(error: Exception) -> bool:
    """Whether a handler of a signal has raised it behind a call of C: its traceback then goes on, into the handler."""
    return error.__traceback__ is not None and error.__traceback__.tb_next is not None


def undisturbed(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """The function, while running statistics of the CPU are those of one moment: no other thread changes them.

    Not `with lock`: since Python 3.14 a signal may come between its lock and its block, and what a handler
    raises there would leave the lock taken. Python looks for signals where a function begins and behind a call, so
    none comes between `try` and `acquire`, and giving back is the first call behind the function's.
    """
    acquire, release = lock.acquire, lock.release  # looked up once: a tenth of a microsecond of each call

    @wraps(function)
    def alone(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        try:
            acquire()
            return function(*args, **kwargs)
        finally:
            try:
                release()
            except RuntimeError as error:  # the lock's own, where a signal came while this thread waited for it
                if raised_by_a_handler(error):
                    raise

    return alone


# A copy of an array of running statistics. A method that is called from C: a function would take a frame of Python.
copied = undisturbed(methodcaller("copy"))


class Running:
    """What inference reads and a training step folds its batch into.

    `both` is the flat array of which mean and var are views: one copy of it has the two as they are at one moment.
    `ddof`, 1.0 or 0.0, is what var subtracts from the number of values, as numpy.var does.
    `counters` has batches, values per channel, and the batches that were left out because of `skip_nonfinite`.
    `samples`, unless None, has the values of each channel in the place of the counter: where they may differ.
    `uncounted` is true of statistics that were assigned or loaded without a number of values: pooling would forget
    them, and the host can know it without waiting for a GPU.
    """

    __slots__ = ("both", "counters", "ddof", "mean", "samples", "skip_nonfinite", "uncounted", "var")

    def __init__(
        self, moments: NDArray, counters: NDArray, ddof: float, skip_nonfinite: bool = False, uncounted: bool = False,
        samples: NDArray | None = None,
    ) -> None:  # fmt: skip
        """Of `moments`, shape (2, *channels): means and variances."""
        self.mean, self.var, self.both, self.counters = moments[0], moments[1], moments.reshape(-1), counters
        self.ddof, self.skip_nonfinite, self.uncounted, self.samples = ddof, skip_nonfinite, uncounted, samples

    @classmethod
    def fresh(cls, shape: tuple[int, ...], xp: Any, ddof: float) -> Running:
        """Of no batch: mean 0, variance 1, counters 0."""
        running = cls(xp.zeros((2, *shape)), xp.zeros(3, np.int64), ddof)
        running.var[...] = 1
        return running

    @undisturbed
    def reset(self) -> None:
        """Forget every batch."""
        arrays = (self.mean, ..., 0), (self.var, ..., 1), (self.counters, ..., 0)
        with self._current():
            # One call without a line of Python in it: no signal arrives between the arrays.
            flags = (self, "uncounted", False), (self, "samples", None)
            deque(chain(starmap(setitem, arrays), starmap(setattr, flags)), maxlen=0)

    @undisturbed
    def copy(self) -> Running:
        """Everything as it is at one moment."""
        with self._current():
            samples = None if self.samples is None else self.samples.copy()
            return Running(self._moments().copy(), self.counters.copy(), *self._settings(), samples)

    def to(self, device: str) -> Running:
        """The same with its arrays on a device, copied if they are elsewhere."""
        arrays = self._moments(), self.counters, self.samples
        moments, counters, samples = (_device.moved(array, device) for array in arrays)
        return Running(moments, counters, *self._settings(), samples)

    @undisturbed
    def count_each(self) -> NDArray:
        """`samples`, which is there from now on. Nothing waits for a GPU."""
        if self.samples is None:
            each = _device.library(_device.of(self.both)).zeros(self.mean.shape)
            each += self.counters[SAMPLES]
            self.samples = each
        return self.samples

    @undisturbed
    def assign(self, array: NDArray, values: NDArray) -> None:
        """Put values from elsewhere into mean or var."""
        with self._current():
            self.uncounted = self.uncounted or not np.any(_device.host(self.num_samples()))
            array[...] = values

    def counter(self, place: int) -> int:
        """Waits for a GPU."""
        with self._current():
            return int(self.counters[place])

    @undisturbed
    def num_samples(self) -> int | NDArray[np.float64]:
        """One number where all channels have seen the same whole number of values. Waits for a GPU."""
        with self._current():
            each = self.samples
            if each is None:
                return self.counter(SAMPLES)
            values = _device.host(each)
            alike = values.size > 0 and (values == values.flat[0]).all() and float(values.flat[0]).is_integer()
            return int(values.flat[0]) if alike else each.copy()

    @undisturbed
    def set_counter(self, place: int, value: int) -> None:
        with self._current():
            self.counters[place] = value

    @undisturbed
    def set_samples(self, value: int | NDArray[np.float64]) -> None:
        with self._current():
            if isinstance(value, int):
                self.counters[SAMPLES], self.samples = value, None
            else:
                self.count_each()[...] = _device.library(_device.of(self.both)).asarray(value)
            self.uncounted = False

    def set_counters(self, batches: int, samples: int | NDArray[np.float64] | None, skipped: int = 0) -> None:
        """For statistics from elsewhere; samples is None where nobody has counted."""
        self.counters[...] = batches, 0, skipped
        if samples is not None:
            self.set_samples(samples)
        none = samples is None or not np.any(samples)
        untouched = not self.mean.any() and (self.var == 1).all()
        self.uncounted = none and not (untouched and (samples is not None or batches == 0))

    def demand_count(self) -> None:
        """What pooling needs."""
        if self.uncounted:
            raise ValueError(
                "momentum=None weighs the running statistics by a count, and these came without: set state.num_samples "
                "(0 forgets them), or pass num_samples= to from_state_dict or load"
            )

    def least(self, momentum: float | None, with_weights: bool) -> float:
        """The values of a channel have to count more than this in all for the batch to be folded in.

        Pooling takes any number of whole values. Fractions have a variance, of which nothing could be kept while they,
        and what was seen before, count no more than ddof. Waits for a GPU.
        """
        if momentum is not None:
            return 1.0
        return max(0.0, self.ddof - float(np.min(self._seen(), initial=np.inf))) if with_weights else 0.0

    def demand_variance(self, name: str, count: NDArray, m2: NDArray) -> None:
        """The same of the counts and m2 of each channel, to be pooled."""
        count, m2 = (_device.host(array).reshape(self.mean.shape) for array in (count, m2))
        lost = (count + self._seen() <= self.ddof) & (count > 0) & (m2 > 0)
        if lost.any():
            raise ValueError(
                f"{name} has a channel whose values count {count[lost][0]:g} times in all; pooling needs more than "
                "1 with those before, or their variance is lost: merge_stats keeps it"
            )

    def _seen(self) -> NDArray:
        return np.asarray(_device.host(self.num_samples()), np.float64)

    def _moments(self) -> NDArray:
        return self.both.reshape(2, *self.mean.shape)

    def _settings(self) -> tuple[float, bool, bool]:
        return self.ddof, self.skip_nonfinite, self.uncounted

    def _current(self) -> Any:
        return _device.current(_device.of(self.both))

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle, which would not keep mean and var views of one array."""
        return Running, (self._moments(), self.counters, *self._settings(), self.samples)
