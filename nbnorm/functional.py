"""The functions: training, inference and the backward pass. Check, view, stages."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbnorm import _arguments
from nbnorm._dispatch import kernels_for
from nbnorm._formulas import DEVIATION, GAMMA, INV_STD, ORIGIN
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

    __slots__ = ("_dtype", "_flat", "_kernels", "_layout", "_shape", "_stats", "_with_beta", "_with_gamma",
                 "axis", "use_running", "x")  # fmt: skip

    def __init__(
        self, x: NDArray, flat: NDArray, layout: Layout, axis: Axis, use_running: bool, state: BatchNormState,
        stats: NDArray, kernels: ModuleType,
    ) -> None:  # fmt: skip
        self.x, self.axis, self.use_running = x, axis, use_running
        self._flat, self._layout, self._stats, self._kernels = flat, layout, stats, kernels
        self._shape, self._dtype = state.shape, state.dtype
        self._with_gamma, self._with_beta = state.gamma is not None, state.beta is not None

    @property
    def mean(self) -> NDArray[np.float64]:
        with self._kernels.on_device_of(self._stats):
            return (self._stats[ORIGIN] + self._stats[DEVIATION]).reshape(self._shape)

    @property
    def inv_std(self) -> NDArray[np.float64]:
        with self._kernels.on_device_of(self._stats):
            return self._stats[INV_STD].reshape(self._shape).copy()

    @property
    def gamma(self) -> NDArray[np.float64] | None:
        with self._kernels.on_device_of(self._stats):
            return self._stats[GAMMA].reshape(self._shape).copy() if self._with_gamma else None

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
    _same_device(kernels, x, state)
    x = kernels.values("x", x)
    axes = _arguments.channels(x, axis)
    _arguments.features(x, axis, axes, state.num_features)
    layout = layout_of(x, axes)
    N, C, S = layout.shape
    update = state._running() if update_running else None
    if not use_running:
        _arguments.enough_values(x, N * S)
    elif update is not None and update.momentum is not None:
        _arguments.enough_values_to_update(x, N * S)
    if out is not None:
        _arguments.output(kernels, out, x, {"x": x}, allowed=())
    running = state._demand_running() if use_running else None

    with kernels.on_device_of(x):
        y = kernels.xp.empty_like(x) if out is None else out
        stats = batch = kernels.kept(kernels.xp.empty((5, C)) if x.size else kernels.xp.zeros((5, C)))
        flat, target = kernels.read(layout, x), kernels.write(layout, y)
        saved = Saved(x, flat, layout, axis, use_running, state, stats, kernels)
        if x.size and running is None:
            kernels.training_forward(flat, target, layout.shape, state.gamma, state.beta, state.eps, stats)
        elif x.size and running is not None:
            if update is not None:
                batch = kernels.scratch(5 * C).reshape(5, C)
                kernels.batch_statistics(flat, layout.shape, batch)
            kernels.running_forward(flat, target, layout.shape, state.gamma, state.beta, state.eps, running, stats)
        kernels.finish(layout, target, y)
        if update is not None:
            kernels.commit(update, batch, layout.shape)
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
    _same_device(kernels, x, state)
    x = kernels.values("x", x)
    axes = _arguments.channels(x, axis)
    _arguments.features(x, axis, axes, state.num_features)
    if out is not None:
        _arguments.output(kernels, out, x, {"x": x}, allowed=("x",))
    running = state._demand_running()

    with kernels.on_device_of(x):
        y = kernels.xp.empty_like(x) if out is None else out
        if x.size:
            layout = layout_of(x, axes)
            target = kernels.write(layout, y)
            kernels.running_forward(
                kernels.read(layout, x), target, layout.shape, state.gamma, state.beta, state.eps, running, None
            )
            kernels.finish(layout, target, y)
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
    x, layout = saved.x, saved._layout
    where = saved._kernels.device(x)
    _arguments.same_device("dy", dy, kernels.device(dy), where, "x of the forward pass", "an array there, as it gave y")
    dy = kernels.values("dy", dy)
    _arguments.gradient(dy, x)
    if out is not None:
        _arguments.output(kernels, out, x, {"dy": dy, "x": x}, allowed=("dy", "x"))

    with kernels.on_device_of(x):
        xp = kernels.xp
        dx = xp.empty_like(x) if out is None else out
        make = xp.empty if x.size else xp.zeros
        dgamma = make(saved._shape, saved._dtype) if saved._with_gamma else None
        dbeta = make(saved._shape, saved._dtype) if saved._with_beta else None
        if x.size:
            target = kernels.write(layout, dx)
            backward = kernels.running_backward if saved.use_running else kernels.backward
            backward(kernels.read(layout, dy), saved._flat, target, layout.shape, saved._stats, dgamma, dbeta)
            kernels.finish(layout, target, dx)
    return Gradients(dx, dgamma, dbeta)


def _same_device(kernels: ModuleType, x: NDArray, state: BatchNormState) -> None:
    found = kernels.device(x)
    _arguments.same_device("x", x, found, state.device, "the state", f'state.to("{found}")')
