"""What derivatives get beside a `Saved`: arrays like x, and directions (tangents or cotangents) like gamma and beta."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from nbnorm import _arguments
from nbnorm._channel_rows import OF_BETA, OF_GAMMA
from nbnorm._dispatch import kernels_on
from nbnorm._shards import FAILED
from nbnorm.saved import Saved


def refuse_what_is_not_built(saved: Saved) -> None:
    """Never a wrong number."""
    beside = {
        "ghost": bool(saved.groups),
        "renorm": saved._renorm is not None,
        "residual": saved._with_residual,
        "activation": saved._slope is not None,
    }
    if name := next((name for name, given in beside.items() if given), None):
        raise ValueError(
            f"the forward pass had {name}=, after which batch_norm_double_backward and batch_norm_jvp are not built; "
            "they are without it"
        )


def like_x(name: str, array: NDArray, saved: Saved) -> NDArray:
    """`array` as kernels read it, on the device, with the shape and of the dtype of the forward pass's x."""
    there, way_out = saved._kernels.device(saved.x), "an array there, as it gave y"
    array = kernels_on(name, array, there, "x of the forward pass", way_out).values(name, array)
    _arguments.like_x(name, array, saved.x)
    return array


def like_parameters(saved: Saved, **given: NDArray | None) -> Any:
    """(2, C) float64, from the arrays for gamma and for beta, in this order; None is 0."""
    kernels, C = saved._kernels, saved._layout.shape[1]
    directions = kernels.kept(kernels.xp.zeros((2, C)))
    for row, exists, (name, array) in zip(
        (OF_GAMMA, OF_BETA), (saved._with_gamma, saved._with_beta), given.items(), strict=True
    ):
        if array is not None:
            kernels_on(name, array, kernels.device(saved.x), "x of the forward pass")
            _arguments.direction(name, array, saved._shape, exists)
            directions[row].reshape(saved._shape)[...] = array
    return directions


def failed(saved: Saved, rows: int) -> Any:
    """The message of a rank that cannot go on, as long as that of one that can."""
    with saved._kernels.on_device_of(saved._stats):
        return saved._kernels.xp.full(rows * saved._layout.shape[1] + 1, FAILED)
