"""Batch renormalization against the formulas of the paper, step by step."""

import copy
import pickle

import numpy as np
import pytest
import reference
from common import random_state, refuse, same_bits, sample, snapshot
from ranks import run, work_of
from test_training import case, every_affine, every_layout, features
from tolerance import assert_both_close, assert_close, assert_gradient_close, assert_parts_close, assert_stat_close

import nbnorm
from nbnorm import batch_norm_backward as backward
from nbnorm import batch_norm_training as training

# Loose enough for all channels, for some, and none: then it is plain batch normalization.
LIMITS = [(1.0, 0.0), (1.3, 0.4), (100.0, 100.0)]


def assert_dx_close(dx, exact, dy, x, r, state, axis):
    if dx.dtype == np.float64:
        var = reference.training(x, axis=axis).var
        terms = np.abs(reference.by_channel(dy, axis)).max(-1) * r / np.sqrt(var + state.eps)
        terms = terms if state.gamma is None else terms * np.abs(state.gamma)
        assert_gradient_close(reference.by_channel(dx, axis), reference.by_channel(exact, axis), terms[..., None])
    else:  # the terms are those of plain batch normalization with gamma*r
        gamma = r if state.gamma is None else r * state.gamma
        assert_close(dx, exact, axis, reference.backward(dy, x, gamma, state.eps, axis).terms)


@pytest.mark.pairs_at_most("r and d change constants of a channel; what is done with these: test_training.py")
@every_layout
@every_affine
@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("parameters", ["float32", "float64"])
@pytest.mark.parametrize("update_running", [True, False])
def test_a_step_equals_the_paper(dtype, layout, use_gamma, use_beta, limits, parameters, update_running, rng):
    x, dy, axis = case(rng, layout, dtype)
    options = {"dtype": parameters, "use_gamma": use_gamma, "use_beta": use_beta}
    state = random_state(rng, features(x, axis), eps=1e-3, momentum=0.25, **options)
    running = state.running_mean.copy(), state.running_var.copy()
    batch = reference.training(x, axis=axis)
    r, d = reference.renorm(batch, *running, state.eps, *limits)
    y, saved = training(x, state, axis=axis, renorm=nbnorm.Renorm(*limits), update_running=update_running)
    assert_close(y, reference.renormalized(x, r, d, state.gamma, state.beta, state.eps, axis), axis)
    assert saved.gamma is state.gamma is None or np.array_equal(saved.gamma, state.gamma)
    assert_stat_close(saved.mean, batch.mean)
    assert_stat_close(saved.var, batch.var)
    if update_running:
        new = reference.moving_average(*running, batch.mean, batch.var * batch.count, batch.count, 0.25)
        assert_stat_close(state.running_mean, new[0])
        assert_stat_close(state.running_var, new[1])
    found = backward(dy, saved)
    exact = reference.renormalized_backward(dy, x, r, d, state.gamma, state.eps, axis)
    assert_dx_close(found.dx, exact.dx, dy, x, r, state, axis)
    if use_gamma:
        # The sum of two terms, each within 2**-40 of its own size, and the rounding to the dtype of gamma.
        terms = np.abs(reference.by_channel(dy, axis)).sum(-1) * (r + np.abs(d))
        limit = 2.0**-24 * np.abs(exact.dgamma) + 2.0**-40 * terms
        assert (np.abs(reference.wide(found.dgamma) - exact.dgamma) <= limit).all()
        assert found.dgamma.dtype == state.dtype
    if use_beta:
        assert_stat_close(found.dbeta, exact.dbeta)
    assert (found.dgamma is None, found.dbeta is None) == (not use_gamma, not use_beta)


def test_the_oracle_equals_the_complex_step(rng):
    x, dy = sample(rng, (3, 4, 5), "float64"), sample(rng, (3, 4, 5), "float64")
    gamma, beta, running = rng.normal(size=4), rng.normal(size=4), (rng.normal(size=4), rng.uniform(0.5, 20, 4))
    r, d = reference.renorm(reference.training(x), *running, 1e-3, 1.3, 0.4)
    assert len(set(r.tolist())) > 1
    expected = reference.complex_step(x, dy, gamma, beta, 1e-3, r=r.astype(float), d=d.astype(float))
    found = reference.renormalized_backward(dy, x, r, d, gamma, 1e-3)
    for name in ("dx", "dgamma", "dbeta"):
        # Errors of the complex step, in float64: some 2**-53 of terms of size 10.
        np.testing.assert_allclose(getattr(found, name).astype(float), getattr(expected, name), rtol=0, atol=1e-12)


def test_limits_of_1_and_0_are_plain_batch_normalization(rng):
    x, dy = sample(rng, (9, 3, 70)), sample(rng, (9, 3, 70))
    state = random_state(rng, 3)
    other = copy.deepcopy(state)
    y, saved = training(x, state, renorm=nbnorm.Renorm(1, 0))
    expected, plain = training(x, other)
    assert same_bits(y, expected)
    assert snapshot(state) == snapshot(other)
    for one, exact in zip(backward(dy, saved), backward(dy, plain), strict=True):
        assert same_bits(one, exact)


@pytest.mark.parametrize("param_grads", ["local", "global"])
@pytest.mark.parametrize("masked", [False, True])
def test_in_shards_the_batch_is_everyones(param_grads, masked, rng):
    x, dy, bounds = sample(rng, (9, 3, 70)), sample(rng, (9, 3, 70)), [0, 2, 2, 9]
    where = rng.random((9, 1, 70)) < 0.6 if masked else None
    state, renorm = random_state(rng, 3), nbnorm.Renorm(1.2, 0.3)
    whole, running = copy.deepcopy(state), (state.running_mean.copy(), state.running_var.copy())
    y, saved = training(x, whole, renorm=renorm, where=where)
    exact = backward(dy, saved)

    def work(rank, sync):
        own, part = copy.deepcopy(state), slice(bounds[rank], bounds[rank + 1])
        of_part = None if where is None else where[part]
        y, saved = training(x[part], own, sync=sync, renorm=renorm, where=of_part)
        return own, y, backward(dy[part], saved, param_grads=param_grads)

    ranks = work_of(run(3, work))
    assert_both_close(np.concatenate([one[1] for one in ranks]), y)
    dx = np.concatenate([one[2].dx for one in ranks])
    if masked:
        assert_both_close(dx, exact.dx)
    else:  # in float32
        batch = reference.training(x, eps=state.eps)
        r, _ = reference.renorm(batch, *running, state.eps, 1.2, 0.3)
        terms = reference.backward(dy, x, state.gamma * r, state.eps).terms
        assert_both_close(dx, exact.dx, terms=terms)
    for name in ("dgamma", "dbeta"):
        parts = [getattr(one[2], name) for one in ranks]
        assert_parts_close(parts[:1] if param_grads == "global" else parts, getattr(exact, name))
    for own, *_ in ranks:
        # Two sums of so many positive terms, each of which rounds once, at most 2**-53 of the sum.
        np.testing.assert_allclose(own.running_var, whole.running_var, rtol=x[:, 0].size * 2.0**-52)
        assert snapshot(own) == snapshot(ranks[0][0])


def test_with_masks_it_is_about_what_counts(rng):
    x, dy, where = sample(rng, (6, 3, 70)), sample(rng, (6, 3, 70)), rng.random((6, 1, 70)) < 0.6
    state = random_state(rng, 3)
    batch = reference.weighted_training(x, reference.counts(x, where), eps=state.eps)
    r, d = reference.renorm(batch, state.running_mean, state.running_var, state.eps, 1.2, 0.3)
    y, saved = training(x, state, where=where, renorm=nbnorm.Renorm(1.2, 0.3))
    gamma, beta = state.gamma * r, state.beta + state.gamma * d
    assert_close(y, reference.weighted_training(x, reference.counts(x, where), gamma, beta, state.eps).y)
    exact = reference.weighted_backward(dy, x, reference.counts(x, where), gamma, state.eps)
    found = backward(dy, saved)
    assert_close(found.dx, exact.dx)
    assert_stat_close(found.dbeta, exact.dbeta)
    assert_stat_close(found.dgamma, r * exact.dgamma + d * exact.dbeta)


def test_copies_of_saved_give_the_same_gradients(rng):
    x, dy = sample(rng, (7, 3, 6)), sample(rng, (7, 3, 6))
    _, saved = training(x, random_state(rng, 3), renorm=nbnorm.Renorm(1.1, 0.1))
    exact = backward(dy, saved)
    for other in (copy.deepcopy(saved), pickle.loads(pickle.dumps(saved))):
        assert all(same_bits(a, b) for a, b in zip(backward(dy, other), exact, strict=True))
        assert same_bits(other.gamma, saved.gamma)


def test_running_statistics_that_are_nan_show(rng):
    """A correction by what is not known is none that could be clipped."""
    x, state = sample(rng, (7, 3)), nbnorm.BatchNormState(3)
    state.running_mean = [0.0, np.nan, 0.0]
    y, _ = training(x, state, renorm=nbnorm.Renorm(1.1, 0.1))
    assert np.isnan(y).any(0).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((0.9, 0), "rmax is 0.9"), ((np.nan, 0), "rmax is nan"), (("3", 0), "rmax is '3'"), ((1, -1), "dmax is -1"),
     ((1, np.nan), "dmax is nan"), ((True, 1), "rmax is True"),
     ((10**400, 0), "rmax is 1000"), ((1, 10**400), "dmax is 1000")],
)  # fmt: skip
def test_limits_must_be_in_range(numbers, text):
    with pytest.raises(ValueError, match=text):
        nbnorm.Renorm(*numbers)


def test_limits_are_floats_whatever_they_were_given_as():
    """Another type of number would be another kernel to compile."""
    for numbers in ((3, 5), (np.float32(3), np.int64(5))):
        limits = nbnorm.Renorm(*numbers)
        assert (type(limits.rmax), type(limits.dmax)) == (float, float)
        assert limits == nbnorm.Renorm(3.0, 5.0)


def test_what_does_not_fit_changes_nothing(given, rng):
    renorm = nbnorm.Renorm(3, 5)
    call = lambda **options: lambda: training(given.x, given.state, out=given.out, **options)  # noqa: E731
    refuse(given, call(renorm=(3, 5)), TypeError, "renorm is a tuple", "nbnorm.Renorm")
    refuse(given, call(renorm=renorm, use_running=True), ValueError, "renorm is about", "use_running=True")
    given.state = random_state(rng, 3, track_running=False)
    refuse(given, call(renorm=renorm), ValueError, "track_running=False")
    with pytest.raises(TypeError, match="renorm is a tuple"):
        nbnorm.BatchNorm(3, renorm=(3, 5))


def test_the_layer_has_it_in_training_only(rng):
    x, dy, renorm = sample(rng, (8, 3, 6)), sample(rng, (8, 3, 6)), nbnorm.Renorm(1.5, 1)
    layer, state = nbnorm.BatchNorm(3, renorm=renorm), nbnorm.BatchNormState(3)
    y, saved = training(x, state, renorm=renorm)
    assert same_bits(layer(x), y)
    assert same_bits(layer.backward(dy), backward(dy, saved).dx)
    layer.frozen = True
    assert same_bits(layer(x), nbnorm.batch_norm_inference(x, state))
    layer.eval().frozen = False
    for call in ({}, {"where": np.ones((8, 1, 1), bool)}):
        assert same_bits(layer(x, **call), nbnorm.batch_norm_inference(x, state))
