"""Gradients: in float64 against the complex step, which shares nothing with the derivation; frozen ones."""

import numpy as np
import pytest
import reference
from common import exact_backward, random_state, sample
from tolerance import assert_gradient_close

import nbnorm

SHAPES = [(2, 3, 1), (3, 2, 4), (7, 1, 3), (2, 2, 70), (20, 5, 1), (1, 2, 33)]  # (N, C, S)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_option = pytest.mark.parametrize(
    "options", [{}, {"use_gamma": False}, {"eps": 0.3}, {"dtype": "float64"}], ids=str
)


def case(rng, shape, **options):
    options = {"dtype": "float64", **options}
    x, dy = sample(rng, shape, "float64"), sample(rng, shape, "float64")
    return x, dy, random_state(rng, shape[1], **options)


def complex_step(x, dy, state, statistics=None):
    gamma = np.ones(x.shape[1]) if state.gamma is None else state.gamma
    return reference.complex_step(x, dy, gamma, state.beta, state.eps, statistics)


def assert_equal_gradients(found, expected, dy, x, state, running=None):
    """To 1e-12 of the size of the terms."""
    _, of_dx = exact_backward(dy, x, state, 1, running)
    x_hat = reference.formula(x, np.ones(x.shape[1]), np.zeros(x.shape[1]), state.eps, running_of(running))
    assert_gradient_close(found.dx, expected.dx, of_dx[:, None])
    assert_gradient_close(found.dbeta, expected.dbeta, np.abs(dy).sum((0, 2)))
    assert (found.dgamma is None) == (state.gamma is None)
    if found.dgamma is not None:
        assert_gradient_close(found.dgamma, expected.dgamma, np.abs(dy * x_hat).sum((0, 2)))


def running_of(running):
    return None if running is None else tuple(a[None, :, None] for a in running)


@every_shape
@every_option
def test_gradients_equal_the_complex_step(shape, options, rng):
    x, dy, state = case(rng, shape, **options)
    _, saved = nbnorm.batch_norm_training(x, state)
    assert_equal_gradients(nbnorm.batch_norm_backward(dy, saved), complex_step(x, dy, state), dy, x, state)


@every_shape
@every_option
def test_gradients_with_frozen_statistics_equal_the_complex_step(shape, options, rng):
    x, dy, state = case(rng, shape, **options)
    running = state.running_mean.copy(), state.running_var.copy()
    expected = complex_step(x, dy, state, running_of(running))
    _, saved = nbnorm.batch_norm_training(x, state, use_running=True, update_running=x.size > 4)
    assert_equal_gradients(nbnorm.batch_norm_backward(dy, saved), expected, dy, x, state, running)


@every_shape
def test_the_oracle_equals_the_complex_step(shape, rng):
    x, dy, state = case(rng, shape)
    exact, _ = exact_backward(dy, x, state, 1)
    assert_equal_gradients(exact, complex_step(x, dy, state), dy, x, state)
    running = state.running_mean, state.running_var
    frozen, _ = exact_backward(dy, x, state, 1, running)
    assert_equal_gradients(frozen, complex_step(x, dy, state, running_of(running)), dy, x, state, running)


def test_the_oracle_knows_a_small_example():
    x, dy = np.array([[1.0, 10.0], [3.0, 30.0]]), np.array([[1.0, 2.0], [0.0, 0.0]])
    forward = reference.training(x, [2.0, 1.0], [0.0, 5.0], 0.0)
    assert np.array_equal(forward.y, [[-2, 4], [2, 6]])
    assert np.array_equal([forward.mean, forward.var], [[2, 20], [1, 100]])
    dx, dgamma, dbeta, _ = reference.backward(dy, x, [2.0, 1.0], 0.0)
    assert np.array_equal(dx, np.zeros((2, 2)))  # two values are always normalized to -1 and 1
    assert np.array_equal([dgamma, dbeta], [[-1, -2], [1, 2]])
    frozen = reference.frozen_backward(dy, x, [0.0, 0.0], [4.0, 25.0], [2.0, 1.0], 0.0)
    assert np.array_equal(frozen.dx, [[1, 2 / reference.Wide(5)], [0, 0]])
    assert np.array_equal(frozen.dgamma, [0.5, 20 / reference.Wide(5)])
    count, mean, m2 = reference.stats(x)
    assert (count, *mean, *m2) == (2, 2, 20, 2, 200)


def test_frozen_gradients_are_scaled_dy(dtype, rng):
    """dx = gamma * inv_std * dy, one value at a time: an infinite x, or another dy, does not matter to it."""
    x, dy = sample(rng, (6, 3, 80), dtype), sample(rng, (6, 3, 80), dtype)
    state = random_state(rng, 3)
    _, saved = nbnorm.batch_norm_training(x, state, use_running=True, update_running=False)
    dx = nbnorm.batch_norm_backward(dy, saved).dx
    x[0, :, 0], dy[1] = np.inf, 0
    changed = nbnorm.batch_norm_backward(dy, saved).dx
    assert np.array_equal(changed[1], np.zeros((3, 80)))
    changed[1] = dx[1]
    assert changed.tobytes() == dx.tobytes()
