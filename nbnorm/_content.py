"""What a state is made of, for dictionaries and files: the arguments of its constructor, arrays, counters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from nbnorm._foreign import counter, counts_of_values
from nbnorm._running import Running

# PyTorch's names
NAMES = {"gamma": "weight", "beta": "bias", "running_mean": "running_mean", "running_var": "running_var"}
COUNTERS = ("num_batches_tracked", "num_samples_tracked")  # the second is nbnorm's own
SKIPPED_BATCHES = "num_batches_skipped"  # written in files only

# Batches, values per channel (an array where they differ, None where nobody has counted), skipped batches
Counters = tuple[int, int | NDArray[np.float64] | None, int]

_State = TypeVar("_State")


class Content(NamedTuple):
    """What a state is made of."""

    arguments: dict[str, Any]  # of the constructor
    arrays: dict[str, NDArray]  # by the state's names
    counters: Counters
    device: str = "cpu"


# ---- of a state, `own` being its snapshot


def arguments(own: dict[str, Any]) -> dict[str, Any]:
    """With which the constructor makes one like it, on any device."""
    running: Running | None = own["_running"]
    return {
        "num_features": own["_num_features"],
        "eps": own["_eps"],
        "momentum": own["_momentum"],
        "use_gamma": own["_gamma"] is not None,
        "use_beta": own["_beta"] is not None,
        "track_running": running is not None,
        "unbiased": running is None or running.ddof == 1,
        "skip_nonfinite": running is not None and running.skip_nonfinite,
        "dtype": str(own["_dtype"]),
    }


def arrays(own: dict[str, Any]) -> dict[str, NDArray]:
    """Arrays and counters by PyTorch's names; no number of values where it is not known."""
    running: Running | None = own["_running"]
    found = {"weight": own["_gamma"], "bias": own["_beta"]}
    if running is not None:
        found |= {"running_mean": running.mean, "running_var": running.var}
        found |= {key: running.counters[i, ...] for i, key in enumerate((*COUNTERS, SKIPPED_BATCHES))}
        if running.samples is not None:
            found[COUNTERS[1]] = running.samples
        if running.uncounted:
            del found[COUNTERS[1]]
    return {key: array for key, array in found.items() if array is not None}


# ---- of what is to become one


def of(arguments: dict[str, Any], values: Mapping[str, NDArray]) -> Content:
    """Of these `arguments` and `arrays`."""
    found = {name: values[key] for name, key in NAMES.items() if key in values}
    return Content(arguments, found, counters(values, shape_of(arguments["num_features"])))


def counters(values: Mapping[str, Any], shape: tuple[int, ...]) -> Counters:
    """Those of a dictionary or a file, which need not have all."""
    batches, skipped = (counter(key, values.get(key, 0)) for key in (COUNTERS[0], SKIPPED_BATCHES))
    key = COUNTERS[1]
    return batches, counts_of_values(key, values[key], shape) if key in values else None, skipped


def shape_of(num_features: int | tuple[int, ...]) -> tuple[int, ...]:
    """Of the arrays of such a state."""
    return num_features if isinstance(num_features, tuple) else (num_features,)


def made(kind: Callable[..., _State], content: Content, num_samples: int | NDArray | None) -> _State:
    """The state; `num_samples` overrules what the content says of it."""
    state: Any = kind(**content.arguments | {"momentum": None})
    state._momentum = content.arguments["momentum"]  # which was another state's: no warning
    for name, array in content.arrays.items():
        setattr(state, name, array)
    if state._running is not None:
        state._running.set_counters(*content.counters)
    if num_samples is not None:
        state.num_samples = num_samples
    return state.to(content.device)
