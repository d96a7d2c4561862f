"""tests/cuda in Numba's simulator, which needs a process of its own: the public functions on the CUDA backend.

Slow, because Python runs every thread of a GPU, one after the other (cuda/turns.py).
"""

import functools
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import passed
import pytest

FILES = sorted((Path(__file__).parent / "cuda").glob("test_*.py"))
ONLY_ON_A_GPU = "test_gpu_only"


@functools.cache
def outcomes(files, report, *options):
    """By file: how many of its tests have passed, failed, and been skipped; and what the process had to say."""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "NUMBA_DISABLE_JIT": "1", "SCIPY_ARRAY_API": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "--durations=5", f"--junitxml={report}", *options]
    command += map(str, files)
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    found = {file.stem: Counter() for file in files}
    for case in ElementTree.parse(report).iter("testcase") if report.exists() else ():
        tags = {child.tag for child in case} & {"failure", "error", "skipped"}
        found.setdefault(case.get("classname").rpartition(".")[2], Counter())[tags.pop() if tags else "passed"] += 1
    return found, done.returncode, done.stdout[-8000:] + done.stderr[-4000:]


@pytest.mark.longer
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_cuda_backend_in_the_simulator(file, request, tmp_path_factory):
    """Files share a process, which takes as long to begin as the tests of one."""
    pytest.importorskip("numba_cuda", reason="the simulator comes with numba-cuda (extra `test`, on Linux)")
    config = request.config
    items = [item for item in request.session.items if item.path == request.path]
    again = config.getoption("without_passed") and config.stash[passed.BEFORE].issuperset(one.nodeid for one in items)
    options = ["--exhaustive"] * config.getoption("exhaustive") + ["--without-passed"] * again
    cache = f"cache_dir={config.cache.mkdir('simulator')}" if hasattr(config, "cache") else None
    options += ["-o", cache] if cache else ["-p", "no:cacheprovider"]
    files = tuple(item.callspec.params["file"] for item in items)
    found, status, output = outcomes(files, tmp_path_factory.getbasetemp() / "simulator.xml", *options)
    print(output)
    number = found[file.stem]
    assert (number["failure"], number["error"], status in (0, 1, 5 if again else 0)) == (0, 0, True)
    if not again:  # of what is left of a file, all may need a GPU, or nothing may be left
        assert (number["passed"] == 0) == (file.stem == ONLY_ON_A_GPU)
        assert number["passed"] or number["skipped"]
