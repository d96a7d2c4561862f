"""What a training forward keeps for the backward pass."""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from nbnorm._formulas import DEVIATION, GAMMA, INV_STD, ORIGIN
from nbnorm._layout import Axis, Layout
from nbnorm._shards import FAILED
from nbnorm.parallel import Sync
from nbnorm.state import BatchNormState


class Saved:
    """What a training forward keeps for the backward pass: x, and statistics and gamma as they were.

    Attributes
    ----------
    x : array, shape (N, C, ...)
        The input (a reference).
    mean, inv_std : float64 array, shape num_features
        What x was normalized with; inv_std is 1/sqrt(var + eps).
    gamma : float64 array, shape num_features, or None
        A copy of the scale.
    axis : int or tuple of int
        The channel axis.
    use_running : bool
        Whether the statistics were the running ones, and so do not depend on x.
    sync : callable or None
        How the forward pass reached the other shards of the batch.
    """

    __slots__ = ("_counts", "_dtype", "_flat", "_kernels", "_layout", "_own", "_shape", "_stats", "_with_beta",
                 "_with_gamma", "axis", "sync", "use_running", "x")  # fmt: skip

    def __init__(
        self, x: NDArray, flat: NDArray, layout: Layout, axis: Axis, use_running: bool, state: BatchNormState,
        stats: NDArray, kernels: ModuleType, sync: Sync | None,
    ) -> None:  # fmt: skip
        self.x, self.axis, self.use_running, self.sync = x, axis, use_running, sync
        self._flat, self._layout, self._stats, self._kernels = flat, layout, stats, kernels
        self._shape, self._dtype = state.shape, state.dtype
        self._counts: NDArray[np.float64] | None = None  # of a batch in shards: values per channel of every rank
        self._own: NDArray | None = None  # and the statistics of this shard, when not the running ones were used
        self._with_gamma, self._with_beta = state.gamma is not None, state.beta is not None

    @property
    def mean(self) -> NDArray[np.float64]:
        with self._kernels.on_device_of(self._stats):
            return (self._stats[ORIGIN] + self._stats[DEVIATION]).reshape(self._shape)

    @property
    def inv_std(self) -> NDArray[np.float64]:
        with self._kernels.on_device_of(self._stats):
            return self._stats[INV_STD].reshape(self._shape).copy()

    @property
    def gamma(self) -> NDArray[np.float64] | None:
        with self._kernels.on_device_of(self._stats):
            return self._stats[GAMMA].reshape(self._shape).copy() if self._with_gamma else None

    def _failed_backward(self) -> NDArray[np.float64]:
        """The message of a rank that cannot go on."""
        with self._kernels.on_device_of(self._stats):
            return self._kernels.xp.full(4 * self._stats.shape[1] + 1, FAILED)

    def __repr__(self) -> str:
        return f"Saved(x.shape={self.x.shape}, dtype={self.x.dtype}, axis={self.axis}, use_running={self.use_running})"
