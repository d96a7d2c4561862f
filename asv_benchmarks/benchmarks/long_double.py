"""The definition in long double, and how far from it a result is.

Needs nothing but NumPy, so that `python asv_benchmarks/peers/accuracy.py` does not either.
"""

from __future__ import annotations

import numpy as np


def reference(x: np.ndarray, dy: np.ndarray, axis: int, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """y and dx in long double from the exact values, shape of x; gamma 1, beta 0."""
    axes = tuple(i for i in range(x.ndim) if i != axis)

    def centred(values: np.ndarray) -> np.ndarray:
        once = values - values.mean(axes, keepdims=True)
        return once - once.mean(axes, keepdims=True)

    c, g = centred(x.astype(np.longdouble)), centred(dy.astype(np.longdouble))
    inv_std = 1 / np.sqrt((c * c).mean(axes, keepdims=True) + np.longdouble(eps))
    y = c * inv_std
    return y, inv_std * (g - y * (g * y).mean(axes, keepdims=True))


def error(found: np.ndarray, expected: np.ndarray, axis: int, bits: int = 24) -> float:
    axes = tuple(i for i in range(found.ndim) if i != axis)
    largest = np.abs(expected).max(axes, keepdims=True)
    return float((np.abs(found - expected) / (largest * np.longdouble(2) ** -bits)).max())
