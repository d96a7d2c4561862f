"""tests/cuda in Numba's simulator, which needs a process of its own: the public functions on the CUDA backend."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def test_the_cuda_backend_in_the_simulator():
    pytest.importorskip("numba_cuda", reason="the simulator comes with numba-cuda (extra `test`, on Linux)")
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "cuda")]
    done = subprocess.run(command, env=environment, cwd=HERE.parent, capture_output=True, text=True)
    print(done.stdout[-4000:], done.stderr[-4000:])
    assert done.returncode == 0
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 100
