"""Arrays and numbers of other libraries, as they come in dictionaries, files and assignments."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_numpy(name: str, value: Any) -> NDArray:
    """What NumPy can read, directly or through DLPack: a list, a Series, a tensor that needs a gradient or not.

    Raises
    ------
    TypeError
        When NumPy cannot read it, as when it is on a GPU: nothing moves by itself.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be ignored; pass {name}.filled(value)")
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    try:
        if hasattr(value, "detach"):  # PyTorch's, which otherwise refuses where a gradient is needed
            value = value.detach()
        if str(getattr(value, "dtype", None)) == "torch.bfloat16":  # which NumPy lacks; float32 has all its values
            value = value.float()
        through_dlpack = hasattr(value, "__dlpack__") and not hasattr(value, "__array__")
        array = np.from_dlpack(value) if through_dlpack else np.asarray(value)
    except Exception as cause:
        raise TypeError(f"{name} is a {kind:.60}, which NumPy cannot read; pass a numpy.ndarray of it") from cause
    if array.dtype == object:
        raise TypeError(f"{name} is a {kind:.60} with dtype object; expected numbers")
    return array


MOST = 2**62  # so that no batch, nor all there will be, carries a counter beyond int64


def counts_of_values(name: str, value: Any, shape: tuple[int, ...] | None) -> int | NDArray[np.float64]:
    """Values per channel: one whole number, or with a shape also an array of it, of finite numbers, 0 or more.

    Raises
    ------
    ValueError
        When it is anything else.
    """
    if shape is None or np.shape(value) != shape:
        return counter(name, value)
    array = to_numpy(name, value)
    if array.dtype.kind not in "iuf" or not (np.isfinite(array) & (array >= 0)).all():
        raise ValueError(f"{name} has values that are negative or not finite; expected how often values count")
    return array.astype(np.float64)


def counter(name: str, value: Any) -> int:
    """One whole number from 0 to MOST, in whatever form: a number, or an array of one, of integers or floats.

    Raises
    ------
    ValueError
        When it is anything else.
    """
    number: int | float = math.nan
    cause = None
    try:
        array = to_numpy(name, value)
    except TypeError as error:
        cause = error
    else:
        if array.size == 1 and array.dtype.kind in "iu":
            number = int(array.reshape(-1)[0])  # a float has no 62 bits
        elif array.size == 1 and (array.dtype.kind == "f" or array.dtype.name == "bfloat16"):
            number = float(array.reshape(-1)[0])
    if not (0 <= number <= MOST and number == int(number)):
        raise ValueError(f"{name} is {value!r:.60}; expected a whole number from 0 to 2**62") from cause
    return int(number)
