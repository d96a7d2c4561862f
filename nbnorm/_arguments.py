"""Arguments that are arrays: their dtype, shape and device, before anything is computed, allocated or changed."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbnorm._layout import Axis

_EXPECTED = "float16, bfloat16, float32 or float64"
NATIVE = {np.dtype(kind) for kind in ("float16", "float32", "float64")}  # bfloat16 joins when it is first seen


def dtype(name: str, found: np.dtype) -> np.dtype:
    """`found` in native byte order.

    Raises
    ------
    TypeError
        When it is not one of the four.
    """
    if found in NATIVE:
        return found
    native = found if found.isnative else found.newbyteorder("=")  # strings of variable length have no byte order
    if native.name == "bfloat16":
        NATIVE.add(native)
    elif native not in NATIVE:
        raise TypeError(f"{name} has dtype {found!s:.60}; expected {_EXPECTED}{_conversion(name, native)}")
    return native


def _conversion(name: str, found: np.dtype) -> str:
    """What converts real numbers without a loss, or almost (longdouble, large int64); nothing else is converted."""
    if np.can_cast(found, np.float32):
        return f" ({name}.astype(np.float32) converts)"
    if np.can_cast(found, np.float64, "same_kind") or found.kind in "mMO":
        return f" ({name}.astype(np.float64) converts)"
    return ""


def axes_of(axis: Axis) -> tuple[int, ...]:
    """The channel axes as a tuple."""
    given = axis if isinstance(axis, tuple) else (axis,)
    if not given or not all(isinstance(i, int | np.integer) and not isinstance(i, bool) for i in given):
        raise TypeError(f"axis is {short(axis)}; expected an int or a tuple of one or more ints")
    return given


def channels(shape: tuple[int, ...], axis: Axis, name: str = "x") -> tuple[int, ...]:
    """The channel axes of x, which has this shape, non-negative.

    Raises
    ------
    TypeError, ValueError
        When x has fewer than 2 dimensions or `axis` does not fit it.
    """
    ndim = len(shape)
    if ndim < 2:
        raise ValueError(
            f"{name} is {ndim}-D ({name}.shape={shape}); expected at least 2-D, such as (samples, channels)"
        )
    given = axes_of(axis)
    for i in given:
        if not -ndim <= i < ndim:
            raise np.exceptions.AxisError(
                f"axis {short(i)} is out of range for {name} with {ndim} dimensions ({name}.shape={short(shape)})"
            )
    positive = tuple(int(i) % ndim for i in given)
    if len(set(positive)) != len(positive):
        raise ValueError(f"axis is {short(axis)}; expected every axis at most once")
    return positive


def features(shape: tuple[int, ...], axis: Axis, axes: tuple[int, ...], num_features: int | tuple[int, ...]) -> None:
    """x has the channels of the state."""
    found = tuple(shape[i] for i in axes)
    expected = num_features if isinstance(num_features, tuple) else (num_features,)
    if found != expected:
        shown = found[0] if len(found) == 1 else found
        raise ValueError(
            f"x has {short(shown)} channels on axis {short(axis)} (x.shape={short(shape)}), "
            f"but the state has {short(num_features)} features{_other_axis(shape, axis, num_features)}"
        )


def _other_axis(shape: tuple[int, ...], axis: Axis, num_features: int | tuple[int, ...]) -> str:
    """Channels last or first, or those that a tuple leaves out, where that is what was meant."""
    if isinstance(axis, tuple):  # those that are reduced, as in NumPy
        fitting = [i for i in range(len(shape)) if i not in axis and i - len(shape) not in axis]
        fitting = [i for i in fitting if len(fitting) == 1 and shape[i] == num_features]
    else:
        fitting = [i for i in (-1, 1) if shape[i] == num_features]
    return f"; axis={fitting[0]} would fit" if fitting else ""


def mask(where: NDArray, x: NDArray) -> None:
    """Which values of x count."""
    if where.dtype != np.bool_:
        way_out = "where != 0 converts"
        if where.dtype.kind in "iu" and where.shape == x.shape[:1] and x.ndim > 2:
            way_out += "; lengths in (N, C, L): np.arange(L) < where[:, None, None]"
        raise TypeError(f"where has dtype {where.dtype!s:.60}; expected bool ({way_out})")
    _broadcasts("where", where, x)


def weights(weights: NDArray, x: NDArray, name: str = "weights") -> None:
    """How often values of x count."""
    kind_of_weights(weights, x, name)
    values_of_weights(weights, x.size, name)


def values_of_weights(weights: NDArray, size: int, name: str = "weights") -> None:
    """Real numbers are weights of `size` values: finite, not negative, and so is their sum."""
    if weights.size:
        least, most = weights.min(), weights.max()  # NaN if there is one
        if not (least >= 0 and most < math.inf):
            wrong = most if least >= 0 else least
            raise ValueError(f"{name} has values such as {float(wrong):g}; expected finite ones, not negative")
        if float(most) > sys.float_info.max / max(1, size):
            raise ValueError(f"{name} has values such as {float(most):g}, whose sum may be infinite; divide all by it")


def kind_of_weights(weights: NDArray, x: NDArray, name: str = "weights") -> None:
    """The same without a look at values."""
    if weights.dtype == np.bool_:
        raise TypeError(f"{name} has dtype bool; pass it as where=, or {name}.astype(np.float32)")
    real(name, weights.dtype)
    _broadcasts(name, weights, x)


def real(name: str, found: np.dtype) -> None:
    """Integers and floats that a float64 holds, or almost."""
    if not is_real(found):
        raise TypeError(f"{name} has dtype {found!s:.60}; expected real numbers of at most 64 bits, such as float32")


def is_real(found: Any, most: float = 8) -> bool:
    """Whether a dtype is of real numbers of at most so many bytes, which pandas' sparse ones do not say."""
    return (found.kind in "iuf" or found.name == "bfloat16") and getattr(found, "itemsize", math.inf) <= most


def _broadcasts(name: str, array: NDArray, x: NDArray) -> None:
    def fits(shape: tuple[int, ...]) -> bool:
        aligned = zip(reversed(shape), reversed(x.shape), strict=False)
        return len(shape) <= x.ndim and all(n in (1, whole) for n, whole in aligned)

    if not fits(array.shape):
        more = x.ndim - array.ndim
        forms = {
            "[:" + ", None" * more + "]": array.shape[:1] + (1,) * more + array.shape[1:],
            "[..." + ", None" * more + "]": array.shape + (1,) * more,
        }
        found = next((form for form, shape in forms.items() if fits(shape)), None) if 0 < more < 6 else None
        raise ValueError(
            f"{name} has shape {short(array.shape)}; expected one that broadcasts to that of x, {short(x.shape)}"
            + ("" if found is None else f": {name}{found} does")
        )


def like_x(name: str, array: NDArray, x: NDArray, owner: str = "the forward pass's x") -> None:
    """A residual, dy, or another array like it, fits x."""
    if array.shape != x.shape:
        raise ValueError(f"{name} has shape {short(array.shape)}; expected that of {owner}, {short(x.shape)}")
    if array.dtype != x.dtype:
        raise TypeError(
            f"{name} has dtype {array.dtype}; expected {x.dtype}, that of x ({name}.astype(x.dtype) converts)"
        )


def direction(name: str, array: NDArray, shape: tuple[int, ...], exists: bool) -> None:
    """A tangent of gamma or beta, or a cotangent of its gradient, fits the parameter of the state."""
    parameter = "gamma" if name.endswith("gamma") else "beta"
    if not exists:
        raise ValueError(f"{name} is an array, but the state of the forward pass has no {parameter}; pass None")
    if array.shape != shape:
        raise ValueError(f"{name} has shape {short(array.shape)}; expected {short(shape)}, that of {parameter}")
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name} has dtype {array.dtype}; expected float32 or float64, as {parameter} has")


def same_device(name: str, array: Any, found: str, expected: str, owner: str, way_out: str) -> None:
    """The array is where the rest of the call is; nothing moves by itself. `way_out` has {found} where that belongs."""
    if found != expected:
        kind = f"{type(array).__module__}.{type(array).__qualname__}"
        place = "" if found == "cpu" else f" on {found}"
        raise TypeError(f"{name} is a {kind}{place} but {owner} is on {expected}; use {way_out.format(found=found)}")


def instance(name: str, value: Any, kind: type | tuple[type, ...], way_out: str) -> None:
    """`value` is of this class, or of one of these."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {type(value).__qualname__}; expected {way_out}")


def short(value: object) -> str:
    """Its repr, cut so that a message stays below 200 characters."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no int of more digits than sys.set_int_max_str_digits says
        text = "an int of thousands of digits"
    return text if len(text) <= 40 else text[:37] + "..."
