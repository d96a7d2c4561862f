"""What both targets emit, in NumPy: for `NUMBA_DISABLE_JIT=1` and for Numba's CUDA simulator."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbnorm._counted import Both, Tangent


def widen(raw: NDArray) -> NDArray[np.float64]:
    """16-bit floats come as the integers that stand for them (_floats.py)."""
    if raw.dtype == np.uint16:
        raw = raw.view(np.float16)
    elif raw.dtype == np.int16:
        raw = (raw.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(invalid="ignore"):  # signaling NaN, in memory that nothing was written to and nobody looks at
        return raw.astype(np.float64)


def narrow(values: NDArray, dtype: np.dtype) -> NDArray:
    """Rounded to nearest even (16-bit types through float32), with infinities beyond the largest number."""
    if dtype == np.float64:
        return values
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        single = values.astype(np.float32)
        if dtype == np.float32:
            return single
        if dtype == np.uint16:
            return single.astype(np.float16).view(np.uint16)
    bits = single.view(np.uint32)
    rounded = bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))
    rounded = np.where(np.isnan(single), np.uint32(0x7FC00000), rounded)
    return (rounded >> np.uint32(16)).astype(np.uint16).view(np.int16)


def _lessened(v: Any, slope: float) -> Any:
    return v * np.asarray(v).dtype.type(slope) if slope else np.zeros_like(v)


def activated(z: Any, slope: float) -> Any:
    return np.where(z <= 0, _lessened(z, slope), z)


def gated(g: Any, z: Any, slope: float) -> Any:
    return np.where(z > 0, g, _lessened(g, slope))


def leading(dy: Any) -> Any:
    return dy[0] if isinstance(dy, Tangent | Both) else dy


def of_dy(dy: Any) -> Any:
    return getattr(dy, "dy", None) if isinstance(dy, Tangent | Both) else dy


def of_ddx(dy: Any) -> Any:
    return dy.ddx if isinstance(dy, Tangent | Both) else None


def is_tangent(dy: Any) -> bool:
    return isinstance(dy, Tangent)
