"""The arrays of a forward call, as kernels take them: x, a residual, and the place for y."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

from numpy.typing import NDArray

from nbnorm import _arguments
from nbnorm._dispatch import kernels_for, kernels_on
from nbnorm._layout import Axis, Layout, layout_of_strides
from nbnorm._outputs import check_output
from nbnorm.state import BatchNormState


def checked(x: NDArray, state: BatchNormState, axis: Axis) -> tuple[ModuleType, NDArray, tuple[int, ...], Layout]:
    """The backend, x as its kernels take it, the channel axes, and how x lies."""
    kernels = kernels_for("x", x)
    if not isinstance(state, BatchNormState):  # here and below, a test before the check saves the usual case a call
        _arguments.instance("state", state, BatchNormState, "a nbnorm.BatchNormState, such as layer.state")
    if (found := kernels.device(x)) != state._device:
        _arguments.same_device("x", x, found, state.device, "the state", 'state.to("{found}")')
    x = kernels.values("x", x)
    fit = _fit if type(axis) is int else _fit.__wrapped__  # as a key True would be 1, and a list an error of its own
    return kernels, x, *fit(x.shape, x.strides, x.itemsize, axis, state._num_features)


@lru_cache(1024)
def _fit(
    shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int, axis: Axis, num_features: int | tuple[int, ...]
) -> tuple[tuple[int, ...], Layout]:  # fmt: skip
    """The channel axes, which are those of the state, and the layout."""
    axes = _arguments.channels(shape, axis)
    _arguments.features(shape, axis, axes, num_features)
    return axes, layout_of_strides(shape, strides, itemsize, axes)


def checked_residual(kernels: ModuleType, residual: NDArray, x: NDArray) -> NDArray:
    """As kernels read it, on the device, with the shape and of the dtype of x."""
    residual = kernels_on("residual", residual, kernels.device(x), "x").values("residual", residual)
    _arguments.like_x("residual", residual, x, "x")
    return residual


def check_place(
    kernels: ModuleType, out: NDArray, x: NDArray, residual: NDArray | None, where: NDArray | None = None,
    weights: NDArray | None = None, allowed: tuple[str, ...] = ("residual",),
) -> None:  # fmt: skip
    """`out` can take y."""
    inputs = (("x", x), ("residual", residual), ("where", where), ("weights", weights))
    check_output(kernels, out, x, inputs, allowed)
