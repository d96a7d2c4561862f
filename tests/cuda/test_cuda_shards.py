"""A batch in shards on GPU arrays equals the whole batch; the stages of the two backends mirror each other."""

from __future__ import annotations

import numpy as np
import pytest
import ranks
import reference
from common import same_bits, sample
from steps import state_on_gpu
from tolerance import assert_close, assert_stat_close, dtype_of

import nbnorm

SHAPES = {"segments": (10, 2, 67), "packs": (10, 2, 64), "a table": (40, 5), "small images": (10, 8, 3, 3)}


def in_shards(cupy, x, dy, state, sizes, param_grads, **options):
    parts = list(zip(ranks.shards(x, sizes), ranks.shards(dy, sizes), strict=True))
    states = [state.to("cpu").to("cuda") for _ in sizes]

    def work(rank, sync):
        own_x, own_dy = map(cupy.asarray, parts[rank])
        y, saved = nbnorm.batch_norm_training(own_x, states[rank], sync=sync, **options)
        gradients = nbnorm.batch_norm_backward(own_dy, saved, param_grads=param_grads)
        return ranks.Step(states[rank], y, saved, *gradients, sync.sizes)

    return ranks.work_of(ranks.run(len(sizes), work))


def joined(arrays):
    return np.concatenate([array.get() for array in arrays])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shards_equal_the_whole(cupy, rng, shape):
    check(cupy, rng, shape, "float32", "global")


def test_every_dtype(cupy, rng, dtype):
    check(cupy, rng, SHAPES["segments"], dtype, "local")


@pytest.mark.float32_by_default("test_cuda_values.py: of a whole batch")
@pytest.mark.parametrize("shape", [(10, 40, 65), (20, 40)], ids=["segments", "a table"])
def test_a_constant_channel_gives_beta(cupy, rng, shape, dtype):
    """To the bit, also where the root of the map is far from all x; a rank that has nothing knows no value of it."""
    x = np.full(shape, 14.62, dtype_of(dtype))
    state, on_gpu = state_on_gpu(rng, shape[1], eps=1.0)
    state.gamma, on_gpu.gamma = state.gamma * 1e-3, on_gpu.gamma * 1e-3
    n = shape[0] // 10
    steps = in_shards(cupy, x, x, on_gpu, (7 * n, 3 * n, 0), "global")
    y = reference.by_channel(joined(step.y for step in steps), 1)
    assert (y == state.beta.astype(x.dtype)[:, None]).all()
    assert all((step.saved.stats.m2.get() == 0).all() for step in steps)


def check(cupy, rng, shape, dtype, param_grads):
    x = (sample(rng, shape, "float64") + 100).astype(dtype_of(dtype))
    dy = (rng.normal(size=shape) + 3).astype(x.dtype)
    state, on_gpu = state_on_gpu(rng, shape[1])
    n = shape[0] // 10
    steps = in_shards(cupy, x, dy, on_gpu, (7 * n, 3 * n, 0), param_grads)
    forward = reference.training(x, state.gamma, state.beta, state.eps)
    backward = reference.backward(dy, x, state.gamma, state.eps)
    assert_close(joined(step.y for step in steps), forward.y)
    assert_close(joined(step.dx for step in steps), backward.dx, terms=backward.terms)
    if param_grads == "global":  # sums of float32 gradients have other errors than float32 sums
        assert_stat_close(steps[2].dgamma.get(), backward.dgamma)
        assert_stat_close(steps[2].dbeta.get(), backward.dbeta)
    else:
        dbeta = sum(step.dbeta.get().astype(np.float64) for step in steps)
        scale = sum(abs(step.dbeta.get()) for step in steps)
        assert (abs(dbeta - backward.dbeta) <= 3 * 2.0**-24 * scale).all()
    m2 = forward.var * forward.count
    expected = reference.moving_average(
        state.running_mean, state.running_var, forward.mean, m2, forward.count, state.momentum
    )
    for step in steps:
        assert_stat_close(step.state.running_mean.get(), expected[0])
        assert_stat_close(step.state.running_var.get(), expected[1])
        assert same_bits(step.state.running_var.get(), steps[0].state.running_var.get())
        assert step.state.num_samples == forward.count


@pytest.mark.parametrize("shape", [SHAPES["segments"], SHAPES["a table"]], ids=str)
def test_frozen_statistics(cupy, rng, shape):
    x, dy = sample(rng, shape), sample(rng, shape)
    state, on_gpu = state_on_gpu(rng, shape[1])
    n = shape[0] // 10
    steps = in_shards(cupy, x, dy, on_gpu, (7 * n, 3 * n, 0), "global", use_running=True)
    running = state.running_mean, state.running_var
    backward = reference.frozen_backward(dy, x, *running, state.gamma, state.eps)
    exact = reference.inference(x, *running, state.gamma, state.beta, state.eps)
    assert_close(joined(step.y for step in steps), exact)
    assert_close(joined(step.dx for step in steps), backward.dx, terms=backward.terms)
    for step in steps:
        assert_stat_close(step.dgamma.get(), backward.dgamma)
        assert_stat_close(step.dbeta.get(), backward.dbeta)
        assert step.state.num_samples == x.size // shape[1]


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0)], ids=str)
def test_an_empty_shard_far_from_the_others(cupy, sizes):
    """Its origin is 0, and so 1e160 away from everyone's."""
    x, state = np.full((4, 1), 1e160), nbnorm.BatchNormState(1, momentum=None)
    for step in in_shards(cupy, x, np.ones((4, 1)), state, sizes, "global"):
        assert (step.state.running_mean.get().tolist(), step.state.running_var.get().tolist()) == ([1e160], [0])


@pytest.mark.filterwarnings("ignore:.*invalid value:RuntimeWarning")  # of the simulator: NumPy warns, a GPU does not
def test_all_ranks_skip_the_same_batch(cupy, rng):
    x = sample(rng, (4, 20))
    x[0, 7] = np.inf  # on the first rank only
    steps = in_shards(cupy, x, x, nbnorm.BatchNormState(20, skip_nonfinite=True), (2, 2), "global")
    assert {(step.state.num_batches, step.state.num_skipped) for step in steps} == {(0, 1)}
    assert {step.state.running_mean.get().tobytes() for step in steps} == {bytes(160)}
