"""The sections of gpu.py's results, as plain data: versions, large arrays, small arrays, errors.

Only what is right is timed: y and dx of some channels are compared with float64 first.
"""

from __future__ import annotations

import math
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from importlib import metadata
from types import ModuleType
from typing import Any

import numpy as np
from gpu_clock import Clock
from gpu_systems import EPS, PASSES, SYSTEMS, Data, Row, System, data

BITS = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}  # of the significand
MEANS = {"float32": (0.0, 1e3, 1e6), "float16": (0.0, 1e3), "bfloat16": (0.0, 1e3)}  # float16 ends at 65504
OURS = ("nbnorm", "two launches")
# Units: rounded once from float32 maps, whose terms, here at most three times the largest result, are within 2**-22
# (docs/numerics.md). Of others a sum in a tree loses log2(n).
ROUNDED, IN_SINGLE = 1.01, 12 * 2.0**-24
PACKAGES = ("numpy", "numba", "numba-cuda", "cuda-core", "ml_dtypes")
Entry = dict[str, Any]


class Measurement:
    """Measures `systems` with the clock; `left_out` says, a line each, what of the others did not work."""

    def __init__(self, clock: Clock, torch: ModuleType | None, left_out: list[str]) -> None:
        self.clock, self.cupy, self.torch, self.left_out = clock, clock.cupy, torch, left_out
        self.systems = {name: make for name, make in SYSTEMS.items() if torch or name != "PyTorch"}

    def versions(self) -> dict[str, str]:
        import nbnorm

        runtime = self.cupy.cuda.runtime
        gpu = runtime.getDeviceProperties(runtime.getDevice())
        return {
            "date": date.today().isoformat(),
            "host": platform.platform(),
            "GPU": f"{gpu['name'].decode()}, {gpu['multiProcessorCount']} SMs, {gpu['l2CacheSize'] >> 20} MB L2",
            "driver": f"{_driver()} (CUDA {runtime.driverGetVersion()}; runtime {runtime.runtimeGetVersion()})",
            "python": platform.python_version(),
            "nbnorm": nbnorm.__version__,
            **{name: _version(name) for name in PACKAGES},
            "cupy": self.cupy.__version__,
            "torch": self.torch.__version__ if self.torch else "left out",
        }

    def large(self, row: Row, dtype: np.dtype) -> Entry:
        """Microseconds on the GPU, from memory: so many sets that no cache holds them."""
        size = row.size * dtype.itemsize
        sets = -(-self.clock.effort.touched // (2 * size))

        def times(name: str, system: System) -> Entry:
            calls = {kind: self.clock.rotating(call, sets) for kind, call in system.operations.items()}
            return {kind: self.clock.on_gpu(call, warm_up=sets + 2) for kind, call in calls.items()}

        return {
            "shape": row.name,
            "dtype": dtype.name,
            "sets": sets,
            "bytes": {kind: passes * size for kind, passes in PASSES.items()},
            "torch_form": row.torch_form,
            "us": self._by_system(row, dtype, times, sets, verified=True),
        }

    def small(self, row: Row, dtype: np.dtype) -> Entry:
        """Microseconds of the host, and of the GPU alone by graph replay; the arrays stay in the caches."""

        def times(name: str, system: System) -> Entry:
            calls = {kind: lambda call=call: call(0) for kind, call in system.operations.items()}
            found = {kind: {"host": self.clock.on_host(call)} for kind, call in calls.items()}
            if name != "PyTorch":  # whose allocator knows nothing of a capture that CuPy began
                for kind, call in calls.items():
                    found[kind]["graph"] = self.clock.by_graph(call)
            return found

        return {"shape": row.name, "dtype": dtype.name, "us": self._by_system(row, dtype, times, verified=True)}

    def errors(self, row: Row, dtype: np.dtype, mean: float) -> Entry:
        """Largest error of y against float64 on the host, in units of 2**-bits * max|y|; standard deviation 1."""
        exact, _ = _exact(*data(self.cupy, row, dtype, mean=mean)[1:3], row.axes)

        def error(name: str, system: System) -> float:
            return _units(system.host(system.results["training"](system.operations["training"](0))), exact, dtype)

        units = self._by_system(row, dtype, error, mean=mean)
        return {"shape": row.name, "dtype": dtype.name, "mean": mean, "units": units}

    def _by_system(
        self, row: Row, dtype: np.dtype, use: Callable[[str, System], Any], sets: int = 1, mean: float = 0.0,
        verified: bool = False,
    ) -> Entry:  # fmt: skip
        """What `use` finds out about every system; one that fails, or is wrong, is left out, and said so."""
        given = data(self.cupy, row, dtype, sets, mean)
        found = {}
        for name, make in self.systems.items():
            print(f"{row.name} {dtype.name} {name}", file=sys.stderr)
            try:
                system = make(self.cupy, given)
                if verified:
                    verify(given, name, system)
                if system.operations:
                    found[name] = use(name, system)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                self.left_out.append(f"{name}, {row.name} {dtype.name}: {reason:.120}")
            self.clock.release()
            if self.torch:
                self.torch.cuda.empty_cache()
        return found


def verify(given: Data, name: str, system: System) -> list[float]:
    """How far y and dx of three channels are off float64's, in units of the last place. Raises ArithmeticError."""
    x, dy, C, found = given.x, given.dy, given.row.shape[1], []
    some = (*[slice(None)] * given.row.axis, sorted({0, C // 2, C - 1}))
    bound = 4 * math.log2(given.row.size // C)
    if name in OURS and x.dtype != np.float64:
        bound = ROUNDED + IN_SINGLE * 2.0 ** BITS[x.dtype.name]
    for kind, exact in zip(("training", "backward"), _exact(x[some], dy[some], given.row.axes), strict=True):
        if kind in system.operations:
            units = _units(system.host(system.results[kind](system.operations[kind](0))[some]), exact, x.dtype)
            if not units <= bound:
                raise ArithmeticError(
                    f"WRONG: {kind} is {units:.3g} units off float64's, at most {bound:.3g} are right"
                )
            found.append(round(units, 2))
    return found


def _exact(x: np.ndarray, dy: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """y and dx in float64, gamma 1 and beta 0."""

    def centred(values: np.ndarray) -> np.ndarray:
        values = values - values.mean(axes, keepdims=True)
        return values - values.mean(axes, keepdims=True)  # what rounding left over

    u = centred(x.astype(np.float64))
    inv_std = 1 / np.sqrt(np.square(u).mean(axes, keepdims=True) + EPS)
    y, v = u * inv_std, dy.astype(np.float64)
    return y, inv_std * (centred(v) - y * (v * y).mean(axes, keepdims=True))


def _units(found: np.ndarray, exact: np.ndarray, dtype: np.dtype) -> float:
    """The largest error, in units of 2**-bits * max|exact|."""
    return float(np.abs(found.astype(np.float64) - exact).max() / (2.0 ** -BITS[dtype.name] * np.abs(exact).max()))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _driver() -> str:
    """Of the first GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "version unknown, no nvidia-smi"
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.partition("\n")[0]
