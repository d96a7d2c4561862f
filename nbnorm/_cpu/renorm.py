"""Batch renormalization: gamma and beta that correct the statistics of a batch (docs/math.md, Eq. 36 to 38). O(C)."""

from __future__ import annotations

from nbnorm._channel_rows import CORRECTED_BETA, CORRECTED_GAMMA, DEVIATION, M2, ORIGIN, PLAIN_GAMMA, D, R
from nbnorm._cpu.finalize import divisor_of, parameter, set_parameter
from nbnorm._cpu.launch import Compiled
from nbnorm._cpu.memory import Array
from nbnorm._cpu.passes import as_parameter
from nbnorm._formulas import corrected, corrected_dgamma, corrections, moved, standard_deviation
from nbnorm._running import Running, copied


@Compiled
def correct(stats, both, gamma, beta, eps, count, rmax, dmax, rows):
    C = stats.shape[1]
    for c in range(C):
        std = standard_deviation(stats[M2, c] / divisor_of(count, c, stats), eps)
        offset = moved(stats[ORIGIN, c], stats[DEVIATION, c], both[c])
        r, d = corrections(offset, std, standard_deviation(both[C + c], eps), rmax, dmax)
        plain = parameter(gamma, c, C, 1.0)
        rows[R, c], rows[D, c], rows[PLAIN_GAMMA, c] = r, d, plain
        rows[CORRECTED_GAMMA, c], rows[CORRECTED_BETA, c] = corrected(plain, parameter(beta, c, C, 0.0), r, d)


@Compiled
def correct_gradients(rows, sums, dgamma, dbeta):
    C = rows.shape[1]
    for c in range(C):
        set_parameter(dgamma, c, C, corrected_dgamma(rows[R, c], rows[D, c], sums[0, c], sums[1, c]))
        set_parameter(dbeta, c, C, sums[1, c])


def renormalize(
    stats: Array, gamma: Array | None, beta: Array | None, eps: float, count: float | None, running: Running,
    rmax: float, dmax: float, rows: Array,
) -> None:  # fmt: skip
    """rows (5, C) from the mean and m2 of the batch and from the running statistics."""
    correct(stats, copied(running.both), as_parameter(gamma), as_parameter(beta), eps, count, rmax, dmax, rows)


def renormalized_gradients(rows: Array, sums: Array, dgamma: Array | None, dbeta: Array | None) -> None:
    """dgamma and dbeta, where not None, from sums (2, C) of dy times the plain x_hat and of dy."""
    correct_gradients(rows, sums, as_parameter(dgamma), as_parameter(dbeta))
