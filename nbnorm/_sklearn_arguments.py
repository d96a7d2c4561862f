"""What `nbnorm.sklearn.StandardScaler` is given, checked and as arrays; in scikit-learn's words where it has some."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_array

from nbnorm import _arguments, _device
from nbnorm._dispatch import kernels_for


def options(scaler: Any) -> None:
    """Those of the constructor, which is not to look at them."""
    for name in ("with_mean", "with_std", "copy"):
        flag(name, getattr(scaler, name))
    ddof: Any = scaler.ddof
    real = isinstance(ddof, numbers.Real)
    if not real or not 0 <= ddof < math.inf:
        raise ValueError(f"ddof is {ddof!r:.40}; expected a number, 0 or more")


def flag(name: str, value: object) -> None:
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} is {_arguments.short(value)}; expected True or False")


def values(X: Any, scaler: Any) -> NDArray:
    """X as an array of floats: itself if it is one."""
    if isinstance(X, np.ndarray) or _device.of(X) != "cpu":
        kernels_for("X", X)  # refuses masked arrays, whose mask would be ignored
    if (place := _device.of(X)) != "cpu":
        with _device.current(place):  # where CuPy puts what it makes
            return X.astype(np.float64) if X.dtype.kind in "biu" else X
    refuse_lazy("X", X, "partial_fit of each block, nbnorm.xarray, or X.compute()")
    native = X.dtype.newbyteorder("=") if isinstance(X, np.ndarray) and not X.dtype.isnative else None
    if native in _arguments.NATIVE:
        X = X.astype(native)  # of other bytes scikit-learn does not see that it is one of these kinds
    kinds: list[Any] = [np.float64, np.float32, np.float16]
    if getattr(getattr(X, "dtype", None), "name", None) == "bfloat16":
        kinds.append(X.dtype)
    return check_array(X, dtype=kinds, allow_nd=True, ensure_all_finite=False, estimator=scaler, input_name="X")


def refuse_lazy(name: str, array: Any, way_out: str) -> None:
    """NumPy would compute an array or a table of Dask, or one of xarray that has it inside."""
    if getattr(array, "__dask_graph__", None) is not None and array.__dask_graph__() is not None:
        kind = f"{type(array).__module__}.{type(array).__qualname__}"
        raise TypeError(f"{name} is lazy, a {kind:.80}; expected {way_out}")


def attribute(name: str, value: Any, option: str) -> NDArray:
    """As an array of real numbers."""
    if value is None:
        raise ValueError(f"{name} is None; expected a number for each channel, which fit() finds with {option}=True")
    if isinstance(value, np.ndarray) or _device.of(value) != "cpu":
        kernels_for(name, value)  # refuses masked arrays, whose mask would be ignored
    refuse_lazy(name, value, f"{name}.compute()")
    try:
        array = value if _device.of(value) != "cpu" else np.asarray(value)
        known = _arguments.is_real(array.dtype, math.inf)
    except ValueError:  # lists of different lengths
        known = False
    if not known:
        raise ValueError(f"{name} is {_arguments.short(value)}; expected a real number for each channel")
    with _device.current(_device.of(array)):
        return array.astype(np.float64, copy=False)  # of fewer digits 1/scale_ would have as few


def for_all(name: str, array: NDArray | None, channels: NDArray) -> NDArray | None:
    """Numbers of these channels; one may be that of all."""
    if array is None:
        return None
    place, shape = _device.of(channels), channels.shape
    _arguments.same_device(name, array, _device.of(array), place, "the scaler", "an array there")
    if array.shape == shape:
        return array
    if array.size != 1:
        raise ValueError(f"{name} has shape {array.shape!s:.60}; expected {shape!s:.60}, a number for each channel")
    return _device.library(place).broadcast_to(array.reshape(()), shape)


def channels_as(channels: NDArray, X: NDArray, axes: tuple[int, ...]) -> None:
    """X is where the statistics of these channels are, and has as many."""
    place = _device.of(channels)
    _arguments.same_device("X", X, _device.of(X), place, "the scaler", "an array there, or fit() again")
    found, expected = tuple(X.shape[i] for i in axes), channels.shape
    if found != expected:
        shown, number = (found[0], expected[0]) if len(found) == len(expected) == 1 else (found, expected)
        raise ValueError(
            f"X has {shown!s:.40} features, but StandardScaler is expecting {number!s:.40} features as input"
        )


def weights(sample_weight: Any, X: NDArray, axes: tuple[int, ...]) -> NDArray | None:
    """Weights along axis 0, as they broadcast to X."""
    if sample_weight is None:
        return None
    if 0 in axes:
        raise ValueError("sample_weight is along axis 0 of X, which is a channel axis here; expected None")
    if isinstance(sample_weight, numbers.Real):
        sample_weight = np.full(len(X), sample_weight, np.float64)
    refuse_lazy("sample_weight", sample_weight, "sample_weight.compute()")
    if _device.of(sample_weight) == "cpu":
        sample_weight = check_array(
            sample_weight, dtype=[np.float64, np.float32], ensure_2d=False, input_name="sample_weight"
        )
    if sample_weight.shape != X.shape[:1]:
        raise ValueError(f"sample_weight has shape {sample_weight.shape!s:.60}; expected {X.shape[:1]}, as axis 0 of X")
    along = sample_weight.reshape(-1, *(1,) * (X.ndim - 1))
    with _device.current(_device.of(along)):
        _arguments.weights(along, X, "sample_weight")
        some = bool(along.any())
    if not some:
        raise ValueError("sample_weight is zero everywhere; expected a weight that counts")
    return along
