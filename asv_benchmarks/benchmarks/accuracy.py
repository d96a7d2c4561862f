"""Largest errors where the mean is 10,000 times the standard deviation, against long double.

In units u = 2**-24 * max|y| of the channel for float32, 2**-53 for float64; 0.5 to 1 is correctly rounded.
"""

from __future__ import annotations

from typing import ClassVar

import nbnorm

from .common import BACKENDS, data, module
from .long_double import error, reference

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
