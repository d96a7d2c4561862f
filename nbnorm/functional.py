"""The functions: training, inference and the backward pass. Check, view, stages."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbnorm import _arguments
from nbnorm._dispatch import kernels_for
from nbnorm._formulas import DEVIATION, INV_STD, ORIGIN, PRODUCT, SUM
from nbnorm._layout import Axis, Layout, layout_of
from nbnorm.state import BatchNormState


class Gradients(NamedTuple):
    """What `batch_norm_backward` returns; a gradient without a parameter is None."""

    dx: NDArray
    dgamma: NDArray | None
    dbeta: NDArray | None


class Saved:
    """What a training forward keeps for the backward pass: x, and statistics and gamma as they were.

    Attributes
    ----------
    x : array, shape (N, C, ...)
        The input (a reference).
    mean, inv_std : float64 array, shape num_features
        What x was normalized with; inv_std is 1/sqrt(var + eps).
    gamma : float64 array, shape num_features, or None
        A copy of the scale.
    axis : int or tuple of int
        The channel axis.
    use_running : bool
        Whether the statistics were the running ones, and so do not depend on x.
    """

    __slots__ = ("_dtype", "_flat", "_gamma", "_layout", "_shape", "_stats", "_with_beta", "_with_gamma",
                 "axis", "use_running", "x")  # fmt: skip

    def __init__(
        self, x: NDArray, flat: NDArray, layout: Layout, axis: Axis, use_running: bool, state: BatchNormState,
        gamma: NDArray, stats: NDArray,
    ) -> None:  # fmt: skip
        self.x, self.axis, self.use_running = x, axis, use_running
        self._flat, self._layout, self._gamma, self._stats = flat, layout, gamma, stats
        self._shape, self._dtype = state.shape, state.dtype
        self._with_gamma, self._with_beta = state.gamma is not None, state.beta is not None

    @property
    def mean(self) -> NDArray[np.float64]:
        return (self._stats[ORIGIN] + self._stats[DEVIATION]).reshape(self._shape)

    @property
    def inv_std(self) -> NDArray[np.float64]:
        return self._stats[INV_STD].reshape(self._shape).copy()

    @property
    def gamma(self) -> NDArray[np.float64] | None:
        return self._gamma.reshape(self._shape).copy() if self._with_gamma else None

    def __repr__(self) -> str:
        return f"Saved(x.shape={self.x.shape}, dtype={self.x.dtype}, axis={self.axis}, use_running={self.use_running})"


def batch_norm_training(
    x: NDArray,
    state: BatchNormState,
    *,
    axis: Axis = 1,
    use_running: bool = False,
    update_running: bool = True,
    out: NDArray | None = None,
) -> tuple[NDArray, Saved]:
    """Normalize a batch with its own statistics, and fold them into the running ones.

    y = gamma*(x - mean)/sqrt(var + eps) + beta, with the mean and the biased variance of each channel over all other
    axes.

    Parameters
    ----------
    x : array, shape (N, C, ...)
        At least 2-D; float16, bfloat16, float32 or float64; any memory layout.
    state : BatchNormState
        The running statistics and counters are updated in place.
    axis : int or tuple of int
        The channel axis of x.
    use_running : bool
        Normalize with the running statistics, as they are before this batch, instead of the batch's.
    update_running : bool
        Fold the batch into the running statistics, when the state has them.
    out : array, shape and dtype of x, optional
        Where to put y. Not x itself: the backward pass needs it.

    Returns
    -------
    y : array, shape (N, C, ...)
        dtype of x, in the memory order of x.
    saved : Saved
        What `batch_norm_backward` needs; it refers to x, which must not change before.

    Raises
    ------
    TypeError
        When an argument is of the wrong kind or dtype.
    ValueError
        When shapes do not fit, `out` cannot take the result, or a channel has fewer than 2 values.
        A call that raises has changed nothing.

    Notes
    -----
    Sums and arithmetic in float64, y rounded once. x is read once from memory where the values of a channel fit a
    cache, twice otherwise; strided x is copied once. Every number of threads gives the same bits.

    References
    ----------
    S. Ioffe and C. Szegedy, "Batch Normalization", 2015, arXiv:1502.03167.

    Examples
    --------
    >>> import numpy as np, nbnorm
    >>> x = np.array([[1, 10], [3, 30]], np.float32)
    >>> state = nbnorm.BatchNormState(2)
    >>> y, saved = nbnorm.batch_norm_training(x, state)
    >>> y.round(3)
    array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    >>> state.running_mean
    array([0.2, 2. ])
    """
    kernels = kernels_for("x", x)
    _arguments.instance("state", state, BatchNormState, "a nbnorm.BatchNormState")
    x = _arguments.values("x", x)
    axes = _arguments.channels(x, axis)
    _arguments.features(x, axis, axes, state.num_features)
    layout = layout_of(x, axes)
    N, C, S = layout.shape
    update_running = update_running and state.running_mean is not None
    if not use_running:
        _arguments.enough_values(x, N * S)
    elif update_running and state.momentum is not None:
        _arguments.enough_values_to_update(x, N * S)
    if out is not None:
        _arguments.output(out, x, {"x": x}, allowed=())
    running = state._running() if use_running else None

    y = np.empty_like(x) if out is None else out
    gamma, beta = _parameters(state)
    stats = np.zeros((4, C))
    batch = stats if running is None else np.zeros((4, C))
    flat, target = layout.read(x), layout.write(y)
    if x.size:
        if running is None:
            kernels.training_forward(flat, target, layout.shape, gamma, beta, state.eps, stats)
        else:
            if update_running:
                kernels.batch_statistics(flat, layout.shape, batch)
            mean, var = (array.reshape(-1) for array in running)
            kernels.running_forward(flat, target, layout.shape, gamma, beta, state.eps, mean, var, stats)
        layout.finish(target, y)
    saved = Saved(x, flat, layout, axis, use_running, state, gamma, stats)
    if update_running:
        state._commit(kernels, batch, N * S)
    return y, saved


def batch_norm_inference(x: NDArray, state: BatchNormState, *, axis: Axis = 1, out: NDArray | None = None) -> NDArray:
    """Normalize with the running statistics; nothing is updated.

    y = gamma*(x - running_mean)/sqrt(running_var + eps) + beta.

    Parameters
    ----------
    x : array, shape (N, C, ...)
        At least 2-D; float16, bfloat16, float32 or float64; any memory layout.
    state : BatchNormState
        Read only.
    axis : int or tuple of int
        The channel axis of x.
    out : array, shape and dtype of x, optional
        Where to put y; may be x itself.

    Returns
    -------
    y : array, shape (N, C, ...)
        dtype of x, in the memory order of x.

    Raises
    ------
    TypeError
        When an argument is of the wrong kind or dtype.
    ValueError
        When shapes do not fit, `out` cannot take the result, or the state has no running statistics.

    Notes
    -----
    One read of x, one write of y, float64 in between; strided x is copied once.

    References
    ----------
    S. Ioffe and C. Szegedy, "Batch Normalization", 2015, arXiv:1502.03167.

    Examples
    --------
    >>> import numpy as np, nbnorm
    >>> state = nbnorm.BatchNormState(1, eps=1e-9)
    >>> state.running_mean, state.running_var = [5.0], [4.0]
    >>> nbnorm.batch_norm_inference(np.array([[9.0], [5.0]]), state).round(6)
    array([[2.],
           [0.]])
    """
    kernels = kernels_for("x", x)
    _arguments.instance("state", state, BatchNormState, "a nbnorm.BatchNormState")
    x = _arguments.values("x", x)
    axes = _arguments.channels(x, axis)
    _arguments.features(x, axis, axes, state.num_features)
    if out is not None:
        _arguments.output(out, x, {"x": x}, allowed=("x",))
    mean, var = state._running()

    y = np.empty_like(x) if out is None else out
    if x.size:
        layout = layout_of(x, axes)
        gamma, beta = _parameters(state)
        target = layout.write(y)
        kernels.running_forward(
            layout.read(x), target, layout.shape, gamma, beta, state.eps, mean.reshape(-1), var.reshape(-1),
            np.empty((4, gamma.size)),
        )  # fmt: skip
        layout.finish(target, y)
    return y


def batch_norm_backward(dy: NDArray, saved: Saved, *, out: NDArray | None = None) -> Gradients:
    """Exact gradients of a training forward.

    dbeta = sum(dy), dgamma = inv_std*sum(dy*(x - mean)), and
    dx = gamma*inv_std*(dy - dbeta/n - (x - mean)*inv_std*dgamma/n) with n values per channel; where the forward used
    the running statistics these are constants, and dx = gamma*inv_std*dy.

    Parameters
    ----------
    dy : array, shape (N, C, ...)
        Gradient with respect to y: shape and dtype of x, any memory layout.
    saved : Saved
        From `batch_norm_training`; can be used more than once.
    out : array, shape and dtype of x, optional
        Where to put dx. May be dy itself, or x itself if `saved` is not used again.

    Returns
    -------
    Gradients
        `dx`, in the memory order of x; `dgamma` and `dbeta`, shape num_features, in the dtype of the parameters, None
        where the state has no such parameter.

    Raises
    ------
    TypeError
        When an argument is of the wrong kind or dtype.
    ValueError
        When shapes do not fit or `out` cannot take the result.

    Notes
    -----
    Sums and arithmetic in float64. dy and x are read once from memory where the values of a channel fit a cache,
    twice otherwise; dy is copied once if it lies in memory in another order than x.

    References
    ----------
    S. Ioffe and C. Szegedy, "Batch Normalization", 2015, arXiv:1502.03167.

    Examples
    --------
    >>> import numpy as np, nbnorm
    >>> x = np.array([[1.0], [2.0], [6.0]])
    >>> y, saved = nbnorm.batch_norm_training(x, nbnorm.BatchNormState(1))
    >>> dx, dgamma, dbeta = nbnorm.batch_norm_backward(np.array([[1.0], [0.0], [0.0]]), saved)
    >>> abs(dx.sum()) < 1e-15, dbeta
    (np.True_, array([1.], dtype=float32))
    """
    kernels = kernels_for("dy", dy)
    _arguments.instance("saved", saved, Saved, "what batch_norm_training returned with y")
    dy = _arguments.values("dy", dy)
    x, layout = saved.x, saved._layout
    _arguments.gradient(dy, x)
    if out is not None:
        _arguments.output(out, x, {"dy": dy, "x": x}, allowed=("dy", "x"))

    dx = np.empty_like(x) if out is None else out
    dgamma = np.empty(saved._shape, saved._dtype) if saved._with_gamma else None
    dbeta = np.empty(saved._shape, saved._dtype) if saved._with_beta else None
    sums = np.zeros((3, layout.shape[1]))
    if x.size:
        target = layout.write(dx)
        backward = kernels.running_backward if saved.use_running else kernels.backward
        backward(layout.read(dy), saved._flat, target, layout.shape, saved._gamma, saved._stats, sums)
        layout.finish(target, dx)
    if dgamma is not None:
        sums[PRODUCT] *= saved._stats[INV_STD]
        dgamma.reshape(-1)[...] = sums[PRODUCT]
    if dbeta is not None:
        dbeta.reshape(-1)[...] = sums[SUM]
    return Gradients(dx, dgamma, dbeta)


def _parameters(state: BatchNormState) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Float64 copies of gamma and beta, flat; 1 and 0 where there are none."""
    size = prod(state.shape)
    gamma = np.ones(size) if state.gamma is None else state.gamma.astype(np.float64).reshape(-1)
    beta = np.zeros(size) if state.beta is None else state.beta.astype(np.float64).reshape(-1)
    return gamma, beta
