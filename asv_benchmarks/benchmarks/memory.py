"""Memory: what a call allocates beside its outputs, and the peak of a whole process."""

from __future__ import annotations

import tracemalloc
from typing import ClassVar

import numpy as np

from .common import BACKENDS, operation

CASES = ("resnet50 stage 1", "resnet50 stage 1, channels last", "tall")


class Workspace:
    """Bytes at the peak of a call, less those of the arrays that it returned. NumPy tells tracemalloc."""

    params: ClassVar = (("training", "backward", "inference"), CASES)
    param_names = ("operation", "case")
    unit = "bytes"

    def setup(self, name: str, case: str) -> None:
        self.call = operation(name, case, "float32", "numpy")

    def track_bytes(self, name: str, case: str) -> int:
        tracemalloc.start()
        result = self.call()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        outputs = result if isinstance(result, tuple) else (result,)
        return peak - sum(array.nbytes for array in outputs if isinstance(array, np.ndarray))


class Process:
    """Peak of the resident memory: interpreter, Numba, x, dy and everything else."""

    params: ClassVar = (CASES, BACKENDS)
    param_names = ("case", "backend")

    def setup(self, case: str, backend: str) -> None:
        self.call = operation("backward", case, "float32", backend)

    def peakmem_step(self, case: str, backend: str) -> None:
        self.call()
