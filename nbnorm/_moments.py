"""Statistics whose mean is two numbers: what is merged, or subtracted again, without a digit lost at any mean/std."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbnorm import _arguments, _device
from nbnorm._batch_stats import BatchStats
from nbnorm._channel_rows import COUNT, COUNTED_STATS, DEVIATION, M2, ORIGIN, STATS
from nbnorm._dispatch import kernels_for
from nbnorm._layout import Axis, layout_of
from nbnorm._running import Running
from nbnorm._which import counted


class Moments(NamedTuple):
    """As `BatchStats`, but that the mean is origin + deviation, not added up; the origin is near it."""

    count: NDArray[np.float64]  # type: ignore[assignment]  # tuple.count, which nobody needs here
    origin: NDArray[np.float64]
    deviation: NDArray[np.float64]
    m2: NDArray[np.float64]

    @property
    def stats(self) -> BatchStats:
        with _device.current(_device.of(self.m2)):
            return BatchStats(self.count, self.origin + self.deviation, self.m2)


def moments(
    x: NDArray,
    axis: Axis,
    where: NDArray | None = None,
    weights: NDArray | None = None,
    nan: Literal["propagate", "omit"] = "propagate",
) -> Moments:
    """What `batch_stats`, which has the arguments, is made of."""
    kernels = kernels_for("x", x)
    x = kernels.values("x", x)
    axes = _arguments.channels(x.shape, axis)
    layout = layout_of(x, axes)
    N, C, S = layout.shape
    shape = tuple(x.shape[i] for i in axes)
    with kernels.on_device_of(x):
        xp = kernels.xp
        w = counted(kernels, layout, x, where, weights, nan)
        stats = (xp.empty if x.size else xp.zeros)((STATS if w is None else COUNTED_STATS, C))
        if x.size:
            kernels.batch_statistics(kernels.read(layout, x), layout.shape, stats, w)
        count = xp.full((), float(N * S)) if w is None else stats[COUNT].reshape(shape)
        return Moments(count, *(stats[row].reshape(shape) for row in (ORIGIN, DEVIATION, M2)))


def of_running(running: Running) -> Moments:
    """Those that running statistics are of, as far as these tell: a variance of no more than ddof values is lost."""
    device, ddof = _device.of(running.both), int(running.ddof)
    with _device.current(device):
        xp, count = _device.library(device), running.num_samples()
        if isinstance(count, int):
            count = xp.full((), float(count))
        m2 = xp.where(count > ddof, running.var * (count - ddof), 0.0)
        return Moments(count, running.mean.copy(), xp.zeros(m2.shape), m2)


def merged(*parts: Moments) -> Moments:
    """Those of several batches as if they had been one, from left to right, as shards are merged (Eq. 16 and 8)."""
    shape = parts[0].m2.shape
    kernels = kernels_for("origin", parts[0].origin)
    with kernels.on_device_of(parts[0].origin):
        xp, C = kernels.xp, parts[0].m2.size
        alike = all(part.count.ndim == 0 for part in parts)
        counts = np.empty((len(parts), 1 if alike else C))
        gathered, stats = xp.empty((len(parts), 3 * C)), xp.empty((COUNTED_STATS, C))
        for r, part in enumerate(parts):
            counts[r] = _device.host(part.count).reshape(-1)
            for row, values in zip((ORIGIN, DEVIATION, M2), part[1:]):
                gathered[r, row * C : (row + 1) * C] = values.reshape(-1)
        kernels.merge_statistics(counts, gathered, stats)
        count = xp.full((), float(counts.sum())) if alike else stats[COUNT].reshape(shape)
        return Moments(count, *(stats[row].reshape(shape) for row in (ORIGIN, DEVIATION, M2)))
