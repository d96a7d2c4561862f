"""Reuse: a large result of a layer goes where its last one was, once nobody else holds that.

Memory that is new to the process costs a page fault for every 4 KiB, as much as a call itself; smaller results come
from memory that the allocator has kept.
"""

from __future__ import annotations

import sys
import weakref

import numpy as np
from numpy.typing import NDArray

LARGE = 32 << 20  # bytes; glibc never keeps more


class Reuse:
    """Of one kind of result."""

    def __init__(self) -> None:
        self._kept: list[NDArray] = []  # one or none; a list, since of two threads only one gets what it pops

    def place(self, x: NDArray) -> NDArray | None:
        """The last result, if one like x fits there and neither an array nor a view nor a buffer refers to it."""
        try:
            own = [self._kept.pop()]
        except IndexError:
            return None
        if _holders(own) != ALONE or not own[0].flags.writeable:
            return None
        array = own[0]
        return array if (array.shape, array.dtype, array.strides) == (x.shape, x.dtype, x.strides) else None

    def keep(self, result: NDArray) -> None:
        """For the next call, if it is worth it."""
        self._kept = [result] if is_large(result) and result.flags.owndata else []


def is_large(array: object) -> bool:
    """Of NumPy: views of CuPy's arrays do not refer to these."""
    return isinstance(array, np.ndarray) and array.nbytes >= LARGE


def _holders(own: list[NDArray]) -> int:
    """Of the array in a list that is ours. No name stands for it: Pythons and debuggers count names differently."""
    return sys.getrefcount(own[0]) + weakref.getweakrefcount(own[0])


# What that is of an array that nobody else holds; without a global lock counts come late, and nothing is reused.
ALONE = _holders([np.empty(0)]) if getattr(sys, "_is_gil_enabled", lambda: True)() else -1
