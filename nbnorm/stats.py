"""Statistics by themselves: of an array, and of several arrays together."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nbnorm import _device
from nbnorm._arguments import short
from nbnorm._batch_stats import BatchStats
from nbnorm._dispatch import kernels_for
from nbnorm._formulas import merge
from nbnorm._layout import Axis
from nbnorm._moments import moments

_merge = getattr(merge, "py_func", merge)  # with NUMBA_DISABLE_JIT it is a plain function itself


def batch_stats(
    x: NDArray,
    *,
    axis: Axis = 1,
    where: NDArray | None = None,
    weights: NDArray | None = None,
    nan: Literal["propagate", "omit"] = "propagate",
) -> BatchStats:
    """Count, mean and sum of squared deviations of each channel.

    Parameters
    ----------
    x : array, shape (N, C, ...)
        At least 2-D; float16, bfloat16, float32 or float64; any memory layout.
    axis : int or tuple of int
        The channel axis of x.
    where, weights, nan
        Which values count, and how often, as in `batch_norm_training`.

    Returns
    -------
    BatchStats
        Of an empty batch, and of a channel in which no value counts: count 0, mean 0, m2 0. Where `where`, `weights` or
        ``nan="omit"`` are given, `count` has the shape of the channels: the sum of the weights.

    Raises
    ------
    TypeError, ValueError
        When x is of the wrong kind or dtype, or `axis`, `where` or `weights` do not fit it.

    Notes
    -----
    One read of x, float64 sums of x - k with k a value of the channel: no digits are lost when the mean is large. With
    weights more where that value is far from the mean, which is what others are then subtracted from.

    References
    ----------
    T. F. Chan, G. H. Golub and R. J. LeVeque, "Algorithms for computing the sample variance", The American Statistician
    37 (1983) 242-247.

    Examples
    --------
    >>> import numpy as np, nbnorm
    >>> nbnorm.batch_stats(np.array([[1.0, 5.0], [3.0, 5.0]]))
    BatchStats(count=array(2.), mean=array([2., 5.]), m2=array([2., 0.]))
    >>> nbnorm.batch_stats(np.array([[1.0, np.nan], [3.0, 5.0]]), nan="omit")
    BatchStats(count=array([2., 1.]), mean=array([2., 5.]), m2=array([2., 0.]))
    """
    return moments(x, axis, where, weights, nan).stats


def merge_stats(*stats: BatchStats) -> BatchStats:
    """The statistics of several batches as if they had been one.

    Parameters
    ----------
    *stats : BatchStats
        At least one. Counts may differ and may be 0.

    Returns
    -------
    BatchStats
        Merged from left to right: the same order gives the same bits.

    Raises
    ------
    TypeError
        When there is no argument, one is not a BatchStats of arrays of real numbers, or two are on different devices.
    ValueError
        When the numbers of channels differ, or on the CPU a count or m2 is negative.

    References
    ----------
    T. F. Chan, G. H. Golub and R. J. LeVeque, "Algorithms for computing the sample variance", The American Statistician
    37 (1983) 242-247.

    Examples
    --------
    >>> import numpy as np, nbnorm
    >>> parts = [nbnorm.batch_stats(np.array(rows)) for rows in ([[1.0], [2.0]], [[6.0]])]
    >>> nbnorm.merge_stats(*parts)
    BatchStats(count=array(3.), mean=array([3.]), m2=array([14.]))
    """
    if not stats:
        raise TypeError("merge_stats got no argument; expected at least one BatchStats")
    for i, one in enumerate(stats):
        if not isinstance(one, BatchStats):
            way_out = "; of a list: merge_stats(*stats)" if isinstance(one, list | tuple) else ""
            raise TypeError(f"argument {i} is a {type(one).__qualname__}; expected a BatchStats{way_out}")
        for name, part in zip(one._fields, one, strict=True):
            if hasattr(part, "shape") and not isinstance(part, np.generic):
                kernels_for(f"stats[{i}].{name}", part)  # refuses what is lazy, and labels, which would be ignored
                if not np.can_cast(part.dtype, np.float64, "same_kind"):
                    raise TypeError(f"stats[{i}].{name} has dtype {part.dtype!s:.60}; expected float64")
    device, *others = dict.fromkeys(_device.of(one.mean) for one in stats)
    if others:
        raise TypeError(
            f"some arguments are on {device} and some on {others[0]}; move them with cupy.asnumpy or cupy.asarray"
        )
    if device == "cpu":
        stats = tuple(BatchStats(*(np.array(part, np.float64) for part in one)) for one in stats)
    total: tuple[Any, ...] = stats[0]
    shape = stats[0].mean.shape
    for i, one in enumerate(stats):
        if one.mean.shape != shape:
            raise ValueError(f"argument {i} has channels of shape {short(one.mean.shape)}, argument 0 {short(shape)}")
        if not shape:
            raise ValueError(f"argument {i} has a mean of shape (); expected one of each channel")
        if one.m2.shape != shape or one.count.shape not in ((), shape):
            raise ValueError(
                f"argument {i} has count {short(one.count.shape)}, mean {short(shape)} and m2 {short(one.m2.shape)}; "
                "expected these shapes to be the same, that of count may be ()"
            )
        # On a GPU nobody waits for a look at the values.
        if device == "cpu" and not ((one.count >= 0) & (one.count < np.inf)).all():
            raise ValueError(f"stats[{i}].count has negative, infinite or NaN values; expected numbers of values")
        if device == "cpu" and (one.m2 < 0).any():
            raise ValueError(f"stats[{i}].m2 has negative values; expected sums of squares")
    with _device.current(device):
        for one in stats[1:]:
            total = _pooled(_device.library(device).where, total, one)
        return BatchStats(*(np.asarray(part) if device == "cpu" else part.copy() for part in total))


def _pooled(where: Any, a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
    """`_formulas.pool` for arrays, whose counts may differ by channel."""
    with np.errstate(all="ignore"):  # kernels do not warn either
        both = _merge(*a, *b)
    return tuple(where(b[0] == 0, x, where(a[0] == 0, y, z)) for x, y, z in zip(a, b, both, strict=True))
