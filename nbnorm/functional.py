"""The forward functions: training and inference. Check, view, stages."""

from __future__ import annotations

from types import ModuleType

from numpy.typing import NDArray

from nbnorm import _arguments, _shards
from nbnorm._dispatch import kernels_for
from nbnorm._formulas import M2
from nbnorm._layout import Axis, layout_of
from nbnorm.parallel import Sync
from nbnorm.saved import Saved
from nbnorm.state import BatchNormState


def batch_norm_training(
    x: NDArray,
    state: BatchNormState,
    *,
    axis: Axis = 1,
    use_running: bool = False,
    update_running: bool = True,
    sync: Sync | None = None,
    out: NDArray | None = None,
) -> tuple[NDArray, Saved]:
    """Normalize a batch with its own statistics, and fold them into the running ones.

    y = gamma*(x - mean)/sqrt(var + eps) + beta, with the mean and the biased variance of each channel over all other
    axes.

    Parameters
    ----------
    x : array, shape (N, C, ...)
        At least 2-D; float16, bfloat16, float32 or float64; any memory layout.
    state : BatchNormState
        The running statistics and counters are updated in place.
    axis : int or tuple of int
        The channel axis of x.
    use_running : bool
        Normalize with the running statistics, as they are before this batch, instead of the batch's.
    update_running : bool
        Fold the batch into the running statistics, when the state has them.
    sync : callable, optional
        x is this process's shard of the batch, which may be empty, and `sync` reaches the others (`nbnorm.parallel`,
        such as ``nbnorm.parallel.mpi.sync(comm)``): the statistics are those of the whole batch.
    out : array, shape and dtype of x, optional
        Where to put y. Not x itself: the backward pass needs it.

    Returns
    -------
    y : array, shape (N, C, ...)
        dtype of x, in the memory order of x.
    saved : Saved
        What `batch_norm_backward` needs; it refers to x, which must not change before: no ReLU in place on it, no next
        batch in the same array.

    Raises
    ------
    TypeError
        When an argument is of the wrong kind or dtype.
    ValueError
        When shapes do not fit, `out` cannot take the result, or a channel has fewer than 2 values.
        A call that raises has changed nothing.
    RuntimeError
        When another rank of `sync` has raised an error.

    Notes
    -----
    Sums in float64, y too (on the CPU in float32 for 16-bit x), and rounded at the end. x is read once from memory
    where the values of a channel fit a cache, twice otherwise; strided x is copied once. Every number of threads gives
    the same bits.

    With `sync`, x is read twice and two small messages are exchanged, whatever the size of the batch. All ranks then
    have the same running statistics to the bit, if they had before.

    References
    ----------
    S. Ioffe and C. Szegedy, "Batch Normalization", 2015, arXiv:1502.03167.

    Examples
    --------
    >>> import numpy as np, nbnorm
    >>> x = np.array([[1, 10], [3, 30]], np.float32)
    >>> state = nbnorm.BatchNormState(2)
    >>> y, saved = nbnorm.batch_norm_training(x, state)
    >>> y.round(3)
    array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    >>> state.running_mean
    array([0.2, 2. ])
    """
    if sync is not None:
        _arguments.messenger(sync)
    peers = sync if update_running or not use_running else None
    try:
        kernels, x, axes = _checked(x, state, axis)
        layout = layout_of(x, axes)
        N, C, S = layout.shape
        update, momentum = state._running if update_running else None, state.momentum
        needs_variance = not use_running or (update is not None and momentum is not None)
        if needs_variance and peers is None:
            _arguments.enough_values(N * S, use_running, x.shape)
        if out is not None:
            _arguments.output(kernels, out, x, {"x": x}, allowed=())
        running = state._demand_running() if use_running else None
        if momentum is None and update is not None:
            update.demand_count()

        with kernels.on_device_of(x):
            xp = kernels.xp
            y = xp.empty_like(x) if out is None else out
            make = xp.empty if x.size else xp.zeros
            stats = batch = kernels.kept(make((5, C)))
            flat, target = kernels.read(layout, x), kernels.write(layout, y)
            saved = Saved(x, flat, layout, axis, use_running, state, stats, kernels, sync)
            if peers is not None or (use_running and update is not None):
                batch = kernels.kept(make((5, C)))
                if x.size:
                    kernels.batch_statistics(flat, layout.shape, batch)
    except Exception:  # of any kind, and raised again: the other ranks wait for a message
        _shards.announce(peers, _shards.failed_forward)
        raise

    count = N * S
    with kernels.on_device_of(x):
        if peers is not None:
            counts = _shards.exchange_counts(peers, C, count)
            count = int(counts.sum())
            if needs_variance:
                _arguments.enough_values(count, use_running, None)
            gathered = _shards.exchange(peers, batch[: M2 + 1].reshape(-1), counts.size)
            if not use_running:
                saved._counts, saved._own, batch = counts, batch, stats
            kernels.merge_statistics(counts, gathered, batch)
        if not use_running or update is not None:
            saved._batch, saved._count = batch, float(count)
        if running is not None:
            kernels.running_forward(flat, target, layout.shape, state.gamma, state.beta, state.eps, running, stats)
        elif peers is not None:
            kernels.normalize(flat, target, layout.shape, state.gamma, state.beta, state.eps, float(count), stats)
        elif x.size:
            kernels.training_forward(flat, target, layout.shape, state.gamma, state.beta, state.eps, stats)
        kernels.finish(layout, target, y)
        if update is not None:
            kernels.commit(update, momentum, batch, float(count))
    return y, saved


def batch_norm_inference(x: NDArray, state: BatchNormState, *, axis: Axis = 1, out: NDArray | None = None) -> NDArray:
    """Normalize with the running statistics; nothing is updated.

    y = gamma*(x - running_mean)/sqrt(running_var + eps) + beta.

    Parameters
    ----------
    x : array, shape (N, C, ...)
        At least 2-D; float16, bfloat16, float32 or float64; any memory layout.
    state : BatchNormState
        Read only.
    axis : int or tuple of int
        The channel axis of x.
    out : array, shape and dtype of x, optional
        Where to put y; may be x itself.

    Returns
    -------
    y : array, shape (N, C, ...)
        dtype of x, in the memory order of x.

    Raises
    ------
    TypeError
        When an argument is of the wrong kind or dtype.
    ValueError
        When shapes do not fit, `out` cannot take the result, or the state has no running statistics.

    Notes
    -----
    One read of x, one write of y, float64 (on the CPU float32 for 16-bit x) in between; strided x is copied once.

    References
    ----------
    S. Ioffe and C. Szegedy, "Batch Normalization", 2015, arXiv:1502.03167.

    Examples
    --------
    >>> import numpy as np, nbnorm
    >>> state = nbnorm.BatchNormState(1, eps=1e-9)
    >>> state.running_mean, state.running_var = [5.0], [4.0]
    >>> nbnorm.batch_norm_inference(np.array([[9.0], [5.0]]), state).round(6)
    array([[2.],
           [0.]])
    """
    kernels, x, axes = _checked(x, state, axis)
    if out is not None:
        _arguments.output(kernels, out, x, {"x": x}, allowed=("x",))
    running = state._demand_running()

    with kernels.on_device_of(x):
        y = kernels.xp.empty_like(x) if out is None else out
        if x.size:
            layout = layout_of(x, axes)
            target = kernels.write(layout, y)
            kernels.running_forward(
                kernels.read(layout, x), target, layout.shape, state.gamma, state.beta, state.eps, running, None
            )
            kernels.finish(layout, target, y)
    return y


def saved_of_inference(x: NDArray, state: BatchNormState, axis: Axis) -> Saved:
    """What a forward pass with the running statistics saves, found afterwards and without its y."""
    kernels, x, axes = _checked(x, state, axis)
    layout, running = layout_of(x, axes), state._demand_running()
    _, C, S = layout.shape
    with kernels.on_device_of(x):
        stats, flat = kernels.kept(kernels.xp.zeros((5, C))), kernels.read(layout, x)
        none = flat[:0]
        kernels.running_forward(none, none, (0, C, S), state.gamma, state.beta, state.eps, running, stats)
        return Saved(x, flat, layout, axis, True, state, stats, kernels, None)


def _checked(x: NDArray, state: BatchNormState, axis: Axis) -> tuple[ModuleType, NDArray, tuple[int, ...]]:
    """The backend, x as its kernels take it, and the channel axes."""
    kernels = kernels_for("x", x)
    if not isinstance(state, BatchNormState):  # here and below, a test before the check saves the usual case a call
        _arguments.instance("state", state, BatchNormState, "a nbnorm.BatchNormState")
    if (found := kernels.device(x)) != state.device:
        _arguments.same_device("x", x, found, state.device, "the state", 'state.to("{found}")')
    x = kernels.values("x", x)
    axes = _arguments.channels(x, axis)
    if len(axes) > 1 or x.shape[axes[0]] != state.num_features:
        _arguments.features(x, axis, axes, state.num_features)
    return kernels, x, axes
