"""A Dask array as chunks: what is checked when a graph is built, and what comes of all chunks of a channel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import dask.array as da
import numpy as np
from dask import delayed
from dask.base import tokenize
from numpy.typing import NDArray

from nbnorm import _arguments
from nbnorm._dispatch import kernels_for
from nbnorm._layout import Axis
from nbnorm._moments import Moments, merged
from nbnorm.parallel._anew import KNOWN
from nbnorm.parallel._chunks import Axes, with_counts
from nbnorm.state import BatchNormState

FAN_IN = 8  # statistics that one task merges
Blocks = NDArray[Any]  # of delayed values, one for each block of the channels


def refuse_unknown_sizes(name: str, x: Any) -> None:
    if math.isnan(sum(x.shape)):
        raise ValueError(f"{name} has chunks of unknown size; call {name}.compute_chunk_sizes() first")


def checked(x: Any, axis: Axis) -> Axes:
    """The channel axes, non-negative."""
    if not isinstance(x, da.Array):
        raise TypeError(f"x is a {type(x).__module__}.{type(x).__qualname__}; expected a dask.array.Array")
    _arguments.dtype("x", x.dtype)
    axes = _arguments.channels(x.shape, axis)
    refuse_unknown_sizes("x", x)
    return axes


def checked_beside(state: Any, x: Any, axis: Axis) -> Axes:
    """The same of an x that fits a state."""
    axes = checked(x, axis)
    _arguments.instance("state", state, BatchNormState, "a nbnorm.BatchNormState")
    _arguments.features(x.shape, axis, axes, state.num_features)
    if state.device != "cpu":
        raise TypeError(f'the state is on {state.device}; a graph takes one on the CPU: state.to("cpu")')
    return axes


def values(x: da.Array, axes: Axes) -> int:
    """Per channel."""
    return math.prod(n for i, n in enumerate(x.shape) if i not in axes)


def like_x(name: str, array: Any, x: da.Array, owner: str = "the forward pass's x") -> da.Array:
    """A lazy array of the shape and dtype of x, of any byte order, in its chunks."""
    _arguments.instance(name, array, da.Array, "a dask.array.Array")
    refuse_unknown_sizes(name, array)
    array = array.astype(_arguments.dtype(name, array.dtype))
    _arguments.like_x(name, array, x.astype(_arguments.dtype("x", x.dtype)), owner)
    return array.rechunk(x.chunks)


def cut_like(x: da.Array, name: str, array: Any) -> da.Array | None:
    """A mask or weights, of all axes of x and in its chunks, but for the axes along which they are constant."""
    if array is None:
        return None
    if lazy := isinstance(array, da.Array):
        refuse_unknown_sizes(name, array)
    else:
        kernels_for(name, array)  # refuses what is no array
    of_weights = _arguments.kind_of_weights if lazy else _arguments.weights
    check = _arguments.mask if name == "where" else of_weights
    check(array, x)
    array = array[(None,) * (x.ndim - array.ndim)]
    chunks = tuple((1,) if n == 1 else own for n, own in zip(array.shape, x.chunks, strict=True))
    return array.rechunk(chunks) if lazy else da.from_array(array, chunks=chunks)  # so that no task gets all of it


def of_channels(array: NDArray | None, x: da.Array, axes: Axes) -> da.Array | None:
    """A copy of a parameter or a statistic, in chunks as those of the channels."""
    return None if array is None else da.from_array(array.copy(), chunks=tuple(x.chunks[i] for i in axes))


def by_channels(x: da.Array, axes: Axes, *arrays: da.Array | None) -> Iterator[tuple[tuple[int, ...], list[Any]]]:
    """For each block of the channels its index, and the delayed chunks of all arrays that belong together, in order.

    An array may be constant along an axis of x, or None.
    """
    order = (*axes, *(a for a in range(x.ndim) if a not in axes))
    blocks = [
        np.broadcast_to(
            np.array(None) if array is None else array.to_delayed(optimize_graph=False), x.numblocks
        ).transpose(order)
        for array in arrays
    ]
    for index in np.ndindex(*(x.numblocks[a] for a in axes)):
        yield index, list(zip(*(of[index].ravel() for of in blocks), strict=True))


def in_tree(level: list[Any], merge: Callable[..., Any], complete: Callable[..., Any]) -> Any:
    """All of them merged, in their order, and completed: a few numbers a channel, which `anew` lets be."""
    together = delayed(merge, pure=True)
    while len(level) > 1:
        level = [together(*level[i : i + FAN_IN]) for i in range(0, len(level), FAN_IN)]
    return known(complete, level[0])


def known(function: Callable[..., Any], *arguments: Any) -> Any:
    return delayed(function)(*arguments, dask_key_name=f"{KNOWN}-{tokenize(function, *arguments)}")


def arrays_of(found: Blocks, fields: Iterable[int], x: da.Array, axes: Axes, dtype: Any = np.float64) -> list[da.Array]:
    """Of delayed tuples of arrays, one for each block of the channels, some arrays as lazy ones."""
    lazy = []
    for i in fields:
        parts = np.empty(found.shape, object)
        for index in np.ndindex(found.shape):
            shape = tuple(x.chunks[a][j] for a, j in zip(axes, index, strict=True))
            parts[index] = da.from_delayed(found[index][i], shape, dtype, meta=x._meta.astype(dtype))
        lazy.append(da.block(parts.tolist()))
    return lazy


def by_chunk(
    function: Callable[..., NDArray], x: da.Array, axes: Axes, of_x: Iterable[Any], of_channels: Iterable[Any],
    **options: Any,
) -> da.Array:  # fmt: skip
    """A task a chunk: `function` of arrays like x and of arrays of the channels; others are passed as they are."""
    index, dtype = tuple(range(x.ndim)), _arguments.dtype("x", x.dtype)  # chunks of y are in native byte order
    arguments: list[Any] = []
    for arrays, labels in ((of_x, index), (of_channels, axes)):
        for array in arrays:
            arguments += [array, labels if isinstance(array, da.Array) else None]
    return da.blockwise(
        function, index, *arguments, axes=axes, dtype=dtype, meta=x._meta.astype(dtype, copy=False),
        align_arrays=False, **options,  # they are; and Dask would drop the empty chunks of an axis of length 1
    )  # fmt: skip


def moments_of_blocks(
    x: da.Array, axes: Axes, of_chunk: Callable[..., Moments], where: da.Array | None, weights: da.Array | None,
    options: tuple[Any, ...],
) -> tuple[Blocks, Blocks]:  # fmt: skip
    """Of each block of the channels delayed `Moments`, and a list of those of its chunks."""
    part = delayed(of_chunk, pure=True)
    whole, own = (np.empty([x.numblocks[a] for a in axes], object) for _ in range(2))
    for index, chunks in by_channels(x, axes, x, where, weights):
        own[index] = [part(chunk, axes, *counting, *options) for chunk, *counting in chunks]
        whole[index] = in_tree(own[index], merged, with_counts)
    return whole, own


def lazy_moments(
    x: da.Array, axes: Axes, of_chunk: Callable[..., Moments], where: da.Array | None = None,
    weights: da.Array | None = None, *options: Any,
) -> Moments:  # fmt: skip
    """Moments of the channels, lazy, in chunks like theirs: those that `of_chunk` finds, merged in a tree."""
    whole, _ = moments_of_blocks(x, axes, of_chunk, where, weights, options)
    return Moments(*arrays_of(whole, range(len(Moments._fields)), x, axes))
