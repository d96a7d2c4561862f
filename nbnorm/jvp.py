"""Forward mode: the tangent of y. Check, view, stages."""

from __future__ import annotations

from numpy.typing import NDArray

from nbnorm import _arguments, _shards
from nbnorm._channel_rows import SHARD_SUMS
from nbnorm._directions import failed, like_parameters, like_x, refuse_what_is_not_built
from nbnorm._outputs import check_output
from nbnorm.saved import Saved


def batch_norm_jvp(
    dx: NDArray | None, dgamma: NDArray | None, dbeta: NDArray | None, saved: Saved, *, out: NDArray | None = None
) -> NDArray:
    """The directional derivative of y: how it changes when x, gamma and beta do (Jacobian times vector, forward mode).

    dy = gamma*inv_std*(dx - mean(dx)) + scale*(x - mean) + dbeta with scale = inv_std*(dgamma -
    gamma*inv_std**2*mean(dx*(x - mean))); where the forward used the running statistics these are constants, and
    dy = gamma*inv_std*dx + dgamma*inv_std*(x - mean) + dbeta.

    Parameters
    ----------
    dx : array, shape (N, C, ...), or None
        Tangent of x: shape and dtype of x, any memory layout. None is 0, here and below.
    dgamma, dbeta : array, shape num_features, or None
        Tangents of the parameters, float32 or float64.
    saved : Saved
        From `batch_norm_training`; can be used more than once.
    out : array, shape and dtype of x, optional
        Where to put dy. May be dx itself, or x itself if `saved` is not used again.

    Returns
    -------
    dy : array, shape (N, C, ...)
        Tangent of y, in the memory order and dtype of x.

    Raises
    ------
    TypeError
        When an argument is of the wrong kind or dtype.
    ValueError
        When shapes do not fit, `out` cannot take the result, or a tangent is that of a parameter the state has not.
    RuntimeError
        When another rank of `saved.sync` has raised an error.

    Notes
    -----
    Sums in float64, dy in float32 but for float64 x, masks and weights; dx and x
    are read twice from memory, with frozen statistics or without dx once. The
    backward pass is the adjoint of this map: ``(dy*g).sum()`` is the sum of the tangents times what
    ``batch_norm_backward(g, saved)`` returns. Where the forward pass had a `sync`, dgamma and dbeta have to be the same
    on every rank, and one message is exchanged; none with running statistics.

    After a forward pass with `where`, `weights` or ``nan="omit"`` the means are weighted, and dy is that of every
    position; where a value does not count and is not finite dx is ignored, and dy is 0.

    References
    ----------
    Derived in docs/math.md, Eq. 25, 26 and 39.

    Examples
    --------
    >>> import numpy as np, nbnorm
    >>> x = np.array([[1.0], [2.0], [6.0]])
    >>> y, saved = nbnorm.batch_norm_training(x, nbnorm.BatchNormState(1, eps=1e-12))
    >>> nbnorm.batch_norm_jvp(x, None, None, saved).round(6) + 0.0  # y stays the same when x is scaled
    array([[0.],
           [0.],
           [0.]])
    >>> bool(np.allclose(nbnorm.batch_norm_jvp(None, np.array([1.0]), None, saved), y))
    True
    """
    _arguments.instance("saved", saved, Saved, "what batch_norm_training returned with y")
    x, layout, stats, kernels = saved.x, saved._layout, saved._stats, saved._kernels
    N, C, S = layout.shape
    peers = None if saved.use_running else saved.sync
    try:
        refuse_what_is_not_built(saved)
        if dx is not None:
            dx = like_x("dx", dx, saved)
        if out is not None:
            check_output(kernels, out, x, (("dx", dx), *saved._given), allowed=("dx", "x"))
        with kernels.on_device_of(x):
            if dx is None and (peers is not None or saved._w is not None):
                # Another rank may have one, on which this one depends; or values may be missing.
                dx = kernels.kept(kernels.xp.zeros_like(x))
            directions = like_parameters(saved, dgamma=dgamma, dbeta=dbeta)
            dy = kernels.xp.empty_like(x) if out is None else out
            given, target = None if dx is None else kernels.read(layout, dx), kernels.write(layout, dy)
            count = 1.0 if saved.use_running else None if saved._is_counted else float(N * S)
            sums = kernels.kept(kernels.xp.zeros((SHARD_SUMS, C)))
            if dx is not None and not saved.use_running:
                own = stats if saved._own is None else saved._own
                kernels.tangent_sums(given, saved._flat, layout.shape, stats, own, sums, count, saved._w)
            if peers is not None:
                message = kernels.scratch(SHARD_SUMS * C + 1)
                message[:-1], message[-1] = sums.reshape(-1), _shards.WELL
    except Exception:  # of any kind, and raised again: the other ranks wait for a message
        _shards.announce(peers, lambda: failed(saved, SHARD_SUMS))
        raise

    with kernels.on_device_of(x):
        if peers is not None:
            gathered, counts = _shards.exchange_sums(peers, message, saved._counts)
            count = None if saved._is_counted else float(counts.sum())
            kernels.merge_gradient_sums(counts, gathered, sums)
        if x.size:
            kernels.apply_tangent(given, saved._flat, target, layout.shape, stats, sums, directions, count, saved._w)
        kernels.finish(layout, target, dy)
    return dy
