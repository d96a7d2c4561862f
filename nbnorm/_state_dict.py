"""State dictionaries: a state's arrays and counters under PyTorch's names, checked before a state is made of them."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbnorm import _arguments, _content, _device, _options
from nbnorm._content import COUNTERS, NAMES, SKIPPED_BATCHES, Content, shape_of
from nbnorm._foreign import to_numpy
from nbnorm._npz import ABOUT

_NAMES_ELSEWHERE = {
    "gamma": "weight", "scale": "weight", "beta": "bias", "B": "bias",
    "moving_mean": "running_mean", "mean": "running_mean", "input_mean": "running_mean", "avg_mean": "running_mean",
    "moving_variance": "running_var", "moving_var": "running_var", "var": "running_var", "input_var": "running_var",
    "avg_var": "running_var",
}  # fmt: skip


def of(own: dict[str, Any]) -> dict[str, NDArray]:
    """That of a state, `own` being its snapshot: what PyTorch knows, and what exact pooling needs."""
    found = _content.arrays(own)
    found.pop(SKIPPED_BATCHES, None)
    if own["_momentum"] is not None:
        found.pop(COUNTERS[1], None)
    return found


def content(
    state_dict: Mapping[str, Any], prefix: str, num_features: int | tuple[int, ...] | None, **beside: Any
) -> Content:
    """What the names under the prefix say, with arguments of the constructor that are not in a dictionary.

    Without `num_features` the arrays have one dimension.

    Raises
    ------
    TypeError, ValueError
        When there is nothing under the prefix, a name is unknown, a value is no array of numbers, a running variance is
        negative, a counter no whole number, shapes differ, or only one of running_mean and running_var is there.
    """
    _arguments.instance("state_dict", state_dict, Mapping, "a mapping of names to arrays, such as layer.state_dict()")
    check_prefix(prefix)
    found = {str(key).removeprefix(prefix): state_dict[key] for key in state_dict if str(key).startswith(prefix)}
    under = f" under {prefix!r:.30}" if prefix else ""
    unknown = found.keys() - {*NAMES.values(), *COUNTERS, SKIPPED_BATCHES}
    if unknown:
        raise ValueError(f"state_dict has {unknown_names(unknown, prefix)}")
    device = max(map(_device.of, found.values()), default="cpu")  # a GPU, if one is among them
    values = {key: _device.host(v) if _device.of(v) != "cpu" else v for key, v in found.items()}
    arrays = {name: to_numpy(key, values[key]) for name, key in NAMES.items() if key in values}
    if not arrays:
        raise ValueError(f"state_dict has no arrays{under}; expected weight, running_mean, ...")
    if ("running_mean" in arrays) != ("running_var" in arrays):
        raise ValueError(f"state_dict has only one of running_mean and running_var{under}")
    features = _features(arrays, num_features, under)
    shape = shape_of(features)
    for name, array in arrays.items():
        if array.shape != shape:
            raise ValueError(f"{NAMES[name]} has shape {array.shape!s:.40}{under}; expected {shape!s:.40}")
        if not np.can_cast(array.dtype, np.float64, "same_kind"):
            raise TypeError(f"{NAMES[name]} has dtype {array.dtype!s:.40}{under}; expected real numbers")
    if "running_var" in arrays and np.any(arrays["running_var"] < 0):
        raise ValueError(f"running_var has negative values{under}")
    parameters = [arrays[name].dtype for name in ("gamma", "beta") if name in arrays]
    arguments = {
        "num_features": features,
        "use_gamma": "gamma" in arrays,
        "use_beta": "beta" in arrays,
        "track_running": "running_mean" in arrays,
        "dtype": "float32" if all(np.can_cast(found, np.float32) for found in parameters) else "float64",
        **beside,
    }
    return Content(arguments, arrays, _content.counters(values, shape), device)


def check_prefix(prefix: str) -> None:
    """It is text."""
    _arguments.instance("prefix", prefix, str, 'what the names begin with, such as "layer1.0.bn1."')


def _features(
    arrays: dict[str, NDArray], num_features: int | tuple[int, ...] | None, under: str
) -> int | tuple[int, ...]:
    """num_features, which the arrays say unless the caller does."""
    if num_features is not None:
        return _options.num_features(num_features)
    shape = next(iter(arrays.values())).shape
    if len(shape) != 1:
        raise ValueError(
            f"state_dict has arrays of shape {shape!s:.30}{under}; expected one dimension, or num_features=shape if "
            "these are the channels' axes"
        )
    return shape[0]


def unknown_names(names: Set[str], prefix: str) -> str:
    """What to do about names under the prefix that are not ours."""
    if ABOUT in names:
        return f"{ABOUT}: it is a file of BatchNormState.save, which BatchNormState.load reads; expected arrays alone"
    if any(name.startswith(".") for name in names):
        return f"names that begin with a dot; {_such_as(prefix + '.', 'end prefix with a dot')}"
    layers = [prefix + name.removesuffix("running_mean") for name in names if name.endswith(".running_mean")]
    if layers:
        shortest = min(layers, key=lambda one: (len(one), one))
        return f"names of a network; {_such_as(shortest, 'give prefix=, what a layer begins with')}"
    if names <= _NAMES_ELSEWHERE.keys():
        renamed = ", ".join(f"{name} to {_NAMES_ELSEWHERE[name]}" for name in sorted(names))
        return f"names of another library (nbnorm.exchange): rename {renamed:.90}, under {prefix!r:.30}"
    expected = ", ".join((*NAMES.values(), COUNTERS[0]))
    return f"unknown names, {', '.join(sorted(names))[:50]}; expected {expected} under {prefix!r:.30}"


def _such_as(prefix: str, otherwise: str) -> str:
    """A prefix that would do, if there is room for the whole of it."""
    return f"give prefix={prefix!r}" if len(prefix) <= 50 else otherwise
