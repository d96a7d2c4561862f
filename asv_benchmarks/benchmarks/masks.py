"""Masks: where most values count, and where next to none do, which have to be found."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar

import nbnorm

from .common import BACKENDS, CASES, data, module, timer  # noqa: F401  asv finds the timer here

PARTS = ("two of three rows", "the last row of a thousand")


@lru_cache
def operation(name: str, part: str, backend: str) -> Callable[[], Any]:
    """As that of common.py, with a mask of rows."""
    xp, (shape, axis) = module(backend), CASES["tabular"]
    x, rows = xp.asarray(data(shape, "float32")[0]), xp.arange(shape[0])[:, None]
    where = rows % 3 > 0 if part == PARTS[0] else rows >= shape[0] * 999 // 1000
    state, calls = nbnorm.BatchNormState(shape[axis], device="cuda" if backend == "cupy" else "cpu"), {}
    calls["stats"] = lambda: nbnorm.batch_stats(x, axis=axis, where=where)
    calls["training"] = lambda: nbnorm.batch_norm_training(x, state, axis=axis, where=where)
    calls[name]()
    return calls[name]


class Masked:
    params: ClassVar = (PARTS, BACKENDS)
    param_names = ("part", "backend")
    repeat = (10, 100, 1.0)  # calls: at least, at most, seconds

    def setup(self, part: str, backend: str) -> None:
        self.stats, self.training = (operation(name, part, backend) for name in ("stats", "training"))

    def time_batch_stats(self, *_: str) -> None:
        self.stats()

    def time_training(self, *_: str) -> None:
        self.training()
