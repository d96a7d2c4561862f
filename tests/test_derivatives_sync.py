"""Derivatives of a batch in shards equal those of the whole batch, and errors are everyone's."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import ranks
import reference
from common import random_state, same_bits, sample
from derivatives import assert_derivatives, sizes
from tolerance import assert_gradient_close

import nbnorm

CUTS = {"700, 300, 0": (700, 300, 0), "0, 1, 999": (0, 1, 999), "one": (1000,)}
FORMS = {"a table": ((1000, 3), 1), "images": ((1000, 3, 8, 9), 1), "channels last": ((1000, 5, 3), -1)}


def in_shards(arrays, of_parameters, state, cut, axis, use_running=False, present=lambda rank: True):
    """What each rank gets: ddy, dx, dgamma of the whole, dgamma of the shard, the tangent of y, message sizes."""
    parts = list(zip(*(ranks.shards(array, cut) for array in arrays), strict=True))

    def work(rank, sync):
        x, dy, ddx = parts[rank]
        ddx = ddx if present(rank) else None
        _, saved = nbnorm.batch_norm_training(
            x, copy.deepcopy(state), axis=axis, sync=sync, use_running=use_running, update_running=False
        )
        sync.sizes.clear()
        whole = nbnorm.batch_norm_double_backward(ddx, *of_parameters, dy, saved, param_grads="global")
        local = nbnorm.batch_norm_double_backward(ddx, *of_parameters, dy, saved)
        for one, other in zip(whole[:2], local[:2], strict=True):
            assert same_bits(one, other)
        tangent = nbnorm.batch_norm_jvp(ddx, *of_parameters, saved)
        return *whole, local.dgamma, tangent, sync.sizes

    return [list(column) for column in zip(*ranks.work_of(ranks.run(len(cut), work)), strict=True)]


@pytest.mark.each_pair
@pytest.mark.parametrize("use_running", [False, True], ids=["batch", "running"])
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("form", FORMS)
def test_shards_equal_the_whole(form, cut, use_running, rng):
    shape, axis = FORMS[form]
    x, dy, ddx = ((sample(rng, shape, "float64", axis) + mean).astype(np.float32) for mean in (1e3, 3, -100))
    state, of_parameters = random_state(rng, 3, dtype="float64"), rng.normal(size=(2, 3))
    ddy, dx, dgamma, local, tangent, messages = in_shards(
        (x, dy, ddx), of_parameters, state, cut, axis, use_running
    )  # fmt: skip
    running = (state.running_mean, state.running_var) if use_running else None
    for one in (dgamma[-1], sum(local)):
        assert_derivatives(
            (np.concatenate(ddy), np.concatenate(dx), one), np.concatenate(tangent), ddx, *of_parameters, dy, x,
            state, axis, running,
        )  # fmt: skip
    assert all(same_bits(one, dgamma[0]) for one in dgamma)
    assert messages == [[25] if use_running else [25, 25, 13]] * len(cut)


@pytest.mark.parametrize("S", [64, pytest.param(9, marks=pytest.mark.exhaustive("segments"))])
def test_shards_may_have_nothing_in_common(S, rng):
    """Sorted data: means of x, dy and ddx that differ by many deviations from shard to shard. float64, to 1e-12."""
    x, dy, ddx = (sample(rng, (1000, 3, S), "float64") for _ in range(3))
    x[:10] += 1e4
    x[10:500] -= 50
    dy[:10] += 100
    dy[500:] -= 3
    ddx[500:] += 20
    state, of_parameters = random_state(rng, 3, dtype="float64"), rng.normal(size=(2, 3))
    ddy, dx, dgamma, local, tangent, _ = in_shards((x, dy, ddx), of_parameters, state, (10, 490, 500), 1)
    found = np.concatenate(ddy), np.concatenate(dx), dgamma[1]
    assert_derivatives(found, np.concatenate(tangent), ddx, *of_parameters, dy, x, state, 1)
    # A shard's own part is the sum of ddx*dx/gamma over it.
    exact = reference.backward(dy, x, state.gamma, state.eps)
    terms = sizes(ddx, *of_parameters, dy, x, state.gamma, state.eps, 1)[2]
    parts = ranks.shards(ddx * exact.dx / reference.wide(state.gamma)[:, None], (10, 490, 500))
    for one, part in zip(local, parts, strict=True):
        assert_gradient_close(one, part.sum((0, 2)), terms + np.abs(part).sum((0, 2)))


def test_one_rank_may_have_no_cotangent_of_dx(rng):
    x, dy, ddx = (sample(rng, (1000, 3, 9)) for _ in range(3))
    state, of_parameters = random_state(rng, 3, dtype="float64"), rng.normal(size=(2, 3))
    cut = 700, 300
    ddy, dx, dgamma, _, tangent, _ = in_shards(
        (x, dy, ddx), of_parameters, state, cut, 1, present=lambda rank: rank == 0
    )  # fmt: skip
    ddx[700:] = 0
    found = np.concatenate(ddy), np.concatenate(dx), dgamma[0]
    assert_derivatives(found, np.concatenate(tangent), ddx, *of_parameters, dy, x, state, 1)


@pytest.mark.parametrize("function", ["double backward", "jvp"])
def test_an_error_of_one_rank_is_an_error_of_all(function, rng):
    x, dy = sample(rng, (10, 3)), sample(rng, (10, 3))

    def work(rank, sync):
        _, saved = nbnorm.batch_norm_training(x, random_state(rng, 3), sync=sync)
        wrong = dy[:, :2] if rank == 1 else dy
        if function == "jvp":
            return nbnorm.batch_norm_jvp(wrong, None, None, saved)
        return nbnorm.batch_norm_double_backward(dy, None, None, wrong, saved)

    others, failed = ranks.run(2, work)
    assert isinstance(failed, ValueError)
    assert isinstance(others, RuntimeError)
    assert "rank 1 of 2 failed" in str(others)
