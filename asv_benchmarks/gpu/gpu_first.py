"""python asv_benchmarks/gpu/gpu_first.py: the first calls on a GPU, a section each, which goes on after a failure.

What is installed and which libraries are found; how long a first call takes and whether kernels start by the fast way;
a new host thread; another stream and a graph; y and dx of every dtype beside float64. With NUMBA_ENABLE_CUDASIM=1 in
the simulator.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module, metadata
from types import ModuleType

import numpy as np
from gpu_measure import verify
from gpu_systems import data, nbnorm_system, shape

import nbnorm

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
PACKAGES = (
    "numpy", "numba", "llvmlite", "numba-cuda", "cuda-core", "cuda-bindings", "cuda-pathfinder", "cupy-cuda13x",
    "cupy-cuda12x", "torch", "nvidia-nvjitlink", "nvidia-nvvm",
)  # fmt: skip
SMALL = ("4x3x68", "2x3x67", "37x5") if SIMULATED else (
    "8x16x28x28", "32x8x14x14", "4x6x35x35", "16x32x7x7", "16x32x7x7:last", "5000x64", "1003x3"
)  # fmt: skip


def installed(cupy: ModuleType) -> None:
    for package in PACKAGES:
        try:
            print(package, metadata.version(package), end="; ")
        except metadata.PackageNotFoundError:
            print(package, "-", end="; ")
    print("\nPython", sys.version.split()[0], "CUDA_HOME", os.environ.get("CUDA_HOME"))
    gpu = cupy.cuda.runtime.getDeviceProperties(0)
    print(gpu["name"], gpu["multiProcessorCount"], "SMs", gpu["l2CacheSize"] >> 20, "MB L2")
    if shutil.which("nvidia-smi"):
        query = "--query-gpu=name,driver_version,clocks.sm,clocks.max.sm,clocks.mem"
        subprocess.run(["nvidia-smi", query, "--format=csv"], timeout=20)
    if not SIMULATED:
        pathfinder = import_module("cuda.pathfinder")
        for name in ("nvvm", "nvrtc", "nvJitLink"):
            try:
                library = pathfinder.load_nvidia_dynamic_lib(name)
                print(name, library.found_via, library.abs_path)
            except Exception as error:
                print(name, "MISSING", f"{error}"[:200])


def first_call(cupy: ModuleType) -> None:
    x, state = cupy.asarray(np.ones((4, 3, 68), np.float32)), nbnorm.BatchNormState(3, device="cuda")
    start = time.perf_counter()
    y, _ = nbnorm.batch_norm_training(x, state)
    y.get()
    print(f"first training call {time.perf_counter() - start:.2f} s")
    if not SIMULATED:
        from nbnorm._cuda import fused, launch

        compiled = next(iter(fused.fused_segments.dispatcher.overloads.values()))
        print("the fast launch is found:", launch._loaded(compiled) is not None, "registers", compiled.regs_per_thread)


def new_thread(cupy: ModuleType) -> None:
    """The memory pool is warm and the kernels are loaded: nothing but nbnorm makes the thread a context."""
    x = cupy.asarray(np.random.default_rng(0).normal(size=(4, 3, 68)).astype(np.float32))
    state, out = nbnorm.BatchNormState(3, device="cuda"), cupy.empty_like(x)
    exact = nbnorm.batch_norm_inference(x, state).get()
    with ThreadPoolExecutor(1) as pool:
        y = pool.submit(nbnorm.batch_norm_inference, x, state, out=out).result()
    cupy.cuda.Stream(non_blocking=True).synchronize() if SIMULATED else cupy.cuda.Device().synchronize()
    assert y.get().tobytes() == exact.tobytes()


def another_stream_and_graph(cupy: ModuleType) -> None:
    x = cupy.asarray(np.random.default_rng(0).normal(size=(4, 3, 68)).astype(np.float32))
    state, stream = nbnorm.BatchNormState(3, device="cuda"), cupy.cuda.Stream(non_blocking=True)
    exact = nbnorm.batch_norm_training(x, state)[0].get()
    if not SIMULATED:
        cupy.cuda.Device().synchronize()
    stream.use()
    nbnorm.batch_norm_training(x, state)
    stream.begin_capture()
    y, _ = nbnorm.batch_norm_training(x, state)
    graph = stream.end_capture()
    before = state.num_batches
    for _ in range(3):
        graph.launch(stream)
    stream.synchronize()
    print("batches counted by 3 replays:", state.num_batches - before)
    assert y.get().tobytes() == exact.tobytes()
    assert SIMULATED or state.num_batches - before == 3


def values(cupy: ModuleType) -> None:
    names = ["float32", "float16"] if SIMULATED else ["float32", "float16", "float64", "bfloat16"]
    for name in names:
        dtype = np.dtype(import_module("ml_dtypes").bfloat16 if name == "bfloat16" else name)
        for text in SMALL:
            for mean in (0.0, 100.0):
                given = data(cupy, shape(text), dtype, mean=mean)
                print(f"{name} {text} mean {mean:g}: units {verify(given, 'nbnorm', nbnorm_system(cupy, given))}")


def main() -> int:
    failed = 0
    try:
        cupy = import_module("gpu_pretend").install() if SIMULATED else import_module("cupy")
        cupy.zeros(1)
    except (ImportError, RuntimeError) as error:
        print(f"no GPU ({type(error).__name__}: {error}); NUMBA_ENABLE_CUDASIM=1 NUMBA_DISABLE_JIT=1 needs none")
        return 1
    # values last: it compiles for each dtype and may not get to its end.
    sections: list[Callable[[ModuleType], None]] = [installed, first_call, new_thread, another_stream_and_graph, values]
    for section in sections:
        start = time.perf_counter()
        try:
            section(cupy)
            outcome = "ok"
        except Exception:
            traceback.print_exc(limit=8, file=sys.stdout)
            outcome, failed = "FAILED", 1
        print(f"== {section.__name__}: {outcome} after {time.perf_counter() - start:.1f} s", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
