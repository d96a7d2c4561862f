"""Layout: any array with its channel axes anywhere, as flat contiguous (N, C, S) values and back."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

from numpy.typing import NDArray

Axis = int | tuple[int, ...]


class Layout(NamedTuple):
    """An order of the axes in which the channel axes are one run: N before it, C in it, S behind it."""

    order: tuple[int, ...]
    shape: tuple[int, int, int]
    strides: tuple[int, ...]  # of an array without gaps in this order

    def holds(self, array: NDArray) -> bool:
        """Whether the elements of `array` are contiguous in this order."""
        # Equal strides are the usual case; axes of length 1 and empty arrays may have any.
        return array.strides == self.strides or array.transpose(self.order).flags.c_contiguous


def layout_of(array: NDArray, axes: tuple[int, ...]) -> Layout:
    """The layout closest to how `array` lies in memory."""
    return layout_of_strides(array.shape, array.strides, array.itemsize, axes)


@lru_cache(1024)
def layout_of_strides(
    shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int, axes: tuple[int, ...]
) -> Layout:  # fmt: skip
    """The same, of an array with these."""
    order = sorted(range(len(shape)), key=lambda i: -abs(strides[i]))
    # An axis of length 1 has any stride and lies wherever it is convenient.
    long = [i for i in order if shape[i] != 1]
    channels = [i for i in axes if shape[i] != 1]
    first = long.index(channels[0]) if channels else 0
    if long[first : first + len(channels)] != channels:
        long = [i for i in long if i not in channels] + channels
        first = len(long) - len(channels)
    before, behind = long[:first], long[first + len(channels) :]
    short = [i for i in order if shape[i] == 1]
    sizes = (prod(shape[i] for i in part) for part in (before, channels, behind))
    order, step, dense = [*short, *long], itemsize, [0] * len(shape)
    for i in reversed(order):
        dense[i], step = step, step * shape[i]
    return Layout((*order,), (*sizes,), (*dense,))  # type: ignore[arg-type]


Index = tuple[slice, ...]


def groups(shape: tuple[int, ...], axes: tuple[int, ...], n: int) -> list[Index]:
    """n consecutive indices each of the first axis that is no channel axis; at least one group."""
    first = min((i for i in range(len(shape)) if i not in axes), default=None)
    if first is None:  # every axis is a channel axis: each value is a batch
        return [()]
    return [(slice(None),) * first + (slice(i, i + n),) for i in range(0, max(1, shape[first]), n)]
