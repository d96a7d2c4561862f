"""fold: the folded map against the oracle of the map and the batch normalization behind each other."""

import numpy as np
import pytest
import reference
from common import random_state, refuse, same_bits, snapshot
from numpy.lib.stride_tricks import sliding_window_view
from tolerance import FORMATS, dtype_of, ulp

import nbnorm
from nbnorm import fold


def convolution(x, weight):
    """x (N, I, H, W) and weight (O, I, h, w), no padding, in long double."""
    x, weight = (reference.wide(np.asarray(a, np.float64)) for a in (x, weight))
    return np.einsum("nihwkl,oikl->nohw", sliding_window_view(x, weight.shape[2:], axis=(2, 3)), weight)


def per_channel(values):
    return reference.wide(np.asarray(values, np.float64)).reshape(1, -1, 1, 1)


def inference(x, state):
    gamma, beta = state.gamma, state.beta
    return reference.inference(x, state.running_mean, state.running_var, gamma, beta, state.eps)


def assert_rounded_once(found, exact, terms, dtype):
    """Half an ulp of what the exact value is, and what float64 arithmetic leaves of its terms.

    bfloat16 is reached through float32: 2**-17 ulp more, where that lies on the other side of a tie.
    """
    form = FORMATS[dtype]
    assert (found.dtype, found.shape) == (dtype_of(dtype), exact.shape)
    limit = (0.5 + 2.0**-16) * ulp(exact, form.bits, form.smallest) + 8 * 2.0**-53 * terms
    assert (np.abs(reference.wide(np.asarray(found, np.float64)) - exact) <= limit).all()


OPTIONS = [{}, {"use_gamma": False}, {"use_beta": False}, {"dtype": "float64"}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_behind_a_convolution_every_number_is_rounded_once(dtype, biased, options, rng):
    state = random_state(rng, 4, eps=1e-3, **options)
    weight = rng.normal(size=(4, 3, 3, 2)).astype(dtype_of(dtype))
    bias = rng.normal(size=4).astype(dtype_of(dtype)) if biased else None
    before = weight.tobytes(), biased and bias.tobytes(), snapshot(state)
    folded, shift = fold(weight, bias, state)
    assert (weight.tobytes(), biased and bias.tobytes(), snapshot(state)) == before

    one, zero = (inference(np.full((1, 4), value), state)[0] for value in (1.0, 0.0))
    scale, given = one - zero, reference.wide(np.zeros(4) if bias is None else bias.astype(np.float64))
    exact = reference.wide(weight.astype(np.float64)) * scale.reshape(4, 1, 1, 1)
    assert_rounded_once(folded, exact, np.abs(exact), dtype)
    terms = np.abs(given * scale) + np.abs(state.running_mean * scale) + np.abs(zero)
    assert_rounded_once(shift, zero + given * scale, terms, dtype)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_before_a_convolution_every_number_is_rounded_once(dtype, biased, options, rng):
    state = random_state(rng, 3, eps=1e-3, **options)
    weight = rng.normal(size=(4, 3, 3, 2)).astype(dtype_of(dtype))
    bias = rng.normal(size=4).astype(dtype_of(dtype)) if biased else None
    folded, shift = fold(weight, bias, state, after=False)

    one, zero = (inference(np.full((1, 3), value), state)[0] for value in (1.0, 0.0))
    wide = reference.wide(weight.astype(np.float64))
    exact = wide * (one - zero).reshape(1, 3, 1, 1)
    assert_rounded_once(folded, exact, np.abs(exact), dtype)
    given = reference.wide(np.zeros(4) if bias is None else bias.astype(np.float64))
    products = wide * zero.reshape(1, 3, 1, 1)
    parts = np.abs(wide) * (np.abs(zero) + np.abs(state.running_mean * (one - zero))).reshape(1, 3, 1, 1)
    terms = wide[0].size * parts.sum((1, 2, 3)) + np.abs(given)
    assert_rounded_once(shift, given + products.sum((1, 2, 3)), terms, dtype)


def network(rng, ratio, source, after):
    """float32 x, weight, bias and the state of a network whose values before normalization have that mean/std."""
    x = rng.normal(size=(64, 3, 6, 6)).astype(np.float32)
    weight, bias = rng.normal(size=(4, 3, 3, 3)).astype(np.float32), rng.normal(size=4)
    if not after:
        x += np.float32(ratio)
    elif source == "bias":
        bias += ratio * np.sqrt((weight.astype(np.float64) ** 2).sum((1, 2, 3)))
    else:  # every product has the same sign
        weight = np.abs(weight)
        deviation = np.sqrt((weight.astype(np.float64) ** 2).sum((1, 2, 3)))
        x += np.float32(ratio * (deviation / weight.sum((1, 2, 3))).min())
    bias = bias.astype(np.float32)
    state = random_state(rng, 4 if after else 3)
    z = convolution(x, weight) + per_channel(bias) if after else x.astype(np.longdouble)
    state.running_mean, state.running_var = z.mean((0, 2, 3)), z.var((0, 2, 3))
    assert 0.5 * ratio <= np.abs(state.running_mean / np.sqrt(state.running_var)).max() <= 1.5 * ratio + 2
    exact = inference(z, state) if after else convolution(inference(x, state), weight) + per_channel(bias)
    return x, weight, bias, state, exact


@pytest.mark.parametrize("ratio", [0, 1, 10, 100, 10_000])
@pytest.mark.parametrize(("source", "after"), [("bias", True), ("products", True), ("x", False)])
def test_a_network_is_off_by_the_roundings_of_its_numbers(ratio, source, after, rng):
    """The docstring's bound, which is half an ulp, 2**-24, of every folded number. A bit in 2**20 for float64."""
    x, weight, bias, state, exact = network(rng, ratio, source, after)
    folded, shift = fold(weight, bias, state, after=after)
    y = convolution(x, folded) + per_channel(shift)
    bound = convolution(np.abs(x), np.abs(folded)) + per_channel(np.abs(shift))
    assert (np.abs(y - exact) <= 2.0**-24 * (1 + 2.0**-20) * bound).all()


def ulps_of_the_largest(y, exact):
    """The largest error of each channel in float32 ulp of its largest abs(y)."""
    largest = np.abs(exact).max((0, 2, 3))
    return np.abs(y - exact).max((0, 2, 3)) / ulp(largest, 24)


@pytest.mark.parametrize("ratio", [0, 1, 10, 100, 10_000])
def test_a_mean_from_the_bias_costs_nothing(ratio, rng):
    x, weight, bias, state, exact = network(rng, ratio, "bias", True)
    folded, shift = fold(weight, bias, state)
    assert (ulps_of_the_largest(convolution(x, folded) + per_channel(shift), exact) <= 4).all()


@pytest.mark.parametrize("ratio", [8, 100])
def test_a_mean_from_the_products_costs_what_the_docstring_says(ratio, rng):
    """Half an ulp of products that add up to r deviations and of a bias that is as large: 2**-23 * r deviations.

    The largest y is 3 to 6 deviations here, so its ulp is at least 2**-22 of one: r/2 of them.
    """
    x, weight, bias, state, exact = network(rng, ratio, "products", True)
    folded, shift = fold(weight, bias, state)
    found = ulps_of_the_largest(convolution(x, folded) + per_channel(shift), exact)
    assert (found <= ratio / 2).all()


def test_a_float64_bias_leaves_the_roundings_of_the_weights(rng):
    x, weight, bias, state, exact = network(rng, 100, "products", True)
    folded, shift = fold(weight, bias.astype(np.float64), state)
    assert (folded.dtype, shift.dtype) == (np.float32, np.float64)
    error = np.abs(convolution(x, folded) + per_channel(shift) - exact)
    assert (error <= 2.0**-24 * (1 + 2.0**-20) * convolution(np.abs(x), np.abs(folded))).all()


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize(
    "layout",
    ["dense", "channels last", "transposed", "transposed, channels last", "length", "length, channels last",
     "length, transposed"],
)  # fmt: skip
def test_the_axis_says_where_the_channels_are(layout, after, rng):
    """The same numbers as for (O, I, ...), in another order."""
    state = random_state(rng, 4 if after else 3)
    kernel = () if layout == "dense" else (5,) if "length" in layout else (3, 2)
    weight, bias = rng.normal(size=(4, 3, *kernel)), rng.normal(size=4)
    expected = fold(weight, bias, state, after=after)
    if layout == "transposed, channels last":  # (h, w, O, I)
        moved, axis, back = np.moveaxis(weight, (0, 1), (-2, -1)), -2 if after else -1, ((-2, -1), (0, 1))
    elif "channels last" in layout:  # (h, w, I, O)
        moved, axis, back = np.moveaxis(weight, (1, 0), (-2, -1)), -1 if after else -2, ((-2, -1), (1, 0))
    elif layout == "dense":  # x @ weight
        moved, axis, back = weight.T, -1 if after else -2, ((0, 1), (1, 0))
        assert all(map(same_bits, fold(moved, bias, state, axis=1 if after else 0, after=after)[1:], expected[1:]))
    elif "transposed" in layout:  # (I, O, h, w)
        moved, axis, back = weight.swapaxes(0, 1), 1 if after else 0, ((0, 1), (1, 0))
    else:
        moved, axis, back = weight, 0 if after else 1, ((0, 1), (0, 1))
    folded, shift = fold(moved, bias, state, axis=axis, after=after)
    assert np.array_equal(np.moveaxis(folded, *back), expected[0])
    assert np.allclose(shift, expected[1], rtol=1e-14, atol=1e-14)  # sums in another order


def test_weights_in_any_memory(rng):
    state = random_state(rng, 4)
    weight = rng.normal(size=(4, 6)).astype(np.float32)
    wide = np.zeros((8, 12), np.float32)
    wide[::2, ::2] = weight
    swapped = weight.astype(weight.dtype.newbyteorder())
    for other in (wide[::2, ::2], np.asfortranarray(weight), swapped):
        assert all(map(same_bits, fold(other, None, state), fold(weight, None, state)))


def test_bad_arguments(given):
    weight, bias = np.ones((3, 5), np.float32), np.ones(3, np.float32)
    state = given.state
    for call, error, *texts in (
        (lambda: fold(np.ones((4, 3)), None, state), ValueError, "weight.shape is (4, 3)", "num_features=3"),
        (lambda: fold(weight, None, state, after=False), ValueError, "5 along axis 1", "num_features=3"),
        (lambda: fold(weight, np.ones(5), state), ValueError, "bias.shape is (5,)", "(3,)"),
        (lambda: fold(weight, np.ones((3, 1)), state), ValueError, "bias.shape"),
        (lambda: fold(np.ones(3), None, state), ValueError, "weight is 1-D"),
        (lambda: fold(weight, None, state, axis=2), np.exceptions.AxisError, "axis 2"),
        (lambda: fold(weight, None, state, axis=0.0), TypeError, "axis is 0.0"),
        (lambda: fold(weight, None, state, axis=False), TypeError, "axis is False"),
        (lambda: fold(np.ones((5, 2, 3)), None, state, axis=2, after=False), ValueError, "axis is 2", "-1 or -2"),
        (lambda: fold([[1.0], [2.0], [3.0]], None, state), TypeError, "weight is a builtins.list"),
        (lambda: fold(weight, [1.0, 2.0, 3.0], state), TypeError, "bias is a builtins.list"),
        (lambda: fold(weight.astype(int), bias, state), TypeError, "weight has dtype int64"),
        (lambda: fold(weight, bias.astype(int), state), TypeError, "bias has dtype int64"),
        (lambda: fold(weight, bias, None), TypeError, "state is a NoneType"),
        (lambda: fold(weight, bias, nbnorm.BatchNormState(3, track_running=False)), ValueError, "track_running"),
        (lambda: fold(weight, bias, nbnorm.BatchNormState((3, 5))), ValueError, "num_features=(3, 5)"),
    ):
        refuse(given, call, error, *texts, arrays=(weight, bias))
