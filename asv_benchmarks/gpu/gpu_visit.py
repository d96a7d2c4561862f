"""python asv_benchmarks/gpu/gpu_visit.py check, then measure: all that is to be learned where a GPU is lent for
minutes.

`check` takes at most 240 s: what is installed, first calls, tests/cuda on 12 cores, compute-sanitizer's memcheck and
racecheck, all at once. `measure` takes at most 400 s, one after the other: every kernel's own time beside PyTorch's and
cuDNN's, launch bounds, one launch against two, gpu.py. Parts may be named one by one. A part has a time limit, and its
output a file in $OUT (or --out); after a failure the next one follows, and the exit code is 1. Nothing is installed,
and nbnorm need not be. --dry-run: tiny shapes in Numba's simulator; measures nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
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
    parser.add_argument("what", nargs="+", help="check, measure, or names of parts")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-visit")), help="where results go")
    parser.add_argument("--dry-run", action="store_true", help="in Numba's simulator, to see that all parts end")
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(SHIM)
        environment = surroundings(folder) | (SIMULATOR if args.dry_run else {"NBNORM_REQUIRE_GPU": "1"})
        groups = {"check": check(args.dry_run, environment), "measure": measure(out, args.dry_run)}
        parts = {name: [part for part in group if {name, part.name} & {*args.what}] for name, group in groups.items()}
        if unknown := {*args.what} - {*groups, *(part.name for group in groups.values() for part in group)}:
            parser.error(f"no such part: {', '.join(unknown)}")
        with ThreadPoolExecutor(max(1, len(parts["check"]))) as beside:
            lines = [*beside.map(lambda part: run(part, out, environment, args.dry_run), parts["check"])]
        lines += [run(part, out, environment, args.dry_run) for part in parts["measure"]]
    report = "\n".join(lines)
    with (out / "report.txt").open("a") as file:
        file.write(report + "\n")
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
    first = folder, str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])
    return found | os.environ | {"PYTHONPATH": os.pathsep.join(first), "PYTHONUNBUFFERED": "1"}


def check(dry_run: bool, environment: dict[str, str]) -> list[Part]:
    python = sys.executable
    tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:benchmark"]
    tests += ["-o", "filterwarnings=default"]  # what others warn of in their newest versions
    whole = ["tests/cuda", "-n", "12", "--dist", "worksteal", "--maxfail=40", "--durations=10"]
    watched = ["-n", "0", "-k", "test_a_step and float32 and (half or small)", "tests/cuda/test_cuda_values.py"]
    # Kernels with several uses of the same shared memory.
    kinds = "(test_a_step or equal_the_oracle or gives_the_bits and 1024) and (float32 or float64)"
    racing = ["-n", "0", "-k", kinds, "--maxfail=3"]
    racing += [f"tests/cuda/test_{name}.py" for name in ("cuda_fused", "gpu_only", "cuda_derivatives", "cuda_counted")]
    sanitizer = shutil.which("compute-sanitizer") or str(Path(environment["CUDA_HOME"], "bin", "compute-sanitizer"))
    memcheck, racecheck = ([sanitizer, "--tool", tool, "--error-exitcode", "9"] for tool in ("memcheck", "racecheck"))
    if dry_run:
        few = ["-k", "constant_channel", "tests/cuda/test_cuda_values.py"]
        whole, watched, racing, memcheck, racecheck = ["-n", "2", *few], few, few, [], []
    return [
        Part("first", 240, [python, "asv_benchmarks/gpu/gpu_first.py"]),
        Part("tests", 240, [*tests, *whole]),
        Part("memcheck", 240, [*memcheck, *tests, *watched]),
        Part("racecheck", 240, [*racecheck, *tests, *racing]),
    ]


def measure(out: Path, dry_run: bool) -> list[Part]:
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
            outcome = "TIME IS UP"
            process.send_signal(signal.SIGINT)  # pytest says what has failed so far
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(8)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with its workers
            process.wait()
        except OSError as error:
            outcome = f"{type(error).__name__}: {error}"
    print(f"### {part.name}:", *log.read_text(errors="replace").splitlines()[-40:], sep="\n", flush=True)
    return f"{part.name}: {outcome} after {time.monotonic() - start:.0f} s, {log}"


if __name__ == "__main__":
    sys.exit(main())
