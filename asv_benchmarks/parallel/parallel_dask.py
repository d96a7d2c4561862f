"""python asv_benchmarks/parallel/parallel_dask.py: the rate of Dask statistics, beside that of reading and summing
the chunks.

A file of 2 GB in chunks of 64 MB, two workers of one thread. Both read each chunk from the file (which the operating
system holds in memory after the first time, if it can); the plain one adds up its values in NumPy.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import dask
import dask.array as da
import numpy as np
from distributed import Client, LocalCluster

import nbnorm.parallel.dask as nd

CHANNELS = 64


def read(path: Path, block_info: dict) -> np.ndarray:
    (start, stop), _ = block_info[None]["array-location"]
    return np.array(np.load(path, mmap_mode="r")[start:stop])


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    step = (64 << 20) // (4 * CHANNELS)
    blocks = round(options.gigabytes * (1 << 30)) // (64 << 20)
    with (
        tempfile.TemporaryDirectory() as directory,
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(nd.NumbaThreads(1))
        path = Path(directory) / "x.npy"
        file = np.lib.format.open_memmap(path, "w+", np.float32, (blocks * step, CHANNELS))
        for i in range(blocks):
            file[i * step : (i + 1) * step] = np.random.default_rng(i).normal(5, 3, (step, CHANNELS))
        chunks = (step,) * blocks, (CHANNELS,)
        x = da.map_blocks(read, path, chunks=chunks, dtype=np.float32, meta=np.empty((0, 0), np.float32))
        ours, plain = (lambda: dask.compute(nd.batch_stats(x))), (lambda: x.sum(0).compute())
        ours(), plain()
        times = [(seconds(plain), seconds(ours)) for _ in range(options.rounds)]
    rates = [x.nbytes / 1e9 / statistics.median(column) for column in zip(*times, strict=True)]
    print(f"read and sum {rates[0]:.2f} GB/s, batch_stats {rates[1]:.2f} GB/s: {rates[1] / rates[0]:.2f} of it")


if __name__ == "__main__":
    main()
