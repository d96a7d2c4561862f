"""tests/cuda in Numba's simulator, which needs processes of its own: the public functions on the CUDA backend.

Slow, because the simulator runs every thread of a GPU as a Python thread.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parent / "cuda").glob("test_*.py"))
ONLY_ON_A_GPU = "test_gpu_only"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_cuda_backend_in_the_simulator(file, pytestconfig):
    pytest.importorskip("numba_cuda", reason="the simulator comes with numba-cuda (extra `test`, on Linux)")
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "NUMBA_DISABLE_JIT": "1", "SCIPY_ARRAY_API": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5", str(file)]
    command += ["--exhaustive"] * pytestconfig.getoption("exhaustive")
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    print(done.stdout[-4000:], done.stderr[-4000:])
    assert done.returncode == 0
    passed = sum(int(n) for n in re.findall(r"(\d+) passed", done.stdout))
    assert (passed == 0) == (file.stem == ONLY_ON_A_GPU)
