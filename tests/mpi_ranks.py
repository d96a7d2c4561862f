"""What tests/test_parallel_mpi.py runs under mpiexec: python tests/mpi_ranks.py SCENARIO OUTPUT_DIRECTORY."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from tolerance import dtype_of

import nbnorm
from nbnorm.parallel import mpi

CUTS = {2: (400, 600), 3: (700, 300, 0)}
STEPS = 4


def data(dtype):
    """x and dy of each step, the same on every rank."""
    rng = np.random.default_rng(7)
    for _ in range(STEPS):
        x = rng.normal(1e4, 1, (1000, 6, 5)) * np.arange(1, 7)[:, None]
        yield x.astype(dtype_of(dtype)), (rng.normal(size=x.shape) + 0.5).astype(dtype_of(dtype))


def masks():
    """Which values of each step count, the same on every rank; each channel has its own number of them."""
    rng = np.random.default_rng(8)
    return [rng.random((1000, 6, 5)) < np.linspace(0.3, 0.9, 6)[:, None] for _ in range(STEPS)]


def train(dtype, whole=True, comm=None, masked=False):
    """Several steps of a shard, with gradient descent on gamma and beta. Arrays to compare."""
    rows = slice(None)
    sync = None
    if not whole:
        start = np.cumsum((0, *CUTS[comm.size]))
        rows, sync = slice(start[comm.rank], start[comm.rank + 1]), mpi.sync(comm)
    state = nbnorm.BatchNormState(6, dtype="float64")
    found = {}
    for i, (x, dy) in enumerate(data(dtype)):
        counting = {"where": masks()[i][rows]} if masked else {}
        y, saved = nbnorm.batch_norm_training(x[rows], state, sync=sync, **counting)
        dx, dgamma, dbeta = nbnorm.batch_norm_backward(dy[rows], saved)
        found |= {f"y{i}": y, f"dx{i}": dx, f"dgamma{i}": dgamma, f"dbeta{i}": dbeta, f"gamma{i}": state.gamma.copy()}
        _, dgamma, dbeta = nbnorm.batch_norm_backward(dy[rows], saved, param_grads="global")
        found |= {f"all_dgamma{i}": dgamma, f"all_dbeta{i}": dbeta}
        state.gamma -= 1e-4 * dgamma
        state.beta -= 1e-4 * dbeta
    counters = np.array([state.num_batches, *np.ravel(state.num_samples)])
    return found | {"running_mean": state.running_mean, "running_var": state.running_var, "counters": counters}


def training(comm, directory, dtype):
    arrays = train(dtype, False, comm)
    if dtype == "bfloat16":  # .npy has no name for it
        arrays = {name: a.view(np.uint16) if a.dtype.itemsize == 2 else a for name, a in arrays.items()}
    np.savez(directory / f"{comm.rank}.npz", **arrays)


def masked(comm, directory, dtype):
    np.savez(directory / f"{comm.rank}.npz", **train(dtype, False, comm, masked=True))


def failure(comm, directory, which):
    """The last rank has a wrong argument; afterwards all of them go on."""
    state = nbnorm.BatchNormState(3)
    x = np.arange(24.0).reshape(8, 3) * (comm.rank + 1)
    sync, last = mpi.sync(comm), comm.rank == comm.size - 1
    said = "nothing"
    try:
        if which == "forward":
            nbnorm.batch_norm_training(x.astype(int) if last else x, state, sync=sync)
        elif which == "values":
            nbnorm.batch_norm_training(x[: int(last)], state, sync=sync)
        else:
            _, saved = nbnorm.batch_norm_training(x, state, sync=sync, update_running=False)
            nbnorm.batch_norm_backward(x[:5] if last else x, saved)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    batches = state.num_batches
    nbnorm.batch_norm_training(x, state, sync=sync)
    (directory / f"{comm.rank}.txt").write_text(f"{said}\n{batches} {state.num_batches} {state.running_mean.tolist()}")


if __name__ == "__main__":
    from mpi4py import MPI

    scenario, _, option = sys.argv[1].partition(":")
    {"training": training, "masked": masked, "failure": failure}[scenario](MPI.COMM_WORLD, Path(sys.argv[2]), option)
