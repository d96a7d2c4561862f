"""The systems of peers.py: what each of them gives, and where it is made.

All do the same work: y with gamma and beta, running statistics updated, all three gradients, parameters in float32
(float64 beside float64). "out" is the same with the output given. Only the process of a system imports its module.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from peers_rows import Data

EPS, MOMENTUM = 1e-5, 0.1
SYSTEMS = {  # by name: module and function
    "nbnorm": ("peers_nbnorm", "nbnorm_system"),
    "NumPy": ("peers_numpy", "numpy_system"),
    "PyTorch": ("peers_torch", "torch_system"),
    "torch.compile": ("peers_torch", "compile_system"),
    "oneDNN": ("peers_torch", "onednn_system"),
    "JAX": ("peers_jax", "jax_system"),
}


class WrongResult(Exception):
    """What was computed is something else."""


class System(NamedTuple):
    version: str
    calls: dict[str, Callable[[], Any]]  # by operation; they return y first, or dx, dgamma and dbeta
    running: Callable[[Any], tuple[Any, Any]]  # mean and variance after a call of "training" that returned this
    numpy: Callable[[Any], np.ndarray]


def make(name: str) -> Callable[[Data, str], System]:
    """The function that makes a system for data and the name of a dtype."""
    module, function = SYSTEMS[name]
    return getattr(importlib.import_module(module), function)


def parameter_type(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"


def numpy_dtype(name: str) -> np.dtype:
    return np.dtype(importlib.import_module("ml_dtypes").bfloat16 if name == "bfloat16" else name)
