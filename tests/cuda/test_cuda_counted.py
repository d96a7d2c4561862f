"""Which values count: `where=`, `weights=` and `nan=` on the GPU, in every way of cutting the work."""

import numpy as np
import pytest
import reference
from common import sample
from ranks import run, work_of
from steps import state_on_gpu
from test_counted import FORMS, assert_map_close, cut, every_form, few_together, mostly_far, spoiled
from tolerance import assert_close, assert_gradient_close, assert_stat_close, dtype_of

import nbnorm

# Segments, one or several blocks a channel; columns, wide and narrow, with a last row that is not whole.
SHAPES = [(3, 2, 64), (5, 3, 70), (9, 2, 7), (33, 3), (17, 40)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def case(rng, shape, form, dtype):
    x, dy = sample(rng, shape, dtype), rng.normal(size=shape).astype(dtype_of(dtype))
    counting = FORMS[form](rng, x, 1)
    x, w = spoiled(rng, x, counting, 1)
    return x, np.where(reference.absent(x, w), np.full((), np.inf, dy.dtype), dy), w, counting


def on_gpu(cupy, counting):
    def moved(value):
        if isinstance(value, str):
            return value
        if value.ndim and value.strides[-1] < 0:  # the stand-in makes none of these
            return cupy.asarray(np.ascontiguousarray(value[..., ::-1]))[..., ::-1]
        return cupy.asarray(value)

    return {name: moved(value) for name, value in counting.items()}


def assert_gradients(found, exact, dy, gone, state, var):
    dx, dgamma, dbeta = (array.get() for array in found)
    assert np.array_equal(dx[gone], np.zeros(gone.sum()))
    if dx.dtype == np.float64:
        scale = np.abs(np.where(gone, 0, dy)).max() * np.abs(state.gamma) / np.sqrt(reference.wide(var) + state.eps)
        assert_gradient_close(np.moveaxis(dx, 1, -1), np.moveaxis(exact.dx, 1, -1), scale)
    else:
        assert_close(dx, exact.dx)
    assert_stat_close(dgamma, exact.dgamma)
    assert_stat_close(dbeta, exact.dbeta)


@pytest.mark.pairs_at_most
@pytest.mark.each_value
@every_shape
@every_form
@pytest.mark.parametrize("use_running", [False, True])
def test_a_step_equals_the_definition(cupy, dtype, shape, form, use_running, rng):
    x, dy, w, counting = case(rng, shape, form, dtype)
    gone, (state, own) = reference.absent(x, w), state_on_gpu(rng, shape[1], momentum=0.25)
    y, saved = nbnorm.batch_norm_training(cupy.asarray(x), own, use_running=use_running, **on_gpu(cupy, counting))
    batch = reference.weighted_training(x, w, state.gamma, state.beta, state.eps)
    running = state.running_mean, state.running_var
    if use_running:
        exact = reference.inference(x, *running, state.gamma, state.beta, state.eps)
        values = np.where(gone, 0, dy), np.where(gone, 0, x)
        gradients = reference.frozen_backward(*values, *running, state.gamma, state.eps)
    else:
        exact, gradients = batch.y, reference.weighted_backward(dy, x, w, state.gamma, state.eps)
    assert_map_close(y.get(), exact, gone, 1)
    new = reference.moving_average(*running, batch.mean, batch.var * batch.count, batch.count, state.momentum)
    assert_stat_close(own.running_mean.get(), new[0])
    assert_stat_close(own.running_var.get(), new[1])
    assert_stat_close(saved.count.get(), batch.count)
    found = nbnorm.batch_norm_backward(cupy.asarray(dy), saved)
    assert_gradients(found, gradients, dy, gone, state, running[1] if use_running else batch.var)


@pytest.mark.pairs_at_most
@pytest.mark.each_value
@every_shape
@every_form
def test_statistics_and_pooling(cupy, dtype, shape, form, rng):
    x, _, w, counting = case(rng, shape, form, dtype)
    count, mean, m2 = reference.weighted_stats(x, w)
    found = nbnorm.batch_stats(cupy.asarray(x), **on_gpu(cupy, counting))
    assert_stat_close(found.count.get(), count)
    assert_stat_close(found.mean.get(), mean)
    assert_stat_close(found.m2.get(), m2)
    state = nbnorm.BatchNormState(shape[1], momentum=None, device="cuda")
    state.update(found)
    state.update(nbnorm.batch_stats(cupy.asarray(np.zeros((0, *shape[1:]), x.dtype))))
    assert_stat_close(np.broadcast_to(nbnorm._device.host(state.num_samples), count.shape), count)
    assert_stat_close(state.running_var.get(), m2 / (count - 1))


@pytest.mark.each_value
@pytest.mark.parametrize(
    "shape", [(40, 2, 64), (60, 3), (90, 1, 67), (2600, 3)], ids=str
)  # of one block, and of several
@pytest.mark.parametrize(("weight", "place"), [(1e-30, 1e8), (1e-100, 1e30)])
def test_what_hardly_counts_may_be_far_away(cupy, dtype, shape, weight, place, rng):
    """None of the nine values of which an origin is the median counts for more than next to nothing."""
    x, weights = mostly_far(sample(rng, shape, dtype), weight, place)
    dy, w = np.where(weights < 1, 0, sample(rng, shape)).astype(x.dtype), reference.counts(x, None, weights)
    state, own = state_on_gpu(rng, shape[1])
    y, saved = nbnorm.batch_norm_training(cupy.asarray(x), own, weights=cupy.asarray(weights))
    batch = reference.weighted_training(x, w, state.gamma, state.beta, state.eps)
    assert_close(y.get(), batch.y)
    assert_stat_close(saved.mean.get(), batch.mean)
    assert_stat_close(saved.inv_std.get(), 1 / np.sqrt(batch.var + reference.Wide(state.eps)))
    found = nbnorm.batch_norm_backward(cupy.asarray(dy), saved)
    exact = reference.weighted_backward(dy, x, w, state.gamma, state.eps)
    assert_gradients(found, exact, dy, reference.absent(x, w), state, batch.var)
    alone = nbnorm.batch_stats(cupy.asarray(x), weights=cupy.asarray(weights))
    assert_stat_close(alone.m2.get(), batch.var * batch.count)


@pytest.mark.parametrize("shape", [(4, 3, 70), (300, 3)], ids=str)
@pytest.mark.parametrize("place", [0.0, 0.37, 1.0])
def test_few_values_that_count_are_found_wherever_they_are(cupy, shape, place, rng):
    where, x = few_together(np.empty(shape), place, rng)
    found = nbnorm.batch_stats(cupy.asarray(x), where=cupy.asarray(where))
    count, mean, m2 = reference.weighted_stats(x, where.astype(float))
    assert found.count.get().tolist() == count.tolist() == [3, 3, 0]
    assert_stat_close(found.mean.get(), mean)
    assert_stat_close(found.m2.get(), m2)


@pytest.mark.each_value
@pytest.mark.parametrize("form", ["where, all of x", "where, padding", "weights, first axis", "all"])
@pytest.mark.parametrize("shape", [(9, 3, 70), (9, 5)], ids=str)
@pytest.mark.parametrize("use_running", [False, True])
def test_shards_equal_the_whole(cupy, form, shape, use_running, rng):
    x, dy, w, counting = case(rng, shape, form, "float32")
    gone, bounds = reference.absent(x, w), [0, 2, 2, 9]
    state, own = state_on_gpu(rng, shape[1], momentum=0.25)
    states = [own, *(state.to("cuda") for _ in range(2))]

    def work(rank, sync):
        part = slice(bounds[rank], bounds[rank + 1])
        options = on_gpu(cupy, cut(counting, part.start, part.stop))
        y, saved = nbnorm.batch_norm_training(
            cupy.asarray(x[part]), states[rank], sync=sync, use_running=use_running, **options
        )
        return y.get(), nbnorm.batch_norm_backward(cupy.asarray(dy[part]), saved, param_grads="global")

    ranks = work_of(run(3, work))
    batch = reference.weighted_training(x, w, state.gamma, state.beta, state.eps)
    running = state.running_mean, state.running_var
    if use_running:
        exact = reference.inference(x, *running, state.gamma, state.beta, state.eps)
        values = np.where(gone, 0, dy), np.where(gone, 0, x)
        gradients = reference.frozen_backward(*values, *running, state.gamma, state.eps)
    else:
        exact, gradients = batch.y, reference.weighted_backward(dy, x, w, state.gamma, state.eps)
    assert_map_close(np.concatenate([y for y, _ in ranks]), exact, gone, 1)
    dx = cupy.asarray(np.concatenate([found.dx.get() for _, found in ranks]))
    for _, found in ranks:
        assert_gradients((dx, *found[1:]), gradients, dy, gone, state, batch.var)
    new = reference.moving_average(*running, batch.mean, batch.var * batch.count, batch.count, state.momentum)
    for each in states:
        assert_stat_close(each.running_var.get(), new[1])


@pytest.mark.parametrize("shape", [(5, 3, 70), (17, 5)], ids=str)
def test_weights_may_be_of_any_size(cupy, shape, rng):
    x, dy = sample(rng, shape), rng.normal(size=shape).astype(np.float32)
    weights = 2.0**60 * rng.uniform(0.5, 3, shape) * 10.0 ** rng.choice([0, 12], shape, p=[0.9, 0.1])
    state, own = state_on_gpu(rng, shape[1])
    _, saved = nbnorm.batch_norm_training(cupy.asarray(x), own, update_running=False, weights=cupy.asarray(weights))
    w = reference.counts(x, None, weights)
    exact, batch = reference.weighted_backward(dy, x, w, state.gamma, state.eps), reference.weighted_training(x, w)
    found = nbnorm.batch_norm_backward(cupy.asarray(dy), saved)
    assert_gradients(found, exact, dy, np.zeros(shape, bool), state, batch.var)


def test_results_do_not_go_where_masks_are(cupy, rng):
    x, weights = cupy.asarray(sample(rng, (5, 3, 70))), cupy.asarray(np.ones((5, 3, 70), np.float32))
    _, own = state_on_gpu(rng, 3)
    with pytest.raises(ValueError, match="out is weights itself"):
        nbnorm.batch_norm_training(x, own, weights=weights, out=weights)
    _, saved = nbnorm.batch_norm_training(x, own, weights=weights)
    with pytest.raises(ValueError, match="out is weights itself"):
        nbnorm.batch_norm_backward(x, saved, out=weights)


def test_pooling_refuses_weights_whose_variance_would_be_lost(cupy, rng):
    x, weights = cupy.asarray(sample(rng, (5, 3, 70))), cupy.asarray(np.full((5, 1, 70), 0.5 / 350))
    own = nbnorm.BatchNormState(3, momentum=None, device="cuda")
    with pytest.raises(ValueError, match="channel 0 has less"):
        nbnorm.batch_norm_training(x, own, weights=weights)
    with pytest.raises(ValueError, match="merge_stats"):
        own.update(nbnorm.batch_stats(x, weights=weights))
    nbnorm.batch_norm_training(x, own)
    nbnorm.batch_norm_training(x, own, weights=weights)
    np.testing.assert_allclose(own.num_samples.get(), 350.5, rtol=1e-12)  # 350 terms in float64


def test_a_channel_without_values_changes_nothing(cupy, rng):
    x, where = sample(rng, (6, 3, 70)), np.ones((6, 3, 1), bool)
    where[:, 1] = False
    _, own = state_on_gpu(rng, 3)
    before, out = own.running_var.get().tobytes(), cupy.asarray(np.full(x.shape, 7, np.float32))
    with pytest.raises(ValueError, match="channel 1 has fewer"):
        nbnorm.batch_norm_training(cupy.asarray(x), own, where=cupy.asarray(where), out=out)
    assert (own.running_var.get().tobytes(), own.num_batches) == (before, 0)
    assert (out.get() == 7).all()


@pytest.mark.parametrize("first", [0, 7, 62, 63, 64])
@pytest.mark.parametrize("second", [65, 70, 127, 128, 149])
def test_two_values_that_count_are_enough_wherever_they_are(cupy, first, second):
    """A block counts them in rounds, in the simulator of 64 values; in some of 16 blocks a thread is late."""
    x, where = np.repeat(np.arange(150.0), 16).reshape(150, 16), np.zeros((150, 16), bool)
    state = nbnorm.BatchNormState(16, device="cuda")
    where[first] = True
    with pytest.raises(ValueError, match="channel 0 has fewer"):
        nbnorm.batch_norm_training(cupy.asarray(x), state, where=cupy.asarray(where))
    where[second] = True
    _, saved = nbnorm.batch_norm_training(cupy.asarray(x), state, where=cupy.asarray(where))
    assert saved.mean.get().tolist() == [(first + second) / 2] * 16
