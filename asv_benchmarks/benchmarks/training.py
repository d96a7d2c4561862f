"""The training forward, by case; in other dtypes for some of them."""

from __future__ import annotations

from typing import ClassVar

from .common import BACKENDS, CASES, DTYPE_CASES, DTYPES, operation, timer  # noqa: F401  asv finds the timer here


class Training:
    params: ClassVar = (tuple(CASES), ("float32",), BACKENDS)
    param_names = ("case", "dtype", "backend")
    repeat = (10, 100, 1.0)  # calls: at least, at most, seconds

    def setup(self, case: str, dtype: str, backend: str) -> None:
        self.call = operation("training", case, dtype, backend)

    def time_training(self, *_: str) -> None:
        self.call()


class TrainingDtypes(Training):
    params: ClassVar = (DTYPE_CASES, DTYPES, BACKENDS)
