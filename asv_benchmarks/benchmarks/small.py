"""What a call costs beside its work: 100 calls on 128 x 64 values."""

from __future__ import annotations

from typing import ClassVar

from .common import BACKENDS, operation, timer  # noqa: F401  asv finds the timer here


class Small:
    params: ClassVar = (("training", "backward", "inference"), BACKENDS)
    param_names = ("operation", "backend")
    repeat = (10, 100, 1.0)  # times: at least, at most, seconds

    def setup(self, name: str, backend: str) -> None:
        self.call = operation(name, "small", "float32", backend)

    def time_100_calls(self, *_: str) -> None:
        for _ in range(100):
            self.call()
