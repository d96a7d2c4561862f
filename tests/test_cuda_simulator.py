"""tests/cuda in Numba's simulator, which needs a process of its own: the public functions on the CUDA backend.

Slow, because the simulator runs every thread of a GPU as a Python thread.
"""

import functools
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

FILES = sorted((Path(__file__).parent / "cuda").glob("test_*.py"))
ONLY_ON_A_GPU = "test_gpu_only"
# The threads of a block take turns (cuda/turns.py), which takes a third of the time. With --exhaustive the tests run
# once more with all threads at once: these in full, which have every way of waiting for each other; of the rest, which
# load and add up other values between the same barriers, what runs by default: every shape, not in every dtype.
AT_ONCE_IN_FULL = {f"test_cuda_{name}" for name in ("devices", "fused", "shards", "state")}


@functools.cache
def outcomes(files, report, at_once, *options):
    """By file: how many of its tests have passed, failed, and been skipped; and what the process had to say."""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "NUMBA_DISABLE_JIT": "1", "SCIPY_ARRAY_API": "1"}
    environment["NBNORM_THREADS_AT_ONCE"] = str(int(at_once))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5", f"--junitxml={report}"]
    command += [*options, *map(str, files)]
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    found = {file.stem: Counter() for file in files}
    for case in ElementTree.parse(report).iter("testcase") if report.exists() else ():
        tags = {child.tag for child in case} & {"failure", "error", "skipped"}
        found.setdefault(case.get("classname").rpartition(".")[2], Counter())[tags.pop() if tags else "passed"] += 1
    return found, done.returncode, done.stdout[-8000:] + done.stderr[-4000:]


@pytest.mark.parametrize(
    "at_once",
    [
        pytest.param(False, id="in turns"),
        pytest.param(True, id="at once", marks=pytest.mark.exhaustive("threads in turns")),
    ],
)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_cuda_backend_in_the_simulator(file, at_once, request, tmp_path_factory):
    """Files share a process, which takes as long to begin as the tests of one."""
    pytest.importorskip("numba_cuda", reason="the simulator comes with numba-cuda (extra `test`, on Linux)")

    def like_this(one):
        return at_once and one.stem in AT_ONCE_IN_FULL

    params = [item.callspec.params for item in request.session.items if item.path == request.path]
    named = dict.fromkeys(param["file"] for param in params if param["at_once"] == at_once)
    files = tuple(one for one in named if like_this(one) == like_this(file))
    in_full = request.config.getoption("exhaustive") and (not at_once or like_this(file))
    report = tmp_path_factory.getbasetemp() / f"simulator-{at_once}-{files[0].stem}.xml"
    found, status, output = outcomes(files, report, at_once, *["--exhaustive"] * in_full)
    print(output)
    number = found[file.stem]
    assert (number["failure"], number["error"], status in (0, 1)) == (0, 0, True)
    assert (number["passed"] == 0) == (file.stem == ONLY_ON_A_GPU)
    assert number["passed"] or number["skipped"]
