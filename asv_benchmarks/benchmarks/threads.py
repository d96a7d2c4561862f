"""Training with 1, 2, 4 ... threads, as far as NUMBA_NUM_THREADS goes."""

from __future__ import annotations

from typing import ClassVar

import numba
from asv_runner.benchmarks.mark import SkipNotImplemented

import nbnorm

from .common import operation


class Threads:
    params: ClassVar = (("resnet50 stage 1", "resnet50 stage 1, channels last", "tabular"), (1, 2, 4, 8, 16, 32, 64))
    param_names = ("case", "threads")
    repeat = (10, 100, 1.0)  # calls: at least, at most, seconds

    def setup(self, case: str, threads: int) -> None:
        if threads > numba.config.NUMBA_NUM_THREADS:
            raise SkipNotImplemented(f"{numba.config.NUMBA_NUM_THREADS} threads")
        nbnorm.set_num_threads(threads)
        self.call = operation("training", case, "float32", "numpy")

    def time_training(self, case: str, threads: int) -> None:
        self.call()
