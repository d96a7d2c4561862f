"""What the statistics of a batch are, apart from how they are found: importable without Numba."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class BatchStats(NamedTuple):
    """What is to be known of the values of each channel; the biased variance is m2/count.

    Attributes
    ----------
    count : float64 array, shape ()
        Number of values per channel.
    mean : float64 array, shape of the channel axes
    m2 : float64 array, shape of the channel axes
        Sum of (x - mean)**2, in the units of x squared.
    """

    count: NDArray[np.float64]  # type: ignore[assignment]  # tuple.count, which nobody needs here
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]
