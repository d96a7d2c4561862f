"""tests/cuda in Numba's simulator, which needs processes of its own: the public functions on the CUDA backend."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parent / "cuda").glob("test_*.py"))


def run(file):
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    return subprocess.run(command, env=environment, cwd=Path(__file__).parent.parent, capture_output=True, text=True)


def test_the_cuda_backend_in_the_simulator():
    pytest.importorskip("numba_cuda", reason="the simulator comes with numba-cuda (extra `test`, on Linux)")
    with ThreadPoolExecutor(min(len(FILES), os.cpu_count() or 1)) as pool:
        runs = list(pool.map(run, FILES))
    for file, done in zip(FILES, runs, strict=True):
        print(file.name, done.stdout[-4000:], done.stderr[-4000:])
    assert [done.returncode for done in runs] == [0] * len(FILES)
    assert sum(int(n) for done in runs for n in re.findall(r"(\d+) passed", done.stdout)) > 100
