"""The stages on NumPy arrays: scratch memory, and the choice between the fused and the split driver.

Arrays come in as memory.py reads them: flat, contiguous, 16-bit floats as integers. `shape` is their (N, C, S).
gamma and beta may be None, stats has the rows that _channel_rows.py names, a column for each channel.
Everything that can fail has been checked by the caller.
"""

from __future__ import annotations

import numpy as np

from nbnorm._channel_rows import SIGN_SCALE, STATS, SUMS
from nbnorm._counted import Counted, channels_apart, in_rows, throughout
from nbnorm._cpu import plan
from nbnorm._cpu.coefficients import OF_ONE, OF_TWO, SCALE, A, B
from nbnorm._cpu.counted import first_short
from nbnorm._cpu.finalize import finalize, finalize_given, move_origins
from nbnorm._cpu.fused import fused_columns, fused_segments
from nbnorm._cpu.memory import Array
from nbnorm._cpu.passes import ABSENT, EVERY, apply, as_parameter, empty_coefficients, reduce, scratch_of_segments
from nbnorm._cpu.plan import Shape
from nbnorm._cpu.shards import normalize
from nbnorm._cpu.sums import terms_of
from nbnorm._cpu.threads import workers_for
from nbnorm._formulas import LOOKS
from nbnorm._running import Running


def training_forward(
    x: Array, y: Array, shape: Shape, gamma: Array | None, beta: Array | None, eps: float, stats: Array,
    w: Counted | None = None, running: Running | None = None, momentum: float | None = None,
    residual: Array | None = None, slope: float | None = None,
) -> bool:  # fmt: skip
    """y and stats from x: reduce, finalize, apply; with an activation and no residual those of `keep_signs` too.

    Returns False: `commit` has to fold the batch into `running`.
    """
    weighted = w is not None and w.weights is not None
    # y is written once where it takes the place of the residual, and so not before k is near.
    at_once = not weighted or residual is None or not np.may_share_memory(y, residual)
    if at_once:
        _fused_or_split(
            x, None, residual, slope, w, y, shape, stats, as_parameter(gamma), as_parameter(beta), None, None, eps
        )  # fmt: skip
    if weighted and (not at_once or _have_moved(x, stats)):
        _statistics(x, shape, stats, w, centred=not at_once)
        normalize(x, y, shape, gamma, beta, eps, None, stats, residual, slope)
    if slope is not None and residual is None:
        keep_signs(stats, gamma, beta, eps, plain_count(shape, w))
    return False


def batch_statistics(x: Array, shape: Shape, stats: Array, w: Counted | None = None) -> None:
    """stats of x, but for inv_std and gamma."""
    _statistics(x, shape, stats, w, centred=True)


def _statistics(x: Array, shape: Shape, stats: Array, w: Counted | None, centred: bool) -> None:
    """The same, of weighted values again until their origins are near; the first ones are there if not `centred`."""
    sums, coef = np.zeros((SUMS, shape[1])), np.empty((2, shape[1]))
    looks = 0 if w is None or w.weights is None else LOOKS
    while True:
        reduce(x, None, None, w, centred, shape, stats, sums)
        # eps does not matter: inv_std and coef are not used.
        finalize(None, stats, sums, ABSENT, ABSENT, None, None, 1.0, plain_count(shape, w), coef)
        if not looks or not _have_moved(x, stats):
            break
        looks, centred = looks - 1, False


def _have_moved(x: Array, stats: Array) -> bool:
    """Whether origins were so far from the mean that they are there now, and stats are to be found anew."""
    some = np.empty(1, np.bool_)
    move_origins(stats, x.itemsize < 8, some)
    return bool(some[0])


def short_channel(x: Array, shape: Shape, w: Counted, least: float) -> int | None:
    """The first channel whose values do not count more than `least` times in all."""
    N, C, S = shape[0], channels_apart(w, shape[1]), shape[2]
    answer = np.empty(1, np.int64)
    first_short(x, w, least, N, C, S, np.zeros(C), answer)
    return None if answer[0] == C else int(answer[0])


def keep_signs(stats: Array, gamma: Array | None, beta: Array | None, eps: float, count: float | None) -> None:
    """The map of x as numbers of stats, for a backward pass that asks for the sign of y; m2/count is the variance."""
    # These rows lie as in coef, of which only they are written: y is there already, so nothing may fail any more.
    finalize_given(stats, as_parameter(gamma), as_parameter(beta), eps, count, stats[SIGN_SCALE - SCALE :])


def backward(
    dy: Array, x: Array, dx: Array, shape: Shape, stats: Array, dgamma: Array | None, dbeta: Array | None,
    w: Counted | None = None, slope: float | None = None,
) -> None:  # fmt: skip
    """dx, and dgamma and dbeta where they are not None, from the stats of the forward pass."""
    _fused_or_split(
        x, dy, None, slope, w, dx, shape, stats, None, None, as_parameter(dgamma), as_parameter(dbeta), 0.0
    )  # fmt: skip


def residual_gradient(
    dy: Array, y: Array | None, x: Array, dresidual: Array, shape: Shape, slope: float | None, w: Counted | None
) -> None:  # fmt: skip
    """What of dy gets through the activation, which is known by the sign of y (no y: all), and 0 where x is missing."""
    stats, coef = np.zeros((STATS, shape[1])), np.zeros((OF_TWO, shape[1]))
    coef[A] = coef[B] = 1.0
    if y is not None:
        apply(y, dy, None, slope, EVERY, dresidual, shape, stats, coef)
        dy = dresidual
    if w is not None:
        apply(x, dy, None, None, w, dresidual, shape, stats, coef)


def plain_count(shape: Shape, w: Counted | None) -> float | None:
    """Values per channel; None when they are counted."""
    return float(shape[0] * shape[2]) if w is None else None


def _fused_or_split(
    x: Array, dy: Array | None, residual: Array | None, slope: float | None, w: Counted | None, y: Array, shape: Shape,
    stats: Array, gamma: Array | None, beta: Array | None, dgamma: Array | None, dbeta: Array | None, eps: float,
) -> None:  # fmt: skip
    """y and stats from x, gamma and beta; with dy an array dx, dgamma and dbeta. The other pair is None."""
    N, C, S = shape
    inputs = 1 if dy is None and residual is None else 2
    workers = workers_for((2 * inputs + 1) * x.size)
    nbytes = (inputs + 1) * x.nbytes
    streaming = plan.streams(nbytes)
    count, of_channels = plain_count(shape, w), (3 + (OF_ONE if dy is None else OF_TWO)) * C
    if plan.in_segments(S, in_rows(w, S)):
        cut = plan.segments(N, C, S, workers, one_by_one=w is not None and dy is not None)
        # Backwards it would be two arrays that are read twice.
        if plan.fits_cache(N, C, S, x.itemsize, workers) and (dy is not None or not plan.crowds(nbytes)):
            scratch, room = scratch_of_segments(terms_of(x, dy, w), C, cut, workers, of_channels)
            fused_segments(
                x, dy, residual, slope, w, y, stats, gamma, beta, dgamma, dbeta, eps, count, scratch, room, N, C, S,
                *cut, streaming, workers,
            )  # fmt: skip
            return
    else:
        blocks = plan.blocks(N, C, S, throughout(w, C, S), workers, streaming and w is None)
        if blocks is not None:
            channels, width, tile, rows = blocks
            terms = terms_of(x, dy, w)
            room = (2 * terms + (OF_ONE if dy is None else OF_TWO)) * width
            fused_columns(
                x, dy, residual, slope, w, y, stats, gamma, beta, dgamma, dbeta, eps, count,
                np.empty(of_channels + 7 + workers * room), room, terms, width, channels, N, C, S, tile,
                rows, streaming, workers,
            )  # fmt: skip
            return
    sums = np.zeros((SUMS, C))
    coef = empty_coefficients(x, dy, slope, w, stats)
    reduce(x, dy, None if dy is None else slope, w, True, shape, stats, sums)
    finalize(dy, stats, sums, gamma, beta, dgamma, dbeta, eps, count, coef)
    apply(x, dy, residual, slope, w, y, shape, stats, coef)
