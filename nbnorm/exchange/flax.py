"""Flax, linen and nnx: two dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from nbnorm import _arguments, _names, _options
from nbnorm.exchange._arrays import arrays_of, state_of
from nbnorm.state import BatchNormState

_NAMES = ("scale", "bias", "mean", "var")


@_names.asked(_names.OF_EXCHANGE)
def from_flax(
    params: Mapping[str, Any],
    batch_stats: Mapping[str, Any],
    *,
    eps: float = 1e-5,
    momentum: float = 0.99,
) -> BatchNormState:
    """A state from the variables of a `flax.linen.BatchNorm` or `flax.nnx.BatchNorm`.

    Parameters
    ----------
    params : mapping of str to array, shape (C,) or that of the channel axes each
        The layer's "scale" and "bias", those that it has; {} when it has neither.
    batch_stats : mapping of str to array, shape (C,) or that of the channel axes each
        Its "mean" and "var".
    eps : float
        The layer's `epsilon`.
    momentum : float
        The layer's own: the weight of the old statistics.

    Returns
    -------
    BatchNormState
        On the CPU, with copies of the arrays; float64 where float32 does not hold one of them. Its `momentum` is
        1 - `momentum`.

    Raises
    ------
    TypeError
        When an argument is of the wrong kind, or the numbers are not real.
    ValueError
        When a name is missing or unknown, shapes differ, a variance is negative, or eps or momentum is out of
        range.

    Warns
    -----
    UserWarning
        When momentum is 0.1 or less, and more than 0: as a weight of the new batch it would be usual.

    Notes
    -----
    In linen a layer has its place in both collections: ``variables["params"]["BatchNorm_0"]`` and
    ``variables["batch_stats"]["BatchNorm_0"]``. In nnx they are ``nnx.state(layer, nnx.Param)`` and
    ``nnx.state(layer, nnx.BatchStat)``, each through ``nnx.to_pure_dict``.

    Flax sorts several channel axes: a layer that was made with ``axis=(2, 1)`` has the arrays of ``axis=(1, 2)``, and
    this is the axis that nbnorm's functions take with this state, ``tuple(sorted(axis))``.

    References
    ----------
    https://flax.readthedocs.io/en/latest/api_reference/flax.linen/layers.html

    Examples
    --------
    >>> import numpy as np
    >>> from nbnorm import exchange
    >>> batch_stats = {"mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32)}
    >>> exchange.from_flax({"scale": np.ones(3, np.float32)}, batch_stats).beta is None
    True
    """
    for name, found, known in (("params", params, _NAMES[:2]), ("batch_stats", batch_stats, _NAMES[2:])):
        _arguments.instance(name, found, Mapping, f"a mapping with {' and '.join(known)} of one layer")
        surplus, missing = found.keys() - set(known), set(known) - found.keys()
        if surplus or (missing and name == "batch_stats"):
            raise ValueError(
                f"{name} has {', '.join(sorted(map(str, found)))[:80] or 'nothing'}; expected {' and '.join(known)} "
                "of one layer"
            )
    state = state_of("batch_stats", {**params, **batch_stats}, _NAMES, eps, momentum, several_axes=True)
    _options.warn_of_their_momentum(momentum)
    return state


def to_flax(state: BatchNormState) -> tuple[dict[str, NDArray], dict[str, NDArray]]:
    """The arrays of a state as the variables of a `flax.linen.BatchNorm` or `flax.nnx.BatchNorm`.

    Parameters
    ----------
    state : BatchNormState
        With running statistics.

    Returns
    -------
    params : dict of str to array, shape (C,) or that of the channel axes each
        "scale" and "bias", those that the state has.
    batch_stats : dict of str to array, shape (C,) or that of the channel axes each
        "mean" and "var". All are copies in NumPy, of the state's dtype.

    Raises
    ------
    ValueError
        When the state has no running statistics, or some beyond the range of its dtype.

    Notes
    -----
    The layer is made with ``epsilon=state.eps``, ``momentum=1 - state.momentum``, ``use_scale=state.gamma is not None``
    and ``use_bias=state.beta is not None``. Trained on there, its running variance is the biased one.

    Flax sorts several channel axes. A state that was used with axes in another order, such as ``axis=(2, 1)``, is not
    for it: its arrays have to be transposed first.

    Examples
    --------
    >>> import nbnorm
    >>> from nbnorm import exchange
    >>> params, batch_stats = exchange.to_flax(nbnorm.BatchNormState(3))
    >>> sorted(params), sorted(batch_stats)
    (['bias', 'scale'], ['mean', 'var'])
    """
    arrays = arrays_of(state, _NAMES)
    return {name: arrays[name] for name in _NAMES[:2] if name in arrays}, {name: arrays[name] for name in _NAMES[2:]}
