"""Where these tests run: on a GPU with CuPy, or, with NUMBA_ENABLE_CUDASIM=1, in the simulator with a stand-in for it.

Without either they are skipped, and say so; NBNORM_REQUIRE_GPU=1 makes that a failure. tests/test_cuda_simulator.py
starts the second way in a process of its own.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
collect_ignore = [] if SIMULATED else ["turns.py"]  # it can be imported in the simulator alone

if SIMULATED:
    from fake_cupy import install

    install()
    import numpy as np
    from numba.cuda.simulator.kernelapi import FakeCUDAShared
    from numba.np.numpy_support import as_dtype
    from turns import Shared, drawn, take_turns

    from nbnorm._cuda import plan

    take_turns()

    def shared_array(self, shape, dtype, dynamic=FakeCUDAShared.array):
        """`cuda.shared.array`: one array for all threads, found without a traceback of who asks."""
        if shape == 0:
            return dynamic(self, shape, dtype).view(Shared)
        line = sys._getframe(1)
        place = line.f_code.co_filename, line.f_lineno
        if place not in self._allocations:
            made = np.empty(shape, as_dtype(dtype) if hasattr(dtype, "bitwidth") else dtype)
            made.view(np.uint8)[...] = 0xFF  # NaN, for who reads what nobody has written
            self._allocations[place] = made
        return self._allocations[place].view(Shared)

    FakeCUDAShared.array = shared_array

    # Small blocks, and several of them, so that small arrays meet every branch.
    plan.THREADS, plan.WARP, plan.COLUMNS, plan.BLOCKS, plan.BEGIN, plan.STEPS = 8, 4, 8, 8, 100, 2


def _missing() -> str | None:
    """Why there is no GPU to test on."""
    try:
        importlib.import_module("cupy").zeros(1)
    except (ImportError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def pytest_collection_modifyitems(config, items):
    here, missing = Path(__file__).parent, None if SIMULATED else _missing()
    for item in items:
        if item.path.parent != here:
            continue
        item.add_marker("gpu")
        if missing and os.environ.get("NBNORM_REQUIRE_GPU") != "1":
            item.add_marker(pytest.mark.skip(reason=f"no GPU to test on ({missing})"))
        elif SIMULATED and item.get_closest_marker("real_gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a real GPU"))


@pytest.fixture
def cupy():
    return importlib.import_module("cupy")


@pytest.fixture(autouse=True)
def turns_of_its_own(request):
    """A test draws the same numbers whatever runs before it."""
    if SIMULATED:
        drawn.seed(request.node.nodeid)
