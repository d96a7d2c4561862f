"""What a channel is divided by when it is standardized."""

from __future__ import annotations

from typing import Any

import numpy as np

EPSILON = 2.0**-52


def scale_of(xp: Any, mean: Any, var: Any) -> Any:
    """The standard deviation; 1 for a constant channel.

    Constant is also what varies by no more than the rounding of its mean: 0.3 and 0.1 + 0.2. No variance of float32 or
    narrower values is so small.
    """
    with np.errstate(invalid="ignore"):  # NaN: a channel of no values
        std = xp.sqrt(var)
        return xp.where(std <= EPSILON * abs(mean), 1.0, std)
