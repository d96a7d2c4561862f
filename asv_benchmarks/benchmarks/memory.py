"""Memory: what a call allocates beside its outputs, and the peak of a whole process."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from .common import BACKENDS, operations

CASES = ("resnet50 stage 1", "resnet50 stage 1, channels last", "tall")


class Workspace:
    """Bytes at the peak of a call, less those of the arrays that it returned. NumPy tells tracemalloc."""

    params: ClassVar = (CASES,)
    param_names = ("case",)
    unit = "bytes"

    def setup(self, case: str) -> None:
        self.operations = operations(case, "float32", "numpy")

    def track_training(self, case: str) -> int:
        return beside_outputs(self.operations.training)

    def track_backward(self, case: str) -> int:
        return beside_outputs(self.operations.backward)

    def track_inference(self, case: str) -> int:
        return beside_outputs(self.operations.inference)


class Process:
    """Peak of the resident memory: interpreter, Numba, x, dy and everything else."""

    params: ClassVar = (CASES, BACKENDS)
    param_names = ("case", "backend")

    def setup(self, case: str, backend: str) -> None:
        self.operations = operations(case, "float32", backend)

    def peakmem_step(self, case: str, backend: str) -> None:
        self.operations.training()
        self.operations.backward()


def beside_outputs(call: Callable[[], Any]) -> int:
    tracemalloc.start()
    result = call()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    outputs = result if isinstance(result, tuple) else (result,)
    return peak - sum(array.nbytes for array in outputs if isinstance(array, np.ndarray))
