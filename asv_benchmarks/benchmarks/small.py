"""What a call costs beside its work: 100 calls on 128 x 64 values."""

from __future__ import annotations

from typing import ClassVar

from .common import BACKENDS, operations, timer  # noqa: F401  asv finds the timer here


class Small:
    params: ClassVar = BACKENDS
    param_names = ("backend",)
    repeat = (10, 100, 1.0)  # times: at least, at most, seconds

    def setup(self, backend: str) -> None:
        self.operations = operations("small", "float32", backend)

    def time_100_trainings(self, *_: str) -> None:
        for _ in range(100):
            self.operations.training()

    def time_100_backwards(self, *_: str) -> None:
        for _ in range(100):
            self.operations.backward()

    def time_100_inferences(self, *_: str) -> None:
        for _ in range(100):
            self.operations.inference()
