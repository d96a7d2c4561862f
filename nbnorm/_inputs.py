"""The arrays of a forward call, as kernels take them: x, a residual, and the place for y."""

from __future__ import annotations

from types import ModuleType

from numpy.typing import NDArray

from nbnorm import _arguments
from nbnorm._dispatch import kernels_for
from nbnorm._layout import Axis
from nbnorm.state import BatchNormState


def checked(x: NDArray, state: BatchNormState, axis: Axis) -> tuple[ModuleType, NDArray, tuple[int, ...]]:
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


def checked_residual(kernels: ModuleType, residual: NDArray, x: NDArray) -> NDArray:
    """As kernels read it, on the device, with the shape and of the dtype of x."""
    its_kernels = kernels_for("residual", residual)
    found, there = its_kernels.device(residual), kernels.device(x)
    _arguments.same_device("residual", residual, found, there, "x", "an array there")
    residual = kernels.values("residual", residual)
    _arguments.like_x("residual", residual, x, "x")
    return residual


def check_place(
    kernels: ModuleType, out: NDArray, x: NDArray, residual: NDArray | None, where: NDArray | None = None,
    weights: NDArray | None = None, allowed: tuple[str, ...] = ("residual",),
) -> None:  # fmt: skip
    """`out` can take y."""
    given = {"x": x, "residual": residual, "where": where, "weights": weights}
    inputs = {name: array for name, array in given.items() if array is not None}
    _arguments.output(kernels, out, x, inputs, allowed)
