"""`BatchNormState.update`: statistics that a user has, checked against the running ones that they are folded into."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from nbnorm import _device
from nbnorm._arguments import short
from nbnorm._batch_stats import BatchStats
from nbnorm._dispatch import kernels_for, kernels_on
from nbnorm._running import Running

MOST = 2.0**53  # beyond, not every whole number is a float64


def fold_in(stats: BatchStats, running: Running, momentum: float | None) -> None:
    """A step of training with these statistics in the place of a batch.

    Raises
    ------
    TypeError, ValueError
        As `BatchNormState.update`; nothing has changed.
    """
    kernels = kernels_for("stats.mean", stats.mean)
    of_each = (("stats.count", stats.count),) if getattr(stats.count, "ndim", 0) else ()
    for name, array in (("stats.mean", stats.mean), ("stats.m2", stats.m2), *of_each):
        kernels_on(name, array, _device.of(running.both), "the state", 'state.to("{found}")')
    if momentum is None:
        running.demand_count()
    with kernels.on_device_of(stats.mean):
        count = _count_of(stats, running.mean.shape, momentum)
        if momentum is None and count is None:
            running.demand_variance("stats", stats.count, stats.m2)
        each = None if count is not None else stats.count.reshape(-1)
        batch = kernels.stats_of(stats.mean.reshape(-1), stats.m2.reshape(-1), each)
        kernels.commit(running, momentum, batch, count)


def _count_of(stats: BatchStats, shape: tuple[int, ...], momentum: float | None) -> float | None:
    """The count of statistics that running ones of this shape can take; None when it has one for each channel."""
    for name, found in (("mean", stats.mean), ("m2", stats.m2)):
        if found.shape != shape:
            raise ValueError(f"stats.{name} has shape {short(found.shape)}; expected {short(shape)}, as the state")
        if not np.can_cast(found.dtype, np.float64, "same_kind"):
            raise TypeError(f"stats.{name} has dtype {found.dtype}; expected float64")
    if (stats.m2 < 0).any():
        raise ValueError("stats.m2 has negative values; expected sums of squares")
    if getattr(stats.count, "ndim", 0):
        _check_counts(stats.count, shape, momentum)
        return None
    try:
        count = float(stats.count)
    except (TypeError, ValueError):
        kind = type(stats.count).__qualname__
        raise TypeError(f"stats.count is a {kind}; expected a number, or an array of the channels") from None
    if not (0 <= count <= MOST and count.is_integer()):
        raise ValueError(f"stats.count is {count:g}; expected the number of values per channel, at most 2**53")
    if momentum is not None and count < 2:
        raise ValueError(
            f"stats has {count:g} values per channel; a moving average needs at least 2, momentum=None takes any number"
        )
    return count


def _check_counts(counts: NDArray, shape: tuple[int, ...], momentum: float | None) -> None:
    """How often values of each channel count."""
    if counts.shape != shape or not np.can_cast(counts.dtype, np.float64, "same_kind"):
        raise ValueError(
            f"stats.count is {counts.dtype} of shape {short(counts.shape)}; "
            f"expected float64 of shape () or {short(shape)}"
        )
    if not ((counts >= 0) & (counts < math.inf)).all():
        raise ValueError("stats.count has negative, infinite or NaN values; expected how often values count")
    if momentum is not None and not (counts > 1).all():
        raise ValueError(
            f"stats has a channel whose values count {float(counts.min()):g} times in all; a moving average needs more "
            "than 1: larger weights, which are frequencies, or momentum=None, for whole values"
        )
