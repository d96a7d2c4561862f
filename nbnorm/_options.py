"""Arguments that are numbers and words: the options of a call, then those of a state."""

from __future__ import annotations

import math
import sys
import warnings

import numpy as np
from numpy.typing import DTypeLike

from nbnorm._arguments import short

LEAST_SLOPE = float(np.finfo(np.float32).smallest_normal)  # in float32 less may be 0, and 0 times infinity NaN


def flag(name: str, value: object) -> None:
    """Text and arrays are no flags: "no" would be true."""
    if not isinstance(value, bool | np.bool_ | int) or value not in (0, 1):
        raise TypeError(f"{name} is {short(value)}; expected True or False")


def missing(value: object) -> None:
    """One of the two."""
    if not isinstance(value, str) or value not in ("propagate", "omit"):
        raise ValueError(f"nan is {short(value)}; expected 'propagate' (a value like any other) or 'omit' (missing)")


def activation(value: object) -> float | None:
    """The slope of the activation for negative numbers, or None."""
    if value is None:
        return None
    if isinstance(value, str) and value == "relu":
        return 0.0
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and value[0] == "leaky_relu":
        slope = value[1]
        if not is_real(slope) or not 0 <= slope < 1:
            raise ValueError(f'the slope of "leaky_relu" is {short(slope)}; expected at least 0 and less than 1')
        if 0 < slope < LEAST_SLOPE:
            raise ValueError(f'the slope of "leaky_relu" is {short(slope)}; expected 0, or at least {LEAST_SLOPE:.3g}')
        return float(slope)
    raise ValueError(f'activation is {short(value)}; expected "relu", ("leaky_relu", slope) or None')


def ghost(value: object) -> int:
    """How many indices make a ghost batch."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"ghost is {short(value)}; expected an int, the size of a ghost batch")
    if value < 1:
        raise ValueError(f"ghost is {short(value)}; expected at least 1, the size of a ghost batch")
    return int(value)


def renorm_limits(rmax: float, dmax: float) -> None:
    """Of r and d."""
    if not is_real(rmax) or not rmax >= 1:
        raise ValueError(f"rmax is {short(rmax)}; expected 1 or more, such as 3 (1: the batch's variance as it is)")
    if not is_real(dmax) or not dmax >= 0:
        raise ValueError(f"dmax is {short(dmax)}; expected 0 or more, such as 5 (0: the batch's mean as it is)")


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


def messenger(sync: object) -> None:
    """What carries messages, or None."""
    if sync is not None and not callable(sync):
        raise TypeError(
            f"sync is a {type(sync).__qualname__}; expected a callable, such as nbnorm.parallel.mpi.sync(comm)"
        )


def param_grads(value: object) -> None:
    """One of the two."""
    if value not in ("local", "global"):
        raise ValueError(f"param_grads is {short(value)}; expected 'local' (this shard's) or 'global' (everyone's)")


def without_residual(array: object) -> None:
    """`dresidual_out` has a meaning after a residual only."""
    if array is not None:
        raise ValueError("dresidual_out is an array, but the forward pass had no residual; leave it out")


def num_features(value: int | tuple[int, ...]) -> int | tuple[int, ...]:
    """Plain ints, none of them negative."""
    sizes = value if isinstance(value, tuple) else (value,)
    if not sizes or not all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in sizes):
        raise TypeError(f"num_features is {short(value)}; expected an int or a tuple of ints")
    if min(sizes) < 0 or 8 * math.prod(max(1, int(n)) for n in sizes) > sys.maxsize:  # bytes of float64
        raise ValueError(f"num_features is {short(value)}; expected numbers of channels, 0 or more")
    whole = tuple(int(n) for n in sizes)
    return whole if isinstance(value, tuple) else whole[0]


def eps(value: float) -> float:
    """A positive finite number."""
    if not is_real(value) or not 0 < float(value) < math.inf:
        raise ValueError(f"eps is {short(value)}; expected a positive finite number, such as 1e-5")
    return float(value)


def momentum(value: float | None) -> float | None:
    """A weight, or None."""
    if value is None:
        return None
    if not is_real(value) or not 0 <= value <= 1:
        raise ValueError(
            f"momentum is {short(value)}; expected the weight of the new batch, 0 to 1, or None for exact pooling"
        )
    return float(value)


def warn_of_momentum(value: float | None) -> None:
    """Where the user's own code says a weight that other libraries would mean for the old statistics."""
    if value is not None and 0.9 <= value < 1:
        _warn(
            f"momentum={value!r:.20} is the weight of the new batch: the running statistics keep next to nothing of "
            f"older ones. Keras, Flax and ONNX mean momentum={1 - value:.2g} here"
        )


def warn_of_their_momentum(value: float) -> None:
    """Where it says one to `nbnorm.exchange` that nbnorm itself would mean for the new batch."""
    if 0 < value <= 0.1:
        _warn(
            f"momentum={value!r:.20} is the weight of the old statistics, as in Keras and Flax: the running ones keep "
            f"next to nothing of them. nbnorm's momentum={value!r:.20} is momentum={1 - value!r:.20} here"
        )


def _warn(text: str) -> None:
    """Of the line outside of this package that has called into it."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and (frame.f_globals.get("__package__") or "").split(".")[0] == __package__:
        frame, depth = frame.f_back, depth + 1
    warnings.warn(text, UserWarning, stacklevel=depth)


def parameter_dtype(value: DTypeLike) -> np.dtype:
    """float32 or float64."""
    expected = "expected float32 or float64 for gamma and beta"
    try:
        found = None if value is None else np.dtype(value)  # to NumPy None is float64
    except (TypeError, ValueError, SyntaxError) as cause:
        raise TypeError(f"dtype is {short(value)}; {expected}") from cause
    if found is None or found not in (np.float32, np.float64):
        raise ValueError(f"dtype is {found!s:.60}; {expected}")
    return found.newbyteorder("=")


def is_real(value: object) -> bool:
    """A number that a float can be, if only infinite; 10**400 is none."""
    if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
        return False
    return not isinstance(value, int) or abs(value) <= sys.float_info.max
