"""What standardization is made of, for arrays: which values are there, the scale, and the map and its inverse."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbnorm import _device
from nbnorm._dispatch import kernels_for
from nbnorm._formulas import two_sum
from nbnorm._layout import layout_of
from nbnorm._moments import Moments, moments
from nbnorm.inference import batch_norm_inference
from nbnorm.state import BatchNormState

EPSILON = 2.0**-52
NO_EPS = 5e-324  # the smallest there is: nothing is left of it beside 1

_two_sum = getattr(two_sum, "py_func", two_sum)  # of arrays; with NUMBA_DISABLE_JIT it is a plain function itself


def present_moments(
    x: NDArray, axes: tuple[int, ...], where: NDArray | None = None, weights: NDArray | None = None
) -> Moments:
    """Of the values that are not NaN: without a mask, which costs a third, where there is none."""
    if where is None and weights is None:
        x = _as_read(x, axes)
        found = moments(x, axes)
        if is_finite(found):
            return found
    return moments(x, axes, where, weights, "omit")


def _as_read(x: NDArray, axes: tuple[int, ...]) -> NDArray:
    """As kernels read it: itself, or the copy that a pass would make, which serves a second one too."""
    kernels = kernels_for("x", x)
    x = kernels.values("x", x)
    layout = layout_of(x, axes)
    if layout.holds(x) or not x.size:
        return x
    with kernels.on_device_of(x):
        ordered = kernels.xp.ascontiguousarray(x.transpose(layout.order))
    return ordered.transpose(sorted(range(x.ndim), key=layout.order.__getitem__))


def dense(x: NDArray) -> tuple[NDArray, bool]:
    """In native byte order and without gaps: itself, or a copy in its order in memory; and whether it is a copy."""
    kernels = kernels_for("x", x)
    native = kernels.values("x", x)
    order = sorted(range(x.ndim), key=lambda i: -abs(native.strides[i]))
    if not native.transpose(order).flags.c_contiguous:
        with kernels.on_device_of(x):
            native = native.copy(order="K")
    return native, native is not x and not kernels.may_overlap(native, x)  # of a subclass it may be a view


def is_finite(found: Moments) -> bool:
    """Whether no channel has a NaN or an infinite value. Waits for a GPU."""
    with _device.current(_device.of(found.m2)):
        return bool(np.isfinite(found.deviation).all()) and bool(np.isfinite(found.m2).all())


def mean_and_rest(found: Moments) -> tuple[Any, Any]:
    """The mean as float64, NaN of no values, and what that rounding has lost."""
    with _device.current(_device.of(found.m2)):
        mean, rest = _two_sum(found.origin, found.deviation)
        return _device.library(_device.of(found.m2)).where(found.count > 0, mean, np.nan), rest


def var_of(count: Any, m2: Any, ddof: float) -> Any:
    """m2/(count - ddof), NaN where that is no positive number, or has overflowed."""
    with _device.current(_device.of(m2)):
        return _device.library(_device.of(m2)).where((count > ddof) & (m2 < np.inf), m2, np.nan) / (count - ddof)


def scale_of(mean: Any, var: Any) -> Any:
    """The standard deviation; 1 for a constant channel.

    Constant is also what varies by no more than the rounding of its mean: 0.3 and 0.1 + 0.2. No variance of float32 or
    narrower values is so small.
    """
    with _device.current(_device.of(var)), np.errstate(invalid="ignore"):  # NaN: a channel of no values
        std = np.sqrt(var)
        return _device.library(_device.of(var)).where(std <= EPSILON * abs(mean), 1.0, std)


def affine(
    x: NDArray, axes: tuple[int, ...], subtract: Any, factor: Any, add: Any, out: NDArray | None = None
) -> NDArray:  # fmt: skip
    """(x - subtract)*factor + add, as near as any y (docs/numerics.md); None is 0 or 1."""
    state = BatchNormState(
        tuple(x.shape[i] for i in axes), eps=NO_EPS, use_gamma=factor is not None, use_beta=add is not None,
        dtype="float64", device=_device.of(x),
    )  # fmt: skip
    if subtract is not None:
        state.running_mean = subtract
    if factor is not None:
        state.gamma = factor
    if add is not None:
        state.beta = add
    return batch_norm_inference(x, state, axis=axes, out=out)
