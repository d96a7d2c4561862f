"""A batch in shards equals the whole batch: statistics, y, gradients, running statistics, and errors everywhere."""

from __future__ import annotations

import copy
import itertools
from collections import Counter

import numpy as np
import pytest
import ranks
import reference
from common import random_state, refuse, same_bits, sample, snapshot
from tolerance import assert_close, assert_stat_close, dtype_of, needs_wide

import nbnorm

CUTS = {"700, 300, 0": (700, 300, 0), "0, 1, 999": (0, 1, 999), "ten": (100,) * 10, "one": (1000,)}
every_cut = pytest.mark.parametrize("sizes", CUTS.values(), ids=CUTS)
FORMS = {
    "a table": ((1000, 3), 1),
    "images": ((1000, 3, 8, 9), 1),
    "channels last": ((1000, 5, 3), -1),
    "float16 images": ((1000, 3, 9), 1),
}


def given(rng, form, dtype="float32", mean=0.0, dy_mean=0.0):
    shape, axis = FORMS[form]
    x = (sample(rng, shape, "float64", axis) + mean).astype(dtype_of(dtype))
    dy = (rng.normal(size=shape) + dy_mean).astype(x.dtype)
    return x, dy, axis


def assert_relative(found, exact, share=1e-12):
    found, exact = reference.wide(found), reference.wide(exact)
    assert found.shape == exact.shape
    assert (abs(found - exact) <= share * abs(exact)).all(), (abs(found - exact) / abs(exact)).max()


def check(x, dy, state, sizes, axis, param_grads="local"):
    """A step in shards against the oracle's for the whole batch. `state` has float64 parameters, so nothing hides."""
    steps = ranks.step_in_shards(x, dy, state, sizes, axis, param_grads)
    forward = reference.training(x, state.gamma, state.beta, state.eps, axis)
    backward = reference.backward(dy, x, state.gamma, state.eps, axis)
    assert_close(np.concatenate([step.y for step in steps]), forward.y, axis)
    assert_close(np.concatenate([step.dx for step in steps]), backward.dx, axis, backward.terms)
    m2 = forward.var * forward.count
    mean, var = reference.moving_average(
        state.running_mean, state.running_var, forward.mean, m2, forward.count, state.momentum
    )
    for step in steps:
        assert_relative(step.saved.mean, forward.mean)
        assert_relative(step.saved.inv_std, 1 / np.sqrt(forward.var + reference.Wide(state.eps)))
        assert_relative(step.state.running_mean, mean)
        assert_relative(step.state.running_var, var)
        assert (step.state.num_batches, step.state.num_samples) == (1, forward.count)
        assert snapshot(step.state) == snapshot(steps[0].state)
    if param_grads == "local":
        dgamma, dbeta = sum(step.dgamma for step in steps), sum(step.dbeta for step in steps)
    else:
        dgamma, dbeta = steps[0].dgamma, steps[0].dbeta
        assert all(same_bits(step.dgamma, dgamma) and same_bits(step.dbeta, dbeta) for step in steps)
    assert_relative(dgamma, backward.dgamma)
    assert_relative(dbeta, backward.dbeta)
    return steps


@every_cut
@pytest.mark.parametrize("param_grads", ["local", "global"])
@pytest.mark.parametrize("form", FORMS)
def test_shards_equal_the_whole_at_a_mean_of_ten_thousand_deviations(form, param_grads, sizes, rng):
    x, dy, axis = given(rng, form, mean=1e4, dy_mean=0.5)
    check(x, dy, random_state(rng, 3, dtype="float64", momentum=1.0), sizes, axis, param_grads)


@pytest.mark.parametrize(("mean", "dy_mean"), [(1e6, 0.5), (0.0, 1e3), (0.0, 1e5), (1e5, 1e6)])
def test_the_contract_holds_far_from_zero(mean, dy_mean, rng):
    x, dy, axis = given(rng, "images", mean=mean, dy_mean=dy_mean)
    state = random_state(rng, 3)
    steps = ranks.step_in_shards(x, dy, state, (700, 300, 0), axis, "global")
    assert_close(np.concatenate([s.y for s in steps]), reference.training(x, state.gamma, state.beta, axis=axis).y)
    exact = reference.backward(dy, x, state.gamma, axis=axis)
    assert_close(np.concatenate([s.dx for s in steps]), exact.dx, axis, exact.terms)
    assert_stat_close(steps[0].dgamma, exact.dgamma)
    assert_stat_close(steps[0].dbeta, exact.dbeta)


def test_shards_may_have_nothing_in_common(rng):
    """Sorted data: the shards' means differ by many of their deviations, and one lies alone, far away."""
    x, dy, axis = given(rng, "images")
    x[:10] += 1e4
    x[10:500] -= 50
    dy[:10] += 100
    dy[500:] -= 3
    check(x, dy, random_state(rng, 3, dtype="float64", momentum=1.0), (10, 490, 500), axis)


@pytest.mark.float32_by_default("test_training.py: of a whole batch")
def test_every_dtype(dtype, rng):
    x, dy, axis = given(rng, "float16 images", dtype)
    state = random_state(rng, 3)
    steps = ranks.step_in_shards(x, dy, state, (700, 300, 0), axis, "global")
    assert_close(np.concatenate([s.y for s in steps]), reference.training(x, state.gamma, state.beta, axis=axis).y)
    exact = reference.backward(dy, x, state.gamma, axis=axis)
    assert_close(np.concatenate([s.dx for s in steps]), exact.dx, axis, exact.terms)
    assert_stat_close(steps[1].dgamma, exact.dgamma)
    assert_stat_close(steps[2].dbeta, exact.dbeta)
    assert {(s.y.dtype, s.dx.dtype, s.dgamma.dtype) for s in steps} == {(x.dtype, x.dtype, np.dtype("float32"))}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("use_running", [False, True])
def test_a_group_of_one_has_the_bits_of_no_group(form, use_running, rng):
    x, dy, axis = given(rng, form, mean=100, dy_mean=10)
    state = random_state(rng, 3)
    (step,) = ranks.step_in_shards(x, dy, state, (1000,), axis, "global", use_running=use_running)
    y, saved = nbnorm.batch_norm_training(x, state, axis=axis, use_running=use_running)
    dx, dgamma, dbeta = nbnorm.batch_norm_backward(dy, saved)
    for found, expected in ((step.y, y), (step.dx, dx), (step.dgamma, dgamma), (step.dbeta, dbeta)):
        assert same_bits(found, expected)
    assert snapshot(step.state) == snapshot(state)


@pytest.mark.parametrize("param_grads", ["local", "global"])
@pytest.mark.parametrize("update_running", [False, True])
def test_frozen_statistics(param_grads, update_running, rng):
    x, dy, axis = given(rng, "images")
    state = random_state(rng, 3, dtype="float64", momentum=0.25)
    steps = ranks.step_in_shards(
        x, dy, state, (700, 300, 0), axis, param_grads, use_running=True, update_running=update_running
    )
    running = state.running_mean, state.running_var
    exact = reference.inference(x, *running, state.gamma, state.beta, state.eps)
    assert_close(np.concatenate([step.y for step in steps]), exact)
    backward = reference.frozen_backward(dy, x, *running, state.gamma, state.eps)
    assert_close(np.concatenate([step.dx for step in steps]), backward.dx)
    taken = steps if param_grads == "local" else steps[2:]  # the empty shard has everyone's too
    assert_relative(sum(step.dgamma for step in taken), backward.dgamma)
    assert_relative(sum(step.dbeta for step in taken), backward.dbeta)
    count, mean, m2 = reference.stats(x)
    for step in steps:
        assert snapshot(step.state) == snapshot(steps[0].state)
        if update_running:
            expected = reference.moving_average(*running, mean, m2, count, 0.25)
            assert_relative(step.state.running_mean, expected[0])
            assert_relative(step.state.running_var, expected[1])
    messages = {("local", False): [], ("global", False): [13], ("local", True): [3, 9], ("global", True): [3, 9, 13]}
    assert {tuple(step.sizes) for step in steps} == {tuple(messages[param_grads, update_running])}


@pytest.mark.parametrize("unbiased", [True, False])
def test_pooled_running_statistics_of_several_steps(unbiased, rng):
    """Exact pooling with steps in shards gives the statistics of all values; every rank has the same bits."""
    x, dy, _ = given(rng, "images", mean=10)
    state = random_state(rng, 3, momentum=None, unbiased=unbiased)
    whole = copy.deepcopy(state)
    for sizes, rows in (((300, 100, 0), slice(0, 400)), ((0, 1, 599), slice(400, 1000))):
        steps = ranks.step_in_shards(x[rows], dy[rows], state, sizes)
        assert len({str(snapshot(step.state)) for step in steps}) == 1
        state = steps[0].state
        nbnorm.batch_norm_training(x[rows], whole)
    count, mean, m2 = reference.stats(x)
    assert_relative(state.running_mean, mean)
    assert_relative(state.running_var, m2 / (count - unbiased))
    assert (state.num_batches, state.num_samples) == (whole.num_batches, whole.num_samples) == (2, count)


def test_a_channel_with_nan_on_one_rank_is_nan_on_all_and_no_other_changes(rng):
    x, dy, _ = given(rng, "images")
    good = ranks.step_in_shards(x, dy, random_state(rng, 3), (700, 300, 0))
    x[3, 1, 2] = np.nan
    bad = ranks.step_in_shards(x, dy, good[0].state, (700, 300, 0))
    again = ranks.step_in_shards(np.nan_to_num(x), dy, good[0].state, (700, 300, 0))
    for a, b in zip(bad, again, strict=True):
        assert np.isnan(a.y[:, 1]).all()
        assert np.isnan(a.dx[:, 1]).all()
        assert np.isnan(a.state.running_mean[1])
        assert same_bits(a.y[:, [0, 2]], b.y[:, [0, 2]])
        assert same_bits(a.dx[:, [0, 2]], b.dx[:, [0, 2]])
        assert same_bits(a.state.running_var[[0, 2]], b.state.running_var[[0, 2]])


def test_channels_do_not_depend_on_each_other(rng):
    """A step of some of the channels has their bits."""
    x, dy, _ = given(rng, "images")
    state, kept = random_state(rng, 3), np.array([True, False, True])
    part = nbnorm.BatchNormState(2)
    for name in ("gamma", "beta", "running_mean", "running_var"):
        setattr(part, name, getattr(state, name)[kept])
    whole = ranks.step_in_shards(x, dy, state, (700, 300, 0))
    some = ranks.step_in_shards(x[:, kept].copy(), dy[:, kept].copy(), part, (700, 300, 0))
    for a, b in zip(whole, some, strict=True):
        assert same_bits(a.y[:, kept].copy(), b.y)
        assert same_bits(a.dx[:, kept].copy(), b.dx)
        assert same_bits(a.dgamma[kept], b.dgamma)
        assert same_bits(a.state.running_var[kept], b.state.running_var)


@needs_wide
def test_float64_at_a_hundred_million_deviations(rng):
    x, dy, axis = given(rng, "images", "float64", mean=1e8)
    check(x, dy, random_state(rng, 3, dtype="float64", momentum=1.0), (700, 300, 0), axis)


def test_a_step_takes_three_small_messages(rng):
    """3, 3C and 4C + 1 numbers, whatever the size of the batch."""
    for rows, sizes in ((1000, (700, 300, 0)), (10, (5, 0, 5))):
        x, dy, _ = given(rng, "images")
        steps = ranks.step_in_shards(x[:rows], dy[:rows], random_state(rng, 3), sizes)
        assert {tuple(step.sizes) for step in steps} == {(3, 9, 13)}


# ---- errors


def caught_in_group(rng, spoil, sizes=(5, 4, 0), backward=False):
    """The errors of all ranks when `spoil` may change each one's arguments; nothing of any rank changes."""
    x, dy = (sample(rng, (sum(sizes), 3, 8)) for _ in range(2))
    state = random_state(rng, 3)
    xs, dys = ranks.shards(x, sizes), ranks.shards(dy, sizes)

    def work(rank, sync):
        own, out = copy.deepcopy(state), np.full(xs[rank].shape, 7, np.float32)
        arguments = {"x": xs[rank], "state": own, "out": out, "update_running": True}
        if backward:
            _, saved = nbnorm.batch_norm_training(xs[rank], own, sync=sync)
            arguments = {"dy": dys[rank], "saved": saved, "out": out, "param_grads": "local"}
        before = snapshot(own)
        spoil(rank, arguments)
        call = nbnorm.batch_norm_backward if backward else nbnorm.batch_norm_training
        with pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
            call(**arguments, **({} if backward else {"sync": sync}))
        assert (out == 7).all()
        assert snapshot(own) == before
        return caught.value

    return ranks.run(len(sizes), work)


SPOILT = {
    "dtype": ("x", lambda x: x.astype(np.int32), TypeError),
    "no array": ("x", lambda x: x.tolist(), TypeError),
    "channels": ("x", lambda x: np.zeros((3, 4, 2)), ValueError),
    "no state": ("state", lambda state: None, TypeError),
    "out": ("out", lambda out: out[:, :, :1], ValueError),
}


@pytest.mark.parametrize(("name", "spoil", "kind"), SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("rank", [0, 1])
def test_an_argument_error_is_raised_on_all_ranks(name, spoil, kind, rank, rng):
    errors = caught_in_group(
        rng, lambda r, arguments: arguments.update({name: spoil(arguments[name])} if r == rank else {})
    )
    for r, error in enumerate(errors):
        assert type(error) is (kind if r == rank else RuntimeError)
        assert (f"rank {rank} of 3 failed" in str(error)) == (r != rank)
        assert len(str(error)) < 200


def test_errors_of_two_ranks(rng):
    errors = caught_in_group(rng, lambda r, arguments: r < 2 and arguments.update(x=None))
    assert Counter(type(error) for error in errors) == {TypeError: 2, RuntimeError: 1}
    assert "ranks 0, 1 of 3" in str(errors[2])


@pytest.mark.parametrize(("name", "spoil", "kind"), [
    ("dy", lambda dy: dy[:, :2], ValueError),
    ("dy", lambda dy: dy.astype(np.float64), TypeError),
    ("out", lambda out: out[:, :, :1], ValueError),
    ("param_grads", lambda _: "all", ValueError),
])  # fmt: skip
def test_an_argument_error_of_the_backward_pass_is_raised_on_all_ranks(name, spoil, kind, rng):
    errors = caught_in_group(
        rng, lambda r, arguments: r == 1 and arguments.update({name: spoil(arguments[name])}), backward=True
    )
    assert [type(error) for error in errors] == [RuntimeError, kind, RuntimeError]
    assert "rank 1 of 3 failed" in str(errors[0])


def test_too_few_values_on_all_ranks_together(rng):
    def spoil(rank, arguments):
        arguments.update(x=np.ones((int(rank == 1), 3), np.float32), out=None)

    errors = caught_in_group(rng, spoil)
    assert {type(error) for error in errors} == {ValueError}
    assert len({str(error) for error in errors}) == 1
    assert "got 1 (on all ranks together)" in str(errors[0])


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_take_one_value_on_all_ranks_together_where_they_pool(momentum, rng):
    """An average would take the variance of a single value."""
    x, state = sample(rng, (1, 3)), nbnorm.BatchNormState(3, momentum=momentum)

    def work(rank, sync):
        own = copy.deepcopy(state)
        nbnorm.batch_norm_training(x[:rank], own, use_running=True, sync=sync)
        return own

    found = ranks.run(2, work)
    if momentum is not None:
        assert {type(error) for error in found} == {ValueError}
        assert all(
            "updating the running statistics" in str(error) and "got 1 (on all ranks" in str(error) for error in found
        )
    else:
        state.update(nbnorm.batch_stats(x))
        assert [snapshot(own) for own in found] == [snapshot(state)] * 2


def test_two_values_on_two_ranks_are_enough(rng):
    x, dy = sample(rng, (2, 3)), sample(rng, (2, 3))
    state = random_state(rng, 3, eps=0.1)
    steps = ranks.step_in_shards(x, dy, state, (1, 0, 1))
    assert_close(np.concatenate([s.y for s in steps]), reference.training(x, state.gamma, state.beta, 0.1).y)
    exact = reference.backward(dy, x, state.gamma, 0.1)
    assert_close(np.concatenate([s.dx for s in steps]), exact.dx, terms=exact.terms)


def test_ranks_with_different_channels(rng):
    def spoil(rank, arguments):
        if rank == 1:
            arguments.update(x=np.ones((4, 5), np.float32), state=nbnorm.BatchNormState(5), out=None)

    errors = caught_in_group(rng, spoil)
    assert {str(error) for error in errors} == {
        "rank 0 has 3 channels and rank 1 has 5; expected the same on all ranks"
    }


def test_sync_and_param_grads_are_checked(given):
    with pytest.raises(TypeError, match=r"sync is a int; expected a callable, such as nbnorm\.parallel\.mpi\.sync"):
        nbnorm.batch_norm_training(given.x, given.state, sync=3)
    with pytest.raises(ValueError, match="param_grads is 'all'; expected 'local'"):
        nbnorm.batch_norm_backward(given.dy, given.saved, param_grads="all")


@pytest.mark.parametrize(
    ("returned", "named"),
    [
        (np.zeros((1, 2)), "float64 of shape (1, 2)"),
        (np.zeros((1, 3), np.float32), "float32 of shape (1, 3)"),
        (np.zeros(()), "float64 of shape ()"),
        (np.asfortranarray(np.zeros((2, 3))), "float64 of shape (2, 3)"),
        (None, "a NoneType"),
        ([[3.0, 4.0, 0.0]], "a list"),
    ],
    ids=str,
)
def test_what_sync_returns_is_checked(given, returned, named):
    refuse(
        given,
        lambda: nbnorm.batch_norm_training(given.x, given.state, sync=lambda packed: returned),
        ValueError,
        f"sync returned {named}; expected C-contiguous float64, (ranks, 3)",
    )


def two_ranks_for(messages):
    """A sync that has heard of two ranks in so many messages, and of one in those behind them."""
    number = itertools.count()
    return lambda packed: np.stack([packed] * (2 if next(number) < messages else 1))


def test_the_number_of_ranks_stays_the_same(given):
    """A kernel would read what lies behind the message."""
    training, text = nbnorm.batch_norm_training, "sync returned float64 of shape (1, {}); expected C-contiguous float64"
    refuse(
        given,
        lambda: training(given.x, given.state, out=given.out, sync=two_ranks_for(1)),
        ValueError,
        f"{text.format(9)}, (2, 9)",
    )
    _, saved = training(given.x, given.state, sync=two_ranks_for(2))
    refuse(
        given,
        lambda: nbnorm.batch_norm_backward(given.dy, saved, out=given.out),
        ValueError,
        f"{text.format(13)}, (2, 13)",
    )


def test_without_a_sync_there_is_one_shard(given):
    local = nbnorm.batch_norm_backward(given.dy, given.saved)
    whole = nbnorm.batch_norm_backward(given.dy, given.saved, param_grads="global")
    assert all(same_bits(a, b) for a, b in zip(local, whole, strict=True))
