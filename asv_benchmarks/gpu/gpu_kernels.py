"""python asv_benchmarks/gpu/gpu_kernels.py rows | bounds: the GPU's own time of every kernel, by CUPTI through
PyTorch's
profiler.

rows: the kernels of nbnorm, of PyTorch with and without cuDNN, and of a plain CuPy expression; bytes per second of each
of nbnorm's over those of a copy in the same process. bounds: nbnorm's with other launch bounds, and one launch against
two. Only what is right is timed. With NUMBA_ENABLE_CUDASIM=1 in the simulator, where the times mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from itertools import count
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import numpy as np
from gpu_measure import verify
from gpu_systems import SYSTEMS, Data, Row, System, data, nbnorm_system, shape, torch_system, two_launches_system

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
ROWS = ("2x2x8x8", "2x4x2x2:last", "16x4") if SIMULATED else (
    "32x64x112x112", "32x256x14x14", "256x1024x14x14", "32x192x35x35", "32x64x112x112:last", "32x256x56x56",
    "64x2048x7x7", "1000000x64", "4096x256",
)  # fmt: skip
DTYPES = ("float32",) if SIMULATED else ("float32", "float16")
TOUCHED = 300 if SIMULATED else 160_000_000  # bytes of all sets of an operation: more than the second-level cache
CALLS = 1 if SIMULATED else 12
PASSES = {  # arrays of the size of x that a kernel reads and writes
    "training": {"reduce": 1, "normalize": 2, "apply": 2, "fused": 2},
    "backward": {"reduce": 2, "gradient": 3, "apply": 3, "fused_gradient": 3},
    "inference": {"running": 2},
}
Times = dict[str, tuple[float, float]]  # by kernel: µs, and launches of a call


def profiled(cupy: ModuleType, call: Callable[[], Any]) -> Times:
    """Of every kernel of the process, whichever library starts it."""
    if SIMULATED:
        return _simulated(call)
    torch = import_module("torch")
    torch.cuda.init()
    for _ in range(3):
        call()
    cupy.cuda.Device().synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(CALLS):
            call()
        cupy.cuda.Device().synchronize()
        torch.cuda.synchronize()
    found: dict[str, list[float]] = {}
    for event in profile.events():
        if event.device_type.name == "CUDA":
            found.setdefault(short(event.name), []).append(event.time_range.elapsed_us())
    return {name: (median(times), len(times) / CALLS) for name, times in found.items()}


def _simulated(call: Callable[[], Any]) -> Times:
    from nbnorm._cuda.launch import Kernel

    found, start = {}, Kernel.__call__

    def timed(kernel: Any, *args: Any, **options: Any) -> None:
        before = time.perf_counter()
        start(kernel, *args, **options)
        found[kernel.__name__] = 1e6 * (time.perf_counter() - before), 1.0

    Kernel.__call__ = timed  # type: ignore[method-assign]
    try:
        call()
    finally:
        Kernel.__call__ = start  # type: ignore[method-assign]
    return found


def kernels() -> dict[str, Any]:
    from nbnorm._cuda import apply, finalize, fused, reduce
    from nbnorm._cuda.launch import Kernel

    modules = (reduce, finalize, apply, fused)
    return {name: value for m in modules for name, value in vars(m).items() if isinstance(value, Kernel)}


def short(name: str) -> str:
    """The name of a kernel of nbnorm, without what Numba adds to it, mangled or not."""
    ours = [one for one in kernels() if f"{len(one)}{one}" in name or f"::{one}[" in name]
    return f"nbnorm {ours[0]}" if "nbnorm" in name and ours else name[:90]


def copy_of(cupy: ModuleType, x: Any) -> Any:
    """The driver's: CuPy's kernel for `x.copy()` has less than half of the bandwidth."""
    result, runtime = cupy.empty_like(x), cupy.cuda.runtime
    stream = cupy.cuda.get_current_stream().ptr
    runtime.memcpyAsync(result.data.ptr, x.data.ptr, x.nbytes, runtime.memcpyDeviceToDevice, stream)
    return result


def sets_of(row: Row, dtype: np.dtype) -> int:
    return max(1, -(-TOUCHED // (row.size * dtype.itemsize)))


def rotating(operation: Callable[[int], Any], sets: int) -> Callable[[], Any]:
    numbers = count()
    return lambda: operation(next(numbers) % sets)


def row_times(cupy: ModuleType, row: Row, dtype: np.dtype) -> Iterator[dict[str, Any]]:
    """An entry for each kernel of each operation of each system."""
    given, size = data(cupy, row, dtype, sets_of(row, dtype)), row.size * dtype.itemsize
    copied = profiled(cupy, rotating(lambda i: copy_of(cupy, given.xs[i]), len(given.xs)))
    copy = 2 * size / sum(us * per for us, per in copied.values()) if copied else 0.0  # bytes per µs
    yield {"system": "copy", "kernels": copied, "GB/s": 1e-3 * copy}
    for name, make in systems().items():
        try:
            with _cudnn(name):
                system = make(cupy, given)
                verify(given, name.split(",")[0], system)
                for kind, operation in system.operations.items():
                    for kernel, (us, per) in profiled(cupy, rotating(operation, len(given.xs))).items():
                        entry = {"system": name, "operation": kind, "kernel": kernel, "us": us, "launches": per}
                        stage = kernel.removeprefix("nbnorm ").rpartition("_")[0]
                        if passes := PASSES[kind].get(stage):
                            entry |= {"GB/s": 1e-3 * passes * size / us}
                            entry |= {"of copy": passes * size / us / copy} if copy else {}
                        yield entry
        except Exception as error:
            yield {"system": name, "left out": f"{type(error).__name__}: {error}"[:200]}
        cupy.get_default_memory_pool().free_all_blocks()


def systems() -> dict[str, Callable[[ModuleType, Data], System]]:
    found = {name: make for name, make in SYSTEMS.items() if name != "PyTorch"}
    if not SIMULATED:
        found |= {"PyTorch, its own kernels": torch_system, "PyTorch, cuDNN": torch_system}
    return found


def _cudnn(system: str) -> contextlib.AbstractContextManager:
    if not system.startswith("PyTorch"):
        return contextlib.nullcontext()
    return import_module("torch").backends.cudnn.flags(enabled=system.endswith("cuDNN"))


def bounds_times(cupy: ModuleType, row: Row, dtype: np.dtype) -> Iterator[dict[str, Any]]:
    """nbnorm's kernels with 2 (as they are), 3 and 4 blocks of a multiprocessor promised to the compiler."""
    from numba import cuda

    from nbnorm._cuda import launch

    given, before = data(cupy, row, dtype, sets_of(row, dtype)), {}
    for blocks in (2, 3, 4):
        for name, kernel in kernels().items():
            before.setdefault(name, kernel.dispatcher)
            options = {} if SIMULATED else {"launch_bounds": (256, blocks), "extensions": [launch._AbsentAsNull]}
            kernel.dispatcher, kernel.ready = cuda.jit(kernel.body, **options), {}
        for make in (nbnorm_system, two_launches_system) if blocks == 2 else (nbnorm_system,):
            system = make(cupy, given)
            for kind, operation in system.operations.items():
                for kernel, (us, per) in profiled(cupy, rotating(operation, len(given.xs))).items():
                    yield {
                        "bounds": blocks,
                        "system": make.__name__,
                        "operation": kind,
                        "kernel": kernel,
                        "us": us,
                        "launches": per,
                    }
    for name, kernel in kernels().items():
        kernel.dispatcher, kernel.ready = before[name], {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rows", "bounds"))
    parser.add_argument("--json", type=Path, default=Path("gpu-kernels.json"))
    args = parser.parse_args()
    cupy = import_module("gpu_pretend").install() if SIMULATED else import_module("cupy")
    chosen = ROWS if args.what == "rows" else ROWS[:3:2] if SIMULATED else (ROWS[0], ROWS[1], ROWS[4])
    of_row = row_times if args.what == "rows" else bounds_times
    found: list[dict[str, Any]] = []
    for row in map(shape, chosen):
        for dtype in map(np.dtype, DTYPES):
            for entry in partial(of_row, cupy)(row, dtype):
                found.append({"shape": row.name, "dtype": dtype.name} | entry)
                print(*(f"{v:.4g}" if isinstance(v, float) else v for v in found[-1].values()), flush=True)
                args.json.write_text(json.dumps(found, indent=1) + "\n")  # each time: the time may be up
    return int(any("left out" in entry and entry["system"] in ("nbnorm", "two launches") for entry in found))


if __name__ == "__main__":
    sys.exit(main())
