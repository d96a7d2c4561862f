"""Dask: the functions of nbnorm for Dask arrays, lazy, in NumPy or CuPy chunks. Needs the extra `dask`.

A chunk is a shard. Chunks may divide every axis, the channels' too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import dask.array as da
import numpy as np
from dask import delayed
from distributed import WorkerPlugin
from numpy.typing import NDArray

import nbnorm
from nbnorm import _arguments, _device
from nbnorm._batch_stats import BatchStats
from nbnorm._dispatch import kernels_for
from nbnorm._layout import Axis
from nbnorm._moments import Moments, merged, moments
from nbnorm.parallel._anew import anew
from nbnorm.saved import Activation
from nbnorm.state import BatchNormState

FAN_IN = 8  # statistics that one task merges


def batch_stats(
    x: da.Array,
    *,
    axis: Axis = 1,
    where: da.Array | NDArray | None = None,
    weights: da.Array | NDArray | None = None,
    nan: Literal["propagate", "omit"] = "propagate",
) -> BatchStats:
    """Count, mean and sum of squared deviations of each channel.

    Parameters
    ----------
    x : dask.array.Array, shape (N, C, ...)
        As for `nbnorm.batch_stats`; of known chunks.
    axis : int or tuple of int
        The channel axis of x.
    where, weights : dask.array.Array or array
        Which values count, and how often, as in `nbnorm.batch_norm_training`; in chunks of any size.
    nan : {"propagate", "omit"}
        The same of NaN.

    Returns
    -------
    BatchStats
        mean and m2 are lazy, in chunks like those of the channels, and so is count where it has their shape;
        ``dask.compute(stats)`` gives a `BatchStats` of arrays, for `BatchNormState.update`.

    Raises
    ------
    TypeError, ValueError
        When x is of the wrong kind or dtype, or `axis`, `where` or `weights` do not fit it; a negative weight of a lazy
        array when that is computed.

    Notes
    -----
    One task a chunk reads it; a tree of tasks merges 8 statistics at a time, in the order of the chunks, so that the
    same chunks give the same bits on any number of workers.

    Examples
    --------
    >>> import dask, dask.array as da, nbnorm.parallel.dask
    >>> x = da.arange(12.0, chunks=2).reshape(6, 2).rechunk((4, 1))
    >>> stats = nbnorm.parallel.dask.batch_stats(x)
    >>> dask.compute(stats)[0]
    BatchStats(count=array(6.), mean=array([5., 6.]), m2=array([70., 70.]))
    """
    axes = _checked(x, axis)
    counting = [_cut_like(x, name, array) for name, array in (("where", where), ("weights", weights))]
    _arguments.missing(nan)
    found = lazy_moments(x, axes, _chunk_moments, *counting, nan)
    counted = where is not None or weights is not None or nan == "omit"
    count = found.count if counted else np.array(float(_values(x, axes)))
    return BatchStats(count, found.origin + found.deviation, found.m2)


def lazy_moments(
    x: da.Array, axes: tuple[int, ...], of_chunk: Callable[..., Moments], where: da.Array | None = None,
    weights: da.Array | None = None, *options: Any,
) -> Moments:  # fmt: skip
    """Moments of the channels, lazy, in chunks like theirs: those that `of_chunk` finds, merged in a tree."""
    parts, together, complete = (delayed(function, pure=True) for function in (of_chunk, merged, _with_counts))
    order = (*axes, *(a for a in range(x.ndim) if a not in axes))
    blocks = [
        np.broadcast_to(np.array(None) if array is None else array.to_delayed(), x.numblocks).transpose(order)
        for array in (x, where, weights)
    ]
    arrays = [np.empty([x.numblocks[a] for a in axes], object) for _ in Moments._fields]
    for index in np.ndindex(arrays[0].shape):
        chunks = zip(*(of[index].ravel() for of in blocks), strict=True)
        level = [parts(chunk, axes, *counting, *options) for chunk, *counting in chunks]
        while len(level) > 1:
            level = [together(*level[i : i + FAN_IN]) for i in range(0, len(level), FAN_IN)]
        shape, found = tuple(x.chunks[a][i] for a, i in zip(axes, index, strict=True)), complete(level[0])
        for i, array in enumerate(arrays):
            array[index] = da.from_delayed(found[i], shape, np.float64, meta=x._meta.astype(np.float64))
    return Moments(*(da.block(array.tolist()) for array in arrays))


def batch_norm_inference(
    x: da.Array, state: BatchNormState, *, axis: Axis = 1, residual: da.Array | None = None,
    activation: Activation = None,
) -> da.Array:  # fmt: skip
    """Normalize with the running statistics as they are now; nothing is updated.

    Parameters
    ----------
    x : dask.array.Array, shape (N, C, ...)
        As for `nbnorm.batch_norm_inference`.
    state : BatchNormState
        On the CPU: its arrays travel with the graph, to the GPU for CuPy chunks.
    axis : int or tuple of int
        The channel axis of x.
    residual : dask.array.Array, shape and dtype of x, optional
        Added before the activation; in the chunks of x, or cut like them.
    activation : optional
        As for `nbnorm.batch_norm_inference`.

    Returns
    -------
    dask.array.Array, shape (N, C, ...)
        y, lazy, in the chunks of x, in native byte order.

    Raises
    ------
    TypeError, ValueError
        As `nbnorm.batch_norm_inference`, when the graph is built.

    Examples
    --------
    >>> import dask.array as da, nbnorm, nbnorm.parallel.dask
    >>> state = nbnorm.BatchNormState(1, eps=1e-9)
    >>> state.running_mean, state.running_var = [5.0], [4.0]
    >>> y = nbnorm.parallel.dask.batch_norm_inference(da.from_array([[9.0], [5.0]]), state)
    >>> y.compute().round(6)
    array([[2.],
           [0.]])
    """
    axes = _checked(x, axis, state)
    running = state._demand_running()
    with running.lock:  # the statistics of one moment
        mean, var = running.mean.copy(), running.var.copy()
    _arguments.activation(activation)
    if residual is not None:
        _arguments.instance("residual", residual, da.Array, "a dask.array.Array")
        _arguments.like_x("residual", residual, x, "x")
        residual = residual.rechunk(x.chunks)
    return _normalized(x, axes, state, mean, var, residual=residual, activation=activation)


def batch_norm_training(x: da.Array, state: BatchNormState, *, axis: Axis = 1) -> tuple[da.Array, BatchStats]:
    """Normalize with the batch's own statistics.

    Parameters
    ----------
    x : dask.array.Array, shape (N, C, ...)
        As for `nbnorm.batch_norm_training`.
    state : BatchNormState
        On the CPU; gamma, beta and eps as they are now. Read only.
    axis : int or tuple of int
        The channel axis of x.

    Returns
    -------
    y : dask.array.Array, shape (N, C, ...)
        Lazy, in the chunks of x, in native byte order.
    stats : BatchStats
        Those of x, lazy. Fold them into the running statistics when they are computed: ``state.update(stats)``.

    Raises
    ------
    TypeError, ValueError
        As `nbnorm.batch_norm_training`, when the graph is built.

    Notes
    -----
    x is read twice, and not kept in between: y waits for the statistics, and then computes x again. The mean travels
    as two numbers, so that y is as exact as that of `nbnorm.batch_norm_training` at any mean/std.

    Examples
    --------
    >>> import dask, dask.array as da, nbnorm, nbnorm.parallel.dask
    >>> state = nbnorm.BatchNormState(1, momentum=None)
    >>> y, stats = nbnorm.parallel.dask.batch_norm_training(da.from_array([[1.0], [3.0]], chunks=1), state)
    >>> y, stats = dask.compute(y, stats)
    >>> state.update(stats)
    >>> y.round(3).tolist(), state.running_mean
    ([[-1.0], [1.0]], array([2.]))
    """
    axes = _checked(x, axis, state)
    _arguments.enough_values(_values(x, axes), False, x.shape)
    found, count = lazy_moments(x, axes, moments), float(_values(x, axes))
    stats = BatchStats(np.array(count), found.origin + found.deviation, found.m2)
    again = anew(x, [found.m2])
    return _normalized(again, axes, state, found.origin, found.m2 / count, found.deviation), stats


class NumbaThreads(WorkerPlugin):
    """A plugin that lets each call of nbnorm on a worker use `n` threads.

    Every thread of a worker runs a chunk of its own, so that more than cores/(workers * threads) is too many.

    Parameters
    ----------
    n : int
        As for `nbnorm.set_num_threads`.

    Notes
    -----
    Register it with the client of the cluster: ``client.register_plugin(nbnorm.parallel.dask.NumbaThreads(1))``.
    """

    def __init__(self, n: int = 1) -> None:
        self.n = n
        self.name = "nbnorm-threads"

    def setup(self, worker: Any) -> None:
        nbnorm.set_num_threads(self.n)

    def teardown(self, worker: Any) -> None:
        nbnorm.set_num_threads(None)


def _checked(x: Any, axis: Axis, state: BatchNormState | None = None) -> tuple[int, ...]:
    """The channel axes, non-negative."""
    if not isinstance(x, da.Array):
        raise TypeError(f"x is a {type(x).__module__}.{type(x).__qualname__}; expected a dask.array.Array")
    array: Any = x  # like a NumPy array where it matters here
    _arguments.dtype("x", x.dtype)
    axes = _arguments.channels(array, axis)
    if math.isnan(sum(x.shape)):
        raise ValueError("x has chunks of unknown size; call x.compute_chunk_sizes() first")
    if state is not None:
        _arguments.instance("state", state, BatchNormState, "a nbnorm.BatchNormState")
        _arguments.features(array, axis, axes, state.num_features)
        if state.device != "cpu":
            raise TypeError(f'the state is on {state.device}; a graph takes one on the CPU: state.to("cpu")')
    return axes


def _values(x: da.Array, axes: tuple[int, ...]) -> int:
    """Per channel."""
    return math.prod(n for i, n in enumerate(x.shape) if i not in axes)


def _cut_like(x: da.Array, name: str, array: Any) -> da.Array | None:
    """A mask or weights, of all axes of x and in its chunks, but for the axes along which they are constant."""
    if array is None:
        return None
    if not isinstance(array, da.Array):
        kernels_for(name, array)  # refuses what is no array
        array = da.from_array(array, chunks=-1)
    check = _arguments.mask if name == "where" else _arguments.kind_of_weights
    check(array, x)
    array = array[(None,) * (x.ndim - array.ndim)]
    chunks = tuple((1,) if n == 1 else own for n, own in zip(array.shape, x.chunks, strict=True))
    return array.rechunk(chunks)


def _chunk_moments(
    chunk: NDArray, axes: tuple[int, ...], where: NDArray | None, weights: NDArray | None, nan: Any
) -> Moments:
    return moments(chunk, axes, where=where, weights=weights, nan=nan)


def _with_counts(found: Moments) -> Moments:
    """With a count of each channel."""
    with _device.current(_device.of(found.m2)):
        return found._replace(count=found.m2 * 0 + found.count)


def _normalized(
    x: da.Array, axes: tuple[int, ...], state: BatchNormState, mean: Any, var: Any, deviation: Any = None,
    residual: da.Array | None = None, activation: Activation = None,
) -> da.Array:  # fmt: skip
    """One task a chunk. What belongs to the channels is cut as they are; `deviation` is what mean lacks."""
    index, dtype = tuple(range(x.ndim)), _arguments.dtype("x", x.dtype)  # chunks of y are in native byte order
    chunks = tuple(x.chunks[i] for i in axes)
    arguments: list[Any] = []
    for array in (mean, var, state.gamma, state.beta, deviation):
        lazy = da.from_array(array.copy(), chunks=chunks) if isinstance(array, np.ndarray) else array
        arguments += [lazy, None if lazy is None else axes]
    return da.blockwise(
        _chunk_normalized, index, x, index, residual, None if residual is None else index, *arguments, axes=axes,
        eps=state.eps, activation=activation, dtype=dtype, meta=x._meta.astype(dtype, copy=False),
    )  # fmt: skip


def _chunk_normalized(
    chunk: NDArray, residual: NDArray | None, mean: NDArray, var: NDArray, gamma: NDArray | None,
    beta: NDArray | None, deviation: NDArray | None, axes: tuple[int, ...], eps: float, activation: Activation,
) -> NDArray:  # fmt: skip
    if deviation is not None:  # Eq. 6: as a shift, which is float64 then
        with _device.current(_device.of(chunk)):
            scale = (1 if gamma is None else _device.moved(gamma, _device.of(chunk))) / np.sqrt(var + eps)
            beta = (0.0 if beta is None else _device.moved(beta, _device.of(chunk))) - deviation * scale
            gamma = None if gamma is None else gamma.astype(np.float64)
    parameter = gamma if gamma is not None else beta
    state = BatchNormState(
        mean.shape, eps=eps, use_gamma=gamma is not None, use_beta=beta is not None,
        dtype="float32" if parameter is None else parameter.dtype, device=_device.of(chunk),
    )  # fmt: skip
    state.running_mean, state.running_var = mean, var
    if gamma is not None:
        state.gamma = gamma
    if beta is not None:
        state.beta = beta
    return nbnorm.batch_norm_inference(chunk, state, axis=axes, residual=residual, activation=activation)
