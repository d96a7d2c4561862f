"""The GPU benchmark without a GPU: its dry run walks every section, and says that it measured nothing."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import gpu_clock
import gpu_measure
import gpu_systems
import gpu_visit
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_the_cost_of_a_call_for_the_host():
    """The real launch path, down to a pretended driver."""
    pytest.importorskip("cuda.core", reason="the launch path of numba-cuda[cu13]")
    if shutil.which("cc") is None:
        pytest.skip("NO C COMPILER for the pretended driver")
    command = [sys.executable, str(ROOT / "asv_benchmarks" / "gpu" / "gpu_host.py"), "--rounds", "1", "--runs", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    header, _, *rows = done.stdout.splitlines()
    assert header == "| µs of the host | training | backward | inference |"
    assert [row.split(" | ")[0] for row in rows] == ["| (32, 64, 14, 14)", "| (32, 64, 7, 7)", "| (128, 64)"]
    times = [[float(time) for time in row.strip("| ").split(" | ")[1:]] for row in rows]
    assert [[time > 0 for time in of_shape] for of_shape in times] == [[True] * 3] * 3


@pytest.mark.parametrize("type_name", ["float32", "float16"])
@pytest.mark.parametrize("row", ["20x5x3x4", "20x5x3x4:last", "300x5"])
def test_what_is_wrong_is_not_timed(row, type_name):
    """The plain expression in NumPy's place of all systems; of two of them one channel of a result is another's."""
    library = SimpleNamespace(**vars(np), asnumpy=np.asarray)
    clock = SimpleNamespace(cupy=library, effort=gpu_clock.DRY, release=lambda: None, rotating=lambda call, sets: call,
                            on_gpu=lambda call, warm_up: "timed")  # fmt: skip
    row, left_out = gpu_systems.shape(row), []

    def wrong(kind):
        def make(cupy, data):
            operations, results, host = gpu_systems.cupy_system(cupy, data)
            swapped = np.take(np.arange(5), [0, 1, 2, 3, 3])
            return gpu_systems.System(
                operations, results | {kind: lambda r: np.take(results[kind](r), swapped, row.axis)}, host
            )

        return make

    measurement = gpu_measure.Measurement(clock, None, left_out)
    measurement.systems = {"CuPy": gpu_systems.cupy_system, "one": wrong("training"), "other": wrong("backward")}
    assert measurement.large(row, np.dtype(type_name))["us"] == {
        "CuPy": dict.fromkeys(("training", "backward", "inference"), "timed")
    }
    found = [reason.partition(" units")[0].rpartition(" ")[0] for reason in left_out]
    assert found == [
        f"{name}, {row.name} {type_name}: ArithmeticError: WRONG: {kind} is"
        for name, kind in (("one", "training"), ("other", "backward"))
    ]


ASV = """
from benchmarks.time_per_byte import TimePerByte
from gpu_clock import DRY
from gpu_pretend import install
install().is_available = lambda: True
TimePerByte.effort = DRY
for operation, passes in {"training": 3, "backward": 5, "inference": 2}.items():
    benchmark, asked = TimePerByte(), (operation, "2x4x3x3:last", "float16")
    benchmark.setup(*asked)
    measured = []
    on_gpu = benchmark.clock.on_gpu
    benchmark.clock.on_gpu = lambda call, warm_up: measured.append(on_gpu(call, warm_up)) or measured[0]
    print(operation, benchmark.track_gpu(*asked) * passes * 2 * 4 * 3 * 3 * 2 / (1e6 * measured[0]["median"]))
"""


def test_asv_counts_the_bytes():
    """In the simulator: picoseconds a byte, times the bytes, is what the clock said."""
    pytest.importorskip("numba_cuda", reason="the simulator comes with numba-cuda")
    pytest.importorskip("asv_runner", reason="NO ASV")
    paths = [ROOT, ROOT / "asv_benchmarks", ROOT / "asv_benchmarks" / "gpu"]
    simulator = {"NUMBA_ENABLE_CUDASIM": "1", "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run([sys.executable, "-c", ASV], env={**os.environ, **simulator}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = [line.split() for line in done.stdout.splitlines()]
    assert [name for name, _ in found] == ["training", "backward", "inference"]
    np.testing.assert_allclose([float(ratio) for _, ratio in found], 1, rtol=1e-12)


def test_a_visit_goes_on_after_a_failure_and_when_the_time_is_up(tmp_path):
    part, environment = gpu_visit.Part, dict(os.environ)
    python = [sys.executable, "-c"]
    # Where the tests run in the background of a shell, Python would ignore the signal.
    slow = "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler); print('begun', flush=True); "
    slow += "time.sleep(60)"
    lines = [
        gpu_visit.run(part, tmp_path, environment, dry_run=False)
        for part in (
            part("slow", 4, [*python, slow]),
            part("wrong", 60, [*python, "import sys; sys.exit(3)"]),
            part("missing", 60, [str(tmp_path / "no such program")]),
            part("right", 60, [*python, "print('done')"]),
        )
    ]
    outcomes = [line.partition(" after ")[0].partition(": [Errno")[0] for line in lines]
    assert outcomes == ["slow: TIME IS UP", "wrong: exit code 3", "missing: FileNotFoundError", "right: ok"]
    logs = {path.stem: path.read_text() for path in tmp_path.glob("*.log")}
    assert logs.pop("slow").startswith("begun\nTraceback")  # it was asked to end, and could say something
    assert logs == {"wrong": "", "missing": "", "right": "done\n"}


def test_a_visit_has_time_for_its_parts(tmp_path):
    """Those of a check run at once."""
    assert max(part.seconds for part in gpu_visit.check(False, gpu_visit.surroundings(str(tmp_path)))) <= 240
    assert sum(part.seconds for part in gpu_visit.measure(tmp_path, False)) <= 400


def test_a_visit_brings_what_numba_cuda_asks_of_numpy(monkeypatch):
    numpy = ModuleType("numpy")
    numpy.vstack = np.vstack
    monkeypatch.setitem(sys.modules, "numpy", numpy)
    exec(gpu_visit.SHIM, {})
    assert numpy.row_stack is np.vstack


@pytest.mark.exhaustive("a minute of the simulator; the parts have tests of their own")
@pytest.mark.parametrize("what", ["check", "measure", "bounds"])
def test_a_dry_visit(tmp_path, what):
    pytest.importorskip("numba_cuda", reason="the simulator comes with numba-cuda")
    command = [sys.executable, str(ROOT / "asv_benchmarks" / "gpu" / "gpu_visit.py"), what, "--dry-run"]
    done = subprocess.run(command, env={**os.environ, "OUT": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    parts = {
        "check": ["first", "tests", "memcheck", "racecheck"], "measure": ["kernels", "bounds", "benchmark"],
        "bounds": ["bounds"],
    }[what]  # fmt: skip
    summary = (tmp_path / "report.txt").read_text().splitlines()
    assert [line.partition(" after ")[0] for line in summary] == [f"{part}: ok" for part in parts]
    if what == "measure":
        found = json.loads((tmp_path / "kernels.json").read_text())
        measured = {(e["shape"], e["operation"]) for e in found if e["system"] == "nbnorm" and e["us"] > 0}
        assert len(measured) == 9


@pytest.mark.exhaustive("tests/cuda runs what it would time")
def test_a_dry_run(tmp_path):
    pytest.importorskip("numba_cuda", reason="the simulator comes with numba-cuda")
    saved = tmp_path / "results.json"
    command = [sys.executable, str(ROOT / "asv_benchmarks" / "gpu" / "gpu.py"), "--dry-run", "--json", str(saved)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    table = saved.with_suffix(".md").read_text()
    assert done.stdout == table
    assert table.startswith("**DRY RUN: no figure here is a measurement.**\n")

    results = json.loads(saved.read_text())
    dtypes = {entry["dtype"] for entry in results["large"]}
    assert results["dry_run"] is True
    assert {"float32", "float16"} <= dtypes <= {"float32", "float16", "bfloat16"}
    peers_that_failed = [reason for reason in results["left_out"] if not reason.startswith(("PyTorch", "bfloat16"))]
    assert peers_that_failed == []
    assert results["versions"]["numpy"] == np.__version__
    assert min(results["copy"]["GB/s"]) > 0
    assert max(entry["sets"] for entry in results["large"]) > 1
    operations = {"training", "backward", "inference"}
    for entry in results["large"]:
        values = math.prod(map(int, entry["shape"].removesuffix(":last").split("x")))
        size = values * (4 if entry["dtype"] == "float32" else 2)
        assert entry["bytes"] == {"training": 3 * size, "backward": 5 * size, "inference": 2 * size}
    for section, figures in (("large", ("median", "min", "host")), ("small", ("host", "graph"))):
        for entry in results[section]:
            measured = {"nbnorm": operations, "CuPy": operations}
            if entry["shape"] in ("2x2x8x8", "2x2x4x4x4"):  # channels first, one launch each
                measured["two launches"] = {"training", "backward"}
            found = {system: {kind: tuple(t) for kind, t in times.items()} for system, times in entry["us"].items()}
            assert found == {system: dict.fromkeys(kinds, figures) for system, kinds in measured.items()}
    # Maps in float32 are within 2 ulp (docs/numerics.md), an ulp being at most two units; in 16 bits that is rounded
    # once more, which hides it. The expression's float32 sums lose the digits of the mean.
    errors = {(entry["dtype"], entry["mean"]): entry["units"] for entry in results["errors"]}
    for (dtype, _), units in errors.items():
        assert units["nbnorm"] < (4 if dtype == "float32" else 1.01)
    assert errors["float32", 1e6]["CuPy"] > 1e3
