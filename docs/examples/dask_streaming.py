"""Statistics and inference of an array that does not fit into memory: python docs/examples/dask_streaming.py

Two workers read a file in chunks. The statistics take one pass, the normalized copy another.
"""

import tempfile
from pathlib import Path

import dask
import dask.array as da
import numpy as np
from distributed import Client, LocalCluster

import nbnorm
import nbnorm.parallel.dask as nd

ROWS, CHANNELS, STEP = 200_000, 64, 20_000


def write(path: Path) -> None:
    file = np.lib.format.open_memmap(path, "w+", np.float32, (ROWS, CHANNELS))
    for start in range(0, ROWS, STEP):
        file[start : start + STEP] = np.random.default_rng(start).normal(5, 3, (STEP, CHANNELS))


def read(path: Path, block_info: dict) -> np.ndarray:
    """A chunk, in the worker: a memory map in the graph would be sent as a whole."""
    (start, stop), _ = block_info[None]["array-location"]
    return np.array(np.load(path, mmap_mode="r")[start:stop])


def main(path: Path) -> None:
    write(path)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(nd.NumbaThreads(1))  # a worker's threads run chunks, nbnorm's would come on top
        chunks = (STEP,) * (ROWS // STEP), (CHANNELS,)
        x = da.map_blocks(read, path, chunks=chunks, dtype=np.float32, meta=np.empty((0, 0), np.float32))

        state = nbnorm.BatchNormState(CHANNELS, momentum=None)
        (stats,) = dask.compute(nd.batch_stats(x))
        state.update(stats)

        y = nd.batch_norm_inference(x, state)
        mean, var = dask.compute(y.mean(0, dtype=np.float64), y.var(0, dtype=np.float64))
    print(f"{ROWS} rows: mean {state.running_mean.mean():.3f}, variance {state.running_var.mean():.3f}")
    print(f"normalized: means within {abs(mean).max():.1e} of 0, variances within {abs(var - 1).max():.1e} of 1")


if __name__ == "__main__":  # the workers import this file
    with tempfile.TemporaryDirectory() as directory:
        main(Path(directory) / "x.npy")
