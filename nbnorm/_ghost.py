"""Ghost batches: groups of a batch, each of them a step of its own."""

from __future__ import annotations

import math
from collections.abc import Callable

from numpy.typing import NDArray

from nbnorm import _enough, _options
from nbnorm._inputs import check_place, checked, checked_residual
from nbnorm._layout import Axis, groups, layout_of
from nbnorm._which import counted
from nbnorm.renorm import Renorm
from nbnorm.saved import Activation, Saved
from nbnorm.state import BatchNormState


def in_ghost_batches(
    step: Callable[..., tuple[NDArray, Saved]], x: NDArray, state: BatchNormState, axis: Axis, ghost: int,
    update_running: bool, where: NDArray | None, weights: NDArray | None, nan: str, residual: NDArray | None,
    activation: Activation, renorm: Renorm | None, out: NDArray | None,
) -> tuple[NDArray, Saved]:  # fmt: skip
    """One `step` after the other, when all is known to go well with every one of them; arguments as it takes them."""
    kernels, x, axes, of_whole = checked(x, state, axis)
    whole = counted(kernels, of_whole, x, where, weights, nan)
    _options.activation(activation)
    residual = None if residual is None else checked_residual(kernels, residual, x)
    if out is not None:
        check_place(kernels, out, x, residual, where, weights)
    parts = groups(x.shape, axes, _options.ghost(ghost))
    update = state._running if update_running else None
    least = 0.0 if whole is None or update is None else update.least(state.momentum, weights is not None)
    with kernels.on_device_of(x):
        xp = kernels.xp
        cut = [
            [None if array is None else xp.broadcast_to(array, x.shape)[part] for part in parts]
            for array in (where, weights)
        ]
        if whole is None:
            count = math.prod(n for i, n in enumerate(x[parts[-1]].shape) if i not in axes)
            _enough.in_groups(ghost, len(parts), count, x.shape)
        else:
            for part, of_where, of_weights in zip(parts, *cut, strict=True):
                layout = layout_of(x[part], axes)
                w = counted(kernels, layout, x[part], of_where, of_weights, nan)
                assert w is not None
                short = kernels.short_channel(kernels.read(layout, x[part]), layout.shape, w, least)
                _enough.counted(short, least, False, state.shape, weights is not None)
        y = xp.empty_like(x) if out is None else out
        saved = [
            step(
                x[part], state, axis=axis, update_running=update_running, where=of_where, weights=of_weights, nan=nan,
                residual=None if residual is None else residual[part], activation=activation, renorm=renorm,
                out=y[part],
            )[1]
            for part, of_where, of_weights in zip(parts, *cut, strict=True)
        ]  # fmt: skip
    return y, Saved.of_groups(x, y, where, weights, of_whole, axis, state, parts, saved)
