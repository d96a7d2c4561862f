"""Training, the forward pass: check, view, stages."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nbnorm import _arguments, _enough, _options, _shards
from nbnorm._channel_rows import CORRECTED_BETA, CORRECTED_GAMMA, COUNTED_STATS, M2, RENORM, STATS, STATS_WITH_SIGNS
from nbnorm._ghost import in_ghost_batches
from nbnorm._inputs import check_place, checked, checked_residual
from nbnorm._layout import Axis
from nbnorm._running import Running
from nbnorm._which import counted
from nbnorm.parallel import Sync
from nbnorm.renorm import Renorm
from nbnorm.saved import Activation, Saved
from nbnorm.state import BatchNormState


def batch_norm_training(
    x: NDArray,
    state: BatchNormState,
    *,
    axis: Axis = 1,
    use_running: bool = False,
    update_running: bool = True,
    where: NDArray | None = None,
    weights: NDArray | None = None,
    nan: Literal["propagate", "omit"] = "propagate",
    residual: NDArray | None = None,
    activation: Activation = None,
    ghost: int | None = None,
    renorm: Renorm | None = None,
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
    where : bool array that broadcasts to x, optional
        Which values count, as in ``numpy.mean(x, where=where)``: (N, 1, H, W) for padded images, (N, 1, L) for
        sequences of different lengths, (N, 1) for rows. All of y is computed.
    weights : real array that broadcasts to x, optional
        How often a value counts, 0 or more: with 2 as if it were there twice.
    nan : "propagate" or "omit"
        Whether a NaN of x makes its channel NaN, or is a missing value: one that does not count.
    residual : array, shape and dtype of x, optional
        Is added before the activation; any memory layout.
    activation : "relu", ("leaky_relu", slope) or None
        y is f(gamma*(x - mean)/sqrt(var + eps) + beta + residual): f(z) is z where that is positive, else 0, or slope*z
        with slope 0, or 1.18e-38 <= slope < 1. NaN stays NaN.
    ghost : int, optional
        Ghost (virtual) batches: so many consecutive indices of the first axis that is no channel axis are a batch of
        their own, and a step of its own for the running statistics. The last one may be smaller.
    renorm : Renorm, optional
        Batch renormalization: mean and standard deviation of the batch are corrected towards the running ones, as they
        are before it.
    sync : callable, optional
        x is this process's shard of the batch, which may be empty, and `sync` reaches the others (`nbnorm.parallel`,
        such as ``nbnorm.parallel.mpi.sync(comm)``): the statistics are those of the whole batch.
    out : array, shape and dtype of x, optional
        Where to put y. Not x itself: the backward pass needs it. May be the residual.

    Returns
    -------
    y : array, shape (N, C, ...)
        dtype of x, in the memory order of x.
    saved : Saved
        What `batch_norm_backward` needs; it refers to x, which must not change before: no ReLU in place on it, no next
        batch in the same array. With both a residual and an activation it refers to y too, which must not change
        either: its sign tells what got through the activation.

    Raises
    ------
    TypeError
        When an argument is of the wrong kind or dtype.
    ValueError
        When shapes do not fit, `out` cannot take the result, a weight is negative or not finite, or a channel has fewer
        than 2 values; of those that count as `where`, `weights` and `nan` say it needs some, and more than one where
        a moving average takes their variance. When `ghost` or `renorm` meets ``use_running=True``, or `ghost` a `sync`.
        A call that raises has changed nothing, but for `ghost` where memory runs out in between.
    RuntimeError
        When another rank of `sync` has raised an error.

    Notes
    -----
    Sums in float64, y in float32 but for float64 x. x is read once from memory where the values of a channel fit a
    cache, twice otherwise; strided x is copied once. Every number of threads gives the same bits.

    `where` and `weights` are read where they are, and must not change before the backward pass either; copied, once and
    without the axes along which they are constant, are weights that are not float32 or float64, and arrays of which
    neither rows nor columns have one stride in the memory order of x. The running variance takes
    sum(weights*(x - mean)**2)/(sum(weights) - 1).

    With `sync`, x is read twice and two small messages are exchanged, whatever the size of the batch. All ranks then
    have the same running statistics to the bit, if they had before.

    Residual and activation are part of the map: a residual is read once more than x alone, an activation costs no
    access to memory. The sum is rounded once; of 16- and 32-bit data y is off by up to 2**-22 of the terms where they
    cancel.

    With `ghost`, `saved.groups` has what each ghost batch saved. With `renorm`, x is read twice, and r and d of the
    paper are constants in the backward pass.

    References
    ----------
    S. Ioffe and C. Szegedy, "Batch Normalization", 2015, arXiv:1502.03167. E. Hoffer, I. Hubara and D. Soudry, "Train
    longer, generalize better", 2017, arXiv:1705.08741. S. Ioffe, "Batch Renormalization", 2017, arXiv:1702.03275.

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
        _options.messenger(sync)
    peers = sync
    try:
        if use_running is not True and use_running is not False:
            _options.flag("use_running", use_running)
        if update_running is not True and update_running is not False:
            _options.flag("update_running", update_running)
        if use_running and not update_running:
            peers = None
        if ghost is not None:
            _options.own_statistics("ghost", use_running)
            _options.unsharded(sync)
            return in_ghost_batches(
                batch_norm_training, x, state, axis, ghost, update_running, where, weights, nan, residual, activation,
                renorm, out,
            )  # fmt: skip
        kernels, x, _, layout = checked(x, state, axis)
        N, C, S = layout.shape
        w = counted(kernels, layout, x, where, weights, nan)
        update, momentum = state._running if update_running else None, state._momentum
        needs_variance = not use_running or (update is not None and momentum is not None)
        if needs_variance and N * S < 2 and peers is None and w is None:
            _enough.values(N * S, use_running, x.shape)
        slope = None if activation is None else _options.activation(activation)
        residual = None if residual is None else checked_residual(kernels, residual, x)
        if out is not None:
            check_place(kernels, out, x, residual, where, weights)
        running = state._demand_running() if use_running else None
        if renorm is not None:
            _arguments.instance("renorm", renorm, Renorm, "a nbnorm.Renorm")
            _options.own_statistics("renorm", use_running)
            state._demand_running()
        if momentum is None and update is not None:
            update.demand_count()

        with kernels.on_device_of(x):
            xp = kernels.xp
            y = xp.empty_like(x) if out is None else out
            make, rows = xp.empty if x.size else xp.zeros, STATS if w is None and peers is None else COUNTED_STATS
            needs_signs = slope is not None and residual is None
            stats = batch = kernels.kept(make((STATS_WITH_SIGNS if needs_signs else rows, C)))
            flat, target = kernels.read(layout, x), kernels.write(layout, y)
            added = None if residual is None else kernels.read(layout, residual)
            least = 0.0 if w is None or update is None else update.least(momentum, weights is not None)
            if w is not None and peers is None and (not use_running or update is not None):
                short = kernels.short_channel(flat, layout.shape, w, least)
                _enough.counted(short, least, use_running, state.shape, weights is not None)
            saved = Saved(x, flat, layout, axis, use_running, state, stats, kernels, sync)
            if slope is not None or residual is not None:
                saved._slope, saved._with_residual = slope, residual is not None
                if slope is not None and residual is not None:
                    saved.y, saved._flat_y = y, target
            if renorm is not None:
                saved._renorm = kernels.kept(xp.empty((RENORM, C)))
            if w is not None:
                saved._w, saved._where, saved._weights, saved._nan = w, where, weights, nan
            if peers is not None or (use_running and update is not None):
                batch = kernels.kept(make((rows, C)))
            if x.size and (batch is not stats or renorm is not None):
                kernels.batch_statistics(flat, layout.shape, batch, w)
    except Exception:  # of any kind, and raised again: the other ranks wait for a message
        _shards.announce(peers, _shards.failed_forward)
        raise

    count = float(N * S) if w is None else None
    with kernels.on_device_of(x):
        if peers is not None:
            batch, count = _of_all_ranks(saved, peers, batch, update, momentum)
        if not use_running or update is not None:
            saved._batch, saved._count = batch, count
        gamma, beta, eps = state._gamma, state._beta, state._eps
        if renorm is not None:
            corrected, of_state = saved._renorm, state._demand_running()
            assert corrected is not None
            kernels.renormalize(stats, gamma, beta, eps, count, of_state, renorm.rmax, renorm.dmax, corrected)
            gamma, beta = corrected[CORRECTED_GAMMA], corrected[CORRECTED_BETA]
        if running is not None:
            kernels.running_forward(flat, target, layout.shape, gamma, beta, eps, running, stats, added, slope)
        elif peers is not None or renorm is not None:
            kernels.normalize(flat, target, layout.shape, gamma, beta, eps, count, stats, added, slope)
        elif x.size:
            # Nothing that may fail comes after a change of the state. The map for the signs of y is kept on the way.
            last, needs_signs = update if target is y else None, False
            if kernels.training_forward(
                flat, target, layout.shape, gamma, beta, eps, stats, w, last, momentum, added, slope
            ):
                update = None
        if needs_signs:
            kernels.keep_signs(stats, gamma, beta, eps, 1.0 if use_running else count)
        kernels.finish(layout, target, y)
        if update is not None:
            kernels.commit(update, momentum, batch, count)
    return y, saved


def _of_all_ranks(
    saved: Saved, peers: Sync, batch: NDArray, update: Running | None, momentum: float | None
) -> tuple[NDArray, float | None]:  # fmt: skip
    """The statistics of the batch, of which `batch` has those of this rank, and its values per channel, or None where
    channels differ. What is too little raises the same error on every rank.
    """
    kernels, (N, _, S) = saved._kernels, saved._layout.shape
    gathered, counts, count = _shards.gather_statistics(kernels.xp, peers, batch, N * S, saved._w is not None)
    if count is None:
        least = 0.0 if update is None or momentum is None else 1.0
        short = np.flatnonzero(counts.sum(0) <= least)
        first, weighted = int(short[0]) if short.size else None, bool((counts % 1).any())  # on some rank
        _enough.counted(first, least, saved.use_running, saved._shape, weighted)
    elif not saved.use_running or momentum is not None:  # the running statistics are updated where they are used
        _enough.values(int(count), saved.use_running, None)
    if not saved.use_running:
        saved._counts, saved._own, batch = counts, batch, saved._stats
    kernels.merge_statistics(counts, gathered, batch)
    if count is None and momentum is None and update is not None:
        update.demand_variance("the batch", counts.sum(0), batch[M2])
    return batch, count
