"""Which values count: the arguments `where`, `weights` and `nan`, checked, in the form of kernels."""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from nbnorm import _arguments, _options
from nbnorm._counted import Counted, compact, placed
from nbnorm._dispatch import kernels_on
from nbnorm._layout import Layout


def counted(
    kernels: ModuleType, layout: Layout, x: NDArray, where: NDArray | None, weights: NDArray | None, nan: str
) -> Counted | None:  # fmt: skip
    """What kernels get to know of the values of x that count; None when every one counts once.

    Raises
    ------
    TypeError, ValueError
        When an argument is of the wrong kind, dtype, shape or device, or a weight is negative or not finite.
    """
    if where is None and weights is None and type(nan) is str and nan == "propagate":
        return None
    _options.missing(nan)
    for name, array in (("where", where), ("weights", weights)):
        if array is not None:
            kernels_on(name, array, kernels.device(x), "x")
    with kernels.on_device_of(x):
        if where is None and weights is None:  # every value that is not missing
            where = kernels.xp.ones((1,) * x.ndim, np.bool_)
        if where is not None:
            _arguments.mask(where, x)
            where = where.view(np.uint8)
        if weights is not None:
            weights = compact(weights)
            kernels.refuse_in_capture("weights=")
            _arguments.weights(weights, x)
            if weights.dtype.newbyteorder("=") not in (np.float32, np.float64):
                weights = weights.astype(np.float64)
        places = (placed(kernels, layout, x.shape, array) for array in (where, weights))
        return Counted(*next(places), *next(places), nan == "omit")
