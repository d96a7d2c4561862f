"""What stands beside a batch norm: `activation=` and `residual=`, in every layout, dtype and shape."""

import copy
import pickle

import numpy as np
import pytest
import reference
from common import arguments_that_fit, random_state, refuse, same_bits, sample
from ranks import run, work_of
from test_counted import FORMS, KINDS, SHAPES, mostly_far, spoiled
from test_counted import cut as cut_masks
from test_training import LAYOUTS, every_layout, features
from tolerance import (
    FORMATS,
    OTHER_DTYPES,
    assert_both_close,
    assert_close,
    assert_gradient_close,
    assert_parts_close,
    assert_stat_close,
    dtype_of,
    rounded,
    tolerance,
    ulp,
)

import nbnorm
from nbnorm import batch_norm_backward as backward
from nbnorm import batch_norm_inference as inference
from nbnorm import batch_norm_training as training

SHAPE = (3, 4, 5, 14)  # 70 values a segment: two whole vectors and a part
ACTIVATIONS = [None, "relu", ("leaky_relu", 0.125), ("leaky_relu", 0.3)]
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
# A residual in the layout of x, in another one, and none.
RESIDUALS = {"none": None, "as x": lambda r: r, "in another order": lambda r: np.asfortranarray(r[::-1])[::-1]}
every_residual = pytest.mark.parametrize("of_residual", RESIDUALS.values(), ids=RESIDUALS)


def assert_y_close(y, plain, residual, activation, axis):
    """As `assert_close`; where the two terms cancel within 2**-22 of their sizes more, for data of up to 32 bits."""
    exact = reference.beside(plain, residual, activation)
    if y.dtype == np.float64:
        # As ever 16 units of the largest, but of the terms: an activation may let only small sums of them through.
        terms = np.abs(plain) if residual is None else np.abs(plain) + np.abs(reference.exact(residual))
        found, target, size = (reference.by_channel(array, axis) for array in (y, exact, terms))
        limit = tolerance("float64", size.shape[-1]).of_largest * size.max(-1, keepdims=True)
        assert (np.abs(found - target) <= limit).all()
        return
    if residual is None and (y.dtype != np.float32 or activation in (None, "relu")):
        assert_close(y, exact, axis)
        return
    if residual is None:  # in float32 the slope and its product with y are rounded once more
        found, target = (reference.by_channel(array, axis) for array in (y, exact))
        limit = 2.0**-22 * np.abs(target) + 2.0**-44 * np.abs(target).max(-1, keepdims=True)
        assert (np.abs(found - target) <= limit).all()
        return
    form, name = FORMATS[y.dtype.name], y.dtype.name
    target, found = rounded(exact, name), np.clip(reference.exact(y), *np.ldexp(1.0, form.overflow) * np.array([-1, 1]))
    terms = np.abs(plain) + np.abs(reference.exact(residual))
    assert (np.abs(found - target) <= 2 * ulp(target, form.bits, form.smallest) + 2.0**-22 * terms).all()


def let_through(dy, plain, residual, activation):
    """dy*f'; no value is so near 0 that rounding could decide."""
    z = plain if residual is None else plain + reference.exact(residual)
    assert (np.abs(z[np.isfinite(z)]) > 2.0**-38).all()
    return reference.gated(dy, z, activation)


def assert_dx_close(dx, exact, g, state, var, axis, terms=None):
    if dx.dtype == np.float64:
        terms = np.abs(reference.by_channel(g, axis)).max(-1) / np.sqrt(var + state.eps)
        terms = terms if state.gamma is None else terms * np.abs(state.gamma)
        assert_gradient_close(reference.by_channel(dx, axis), reference.by_channel(exact, axis), terms[..., None])
    else:
        assert_close(dx, exact, axis, terms)


def check(x, dy, residual, activation, state, axis, use_running=False, out=None, **more):
    """A step against the oracle. Returns (y, saved, gradients)."""
    running = None if state.running_mean is None else (state.running_mean.copy(), state.running_var.copy())
    batch = reference.training(x, state.gamma, state.beta, state.eps, axis)
    plain, var = batch.y, batch.var
    if use_running:
        plain = reference.inference(x, *running, state.gamma, state.beta, state.eps, axis)
        var = reference.wide(running[1])
    given = [a.tobytes() for a in (x, dy, residual) if a is not None]
    y, saved = training(x, state, axis=axis, residual=residual, activation=activation, use_running=use_running, out=out)
    assert_y_close(y, plain, residual, activation, axis)
    if running is not None:
        new = reference.moving_average(*running, batch.mean, batch.var * batch.count, batch.count, state.momentum)
        assert_stat_close(state.running_mean, new[0])
        assert_stat_close(state.running_var, new[1])
    found = backward(dy, saved, **more)
    g = let_through(dy, plain, residual, activation)
    assert isinstance(found, nbnorm.Gradients if residual is None else nbnorm.ResidualGradients)
    if residual is not None:
        assert_close(found.dresidual, g, axis)
        g = found.dresidual  # rounded to its dtype: what a network of single operations would go on with
    if use_running:
        exact = reference.frozen_backward(g, x, *running, state.gamma, state.eps, axis)
    else:
        exact = reference.backward(g, x, state.gamma, state.eps, axis)
    # In float32, but for an activation alone: with a residual dy has been let through before.
    terms = None if residual is None and activation is not None else exact.terms
    assert_dx_close(found.dx, exact.dx, g, state, var, axis, terms)
    for name in ("dgamma", "dbeta"):
        if getattr(found, name) is not None:
            # Within 2**-40 of the terms that cancel, and once rounded.
            limit = ulp(getattr(exact, name), 24, -149) + 2.0**-40 * np.abs(reference.by_channel(dy, axis)).sum(-1)
            assert (np.abs(reference.wide(getattr(found, name)) - getattr(exact, name)) <= limit).all()
    if out is None and not more:
        assert [a.tobytes() for a in (x, dy, residual) if a is not None] == given
        assert y.strides == found.dx.strides == np.empty_like(x).strides
    return y, saved, found


def case(rng, layout, dtype, of_residual, shape=SHAPE):
    x, axis = LAYOUTS[layout](sample(rng, shape, dtype))
    dy, residual = (LAYOUTS[layout](rng.normal(size=shape).astype(dtype_of(dtype)))[0] for _ in range(2))
    return x, dy, None if of_residual is None else of_residual(residual), axis


# What is not said to be exhaustive here shares few kernels: each takes seconds to compile.


@pytest.mark.parametrize(
    ("layout", "of_residual"), [("NCHW", None), ("NCHW", RESIDUALS["in another order"]), ("rows", None)]
)
def test_a_step_with_relu(layout, of_residual, rng):
    x, dy, residual, axis = case(rng, layout, "float32", of_residual)
    check(x, dy, residual, "relu", random_state(rng, features(x, axis), eps=1e-3, momentum=0.25), axis)


@pytest.mark.pairs_at_most("what a layout does to x and residual does not depend on what is done with them")
@pytest.mark.exhaustive("test_a_step_with_relu")
@every_layout
@every_residual
@every_activation
@pytest.mark.parametrize("parameters", [True, False])
@pytest.mark.parametrize("use_running", [False, True])
def test_a_step_equals_the_definition(layout, of_residual, activation, parameters, use_running, rng):
    x, dy, residual, axis = case(rng, layout, "float32", of_residual)
    options = {"use_gamma": parameters, "use_beta": parameters}
    state = random_state(rng, features(x, axis), eps=1e-3, momentum=0.25, **options)
    check(x, dy, residual, activation, state, axis, use_running)
    out = np.full(x.shape, 7, x.dtype.newbyteorder("="))
    check(x, dy, residual, activation, state, axis, use_running, out)


@pytest.mark.values_at_most("float32 in every layout; only what loads and stores knows the dtype")
@pytest.mark.exhaustive("test_a_step_with_relu, float32")
@pytest.mark.parametrize("memory", OTHER_DTYPES)
@pytest.mark.parametrize("layout", ["NCHW", "rows"])
@pytest.mark.parametrize("of_residual", [RESIDUALS["none"], RESIDUALS["as x"]], ids=["none", "as x"])
@pytest.mark.parametrize("activation", ["relu", ("leaky_relu", 0.3)], ids=str)
@pytest.mark.parametrize("use_running", [False, True])
def test_a_step_of_other_dtypes(memory, layout, of_residual, activation, use_running, rng):
    """With the running statistics it is what inference does, to the bit: test_inference_equals_the_definition."""
    x, dy, residual, axis = case(rng, layout, memory, of_residual)
    check(x, dy, residual, activation, random_state(rng, features(x, axis), eps=1e-3), axis, use_running)


@pytest.mark.pairs_at_most("what a layout does to x and residual does not depend on what is done with them")
@pytest.mark.exhaustive("test_the_layer_has_them_in_every_mode")
@every_layout
@every_residual
@every_activation
@pytest.mark.parametrize("parameters", [True, False])
def test_inference_equals_the_definition(layout, of_residual, activation, parameters, rng):
    x, _, residual, axis = case(rng, layout, "float32", of_residual)
    state = random_state(rng, features(x, axis), use_gamma=parameters, use_beta=parameters)
    plain = reference.inference(x, state.running_mean, state.running_var, state.gamma, state.beta, state.eps, axis)
    y = inference(x, state, axis=axis, residual=residual, activation=activation)
    assert_y_close(y, plain, residual, activation, axis)
    again, _ = training(
        x, state, axis=axis, use_running=True, update_running=False, residual=residual, activation=activation
    )
    assert same_bits(y, again)


@pytest.mark.pairs_at_most("how work is cut does not depend on what is done with it")
@pytest.mark.exhaustive("test_a_step_with_relu has small shapes")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@every_residual
@pytest.mark.parametrize("activation", ["relu", ("leaky_relu", 0.3)], ids=str)
@pytest.mark.parametrize("order", ["channels first", "channels last"])
def test_every_shape(shape, of_residual, activation, order, rng):
    """Every way in which work is cut: fused, split, tables, blocks, the last row of them."""
    arrays = [sample(rng, shape), sample(rng, shape), sample(rng, shape)]
    axis = 1 if order == "channels first" else -1
    if axis == -1:
        arrays = [np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in arrays]
    residual = None if of_residual is None else of_residual(arrays[2])
    check(*arrays[:2], residual, activation, random_state(rng, shape[1]), axis)


# ---- what must be so


def test_nothing_comes_back_of_what_is_not_let_through(rng):
    """0 to the bit; also of infinities, which are in all of the nine places at which an origin of dy is looked for."""
    x, dy = sample(rng, SHAPE), np.full(SHAPE, np.inf, np.float32)
    state = nbnorm.BatchNormState(4)
    state.beta = [-100.0, -100.0, -100.0, 0.0]
    dy[:, 3] = sample(rng, SHAPE)[:, 3]
    y, saved = training(x, state, activation="relu")
    dx, dgamma, dbeta = backward(dy, saved)
    for array in (y, dx):
        assert np.array_equal(array[:, :3], np.zeros((3, 3, 5, 14)))
    assert np.array_equal([dgamma[:3], dbeta[:3]], np.zeros((2, 3)))
    assert np.isfinite(dx).all()
    assert dx[:, 3].any()


def test_the_oracle_equals_the_complex_step(rng):
    x, dy, residual = (sample(rng, (3, 4, 5), "float64") for _ in range(3))
    gamma, beta, activation = rng.normal(size=4), rng.normal(size=4), ("leaky_relu", 0.25)
    plain = reference.training(x, gamma, beta, 1e-3).y
    for given in (residual, None):
        g = let_through(dy, plain, given, activation)
        found = reference.backward(g.astype(float), x, gamma, 1e-3)
        expected = reference.complex_step(
            x, dy, gamma, beta, 1e-3, residual=0 if given is None else given, activation=activation
        )
        for name in ("dx", "dgamma", "dbeta"):
            # Errors of the complex step, in float64: some 2**-53 of terms of size 10.
            np.testing.assert_allclose(getattr(found, name).astype(float), getattr(expected, name), rtol=0, atol=1e-12)
    h = 1e-100
    step = reference.formula(x, gamma, beta, 1e-3, residual=residual + 1j * h * dy, activation=activation).imag / h
    np.testing.assert_allclose(step, let_through(dy, plain, residual, activation).astype(float), rtol=0, atol=1e-15)


@pytest.mark.exhaustive("the oracle equals the complex step, and the steps the oracle")
@every_activation
@pytest.mark.parametrize("shape", [(4, 3, 1), (2, 3, 70), (20, 5, 1)], ids=str)
def test_gradients_equal_the_complex_step(shape, activation, rng):
    x, dy = sample(rng, shape, "float64"), sample(rng, shape, "float64")
    state = random_state(rng, shape[1], dtype="float64")
    _, saved = training(x, state, activation=activation)
    found = backward(dy, saved)
    expected = reference.complex_step(x, dy, state.gamma, state.beta, state.eps, activation=activation)
    scale = np.abs(dy).sum() * np.abs(state.gamma).max() * max(1, saved.inv_std.max())  # of all terms together
    for name in ("dx", "dgamma", "dbeta"):
        assert np.abs(getattr(found, name) - getattr(expected, name)).max() <= 1e-12 * scale


@pytest.mark.exhaustive("test_nothing_comes_back_of_what_is_not_let_through")
@pytest.mark.parametrize("shape", [(6, 3, 70), (6, 3, 5), (40, 3)], ids=str)
@pytest.mark.parametrize("use_running", [False, True])
def test_zero_is_not_positive(shape, use_running, rng):
    """A channel of one value has z = beta; where that is 0 or -0.0 so is y, and nothing comes back but slope*dy."""
    x, dy = np.full(shape, 3, np.float32), sample(rng, shape)
    state = nbnorm.BatchNormState(3)
    state.beta, state.running_mean = [0.0, -0.0, 1.0], [3.0, 3.0, 3.0]
    for activation, slope in (("relu", 0), (("leaky_relu", 0.25), 0.25)):
        y, saved = training(x, state, activation=activation, use_running=use_running)
        assert np.array_equal(y, np.broadcast_to(state.beta.reshape(1, 3, *[1] * (len(shape) - 2)), shape))
        assert_stat_close(backward(dy, saved).dbeta[2:], reference.by_channel(dy, 1).sum(-1)[2:])
        expected = reference.wide(slope) * reference.by_channel(dy, 1).sum(-1)[:2]
        assert np.abs(backward(dy, saved).dbeta[:2] - expected).max() <= 2.0**-23 * np.abs(expected).max()
        _, saved = training(x, state, activation=activation, use_running=use_running, residual=np.zeros_like(x))
        found = backward(dy, saved)
        assert np.array_equal(found.dresidual[:, :2], dy[:, :2] * np.float32(slope))
        assert np.array_equal(found.dresidual[:, 2:], dy[:, 2:])


@pytest.mark.values_at_most("the gate is one code for every dtype, shape and residual")
@pytest.mark.exhaustive("tests/cuda has it, and test_gradients without an activation")
@every_residual
@pytest.mark.parametrize("shape", [(6, 3, 70), (6, 3, 5), (40, 3)], ids=str)
def test_values_that_are_not_finite(dtype, shape, of_residual, rng):
    """With frozen statistics each stays where it is: relu(NaN) is NaN, and nothing comes back from there."""
    x, dy, residual = (sample(rng, shape, dtype) for _ in range(3))
    residual = None if of_residual is None else of_residual(residual)
    state = random_state(rng, 3, use_gamma=False)
    x[0, 0], x[1, 1], x[2, 2] = np.nan, np.inf, -np.inf
    for activation, slope in (("relu", 0), (("leaky_relu", 0.25), 0.25)):
        with np.errstate(all="ignore"):  # of the NumPy twins of kernels
            y, saved = training(
                x, state, use_running=True, update_running=False, residual=residual, activation=activation
            )
            found = backward(dy, saved)
        assert np.isnan(y[0, 0]).all()
        assert (y[1, 1] == np.inf).all()
        assert (y[2, 2] == (-np.inf if slope else 0)).all()
        kept = dy.astype(np.float64) * saved.inv_std.reshape(1, 3, *[1] * (len(shape) - 2))
        for part, factor in (((0, 0), slope), ((1, 1), 1), ((2, 2), slope)):
            assert_close(np.atleast_1d(found.dx[part])[None], np.atleast_1d(factor * kept[part])[None])
        assert np.isfinite(found.dx).all()


@pytest.mark.exhaustive("test_nothing_comes_back_of_what_is_not_let_through")
@pytest.mark.parametrize("shape", [(6, 3, 70), (6, 3, 5), (40, 3), (300, 96)], ids=str)
@pytest.mark.parametrize("use_running", [False, True])
def test_what_is_not_let_through_does_no_harm(shape, use_running, rng):
    """Also where it is in all of the nine places at which an origin of dy is looked for."""
    x, dy, state = sample(rng, shape), sample(rng, shape), random_state(rng, shape[1])
    y, saved = training(x, state, activation="relu", use_running=use_running)
    spoilt = np.where(y > 0, dy, np.float32(np.inf))
    assert all(map(same_bits, backward(spoilt, saved), backward(np.where(y > 0, dy, np.float32(0)), saved)))


def test_digits_of_a_large_dy_stay(rng):
    """Where all is let through dx is as near as without an activation."""
    x, dy = sample(rng, (6, 4, 100)), sample(rng, (6, 4, 100)) + np.float32(3e7)
    state = random_state(rng, 4)
    state.beta = np.full(4, 100.0)
    check(x, dy, None, "relu", state, 1)


@pytest.mark.exhaustive("one code for every slope")
def test_a_slope_of_0_is_relu_to_the_bit(dtype, rng):
    x, dy, residual = (sample(rng, (5, 3, 70), dtype) for _ in range(3))
    for given in (None, residual):
        results = []
        for activation in ("relu", ("leaky_relu", 0), ("leaky_relu", 0.0)):
            y, saved = training(x, nbnorm.BatchNormState(3), residual=given, activation=activation)
            results.append((y, *backward(dy, saved)))
        for others in results[1:]:
            assert all(same_bits(a, b) for a, b in zip(results[0], others, strict=True))


@pytest.mark.each_value
@every_residual
@pytest.mark.parametrize("use_running", [False, True])
@pytest.mark.parametrize("shape", [(9, 6, 80, 80), (20_001, 17)], ids=str)
def test_any_number_of_threads_gives_the_same_bits(of_residual, use_running, shape, rng):
    x, dy, residual = (sample(rng, shape) for _ in range(3))
    residual, results = None if of_residual is None else of_residual(residual), []
    state = random_state(rng, shape[1], dtype="float64")  # dgamma and dbeta show more bits of sums than y and dx do
    for number in (1, 2):
        nbnorm.set_num_threads(number)
        try:
            y, saved = training(
                x, state, residual=residual, activation="relu", use_running=use_running, update_running=False
            )
            results.append((y, saved.mean, saved.inv_std, *backward(dy, saved)))
        finally:
            nbnorm.set_num_threads(None)
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


# ---- together with the other options


@pytest.mark.values_at_most("test_counted has every form; test_a_step_equals_the_definition what stands beside")
@pytest.mark.exhaustive("test_counted, test_a_step_with_relu")
@pytest.mark.parametrize("form", KINDS)
@every_residual
@every_activation
@pytest.mark.parametrize("use_running", [False, True])
@pytest.mark.parametrize("shape", [(6, 3, 70), (6, 3, 5), (40, 3)], ids=str)
def test_with_masks(form, of_residual, activation, use_running, shape, rng):
    x, dy, residual = (sample(rng, shape) for _ in range(3))
    counting = FORMS[form](rng, x, 1)
    x, w = spoiled(rng, x, counting, 1)
    gone, state = reference.absent(x, w), random_state(rng, 3)
    dy = np.where(gone, np.float32(np.inf), dy)
    residual = None if of_residual is None else of_residual(residual)
    running = state.running_mean.copy(), state.running_var.copy()
    y, saved = training(x, state, residual=residual, activation=activation, use_running=use_running, **counting)
    if use_running:
        plain = reference.inference(x, *running, state.gamma, state.beta, state.eps)
    else:
        plain = reference.weighted_training(x, w, state.gamma, state.beta, state.eps).y
    there = np.where(gone, 1, plain)
    assert_y_close(np.where(gone, y.dtype.type(0), y), np.where(gone, 0, plain), None if residual is None else
                   np.where(gone, np.float32(0), residual), activation, 1)  # fmt: skip
    found = backward(dy, saved)
    g = np.where(gone, 0, let_through(np.where(gone, 0, dy), there, residual, activation)).astype(np.float64)
    if residual is not None:
        assert_close(found.dresidual, g)
        assert np.array_equal(found.dresidual[gone], np.zeros(gone.sum()))
        g = found.dresidual
    if use_running:
        exact = reference.frozen_backward(g, np.where(gone, 0, x), *running, state.gamma, state.eps)
    else:
        exact = reference.weighted_backward(g, x, w, state.gamma, state.eps)
    assert_close(found.dx, np.where(gone, 0, exact.dx))
    limit = 2.0**-40 * np.abs(reference.by_channel(g, 1)).sum(-1) * max(1, np.abs(there).max())
    for name in ("dgamma", "dbeta"):
        error = np.abs(reference.wide(getattr(found, name)) - getattr(exact, name))
        assert (error <= ulp(getattr(exact, name), 24, -149) + limit).all()


@pytest.mark.parametrize("activation", ["relu", ("leaky_relu", 0.3)], ids=str)
@pytest.mark.parametrize("sharded", [False, True])
def test_the_signs_of_wide_tables_are_those_of_their_columns(activation, sharded, rng):
    """Of more columns than are summed at once: each panel of them has a scale and a shift of its own."""
    x, dy, state = sample(rng, (65, 2_500)), sample(rng, (65, 2_500)), random_state(rng, 2_500)
    if not sharded:
        check(x, dy, None, activation, state, 1, use_running=True)
        return

    def work(rank, sync):
        part = slice(32 * rank, 32 + 33 * rank)
        _, saved = training(x[part], copy.deepcopy(state), activation=activation, sync=sync)
        return backward(dy[part], saved)

    ranks = work_of(run(2, work))
    plain = reference.training(x, state.gamma, state.beta, state.eps).y
    exact = reference.backward(let_through(dy, plain, None, activation), x, state.gamma, state.eps)
    assert_close(np.concatenate([found.dx for found in ranks]), exact.dx)
    for name in ("dgamma", "dbeta"):
        assert_parts_close([getattr(found, name) for found in ranks], getattr(exact, name))


@pytest.mark.pairs_at_most("test_parallel_sync has the exchange, test_a_step_equals_the_definition what stands beside")
@pytest.mark.exhaustive("tests/cuda has a part of it")
@every_residual
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("activation", ["relu", ("leaky_relu", 0.3)], ids=str)
@pytest.mark.parametrize("param_grads", ["local", "global"])
@pytest.mark.parametrize("use_running", [False, True])
@pytest.mark.parametrize("shape", [(9, 3, 70), (9, 5)], ids=str)
def test_shards_equal_the_whole(of_residual, masked, activation, param_grads, use_running, shape, rng):
    x, dy, residual = (sample(rng, shape) for _ in range(3))
    residual = None if of_residual is None else of_residual(residual)
    counting = {"where": rng.random(shape) < 0.7} if masked else {}
    bounds, state = [0, 2, 2, 9], random_state(rng, shape[1])
    options = {"activation": activation, "use_running": use_running}
    y, saved = training(x, copy.deepcopy(state), residual=residual, **options, **counting)
    whole = backward(dy, saved)

    def work(rank, sync):
        part = slice(bounds[rank], bounds[rank + 1])
        own, added = copy.deepcopy(state), None if residual is None else residual[part]
        of_part = cut_masks(counting, part.start, part.stop)
        its_y, its_saved = training(x[part], own, residual=added, sync=sync, **options, **of_part)
        given = dy[part].copy()
        place = None if residual is None else given
        found = backward(given, its_saved, param_grads=param_grads, dresidual_out=place)
        assert residual is None or found.dresidual is given
        return its_y, found

    ranks = work_of(run(3, work))
    assert_both_close(np.concatenate([one for one, _ in ranks]), y)
    dx = np.concatenate([f.dx for _, f in ranks])
    if not masked and not use_running and (residual is not None or activation is None):
        # In float32, both of them as near to what is exact as docs/numerics.md says.
        g = dy if residual is None else whole.dresidual
        terms = reference.backward(g, x, state.gamma, state.eps).terms
        assert (np.abs(dx - whole.dx) <= 2 * 2.0**-22 * terms).all()
    else:
        assert_both_close(dx, whole.dx)
    if residual is not None:
        assert same_bits(np.concatenate([found.dresidual for _, found in ranks]), whole.dresidual)
    for name in ("dgamma", "dbeta"):
        parts = [getattr(found, name) for _, found in ranks]
        assert_parts_close(parts[:1] if param_grads == "global" else parts, getattr(whole, name))


@pytest.mark.exhaustive("test_parallel_sync, without a residual")
def test_a_rank_that_fails_changes_no_dy(rng):
    """What gets through is exchanged before anything of the caller's changes."""
    x, dy = sample(rng, (6, 3, 70)), sample(rng, (6, 3, 70))
    given = [dy[:3].copy(), dy[3:].copy()]

    def work(rank, sync):
        part = slice(3 * rank, 3 * rank + 3)
        _, saved = training(x[part], nbnorm.BatchNormState(3), residual=x[part], activation="relu", sync=sync)
        return backward(given[rank] if rank else given[rank][:2], saved, dresidual_out=given[rank])

    first, second = run(2, work)
    assert (type(first), type(second)) == (ValueError, RuntimeError)
    assert same_bits(np.concatenate(given), dy)


@pytest.mark.exhaustive("kernels for weights alone; test_counted.py has such weights")
@pytest.mark.parametrize("shape", [(40, 2, 70), (300, 2)], ids=str)
@pytest.mark.parametrize("memory", ["float32", "float64"])
def test_y_lies_where_the_residual_was_however_often_x_is_read(shape, memory, rng):
    """The first origin of these weights is not near the mean: y is not written before there is one that is."""
    x, weights = mostly_far(sample(rng, shape, memory), 1e-30, 1e8)
    state, residual = random_state(rng, 2), sample(rng, shape, memory)
    plain = reference.weighted_training(x, reference.counts(x, None, weights), state.gamma, state.beta).y
    place = residual.copy()
    y, _ = training(x, state, weights=weights, residual=place, activation="relu", out=place)
    assert y is place
    assert_y_close(y, plain, residual, "relu", 1)


@pytest.mark.exhaustive("test_ghost, test_renorm")
@every_residual
def test_ghost_batches_and_renormalization(of_residual, rng):
    x, dy, residual = (sample(rng, (7, 3, 6)) for _ in range(3))
    residual = None if of_residual is None else of_residual(residual)
    options = {"activation": ("leaky_relu", 0.3), "renorm": nbnorm.Renorm(1.2, 0.3)}
    state = random_state(rng, 3)
    other = copy.deepcopy(state)
    y, saved = training(x, state, ghost=3, residual=residual, **options)
    found = backward(dy, saved)
    sums = 0
    for part in reference.groups(x, 1, 3):
        running = other.running_mean.copy(), other.running_var.copy()
        r, d = reference.renorm(reference.training(x[part]), *running, other.eps, 1.2, 0.3)
        plain = reference.renormalized(x[part], r, d, other.gamma, other.beta, other.eps)
        added = None if residual is None else residual[part]
        expected, step = training(x[part], other, residual=added, **options)
        assert same_bits(y[part], expected)
        assert_y_close(expected, plain, added, options["activation"], 1)
        one = backward(dy[part], step)
        assert same_bits(found.dx[part], one.dx)
        g = let_through(dy[part], plain, added, options["activation"])
        g = g.astype(np.float32) if residual is not None else g
        exact = reference.renormalized_backward(g, x[part], r, d, other.gamma, other.eps)
        # In float32 with a residual, whose gradient has been let through before; the terms are those of gamma*r.
        terms = None if residual is None else reference.backward(g, x[part], other.gamma * r, other.eps).terms
        assert_close(one.dx, exact.dx, terms=terms)
        sums = sums + exact.dgamma
        if residual is not None:
            assert same_bits(found.dresidual[part], one.dresidual)
    assert_stat_close(found.dgamma, sums)


# ---- places for the results


@pytest.mark.exhaustive("test_out, without a residual")
@every_activation
@pytest.mark.parametrize("order", ["C", "F"])
def test_results_may_replace_what_is_used_up(activation, order, rng):
    x, dy, residual = (np.array(sample(rng, (6, 3, 70)), order=order) for _ in range(3))
    state = random_state(rng, 3)
    y, saved = training(x, state, residual=residual, activation=activation)
    exact = backward(dy, saved)
    place = residual.copy(order="K")
    again, _ = training(x, copy.deepcopy(state), residual=place, activation=activation, out=place)
    assert again is place
    assert same_bits(np.array(again), np.array(y))
    for keys in (("dresidual_out",), ("out",), ("dresidual_out", "other out"), ("out", "other dresidual_out")):
        given = dy.copy(order="K")
        places = {key.split()[-1]: given if " " not in key else np.empty_like(x, order="C") for key in keys}
        found = backward(given, saved, **places)
        assert all(same_bits(np.array(a), np.array(b)) for a, b in zip(found, exact, strict=True))
        for key, array in places.items():
            assert array is (found.dx if key == "out" else found.dresidual)
    before = inference(x, state, residual=residual, activation=activation)
    for name in ("x", "residual"):
        arrays = {"x": x.copy(order="K"), "residual": residual.copy(order="K")}
        again = inference(arrays["x"], state, residual=arrays["residual"], activation=activation, out=arrays[name])
        assert again is arrays[name]
        assert same_bits(np.array(again), np.array(before))


def check_copies(x, dy, **options):
    y, saved = training(x, nbnorm.BatchNormState(3), activation="relu", **options)
    exact = backward(dy, saved)
    for other in (copy.deepcopy(saved), pickle.loads(pickle.dumps(saved))):
        assert all(same_bits(a, b) for a, b in zip(backward(dy, other), exact, strict=True))
    assert saved.y is (y if "residual" in options else None)


def test_copies_of_saved_give_the_same_gradients(rng):
    x, dy, residual = (sample(rng, (6, 3, 70)) for _ in range(3))
    check_copies(x, dy)
    check_copies(x, dy, residual=residual)


@pytest.mark.exhaustive("test_copies_of_saved_give_the_same_gradients")
def test_copies_of_saved_with_other_options_too(rng):
    x, dy, residual = (np.asfortranarray(sample(rng, (7, 3, 6))) for _ in range(3))
    check_copies(x, dy, residual=residual, where=x < 1)
    check_copies(x, dy, ghost=4)


# ---- what is refused

OTHER, EVERY = np.zeros((8, 3, 6), np.float32), np.zeros((8, 3, 70), np.float32)
REFUSED = {
    "another word": ({"activation": "gelu"}, ValueError, "activation is 'gelu'", '"relu"'),
    "an array": ({"activation": OTHER}, ValueError, "activation is array", '"relu"'),
    "a pair of arrays": ({"activation": (OTHER, OTHER)}, ValueError, "activation is (array", '"relu"'),
    "no slope": ({"activation": "leaky_relu"}, ValueError, "activation is 'leaky_relu'", '("leaky_relu", slope)'),
    "a slope of 1": ({"activation": ("leaky_relu", 1)}, ValueError, "the slope", "is 1; expected", "less than 1"),
    "a negative slope": ({"activation": ("leaky_relu", -0.1)}, ValueError, "the slope", "-0.1"),
    "too small a slope": ({"activation": ("leaky_relu", 1e-40)}, ValueError, "1e-40", "at least 1.18e-38"),
    "NaN": ({"activation": ("leaky_relu", np.nan)}, ValueError, "the slope", "nan"),
    "a word for a slope": ({"activation": ("leaky_relu", "0.1")}, ValueError, "the slope", "'0.1'"),
    "a list": ({"residual": [0.0]}, TypeError, "residual is a builtins.list", "np.asarray(residual)"),
    "another shape": ({"residual": OTHER[:7]}, ValueError, "residual has shape (7, 3, 6)", "of x, (8, 3, 6)"),
    "what would broadcast": ({"residual": OTHER[:1]}, ValueError, "residual has shape (1, 3, 6)"),
    "another dtype": ({"residual": OTHER.astype(np.float64)}, TypeError, "residual has dtype float64", "float32"),
    "integers": ({"residual": OTHER.astype(int)}, TypeError, "residual has dtype int64"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("more", [{}, {"ghost": 4}], ids=["plain", "ghost"])
def test_arguments_that_do_not_fit_change_nothing(given, case, more):
    options, error, *texts = case
    refuse(given, lambda: training(given.x, given.state, out=given.out, **options, **more), error, *texts)
    if not more:
        refuse(given, lambda: inference(given.x, given.state, out=given.out, **options), error, *texts)


@pytest.fixture
def of_segments(rng):
    """Arguments that fit, of a shape for which other tests compile the kernels."""
    return arguments_that_fit(rng, (8, 3, 70))


def test_places_that_do_not_fit_change_nothing(of_segments):
    given = of_segments
    residual = np.ones_like(given.x)
    y, saved = training(given.x, given.state, residual=residual, activation="relu")
    other = given.saved

    def call(dresidual_out, saved=saved, **options):
        return lambda: backward(given.dy, saved, dresidual_out=dresidual_out, **options)

    refuse(given, call(given.out, other), ValueError, "dresidual_out is an array, but", "no residual")
    refuse(given, call(given.x), ValueError, "dresidual_out is x itself", "backward pass needs")
    refuse(given, call(y), ValueError, "dresidual_out is y itself", "backward pass needs")
    refuse(given, call(given.out, out=given.out), ValueError, "dresidual_out is out itself", "another result")
    refuse(given, call(given.out[:7]), ValueError, "dresidual_out has shape")
    refuse(given, call(given.dy[::-1]), ValueError, "dresidual_out overlaps dy")
    refuse(given, call([0.0]), TypeError, "dresidual_out is a builtins.list")
    refuse(
        given, lambda: training(given.x, given.state, residual=residual, out=residual[::-1]), ValueError,
        "out overlaps residual",
    )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "relu"},
        {"residual": EVERY},
        pytest.param(
            {"activation": "relu", "where": EVERY == 0, "weights": np.ones((8, 1, 70))},
            marks=pytest.mark.exhaustive("kernels of their own; an activation alone"),
        ),
    ],
    ids=["activation", "residual", "activation and where"],
)
def test_further_derivatives_are_refused(of_segments, options):
    given = of_segments
    _, saved = training(given.x, given.state, **options)
    name = next(iter(options))
    refuse(given, lambda: nbnorm.batch_norm_jvp(given.dy, None, None, saved), ValueError, f"{name}=", "not built")
    call = lambda: nbnorm.batch_norm_double_backward(given.dy, None, None, given.dy, saved)  # noqa: E731
    refuse(given, call, ValueError, f"{name}=", "not built")


# ---- the layer


@pytest.mark.parametrize("mode", ["training", "frozen", "evaluation"])
@every_residual
def test_the_layer_has_them_in_every_mode(mode, of_residual, rng):
    x, dy, residual = (sample(rng, (6, 3, 70)) for _ in range(3))
    residual = None if of_residual is None else of_residual(residual)
    layer = nbnorm.BatchNorm(3, activation="relu")
    layer.state.beta = [0.5, -0.5, 0.0]
    layer.frozen = mode == "frozen"
    layer.train(mode != "evaluation")
    state = copy.deepcopy(layer.state)
    y, saved = training(x, state, use_running=mode != "training", residual=residual, activation="relu")
    exact = backward(dy, saved)
    assert same_bits(layer(x, residual=residual), y)
    assert same_bits(layer.backward(dy), exact.dx)
    assert same_bits(layer.dgamma, exact.dgamma)
    assert same_bits(layer.dresidual, None if residual is None else exact.dresidual)
    if residual is not None:
        layer(x, residual=residual)
        layer.backward(dy, dresidual_out=(place := np.empty_like(x)))
        assert layer.dresidual is place
        assert same_bits(place, exact.dresidual)
    layer(x)
    layer.backward(dy)
    assert layer.dresidual is None


@pytest.mark.parametrize("debug", [False, True])
def test_a_call_in_evaluation_mode_is_what_it_was(debug, rng):
    """Whatever is assigned to the layer between it and its backward."""
    x, dy = sample(rng, (2, 70, 70)), sample(rng, (2, 70, 70))  # channels on either axis, and kernels of other tests
    layer = nbnorm.BatchNorm(70, activation="relu").eval()
    layer.debug = debug
    layer.state.beta = np.linspace(-0.5, 0.5, 70)
    layer(x)
    exact = layer.backward(dy), layer.dgamma
    layer(x)
    layer.activation, layer.axis = None, -1
    assert same_bits(layer.backward(dy), exact[0])
    assert same_bits(layer.dgamma, exact[1])


def test_the_repr_of_a_layer_tells_what_stands_beside():
    layer = nbnorm.BatchNorm(3, activation="relu", ghost=4)
    assert "activation='relu', ghost=4, state" in repr(layer)
    assert "activation" not in repr(nbnorm.BatchNorm(3))


def test_debug_sees_a_change_of_y_beside_a_residual(rng):
    x, residual = sample(rng, (6, 3, 70)), sample(rng, (6, 3, 70))
    layer = nbnorm.BatchNorm(3, activation="relu")
    layer.debug = True
    y = layer(x, residual=residual)
    y[0] = 0
    with pytest.raises(RuntimeError, match=r"^y has changed since the call"):
        layer.backward(x)
    y = layer(x)
    y[0] = 0  # the sign of y is known by x
    layer.backward(x)
    with pytest.raises(ValueError, match="activation is 'tanh'"):
        nbnorm.BatchNorm(3, activation="tanh")
