"""What a training forward keeps for the backward pass."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nbnorm import _device
from nbnorm._batch_stats import BatchStats
from nbnorm._channel_rows import COUNT, DEVIATION, GAMMA, INV_STD, M2, ORIGIN, PLAIN_GAMMA
from nbnorm._counted import Counted, compact
from nbnorm._dispatch import kernels_for
from nbnorm._layout import Axis, Index, Layout
from nbnorm._which import counted
from nbnorm.parallel import Sync
from nbnorm.state import BatchNormState
from nbnorm.stats import merge_stats

Activation = Literal["relu"] | tuple[Literal["leaky_relu"], float] | None


class Saved:
    """What a training forward keeps for the backward pass: x, and statistics and gamma as they were.

    Attributes
    ----------
    x : array, shape (N, C, ...)
        The input (a reference).
    mean, var, inv_std : float64 array, shape num_features
        What x was normalized with: the batch's mean and biased variance, or the running ones as they were. inv_std is
        1/sqrt(var + eps).
    gamma : float64 array, shape num_features, or None
        A copy of the scale.
    stats : BatchStats
        Of the batch, with `sync` of the whole one, as `BatchNormState.update` and `merge_stats` take them. A ValueError
        where the forward pass had no need of them (``use_running=True, update_running=False``).
    count : float64 array, shape () or num_features
        `stats.count`, the number of values per channel: of each, where `where`, `weights` or ``nan="omit"`` were given.
    axis : int or tuple of int
        The channel axis.
    use_running : bool
        Whether the statistics were the running ones, and so do not depend on x.
    sync : callable or None
        How the forward pass reached the other shards of the batch.
    y : array, shape (N, C, ...), or None
        The output (a reference), where there were a residual and an activation.
    groups : tuple of Saved
        What each ghost batch saved, in order, where there was a `ghost`; otherwise empty. Then mean, var and inv_std
        have those of each along a new first axis, and `stats` are those of all together. Parameter gradients of one of
        them are float64, to be added.

    Notes
    -----
    Deep copies and pickles are independent of the original: x goes with them, so that another process can run the
    backward pass, to the same bits; ``copy.copy`` shares them. `sync` is passed on as it is: copies share it, and a
    pickle has what its own pickling gives (a function, or MPI's COMM_WORLD, is that of the process that reads it; other
    communicators refuse).

    Examples
    --------
    >>> import numpy as np, nbnorm
    >>> y, saved = nbnorm.batch_norm_training(np.array([[1.0], [3.0]]), nbnorm.BatchNormState(1))
    >>> saved.mean, saved.var, saved.count
    (array([2.]), array([1.]), array(2.))
    >>> other = nbnorm.BatchNormState(1, momentum=None)
    >>> other.update(saved.stats)
    """

    # A name that is not here cannot be assigned.
    __slots__ = ("__weakref__", "_batch", "_count", "_counts", "_dtype", "_flat", "_flat_y", "_kernels", "_layout",
                 "_nan", "_own", "_parts", "_renorm", "_shape", "_slope", "_stats", "_w", "_weights", "_where",
                 "_with_beta", "_with_gamma", "_with_residual", "axis", "groups", "sync", "use_running", "x",
                 "y")  # fmt: skip

    y: NDArray | None
    groups: tuple[Saved, ...]
    _batch: NDArray | None  # statistics of the whole batch, rows as in _stats; None when not computed
    _count: float | None  # its values per channel; None when the batch has those of each channel
    _w: Counted | None  # which values count, and what that refers to
    _where: NDArray | None
    _weights: NDArray | None
    _nan: str
    _counts: NDArray[np.float64] | None  # of a batch in shards: values per channel of every rank
    _own: NDArray | None  # and the statistics of this shard, when not the running ones were used
    _renorm: NDArray | None  # rows of batch renormalization; `_stats` has r*gamma
    _slope: float | None  # of the activation
    _with_residual: bool
    _flat_y: NDArray | None
    _parts: tuple[Index, ...]  # where groups are in x

    def __init__(
        self, x: NDArray, flat: NDArray, layout: Layout, axis: Axis, use_running: bool, state: BatchNormState,
        stats: NDArray, kernels: ModuleType, sync: Sync | None,
    ) -> None:  # fmt: skip
        self.x, self.axis, self.use_running, self.sync = x, axis, use_running, sync
        self._flat, self._layout, self._stats, self._kernels = flat, layout, stats, kernels
        self._shape, self._dtype = state.shape, state._dtype
        self._with_gamma, self._with_beta = state._gamma is not None, state._beta is not None
        self._plain()

    def _plain(self) -> None:
        """What few calls set, as the others have it."""
        self.y = self._batch = self._w = self._where = self._weights = self._counts = self._own = None
        self._renorm = self._slope = self._flat_y = None
        self.groups = self._parts = ()
        self._count, self._nan, self._with_residual = 0.0, "propagate", False

    @classmethod
    def of_groups(
        cls, x: NDArray, y: NDArray, where: NDArray | None, weights: NDArray | None, layout: Layout, axis: Axis,
        state: BatchNormState, parts: list[Index], groups: list[Saved],
    ) -> Saved:  # fmt: skip
        """Of ghost batches; their parameter gradients are float64, to be added."""
        first = groups[0]
        saved = cls(x, x, layout, axis, False, state, first._stats, first._kernels, None)
        saved.groups, saved._parts, saved._with_residual = tuple(groups), tuple(parts), first._with_residual
        saved._renorm, saved.y = first._renorm, None if first.y is None else y  # gamma is there, and the same in all
        saved._where, saved._weights = where, weights
        for group in groups:
            group._dtype = np.dtype(np.float64)
        return saved

    def _of_each(self, name: str) -> NDArray[np.float64]:
        with self._kernels.on_device_of(self._stats):
            return self._kernels.xp.stack([getattr(group, name) for group in self.groups])

    @property
    def mean(self) -> NDArray[np.float64]:
        if self.groups:
            return self._of_each("mean")
        with self._kernels.on_device_of(self._stats):
            return (self._stats[ORIGIN] + self._stats[DEVIATION]).reshape(self._shape)

    @property
    def var(self) -> NDArray[np.float64]:
        if self.groups:
            return self._of_each("var")
        with self._kernels.on_device_of(self._stats):
            count = self._stats[COUNT] if self._count is None else self._count
            var = self._stats[M2].copy() if self.use_running else self._stats[M2] / count
            return var.reshape(self._shape)

    @property
    def inv_std(self) -> NDArray[np.float64]:
        if self.groups:
            return self._of_each("inv_std")
        with self._kernels.on_device_of(self._stats):
            return self._stats[INV_STD].reshape(self._shape).copy()

    @property
    def gamma(self) -> NDArray[np.float64] | None:
        with self._kernels.on_device_of(self._stats):
            gamma = self._stats[GAMMA] if self._renorm is None else self._renorm[PLAIN_GAMMA]
            return gamma.reshape(self._shape).copy() if self._with_gamma else None

    @property
    def stats(self) -> BatchStats:
        if self.groups:
            return merge_stats(*(group.stats for group in self.groups))
        batch = self._batch
        if batch is None:
            raise ValueError(
                "the statistics of this batch are not known (use_running=True, update_running=False); "
                "nbnorm.batch_stats(saved.x, axis=saved.axis) finds them"
            )
        with self._kernels.on_device_of(batch):
            mean, m2 = batch[ORIGIN] + batch[DEVIATION], batch[M2].copy()
            if self._count is None:
                count = batch[COUNT].copy().reshape(self._shape)
            else:
                count = self._kernels.xp.full((), self._count)
            return BatchStats(count, mean.reshape(self._shape), m2.reshape(self._shape))

    @property
    def _given(self) -> tuple[tuple[str, NDArray | None], ...]:
        """Arrays of the caller that derivatives read, by name: their results must not lie over a part of one."""
        return ("x", self.x), ("y", self.y), ("where", self._where), ("weights", self._weights)

    @property
    def _is_counted(self) -> bool:
        """Whether dx needs a count of each channel."""
        return self._count is None and not self.use_running

    @property
    def count(self) -> NDArray[np.float64]:
        return self.stats.count

    def __repr__(self) -> str:
        return f"Saved(x.shape={self.x.shape}, dtype={self.x.dtype}, axis={self.axis}, use_running={self.use_running})"

    def __getstate__(self) -> dict[str, Any]:
        """x in the order in which it lies in memory, which pickles of arrays forget."""
        derived = ("__weakref__", "_flat", "_flat_y", "_kernels", "_w")
        own = {name: getattr(self, name) for name in Saved.__slots__ if name not in derived}
        if self.y is not None:
            own["y"] = self.y.transpose(self._layout.order)
        for name in ("_where", "_weights"):
            if own.get(name) is not None:
                padded = own[name][(None,) * (self.x.ndim - own[name].ndim)]
                own[name] = compact(padded).transpose(self._layout.order)
        return {**own, "x": self.x.transpose(self._layout.order), "device": self._kernels.device(self.x)}

    def __setstate__(self, own: dict[str, Any]) -> None:
        device = own.pop("device")
        with _device.current(device):  # CuPy unpickles onto the device that is current
            for name in ("x", "y", "_where", "_weights", "_stats", "_batch", "_own", "_renorm"):
                if own.get(name) is not None:
                    own[name] = _device.library(device).asarray(own[name])
            self._plain()  # pickles may lack names
            for name, value in own.items():
                setattr(self, name, value)
            for name in ("x", "y", "_where", "_weights"):
                if own.get(name) is not None:
                    setattr(self, name, own[name].transpose(np.argsort(self._layout.order).tolist()))
            self._kernels = kernels_for("saved.x", self.x)
            self._flat, self._flat_y, self._w = self.x, None, None
            if not self.groups:
                self._flat = self._kernels.read(self._layout, self.x)
                self._flat_y = None if self.y is None else self._kernels.read(self._layout, self.y)
                self._w = counted(self._kernels, self._layout, self.x, self._where, self._weights, self._nan)

    def __deepcopy__(self, memo: dict[int, Any]) -> Saved:
        memo[id(self.sync)] = self.sync  # what carries messages is not data
        twin = Saved.__new__(Saved)
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return twin
