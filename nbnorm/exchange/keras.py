"""Keras: a list of arrays, whose length tells what there is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbnorm import _arguments, _names, _options
from nbnorm.exchange._arrays import arrays_of_one_axis, state_of
from nbnorm.state import BatchNormState

_NAMES = ("gamma", "beta", "moving_mean", "moving_variance")


@_names.asked(_names.OF_EXCHANGE)
def from_keras(
    weights: Sequence[Any],
    *,
    scale: bool = True,
    center: bool = True,
    eps: float = 1e-3,
    momentum: float = 0.99,
) -> BatchNormState:
    """A state from the weights of a `keras.layers.BatchNormalization`.

    Parameters
    ----------
    weights : sequence of array, shape (C,) each
        As `layer.get_weights()` gives them: gamma, beta, moving mean and moving variance, the first two where they are.
    scale, center : bool
        As in the layer: whether there is a gamma, a beta.
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
        When there are more or fewer arrays than `scale` and `center` say, shapes differ, a variance is negative,
        or eps or momentum is out of range.

    Warns
    -----
    UserWarning
        When momentum is 0.1 or less, and more than 0: as a weight of the new batch it would be usual.

    References
    ----------
    https://keras.io/api/layers/normalization_layers/batch_normalization/

    Examples
    --------
    >>> import numpy as np
    >>> from nbnorm import exchange
    >>> weights = [np.ones(2), np.zeros(2), np.array([1.0, 2.0]), np.array([3.0, 4.0])]  # layer.get_weights()
    >>> state = exchange.from_keras([w.astype(np.float32) for w in weights])
    >>> state
    BatchNormState(2, eps=0.001, momentum=0.01, dtype=float32, device='cpu', num_batches=0)
    >>> state.running_var
    array([3., 4.])
    """
    _arguments.instance("weights", weights, (Sequence, np.ndarray), "the arrays of layer.get_weights()")
    _options.flag("scale", scale)
    _options.flag("center", center)
    present = [name for name, there in zip(_NAMES, (scale, center, True, True)) if there]
    if len(weights) != len(present):
        raise ValueError(
            f"weights has {len(weights)} arrays; with scale={scale}, center={center} expected "
            f"{len(present)}: {', '.join(present)}"
        )
    state = state_of("weights", dict(zip(present, weights)), _NAMES, eps, momentum)
    _options.warn_of_their_momentum(momentum)
    return state


def to_keras(state: BatchNormState) -> list[NDArray]:
    """The arrays of a state for `layer.set_weights` of a `keras.layers.BatchNormalization`.

    Parameters
    ----------
    state : BatchNormState
        With running statistics.

    Returns
    -------
    list of array, shape (C,) each
        Copies in NumPy, of the state's dtype: gamma, beta, moving mean and moving variance; the first two where the
        state has them.

    Raises
    ------
    ValueError
        When the state has no running statistics, n-D parameters, or statistics beyond the range of its dtype.

    Notes
    -----
    The layer is made with ``epsilon=state.eps``, ``momentum=1 - state.momentum``, ``scale=state.gamma is not None``
    and ``center=state.beta is not None``. Trained on there, its moving variance is the biased one.

    Examples
    --------
    >>> import nbnorm
    >>> from nbnorm import exchange
    >>> exchange.to_keras(nbnorm.BatchNormState(1, use_beta=False))
    [array([1.], dtype=float32), array([0.], dtype=float32), array([1.], dtype=float32)]
    """
    return list(arrays_of_one_axis(state, "Keras", _NAMES).values())
