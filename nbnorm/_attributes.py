"""The array attributes of a state: reading gives the array itself, assigning copies into it."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter, setitem
from typing import Any

import numpy as np

from nbnorm import _device
from nbnorm._foreign import counter, counts_of_values, to_numpy


def parameter(name: str) -> Any:
    """gamma or beta; None where the state was made without."""
    get = attrgetter("_" + name)  # every call reads both: a function would take a tenth of a microsecond

    def assign(state: Any, value: Any) -> None:
        target = get(state)
        if target is not value:  # state.gamma -= ... has worked in place already
            _copy(state, name, target, value, f"use_{name}", lambda values: setitem(target, ..., values))

    return property(get, assign, doc=f"The array of {name}, or None; what is assigned is copied into it.")


def statistic(name: str) -> Any:
    """running_mean or running_var; None where the state was made without."""
    of = attrgetter(name.removeprefix("running_"))

    def get(state: Any) -> Any:
        return None if state._running is None else of(state._running)

    def assign(state: Any, value: Any) -> None:
        target, running = get(state), state._running
        if target is not value:
            _copy(state, name, target, value, "track_running", lambda values: running.assign(target, values))

    return property(get, assign, doc=f"The array of {name}, or None; what is assigned is copied into it.")


def _copy(state: Any, name: str, target: Any, value: Any, flag: str, put: Callable[[Any], None]) -> None:
    """Put what is assigned where the state has it.

    Raises
    ------
    ValueError, TypeError
        When it has another shape, cannot be cast or is a negative variance, or there is no array to copy into.
    """
    if target is None:
        raise ValueError(f"the state has no {name}; make it with {flag}=True")
    found = _device.of(value)
    if found not in ("cpu", state.device):
        raise TypeError(f"{name} is on {found} but the state is on {state.device}; copy it there first")
    array = to_numpy(name, value) if found == "cpu" else value
    if array.shape != target.shape:
        raise ValueError(f"{name} has shape {array.shape!s:.60}; expected {target.shape!s:.60}")
    if not np.can_cast(array.dtype, target.dtype, "same_kind"):
        raise TypeError(f"{name} has dtype {array.dtype}; expected {target.dtype}, or what casts to it safely")
    with _device.current(state.device):
        array = _device.moved(array, state.device)
        if name == "running_var" and (array < 0).any():
            raise ValueError(f"{name} has negative values; expected variances, 0 or more")
        put(array)


def samples() -> Any:
    """Values per channel in the running statistics; 0 without any."""

    def get(state: Any) -> Any:
        return 0 if state._running is None else state._running.num_samples()

    def assign(state: Any, value: Any) -> None:
        state._demand_running().set_samples(counts_of_values("num_samples", value, state.shape))

    return property(get, assign, doc="Values per channel in the running statistics, an array where they differ.")


def counted(place: int, name: str, doc: str) -> Any:
    """A counter of the running statistics; 0 without any."""

    def get(state: Any) -> int:
        return 0 if state._running is None else state._running.counter(place)

    def assign(state: Any, value: Any) -> None:
        state._demand_running().set_counter(place, counter(name, value))

    return property(get, assign, doc=doc)
