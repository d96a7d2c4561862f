"""Batch renormalization: how far the statistics of a batch may be corrected (docs/math.md, Eq. 36 to 38)."""

from __future__ import annotations

from dataclasses import dataclass

from nbnorm import _options


@dataclass(frozen=True)
class Renorm:
    """How far batch renormalization may go: the argument `renorm` of `batch_norm_training` and of the layer.

    Parameters
    ----------
    rmax : float
        At least 1: the batch's standard deviation, in units of the running one, counts as between 1/rmax and rmax.
    dmax : float
        At least 0: the batch's mean is at most that many running standard deviations away. With rmax 1 and dmax 0 it
        is plain batch normalization.

    Raises
    ------
    ValueError
        When a number is smaller, or NaN.

    References
    ----------
    S. Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models", 2017,
    arXiv:1702.03275. There rmax rises to 3 and dmax to 5 during training, from 1 and 0.

    Examples
    --------
    >>> import numpy as np, nbnorm
    >>> state = nbnorm.BatchNormState(1)
    >>> state.running_mean, state.running_var = [1.0], [4.0]
    >>> x = np.array([[1.0], [5.0]])  # its mean is 3, its standard deviation 2
    >>> y, saved = nbnorm.batch_norm_training(x, state, renorm=nbnorm.Renorm(rmax=3, dmax=0.5))
    >>> y.round(4)
    array([[-0.5],
           [ 1.5]])
    """

    rmax: float
    dmax: float

    def __post_init__(self) -> None:
        _options.renorm_limits(self.rmax, self.dmax)
        for name in ("rmax", "dmax"):  # a kernel would be compiled for each type of number
            object.__setattr__(self, name, float(getattr(self, name)))
