"""The CUDA backend: the same names as every other backend. See stages.py and memory.py for what each one does."""

from nbnorm._cuda.memory import Array, address, device, finish, footprint, on_device_of, read, values, write, xp
from nbnorm._cuda.stages import (
    backward,
    batch_statistics,
    running_backward,
    running_forward,
    training_forward,
)

__all__ = [
    "Array",
    "address",
    "backward",
    "batch_statistics",
    "device",
    "finish",
    "footprint",
    "on_device_of",
    "read",
    "running_backward",
    "running_forward",
    "training_forward",
    "values",
    "write",
    "xp",
]
