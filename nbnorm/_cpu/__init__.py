"""The CPU backend: the same names as every other backend. See stages.py for what each one does."""

from nbnorm._cpu.finalize import commit_pooled, commit_running
from nbnorm._cpu.stages import (
    backward,
    batch_statistics,
    running_backward,
    running_forward,
    training_forward,
)

__all__ = [
    "backward",
    "batch_statistics",
    "commit_pooled",
    "commit_running",
    "running_backward",
    "running_forward",
    "training_forward",
]
