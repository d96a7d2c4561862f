"""Ghost batches and batch renormalization on the GPU: `ghost=`, `renorm=`."""

import numpy as np
import pytest
import reference
from common import random_state, same_bits, sample
from ranks import run, work_of
from steps import state_on_gpu
from test_renorm import assert_dx_close
from tolerance import assert_close, assert_stat_close, dtype_of

import nbnorm

SHAPES = [(7, 3, 70), (9, 2, 7), (10, 3)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def case(cupy, rng, shape, dtype="float32"):
    x, dy = sample(rng, shape, dtype), rng.normal(size=shape).astype(dtype_of(dtype))
    return x, dy, cupy.asarray(x), cupy.asarray(dy)


@pytest.mark.each_value
@every_shape
@pytest.mark.parametrize("renorm", [None, nbnorm.Renorm(1.2, 0.5)], ids=["plain", "renorm"])
@pytest.mark.parametrize("masked", [False, True])
def test_ghost_batches_are_batches(cupy, dtype, shape, renorm, masked, rng):
    x, dy, on_gpu, dy_on_gpu = case(cupy, rng, shape, dtype)
    where = (rng.random(shape) < 0.7) | (np.arange(shape[0]) % 4 < 2).reshape(-1, *[1] * (len(shape) - 1))
    _, own = state_on_gpu(rng, shape[1])
    other = nbnorm.BatchNormState.from_state_dict(own.state_dict()).to("cuda")
    y, saved = nbnorm.batch_norm_training(
        on_gpu, own, ghost=4, renorm=renorm, where=cupy.asarray(where) if masked else None
    )
    found = nbnorm.batch_norm_backward(dy_on_gpu, saved)
    for row, part in enumerate(reference.groups(x, 1, 4)):
        options = {"where": cupy.asarray(where[part])} if masked else {}
        expected, step = nbnorm.batch_norm_training(cupy.asarray(x[part]), other, renorm=renorm, **options)
        assert same_bits(y.get()[part], expected.get())
        assert same_bits(found.dx.get()[part], nbnorm.batch_norm_backward(cupy.asarray(dy[part]), step).dx.get())
        assert same_bits(saved.mean.get()[row], step.mean.get())
    assert own.num_batches == other.num_batches == len(saved.groups)
    assert same_bits(own.running_var.get(), other.running_var.get())
    if not masked and renorm is None:
        assert_stat_close(found.dbeta.get(), reference.by_channel(dy, 1).sum(-1))


@every_shape
@pytest.mark.parametrize("parameters", [{}, {"dtype": "float64"}, {"use_gamma": False}, {"use_beta": False}], ids=str)
@pytest.mark.parametrize("limits", [(1.3, 0.4), (100.0, 100.0)])
def test_renormalization_equals_the_paper(cupy, dtype, shape, parameters, limits, rng):
    x, dy, on_gpu, dy_on_gpu = case(cupy, rng, shape, dtype)
    state, own = state_on_gpu(rng, shape[1], momentum=0.25, **parameters)
    r, d = reference.renorm(reference.training(x), state.running_mean, state.running_var, state.eps, *limits)
    y, saved = nbnorm.batch_norm_training(on_gpu, own, renorm=nbnorm.Renorm(*limits))
    assert_close(y.get(), reference.renormalized(x, r, d, state.gamma, state.beta, state.eps))
    found = nbnorm.batch_norm_backward(dy_on_gpu, saved)
    exact = reference.renormalized_backward(dy, x, r, d, state.gamma, state.eps)
    assert_dx_close(found.dx.get(), exact.dx, dy, x, r, state, 1)
    assert (found.dgamma is None, found.dbeta is None) == (state.gamma is None, state.beta is None)
    if found.dgamma is not None:
        # The sum of two terms, each within 2**-40 of its own size, and the rounding to the dtype of gamma.
        terms = np.abs(reference.by_channel(dy, 1)).sum(-1) * (r + np.abs(d))
        limit = 2.0**-24 * np.abs(exact.dgamma) + 2.0**-40 * terms
        assert (np.abs(reference.wide(found.dgamma.get()) - exact.dgamma) <= limit).all()
    if found.dbeta is not None:
        assert_stat_close(found.dbeta.get(), exact.dbeta)


def test_renormalization_in_shards(cupy, rng):
    x, dy, _, _ = case(cupy, rng, (9, 3, 7))
    state, bounds, renorm = random_state(rng, 3), [0, 2, 2, 9], nbnorm.Renorm(1.2, 0.3)
    states = [state.to("cuda") for _ in range(3)]

    def work(rank, sync):
        part = slice(bounds[rank], bounds[rank + 1])
        y, saved = nbnorm.batch_norm_training(cupy.asarray(x[part]), states[rank], sync=sync, renorm=renorm)
        return y.get(), nbnorm.batch_norm_backward(cupy.asarray(dy[part]), saved, param_grads="global")

    ranks = work_of(run(3, work))
    r, d = reference.renorm(reference.training(x), state.running_mean, state.running_var, state.eps, 1.2, 0.3)
    assert_close(np.concatenate([y for y, _ in ranks]), reference.renormalized(x, r, d, state.gamma, state.beta))
    exact = reference.renormalized_backward(dy, x, r, d, state.gamma)
    assert_dx_close(np.concatenate([found.dx.get() for _, found in ranks]), exact.dx, dy, x, r, state, 1)
    for _, found in ranks:
        assert_stat_close(found.dbeta.get(), exact.dbeta)
        assert_stat_close(found.dgamma.get(), exact.dgamma)
