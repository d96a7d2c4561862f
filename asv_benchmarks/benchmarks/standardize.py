"""A table standardized, beside scikit-learn's scaler of the same name: time, and what float32 loses at a large mean."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from asv_runner.benchmarks.mark import SkipNotImplemented

from .common import data

SHAPE = (1_000_000, 64)
MEAN = 1e6  # standard deviations


@lru_cache
def fitted(system: str) -> tuple[Any, np.ndarray]:
    """A scaler, fitted and called once, which compiles it, and the table. Cached: asv runs `setup` again and again."""
    scaler = scaler_of(system)
    x, _ = data(SHAPE, "float32")
    scaler.fit_transform(x)
    return scaler, x


def scaler_of(system: str) -> Any:
    try:
        from sklearn import preprocessing

        from nbnorm.sklearn import StandardScaler
    except ImportError as error:
        raise SkipNotImplemented(str(error)) from error
    return StandardScaler() if system == "nbnorm" else preprocessing.StandardScaler()


class Table:
    params: ClassVar = ("nbnorm", "scikit-learn")
    param_names = ("system",)
    repeat = (3, 20, 5.0)  # calls: at least, at most, seconds
    number = 1

    def setup(self, system: str) -> None:
        self.scaler, self.x = fitted(system)

    def time_fit(self, _: str) -> None:
        self.scaler.fit(self.x)

    def time_transform(self, _: str) -> None:
        self.scaler.transform(self.x)


class LargeMean:
    """Largest error of y, in units of 2**-24 * max|y|, where the mean is 1e6 times the standard deviation."""

    params: ClassVar = ("nbnorm", "scikit-learn")
    param_names = ("system",)
    unit = "u"

    def setup(self, system: str) -> None:
        self.x = data((100_000, 8), "float32", MEAN)[0]
        self.y = scaler_of(system).fit_transform(self.x)

    def track_y(self, _: str) -> float:
        exact = self.x.astype(np.longdouble)  # whose sums of so few 24-bit numbers are exact
        exact -= exact.mean(0)
        exact /= np.sqrt((exact**2).mean(0))
        return float((abs(self.y - exact) / abs(exact).max(0)).max() * 2**24)
