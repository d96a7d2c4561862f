"""The backward pass of a training forward. Check, view, stages."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbnorm import _arguments, _options, _shards
from nbnorm._channel_rows import SHARD_SUMS
from nbnorm._directions import failed, like_x
from nbnorm._dispatch import kernels_for
from nbnorm._outputs import check_output
from nbnorm.saved import Saved


class Gradients(NamedTuple):
    """What `batch_norm_backward` returns; a gradient without a parameter is None."""

    dx: NDArray
    dgamma: NDArray | None
    dbeta: NDArray | None


class ResidualGradients(NamedTuple):
    """What `batch_norm_backward` returns after a forward pass with a residual."""

    dx: NDArray
    dgamma: NDArray | None
    dbeta: NDArray | None
    dresidual: NDArray


def batch_norm_backward(
    dy: NDArray, saved: Saved, *, param_grads: Literal["local", "global"] = "local", out: NDArray | None = None,
    dresidual_out: NDArray | None = None,
) -> Any:  # a union would make `dx, dgamma, dbeta = ...` an error for type checkers  # fmt: skip
    """Exact gradients of a training forward.

    dbeta = sum(dy), dgamma = inv_std*sum(dy*(x - mean)), and
    dx = gamma*inv_std*(dy - dbeta/n - (x - mean)*inv_std*dgamma/n) with n values per channel; where the forward used
    the running statistics these are constants, and dx = gamma*inv_std*dy. Where values count w times, n is sum(w) and
    the last two terms are multiplied by w: a value that does not count still acts on the others through its y. Where
    such a value is not finite it is missing: its dy is ignored, its dx is 0.

    After a forward pass with an activation f, dy*f' takes the place of dy, and is the gradient of a residual. f' is 1
    where its argument is positive, else 0 or the slope; so also at 0 and NaN.

    Parameters
    ----------
    dy : array, shape (N, C, ...)
        Gradient with respect to y: shape and dtype of x, any memory layout.
    saved : Saved
        From `batch_norm_training`; can be used more than once.
    param_grads : "local" or "global"
        Where the forward pass had a `sync`: whether dgamma and dbeta are the sums over this shard, for pipelines that
        add the gradients of all ranks themselves, or over the whole batch. The same on every rank. dx is that of the
        whole batch in both cases.
    out : array, shape and dtype of x, optional
        Where to put dx. May be dy itself, or x or y itself if `saved` is not used again.
    dresidual_out : array, shape and dtype of x, optional
        Where to put the gradient of the residual. May be dy itself.

    Returns
    -------
    Gradients, or where the forward pass had a residual ResidualGradients
        `dx`, in the memory order of x; `dgamma` and `dbeta`, shape num_features, in the dtype of the parameters, None
        where the state has no such parameter; and `dresidual`, in the memory order of x, 0 at missing values.

    Raises
    ------
    TypeError
        When an argument is of the wrong kind or dtype.
    ValueError
        When shapes do not fit, `out` or `dresidual_out` cannot take the result, or there is a `dresidual_out` and was
        no residual.
    RuntimeError
        When another rank of `saved.sync` has raised an error.

    Notes
    -----
    Sums in float64, dx in float32 but for float64 x, masks, weights, and an activation alone.
    dy and x are read once from memory where the values of a channel fit a cache, twice otherwise; dy is copied once if
    it lies in memory in another order than x. In shards they are read twice and one message is exchanged; none for
    "local" and running statistics. An activation costs no access to memory; with a residual dy and y are read once
    more, and the gradient of the residual is written.

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
    if not isinstance(saved, Saved):
        _arguments.instance("saved", saved, Saved, "what batch_norm_training returned with y")
    if saved.groups:
        _options.param_grads(param_grads)
        return _of_ghost_batches(dy, saved, out, dresidual_out)
    x, layout, stats, flat = saved.x, saved._layout, saved._stats, saved._flat
    N, C, S = layout.shape
    peers = saved.sync if not saved.use_running or param_grads != "local" else None
    try:
        if param_grads != "local":
            _options.param_grads(param_grads)
        kernels = kernels_for("dy", dy)
        if (found := kernels.device(dy)) != (there := saved._kernels.device(x)):
            _arguments.same_device("dy", dy, found, there, "x of the forward pass", "an array there, as it gave y")
        dy = kernels.values("dy", dy)
        _arguments.like_x("dy", dy, x)
        _check_outputs(kernels, dy, saved, out, dresidual_out)

        with kernels.on_device_of(x):
            xp = kernels.xp
            dx = xp.empty_like(x) if out is None else out
            make = xp.empty if x.size else xp.zeros
            dgamma = make(saved._shape, saved._dtype) if saved._with_gamma else None
            dbeta = make(saved._shape, saved._dtype) if saved._with_beta else None
            of_gamma, of_beta = dgamma, dbeta
            if saved._renorm is not None:
                plain = kernels.scratch(2 * C).reshape(2, C)
                of_gamma, of_beta = plain
            given, target = kernels.read(layout, dy), kernels.write(layout, dx)
            slope, dresidual, held = saved._slope, None, dy
            if saved._with_residual:
                slope, dresidual = None, xp.empty_like(x) if dresidual_out is None else dresidual_out
                if saved.y is not None or saved._w is not None:  # not all of dy gets through
                    # With peers nothing of the caller's changes before all of them have got so far.
                    held = dresidual if peers is None else kernels.kept(xp.empty_like(x))
                    through = kernels.write(layout, held)
                    if x.size:
                        kernels.residual_gradient(
                            given, saved._flat_y, flat, through, layout.shape, saved._slope, saved._w
                        )  # fmt: skip
                    kernels.finish(layout, through, held)
                    given = through
            if peers is not None:
                message, total = kernels.scratch(SHARD_SUMS * C + 1), kernels.scratch(SHARD_SUMS * C)
                message[-1] = _shards.WELL
                sums, total = message[:-1].reshape(SHARD_SUMS, C), total.reshape(SHARD_SUMS, C)
                own_count = None if saved._is_counted else float(N * S)
                kernels.gradient_sums(given, flat, layout.shape, stats, saved._own, sums, own_count, saved._w, slope)
    except Exception:  # of any kind, and raised again: the other ranks wait for a message
        _shards.announce(peers, lambda: failed(saved, SHARD_SUMS))
        raise

    with kernels.on_device_of(x):
        if peers is not None:
            gathered, counts = _shards.exchange_sums(peers, message, saved._counts)
            count = None if saved._is_counted else float(counts.sum())
            kernels.merge_gradient_sums(counts, gathered, total)
            own = stats if param_grads == "global" or saved._own is None else saved._own
            part, of_part = (total, count) if param_grads == "global" else (sums, own_count)
            kernels.parameter_gradients(part, of_part, stats, own, of_gamma, of_beta)
            whole = None if saved.use_running else total
            if dresidual is not None:
                _copy(kernels, held, dresidual)
            kernels.apply_gradients(given, flat, target, layout.shape, stats, whole, count, saved._w, slope)
        elif x.size:
            if dresidual is not None:
                _copy(kernels, held, dresidual)
            backward = kernels.running_backward if saved.use_running else kernels.backward
            backward(given, flat, target, layout.shape, stats, of_gamma, of_beta, saved._w, slope)
        if saved._renorm is not None:
            kernels.renormalized_gradients(saved._renorm, plain, dgamma, dbeta)
        kernels.finish(layout, target, dx)
    return _gradients(dx, dgamma, dbeta, dresidual)


def _gradients(
    dx: NDArray, dgamma: NDArray | None, dbeta: NDArray | None, dresidual: NDArray | None
) -> Gradients | ResidualGradients:  # fmt: skip
    if dresidual is None:
        return Gradients(dx, dgamma, dbeta)
    return ResidualGradients(dx, dgamma, dbeta, dresidual)


def _check_outputs(
    kernels: ModuleType, dy: NDArray, saved: Saved, out: NDArray | None, dresidual_out: NDArray | None
) -> None:  # fmt: skip
    """Where the results may go."""
    if not saved._with_residual:
        _options.without_residual(dresidual_out)
    if out is None and dresidual_out is None:
        return
    inputs: tuple[tuple[str, NDArray | None], ...] = (("dy", dy), *saved._given)
    if out is not None:
        check_output(kernels, out, saved.x, inputs, allowed=("dy", "x", "y"))
        inputs = (("out", out), *inputs)
    if dresidual_out is not None:
        check_output(kernels, dresidual_out, saved.x, inputs, ("dy",), "dresidual_out")


def _copy(kernels: ModuleType, array: NDArray, to: NDArray) -> None:
    """Unless it is there."""
    if kernels.address(array) != kernels.address(to):
        to[...] = array


def _of_ghost_batches(
    dy: NDArray, saved: Saved, out: NDArray | None, dresidual_out: NDArray | None
) -> Gradients | ResidualGradients:  # fmt: skip
    """Those of each; the gradients of the parameters are added in float64."""
    x, kernels = saved.x, saved._kernels
    dy = like_x("dy", dy, saved)
    _check_outputs(kernels, dy, saved, out, dresidual_out)
    with kernels.on_device_of(x):
        xp, exist = kernels.xp, (saved._with_gamma, saved._with_beta)
        dx, dresidual = xp.empty_like(x) if out is None else out, dresidual_out
        if saved._with_residual and dresidual is None:
            dresidual = xp.empty_like(x)
        totals = [kernels.kept(xp.zeros(saved._shape)) if one else None for one in exist]
        for part, group in zip(saved._parts, saved.groups, strict=True):
            place = None if dresidual is None else dresidual[part]
            of_group = batch_norm_backward(dy[part], group, out=dx[part], dresidual_out=place)
            with np.errstate(all="ignore"):  # as in kernels, which overflow and underflow without a word
                for total, one in zip(totals, of_group[1:3], strict=True):
                    if total is not None:
                        total += kernels.kept(one)
        with np.errstate(all="ignore"):
            dgamma, dbeta = (None if total is None else total.astype(saved._dtype) for total in totals)
    return _gradients(dx, dgamma, dbeta, dresidual)
