"""Calls beside other busy processes: two threads with libgomp's waiting and with ours, and one thread.

    python asv_benchmarks/parallel/busy.py [neighbours, 2]

Each way of waiting in a process of its own, in turn, three rounds; the numbers of one line are of the same seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

SHAPES = ((32, 64, 7, 7), (32, 64, 28, 28), (65_536, 64))
WAYS = {
    "one thread": {"NUMBA_NUM_THREADS": "1"},
    "nbnorm's waiting": {},
    "libgomp's own": {"GOMP_SPINCOUNT": "300000"},  # its default, said, so that nbnorm leaves it
    "passive": {"OMP_WAIT_POLICY": "passive"},
}
ROUNDS, SECONDS = 3, 1.0


def median_us(shape: tuple[int, ...]) -> float:
    """Median microseconds of a training call with its output given."""
    import numpy as np

    import nbnorm

    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    state, y, times = nbnorm.BatchNormState(shape[1]), np.empty_like(x), []
    for _ in range(20):
        nbnorm.batch_norm_training(x, state, out=y)
    end = time.perf_counter() + SECONDS
    while (start := time.perf_counter()) < end:
        nbnorm.batch_norm_training(x, state, out=y)
        times.append(time.perf_counter() - start)
    return 1e6 * float(np.median(times))


def beside(neighbours: int) -> None:
    """Print a table of medians while so many processes compute."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(neighbours)]
    own = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    try:
        print(f"{neighbours} busy neighbours, {os.cpu_count()} processors; median us of a training call, float32")
        print(f"{'':20}" + "".join(f"{way:>18}" for way in WAYS))
        for shape in SHAPES:
            for _ in range(ROUNDS):
                line = f"{shape!s:20}"
                for environment in WAYS.values():
                    command = [sys.executable, __file__, "measure", *map(str, shape)]
                    line += f"{float(subprocess.check_output(command, env={**own, **environment})):18.0f}"
                print(line, flush=True)
    finally:
        for loop in loops:
            loop.kill()


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        print(median_us(tuple(map(int, sys.argv[2:]))))
    else:
        beside(int(sys.argv[1]) if sys.argv[1:] else 2)
