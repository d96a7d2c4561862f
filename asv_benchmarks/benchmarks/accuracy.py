"""Largest errors where the mean is 10,000 times the standard deviation, against long double.

In units u = 2**-24 * max|y| of the channel for float32, 2**-53 for float64; 0.5 to 1 is correctly rounded.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

import nbnorm

from .common import BACKENDS, data, module

BITS = {"float32": 24, "float64": 53}  # of the significand
MEAN, EPS = 1e4, 1e-5
SHAPES = {"channels first": ((16, 4, 1024), 1), "channels last": ((16, 1024, 4), 2)}


class Accuracy:
    params: ClassVar = (tuple(SHAPES), tuple(BITS), BACKENDS)
    param_names = ("layout", "dtype", "backend")
    unit = "u"

    def setup(self, layout: str, dtype: str, backend: str) -> None:
        xp = module(backend)
        shape, self.axis = SHAPES[layout]
        self.x, self.dy = data(shape, dtype, MEAN)
        self.dy -= self.dy.dtype.type(MEAN)
        state = nbnorm.BatchNormState(shape[self.axis], eps=EPS, device="cuda" if backend == "cupy" else "cpu")
        y, saved = nbnorm.batch_norm_training(xp.asarray(self.x), state, axis=self.axis)
        dx = nbnorm.batch_norm_backward(xp.asarray(self.dy), saved).dx
        self.y, self.dx = (getattr(array, "get", array.copy)() for array in (y, dx))

    def track_y(self, layout: str, dtype: str, backend: str) -> float:
        y, _ = reference(self.x, self.dy, self.axis, EPS)
        return error(self.y, y, self.axis, BITS[dtype])

    def track_dx(self, layout: str, dtype: str, backend: str) -> float:
        _, dx = reference(self.x, self.dy, self.axis, EPS)
        return error(self.dx, dx, self.axis, BITS[dtype])


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
