"""Commits: a batch is folded into the running statistics and counted. O(C), float64.

Each kernel is one call that cannot fail: a signal arrives before it or after it, never in between.
"""

from __future__ import annotations

import math

import numpy as np

from nbnorm._channel_rows import DEVIATION, M2, ORIGIN
from nbnorm._cpu.finalize import count_of
from nbnorm._cpu.launch import Compiled
from nbnorm._cpu.vector import function, once, routine
from nbnorm._formulas import moving_average, pooled
from nbnorm._running import BATCHES, SAMPLES, SKIPPED

POOLED = -1.0  # the momentum of exact pooling, where a kernel does both


@function
def is_finite(stats):
    """Whether every channel has a mean and a variance that are numbers."""
    for c in range(stats.shape[1]):
        if not (math.isfinite(stats[ORIGIN, c] + stats[DEVIATION, c]) and math.isfinite(stats[M2, c])):
            return False
    return True


@routine
def samples_of(counters, samples, c):
    """How many values of channel c are in the running statistics."""
    result = float(counters[SAMPLES])
    if samples is not None:
        result = samples[c]
    return result


@once
def count_batch(counters, count):
    counters[BATCHES] += 1
    if count is not None:
        counters[SAMPLES] += np.int64(count)


@function
def fold_running(stats, count, momentum, ddof, both, counters, samples):
    """Eq. 9; `both` has the means and behind them the variances.

    `samples` are counters of each channel, or None; `count` is None when stats has counts of each channel.
    """
    C = stats.shape[1]
    mean, var = both[:C], both[C:]
    for c in range(C):
        mean[c] = moving_average(mean[c], stats[ORIGIN, c] + stats[DEVIATION, c], momentum)
        n = count_of(count, c, stats)
        var[c] = moving_average(var[c], stats[M2, c] / (n - ddof), momentum)
        if samples is not None:
            samples[c] += n
    count_batch(counters, count)


@function
def fold_pooled(stats, count, ddof, both, counters, samples):
    """The same with exact pooling of everything seen, Eq. 8."""
    C = stats.shape[1]
    mean, var = both[:C], both[C:]
    for c in range(C):
        seen, n = samples_of(counters, samples, c), count_of(count, c, stats)
        new = stats[ORIGIN, c] + stats[DEVIATION, c]
        mean[c], var[c] = pooled(seen, mean[c], var[c], n, new, stats[M2, c], ddof)
        if samples is not None:
            samples[c] += n
    count_batch(counters, count)


@Compiled
def commit_running(stats, count, momentum, ddof, both, counters, samples):
    fold_running(stats, count, momentum, ddof, both, counters, samples)


@Compiled
def commit_pooled(stats, count, ddof, both, counters, samples):
    fold_pooled(stats, count, ddof, both, counters, samples)


@Compiled
def commit_finite(stats, count, momentum, ddof, both, counters, samples):
    """Either of them, for a batch that is finite; another one is only counted. Apart, so that others do not pay."""
    if not is_finite(stats):
        counters[SKIPPED] += 1
    elif momentum == POOLED:
        fold_pooled(stats, count, ddof, both, counters, samples)
    else:
        fold_running(stats, count, momentum, ddof, both, counters, samples)
