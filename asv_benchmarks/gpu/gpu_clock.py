"""How gpu.py measures time: on the GPU with events, on the host without waiting, and by replaying a CUDA graph.

Everything runs on one stream of the clock's own, which CuPy and PyTorch are told to use.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from itertools import cycle
from statistics import median
from types import ModuleType
from typing import Any, NamedTuple


class Effort(NamedTuple):
    rounds: int  # a figure is their median and their minimum
    calls: int  # in a round
    host_calls: int  # in a round without waiting; few enough for the driver's queue of launches
    touched: int  # bytes that the sets and outputs of an operation have together, at least
    copied: int  # bytes of the array whose copy gives the bandwidth


FULL = Effort(rounds=9, calls=20, host_calls=150, touched=220_000_000, copied=1 << 29)
QUICK = Effort(rounds=3, calls=10, host_calls=100, touched=220_000_000, copied=1 << 28)
DRY = Effort(rounds=1, calls=1, host_calls=1, touched=300, copied=1 << 12)


Microseconds = dict[str, float]  # of one call: median and minimum over the rounds


class Clock:
    def __init__(self, cupy: ModuleType, effort: Effort) -> None:
        self.cupy, self.effort = cupy, effort
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.stream.use()

    def rotating(self, operation: Callable[[int], Any], sets: int) -> Callable[[], Any]:
        """The operation on one set after the other. The outputs of a whole turn stay alive: none is written twice."""
        kept: deque[Any] = deque(maxlen=sets)
        numbers = cycle(range(sets))
        return lambda: kept.append(operation(next(numbers)))

    def on_gpu(self, call: Callable[[], Any], warm_up: int = 2) -> Microseconds:
        """And after how many the host was free for the next call: if as late as the GPU, it is what was measured."""
        for _ in range(warm_up):
            call()
        gpu, host = zip(*(self._round(call) for _ in range(self.effort.rounds)))
        return {"median": median(gpu), "min": min(gpu), "host": median(host)}

    def _round(self, call: Callable[[], Any]) -> tuple[float, float]:
        calls = self.effort.calls
        first, last = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        self.stream.synchronize()
        first.record(self.stream)
        start = time.perf_counter()
        for _ in range(calls):
            call()
        host = time.perf_counter() - start
        last.record(self.stream)
        last.synchronize()
        return 1e3 * self.cupy.cuda.get_elapsed_time(first, last) / calls, 1e6 * host / calls

    def on_host(self, call: Callable[[], Any]) -> Microseconds:
        """Of a call that does not wait for the GPU."""
        found = []
        for _ in range(self.effort.rounds + 1):
            self.stream.synchronize()
            start = time.perf_counter()
            for _ in range(self.effort.host_calls):
                call()
            found.append(1e6 * (time.perf_counter() - start) / self.effort.host_calls)
        self.stream.synchronize()
        return {"median": median(found[1:]), "min": min(found[1:])}

    def by_graph(self, call: Callable[[], Any]) -> Microseconds:
        """On the GPU alone, without the host between two calls: a graph of several calls, replayed."""
        calls = self.effort.calls
        warm = [call() for _ in range(calls)]  # the memory that the capture then finds in CuPy's pool
        del warm
        self.stream.begin_capture()
        try:
            outputs = [call() for _ in range(calls)]
        finally:
            graph = self.stream.end_capture()
        found = self.on_gpu(lambda: graph.launch(self.stream))
        del outputs  # the graph wrote there
        return {key: found[key] / calls for key in ("median", "min")}

    def copy_bandwidth(self) -> float:
        """GB/s, read and written, of cudaMemcpyAsync from device to device; the fastest round."""
        size, runtime = self.effort.copied, self.cupy.cuda.runtime
        source, target = self.cupy.zeros(size, "uint8"), self.cupy.zeros(size, "uint8")

        def copy() -> None:
            runtime.memcpyAsync(
                target.data.ptr, source.data.ptr, size, runtime.memcpyDeviceToDevice, self.stream.ptr
            )  # fmt: skip

        return 2e-3 * size / self.on_gpu(copy)["min"]

    def release(self) -> None:
        """Give the memory back that CuPy keeps, for those with a pool of their own."""
        self.stream.synchronize()
        self.cupy.get_default_memory_pool().free_all_blocks()
