"""Training on Dask arrays, forward and backward: a chunk is a shard."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import dask.array as da
import numpy as np
from dask import delayed
from numpy.typing import NDArray

from nbnorm import _arguments, _enough, _options
from nbnorm._batch_stats import BatchStats
from nbnorm._layout import Axis
from nbnorm._moments import Moments, moments
from nbnorm.gradients import Gradients
from nbnorm.parallel import _chunks, _graph
from nbnorm.parallel._anew import anew
from nbnorm.parallel._chunks import Axes
from nbnorm.state import BatchNormState


class _Second(NamedTuple):
    """x, and what says which values count, as they are read when the statistics are known."""

    x: da.Array
    where: da.Array | None
    weights: da.Array | None

    def again(self, after: Iterable[Any]) -> _Second:
        return _Second(*(None if array is None else anew(array, after) for array in self))


class Saved:
    """What a training forward of a Dask array keeps for the backward pass: nothing but names of tasks.

    Attributes
    ----------
    x : dask.array.Array, shape (N, C, ...)
        The input.
    axis : int or tuple of int
        The channel axis.
    stats : BatchStats
        Of the batch, lazy. Fold them into the running statistics when they are computed:
        ``state.update(dask.compute(saved.stats)[0])``.
    """

    __slots__ = ("_after", "_axes", "_count", "_dtype", "_eps", "_known", "_nan", "_own", "_second", "_whole",
                 "_with_beta", "axis", "stats", "x")  # fmt: skip

    def __init__(self, x: da.Array, axis: Axis, stats: BatchStats) -> None:
        self.x, self.axis, self.stats = x, axis, stats
        self._axes: Axes
        self._second: _Second
        self._own: _graph.Blocks  # moments of each chunk
        self._whole: _graph.Blocks  # and of the whole batch
        self._known: tuple[Any, ...]  # what a chunk has to know of its channels: count, origin, deviation, m2, gamma
        self._count: float | None  # values per channel, None where each has its own
        self._after: tuple[Any, ...]  # when a chunk of y can be computed: that, and beta
        self._nan: Literal["propagate", "omit"]
        self._with_beta: bool
        self._eps: float
        self._dtype: np.dtype

    def __repr__(self) -> str:
        return f"Saved(x.shape={self.x.shape}, dtype={self.x.dtype}, axis={self.axis}, lazy)"


def batch_norm_training(
    x: da.Array,
    state: BatchNormState,
    *,
    axis: Axis = 1,
    where: da.Array | NDArray | None = None,
    weights: da.Array | NDArray | None = None,
    nan: Literal["propagate", "omit"] = "propagate",
) -> tuple[da.Array, Saved]:
    """Normalize with the batch's own statistics.

    Parameters
    ----------
    x : dask.array.Array, shape (N, C, ...)
        As for `nbnorm.batch_norm_training`; of known chunks.
    state : BatchNormState
        On the CPU; gamma, beta and eps as they are now. Read only.
    axis : int or tuple of int
        The channel axis of x.
    where, weights : dask.array.Array or array
        Which values count, and how often, as in `nbnorm.batch_norm_training`; in chunks of any size.
    nan : {"propagate", "omit"}
        The same of NaN.

    Returns
    -------
    y : dask.array.Array, shape (N, C, ...)
        Lazy, in the chunks of x, in native byte order.
    saved : Saved
        For `batch_norm_backward`; ``saved.stats`` are the statistics of x, lazy. A graph changes no state: fold them in
        when they are computed, ``state.update(stats)``.

    Raises
    ------
    TypeError, ValueError
        As `nbnorm.batch_norm_training`, when the graph is built; when it is computed, a negative weight of a lazy
        array and a channel in which no value counts.

    Notes
    -----
    x is read twice, and not kept in between: y waits for the statistics, and then computes x again. The mean travels
    as two numbers, so that y is as exact as that of `nbnorm.batch_norm_training` at any mean/std.

    Examples
    --------
    >>> import dask, dask.array as da, nbnorm, nbnorm.parallel.dask
    >>> state = nbnorm.BatchNormState(1, momentum=None)
    >>> y, saved = nbnorm.parallel.dask.batch_norm_training(da.from_array([[1.0], [3.0]], chunks=1), state)
    >>> y, stats = dask.compute(y, saved.stats)
    >>> state.update(stats)
    >>> y.round(3).tolist(), state.running_mean
    ([[-1.0], [1.0]], array([2.]))
    """
    axes = _graph.checked_beside(state, x, axis)
    where, weights = _graph.cut_like(x, "where", where), _graph.cut_like(x, "weights", weights)
    _options.missing(nan)
    count = None if where is not None or weights is not None or nan == "omit" else float(_graph.values(x, axes))
    if count is not None:
        _enough.values(int(count), False, x.shape)
    whole, own = _graph.moments_of_blocks(x, axes, moments, where, weights, (nan,))
    if count is None:
        for index in np.ndindex(whole.shape):
            first = tuple(sum(x.chunks[a][:i]) for a, i in zip(axes, index, strict=True))
            whole[index] = _graph.known(_chunks.enough, whole[index], first, state.shape)
    found = Moments(*_graph.arrays_of(whole, range(4), x, axes))

    stats = BatchStats(found.count if count is None else np.array(count), found.origin + found.deviation, found.m2)
    gamma, beta = (_graph.of_channels(array, x, axes) for array in (state.gamma, state.beta))
    saved = Saved(x, axis, stats)
    saved._axes, saved._own, saved._whole = axes, own, whole
    saved._count, saved._nan, saved._eps, saved._dtype = count, nan, state.eps, state.dtype
    saved._known, saved._with_beta = (found.count if count is None else count, *found[1:], gamma), beta is not None
    saved._after = *saved._known, beta
    saved._second = _Second(x, where, weights).again(saved._after)
    y = _graph.by_chunk(_chunks.normalized, x, axes, [saved._second.x], saved._after, eps=state.eps)
    return y, saved


def batch_norm_backward(dy: da.Array, saved: Saved) -> Gradients:
    """Exact gradients of a training forward.

    Parameters
    ----------
    dy : dask.array.Array, shape (N, C, ...)
        Gradient with respect to y: shape and dtype of x, in any chunks.
    saved : Saved
        From `batch_norm_training` of this module; can be used more than once.

    Returns
    -------
    Gradients
        Lazy: `dx` in the chunks of x; `dgamma` and `dbeta`, of the whole batch, in the dtype of the parameters and in
        chunks as those of the channels, None where the state had no such parameter.

    Raises
    ------
    TypeError, ValueError
        When dy is no Dask array of the shape and dtype of x, or saved is of another function.

    Notes
    -----
    dy is read twice, for the sums and for dx. x is read three times, also when y and the statistics are computed in the
    same call of `dask.compute`: for the statistics, for y and the sums together, and for dx. No chunk is kept in
    between, not even where dy is made of y, chunk by chunk. Chunks of x wait in memory where dy needs all of y before
    its first chunk is known (a mean of y, another batch normalization behind this one): compute such a dy first, into
    a store. They may wait too where threads compute y in the same call as gradients for a dy that is not made of it.

    References
    ----------
    S. Ioffe and C. Szegedy, "Batch Normalization", 2015, arXiv:1502.03167.

    Examples
    --------
    >>> import dask, dask.array as da, nbnorm, nbnorm.parallel.dask as nd
    >>> x = da.from_array([[1.0], [2.0], [6.0]], chunks=1)
    >>> y, saved = nd.batch_norm_training(x, nbnorm.BatchNormState(1))
    >>> gradients = nd.batch_norm_backward(y - da.from_array([[1.0], [0.0], [0.0]], chunks=1), saved)
    >>> y, (dx, dgamma, dbeta) = dask.compute(y, gradients)
    >>> bool(abs(dx.sum()) < 1e-15), dbeta
    (True, array([-1.], dtype=float32))
    """
    _arguments.instance("saved", saved, Saved, "what nbnorm.parallel.dask.batch_norm_training returned with y")
    x, axes, count, second = saved.x, saved._axes, saved._count, saved._second
    dy = anew(_graph.like_x("dy", dy, x), saved._after)
    part, of_parameters = delayed(_chunks.gradient_sums, pure=True), delayed(_chunks.parameter_gradients, pure=True)
    whole, parameters = (np.empty(saved._whole.shape, object) for _ in range(2))
    for index, chunks in _graph.by_channels(x, axes, dy, *second):
        known = saved._whole[index]
        sums = [
            part(*chunk, own, known, axes, saved._nan) for chunk, own in zip(chunks, saved._own[index], strict=True)
        ]
        whole[index] = _graph.in_tree(sums, _chunks.merged_sums, _chunks.whole_sums)
        parameters[index] = of_parameters(whole[index], known, count, x._meta, saved._eps, saved._dtype)
    of_whole = _graph.arrays_of(whole, (1, 2, 3), x, axes)
    third = anew(dy, of_whole), *second.again(of_whole)
    dx = _graph.by_chunk(
        _chunks.gradient, x, axes, third, [*saved._known, *of_whole], eps=saved._eps, nan=saved._nan
    )  # fmt: skip
    dgamma, dbeta = _graph.arrays_of(parameters, (0, 1), x, axes, saved._dtype)
    with_gamma = saved._known[-1] is not None
    return Gradients(dx, dgamma if with_gamma else None, dbeta if saved._with_beta else None)
