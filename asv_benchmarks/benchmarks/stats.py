"""Statistics of a batch, and of batches that came in pieces."""

from __future__ import annotations

from typing import ClassVar

import nbnorm

from .common import BACKENDS, operation, timer  # noqa: F401  asv finds the timer here


class Stats:
    params: ClassVar = (("resnet50 stage 1", "resnet50 stage 1, channels last", "tall"), BACKENDS)
    param_names = ("case", "backend")
    repeat = (10, 100, 1.0)  # calls: at least, at most, seconds

    def setup(self, case: str, backend: str) -> None:
        self.call = operation("stats", case, "float32", backend)

    def time_batch_stats(self, *_: str) -> None:
        self.call()


class Merge:
    """100 batches into one."""

    params: ClassVar = BACKENDS
    param_names = ("backend",)
    repeat = (10, 100, 1.0)

    def setup(self, backend: str) -> None:
        self.pieces = [operation("stats", "small", "float32", backend)()] * 100

    def time_merge_stats(self, *_: str) -> None:
        nbnorm.merge_stats(*self.pieces)
