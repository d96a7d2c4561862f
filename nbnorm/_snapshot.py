"""A state at one moment: its attributes, with copies of the arrays. What copies, pickles and files are made of."""

from __future__ import annotations

from typing import Any

from nbnorm import _device
from nbnorm._running import SKIPPED, Running, undisturbed

_CHANGING = ("_gamma", "_beta", "_running")


@undisturbed
def taken(own: dict[str, Any]) -> dict[str, Any]:
    """Of the attributes of a state."""
    with _device.current(own["_device"]):
        return {name: value.copy() if name in _CHANGING and value is not None else value for name, value in own.items()}


def restored(own: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a state, whose arrays are on its device wherever those of the snapshot are."""
    if "_counters" in own:
        own = _of_version_0_1_0(own)
    device, running = own["_device"], own["_running"]
    with _device.current(device):  # CuPy unpickles onto the device that is current
        gamma, beta = (_device.moved(own[name], device) for name in ("_gamma", "_beta"))
        return own | {"_gamma": gamma, "_beta": beta, "_running": running and running.to(device)}


def _of_version_0_1_0(own: dict[str, Any]) -> dict[str, Any]:
    """Its pickles have the running statistics and two counters beside each other."""
    own = dict(own)
    mean, var, counters = (own.pop(name) for name in ("_running_mean", "_running_var", "_counters"))
    running = None
    if mean is not None:
        running = Running.fresh(mean.shape, _device.library(own["_device"]), 1.0)
        running.mean[...], running.var[...], running.counters[:SKIPPED] = mean, var, counters
    return own | {"_running": running}
