"""What a task of a graph does with its chunk: the stages of a batch in shards, on arrays. The graph is dask.py's.

`count` is the values per channel of the whole batch, a float, or an array of the channels where not every one counts.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbnorm import _device, _enough
from nbnorm._channel_rows import (
    COUNT,
    COUNTED_STATS,
    DEVIATION,
    DY_ORIGIN,
    M2,
    OFFSET,
    ORIGIN,
    PRODUCT,
    SHARD_SUMS,
    STATS,
    SUM,
)
from nbnorm._dispatch import kernels_for
from nbnorm._layout import layout_of
from nbnorm._moments import Moments
from nbnorm._which import counted

Axes = tuple[int, ...]
Nan = Literal["propagate", "omit"]


class Sums(NamedTuple):
    """What the backward pass has to know of some chunks: Eq. 17, s, p, h and e of each channel."""

    count: NDArray[np.float64] | float  # type: ignore[assignment]  # tuple.count, which nobody needs here
    s: NDArray[np.float64]
    p: NDArray[np.float64]
    h: NDArray[np.float64]
    e: NDArray[np.float64]


def with_counts(found: Moments) -> Moments:
    """With a count of each channel."""
    with _device.current(_device.of(found.m2)):
        return found._replace(count=_device.zeros_like(found.m2) + found.count)


def enough(found: Moments, first: Axes, shape: Axes) -> Moments:
    """The same, where no channel has a count of 0; `first` is the index of the first one among all."""
    empty = np.argwhere(_device.host(found.count) <= 0.0)
    if len(empty):
        index = tuple(int(i) + start for i, start in zip(empty[0], first, strict=True))
        _enough.counted(int(np.ravel_multi_index(index, shape)), 0.0, False, shape, weighted=False)
    return found


def normalized(
    x: NDArray, count: Any, origin: NDArray, deviation: NDArray, m2: NDArray, gamma: NDArray | None,
    beta: NDArray | None, axes: Axes, eps: float,
) -> NDArray:  # fmt: skip
    """y, from the statistics of the whole batch."""
    kernels = kernels_for("x", x)
    x = kernels.values("x", x)
    layout = layout_of(x, axes)
    with kernels.on_device_of(x):
        stats = _rows(kernels, Moments(count, origin, deviation, m2))
        y = kernels.xp.empty_like(x)
        target, flat = kernels.write(layout, y), kernels.read(layout, x)
        gamma, beta = _parameter(kernels, gamma, x), _parameter(kernels, beta, x)
        kernels.normalize(flat, target, layout.shape, gamma, beta, eps, _number(count), stats)
        kernels.finish(layout, target, y)
    return y


def gradient_sums(
    dy: NDArray, x: NDArray, where: NDArray | None, weights: NDArray | None, own: Moments, whole: Moments, axes: Axes,
    nan: Nan,
) -> Sums:  # fmt: skip
    """Those of a chunk, whose own moments are known from before."""
    kernels = kernels_for("x", x)
    x, dy = kernels.values("x", x), kernels.values("dy", dy)
    layout = layout_of(x, axes)
    with kernels.on_device_of(x):
        w = counted(kernels, layout, x, where, weights, nan)
        sums = kernels.xp.zeros((SHARD_SUMS, layout.shape[1]))
        kernels.gradient_sums(
            kernels.read(layout, dy), kernels.read(layout, x), layout.shape, _rows(kernels, whole),
            _rows(kernels, own), sums, _number(own.count), w,
        )  # fmt: skip
        return Sums(own.count, *(sums[row].reshape(own.m2.shape) for row in (SUM, PRODUCT, DY_ORIGIN, OFFSET)))


def merged_sums(*parts: Sums) -> Sums:
    """Those of several chunks together, Eq. 18, from left to right."""
    kernels = kernels_for("s", parts[0].s)
    with kernels.on_device_of(parts[0].s):
        xp, shape, C = kernels.xp, parts[0].s.shape, parts[0].s.size
        counts = np.stack([np.asarray(_device.host(part.count)).reshape(-1) for part in parts])
        # Rows as ranks send them, with a mark.
        gathered, sums = xp.zeros((len(parts), SHARD_SUMS * C + 1)), xp.zeros((SHARD_SUMS, C))
        for r, part in enumerate(parts):
            gathered[r, : SHARD_SUMS * C] = xp.concatenate([array.reshape(-1) for array in part[1:]])
        kernels.merge_gradient_sums(counts, gathered, sums)
        e = gathered[:, OFFSET * C : SHARD_SUMS * C].sum(0)
        count = sum(part.count for part in parts)
        s, p, h = (sums[row].reshape(shape) for row in (SUM, PRODUCT, DY_ORIGIN))
        return Sums(count, s, p, h, e.reshape(shape))


def whole_sums(sums: Sums) -> Sums:
    """Of all chunks: their e is 0."""
    with _device.current(_device.of(sums.s)):
        return sums._replace(e=_device.zeros_like(sums.e))


def parameter_gradients(sums: Sums, whole: Moments, count: float | None, like: NDArray, eps: float, dtype: Any) -> Any:
    """dgamma and dbeta; count is None where it is that of each channel. `like` is an empty array, as x."""
    kernels = kernels_for("x", like)
    like = kernels.values("x", like)
    with kernels.on_device_of(whole.m2):
        xp, shape = kernels.xp, whole.m2.shape
        found = whole if count is None else whole._replace(count=count)  # type: ignore[arg-type]
        stats = _finalized(kernels, kernels.read(layout_of(like, (1,)), like), found, None, eps)
        dgamma, dbeta = xp.empty(shape, dtype), xp.empty(shape, dtype)
        kernels.parameter_gradients(_sums(kernels, sums), count, stats, stats, dgamma, dbeta)
    return dgamma, dbeta


def gradient(
    dy: NDArray, x: NDArray, where: NDArray | None, weights: NDArray | None, count: Any, origin: NDArray,
    deviation: NDArray, m2: NDArray, gamma: NDArray | None, s: NDArray, p: NDArray, h: NDArray, axes: Axes, eps: float,
    nan: Nan,
) -> NDArray:  # fmt: skip
    """dx, from the sums and the statistics of the whole batch."""
    kernels = kernels_for("x", x)
    x, dy = kernels.values("x", x), kernels.values("dy", dy)
    layout = layout_of(x, axes)
    with kernels.on_device_of(x):
        w, flat = counted(kernels, layout, x, where, weights, nan), kernels.read(layout, x)
        stats = _finalized(kernels, flat, Moments(count, origin, deviation, m2), gamma, eps)
        sums = _sums(kernels, Sums(count, s, p, h, _device.zeros_like(h)))
        dx = kernels.xp.empty_like(x)
        target = kernels.write(layout, dx)
        kernels.apply_gradients(
            kernels.read(layout, dy), flat, target, layout.shape, stats, sums, _number(count), w
        )  # fmt: skip
        kernels.finish(layout, target, dx)
    return dx


def _number(count: Any) -> float | None:
    """Of all channels; None where each has its own."""
    return None if getattr(count, "ndim", 0) else float(count)


def _rows(kernels: ModuleType, found: Moments) -> NDArray:
    """Rows of `stats`, but for inv_std and gamma."""
    each = found.count if _number(found.count) is None else None
    stats = kernels.kept(kernels.xp.zeros((STATS if each is None else COUNTED_STATS, found.m2.size)))
    for row, values in ((ORIGIN, found.origin), (DEVIATION, found.deviation), (M2, found.m2), (COUNT, each)):
        if values is not None:
            stats[row] = values.reshape(-1)
    return stats


def _finalized(kernels: ModuleType, flat: NDArray, found: Moments, gamma: NDArray | None, eps: float) -> NDArray:
    """With inv_std and gamma, as the forward pass leaves them: it is run on nothing."""
    stats, none = _rows(kernels, found), flat[:0]
    gamma = _parameter(kernels, gamma, found.m2)
    kernels.normalize(none, none, (0, found.m2.size, 1), gamma, None, eps, _number(found.count), stats)
    return stats


def _parameter(kernels: ModuleType, values: NDArray | None, beside: NDArray) -> NDArray | None:
    """Of some channels, as kernels read it: on the device of `beside`, without the gaps of a part of all of them."""
    values = _device.moved(values, _device.of(beside))
    return None if values is None else kernels.xp.ascontiguousarray(values)


def _sums(kernels: ModuleType, sums: Sums) -> NDArray:
    """Rows of `sums`."""
    rows = kernels.kept(kernels.xp.empty((SHARD_SUMS, sums.s.size)))
    for row, values in zip((SUM, PRODUCT, DY_ORIGIN, OFFSET), sums[1:], strict=True):
        rows[row] = values.reshape(-1)
    return rows
