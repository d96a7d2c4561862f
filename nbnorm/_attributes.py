"""The array attributes of a state: reading gives the array itself, assigning copies into it."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nbnorm import _device


def parameter(name: str) -> Any:
    """gamma or beta; None where the state was made without."""
    # Every call reads both: a function would take a tenth of a microsecond.
    return _attribute(name, f"use_{name}", attrgetter("_" + name))


def statistic(name: str) -> Any:
    """running_mean or running_var; None where the state was made without."""
    get = attrgetter(name.removeprefix("running_"))
    return _attribute(name, "track_running", lambda state: None if state._running is None else get(state._running))


def _attribute(name: str, flag: str, get: Callable[[Any], Any]) -> Any:
    """An attribute that the state has by `flag`.

    Raises
    ------
    ValueError, TypeError
        When what is assigned has another shape, cannot be cast, or there is no array to copy into.
    """

    def assign(state: Any, value: ArrayLike) -> None:
        target = get(state)
        if target is value:  # state.gamma -= ... has worked in place already
            return
        if target is None:
            raise ValueError(f"the state has no {name}; make it with {flag}=True")
        array: Any = value if isinstance(value, type(target)) else np.asarray(value)
        if array.shape != target.shape:
            raise ValueError(f"{name} has shape {array.shape!s:.60}; expected {target.shape!s:.60}")
        if not np.can_cast(array.dtype, target.dtype, "same_kind"):
            raise TypeError(f"{name} has dtype {array.dtype}; expected {target.dtype}, or what casts to it safely")
        with _device.current(state.device):
            target[...] = _device.library(state.device).asarray(array)

    return property(get, assign, doc=f"The array of {name}, or None; what is assigned is copied into it.")
