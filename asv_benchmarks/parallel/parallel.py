"""mpiexec -n 2 python asv_benchmarks/parallel/parallel.py: what `sync` adds to a training step and its backward pass.

Each rank has its own shard; the step without `sync` is that of the shard alone. Medians over steps that take turns, so
that a busy machine disturbs both. Other programs on the machine disturb the messages most: measure on a quiet one.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
from mpi4py import MPI

import nbnorm
from nbnorm.parallel import mpi


def seconds(comm, x, dy, state, sync):
    """Of one step, from a common start."""
    comm.Barrier()
    start = time.perf_counter()
    _, saved = nbnorm.batch_norm_training(x, state, sync=sync)
    nbnorm.batch_norm_backward(dy, saved)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    comm = MPI.COMM_WORLD
    rng = np.random.default_rng(comm.rank)
    x, dy = (rng.normal(size=options.shape).astype(np.float32) for _ in range(2))
    state, sync = nbnorm.BatchNormState(options.shape[1]), mpi.sync(comm)
    taken = {"alone": [], "sync": []}
    for _ in range(options.steps + 20):
        taken["alone"].append(seconds(comm, x, dy, state, None))
        taken["sync"].append(seconds(comm, x, dy, state, sync))
    medians = {name: 1e6 * statistics.median(times[20:]) for name, times in taken.items()}
    if comm.rank == 0:
        print(
            f"{comm.size} ranks, shards of {tuple(options.shape)} float32, median of {options.steps} steps: "
            f"alone {medians['alone']:.0f} µs, with sync {medians['sync']:.0f} µs, "
            f"{medians['sync'] - medians['alone']:.0f} µs more"
        )


if __name__ == "__main__":
    main()
