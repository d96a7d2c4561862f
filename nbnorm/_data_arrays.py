"""DataArrays: what is checked of them, the arrays that they hold, and their weights. xarray is there."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from nbnorm import _arguments, _device
from nbnorm._arguments import short

MOST_AXES = 64  # of an array of NumPy; that of the channels is one more, where all have been reduced


def shown(da: xr.DataArray | xr.Dataset) -> str:
    """Its name in an error."""
    name = None if isinstance(da, xr.Dataset) else da.name
    return "da" if name is None else f"da ({short(name)})"


def check(da: xr.DataArray, names: tuple[Hashable, ...]) -> None:
    """Real numbers, in chunks of known sizes if in any, with room for a channel axis."""
    if not _arguments.is_real(da.dtype):
        raise TypeError(f"{shown(da)} has dtype {da.dtype!s:.60}; expected integers or floats of at most 64 bits")
    if da.ndim == MOST_AXES and set(da.dims) <= set(names):
        raise ValueError(
            f"{shown(da)} has {da.ndim} dimensions, all of them to be reduced; expected at most {MOST_AXES - 1},"
            " such as da.squeeze()"
        )
    if is_lazy(da):
        _refuse_unknown_sizes("da.data", da.data)


def plain(da: xr.DataArray) -> Any:
    """The array; of pandas' dtypes, whose NA becomes NaN, and of integers one of NumPy's floats."""
    is_numpys, data = isinstance(da.dtype, np.dtype), da.data  # once: what is on a disk is read for it
    if is_numpys and da.dtype.kind not in "iu":
        return data
    with _device.current(_device.of(data)):
        return data.astype(np.float64 if is_numpys or da.dtype.kind != "f" else f"f{da.dtype.itemsize}")


def checked_weights(da: xr.DataArray | xr.Dataset, weights: xr.DataArray | None) -> xr.DataArray | None:
    """Weights of da as a whole, before a variable takes its part of them. Their values are looked at later."""
    if weights is None:
        return None
    if not isinstance(weights, xr.DataArray):
        raise TypeError(f"weights is a {type(weights).__qualname__:.60}; expected a DataArray with dimensions of da")
    if weights.dtype.kind == "b":
        raise TypeError("weights has dtype bool; expected numbers (da.where(weights) makes the other values missing)")
    _arguments.real("weights", weights.dtype)
    if lazy := is_lazy(weights):
        _refuse_unknown_sizes("weights.data", weights.data)
    check_coordinates("weights", [weights], da)
    if lazy:
        return weights
    # Each variable takes a copy, and copies do not share what they have read from a disk: it is read here.
    data = weights.data if isinstance(weights.dtype, np.dtype) else plain(weights)
    return weights.copy(deep=False, data=data)


def weights_of(da: xr.DataArray, names: tuple[Hashable, ...], weights: xr.DataArray | None) -> xr.DataArray | None:
    """The weights with dimensions of da alone, in their order: along others, which are reduced, their sum."""
    if weights is None:
        return None
    if is_lazy(weights) and not is_lazy(da):
        raise TypeError(f"weights is lazy, but {shown(da)} is in memory; expected weights.compute(), or a lazy da")
    other = [name for name in weights.dims if name not in da.dims]
    if kept := [name for name in other if name not in names]:
        raise ValueError(
            f"weights has dimension {short(kept[0])}, which neither {shown(da)} has nor dim; expected"
            f" some of {short(da.dims)}"
        )
    if other:
        weights = _sums(weights, other)
    return weights.transpose(*(name for name in da.dims if name in weights.dims))


def _sums(weights: xr.DataArray, dims: list[Hashable]) -> xr.DataArray:
    """Along these dimensions, in float64, after a look at each weight: a sum may hide one that is none."""
    data, size = weights.data, weights.size
    with _device.current(_device.of(data)):
        if is_lazy(weights):
            data = data.map_blocks(_looked_at, size, meta=data._meta.astype(np.float64))
        else:
            data = _looked_at(data, size)
        return weights.copy(data=data).sum(dims, skipna=False)


def _looked_at(block: NDArray, size: int) -> NDArray[np.float64]:
    with _device.current(_device.of(block)):
        _arguments.values_of_weights(block, size)
        return block.astype(np.float64)


def check_coordinates(name: str, arrays: Iterable[Any], da: xr.DataArray | xr.Dataset) -> None:
    try:
        xr.align(da, *arrays, join="exact", copy=False)
    except ValueError as cause:
        raise ValueError(f"{name} has other coordinates or sizes than {shown(da)}; expected the same") from cause


def is_lazy(da: xr.DataArray) -> bool:
    """Whether it is an array of Dask. What is on a disk, which has no chunks, is not read for this question."""
    return da.chunks is not None and type(da.data).__module__.split(".")[0] == "dask"


def _refuse_unknown_sizes(name: str, x: Any) -> None:
    from nbnorm.parallel._graph import refuse_unknown_sizes

    refuse_unknown_sizes(name, x)
