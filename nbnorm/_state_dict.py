"""State dictionaries: a state's arrays and counters under PyTorch's names, checked before a state is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbnorm import _device

NAMES = {"gamma": "weight", "beta": "bias", "running_mean": "running_mean", "running_var": "running_var"}
COUNTERS = ("num_batches_tracked", "num_samples_tracked")


class Content(NamedTuple):
    """What a state is made of."""

    arguments: dict[str, Any]  # of the constructor, but for eps and momentum
    arrays: dict[str, NDArray]  # by the state's names
    counters: list[int]
    device: str


def content(state_dict: Mapping[str, Any], prefix: str) -> Content:
    """What the names under the prefix say.

    Raises
    ------
    ValueError
        When there is nothing under the prefix, a name is unknown, a running variance or a counter is negative, the
        arrays have no dimension, or only one of running_mean and running_var is there.
    """
    found = {key.removeprefix(prefix): state_dict[key] for key in state_dict if key.startswith(prefix)}
    device = max(map(_device.of, found.values()), default="cpu")  # a GPU, if one is among them
    arrays = {name: _device.host(found.pop(key)) for name, key in NAMES.items() if key in found}
    counters = [int(found.pop(key, 0)) for key in COUNTERS]
    if found:
        raise ValueError(f"state_dict has unknown names under {prefix!r:.40}: {', '.join(sorted(found))[:80]}")
    if not arrays:
        raise ValueError(f"state_dict has no arrays under {prefix!r:.40}; expected weight, running_mean, ...")
    if ("running_mean" in arrays) != ("running_var" in arrays):
        raise ValueError(f"state_dict has only one of running_mean and running_var under {prefix!r:.40}")
    if min(counters) < 0 or np.any(arrays.get("running_var", np.zeros(1)) < 0):
        raise ValueError(f"state_dict has a negative running_var or counter under {prefix!r:.40}")
    shape = next(iter(arrays.values())).shape
    if not shape:
        raise ValueError(f"state_dict has scalars under {prefix!r:.40}; expected arrays with a place per channel")
    parameter = arrays.get("gamma", arrays.get("beta"))
    arguments = {
        "num_features": shape if len(shape) != 1 else shape[0],
        "use_gamma": "gamma" in arrays,
        "use_beta": "beta" in arrays,
        "track_running": "running_mean" in arrays,
        "dtype": "float64" if parameter is not None and parameter.dtype == np.float64 else "float32",
    }
    return Content(arguments, arrays, counters, device)
