"""Commits: a batch is folded into the running statistics and counted. O(C), float64.

By the kernels of apply.py and fused.py on the way, or by one of its own.
"""

from __future__ import annotations

import math

from nbnorm._channel_rows import DEVIATION, M2, ORIGIN
from nbnorm._cuda.finalize import UNKNOWN, count_of
from nbnorm._cuda.launch import Kernel, cuda
from nbnorm._cuda.vector import routine
from nbnorm._formulas import moving_average, pooled
from nbnorm._running import BATCHES, SAMPLES, SKIPPED

POOLED = -1.0  # the momentum of exact pooling


@routine
def known_running(c, mean, var):
    """The running statistics of channel c as they are; 0 without any."""
    old_mean, old_var = 0.0, 0.0
    if mean is not None:
        old_mean, old_var = mean[c], var[c]
    return old_mean, old_var


@routine
def commit_channel(c, n, new, m2, seen, old, mean, var, momentum, ddof):
    """Fold a batch of n values of channel c, of these mean and m2, into the `old` statistics of `seen` values, Eq. 9 or
    8.
    """
    old_mean, old_var = old
    if momentum == POOLED:
        mean[c], var[c] = pooled(seen, old_mean, old_var, n, new, m2, ddof)
    else:
        mean[c] = moving_average(old_mean, new, momentum)
        var[c] = moving_average(old_var, m2 / (n - ddof), momentum)


@routine
def commit_first(c, first, new, m2, seen, old, mean, var, counters, momentum, ddof, count):
    """The same by the `first` thread of each channel, and once the counters; nothing without running statistics.

    Other blocks may be faster: `seen` is not what the counters have by now.
    """
    if mean is not None:  # noqa: SIM102  the compiler prunes what stands under a test of None and nothing else
        if first:
            commit_channel(c, count, new, m2, seen, old, mean, var, momentum, ddof)
            if c == 0:
                counters[BATCHES] += 1
                counters[SAMPLES] += int(count)


@Kernel
def commit_batch(stats, mean, var, counters, samples, C, skip_nonfinite, count, momentum, ddof):
    """The one block: fold a batch into the running statistics and count it.

    For what apply.py does not do on the way: a batch that may have to stay out, `samples` that count for each channel,
    shards.
    """
    t, T = cuda.threadIdx.x, cuda.blockDim.x
    seen, bad = float(counters[SAMPLES]), 0
    if skip_nonfinite:
        for c in range(t, C, T):
            new, m2 = stats[ORIGIN * C + c] + stats[DEVIATION * C + c], stats[M2 * C + c]
            if not (math.isfinite(new) and math.isfinite(m2)):
                bad = 1
    bad = cuda.syncthreads_or(bad)  # every thread has read the count
    if not bad:
        for c in range(t, C, T):
            n = count_of(count, c, C, stats)
            if samples is not None:
                seen = samples[c]
                samples[c] = seen + n
            new, m2 = stats[ORIGIN * C + c] + stats[DEVIATION * C + c], stats[M2 * C + c]
            commit_channel(c, n, new, m2, seen, known_running(c, mean, var), mean, var, momentum, ddof)
    if t == 0:
        if bad:
            counters[SKIPPED] += 1
        else:
            counters[BATCHES] += 1
            if count != UNKNOWN:
                counters[SAMPLES] += int(count)
