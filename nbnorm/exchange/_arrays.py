"""What the formats share: four arrays and two numbers against a state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbnorm import _arguments, _device, _options
from nbnorm._content import NAMES
from nbnorm._foreign import to_numpy
from nbnorm.state import BatchNormState


def state_of(
    name: str, found: Mapping[str, Any], names: Sequence[str], eps: float, momentum: float, several_axes: bool = False
) -> BatchNormState:
    """A state from another library's arrays, under its four names for ours; `name` is the argument that has them, and
    `several_axes` whether channels may lie along more than one.
    """
    ours = {own: to_numpy(theirs, found[theirs]) for own, theirs in zip(NAMES, names) if theirs in found}
    shape = ours["running_mean"].shape
    for own, theirs in zip(NAMES, names):
        if own in ours and not np.can_cast(ours[own].dtype, np.float64, "same_kind"):
            raise TypeError(f"{name} has {theirs} of dtype {ours[own].dtype!s:.40}; expected real numbers")
        if own in ours and (not shape or ours[own].shape != shape or (len(shape) > 1 and not several_axes)):
            raise ValueError(
                f"{name} has {theirs} of shape {ours[own].shape!s:.40} and {names[2]} of shape {shape!s:.40}; "
                "expected one number per channel each"
            )
    if (ours["running_var"] < 0).any():
        raise ValueError(f"{name} has negative values in {names[3]}; expected variances")
    state = BatchNormState(
        shape if len(shape) > 1 else shape[0],
        eps=eps,
        unbiased=False,
        use_gamma="gamma" in ours,
        use_beta="beta" in ours,
        dtype="float32" if all(np.can_cast(array.dtype, np.float32) for array in ours.values()) else "float64",
    )
    state._momentum = _weight_of_the_new(momentum)  # 0.95 is meant: no warning
    for own, array in ours.items():
        setattr(state, own, array)
    return state


def _weight_of_the_new(momentum: float) -> float:
    """nbnorm's momentum for that of the others."""
    if not _options.is_real(momentum) or not 0 <= momentum <= 1:
        raise ValueError(f"momentum is {momentum!r:.40}; expected the weight of the old statistics, 0 to 1")
    return round(1 - float(momentum), 15)  # 0.01 for 0.99, not 0.010000000000000009


def arrays_of(state: BatchNormState, names: Sequence[str]) -> dict[str, NDArray]:
    """Copies of the arrays that a state has, at one moment, under another library's four names."""
    _arguments.instance("state", state, BatchNormState, "a nbnorm.BatchNormState")
    state._demand_running()
    found, arrays = state.state_dict(), {}
    for (own, key), theirs in zip(NAMES.items(), names):
        if key in found:
            exact = _device.host(found[key])
            with np.errstate(over="ignore"):
                arrays[theirs] = exact.astype(state.dtype, copy=False)
            if np.isinf(arrays[theirs]).sum() > np.isinf(exact).sum():
                raise ValueError(
                    f"state.{own} has values that {state.dtype} does not hold, such as {np.abs(exact).max():g}; "
                    'they need a state with dtype="float64"'
                )
    return arrays


def arrays_of_one_axis(state: BatchNormState, library: str, names: Sequence[str]) -> dict[str, NDArray]:
    """The same for a library that has one channel axis."""
    arrays = arrays_of(state, names)
    if len(state.shape) > 1:
        raise ValueError(f"state.num_features is {state.shape!s:.60}; {library} has one channel axis")
    return arrays
