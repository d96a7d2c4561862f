"""The array attributes of a state: reading gives the array itself, assigning copies into it."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nbnorm import _device


def array_attribute(name: str, flag: str) -> Any:
    """gamma, beta or a running statistic; None where the state was made without, by `flag`.

    Raises
    ------
    ValueError, TypeError
        When what is assigned has another shape, cannot be cast, or there is no array to copy into.
    """
    get = attrgetter("_" + name)  # every call reads gamma and beta: a function would take a tenth of a microsecond

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
