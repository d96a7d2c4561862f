"""python asv_benchmarks/gpu/gpu.py: time, bandwidth and errors on a GPU, beside a CuPy expression and, where it is
installed, PyTorch.

Prints tables, and saves them as JSON and Markdown. Large arrays: microseconds of the GPU by events, median and minimum
over the rounds, outputs fresh in every call, buffers rotated so that every call reads memory and not a cache; GB/s at
2, 3 and 5 tensors for inference, training forward and backward; the ratio to a device-to-device copy of the same
process. Small arrays: microseconds of the host for a call, and of the GPU when a CUDA graph is replayed. Nothing else
should be running on the GPU. --dry-run walks through the script without a GPU: its figures measure nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from gpu_clock import DRY, FULL, QUICK, Clock
from gpu_measure import MEANS, OURS, Measurement
from gpu_report import markdown
from gpu_systems import shape

LARGE = (
    "32x64x112x112", "32x256x56x56", "32x512x28x28", "256x1024x14x14", "16x2048x14x14", "64x2048x7x7",
    "64x3x224x224", "2x32x128x128x128", "32x64x112x112:last", "256x1024x14x14:last", "1000000x64", "65536x1024",
    "4096x256",
)  # fmt: skip
SMALL = ("128x64", "128x512", "32x64x14x14", "8x256x14x14", "32x256x7x7", "32x256x7x7:last")
ERRORS = ("16x8x64x64", "16x8x64x64:last")
TINY = ("2x2x8x8", "4x2x2x2", "2x4x2x2:last", "16x4"), ("2x2x4x4x4",), ("2x2x8x8",)  # the same three, for a dry run
DTYPES = ("float32", "float16", "bfloat16")
SIMULATOR = {"NUMBA_ENABLE_CUDASIM": "1", "NUMBA_DISABLE_JIT": "1"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", type=shape, metavar="SHAPE", help='"32x64x56x56", or "32x64x56x56:last"')
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and calls, and half of the shapes")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes in Numba's simulator; measures nothing")
    parser.add_argument("--json", type=Path, default=Path("gpu-results.json"), help="the Markdown goes beside it")
    args = parser.parse_args()
    simulated = all(os.environ.get(name) == value for name, value in SIMULATOR.items())
    if args.dry_run and not simulated:  # Numba reads these variables when it is imported
        return subprocess.run([sys.executable, *sys.argv], env={**os.environ, **SIMULATOR}).returncode
    if "NUMBA_ENABLE_CUDASIM" in os.environ and not args.dry_run:
        parser.error("NUMBA_ENABLE_CUDASIM is set: the simulator measures nothing; unset it, or ask for --dry-run")
    try:
        cupy = _cupy(args.dry_run)
    except (ImportError, RuntimeError) as error:
        print(f"no GPU to measure on ({type(error).__name__}: {error}); --dry-run needs none", file=sys.stderr)
        return 1
    results = measure(cupy, args)
    text = markdown(results)
    print(text)
    args.json.write_text(json.dumps(results, indent=1) + "\n")
    args.json.with_suffix(".md").write_text(text + "\n")
    return int(any(reason.startswith(OURS) for reason in results["left_out"]))


def measure(cupy: ModuleType, args: argparse.Namespace) -> dict[str, Any]:
    """Every section, ready for JSON."""
    left_out: list[str] = []
    clock = Clock(cupy, DRY if args.dry_run else QUICK if args.quick else FULL)
    measurement = Measurement(clock, _torch(clock, args.dry_run, left_out), left_out)
    dtypes = _dtypes(cupy, args.dtypes, left_out)
    usual = TINY if args.dry_run else (LARGE[:: 2 if args.quick else 1], SMALL, ERRORS)
    large, small, errors = ([shape(text) for text in texts] for texts in usual)
    bandwidth = [clock.copy_bandwidth()]
    results = {
        "dry_run": args.dry_run,
        "versions": measurement.versions(),
        "copy": {"bytes": clock.effort.copied, "GB/s": bandwidth},
        "large": [measurement.large(row, t) for row in args.shapes or large for t in dtypes],
        "small": [measurement.small(row, t) for row in small for t in dtypes],
        "errors": [measurement.errors(row, t, mean) for row in errors for t in dtypes for mean in MEANS[t.name]],
        "left_out": left_out,
    }
    bandwidth.append(clock.copy_bandwidth())
    return results


def _cupy(dry_run: bool) -> ModuleType:
    if dry_run:
        from gpu_pretend import install

        return install()
    cupy = importlib.import_module("cupy")
    cupy.zeros(1)
    importlib.import_module("nbnorm._cuda")
    return cupy


def _torch(clock: Clock, dry_run: bool, left_out: list[str]) -> ModuleType | None:
    """PyTorch, working on the clock's stream; None where it cannot."""
    if dry_run:
        left_out.append("PyTorch: not part of a dry run")
        return None
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        left_out.append(f"PyTorch: {type(error).__name__}: {error}")
        return None
    if not torch.cuda.is_available():
        left_out.append(f"PyTorch: {torch.__version__} sees no CUDA")
        return None
    torch.cuda.set_stream(torch.cuda.ExternalStream(clock.stream.ptr))
    return torch


def _dtypes(cupy: ModuleType, names: list[str], left_out: list[str]) -> list[np.dtype]:
    """Those that CuPy has."""
    found = []
    for name in names:
        try:
            dtype = np.dtype(importlib.import_module("ml_dtypes").bfloat16 if name == "bfloat16" else name)
            cupy.asarray(np.zeros(2, dtype))
        except (ImportError, TypeError, ValueError) as error:
            left_out.append(f"{name}: {type(error).__name__}: {error}")
        else:
            found.append(dtype)
    return found


if __name__ == "__main__":
    sys.exit(main())
