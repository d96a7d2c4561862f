"""Inference: check, view, one stage."""

from __future__ import annotations

from numpy.typing import NDArray

from nbnorm import _options
from nbnorm._channel_rows import STATS_WITH_SIGNS
from nbnorm._inputs import check_place, checked, checked_residual
from nbnorm._layout import Axis
from nbnorm.saved import Activation, Saved
from nbnorm.state import BatchNormState


def batch_norm_inference(
    x: NDArray, state: BatchNormState, *, axis: Axis = 1, residual: NDArray | None = None,
    activation: Activation = None, out: NDArray | None = None,
) -> NDArray:  # fmt: skip
    """Normalize with the running statistics; nothing is updated.

    y = f(gamma*(x - running_mean)/sqrt(running_var + eps) + beta + residual), where f is the activation.

    Parameters
    ----------
    x : array, shape (N, C, ...)
        At least 2-D; float16, bfloat16, float32 or float64; any memory layout.
    state : BatchNormState
        Read only.
    axis : int or tuple of int
        The channel axis of x.
    residual, activation : optional
        As in `batch_norm_training`.
    out : array, shape and dtype of x, optional
        Where to put y; may be x itself, or the residual.

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
    One read of x, one write of y, in between float32 but for float64 x; strided x is copied once.

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
    kernels, x, _, layout = checked(x, state, axis)
    slope = None if activation is None else _options.activation(activation)
    residual = None if residual is None else checked_residual(kernels, residual, x)
    if out is not None:
        check_place(kernels, out, x, residual, allowed=("x", "residual"))
    running = state._demand_running()

    with kernels.on_device_of(x):
        y = kernels.xp.empty_like(x) if out is None else out
        if x.size:
            target = kernels.write(layout, y)
            added = None if residual is None else kernels.read(layout, residual)
            kernels.running_forward(
                kernels.read(layout, x), target, layout.shape, state._gamma, state._beta, state._eps, running, None,
                added, slope,
            )  # fmt: skip
            kernels.finish(layout, target, y)
    return y


def saved_of_inference(state: BatchNormState, x: NDArray, axis: Axis, activation: Activation) -> Saved:
    """What a forward pass with the running statistics saves, found afterwards and without its y."""
    kernels, x, _, layout = checked(x, state, axis)
    running, (_, C, S) = state._demand_running(), layout.shape
    with kernels.on_device_of(x):
        stats, flat = kernels.kept(kernels.xp.zeros((STATS_WITH_SIGNS, C))), kernels.read(layout, x)
        none = flat[:0]
        kernels.running_forward(none, none, (0, C, S), state._gamma, state._beta, state._eps, running, stats)
        saved = Saved(x, flat, layout, axis, True, state, stats, kernels, None)
        saved._slope = _options.activation(activation)
        if saved._slope is not None:
            kernels.keep_signs(stats, state._gamma, state._beta, state._eps, 1.0)
        return saved
