"""Inference, by case; in other dtypes for some of them."""

from __future__ import annotations

from typing import ClassVar

from .common import BACKENDS, CASES, DTYPE_CASES, DTYPES, operation, timer  # noqa: F401  asv finds the timer here


class Inference:
    params: ClassVar = (tuple(CASES), ("float32",), BACKENDS)
    param_names = ("case", "dtype", "backend")
    repeat = (10, 100, 1.0)  # calls: at least, at most, seconds

    def setup(self, case: str, dtype: str, backend: str) -> None:
        self.call = operation("inference", case, dtype, backend)

    def time_inference(self, *_: str) -> None:
        self.call()


class InferenceDtypes(Inference):
    params: ClassVar = (DTYPE_CASES, DTYPES, BACKENDS)


class InferenceOut(Inference):
    """Into an array that is there: memory without page faults."""

    params: ClassVar = (("resnet50 stage 1", "volume", "tall"), ("float32",), BACKENDS)

    def setup(self, case: str, dtype: str, backend: str) -> None:
        self.call = operation("inference out", case, dtype, backend)
