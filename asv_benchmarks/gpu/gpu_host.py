"""python asv_benchmarks/gpu/gpu_host.py: what a call on a GPU costs the host, on any Linux machine with a C compiler.

Prints µs of Python and of cuda.core for a call whose outputs are given: the median over rounds of the fastest of many
short runs. CuPy and the driver are pretended and take next to no time. In truth a cupy.empty, of which there is one for
`saved` and one for each scratch array, takes a microsecond or two, and so does the driver for a launch.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import median
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

ADDRESSES = count(2**30, 2**30)  # where no kernel ever looks
SHAPES = (32, 64, 14, 14), (32, 64, 7, 7), (128, 64)
DRIVER = """
#include <string.h>
static int nothing(void) { return 0; }
static int version(int *v) { *v = 13000; return 0; }
int cuGetProcAddress_v2(const char *name, void **function, int version_, unsigned long long flags, int *status) {
    *function = strcmp(name, "cuDriverGetVersion") ? (void *)nothing : (void *)version;
    if (!strncmp(name, "cuGetProcAddress", 16)) *function = (void *)cuGetProcAddress_v2;
    if (status) *status = 0;
    return 0;
}
"""


class Array:
    """As little as nbnorm asks of a `cupy.ndarray`: every attribute is there already."""

    def __init__(self, shape: Any, dtype: Any = np.float64) -> None:
        values = np.empty(shape, dtype)
        self.shape, self.strides, self.dtype, self.ndim = values.shape, values.strides, values.dtype, values.ndim
        self.size, self.itemsize, self.nbytes = values.size, values.itemsize, values.nbytes
        self.data = SimpleNamespace(ptr=next(ADDRESSES), device_id=0)
        self.flags = SimpleNamespace(c_contiguous=True)

    def reshape(self, *shape: Any) -> Array:
        return self

    def __getitem__(self, row: int) -> Array:
        return self

    def __setitem__(self, row: int, value: Array) -> None:
        pass


def pretended_cupy() -> ModuleType:
    cupy: Any = ModuleType("cupy")
    scratch: dict[Any, Array] = {}

    def empty(shape: Any, dtype: Any = np.float64) -> Array:
        """As from a pool: the same again."""
        key = shape, dtype
        if key not in scratch:
            scratch[key] = Array(shape, dtype)
        return scratch[key]

    stream = SimpleNamespace(ptr=77, is_capturing=bool)
    cupy.ndarray, cupy.empty, cupy.ones, cupy.zeros = Array, empty, Array, Array
    cupy.cuda = SimpleNamespace(
        Device=contextlib.nullcontext,
        runtime=SimpleNamespace(
            getDevice=int, getDeviceCount=lambda: 1, setDevice=int, deviceGetAttribute=lambda what, device: 227 << 10
        ),
        get_current_stream=lambda: stream,
    )
    sys.modules["cupy"] = cupy
    return cupy


def calls(shape: tuple[int, ...]) -> dict[str, Callable[[], Any]]:
    """The operations on arrays of a shape, with outputs given."""
    import nbnorm

    x, y, dy, dx = (Array(shape, np.float32) for _ in range(4))
    state = nbnorm.BatchNormState(shape[1], device="cuda")
    _, saved = nbnorm.batch_norm_training(x, state, out=y)  # type: ignore[arg-type]
    return {
        "training": lambda: nbnorm.batch_norm_training(x, state, out=y),  # type: ignore[arg-type]
        "backward": lambda: nbnorm.batch_norm_backward(dy, saved, out=dx),  # type: ignore[arg-type]
        "inference": lambda: nbnorm.batch_norm_inference(x, state, out=y),  # type: ignore[arg-type]
    }


def microseconds(call: Callable[[], Any], rounds: int, runs: int, repeats: int = 20) -> float:
    def run() -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return 1e6 * (time.perf_counter() - start) / repeats

    run()
    return median(min(run() for _ in range(runs)) for _ in range(rounds))


def measure(rounds: int, runs: int) -> None:
    pretended_cupy()
    from cuda.core import Kernel

    from nbnorm._cuda import apply, finalize, fused, launch, reduce

    loaded = SimpleNamespace(kernel=Kernel.from_handle(1))
    compiled = SimpleNamespace(_codelibrary=SimpleNamespace(get_cufunc=lambda: loaded))
    for module in (reduce, finalize, apply, fused):
        for kernel in vars(module).values():
            if isinstance(kernel, launch.Kernel):
                kernel.dispatcher = SimpleNamespace(compile=lambda signature: compiled)
    gc.disable()
    operations = {shape: calls(shape) for shape in SHAPES}
    print(f"| µs of the host | {' | '.join(operations[SHAPES[0]])} |\n|{' --- |' * 4}")
    for shape, of_shape in operations.items():
        print(f"| {shape} | {' | '.join(f'{microseconds(call, rounds, runs):.1f}' for call in of_shape.values())} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=600, help="in a round, of 20 calls")
    parser.add_argument("--driver-loaded", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.driver_loaded:
        measure(args.rounds, args.runs)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "libcuda.so.1"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, "-xc", "-"], input=DRIVER, text=True, check=True)
        environment = {**os.environ, "LD_LIBRARY_PATH": folder}
        return subprocess.run([sys.executable, *sys.argv, "--driver-loaded"], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
