"""Arguments: every check of what a user passes in, before anything is computed, allocated or changed."""

from __future__ import annotations

import math
import sys
import warnings
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nbnorm._batch_stats import BatchStats
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


def channels(shape: tuple[int, ...], axis: Axis) -> tuple[int, ...]:
    """The channel axes of x, which has this shape, non-negative.

    Raises
    ------
    TypeError, ValueError
        When x has fewer than 2 dimensions or `axis` does not fit it.
    """
    ndim = len(shape)
    if ndim < 2:
        raise ValueError(f"x is {ndim}-D (x.shape={shape}); expected at least 2-D, such as (samples, channels)")
    axes = axis if isinstance(axis, tuple) else (axis,)
    if not axes or not all(isinstance(i, int | np.integer) and not isinstance(i, bool) for i in axes):
        raise TypeError(f"axis is {_short(axis)}; expected an int or a tuple of ints")
    for i in axes:
        if not -ndim <= i < ndim:
            raise np.exceptions.AxisError(
                f"axis {_short(i)} is out of range for x with {ndim} dimensions (x.shape={_short(shape)})"
            )
    positive = tuple(int(i) % ndim for i in axes)
    if len(set(positive)) != len(positive):
        raise ValueError(f"axis is {_short(axis)}; expected every axis at most once")
    return positive


def features(shape: tuple[int, ...], axis: Axis, axes: tuple[int, ...], num_features: int | tuple[int, ...]) -> None:
    """x has the channels of the state."""
    found = tuple(shape[i] for i in axes)
    expected = num_features if isinstance(num_features, tuple) else (num_features,)
    if found != expected:
        shown = found[0] if len(found) == 1 else found
        raise ValueError(
            f"x has {_short(shown)} channels on axis {_short(axis)} (x.shape={_short(shape)}), "
            f"but the state has {_short(num_features)} features{_other_axis(shape, axis, num_features)}"
        )


def _other_axis(shape: tuple[int, ...], axis: Axis, num_features: int | tuple[int, ...]) -> str:
    """Channels last or first, where that is what was meant."""
    fitting = [] if isinstance(axis, tuple) else [i for i in (-1, 1) if shape[i] == num_features]
    return f"; axis={fitting[0]} would fit" if fitting else ""


def enough_values(count: int, use_running: bool, shape: tuple[int, ...] | None) -> None:
    """The variance of the batch, of which x with this shape is all or a shard (None), exists."""
    if count < 2:
        purpose, way_out = "training", "batch_norm_inference, or use_running=True with update_running=False"
        if use_running:  # the unbiased variance goes into the running variance
            purpose, way_out = "updating running_var", "update_running=False"
        where = "on all ranks together" if shape is None else f"x.shape={_short(shape)}"
        raise ValueError(f"{purpose} needs at least 2 values per channel, got {count} ({where}); use {way_out}")


def missing(value: object) -> None:
    """One of the two."""
    if not isinstance(value, str) or value not in ("propagate", "omit"):
        raise ValueError(f"nan is {_short(value)}; expected 'propagate' (a value like any other) or 'omit' (missing)")


def mask(where: NDArray, x: NDArray) -> None:
    """Which values of x count."""
    if where.dtype != np.bool_:
        raise TypeError(f"where has dtype {where.dtype!s:.60}; expected bool (where != 0 converts)")
    _broadcasts("where", where, x)


def weights(weights: NDArray, x: NDArray) -> None:
    """How often values of x count."""
    kind_of_weights(weights, x)
    if weights.size:
        least, most = weights.min(), weights.max()  # NaN if there is one
        if not (least >= 0 and most < math.inf):
            wrong = most if least >= 0 else least
            raise ValueError(f"weights has values such as {float(wrong):g}; expected finite ones, not negative")
        if float(most) > sys.float_info.max / max(1, x.size):
            raise ValueError(f"weights has values such as {float(most):g}, whose sum may be infinite; divide all by it")


def kind_of_weights(weights: NDArray, x: NDArray) -> None:
    """The same without a look at values."""
    kind = weights.dtype
    if kind == np.bool_:
        raise TypeError("weights has dtype bool; pass it as where=, or weights.astype(np.float32)")
    if (kind.kind not in "iuf" and kind.name != "bfloat16") or kind.itemsize > 8:
        raise TypeError(f"weights has dtype {kind!s:.60}; expected real numbers of at most 64 bits, such as float32")
    _broadcasts("weights", weights, x)


def _broadcasts(name: str, array: NDArray, x: NDArray) -> None:
    padded = (1,) * (x.ndim - array.ndim) + array.shape
    if array.ndim > x.ndim or any(n not in (1, whole) for n, whole in zip(padded, x.shape, strict=True)):
        raise ValueError(
            f"{name} has shape {_short(array.shape)}; expected one that broadcasts to that of x, {_short(x.shape)}"
        )


def enough_counted(channel: int | None, least: float, use_running: bool, shape: tuple[int, ...]) -> None:
    """No channel is short of values that count; `channel` is the first one, in flat order."""
    if channel is None:
        return
    index = tuple(int(i) for i in np.unravel_index(channel, shape))
    shown = index[0] if len(index) == 1 else index
    purpose, way_out = "training", "batch_norm_inference, or use_running=True with update_running=False"
    if use_running:
        purpose, way_out = "updating the running statistics", "update_running=False"
    raise ValueError(
        f"{purpose} needs values that count more than {least:g} times in all; those of channel {shown} do not; "
        f"use {way_out}"
    )


def statistics(stats: BatchStats, shape: tuple[int, ...], momentum: float | None) -> float | None:
    """The count of statistics that running ones of this shape can take; None when it has one for each channel."""
    for name, found in (("mean", stats.mean), ("m2", stats.m2)):
        if found.shape != shape:
            raise ValueError(f"stats.{name} has shape {_short(found.shape)}; expected {_short(shape)}, as the state")
        if not np.can_cast(found.dtype, np.float64, "same_kind"):
            raise TypeError(f"stats.{name} has dtype {found.dtype}; expected float64")
    if (stats.m2 < 0).any():
        raise ValueError("stats.m2 has negative values; expected sums of squares")
    if getattr(stats.count, "ndim", 0):
        _counts(stats.count, shape, momentum)
        return None
    count = float(stats.count)
    if not (count >= 0 and count.is_integer()):
        raise ValueError(f"stats.count is {count:g}; expected the number of values per channel")
    if momentum is not None and count < 2:
        raise ValueError(
            f"stats has {count:g} values per channel; a moving average needs at least 2, momentum=None takes any number"
        )
    return count


def _counts(counts: NDArray, shape: tuple[int, ...], momentum: float | None) -> None:
    """How often values of each channel count."""
    if counts.shape != shape or not np.can_cast(counts.dtype, np.float64, "same_kind"):
        raise ValueError(
            f"stats.count is {counts.dtype} of shape {_short(counts.shape)}; "
            f"expected float64 of shape () or {_short(shape)}"
        )
    if not ((counts >= 0) & (counts < math.inf)).all():
        raise ValueError("stats.count has negative, infinite or NaN values; expected how often values count")
    if momentum is not None and not (counts > 1).all():
        raise ValueError(
            f"stats has a channel whose values count {float(counts.min()):g} times in all; "
            "a moving average needs more than 1, momentum=None takes any number"
        )


def messenger(sync: object) -> None:
    """What carries messages, or None."""
    if sync is not None and not callable(sync):
        raise TypeError(
            f"sync is a {type(sync).__qualname__}; expected a callable, such as nbnorm.parallel.mpi.sync(comm)"
        )


def param_grads(value: object) -> None:
    """One of the two."""
    if value not in ("local", "global"):
        raise ValueError(f"param_grads is {_short(value)}; expected 'local' (this shard's) or 'global' (everyone's)")


def activation(value: object) -> float | None:
    """The slope of the activation for negative numbers, or None."""
    if value is None:
        return None
    if isinstance(value, str) and value == "relu":
        return 0.0
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and value[0] == "leaky_relu":
        slope = value[1]
        if not _is_real(slope) or not 0 <= slope < 1:
            raise ValueError(f'the slope of "leaky_relu" is {_short(slope)}; expected at least 0 and less than 1')
        return float(slope)
    raise ValueError(f'activation is {_short(value)}; expected "relu", ("leaky_relu", slope) or None')


def ghost(value: object) -> int:
    """How many indices make a ghost batch."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"ghost is {_short(value)}; expected an int, the size of a ghost batch")
    if value < 1:
        raise ValueError(f"ghost is {_short(value)}; expected at least 1, the size of a ghost batch")
    return int(value)


def without_residual(array: object) -> None:
    """`dresidual_out` has a meaning after a residual only."""
    if array is not None:
        raise ValueError("dresidual_out is an array, but the forward pass had no residual; leave it out")


def own_statistics(name: str, use_running: bool) -> None:
    """Ghost batches and renormalization are about the statistics of the batch."""
    if use_running:
        raise ValueError(
            f"{name} is about the statistics of the batch, which use_running=True does not use; leave one of them out"
        )


def unsharded(sync: object) -> None:
    """Ghost batches are smaller than a batch, shards make one larger."""
    if sync is not None:
        raise ValueError("ghost cuts the batch into smaller ones, sync makes one of all ranks; leave one of them out")


def enough_in_groups(ghost: int, groups: int, count: int, shape: tuple[int, ...]) -> None:
    """The variance of the last ghost batch, which may be the smallest, exists; `count` are its values per channel."""
    if count < 2:
        raise ValueError(
            f"ghost={_short(ghost)} makes {groups} ghost batches of x.shape={_short(shape)}, "
            f"the last one with {count} values per channel; expected at least 2: choose another size"
        )


def renorm_limits(rmax: float, dmax: float) -> None:
    """Of r and d."""
    if not _is_real(rmax) or not rmax >= 1:
        raise ValueError(f"rmax is {_short(rmax)}; expected 1 or more, such as 3 (1: the batch's variance as it is)")
    if not _is_real(dmax) or not dmax >= 0:
        raise ValueError(f"dmax is {_short(dmax)}; expected 0 or more, such as 5 (0: the batch's mean as it is)")


def instance(name: str, value: Any, kind: type | tuple[type, ...], way_out: str) -> None:
    """`value` is of this class, or of one of these."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {type(value).__qualname__}; expected {way_out}")


def like_x(name: str, array: NDArray, x: NDArray, owner: str = "the forward pass's x") -> None:
    """A residual, dy, or another array like it, fits x."""
    if array.shape != x.shape:
        raise ValueError(f"{name} has shape {_short(array.shape)}; expected that of {owner}, {_short(x.shape)}")
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
        raise ValueError(f"{name} has shape {_short(array.shape)}; expected {_short(shape)}, that of {parameter}")
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name} has dtype {array.dtype}; expected float32 or float64, as {parameter} has")


def output(
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
        raise ValueError(f"{name} has shape {_short(out.shape)}; expected that of x, {_short(x.shape)}")
    if out.dtype != x.dtype:
        raise ValueError(f"{name} has dtype {out.dtype}; expected {x.dtype} in native byte order, as x")
    flags = out.flags
    if kernels.device(out) != kernels.device(x):
        raise ValueError(f"{name} is on {kernels.device(out)}; expected {kernels.device(x)}, where x is")
    if not getattr(flags, "writeable", True):
        raise ValueError(f"{name} is read-only; pass a writable array, such as np.empty_like(x)")
    if not getattr(flags, "aligned", True):
        raise ValueError(f"{name} is not aligned in memory; pass an aligned array, such as np.empty_like(x)")
    if not flags.c_contiguous and _overlaps_itself(out):
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


def num_features(value: int | tuple[int, ...]) -> int | tuple[int, ...]:
    """Plain ints, none of them negative."""
    sizes = value if isinstance(value, tuple) else (value,)
    if not sizes or not all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in sizes):
        raise TypeError(f"num_features is {_short(value)}; expected an int or a tuple of ints")
    if min(sizes) < 0:
        raise ValueError(f"num_features is {_short(value)}; expected no negative number")
    whole = tuple(int(n) for n in sizes)
    return whole if isinstance(value, tuple) else whole[0]


def eps(value: float) -> float:
    """A positive finite number."""
    if not _is_real(value) or not 0 < float(value) < math.inf:
        raise ValueError(f"eps is {_short(value)}; expected a positive finite number, such as 1e-5")
    return float(value)


def momentum(value: float | None) -> float | None:
    """A weight, or None."""
    if value is None:
        return None
    if not _is_real(value) or not 0 <= value <= 1:
        raise ValueError(
            f"momentum is {_short(value)}; expected the weight of the new batch, 0 to 1, or None for exact pooling"
        )
    return float(value)


def warn_of_momentum(value: float | None) -> None:
    """Where the user's own code says a weight that other libraries would mean for the old statistics."""
    if value is None or not 0.9 <= value < 1:
        return
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__package__") == __package__:
        frame, depth = frame.f_back, depth + 1
    warnings.warn(
        f"momentum={value:g} is the weight of the new batch: the running statistics keep next to nothing of older "
        f"ones. Keras, Flax and ONNX mean momentum={1 - value:.2g} here",
        UserWarning,
        stacklevel=depth,
    )


def parameter_dtype(value: DTypeLike) -> np.dtype:
    """float32 or float64."""
    found = np.dtype(value)
    if found not in (np.float32, np.float64):
        raise ValueError(f"dtype is {found}; expected float32 or float64 for gamma and beta")
    return found.newbyteorder("=")


def same_device(name: str, array: Any, found: str, expected: str, owner: str, way_out: str) -> None:
    """The array is where the rest of the call is; nothing moves by itself. `way_out` has {found} where that belongs."""
    if found != expected:
        kind = f"{type(array).__module__}.{type(array).__qualname__}"
        place = "" if found == "cpu" else f" on {found}"
        raise TypeError(f"{name} is a {kind}{place} but {owner} is on {expected}; use {way_out.format(found=found)}")


def _short(value: object) -> str:
    """Its repr, cut so that a message stays below 200 characters."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no int of more digits than sys.set_int_max_str_digits says
        text = "an int of thousands of digits"
    return text if len(text) <= 40 else text[:37] + "..."


def _is_real(value: object) -> bool:
    """A number that a float can be, if only infinite; 10**400 is none."""
    if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
        return False
    return not isinstance(value, int) or abs(value) <= sys.float_info.max


def _overlaps_itself(array: NDArray) -> bool:
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
