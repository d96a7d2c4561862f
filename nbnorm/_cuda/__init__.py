"""The CUDA backend: the same names as every other backend. See stages.py and memory.py for what each one does."""

from nbnorm._cuda.memory import (
    Array,
    address,
    device,
    finish,
    footprint,
    kept,
    on_device_of,
    read,
    scratch,
    values,
    write,
    xp,
)
from nbnorm._cuda.shards import (
    apply_gradients,
    gradient_sums,
    merge_gradient_sums,
    merge_statistics,
    normalize,
    parameter_gradients,
)
from nbnorm._cuda.stages import (
    backward,
    batch_statistics,
    commit,
    running_backward,
    running_forward,
    training_forward,
)

__all__ = [
    "Array",
    "address",
    "apply_gradients",
    "backward",
    "batch_statistics",
    "commit",
    "device",
    "finish",
    "footprint",
    "gradient_sums",
    "kept",
    "merge_gradient_sums",
    "merge_statistics",
    "normalize",
    "on_device_of",
    "parameter_gradients",
    "read",
    "running_backward",
    "running_forward",
    "scratch",
    "training_forward",
    "values",
    "write",
    "xp",
]
