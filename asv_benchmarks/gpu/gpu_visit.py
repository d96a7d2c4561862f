"""python asv_benchmarks/gpu/gpu_visit.py check, then measure: all that is to be learned where a GPU is lent for
minutes.

`check` takes at most 330 s: what is installed, first calls, tests/cuda on 12 cores, memcheck. `measure` takes at most
400 s: every kernel's own time beside PyTorch's and cuDNN's, launch bounds, one launch against two, gpu.py. A part has a
time limit, and its output a file in $OUT (or --out); after a failure the next one follows, and the exit code is 1.
Nothing is installed, and nbnorm need not be. --dry-run: tiny shapes in Numba's simulator; measures nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SIMULATOR = {"NUMBA_ENABLE_CUDASIM": "1", "NUMBA_DISABLE_JIT": "1"}
# numba-cuda 0.30 asks NumPy for row_stack, which NumPy 2.5 has no more; Python imports this module before any other.
SHIM = """
import numpy
if not hasattr(numpy, "row_stack"):
    numpy.row_stack = numpy.vstack
"""


class Part(NamedTuple):
    name: str
    seconds: int  # at most
    command: list[str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("check", "measure"))
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-visit")), help="where results go")
    parser.add_argument("--dry-run", action="store_true", help="in Numba's simulator, to see that all parts end")
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(SHIM)
        environment = surroundings(folder) | (SIMULATOR if args.dry_run else {"NBNORM_REQUIRE_GPU": "1"})
        parts = (check if args.what == "check" else measure)(out, args.dry_run, environment)
        lines = [run(part, out, environment, args.dry_run) for part in parts]
    report = "\n".join(lines)
    (out / f"{args.what}.txt").write_text(report + "\n")
    print(report)
    return int(any(" ok " not in line for line in lines))


def surroundings(folder: str) -> dict[str, str]:
    """The environment of every part: nbnorm from here, one kernel cache, nvcc's libNVVM where no wheel has one."""
    sys.path.append(str(ROOT / "tests"))
    from sources import hash_of_sources  # Numba's cache overlooks an edit in what a kernel calls

    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    found = {
        "CUDA_HOME": str(Path(nvcc).resolve().parent.parent),
        "NUMBA_CACHE_DIR": str(Path(tempfile.gettempdir(), "nbnorm-gpu-kernels", hash_of_sources(ROOT / "nbnorm"))),
    }
    return found | os.environ | {"PYTHONPATH": os.pathsep.join((folder, str(ROOT))), "PYTHONUNBUFFERED": "1"}


def check(out: Path, dry_run: bool, environment: dict[str, str]) -> list[Part]:
    python = sys.executable
    tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:benchmark"]
    tests += ["-o", "filterwarnings=default"]  # what others warn of in their newest versions
    whole = ["tests/cuda", "-n", "12", "--dist", "worksteal", "--maxfail=40", "--durations=10"]
    watched = ["tests/cuda/test_cuda_values.py", "-n", "0", "-k", "test_a_step and float32 and (half or small)"]
    sanitizer = shutil.which("compute-sanitizer") or str(Path(environment["CUDA_HOME"], "bin", "compute-sanitizer"))
    memcheck = [sanitizer, "--tool", "memcheck", "--error-exitcode", "9"]
    if dry_run:
        whole, memcheck = ["tests/cuda/test_cuda_values.py", "-n", "2", "-k", "constant_channel"], []
    return [
        Part("first", 70, [python, "asv_benchmarks/gpu/gpu_first.py"]),
        Part("tests", 190, [*tests, *whole]),
        Part("memcheck", 65, [*memcheck, *tests, *watched]),
    ]


def measure(out: Path, dry_run: bool, environment: dict[str, str]) -> list[Part]:
    python = sys.executable
    bench = ["--dry-run", "--dtypes", "float32"] if dry_run else ["--quick", "--dtypes", "float32", "float16"]
    return [
        Part(
            "kernels", 130, [python, "asv_benchmarks/gpu/gpu_kernels.py", "rows", "--json", str(out / "kernels.json")]
        ),
        Part("bounds", 60, [python, "asv_benchmarks/gpu/gpu_kernels.py", "bounds", "--json", str(out / "bounds.json")]),
        Part("benchmark", 200, [python, "asv_benchmarks/gpu/gpu.py", *bench, "--json", str(out / "gpu.json")]),
    ]


def run(part: Part, out: Path, environment: dict[str, str], dry_run: bool) -> str:
    """What became of a part, in a line. Its whole output is in a file, the end of it on the screen."""
    print(f"### {part.name}, at most {part.seconds} s: {' '.join(part.command)}", flush=True)
    log, start = out / f"{part.name}.log", time.monotonic()
    with log.open("wb") as file:
        try:
            process = subprocess.Popen(
                part.command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
            outcome = f"exit code {code}" if (code := process.wait(None if dry_run else part.seconds)) else "ok"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with its workers
            process.wait()
            outcome = "TIME IS UP"
        except OSError as error:
            outcome = f"{type(error).__name__}: {error}"
    print("\n".join(log.read_text(errors="replace").splitlines()[-40:]), flush=True)
    return f"{part.name}: {outcome} after {time.monotonic() - start:.0f} s, {log}"


if __name__ == "__main__":
    sys.exit(main())
