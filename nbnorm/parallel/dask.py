"""Dask: the functions of nbnorm for Dask arrays, lazy, in NumPy or CuPy chunks. Needs the extra `dask`.

A chunk is a shard. Chunks may divide every axis, the channels' too.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import nbnorm
from nbnorm import _device, _needed, _options
from nbnorm._batch_stats import BatchStats
from nbnorm._layout import Axis
from nbnorm._moments import moments
from nbnorm._running import copied
from nbnorm.saved import Activation
from nbnorm.state import BatchNormState

with _needed.package("nbnorm.parallel.dask", 'pip install "dask[array]>=2025.1" "distributed>=2025.1"'):
    import dask.array as da
    from distributed import WorkerPlugin

    from nbnorm.parallel import _graph
    from nbnorm.parallel._training import Saved, batch_norm_backward, batch_norm_training

__all__ = ["NumbaThreads", "Saved", "batch_norm_backward", "batch_norm_inference", "batch_norm_training", "batch_stats"]


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
    axes = _graph.checked(x, axis)
    counting = [_graph.cut_like(x, name, array) for name, array in (("where", where), ("weights", weights))]
    _options.missing(nan)
    found = _graph.lazy_moments(x, axes, moments, *counting, nan)
    counted = where is not None or weights is not None or nan == "omit"
    count = found.count if counted else np.array(float(_graph.values(x, axes)))
    return BatchStats(count, found.origin + found.deviation, found.m2)


def batch_norm_inference(
    x: da.Array, state: BatchNormState, *, axis: Axis = 1, residual: da.Array | None = None,
    activation: Activation = None,
) -> da.Array:  # fmt: skip
    """Normalize with the running statistics as they are now; nothing is updated.

    Parameters
    ----------
    x : dask.array.Array, shape (N, C, ...)
        As for `nbnorm.batch_norm_inference`; of known chunks.
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
    axes = _graph.checked_beside(state, x, axis)
    running = state._demand_running()
    mean, var = copied(running.both).reshape(2, *running.mean.shape)
    _options.activation(activation)
    residual = None if residual is None else _graph.like_x("residual", residual, x, "x")
    of_channels = [_graph.of_channels(array, x, axes) for array in (mean, var, state.gamma, state.beta)]
    return _graph.by_chunk(
        _chunk_normalized, x, axes, [x, residual], of_channels, eps=state.eps, activation=activation
    )  # fmt: skip


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


def _chunk_normalized(
    chunk: NDArray, residual: NDArray | None, mean: NDArray, var: NDArray, gamma: NDArray | None, beta: NDArray | None,
    axes: _graph.Axes, eps: float, activation: Activation,
) -> NDArray:  # fmt: skip
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
