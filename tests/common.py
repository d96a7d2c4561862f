"""Data, and the check of a whole step (training forward, running statistics, backward) against the oracle."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import reference
from tolerance import assert_close, assert_gradient_close, assert_stat_close, dtype_of

import nbnorm


def sample(rng, shape, dtype="float32", axis=1):
    """Normal numbers; each channel has a mean and a spread of its own."""
    axes = reference.channel_axes(np.empty(shape), axis)
    channels = [n if i in axes else 1 for i, n in enumerate(shape)]
    values = rng.normal(size=shape) * rng.uniform(0.5, 3, channels) + rng.normal(size=channels)
    return values.astype(dtype_of(dtype))


def random_state(rng, num_features, **options):
    """A state in which no array is at its default."""
    state = nbnorm.BatchNormState(num_features, **options)
    if state.gamma is not None:
        state.gamma = rng.uniform(0.5, 2, state.gamma.shape) * rng.choice([-1, 1], state.gamma.shape)
    if state.beta is not None:
        state.beta = rng.normal(size=state.beta.shape)
    if state.running_mean is not None:
        state.running_mean = rng.normal(size=state.running_mean.shape)
        state.running_var = rng.uniform(0.5, 3, state.running_var.shape)
        state.num_samples = 0  # with momentum None they count for nothing
    return state


def snapshot(state):
    """Every byte of a state that a call could change."""
    arrays = (state.gamma, state.beta, state.running_mean, state.running_var)
    return [None if a is None else a.tobytes() for a in arrays] + [
        state.num_batches,
        np.asarray(state.num_samples).tolist(),
        state.num_skipped,
    ]


def same_bits(a, b):
    """Equal dtype, shape and bytes in logical order; None equals None."""
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def check_forward(x, state, axis=1, use_running=False, update_running=True, out=None):
    """Run `batch_norm_training` and compare all it returns and changes. Returns (y, saved)."""
    gamma, beta, eps = state.gamma, state.beta, state.eps
    running = state.running_mean, state.running_var
    running = running if running[0] is None else tuple(a.copy() for a in running)
    batches, samples = state.num_batches, state.num_samples
    batch = reference.training(x, gamma, beta, eps, axis)
    exact, mean, var = batch.y, batch.mean, batch.var
    if use_running:
        mean, var = running
        exact = reference.inference(x, mean, var, gamma, beta, eps, axis)
    before = x.tobytes()

    y, saved = nbnorm.batch_norm_training(
        x, state, axis=axis, use_running=use_running, update_running=update_running, out=out
    )
    assert x.tobytes() == before
    if out is None:
        assert (y.strides, y.dtype) == (np.empty_like(x).strides, x.dtype.newbyteorder("="))
    else:
        assert y is out
    assert_close(y, exact, axis)
    assert_stat_close(saved.mean, mean)
    assert_stat_close(saved.inv_std, 1 / np.sqrt(reference.wide(var) + reference.Wide(eps)))
    assert saved.gamma is gamma is None or np.array_equal(saved.gamma, gamma)
    assert (saved.mean.dtype, saved.inv_std.dtype) == (np.float64, np.float64)
    if running[0] is not None and update_running:
        m2 = batch.var * batch.count
        new = reference.moving_average(*running, batch.mean, m2, batch.count, state.momentum)
        assert_stat_close(state.running_mean, new[0])
        assert_stat_close(state.running_var, new[1])
        assert (state.num_batches, state.num_samples) == (batches + 1, samples + batch.count)
    else:
        assert (state.num_batches, state.num_samples) == (batches, samples)
        assert all(same_bits(a, b) for a, b in zip(running, (state.running_mean, state.running_var), strict=True))
    return y, saved


def exact_backward(dy, x, state, axis, running=None):
    """Gradients, and the size of the terms of dx, by channel. `running`: the constant statistics, if so."""
    if running is None:
        var = reference.training(x, axis=axis).var
        exact = reference.backward(dy, x, state.gamma, state.eps, axis, reference.middle(dy, x, axis))
    else:
        var = reference.wide(running[1])
        exact = reference.frozen_backward(dy, x, *running, state.gamma, state.eps, axis)
    terms = np.abs(reference.by_channel(dy, axis)).max(-1) / np.sqrt(var + state.eps)
    return exact, terms if state.gamma is None else terms * np.abs(state.gamma)


def check_backward(dy, saved, state, running=None, out=None):
    """Run `batch_norm_backward` and compare."""
    x, axis = saved.x, saved.axis
    exact, terms = exact_backward(dy, x, state, axis, running)
    before = x.tobytes(), dy.tobytes()

    gradients = nbnorm.batch_norm_backward(dy, saved, out=out)
    dx, dgamma, dbeta = gradients
    if out is None:
        assert (x.tobytes(), dy.tobytes()) == before
        assert (dx.strides, dx.dtype) == (np.empty_like(x).strides, x.dtype)
    else:
        assert dx is out
    if x.dtype == np.float64:
        assert_gradient_close(reference.by_channel(dx, axis), reference.by_channel(exact.dx, axis), terms[..., None])
    else:
        assert_close(dx, exact.dx, axis, exact.terms)
    for actual, expected, parameter in (
        (dgamma, exact.dgamma, state.gamma),
        (dbeta, exact.dbeta, state.beta),
    ):
        assert (actual is None) == (parameter is None)
        if actual is not None:
            assert (actual.dtype, actual.shape) == (parameter.dtype, parameter.shape)
            assert_stat_close(actual, expected)
    return gradients


def check_step(x, dy, state, axis=1):
    """Training forward with the batch's statistics, and its backward."""
    y, saved = check_forward(x, state, axis)
    return y, check_backward(dy, saved, state)


def check_inference(x, state, axis=1, out=None):
    """Run `batch_norm_inference` and compare; the state stays as it is."""
    before = snapshot(state)
    exact = reference.inference(x, state.running_mean, state.running_var, state.gamma, state.beta, state.eps, axis)
    y = nbnorm.batch_norm_inference(x, state, axis=axis, out=out)
    if out is None:
        assert (y.strides, y.dtype) == (np.empty_like(x).strides, x.dtype.newbyteorder("="))
    else:
        assert y is out
    assert snapshot(state) == before
    assert_close(y, exact, axis)
    return y


def arguments_that_fit(rng, shape):
    """Of a forward pass and its backward; `memory` holds x, and two rows more behind it."""
    memory = sample(rng, (shape[0] + 2, *shape[1:]))
    x, state = memory[: shape[0]], random_state(rng, shape[1])
    _, saved = nbnorm.batch_norm_training(x, state)
    dy, out = sample(rng, shape), np.full(shape, 7, np.float32)
    return SimpleNamespace(x=x, memory=memory, state=state, saved=saved, dy=dy, out=out)


def refuse(given, call, error, *texts, arrays=()):
    """The call raises the error, whose short message has every text, and no byte changes."""
    arrays = [given.memory, given.dy, given.out, *(a for a in arrays if isinstance(a, np.ndarray))]
    before = [a.tobytes() for a in arrays], snapshot(given.state), given.saved.mean.tobytes()
    with pytest.raises(error) as caught:
        call()
    assert ([a.tobytes() for a in arrays], snapshot(given.state), given.saved.mean.tobytes()) == before
    message = str(caught.value)
    assert len(message) < 200
    assert [text for text in texts if text not in message] == []
