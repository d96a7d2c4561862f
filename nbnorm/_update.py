"""`BatchNormState.update`: statistics that a user has, checked against the running ones that they are folded into."""

from __future__ import annotations

from nbnorm import _arguments, _device
from nbnorm._batch_stats import BatchStats
from nbnorm._dispatch import kernels_for
from nbnorm._running import Running


def fold_in(stats: BatchStats, running: Running, momentum: float | None) -> None:
    """A step of training with these statistics in the place of a batch.

    Raises
    ------
    TypeError, ValueError
        As `BatchNormState.update`; nothing has changed.
    """
    kernels = kernels_for("stats.mean", stats.mean)
    for name, array in (("stats.mean", stats.mean), ("stats.m2", stats.m2)):
        found = kernels_for(name, array).device(array)
        _arguments.same_device(name, array, found, _device.of(running.both), "the state", 'state.to("{found}")')
    if momentum is None:
        running.demand_count()
    count = _arguments.statistics(stats, running.mean.shape, momentum)
    if momentum is None and count is None:
        running.demand_variance(stats.count, stats.m2)
    running.update(kernels, momentum, stats, count)
