"""Where results go: `out` and `dresidual_out`, and what they may lie over."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbnorm._arguments import short


def check_output(
    kernels: ModuleType, out: Any, x: NDArray, inputs: tuple[tuple[str, NDArray | None], ...],
    allowed: tuple[str, ...], name: str = "out",
) -> None:  # fmt: skip
    """`out` can take the result: an array like x, apart from every input or, where allowed, one of them itself.

    Raises
    ------
    TypeError, ValueError
        TypeError when it is no array of the backend, ValueError for all else.
    """
    plain = type(out) is kernels.Array
    if not plain and (not isinstance(out, kernels.Array) or isinstance(out, np.ma.MaskedArray | np.matrix)):
        expected = f"{kernels.Array.__module__}.{kernels.Array.__qualname__}"
        raise TypeError(f"{name} is a {type(out).__module__}.{type(out).__qualname__}; expected a {expected}")
    if out.shape != x.shape:
        raise ValueError(f"{name} has shape {short(out.shape)}; expected that of x, {short(x.shape)}")
    if out.dtype != x.dtype:
        raise ValueError(f"{name} has dtype {out.dtype}; expected {x.dtype} in native byte order, as x")
    flags = out.flags
    if kernels.device(out) != kernels.device(x):
        raise ValueError(f"{name} is on {kernels.device(out)}; expected {kernels.device(x)}, where x is")
    if not getattr(flags, "writeable", True):
        raise ValueError(f"{name} is read-only; pass a writable array, such as np.empty_like(x)")
    if not getattr(flags, "aligned", True):
        raise ValueError(f"{name} is not aligned in memory; pass an aligned array, such as np.empty_like(x)")
    if not flags.c_contiguous and overlaps_itself(out):
        raise ValueError(f"{name} overlaps itself, as a broadcast view does; pass np.empty_like(x)")
    for other, array in inputs:
        if array is None or not kernels.may_overlap(out, array):  # bounds only: cheap
            continue
        if _is_same(kernels, out, array):
            if other not in allowed:
                need = "gets another result" if other == "out" else "the backward pass needs"
                raise ValueError(f"{name} is {other} itself, which {need}; pass another array")
        elif _shares(kernels, out, array):
            raise ValueError(f"{name} overlaps {other} in memory; pass an array of its own")


def overlaps_itself(array: NDArray) -> bool:
    """Whether two indices reach the same memory. Exact where strides nest, else on the safe side."""
    reach = array.itemsize
    for stride, length in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < reach:
            return array.size > 0
        reach += stride * (length - 1)
    return False


def _shares(kernels: ModuleType, a: NDArray, b: NDArray) -> bool:
    try:
        return np.shares_memory(kernels.footprint(a), kernels.footprint(b), max_work=100_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def _is_same(kernels: ModuleType, a: NDArray, b: NDArray) -> bool:
    return a.shape == b.shape and a.strides == b.strides and kernels.address(a) == kernels.address(b)
