"""The gradients of a backward pass. Check, view, stages."""

from __future__ import annotations

from typing import Literal, NamedTuple

from numpy.typing import NDArray

from nbnorm import _arguments, _options, _shards
from nbnorm._channel_rows import DDX, DOUBLE_SUMS
from nbnorm._directions import failed, like_parameters, like_x, refuse_what_is_not_built
from nbnorm.saved import Saved


class DoubleGradients(NamedTuple):
    """What `batch_norm_double_backward` returns; the gradient without a parameter is None."""

    ddy: NDArray
    dx: NDArray
    dgamma: NDArray | None


def batch_norm_double_backward(
    ddx: NDArray | None, ddgamma: NDArray | None, ddbeta: NDArray | None, dy: NDArray, saved: Saved, *,
    param_grads: Literal["local", "global"] = "local",
) -> DoubleGradients:  # fmt: skip
    """Exact gradients of a backward pass, as gradient penalties and Hessian-vector products need them.

    `batch_norm_backward` is a function of dy, x and gamma; its values are dx, dgamma and dbeta. For a scalar that
    depends on these values, with gradients ddx, ddgamma and ddbeta, this gives the gradients with respect to dy, x and
    gamma. (Nothing in a backward pass depends on beta.)

    Parameters
    ----------
    ddx : array, shape (N, C, ...), or None
        Gradient with respect to the dx of the backward pass: shape and dtype of x, any memory layout. None is 0, here
        and below.
    ddgamma, ddbeta : array, shape num_features, or None
        Gradients with respect to its dgamma and dbeta, float32 or float64.
    dy : array, shape (N, C, ...)
        What the backward pass was given.
    saved : Saved
        From `batch_norm_training`; can be used more than once.
    param_grads : "local" or "global"
        As in `batch_norm_backward`, of the dgamma that is returned.

    Returns
    -------
    DoubleGradients
        `ddy`, the gradient with respect to dy, and `dx`, that with respect to x, in the memory order and dtype of x;
        `dgamma`, that with respect to gamma, shape num_features, in the dtype of the parameters, None without gamma.

    Raises
    ------
    TypeError
        When an argument is of the wrong kind or dtype.
    ValueError
        When shapes do not fit, or there is a gradient for a parameter that the state has not.
    RuntimeError
        When another rank of `saved.sync` has raised an error.

    Notes
    -----
    Sums and arithmetic in float64 (ddy in float32 but for float64 x, masks and weights; on a GPU dx too, without ddx).
    Where the forward pass used the running statistics these are constants. The three arrays are read once from memory
    where the values of a channel fit a cache.

    After a forward pass with `where`, `weights` or ``nan="omit"`` all of dy and ddx act, also where a value does not
    count; where such an x is not finite they are ignored, and ddy and dx are 0. Then x is read five times from memory,
    ddx four and dy three times.

    Where it had a `sync`, dgamma and dbeta of the backward pass count as those of the whole batch, so that ddgamma and
    ddbeta have to be the same on every rank; one message is exchanged, none for "local" and running statistics.

    References
    ----------
    Derived in docs/math.md, Eq. 27 to 33 and 39 to 41.

    Examples
    --------
    The gradient of the penalty (dx**2).sum()/2, whose gradient with respect to dx is dx itself:

    >>> import numpy as np, nbnorm
    >>> rng = np.random.default_rng(0)
    >>> x, dy = rng.normal(size=(2, 8, 3))
    >>> y, saved = nbnorm.batch_norm_training(x, nbnorm.BatchNormState(3, dtype="float64"))
    >>> first = nbnorm.batch_norm_backward(dy, saved)
    >>> second = nbnorm.batch_norm_double_backward(first.dx, None, None, dy, saved)

    The penalty is of second degree in gamma, which is 1, and in dy; so the gradients point to it (Euler):

    >>> penalty = (first.dx**2).sum() / 2
    >>> bool(np.isclose(second.dgamma.sum(), 2 * penalty)), bool(np.isclose((second.ddy * dy).sum(), 2 * penalty))
    (True, True)
    """
    _arguments.instance("saved", saved, Saved, "what batch_norm_training returned with y")
    x, layout, stats, flat, kernels = saved.x, saved._layout, saved._stats, saved._flat, saved._kernels
    (N, C, S), frozen = layout.shape, saved.use_running
    peers = saved.sync if not frozen or param_grads != "local" else None
    try:
        refuse_what_is_not_built(saved)
        _options.param_grads(param_grads)
        dy = like_x("dy", dy, saved)
        if ddx is not None:
            ddx = like_x("ddx", ddx, saved)
        with kernels.on_device_of(x):
            xp = kernels.xp
            if ddx is None and (saved._w is not None or (peers is not None and not frozen)):
                # Values may be missing; or another rank may have one, on which this one depends.
                ddx = kernels.kept(xp.zeros_like(x))
            directions = like_parameters(saved, ddgamma=ddgamma, ddbeta=ddbeta)
            ddy, dx = xp.empty_like(x), xp.empty_like(x)
            dgamma = (xp.empty if x.size else xp.zeros)(saved._shape, saved._dtype) if saved._with_gamma else None
            cotangent, given = None if ddx is None else kernels.read(layout, ddx), kernels.read(layout, dy)
            target_ddy, target_dx = kernels.write(layout, ddy), kernels.write(layout, dx)
            message = kernels.scratch(DOUBLE_SUMS * C + 1)
            sums = kernels.scratch(DOUBLE_SUMS * C).reshape(DOUBLE_SUMS, C)
            if peers is not None:
                message[-1] = _shards.WELL
                own, own_count = message[:-1].reshape(DOUBLE_SUMS, C), None if saved._is_counted else float(N * S)
                kernels.double_sums(
                    cotangent, given, flat, layout.shape, stats, saved._own, own, own_count, saved._w
                )  # fmt: skip
    except Exception:  # of any kind, and raised again: the other ranks wait for a message
        _shards.announce(peers, lambda: failed(saved, DOUBLE_SUMS))
        raise

    # With frozen statistics there is no count in the maps: what it divides is 0.
    count, shape, w = 1.0 if frozen else None, layout.shape, saved._w
    with kernels.on_device_of(x):
        if peers is not None:
            gathered, counts = _shards.exchange_sums(peers, message, saved._counts)
            kernels.merge_double_sums(counts, gathered, sums)
            if not (frozen or saved._is_counted):
                count = float(counts.sum())
        elif frozen:
            kernels.double_sums(cotangent, given, flat, shape, stats, None, sums, None, w)

        if peers is None and not frozen:
            if x.size:
                kernels.double_backward(
                    cotangent, given, flat, target_ddy, target_dx, shape, stats, directions, dgamma, w
                )  # fmt: skip
        else:
            kernels.apply_tangent(cotangent, flat, target_ddy, shape, stats, sums[DDX:], directions, count, w)
            if frozen:
                kernels.apply_frozen_second(given, flat, target_dx, shape, stats, sums, directions, dgamma, w)
            else:
                kernels.apply_second(
                    cotangent, given, flat, target_dx, shape, stats, sums, directions, dgamma, count, w
                )  # fmt: skip
                if dgamma is not None and param_grads == "local":
                    kernels.shard_gamma(own, saved._own, own_count, sums, count, stats, dgamma)
        kernels.finish(layout, target_ddy, ddy)
        kernels.finish(layout, target_dx, dx)
    return DoubleGradients(ddy, dx, dgamma)
