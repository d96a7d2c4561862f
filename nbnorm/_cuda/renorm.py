"""Batch renormalization: gamma and beta that correct the statistics of a batch (docs/math.md, Eq. 36 to 38). O(C).

A thread works on one channel.
"""

from __future__ import annotations

from nbnorm._channel_rows import CORRECTED_BETA, CORRECTED_GAMMA, DEVIATION, M2, ORIGIN, PLAIN_GAMMA, D, R
from nbnorm._cuda.finalize import divisor_of, parameter
from nbnorm._cuda.kinds import F64, Array, kind
from nbnorm._cuda.launch import Kernel, cuda, pointer
from nbnorm._cuda.passes import by_channel, count_or_unknown
from nbnorm._formulas import corrected, corrected_dgamma, corrections, moved, standard_deviation
from nbnorm._running import Running


@Kernel
def correct(stats, gamma, beta, mean, var, rows, C, eps, count, rmax, dmax):
    c = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if c < C:
        std = standard_deviation(stats[M2 * C + c] / divisor_of(count, c, C, stats), eps)
        offset = moved(stats[ORIGIN * C + c], stats[DEVIATION * C + c], mean[c])
        r, d = corrections(offset, std, standard_deviation(var[c], eps), rmax, dmax)
        plain = parameter(gamma, c, 1.0)
        rows[R * C + c], rows[D * C + c], rows[PLAIN_GAMMA * C + c] = r, d, plain
        new_gamma, new_beta = corrected(plain, parameter(beta, c, 0.0), r, d)
        rows[CORRECTED_GAMMA * C + c], rows[CORRECTED_BETA * C + c] = new_gamma, new_beta


@Kernel
def correct_gradients(rows, sums, dgamma, dbeta, C):
    c = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if c < C:
        if dgamma is not None:
            dgamma[c] = corrected_dgamma(rows[R * C + c], rows[D * C + c], sums[c], sums[C + c])
        if dbeta is not None:
            dbeta[c] = sums[C + c]


def renormalize(
    stats: Array, gamma: Array | None, beta: Array | None, eps: float, count: float | None, running: Running,
    rmax: float, dmax: float, rows: Array,
) -> None:  # fmt: skip
    """rows (5, C) from the mean and m2 of the batch and from the running statistics."""
    C = stats.shape[1]
    correct(
        *by_channel(C), (F64, kind(gamma), kind(beta), F64, F64, F64),
        pointer(stats), pointer(gamma), pointer(beta), pointer(running.mean), pointer(running.var), pointer(rows),
        C, eps, count_or_unknown(count), rmax, dmax,
    )  # fmt: skip


def renormalized_gradients(rows: Array, sums: Array, dgamma: Array | None, dbeta: Array | None) -> None:
    """dgamma and dbeta, where not None, from sums (2, C) of dy times the plain x_hat and of dy."""
    C = rows.shape[1]
    correct_gradients(
        *by_channel(C), (F64, F64, kind(dgamma), kind(dbeta)),
        pointer(rows), pointer(sums), pointer(dgamma), pointer(dbeta), C,
    )  # fmt: skip
