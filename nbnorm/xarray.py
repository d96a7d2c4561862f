"""xarray: statistics and standardization of a DataArray or a Dataset over named dimensions. Needs the extra `xarray`.

Arrays of NumPy, CuPy and Dask; for Dask's the extra `dask` too.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from math import inf
from typing import Any, TypeVar

from numpy.typing import NDArray

from nbnorm import _device, _needed
from nbnorm._arguments import is_real
from nbnorm._batch_stats import BatchStats
from nbnorm._dispatch import kernels_for
from nbnorm._moments import Moments
from nbnorm._standardize import affine, dense, mean_and_rest, present_moments, scale_of, var_of

with _needed.package("nbnorm.xarray", 'pip install "xarray>=2025.1"'):
    import xarray as xr

    from nbnorm._data_arrays import (
        check,
        check_coordinates,
        checked_weights,
        is_lazy,
        plain,
        shown,
        weights_of,
    )

Data = TypeVar("Data", xr.DataArray, xr.Dataset)
Dim = Hashable | Iterable[Hashable]


def batch_stats(da: Data, dim: Dim, *, weights: xr.DataArray | None = None) -> BatchStats:
    """Count, mean and sum of squared deviations over `dim`, for every index of the other dimensions.

    Parameters
    ----------
    da : DataArray or Dataset
        Of real numbers. NaN is a missing value, and so is the NA of pandas' nullable dtypes.
    dim : str or iterable of str
        The dimensions to reduce, such as "time" or ("time", "lat", "lon"), or ``...`` for all; each other one is a
        channel dimension.
    weights : DataArray, optional
        How often values count: finite numbers, not negative, such as ``np.cos(np.deg2rad(da.lat)).clip(0)``. With some
        of the dimensions of da and its coordinates, and on its device; lazy only where da is. Where a variable of a
        Dataset has not a dimension of theirs that is reduced, their sums along it, in float64.

    Returns
    -------
    BatchStats
        Of DataArrays with the other dimensions and their coordinates; of Datasets for a Dataset, with the variables
        that `standardize` changes. Lazy where da is.

    Raises
    ------
    TypeError, ValueError
        When da is neither, or has no such dimension, or no real numbers; when weights is no DataArray of numbers, is
        lazy and da is not, or has a dimension or coordinates that da has not, or a value that is no weight, which of
        lazy weights shows when they are computed.

    Notes
    -----
    One pass over the values, two where one is NaN and there are no weights; a chunk, or what is on a disk, is read
    once. Where no value is there the count is 0 and the mean NaN; with weights the count is their sum. The mean is
    rounded to one float64, which `standardize` without `stats` does not do.

    Examples
    --------
    >>> import xarray as xr, nbnorm.xarray
    >>> da = xr.DataArray([[1.0, 5.0], [3.0, float("nan")]], dims=("time", "place"))
    >>> count, mean, m2 = nbnorm.xarray.batch_stats(da, "time")
    >>> mean.dims, count.values, mean.values, m2.values
    (('place',), array([2., 1.]), array([2., 5.]), array([2., 0.]))
    """
    names = _names(da, dim)
    _check_each(da, names)
    weights = checked_weights(da, weights)
    if isinstance(da, xr.Dataset):
        of_each = {name: weights_of(da[name], names, weights) for name in _standardized(da, names)}
        each = {name: _stats(da[name], names, of_one) for name, of_one in of_each.items()}
        return BatchStats(*(xr.Dataset({name: stats[i] for name, stats in each.items()}) for i in range(3)))
    return _stats(da, names, weights_of(da, names, weights))


def standardize(
    da: Data, dim: Dim, *, stats: BatchStats | None = None, weights: xr.DataArray | None = None
) -> Data:  # fmt: skip
    """(da - mean)/std over `dim`, with the mean and the standard deviation (ddof 0) at every index of the others.

    Parameters
    ----------
    da : DataArray or Dataset
        As in `batch_stats`.
    dim : str or iterable of str
        As in `batch_stats`. A variable of a Dataset is reduced over those of them that it has.
    stats : BatchStats, optional
        Those to use, of `batch_stats`, such as a training period's; da's own unless given. Lazy only where da is.
    weights : DataArray, optional
        As in `batch_stats`, for da's own statistics.

    Returns
    -------
    DataArray or Dataset
        As da, with name, attributes and coordinates, and lazy where da is. Integers become float64, pandas' nullable
        floats those of NumPy. Variables of a Dataset without these dimensions, and those that are no real numbers, are
        passed on as they are.

    Raises
    ------
    TypeError, ValueError
        As `batch_stats`; when stats has other dimensions or coordinates than da has beside `dim`, no real numbers, or
        is lazy and da is not; when both stats and weights are given.

    Notes
    -----
    What is constant becomes 0; its std is 1 here, and so is one of at most 2**-52 times the mean. NaN stays NaN. The
    mean is two numbers: float32 data lose nothing at any mean/std.
    Encodings, which say how to pack the values on disk, are dropped.

    Of a Dask array each chunk is read twice, once for the statistics and once for the result, and not kept in between;
    with `stats` once.

    Examples
    --------
    >>> import xarray as xr, nbnorm.xarray
    >>> da = xr.DataArray([[1.0, 5.0], [3.0, 5.0]], dims=("time", "place"), attrs={"units": "K"})
    >>> y = nbnorm.xarray.standardize(da, "time")
    >>> y.values, y.attrs
    (array([[-1.,  0.],
           [ 1.,  0.]]), {'units': 'K'})
    """
    if stats is not None and weights is not None:
        raise ValueError("weights and stats are both given; expected weights in the batch_stats that stats come from")
    return _each(da, dim, stats, weights, _forward)


def unstandardize(da: Data, dim: Dim, *, stats: BatchStats) -> Data:
    """da*std + mean: what `standardize` with these statistics made da of.

    Parameters
    ----------
    da : DataArray or Dataset
        Standardized, or anomalies that a model has predicted.
    dim : str or iterable of str
        As in `standardize`.
    stats : BatchStats
        Of `batch_stats`. Lazy only where da is.

    Returns
    -------
    DataArray or Dataset
        As `standardize` returns it.

    Raises
    ------
    TypeError, ValueError
        As `standardize`.

    Examples
    --------
    >>> import xarray as xr, nbnorm.xarray
    >>> da = xr.DataArray([1.0, 3.0, 8.0], dims="time")
    >>> stats = nbnorm.xarray.batch_stats(da, "time")
    >>> y = nbnorm.xarray.standardize(da, "time", stats=stats)
    >>> nbnorm.xarray.unstandardize(y, "time", stats=stats).values
    array([1., 3., 8.])
    """
    if stats is None:
        raise TypeError("stats is None; expected those of the data that were standardized, of batch_stats")
    return _each(da, dim, stats, None, _backward)


def _each(da: Data, dim: Dim, stats: BatchStats | None, weights: xr.DataArray | None, chunk: Any) -> Data:
    """A map of a DataArray, or of each variable of a Dataset that has the dimensions."""
    names = _names(da, dim)
    if stats is not None and not isinstance(stats, BatchStats):
        raise TypeError(f"stats is a {type(stats).__qualname__:.60}; expected what nbnorm.xarray.batch_stats returned")
    _check_each(da, names)
    weights = checked_weights(da, weights)
    if isinstance(da, xr.DataArray):
        return _mapped(da, names, stats, weights_of(da, names, weights), chunk)
    of_each = {name: weights_of(da[name], names, weights) for name in _standardized(da, names)}
    changed = {}
    for name, of_one in of_each.items():
        if stats is not None and not all(isinstance(part, xr.Dataset) and name in part for part in stats):
            raise ValueError(f"stats has no variable {name!r:.60}; expected those of batch_stats of such a Dataset")
        own = None if stats is None else BatchStats(*(part[name] for part in stats))  # type: ignore[call-overload]
        changed[name] = _mapped(da[name], names, own, of_one, chunk)
    return da.assign(changed)


def _names(da: Any, dim: Dim) -> tuple[Hashable, ...]:
    """The names of the dimensions to reduce, which are there."""
    if not isinstance(da, xr.DataArray | xr.Dataset):
        raise TypeError(f"da is a {type(da).__module__}.{type(da).__qualname__}; expected a DataArray or a Dataset")
    names = (dim,) if isinstance(dim, str) or not isinstance(dim, Iterable) else tuple(dim)
    if dim is ...:  # xarray's word for all
        names = tuple(da.dims)
    for name in names:
        try:
            hash(name)
        except TypeError as cause:
            kind = type(name).__qualname__
            raise TypeError(f"dim has a {kind:.60}; expected names of dimensions, such as 'time'") from cause
    if not names or not set(names) <= set(da.dims):
        raise ValueError(f"dim is {dim!r:.50}; expected some of the dimensions of da, {tuple(da.dims)!s:.60}")
    return names


def _check_each(da: Data, names: tuple[Hashable, ...]) -> None:
    """What is to be standardized, before anything is computed of it or of weights."""
    for one in [da] if isinstance(da, xr.DataArray) else [da[name] for name in _standardized(da, names)]:
        check(one, names)


def _standardized(ds: xr.Dataset, names: tuple[Hashable, ...]) -> list[Hashable]:
    """The variables of real numbers that have one of the dimensions."""
    return [name for name, da in ds.data_vars.items() if set(names) & set(da.dims) and is_real(da.dtype, inf)]


def _values(da: xr.DataArray, names: tuple[Hashable, ...]) -> tuple[Any, tuple[int, ...]]:
    """The array, with a channel axis in any case, and its channel axes."""
    x = plain(da)
    if not is_lazy(da):
        kernels_for("da.data", x)  # refuses arrays of other libraries, such as those with units
    axes = tuple(i for i, name in enumerate(da.dims) if name not in names)
    return (x, axes) if axes else (x[..., None], (x.ndim,))


def _moments(da: xr.DataArray, x: Any, axes: tuple[int, ...], weights: xr.DataArray | None) -> Moments:
    w = None
    if weights is not None:
        lengths = tuple(da.sizes[name] if name in weights.dims else 1 for name in da.dims)
        w = weights.data.reshape(lengths + (1,) * (x.ndim - da.ndim))
    if not is_lazy(da):
        return present_moments(x, axes, weights=w)
    from nbnorm.parallel._graph import cut_like, lazy_moments

    return lazy_moments(x, axes, present_moments, weights=cut_like(x, "weights", w))


def _stats(da: xr.DataArray, names: tuple[Hashable, ...], weights: xr.DataArray | None) -> BatchStats:
    x, axes = _values(da, names)
    found = _moments(da, x, axes, weights)
    dims = tuple(name for name in da.dims if name not in names)
    reduced = [name for name, coordinate in da.coords.items() if set(names) & set(coordinate.dims)]
    coords, shape = da.coords.to_dataset().drop_vars(reduced).coords, tuple(da.sizes[name] for name in dims)
    mean, _ = mean_and_rest(found)
    with _device.current(_device.of(found.m2)):
        count = _device.zeros_like(found.m2) + found.count  # of each channel
    arrays = (array.reshape(shape) for array in (count, mean, found.m2))
    return BatchStats(*(xr.DataArray(array, coords, dims, da.name) for array in arrays))


def _mapped(
    da: xr.DataArray, names: tuple[Hashable, ...], stats: BatchStats | None, weights: xr.DataArray | None, chunk: Any
) -> xr.DataArray:  # fmt: skip
    x, axes = _values(da, names)
    lazy, own = is_lazy(da), da.dtype.kind in "iu"  # integers have been converted: nobody else has x
    if not lazy:
        x, copied = dense(x)
        own = own or copied
    found = _moments(da, x, axes, weights) if stats is None else _given(da, names, stats, x, axes)
    if lazy:
        y = _lazy(x, axes, found, chunk, wait=stats is None)
    else:
        y = chunk(x, *found, axes=axes, out=x if own else None)
    result = da.copy(deep=False, data=y.reshape(da.shape))
    result.encoding = {}
    return result


def _given(da: xr.DataArray, names: tuple[Hashable, ...], stats: BatchStats, x: Any, axes: tuple[int, ...]) -> Moments:
    """The user's statistics, in the order of the dimensions of da."""
    dims = tuple(name for name in da.dims if name not in names)
    for part in stats:
        if not isinstance(part, xr.DataArray) or set(part.dims) != set(dims):
            found = part.dims if isinstance(part, xr.DataArray) else type(part).__qualname__
            raise ValueError(f"stats has {found!s:.60}; expected DataArrays with the dimensions {dims!s:.60}")
        if not is_real(part.dtype):
            raise TypeError(f"stats has dtype {part.dtype!s:.60}; expected real numbers, as batch_stats returns them")
        if is_lazy(part) and not is_lazy(da):
            raise TypeError(f"stats is lazy, but {shown(da)} is in memory; (stats,) = dask.compute(stats) computes it")
    check_coordinates("stats", stats, da)
    shape = tuple(x.shape[i] for i in axes)
    count, mean, m2 = (plain(part.transpose(*dims)).reshape(shape) for part in stats)
    with _device.current(_device.of(mean)):
        return Moments(count, mean, _device.zeros_like(mean), m2)


def _lazy(x: Any, axes: tuple[int, ...], found: Moments, chunk: Any, wait: bool) -> Any:
    """A task a chunk. With `wait` x is computed again after the statistics are known, instead of kept until then."""
    import dask.array

    from nbnorm.parallel._anew import anew

    index, native = tuple(range(x.ndim)), x.dtype.newbyteorder("=")
    of_channels: list[Any] = []
    for array in found:
        of_channels += [dask.array.asarray(array).rechunk(tuple(x.chunks[i] for i in axes)), axes]
    again = anew(x, of_channels[::2]) if wait else x
    return dask.array.blockwise(
        chunk, index, again, index, *of_channels, axes=axes, dtype=native, meta=x._meta.astype(native),
        align_arrays=False,  # as in parallel/_graph.py
    )  # fmt: skip


def _forward(
    x: NDArray, count: NDArray, origin: NDArray, deviation: NDArray, m2: NDArray, axes: tuple[int, ...],
    out: NDArray | None = None,
) -> NDArray:  # fmt: skip
    mean, rest = mean_and_rest(Moments(count, origin, deviation, m2))
    scale = scale_of(mean, var_of(count, m2, 0))
    with _device.current(_device.of(scale)):
        factor = 1 / scale
        rest = -rest * factor
    return affine(x, axes, mean, factor, rest, out)


def _backward(
    x: NDArray, count: NDArray, origin: NDArray, deviation: NDArray, m2: NDArray, axes: tuple[int, ...],
    out: NDArray | None = None,
) -> NDArray:  # fmt: skip
    mean, _ = mean_and_rest(Moments(count, origin, deviation, m2))
    return affine(x, axes, None, scale_of(mean, var_of(count, m2, 0)), mean, out)
