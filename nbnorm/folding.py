"""A batch normalization with fixed statistics and the linear map beside it as one linear map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nbnorm import _arguments, _options
from nbnorm._dispatch import kernels_for, kernels_on
from nbnorm.state import BatchNormState


def fold(
    weight: NDArray, bias: NDArray | None, state: BatchNormState, *, axis: int | None = None, after: bool = True
) -> tuple[NDArray, NDArray]:
    """A linear map or convolution, and the inference of the batch normalization behind it, as one map.

    weight*(gamma*inv_std) and (bias - running_mean)*(gamma*inv_std) + beta, inv_std = 1/sqrt(running_var + eps).

    Parameters
    ----------
    weight : array, shape (O, I, ...)
        Of the linear map or convolution; float16, bfloat16, float32 or float64. Read only.
    bias : array, shape (O,), or None
        What is added to each output. Read only.
    state : BatchNormState
        With running statistics. Read only.
    axis : int, optional
        The axis of `weight` that has the channels of the batch normalization. By default 0, the outputs of (O, I, ...),
        and with ``after=False`` 1, the inputs. For the (..., I, O) of Keras, Flax and ``x @ weight``: -1, and with
        ``after=False`` -2. For transposed convolutions (I, O, ...): 1 and 0.
    after : bool
        Whether the batch normalization comes behind the map. With False it comes before it; then the outputs are on
        the other one of the first two axes, or of the last two where `axis` is negative.

    Returns
    -------
    weight : array, shape of weight
        A new array of its dtype.
    bias : array, shape (O,)
        A new array of the dtype of bias, or of weight where that is None.

    Raises
    ------
    TypeError
        When an argument is of the wrong kind or dtype, or on another device.
    ValueError
        When shapes or `axis` do not fit, or the state has no running statistics or n-D parameters.

    Notes
    -----
    The arithmetic is in float64 and each number is rounded once (bfloat16 through float32). That costs half an ulp of
    each weight and of the bias: for float32, y is off by at most 2⁻²⁴·(Σ abs(weight·x) + abs(bias)) in exact sums, with
    the folded numbers. Where the values to be normalized have a mean that comes from the `bias` passed in, the folded
    one is small: below 4 ulp of the largest abs(y) at any mean/std. Where their mean, r standard deviations, comes from
    the products, y is off by up to r/2 ulp, mostly by half of that, and most of it is the rounding of the folded bias,
    which a float64 `bias` (zeros where there is none) avoids; summing such products in float32 loses several times as
    much, folded or not. `batch_norm_inference` itself loses nothing.

    With ``after=False`` the map that follows must not see zeros that were padded behind the batch normalization: in
    front of a zero-padded convolution the folded one is wrong at the borders. For grouped and depthwise convolutions
    only ``after=True``.

    References
    ----------
    B. Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
    2017, arXiv:1712.05877, section 3.2.

    Examples
    --------
    >>> import numpy as np, nbnorm
    >>> state = nbnorm.BatchNormState(1, eps=1e-12)
    >>> state.running_mean, state.running_var = [10.0], [4.0]
    >>> weight, bias = nbnorm.fold(np.array([[3.0, 5.0]]), None, state)
    >>> weight.round(9), bias.round(9)
    (array([[1.5, 2.5]]), array([-5.]))
    """
    kernels = kernels_for("weight", weight)
    _arguments.instance("state", state, BatchNormState, "a nbnorm.BatchNormState")
    for name, array in (("weight", weight), ("bias", bias)):
        if array is not None:
            kernels_on(name, array, state.device, "the state", 'state.to("{found}")')
    weight = kernels.values("weight", weight)
    bias = bias if bias is None else kernels.values("bias", bias)
    _options.flag("after", after)
    channels, outputs = _axes(weight, axis, after)
    if state.shape != (weight.shape[channels],):
        raise ValueError(
            f"weight.shape is {weight.shape!s:.60}, {weight.shape[channels]} along axis {channels}; "
            f"expected state.num_features={state.num_features!s:.40}"
        )
    if bias is not None and bias.shape != (weight.shape[outputs],):
        raise ValueError(
            f"bias.shape is {bias.shape!s:.60}; expected ({weight.shape[outputs]},), the outputs of weight"
        )

    scale, shift = state.as_affine()
    with kernels.on_device_of(weight):
        along = [-1 if i == channels else 1 for i in range(weight.ndim)]
        folded = (weight * scale.reshape(along)).astype(weight.dtype)
        if after:
            total = shift if bias is None else bias * scale + shift
        else:
            others = tuple(i for i in range(weight.ndim) if i != outputs)
            total = (weight * shift.reshape(along)).sum(others)
            total = total if bias is None else bias + total
        return folded, total.astype(weight.dtype if bias is None else bias.dtype)


def _axes(weight: NDArray, axis: int | None, after: bool) -> tuple[int, int]:
    """The axes of the batch normalization's channels and of the outputs, not negative."""
    n = weight.ndim
    if n < 2:
        raise ValueError(f"weight is {n}-D; expected at least 2-D, such as (outputs, inputs)")
    axis = (0 if after else 1) if axis is None else axis
    if not isinstance(axis, int | np.integer) or isinstance(axis, bool):
        raise TypeError(f"axis is {axis!r:.40}; expected an int")
    if not -n <= axis < n:
        raise np.exceptions.AxisError(f"axis {axis} is out of range for weight with {n} dimensions")
    if after:
        return axis % n, axis % n
    if axis not in (0, 1, -1, -2):
        raise ValueError(
            f"axis is {axis}; with after=False expected 0 or 1 for weights like (O, I, ...), -1 or -2 for (..., I, O)"
        )
    return axis % n, (1 - axis if axis >= 0 else -3 - axis) % n
