"""What the statistics of a batch are, apart from how they are found: importable without Numba."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbnorm import _device


class BatchStats(NamedTuple):
    """What is to be known of the values of each channel.

    Attributes
    ----------
    count : float64 array, shape () or shape of the channel axes
        Number of values per channel: of each, and as often as they count, with `where`, `weights` or ``nan="omit"``.
    mean : float64 array, shape of the channel axes
    m2 : float64 array, shape of the channel axes
        Sum of (x - mean)**2, in the units of x squared.
    var : float64 array, shape of the channel axes
        The biased variance m2/count: NaN, with NumPy's warning, of no values.

    Examples
    --------
    >>> import numpy as np, nbnorm
    >>> nbnorm.batch_stats(np.array([[1.0, 5.0], [3.0, 5.0]])).var
    array([1., 0.])
    """

    count: NDArray[np.float64]  # type: ignore[assignment]  # tuple.count, which nobody needs here
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]

    @property
    def var(self) -> NDArray[np.float64]:
        with _device.current(_device.of(self.m2)):
            return self.m2 / self.count
