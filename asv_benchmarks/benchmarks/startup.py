"""Before the first result: imports, and the first step of a process with and without compiled kernels in the cache."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

# A training step, forward and backward, of one dtype and layout, large enough for several threads.
STEP = """
import numpy, time, nbnorm
x, state = numpy.ones((8, 8, 5000), numpy.float32), nbnorm.BatchNormState(8)
start = time.perf_counter()
y, saved = nbnorm.batch_norm_training(x, state)
nbnorm.batch_norm_backward(x, saved)
print(time.perf_counter() - start)
"""


def timeraw_import_numpy() -> str:
    """To compare the next one with."""
    return "import numpy"


def timeraw_import_nbnorm() -> str:
    return "import nbnorm"


class FirstStep:
    """Seconds after `import nbnorm`; Numba is imported by the step."""

    unit = "seconds"
    timeout = 300

    def track_compiling(self) -> float:
        with tempfile.TemporaryDirectory() as empty:
            return first_step(empty)

    def track_from_cache(self) -> float:
        first_step(os.environ["NUMBA_CACHE_DIR"])  # fills the cache, if need be
        return first_step(os.environ["NUMBA_CACHE_DIR"])


def first_step(cache: str) -> float:
    environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
    command = [sys.executable, "-c", STEP]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
