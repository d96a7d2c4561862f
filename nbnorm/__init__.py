"""Batch normalization for arrays: training, inference and exact gradients, without a deep-learning framework.

>>> import numpy as np, nbnorm
>>> x = np.random.default_rng(0).normal(5, 3, size=(256, 4)).astype(np.float32)
>>> state = nbnorm.BatchNormState(4)
>>> y, saved = nbnorm.batch_norm_training(x, state)
>>> bool(abs(y.mean()) < 1e-6), bool(abs(y.std() - 1) < 1e-5)
(True, True)

Names are loaded when they are first used: `import nbnorm` itself imports nothing but NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as _numpy  # noqa: F401  the array library nothing here works without

if TYPE_CHECKING:
    from nbnorm import exchange, parallel
    from nbnorm._batch_stats import BatchStats
    from nbnorm._cpu.threads import get_num_threads, set_num_threads
    from nbnorm.double_backward import DoubleGradients, batch_norm_double_backward
    from nbnorm.files import StateFileError
    from nbnorm.folding import fold
    from nbnorm.gradients import Gradients, ResidualGradients, batch_norm_backward
    from nbnorm.inference import batch_norm_inference
    from nbnorm.jvp import batch_norm_jvp
    from nbnorm.layer import BatchNorm
    from nbnorm.renorm import Renorm
    from nbnorm.saved import Saved
    from nbnorm.state import BatchNormState
    from nbnorm.stats import batch_stats, merge_stats
    from nbnorm.training import batch_norm_training

__version__ = "0.2.0"

_HOME = {
    "BatchNorm": "layer",
    "BatchNormState": "state",
    "BatchStats": "_batch_stats",
    "DoubleGradients": "double_backward",
    "Gradients": "gradients",
    "Renorm": "renorm",
    "ResidualGradients": "gradients",
    "Saved": "saved",
    "StateFileError": "files",
    "batch_norm_backward": "gradients",
    "batch_norm_double_backward": "double_backward",
    "batch_norm_inference": "inference",
    "batch_norm_jvp": "jvp",
    "batch_norm_training": "training",
    "batch_stats": "stats",
    "fold": "folding",
    "get_num_threads": "_cpu.threads",
    "merge_stats": "stats",
    "set_num_threads": "_cpu.threads",
}

_MODULES = ("exchange", "parallel", "sklearn", "xarray")  # the last two need a package of that name

__all__ = [
    "BatchNorm",
    "BatchNormState",
    "BatchStats",
    "DoubleGradients",
    "Gradients",
    "Renorm",
    "ResidualGradients",
    "Saved",
    "StateFileError",
    "__version__",
    "batch_norm_backward",
    "batch_norm_double_backward",
    "batch_norm_inference",
    "batch_norm_jvp",
    "batch_norm_training",
    "batch_stats",
    "exchange",
    "fold",
    "get_num_threads",
    "merge_stats",
    "parallel",
    "set_num_threads",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"nbnorm.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'nbnorm' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"nbnorm.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
