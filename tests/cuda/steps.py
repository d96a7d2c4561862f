"""A step on the GPU (or in the simulator), compared with the oracle on the CPU."""

from __future__ import annotations

import numpy as np
import reference
from common import exact_backward, random_state
from tolerance import assert_close, assert_gradient_close, assert_stat_close

import nbnorm


def state_on_gpu(rng, num_features, **options):
    """A state without defaults, on the CPU and the same on the GPU."""
    state = random_state(rng, num_features, **options)
    return state, state.to("cuda")


def strides_of_output(x):
    """Those of NumPy's `empty_like` for an array laid out as x."""
    like = np.lib.stride_tricks.as_strided(np.empty(1, x.dtype), x.shape, x.strides)
    return np.empty_like(like).strides


def check_forward(cupy, x, rng, axis=1, use_running=False, update_running=True, out=None, **options):
    """`batch_norm_training` of the GPU array x. Returns (state on the CPU as it was, state on the GPU, y, saved)."""
    host = x.get()
    axes = reference.channel_axes(host, axis)
    features = tuple(host.shape[i] for i in axes)
    state, on_gpu = state_on_gpu(rng, features if isinstance(axis, tuple) else features[0], **options)
    batch = reference.training(host, state.gamma, state.beta, state.eps, axis)
    exact, mean, var = batch.y, batch.mean, batch.var
    if use_running:
        mean, var = state.running_mean, state.running_var
        exact = reference.inference(host, mean, var, state.gamma, state.beta, state.eps, axis)
    before = host.tobytes()

    y, saved = nbnorm.batch_norm_training(
        x, on_gpu, axis=axis, use_running=use_running, update_running=update_running, out=out
    )
    assert isinstance(y, cupy.ndarray)
    assert (y is out) if out is not None else (y.strides == strides_of_output(x))
    assert x.get().tobytes() == before
    assert_close(y.get(), exact, axis)
    assert_stat_close(saved.mean.get(), mean)
    assert_stat_close(saved.inv_std.get(), 1 / np.sqrt(reference.wide(var) + reference.Wide(state.eps)))
    assert saved.gamma is state.gamma is None or np.array_equal(saved.gamma.get(), state.gamma)
    if state.running_mean is not None:
        expected, counted = (state.running_mean, state.running_var), (0, 0)
        if update_running:
            m2 = batch.var * batch.count
            expected = reference.moving_average(*expected, batch.mean, m2, batch.count, state.momentum)
            counted = (1, batch.count)
        assert_stat_close(on_gpu.running_mean.get(), expected[0])
        assert_stat_close(on_gpu.running_var.get(), expected[1])
        assert (on_gpu.num_batches, on_gpu.num_samples) == counted
    return state, on_gpu, y, saved


def as_it_lies(x):
    """On the host, with the axes of x in their order in memory, which `get` makes that of their numbers."""
    order = sorted(range(x.ndim), key=lambda i: -abs(x.strides[i]))
    return x.transpose(order).get().transpose(np.argsort(order))


def check_backward(cupy, dy, saved, state, use_running=False, out=None):
    """`batch_norm_backward` of the GPU array dy."""
    axis, host_x, host_dy = saved.axis, as_it_lies(saved.x), dy.get()
    running = (state.running_mean, state.running_var) if use_running else None
    exact, terms = exact_backward(host_dy, host_x, state, axis, running)
    dx, dgamma, dbeta = nbnorm.batch_norm_backward(dy, saved, out=out)
    assert (dx is out) if out is not None else (dx.strides == strides_of_output(saved.x))
    found = dx.get()
    if found.dtype == np.float64:
        assert_gradient_close(reference.by_channel(found, axis), reference.by_channel(exact.dx, axis), terms[..., None])
    else:
        assert_close(found, exact.dx, axis, exact.terms)
    for actual, expected, parameter in ((dgamma, exact.dgamma, state.gamma), (dbeta, exact.dbeta, state.beta)):
        assert (actual is None) == (parameter is None)
        if actual is not None:
            assert (actual.dtype, actual.shape) == (parameter.dtype, parameter.shape)
            assert_stat_close(actual.get(), expected)


def check_step(cupy, x, dy, rng, axis=1, use_running=False, **options):
    """Training forward and backward. Returns what check_forward does."""
    state, on_gpu, y, saved = check_forward(cupy, x, rng, axis, use_running, **options)
    check_backward(cupy, dy, saved, state, use_running)
    return state, on_gpu, y, saved
