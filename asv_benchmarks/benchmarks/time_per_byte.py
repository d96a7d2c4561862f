"""What a byte that must move costs a GPU, by the clock of asv_benchmarks/gpu: events, arrays from memory, not a cache.

Picoseconds a byte: 1,000 divided by GB/s. The host's part is in `gpu/gpu.py`, and so are other libraries.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar

from .common import dtype_of, module

sys.path.append(str(Path(__file__).parents[1] / "gpu"))

from gpu_clock import QUICK, Clock, Effort
from gpu_systems import PASSES, data, nbnorm_system, shape

ROWS = ("32x64x112x112", "32x256x56x56", "64x2048x7x7", "32x64x112x112:last", "1000000x64")


class TimePerByte:
    params: ClassVar = (tuple(PASSES), ROWS, ("float32", "float16"))
    param_names = ("operation", "shape", "dtype")
    unit = "ps/byte"
    effort: ClassVar[Effort] = QUICK

    def setup(self, operation: str, name: str, dtype: str) -> None:
        cupy = module("cupy")
        self.clock = Clock(cupy, self.effort)
        row, kind = shape(name), dtype_of(dtype)
        self.size = row.size * kind.itemsize
        self.sets = -(-self.effort.touched // (2 * self.size))
        system = nbnorm_system(cupy, data(cupy, row, kind, self.sets))
        self.call = self.clock.rotating(system.operations[operation], self.sets)

    def track_gpu(self, operation: str, name: str, dtype: str) -> float:
        microseconds = self.clock.on_gpu(self.call, warm_up=self.sets + 2)["median"]
        return 1e6 * microseconds / (PASSES[operation] * self.size)
