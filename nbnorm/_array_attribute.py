"""The array attributes of a state: reading gives the array itself, assigning copies into it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nbnorm import _device


class ArrayAttribute:
    """gamma, beta and the running statistics; None where the state was made without, by `flag`.

    Raises
    ------
    ValueError, TypeError
        When what is assigned has another shape, cannot be cast, or there is no array to copy into.
    """

    def __init__(self, flag: str) -> None:
        self.flag = flag

    def __set_name__(self, owner: type, name: str) -> None:
        self.name, self.place = name, "_" + name

    def __get__(self, state: Any, owner: type | None = None) -> Any:
        return self if state is None else getattr(state, self.place)

    def __set__(self, state: Any, value: ArrayLike) -> None:
        target = getattr(state, self.place)
        if target is value:  # state.gamma -= ... has worked in place already
            return
        if target is None:
            raise ValueError(f"the state has no {self.name}; make it with {self.flag}=True")
        array: Any = value if isinstance(value, type(target)) else np.asarray(value)
        if array.shape != target.shape:
            raise ValueError(f"{self.name} has shape {array.shape!s:.60}; expected {target.shape!s:.60}")
        if not np.can_cast(array.dtype, target.dtype, "same_kind"):
            raise TypeError(f"{self.name} has dtype {array.dtype}; expected {target.dtype}, or what casts to it safely")
        with _device.current(state.device):
            target[...] = _device.library(state.device).asarray(array)
