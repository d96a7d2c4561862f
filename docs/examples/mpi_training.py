"""A batch spread over the ranks of MPI: mpiexec -n 2 python -m mpi4py docs/examples/mpi_training.py

Every rank has rows of its own, of any number; the result is that of one process with all rows.
"""

import numpy as np
from mpi4py import MPI

import nbnorm
from nbnorm.parallel import mpi

comm = MPI.COMM_WORLD
sync = mpi.sync(comm)
rng = np.random.default_rng(comm.rank)
rows = 500 + 100 * comm.rank  # shards need not be equal
state = nbnorm.BatchNormState(64)  # the same on every rank

for _step in range(20):
    x = rng.normal(5, 3, (rows, 64)).astype(np.float32)
    y, saved = nbnorm.batch_norm_training(x, state, sync=sync)
    dy = (y - 1).astype(np.float32) / rows  # of a loss that wants y to be 1
    dx, dgamma, dbeta = nbnorm.batch_norm_backward(dy, saved, param_grads="global")
    state.gamma -= 0.1 * dgamma  # everyone's gradients, so gamma stays the same on every rank
    state.beta -= 0.1 * dbeta

running = comm.gather((state.running_mean.tobytes(), state.running_var.tobytes(), state.num_samples), root=0)
if comm.rank == 0:
    assert len(set(running)) == 1
    print(f"{comm.size} ranks, {state.num_samples} rows: the running statistics have the same bits on all of them")
    print(f"beta, which began at 0, is {state.beta.mean():.2f}")
