"""For gpu.py --dry-run: a pretended CuPy, with the stand-in of tests/cuda and what only a benchmark asks for.

Streams, events and graphs do nothing but keep time; kernels run in Numba's simulator when they are launched.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

STAND_INS = Path(__file__).parents[2] / "tests" / "cuda"


class Event:
    def record(self, stream: Any) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        pass


class Stream:
    current: Stream
    capturing = False

    def __init__(self, non_blocking: bool = False) -> None:
        self.ptr = int(non_blocking)

    def use(self) -> None:
        Stream.current = self

    def synchronize(self) -> None:
        assert not self.capturing, "CUDA refuses to wait for a stream that is being captured"

    def is_capturing(self) -> bool:
        return self.capturing

    def begin_capture(self) -> None:
        assert not self.capturing
        assert self.ptr, "CUDA refuses to capture the default stream"
        self.capturing = True

    def end_capture(self) -> SimpleNamespace:
        assert self.capturing
        self.capturing = False
        return SimpleNamespace(launch=lambda stream: None)


def install() -> ModuleType:
    """Make `import cupy` give the pretended one, and blocks small."""
    sys.path.append(str(STAND_INS))
    cupy: Any = importlib.import_module("fake_cupy").install()
    cupy.__version__ = "pretended"
    cupy.get_default_memory_pool = lambda: SimpleNamespace(free_all_blocks=lambda: None)
    cuda, runtime = cupy.cuda, cupy.cuda.runtime
    cuda.Event, cuda.Stream = Event, Stream
    Stream().use()
    cuda.get_current_stream = lambda: Stream.current
    cuda.get_elapsed_time = lambda first, last: 1e3 * (last.seconds - first.seconds)
    runtime.memcpyDeviceToDevice = 3
    runtime.memcpyAsync = lambda target, source, size, kind, stream: ctypes.memmove(target, source, size)
    runtime.getDeviceProperties = lambda number: {
        "name": b"pretended GPU", "multiProcessorCount": 1, "l2CacheSize": 0, "major": 0, "minor": 0,
    }  # fmt: skip
    runtime.driverGetVersion = runtime.runtimeGetVersion = lambda: 0

    from nbnorm._cuda import plan

    importlib.import_module("turns").take_turns()
    # Python runs one thread after the other: few of them, and still more than one block.
    for name in ("THREADS", "WARP", "BLOCKS", "STEPS"):
        assert hasattr(plan, name)
        setattr(plan, name, 2)
    return cupy
