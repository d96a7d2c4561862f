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
        if not self._kept or x.nbytes < LARGE:
            return None
        try:
            array = self._kept.pop()
        except IndexError:
            return None
        is_like_x = (array.shape, array.dtype, array.strides) == (x.shape, x.dtype, x.strides)
        return array if is_like_x and _holders(array) == ALONE else None

    def keep(self, result: NDArray) -> None:
        """For the next call, if it is worth it. Views of CuPy's arrays do not refer to these."""
        fits = type(result) is np.ndarray and result.flags.owndata and result.nbytes >= LARGE
        self._kept = [result] if fits else []


def _holders(array: NDArray) -> int:
    return sys.getrefcount(array) + weakref.getweakrefcount(array)


def _alone() -> int:
    """What `_holders` says in `Reuse.place` of an array that nobody else holds: Pythons count differently."""
    array = [np.empty(0)].pop()
    return _holders(array)


ALONE = _alone() if getattr(sys, "_is_gil_enabled", lambda: True)() else -1  # threads without a lock count late
