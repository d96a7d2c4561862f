"""Which values count, as kernels read it: masks and weights where they lie, with the strides of (N, C, S).

A broadcast axis has stride 0, so nothing of the size of x is made. Copied, once and without the axes along which they
are constant, are weights that are not float32 or float64, and arrays that have more than one stride along N, C or S.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbnorm._layout import Layout

Strides = tuple[int, int, int]


class Counted(NamedTuple):
    """Value (n, c, s) counts if where[where_0 + n*where_n + c*where_c + s*where_s] is not 0, as often as weights say.

    Either is None when it was not given. With `omit` a NaN of x does not count.
    """

    where: NDArray[np.uint8] | None
    where_0: int
    where_n: int
    where_c: int
    where_s: int
    weights: NDArray | None
    weights_0: int
    weights_n: int
    weights_c: int
    weights_s: int
    omit: bool


class Tangent(NamedTuple):
    """In the place of dy: its sums are weighted (docs/math.md, Eq. 39), and its map is that of every position."""

    ddx: Any


class Both(NamedTuple):
    """In the place of dy: the sum of v*u is that of their product, u being ddx - k."""

    dy: Any
    ddx: Any


Gradient = NDArray[Any] | Tangent | Both


def each(function: Callable[..., Any], arrays: Any) -> Any:
    """A Tangent or a Both of what the function makes of the arrays of another."""
    return type(arrays)(*map(function, arrays))


def in_rows(w: Counted | None, S: int) -> bool:
    """Whether the C*S values that belong to one n have one stride."""
    return w is None or (w.where_c == S * w.where_s and w.weights_c == S * w.weights_s)


def throughout(w: Counted | None, C: int, S: int) -> bool:
    """Whether all values have one stride."""
    return w is None or (in_rows(w, S) and w.where_n == C * w.where_c and w.weights_n == C * w.weights_c)


def channels_apart(w: Counted, C: int) -> int:
    """Of C channels those that need a look at what counts: one where it is the same in all."""
    return C if w.omit or w.where_c != 0 or w.weights_c != 0 else min(C, 1)


def placed(
    kernels: ModuleType, layout: Layout, shape: tuple[int, ...], array: NDArray | None
) -> tuple[NDArray | None, int, int, int, int]:
    """The array as kernels take it, the place of its first element, and its strides in elements."""
    if array is None or 0 in shape:
        return None if array is None else kernels.span(array.reshape(-1)[:0])[0], 0, 0, 0, 0
    array = compact(array)
    strides = _strides(array.shape, array.strides, array.itemsize, layout, shape)
    if strides is None or not getattr(array.flags, "aligned", True) or not array.dtype.isnative:
        # One order of its own axes behind another, without the broadcast ones: strides nest, or fill a group.
        array = _filled(kernels.xp, array, layout, shape)
        strides = _strides(array.shape, array.strides, array.itemsize, layout, shape)
    assert strides is not None
    flat, first = kernels.span(array)
    n, c, s = strides
    return flat, first, n, c, s


def compact(array: NDArray) -> NDArray:
    """Without the copies that strides of 0 pretend."""
    if 0 not in array.strides:
        return array
    return array[tuple(slice(1) if stride == 0 else slice(None) for stride in array.strides)]


def _groups(layout: Layout, shape: tuple[int, ...]) -> list[list[int]]:
    """The axes that make up N, C and S, without those of length 1."""
    axes = iter([i for i in layout.order if shape[i] != 1])
    groups = []
    for size in layout.shape:
        group: list[int] = []
        while size > 1:
            group.append(next(axes))
            size //= shape[group[-1]]
        groups.append(group)
    return groups


@lru_cache(1024)
def _strides(
    lengths: tuple[int, ...], steps: tuple[int, ...], itemsize: int, layout: Layout, shape: tuple[int, ...]
) -> Strides | None:  # fmt: skip
    """In elements, along N, C and S; None where axes of a group do not nest or elements lie between others."""
    padded = (1,) * (len(shape) - len(lengths)) + lengths
    behind = (0,) * (len(shape) - len(lengths)) + steps
    of_axis = [0 if length == 1 else stride for length, stride in zip(padded, behind, strict=True)]
    found: list[int | None] = []
    for group in _groups(layout, shape):
        stride = of_axis[group[-1]] if group else None
        inner = stride or 0
        for i, j in zip(reversed(group[:-1]), reversed(group), strict=False):
            inner *= shape[j]
            if of_axis[i] != inner:
                return None
        found.append(stride)
    if any(stride % itemsize for stride in found if stride is not None):
        return None
    n, c, s = (None if stride is None else stride // itemsize for stride in found)
    _, C, S = layout.shape
    # An axis of length 1 has the stride that lets rows be one run.
    s = s if s is not None else c if c is not None else n or 0
    c = c if c is not None else s * S
    return (n if n is not None else c * C), c, s


def _filled(xp: Any, array: NDArray, layout: Layout, shape: tuple[int, ...]) -> NDArray:
    """A copy whose axes nest: of full length along each of N, C and S in which it is not constant."""
    padded = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    lengths = list(padded.shape)
    for group in _groups(layout, shape):
        if any(padded.shape[i] > 1 for i in group):
            for i in group:
                lengths[i] = shape[i]
    ordered = xp.broadcast_to(padded, tuple(lengths)).transpose(layout.order)
    back = np.argsort(layout.order)
    native = array.dtype.newbyteorder("=")
    return xp.array(ordered, dtype=native, order="C", copy=True).transpose(tuple(int(i) for i in back))
