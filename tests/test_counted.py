"""Which values count: `where=`, `weights=` and `nan=` in every layout, dtype and form, against the oracle."""

import copy
import pickle
import tracemalloc

import numpy as np
import pytest
import reference
from common import random_state, refuse, same_bits, sample, snapshot
from ranks import run, work_of
from test_training import LAYOUTS, every_layout, features
from tolerance import (
    OTHER_DTYPES,
    assert_both_close,
    assert_close,
    assert_gradient_close,
    assert_parts_close,
    assert_stat_close,
    dtype_of,
)

import nbnorm
from nbnorm import batch_norm_training as training

SHAPE = (5, 4, 5, 14)  # 70 values a segment: two whole vectors and a part


def kept_axes(x, axes):
    """The shape of x, with 1 for every axis but these."""
    return tuple(n if i in axes else 1 for i, n in enumerate(x.shape))


def some(rng, shape, x, axis):
    """A mask of this shape in which about two thirds count, and of every channel more than one value."""
    channels = reference.channel_axes(x, axis)
    while True:
        where = rng.random(shape) < 0.65
        whole = reference.by_channel(np.broadcast_to(where, x.shape).astype(float), axis)
        if where.size < 4:
            return np.ones_like(where)
        if len(channels) == x.ndim or (whole.sum(-1) > 1).all():
            return where


def other_axes(x, axis):
    return [i for i in range(x.ndim) if i not in reference.channel_axes(x, axis)]


# What counts: (rng, x, axis) -> arguments
FORMS = {
    "where, all of x": lambda rng, x, axis: {"where": some(rng, x.shape, x, axis)},
    "where, padding": lambda rng, x, axis: {"where": some(rng, kept_axes(x, other_axes(x, axis)), x, axis)},
    "where, first axis": lambda rng, x, axis: {"where": some(rng, kept_axes(x, other_axes(x, axis)[:1]), x, axis)},
    "where, last axis": lambda rng, x, axis: {"where": some(rng, kept_axes(x, other_axes(x, axis)[-1:]), x, axis)},
    "where, channels and last axis": lambda rng, x, axis: {
        "where": some(rng, kept_axes(x, {*reference.channel_axes(x, axis), other_axes(x, axis)[-1]}), x, axis)
    },
    "where, everything": lambda rng, x, axis: {"where": everything(x.ndim)},
    "where, in another order": lambda rng, x, axis: {"where": np.asfortranarray(some(rng, x.shape, x, axis))},
    "where, every other one, backwards": lambda rng, x, axis: {
        "where": np.repeat(some(rng, x.shape, x, axis)[..., ::-1], 2, -1)[..., ::-2]
    },
    "weights, all of x": lambda rng, x, axis: {"weights": rng.uniform(0.5, 3, x.shape).astype(np.float32)},
    "weights, first axis": lambda rng, x, axis: {
        "weights": rng.uniform(0.5, 3, kept_axes(x, other_axes(x, axis)[:1]))
    },
    "weights, padding, integers": lambda rng, x, axis: {
        "weights": (w := some(rng, kept_axes(x, other_axes(x, axis)), x, axis)) + rng.integers(0, 3, w.shape)
    },
    "weights, per channel": lambda rng, x, axis: {
        "weights": rng.uniform(0.5, 3, kept_axes(x, reference.channel_axes(x, axis))).astype(np.float16)
    },
    "missing": lambda rng, x, axis: {"nan": "omit"},
    "all": lambda rng, x, axis: {
        "where": some(rng, x.shape, x, axis),
        "weights": rng.uniform(0.5, 3, kept_axes(x, other_axes(x, axis)[:1])),
        "nan": "omit",
    },
}  # fmt: skip
every_form = pytest.mark.parametrize("form", FORMS)
# Kernels are compiled for each of these; within a kind forms differ in strides, which are found before. Weights of
# float32 have others, which differ in nothing but the load: test_a_step_equals_the_definition.
KINDS = ["where, all of x", "weights, first axis", "missing", "all"]
every_mask = pytest.mark.parametrize("form", [form for form in FORMS if "where" in form or form == "all"])


def spoiled(rng, x, counting, axis):
    """x with NaN where it is missing, and with what nobody may look at where it does not count."""
    x = np.array(x, copy=True, order="K")
    w = reference.counts(x, counting.get("where"), counting.get("weights"))
    x[(w == 0) & (rng.random(x.shape) < 0.3)] = np.inf
    x[(w == 0) & (rng.random(x.shape) < 0.3)] = np.nan
    if counting.get("nan") == "omit" and x.size > 2:  # of two values none may be missing
        x[(w > 0) & (rng.random(x.shape) < 0.1)] = np.nan
    return x, reference.counts(x, counting.get("where"), counting.get("weights"), counting.get("nan") == "omit")


def assert_map_close(y, exact, gone, axis):
    """y, which is the map also where there is no value: NaN or infinite there."""
    assert np.array_equal(np.isfinite(y[gone]), np.zeros(gone.sum(), bool))
    assert_close(np.where(gone, y.dtype.type(0), y), np.where(gone, 0, exact), axis)


def check_counted(x, dy, w, state, counting, axis, use_running=False, update_running=True):
    """A step with values that count w times as `counting` says, against the oracle."""
    gone, given = reference.absent(x, w), (x.tobytes(), dy.tobytes())
    running = None if state.running_mean is None else (state.running_mean.copy(), state.running_var.copy())
    batch = reference.weighted_training(x, w, state.gamma, state.beta, state.eps, axis)
    y, saved = nbnorm.batch_norm_training(
        x, state, axis=axis, use_running=use_running, update_running=update_running, **counting
    )
    if use_running:
        exact = reference.inference(x, *running, state.gamma, state.beta, state.eps, axis)
        gradients = reference.frozen_backward(
            np.where(gone, 0, dy), np.where(gone, 0, x), *running, state.gamma, state.eps, axis
        )
        var = reference.wide(running[1])
    else:
        exact, var = batch.y, batch.var
        gradients = reference.weighted_backward(dy, x, w, state.gamma, state.eps, axis)
        assert_stat_close(saved.mean, batch.mean)
        assert_stat_close(saved.inv_std, 1 / np.sqrt(batch.var + reference.Wide(state.eps)))
    assert_map_close(y, exact, gone, axis)
    if running is not None and update_running:
        new = reference.moving_average(*running, batch.mean, batch.var * batch.count, batch.count, state.momentum)
        assert_stat_close(state.running_mean, new[0])
        assert_stat_close(state.running_var, new[1])
    found = nbnorm.batch_norm_backward(dy, saved)
    assert (x.tobytes(), dy.tobytes()) == given
    assert np.array_equal(found.dx[gone], np.zeros(gone.sum()))
    if x.dtype == np.float64:
        terms = np.abs(np.where(reference.by_channel(gone, axis), 0, reference.by_channel(dy, axis))).max(-1)
        terms = terms / np.sqrt(var + state.eps) * np.abs(state.gamma)
        assert_gradient_close(
            reference.by_channel(found.dx, axis), reference.by_channel(gradients.dx, axis), terms[..., None]
        )
    else:
        assert_close(found.dx, gradients.dx, axis)
    assert_stat_close(found.dgamma, gradients.dgamma)
    assert_stat_close(found.dbeta, gradients.dbeta)
    return y, saved, found


@pytest.mark.float32_by_default("the cut of the work is that of any dtype")
@pytest.mark.parametrize("shape", [(4, 64, 7), (4, 48, 17), (3, 64, 30), (5, 70, 33)], ids=str)
@pytest.mark.parametrize("what", ["where", "weights"])
def test_short_sequences_of_many_channels(what, shape, dtype, rng):
    """Shorter than a vector, so that it has values of three channels, or just longer."""
    N, C, S = shape
    counting = {
        "where": {"where": np.arange(S) < S - np.arange(N)[:, None, None]},
        "weights": {"weights": rng.uniform(0.5, 3, (N, C, 1)).astype(np.float32)},
    }[what]
    x, dy, state = sample(rng, shape, dtype), sample(rng, shape, dtype), random_state(rng, C)
    check_counted(x, dy, reference.counts(x, **counting), state, counting, 1)


def case(rng, layout, form, dtype, shape=SHAPE):
    x, axis = LAYOUTS[layout](sample(rng, shape, dtype))
    dy, _ = LAYOUTS[layout](rng.normal(size=shape).astype(dtype_of(dtype)))
    counting = FORMS[form](rng, x, axis)
    x, w = spoiled(rng, x, counting, axis)
    dy = np.where(reference.absent(x, w), np.full((), np.inf, dy.dtype), dy)
    return x, dy, w, counting, axis


# What is not said to be exhaustive here shares few kernels: each takes seconds to compile, with a mask as without.


@pytest.mark.parametrize(
    ("layout", "form"), [("NCHW", "where, padding"), ("rows", "where, first axis"), ("NCHW", "all")]
)
def test_a_step_with_each_form_of_work(layout, form, rng):
    x, dy, w, counting, axis = case(rng, layout, form, "float32")
    check_counted(x, dy, w, random_state(rng, features(x, axis), eps=1e-3, momentum=0.25), counting, axis)


@pytest.mark.pairs_at_most("two parameters find where a mask lies, the layout and the form; the mode has the same")
@pytest.mark.exhaustive("test_a_step_with_each_form_of_work")
@every_layout
@every_form
@pytest.mark.parametrize("use_running", [False, True])
def test_a_step_equals_the_definition(layout, form, use_running, rng):
    x, dy, w, counting, axis = case(rng, layout, form, "float32")
    state = random_state(rng, features(x, axis), eps=1e-3, momentum=0.25)
    check_counted(x, dy, w, state, counting, axis, use_running)


@pytest.mark.values_at_most("float32 in every layout and form; only what loads and stores knows the dtype")
@pytest.mark.exhaustive("test_a_step_with_each_form_of_work, float32")
@pytest.mark.parametrize("memory", OTHER_DTYPES)
@pytest.mark.parametrize("layout", ["NCHW", "rows"])
@pytest.mark.parametrize("form", ["where, all of x", "all"])
@pytest.mark.parametrize("use_running", [False, True])
def test_a_step_of_other_dtypes(memory, layout, form, use_running, rng):
    x, dy, w, counting, axis = case(rng, layout, form, memory)
    state = random_state(rng, features(x, axis), eps=1e-3, momentum=0.25)
    check_counted(x, dy, w, state, counting, axis, use_running)


@pytest.mark.values_at_most("pairs of layouts and forms: test_a_step_equals_the_definition")
@pytest.mark.exhaustive("test_merged_pieces_equal_the_whole, float32")
@every_layout
@every_form
def test_statistics_equal_the_definition(dtype, layout, form, rng):
    x, _, w, counting, axis = case(rng, layout, form, dtype)
    found, (count, mean, m2) = nbnorm.batch_stats(x, axis=axis, **counting), reference.weighted_stats(x, w, axis)
    assert found.count.shape == found.mean.shape == mean.shape
    assert [part.dtype for part in found] == [np.float64] * 3
    assert_stat_close(found.count, count)
    assert_stat_close(found.mean, mean)
    assert_stat_close(found.m2, m2)


SHAPES = [
    (7, 3), (2, 1), (700, 3), (300, 96), (65, 2_500), (8, 64, 7, 7), (33, 4, 13, 13), (9, 300, 7, 7), (3, 2, 63),
    (9, 3, 65), (1, 2, 40_000), (5, 1, 32_768), (600, 1, 200), (20_001, 1), (3_001, 17),
]  # fmt: skip


@pytest.mark.pairs_at_most("one way of cutting for every form")
@pytest.mark.exhaustive("test_a_mask_of_rows_equals_the_rows has small shapes")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@every_mask
@pytest.mark.parametrize("order", ["channels first", "channels last"])
def test_every_shape(shape, form, order, rng):
    """Every way in which work is cut: fused, split, tables, blocks, the last row of them.

    With a mask, alone and beside weights; without one the same kernels are compiled once more for each kind of weights,
    seconds each, and cut in the same way: test_a_step_equals_the_definition has those.
    """
    v = sample(rng, shape)
    x, axis = (v, 1) if order == "channels first" else (np.ascontiguousarray(np.moveaxis(v, 1, -1)), -1)
    counting = FORMS[form](rng, x, axis)
    x, w = spoiled(rng, x, counting, axis)
    dy = np.where(reference.absent(x, w), np.float32(np.nan), rng.normal(size=x.shape).astype(np.float32))
    check_counted(x, dy, w, random_state(rng, shape[1]), counting, axis)


# ---- shards


def cut(counting, start, stop):
    """The part of a mask or of weights that belongs to a shard."""
    return {
        name: value[start:stop] if isinstance(value, np.ndarray) and value.shape[0] > 1 else value
        for name, value in counting.items()
    }


def check_shards(dtype, form, shape, param_grads, use_running, rng):
    """Ranks with masks of their own, one of them without a sample, against the whole batch."""
    x, dy = sample(rng, shape, dtype), rng.normal(size=shape).astype(dtype_of(dtype))
    counting = FORMS[form](rng, x, 1)
    x, w = spoiled(rng, x, counting, 1)
    gone, bounds = reference.absent(x, w), [0, 2, 2, 8, 9]
    state = random_state(rng, shape[1], momentum=0.25)
    running = state.running_mean.copy(), state.running_var.copy()

    def work(rank, sync):
        own, part = copy.deepcopy(state), slice(bounds[rank], bounds[rank + 1])
        y, saved = nbnorm.batch_norm_training(
            x[part], own, sync=sync, use_running=use_running, **cut(counting, part.start, part.stop)
        )
        return own, y, saved, nbnorm.batch_norm_backward(dy[part], saved, param_grads=param_grads)

    ranks = work_of(run(4, work))
    batch = reference.weighted_training(x, w, state.gamma, state.beta, state.eps)
    if use_running:
        y = reference.inference(x, *running, state.gamma, state.beta, state.eps)
        exact = reference.frozen_backward(np.where(gone, 0, dy), np.where(gone, 0, x), *running, state.gamma, state.eps)
    else:
        y, exact = batch.y, reference.weighted_backward(dy, x, w, state.gamma, state.eps)
    assert_map_close(np.concatenate([rank[1] for rank in ranks]), y, gone, 1)
    dx = np.concatenate([rank[3].dx for rank in ranks])
    if x.dtype == np.float64:
        scale = (
            np.abs(np.where(gone, 0, dy)).max() * np.abs(state.gamma) / np.sqrt(reference.wide(batch.var) + state.eps)
        )
        scale = scale if not use_running else np.abs(dy).max() * np.abs(state.gamma) / np.sqrt(running[1] + state.eps)
        assert_gradient_close(np.moveaxis(dx, 1, -1), np.moveaxis(exact.dx, 1, -1), scale)
    else:
        assert_close(dx, exact.dx)
    for name in ("dgamma", "dbeta"):
        parts = [reference.wide(getattr(rank[3], name)) for rank in ranks]
        if param_grads == "global":
            assert all(np.array_equal(parts[0], part) for part in parts)
            assert_stat_close(getattr(ranks[0][3], name), getattr(exact, name))
        else:
            # Each part is rounded to float32 by itself.
            limit = 2.0**-24 * sum(np.abs(part) for part in parts) + 2.0**-40 * np.abs(np.where(gone, 0, dy)).sum()
            assert (np.abs(sum(parts) - getattr(exact, name)) <= limit).all()
    new = reference.moving_average(*running, batch.mean, batch.var * batch.count, batch.count, state.momentum)
    for own, *_ in ranks:
        assert_stat_close(own.running_mean, new[0])
        assert_stat_close(own.running_var, new[1])
        assert snapshot(own) == snapshot(ranks[0][0])


@pytest.mark.parametrize("momentum", [0.25, None])
@pytest.mark.parametrize("masked", [0, 1])
def test_too_few_values_are_refused_by_every_rank(momentum, masked, rng):
    """Also by one whose own values all count, or that has none."""
    x, own = sample(rng, (3, 4)), [random_state(rng, 4, momentum=momentum) for _ in range(2)]
    for state in own:
        state.num_samples = 0
    before = [snapshot(state) for state in own]
    few = {"where": np.array([[True], [False], [False]]), "weights": np.full((3, 1), 1.0 if momentum else 0.5)}

    def work(rank, sync):
        part, counting = (x, few) if rank == masked else (x[:0], {})
        nbnorm.batch_norm_training(part, own[rank], sync=sync, **counting)

    if momentum is None:  # two values that count half each: their variance would be lost
        few["where"] = np.array([[True], [True], [False]])
    for failure in run(2, work):
        assert isinstance(failure, ValueError)
        assert "count" in str(failure)
    assert [snapshot(state) for state in own] == before


@pytest.mark.parametrize(
    "shape", [(9, 3, 70), pytest.param((9, 3, 7), marks=pytest.mark.exhaustive("kernels of their own"))], ids=str
)
def test_shards_with_masks_of_their_own(shape, rng):
    check_shards("float32", "where, all of x", shape, "local", False, rng)


@pytest.mark.parametrize("param_grads", ["local", "global"])
@pytest.mark.parametrize("activation", [None, pytest.param("relu", marks=pytest.mark.exhaustive("kernels of its own"))])
def test_a_rank_without_a_mask_beside_others_with_one(param_grads, activation, rng):
    x, dy, where = sample(rng, (9, 3, 70)), sample(rng, (9, 3, 70)), rng.random((9, 3, 70)) < 0.65
    bounds, state, where[5:] = [0, 3, 5, 9], random_state(rng, 3, momentum=0.25), True

    def work(rank, sync):
        own, part = copy.deepcopy(state), slice(bounds[rank], bounds[rank + 1])
        counting = {} if rank == 2 else {"where": where[part]}
        y, saved = training(x[part], own, sync=sync, activation=activation, **counting)
        return own, y, nbnorm.batch_norm_backward(dy[part], saved, param_grads=param_grads)

    ranks = work_of(run(3, work))
    w = where.astype(float)
    batch = reference.weighted_training(x, w, state.gamma, state.beta, state.eps)
    g = reference.gated(dy, batch.y, activation).astype(np.float32)
    exact = reference.weighted_backward(g, x, w, state.gamma, state.eps)
    assert_close(np.concatenate([y for _, y, _ in ranks]), reference.beside(batch.y, None, activation))
    assert_close(np.concatenate([found.dx for *_, found in ranks[:2]]), exact.dx[:5])
    # Without a mask dx is computed in float32, from terms about as large as where all of the batch counts.
    terms = reference.backward(g, x, state.gamma, state.eps).terms
    assert (np.abs(ranks[2][2].dx - exact.dx[5:]) <= 2.0**-22 * terms[5:]).all()
    for name in ("dgamma", "dbeta"):
        parts = [getattr(found, name) for *_, found in ranks]
        assert_parts_close(parts[:1] if param_grads == "global" else parts, getattr(exact, name))
    m2 = batch.var * batch.count
    new = reference.moving_average(state.running_mean, state.running_var, batch.mean, m2, batch.count, 0.25)
    for own, *_ in ranks:
        assert_stat_close(own.running_mean, new[0])
        assert_stat_close(own.running_var, new[1])
        assert snapshot(own) == snapshot(ranks[0][0])


@pytest.mark.values_at_most("test_parallel_sync has the exchange, test_a_step_equals_the_definition the forms")
@pytest.mark.exhaustive("test_shards_with_masks_of_their_own")
@pytest.mark.parametrize("form", KINDS)
@pytest.mark.parametrize("shape", [(9, 3, 70), (9, 3, 7), (9, 5)], ids=str)
@pytest.mark.parametrize("param_grads", ["local", "global"])
@pytest.mark.parametrize("use_running", [False, True])
def test_shards_equal_the_whole(dtype, form, shape, param_grads, use_running, rng):
    check_shards(dtype, form, shape, param_grads, use_running, rng)


# ---- what must be so


@pytest.mark.parametrize("shape", [(4, 3, 1), (3, 2, 4), (7, 1, 3)], ids=str)
@pytest.mark.parametrize("fractions", [False, True])
def test_the_oracle_equals_the_complex_step(shape, fractions, rng):
    """The sum over every y of its product with dy, whether the value counts or not."""
    x, dy = sample(rng, shape, "float64"), sample(rng, shape, "float64")
    gamma, beta = rng.normal(size=shape[1]), rng.normal(size=shape[1])
    w = rng.integers(0, 3, shape) * (rng.uniform(0.5, 2, shape) if fractions else 1.0)
    w[0] = 1
    found = reference.weighted_backward(dy, x, w, gamma, 1e-3)
    expected = reference.complex_step(x, dy, gamma, beta, 1e-3, w=w)
    for name in ("dx", "dgamma", "dbeta"):
        # Errors of the complex step, in float64: some 2**-53 of terms of size 10.
        np.testing.assert_allclose(getattr(found, name).astype(float), getattr(expected, name), rtol=0, atol=1e-12)
    y = reference.weighted_training(x, w, gamma, beta, 1e-3).y
    np.testing.assert_allclose(y.astype(float), reference.formula(x, gamma, beta, 1e-3, w=w), rtol=0, atol=1e-13)


@pytest.mark.exhaustive("the oracle is tested against it")
@pytest.mark.parametrize("shape", [(4, 3, 1), (3, 2, 4), (2, 3, 70), (20, 5, 1)], ids=str)
def test_gradients_equal_the_complex_step(shape, rng):
    x, dy = sample(rng, shape, "float64"), sample(rng, shape, "float64")
    state = random_state(rng, shape[1], dtype="float64")
    w = rng.integers(0, 3, shape) * rng.uniform(0.5, 2, shape)
    w[0] = 2
    _, saved = nbnorm.batch_norm_training(x, state, weights=w)
    found = nbnorm.batch_norm_backward(dy, saved)
    expected = reference.complex_step(x, dy, state.gamma, state.beta, state.eps, w=w)
    inv_std = saved.inv_std * np.abs(state.gamma)
    of_dx = (np.abs(dy) * inv_std[None, :, None]).sum((0, 2))  # every dy acts on every dx
    assert_gradient_close(found.dx, expected.dx, of_dx[None, :, None])
    assert_gradient_close(found.dbeta, expected.dbeta, np.abs(dy).sum((0, 2)))
    x_hat = (x - saved.mean[None, :, None]) * saved.inv_std[None, :, None]
    assert_gradient_close(found.dgamma, expected.dgamma, np.abs(dy * x_hat).sum((0, 2)))


@pytest.mark.exhaustive("float64; weights are in test_a_step_with_each_form_of_work")
def test_integer_weights_are_repetitions(rng):
    x, times = sample(rng, (6, 3), "float64"), np.array([[1], [0], [3], [2], [1], [0]])
    repeated = np.repeat(x, times[:, 0], axis=0)
    state, other = nbnorm.BatchNormState(3), nbnorm.BatchNormState(3)
    y, _ = nbnorm.batch_norm_training(x, state, weights=times)
    expected, _ = nbnorm.batch_norm_training(repeated, other)
    # Two orders of seven float64 terms.
    np.testing.assert_allclose(np.repeat(y, times[:, 0], axis=0), expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(state.running_var, other.running_var, rtol=1e-14)
    assert state.num_samples == other.num_samples == 7


@pytest.mark.parametrize(
    "shape",
    [(6, 3, 70), (6, 3), pytest.param((6, 3, 8), marks=pytest.mark.exhaustive("kernels of their own"))],
    ids=str,
)
def test_a_mask_of_rows_equals_the_rows(shape, rng):
    x, dy, rows = sample(rng, shape), sample(rng, shape), np.array([True, False, True, True, False, True])
    dy[~rows] = 0
    state, other = nbnorm.BatchNormState(3), nbnorm.BatchNormState(3)
    y, saved = nbnorm.batch_norm_training(x, state, where=rows.reshape(6, *[1] * (len(shape) - 1)))
    expected, saved_rows = nbnorm.batch_norm_training(x[rows], other)
    assert_close(y[rows], reference.training(x[rows]).y)
    dx, dgamma, dbeta = nbnorm.batch_norm_backward(dy, saved)
    exact = nbnorm.batch_norm_backward(dy[rows], saved_rows)
    # Without a mask dx is computed in float32.
    terms = reference.backward(dy[rows], x[rows]).terms
    assert (np.abs(dx[rows] - exact.dx) <= 2.0**-22 * terms + 3e-7 * np.abs(exact.dx)).all()
    assert np.array_equal(dx[~rows], np.zeros_like(dx[~rows]))
    assert_both_close(y[rows], expected)
    assert_parts_close([dgamma], exact.dgamma)
    assert_parts_close([dbeta], exact.dbeta)
    assert state.num_samples == other.num_samples


@pytest.mark.exhaustive("a kernel for weights alone")
def test_weights_of_0_and_1_are_a_mask_to_the_bit(rng):
    x, dy, where = sample(rng, (5, 3, 70)), sample(rng, (5, 3, 70)), rng.random((5, 1, 70)) < 0.5
    results = []
    for counting in ({"where": where}, {"weights": where.astype(np.float32)}):
        y, saved = nbnorm.batch_norm_training(x, nbnorm.BatchNormState(3), **counting)
        results.append((y, *nbnorm.batch_norm_backward(dy, saved)))
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


def mostly_far(x, weight, place):
    """x, which in nine of ten rows is far away, and weights with which these hardly count."""
    weights = np.where(np.arange(len(x)) % 10 == 3, 1.0, weight).reshape(-1, *(1,) * (x.ndim - 1))
    place = x.dtype.type(min(place, 3e4) if x.dtype == np.float16 else place)
    return np.where(weights < 1, x + place, x), weights


far_shapes = [(40, 2, 70), (300, 2), (2000, 40), (40, 3, 9)]
weights_alone = pytest.mark.exhaustive("a kernel for weights alone")
other = pytest.mark.exhaustive("float32")


def everything(ndim):
    return np.True_.reshape((1,) * ndim)


@pytest.mark.parametrize(
    ("memory", "shape", "form"),
    [
        ("float32", (40, 4, 5, 14), {"where": everything(4), "nan": "omit"}),
        *(pytest.param("float32", shape, {}, marks=weights_alone) for shape in far_shapes),
        *(pytest.param("float64", shape, {}, marks=weights_alone) for shape in far_shapes),
        # Beside a mask: its kernels are those of test_a_step_of_other_dtypes.
        *(pytest.param("bfloat16", shape, {"where": everything(len(shape))}, marks=other) for shape in far_shapes),
    ],
    ids=str,
)
@pytest.mark.parametrize(("weight", "place"), [(1e-16, 1e6), (1e-30, 1e8), (1e-100, 1e30)])
def test_what_hardly_counts_may_be_far_away(memory, shape, form, weight, place, rng):
    """None of the nine values of which an origin is the median counts for more than next to nothing."""
    x, weights = mostly_far(sample(rng, shape, memory), weight, place)
    dy = np.where(weights < 1, 0, rng.normal(size=shape)).astype(dtype_of(memory))
    counting = {"weights": weights, **form}
    w, state = reference.counts(x, None, weights), random_state(rng, shape[1])
    _, saved, _ = check_counted(x, dy, w, state, counting, 1)
    found = nbnorm.batch_stats(x, **counting)
    assert same_bits(found.mean, saved.mean)
    assert_stat_close(found.m2 / found.count, reference.weighted_training(x, w).var)


def few_together(x, place, rng):
    """A mask in which three values in a row count, of all channels but the last; x is far away elsewhere."""
    N, C = x.shape[:2]
    size = x.size // C
    of_channels, start = np.zeros((C, size), bool), int(place * (size - 3))
    of_channels[:-1, start : start + 3] = True
    where = of_channels.reshape(C, N, -1).swapaxes(0, 1).reshape(x.shape)
    return where, np.where(where, 1e5 + rng.normal(size=x.shape), -1e30).astype(np.float32)


@pytest.mark.parametrize("shape", [(20, 3, 700), (9000, 3)], ids=str)
@pytest.mark.parametrize("place", [0.0, 0.37, 1.0])
def test_few_values_that_count_are_found_wherever_they_are(shape, place, rng):
    """Also where steps of a golden section do not come. What does not count would leave no digit."""
    where, x = few_together(np.empty(shape), place, rng)
    dy, state, part = rng.normal(size=shape).astype(np.float32), random_state(rng, shape[1]), (slice(None), slice(2))
    count, mean, m2 = reference.weighted_stats(x, where.astype(float))
    found = nbnorm.batch_stats(x, where=where)
    assert found.count.tolist() == count.tolist() == [3, 3, 0]
    assert_stat_close(found.mean, mean)
    assert_stat_close(found.m2, m2)
    with pytest.raises(ValueError, match="channel 2"):
        training(x, state, where=where)
    x, dy, where, state = x[part], dy[part], where[part], random_state(rng, 2)
    y, saved = training(x, state, where=where)
    exact = reference.weighted_training(x, where.astype(float), state.gamma, state.beta, state.eps)
    assert_close(y[where], exact.y[where])
    found = nbnorm.batch_norm_backward(dy, saved)
    exact = reference.weighted_backward(dy, x, where.astype(float), state.gamma, state.eps)
    assert_close(found.dx, exact.dx)
    assert_stat_close(found.dgamma, exact.dgamma)
    assert_stat_close(found.dbeta, exact.dbeta)


@weights_alone
@pytest.mark.parametrize("memory", ["float32", "float64"])
def test_what_is_long_ago_may_be_forgotten(memory, rng):
    """Of a trend only the last of thousands of values count, none of which is one of nine."""
    x = (np.arange(5000.0)[:, None] + rng.normal(size=(5000, 2))).astype(memory)
    weights = 0.9 ** np.arange(4999.0, -1, -1)[:, None]
    dy = rng.normal(size=x.shape).astype(memory)
    check_counted(x, dy, reference.counts(x, None, weights), random_state(rng, 2), {"weights": weights}, 1)


@weights_alone
@pytest.mark.parametrize("memory", ["float32", "float64"])
@pytest.mark.parametrize("weight", [5e-323, 1e-321])
def test_weights_that_underflow_are_looked_at_so_often_only(weight, memory):
    """Sums of them are so wrong that no origin is ever near."""
    x = np.where(np.arange(20) % 4 == 0, 0, 0.2166).astype(memory)[:, None]
    found = nbnorm.batch_stats(x, weights=np.full((20, 1), weight))
    assert found.count == 20 * weight
    assert 0 <= found.mean <= x.max()
    assert 0 <= found.m2 <= found.count


@weights_alone
@pytest.mark.parametrize("shape", [(10**5, 2), (10, 2, 10**4)], ids=str)
def test_counts_of_float64_data_are_compensated(shape, rng):
    """As their sums are: plain ones of so many weights were off by tens of units, and y by more than 16."""
    x, dy = rng.normal(size=(2, *shape))
    weights = rng.uniform(0.5, 2, (shape[0], 1, *shape[2:]))
    w = reference.counts(x, None, weights)
    _, saved, _ = check_counted(x, dy, w, random_state(rng, 2), {"weights": weights}, 1)
    exact = reference.wide(weights).sum()
    assert (np.abs(saved.count - exact) <= 2 * 2.0**-53 * exact).all()


@weights_alone
def test_scaled_weights_give_the_same_y(rng):
    """A power of two scales every sum exactly."""
    x, weights = sample(rng, (20, 3)), rng.uniform(0.5, 3, (20, 1))
    y, _ = nbnorm.batch_norm_training(x, nbnorm.BatchNormState(3), weights=weights)
    again, _ = nbnorm.batch_norm_training(x, nbnorm.BatchNormState(3), weights=8 * weights)
    assert same_bits(y, again)


@pytest.mark.parametrize("size", [2.0**-60, 2.0**60, "some a million million times"])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_weights_may_be_of_any_size(size, activation, rng):
    """dy has an origin that its weights take down to size: w*h is about as large as dy."""
    x, where = sample(rng, SHAPE), rng.random((5, 1, 5, 14)) < 0.6
    dy = rng.normal(size=x.shape).astype(np.float32)
    weights = rng.uniform(0.5, 3, (5, 1, 5, 14))
    weights = (
        weights * size
        if isinstance(size, float)
        else weights * 10.0 ** rng.choice([0, 12], weights.shape, p=[0.9, 0.1])
    )
    counting, state = {"where": where, "weights": weights, "nan": "omit"}, random_state(rng, 4)
    w = reference.counts(x, where, weights)
    y, saved = training(x, state, update_running=False, activation=activation, **counting)
    batch = reference.weighted_training(x, w, state.gamma, state.beta, state.eps)
    assert_close(y, reference.beside(batch.y, None, activation))
    found = nbnorm.batch_norm_backward(dy, saved)
    g = reference.gated(dy, batch.y, activation)
    exact = reference.weighted_backward(g.astype(np.float32), x, w, state.gamma, state.eps)
    assert_close(found.dx, exact.dx)
    assert_stat_close(found.dgamma, exact.dgamma)
    assert_stat_close(found.dbeta, exact.dbeta)


def test_what_does_not_count_changes_nothing(rng):
    x, where = sample(rng, (6, 3, 70)), rng.random((6, 1, 70)) < 0.6
    y, _ = nbnorm.batch_norm_training(x, nbnorm.BatchNormState(3), where=where)
    other = np.where(where, x, np.float32(3e38))
    again, _ = nbnorm.batch_norm_training(other, nbnorm.BatchNormState(3), where=where)
    assert np.array_equal(np.where(where, y, 0), np.where(where, again, 0))


def test_digits_stay_at_a_large_mean_under_any_mask(rng):
    """The origin is a value that counts: the others are a billion standard deviations away."""
    x, dy = (rng.normal(size=(6, 4, 100)) + 1e5).astype(np.float32), sample(rng, (6, 4, 100)) + np.float32(1e4)
    where = np.zeros((6, 1, 100), bool)
    where[4, 0, 90:] = True
    x = np.where(where, x, np.float32(-1e9))
    state = random_state(rng, 4)
    w = reference.counts(x, where)
    check_counted(x, dy, w, state, {"where": where}, 1)


@pytest.mark.parametrize(("shape", "kind"), [((5, 3, 70), "float64"), ((40, 33), "float32")], ids=str)
def test_weights_of_the_other_byte_order(shape, kind, rng):
    x, weights, found = sample(rng, shape), rng.uniform(0.5, 3, shape).astype(kind), []
    for given in (weights, weights.astype(weights.dtype.newbyteorder())):
        state = nbnorm.BatchNormState(shape[1])
        y, _ = training(x, state, weights=given)
        found.append((y, state.running_mean, *nbnorm.batch_stats(x, weights=given)))
    assert all(same_bits(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("shape", [(5, 3, 70), (5, 3, 7), (40, 33)], ids=str)
def test_where_all_true_is_no_mask(shape, rng):
    """y and the statistics of this cut to the bit; dx to rounding, as docs/numerics.md says."""
    x = sample(rng, shape)
    plain, own = nbnorm.BatchNormState(shape[1]), nbnorm.BatchNormState(shape[1])
    y, _ = nbnorm.batch_norm_training(x, plain)
    again, _ = nbnorm.batch_norm_training(x, own, where=np.ones(shape, bool))
    assert same_bits(y, again)
    assert snapshot(plain)[2:] == snapshot(own)[2:]


# ---- what is refused

ROWS = np.ones((8, 1, 1), bool)
REFUSED = {
    "numbers for where": ({"where": np.ones((8, 1, 1))}, TypeError, "where has dtype float64", "where != 0"),
    "a list": ({"where": [True] * 8}, TypeError, "where is a builtins.list", "np.asarray(where)"),
    "where of another shape": ({"where": np.ones((7, 1, 1), bool)}, ValueError, "where has shape (7, 1, 1)", "(8, 3"),
    "too many axes": ({"where": np.ones((1, 8, 3, 6), bool)}, ValueError, "where has shape (1, 8, 3, 6)"),
    "lengths": ({"where": np.arange(8)}, TypeError, "where != 0", "lengths", "np.arange(L) < where[:, None, None]"),
    "bool weights": ({"weights": ROWS}, TypeError, "weights has dtype bool", "where="),
    "complex weights": ({"weights": np.ones((8, 1, 1), complex)}, TypeError, "weights has dtype complex128"),
    "long weights": ({"weights": np.ones((8, 1, 1), np.longdouble)}, TypeError, "weights has dtype", "64 bits"),
    "negative": ({"weights": np.where(ROWS, -1.0, 0)}, ValueError, "weights has values such as -1", "not negative"),
    "infinite": ({"weights": np.full((8, 1, 1), np.inf)}, ValueError, "weights has values such as inf"),
    "NaN weights": ({"weights": np.full((8, 1, 1), np.nan)}, ValueError, "weights has values such as nan"),
    "weights of another shape": ({"weights": np.ones((8, 2, 1))}, ValueError, "weights has shape (8, 2, 1)"),
    "of samples": ({"weights": np.ones(8)}, ValueError, "weights has shape (8,)", ": weights[:, None, None] does"),
    "of both ends": ({"where": np.ones((8, 6), bool)}, ValueError, "where has shape (8, 6)", "where[:, None] does"),
    "of the front": ({"where": np.ones((8, 3), bool)}, ValueError, "where has shape (8, 3)", "where[..., None] does"),
    "an infinite sum": ({"weights": np.full((8, 1, 1), 1e307)}, ValueError, "weights has values such as 1e+307", "sum"),
    "an array for a word": ({"nan": np.zeros(3)}, ValueError, "nan is array([0., 0., 0.])", "'omit'"),
    "another word": ({"nan": "ignore"}, ValueError, "nan is 'ignore'", "'omit'"),
    "an array of words": ({"nan": np.array(["omit"] * 2)}, ValueError, "nan is array", "'omit'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_arguments_that_do_not_fit_change_nothing(given, case):
    counting, error, *texts = case
    arrays = [a for a in counting.values() if isinstance(a, np.ndarray)]
    refuse(given, lambda: training(given.x, given.state, out=given.out, **counting), error, *texts, arrays=arrays)
    refuse(given, lambda: nbnorm.batch_stats(given.x, **counting), error, *texts, arrays=arrays)


def test_no_way_out_is_named_where_there_is_none(given):
    for shape in ((7,), (8, 2), (8, 2, 1), (1, 8, 3, 6)):
        with pytest.raises(ValueError, match=r"that of x, \(8, 3, 6\)$"):
            nbnorm.batch_stats(given.x, weights=np.ones(shape))


@pytest.mark.parametrize("use_running", [False, True])
@pytest.mark.parametrize("name", ["where", "weights"])
def test_messages_are_short_for_channels_of_thirty_axes_too(name, use_running):
    axes = (1,) * 30
    x, counting = np.ones((4, *axes), np.float32), {name: np.zeros((4, *axes), bool if name == "where" else float)}
    for given in (counting, {name: counting[name][:, *[0] * 30]}):
        with pytest.raises(ValueError, match=r"has (fewer|less|shape \(4,\))") as caught:
            training(x, nbnorm.BatchNormState(axes), axis=tuple(range(1, 31)), use_running=use_running, **given)
        assert len(str(caught.value)) < 200


def over(array, dtype, shape):
    """An array in the memory of another one."""
    return array.view(np.uint8).reshape(-1)[: np.dtype(dtype).itemsize * int(np.prod(shape))].view(dtype).reshape(shape)


@pytest.mark.parametrize("ghost", [None, 4])
@pytest.mark.parametrize(
    "counting", ["where", pytest.param("weights", marks=pytest.mark.exhaustive("kernels of their own; a mask"))]
)
def test_results_do_not_go_where_masks_are(given, counting, ghost):
    """The backward pass would read y, or dx, as the mask."""
    dtype, shape = {"where": (bool, (8, 1, 6)), "weights": (np.float32, (8, 3, 6))}[counting]
    out, state = given.out, given.state
    array = over(out, dtype, shape)
    array[...] = 1
    step = {"ghost": ghost, counting: array}
    itself = "is" if counting == "weights" else "overlaps"
    refuse(given, lambda: training(given.x, state, out=out, **step), ValueError, f"out {itself} {counting}")
    refuse(given, lambda: training(given.x, state, out=out[::-1], **step), ValueError, f"out overlaps {counting}")
    _, saved = training(given.x, state, residual=np.ones_like(given.x), **step)
    backward = nbnorm.batch_norm_backward
    refuse(given, lambda: backward(given.dy, saved, out=out), ValueError, "out ", counting)
    refuse(given, lambda: backward(given.dy, saved, dresidual_out=out), ValueError, "dresidual_out ", counting)


def one_channel_short(values):
    where = np.ones((8, 3, 6), bool)
    where[:, 1] = False
    where[:1, 1, :values] = True
    return where


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("use_running", [False, True])
@pytest.mark.parametrize("values", [0, 1, 2])
def test_a_channel_needs_values_that_count(given, momentum, use_running, values):
    """More than one where a moving average takes their variance, one where they are pooled or normalize."""
    where, options = one_channel_short(values), {"use_running": use_running, "out": given.out}
    state = given.state
    state.momentum, state.num_samples = momentum, 0
    running, of_beta = (state.running_mean.copy(), state.running_var.copy()), state.beta[1]
    if values > (1 if momentum is not None else 0):
        y, _ = training(given.x, state, where=where, **options)
        count, mean, m2 = reference.weighted_stats(given.x, reference.counts(given.x, where))
        if momentum is None:  # nothing was seen before: of one value there is no variance to be kept
            new = mean, np.where(count > 1, m2 / np.maximum(count - 1, 1), running[1])
        else:
            new = reference.moving_average(*running, mean, m2, count, momentum)
        assert_stat_close(state.running_mean, new[0])
        assert_stat_close(state.running_var, new[1])
        if values == 1 and not use_running:
            assert y[0, 1, 0] == of_beta
            biased = nbnorm.BatchNormState(3, momentum=None, unbiased=False)
            training(given.x, biased, where=where)
            assert_stat_close(biased.running_var, m2 / count)
        return
    purpose = "updating the running statistics" if use_running else "training"
    refuse(
        given,
        lambda: training(given.x, given.state, where=where, **options),
        ValueError,
        f"{purpose} needs {'a value that counts' if momentum is None else 'two values that count'} per channel",
        "channel 1 has fewer: leave",
    )
    training(given.x, given.state, where=where, use_running=True, update_running=False)


@pytest.mark.parametrize(("momentum", "ghost"), [(0.1, None), (None, None), (0.1, 4)])
def test_a_channel_whose_own_weights_are_0_is_refused(given, momentum, ghost):
    given.state.momentum = momentum
    step = {"weights": np.array([1.0, 0, 1])[:, None], "out": given.out, "ghost": ghost}
    refuse(given, lambda: training(given.x, given.state, **step), ValueError, "channel 1 has less")


@pytest.mark.parametrize("ghost", [None, 4])
def test_a_value_that_counts_is_enough_where_nothing_is_folded_in(given, ghost):
    """Of two ranks together, and of each ghost batch: its y is beta."""
    x, before = given.x, snapshot(given.state)
    where = np.ones(x.shape, bool)
    where[:, 1] = False
    where[0 if ghost is None else [0, 4], 1, 0] = True
    exact = np.concatenate(
        [
            reference.weighted_training(x[part], where[part].astype(float), given.state.gamma, given.state.beta).y
            for part in ([slice(8)] if ghost is None else [slice(4), slice(4, 8)])
        ]
    )

    def work(rank, sync):
        part = slice(4 * rank, 4 * rank + 4)
        return training(x[part], given.state, update_running=False, where=where[part], sync=sync)[0]

    if ghost is None:
        y = np.concatenate(work_of(run(2, work)))
    else:
        y, _ = training(x, given.state, update_running=False, where=where, ghost=ghost)
    assert_close(y, exact)
    assert (y[:, 1][where[:, 1]] == given.state.beta[1]).all()
    assert snapshot(given.state) == before


@pytest.mark.exhaustive("kernels for weights alone")
def test_pooling_needs_weights_of_more_than_one_value_with_what_was_before(given):
    """The variance of a fraction of a value would be lost."""
    given.state, weights = nbnorm.BatchNormState(3, momentum=None), np.full((8, 1, 1), 1 / 64)  # 0.75 a channel
    step = {"weights": weights, "out": given.out}
    texts = "needs weights (frequencies) of more than 1 in all", "use larger ones"
    refuse(given, lambda: training(given.x, given.state, **step), ValueError, *texts)
    training(given.x[:1, :, :1], given.state, use_running=True)
    assert given.state.num_samples == 1
    training(given.x, given.state, **step)
    first, x = reference.wide(given.x[:1, :, :1]), reference.wide(given.x)
    mean = (first.sum((0, 2)) + 0.75 * x.mean((0, 2))) / 1.75
    m2 = ((first - mean[:, None]) ** 2).sum((0, 2)) + 0.75 * ((x - mean[:, None]) ** 2).mean((0, 2))
    assert_stat_close(given.state.running_mean, mean)
    assert_stat_close(given.state.running_var, m2 / 0.75)


def test_statistics_of_no_value_are_zero(given):
    found = nbnorm.batch_stats(given.x, where=one_channel_short(0))
    assert [part[1] for part in found] == [0, 0, 0]
    assert found.count.tolist() == [48, 0, 48]


def test_a_moving_average_refuses_statistics_of_one_value(given):
    stats = nbnorm.batch_stats(given.x, where=one_channel_short(1))
    refuse(
        given, lambda: given.state.update(stats), ValueError, "count 1 times in all", "larger weights", "momentum=None"
    )
    given.state.reset_running()
    given.state.momentum = None
    given.state.update(stats)
    assert given.state.num_samples.tolist() == [48, 1, 48]


@pytest.mark.exhaustive("kernels for weights alone; test_too_few_values_are_refused_by_every_rank has them with a mask")
def test_pooling_refuses_weights_whose_variance_would_be_lost(given, rng):
    """Weights that sum to one in a batch: nothing could be kept of its variance."""
    state = given.state = nbnorm.BatchNormState(3, momentum=None)
    pieces = [sample(rng, (8, 3, 6)) for _ in range(3)]
    weights = np.full((8, 1, 6), 1 / 48)
    few = [nbnorm.batch_stats(x, weights=weights / 2) for x in pieces]
    refuse(
        given, lambda: training(pieces[0], state, weights=weights / 2), ValueError, "channel 0 has less", "larger ones"
    )
    refuse(given, lambda: state.update(few[0]), ValueError, "stats has a channel", "0.5", "merge_stats")
    nbnorm.BatchNormState(3, momentum=None, unbiased=False).update(few[0])
    merged = nbnorm.merge_stats(*few)
    state.update(merged)
    training(pieces[0], state, weights=weights / 2)  # with those before it is enough
    state.update(few[1])
    x, w = np.concatenate([*pieces, *pieces[:2]]), np.full((40, 1, 6), 1 / 96)
    count, mean, m2 = reference.weighted_stats(x, reference.counts(x, None, w))
    assert_stat_close(state.num_samples, count)
    assert_stat_close(state.running_mean, mean)
    assert_stat_close(state.running_var, m2 / (count - 1))


# ---- states, layer, copies


def test_pooling_with_masks_is_that_of_everything_at_once(rng, tmp_path):
    """Also through files, copies and dictionaries, whose counts are those of each channel."""
    x, where = sample(rng, (40, 3, 6)), rng.random((40, 3, 6)) < 0.4
    state = nbnorm.BatchNormState(3, momentum=None)
    for start in range(0, 40, 8):
        part = slice(start, start + 8)
        batch_norm = nbnorm.batch_norm_training if start % 16 else None
        if batch_norm:
            batch_norm(x[part], state, where=where[part])
        else:
            state.update(nbnorm.batch_stats(x[part], where=where[part]))
        path = tmp_path / "state.npz"
        state.save(path)
        state = copy.deepcopy(nbnorm.BatchNormState.load(path))
        dictionary = state.state_dict()
        state = nbnorm.BatchNormState.from_state_dict(dictionary, momentum=None)
    count, mean, m2 = reference.weighted_stats(x, reference.counts(x, where))
    assert np.array_equal(state.num_samples, count.astype(float))
    assert_stat_close(state.running_mean, mean)
    assert_stat_close(state.running_var, m2 / (count - 1))
    plain = nbnorm.batch_stats(x[:8])
    state.update(plain)
    assert np.array_equal(state.num_samples, count.astype(float) + 48)


def test_counts_of_each_channel_are_copied_and_forgotten(rng):
    x, where = sample(rng, (8, 3, 6)), rng.random((8, 3, 6)) < 0.6
    state = nbnorm.BatchNormState(3, momentum=None)
    state.update(nbnorm.batch_stats(x, where=where))
    before, twin = snapshot(state), copy.copy(state)
    twin.update(nbnorm.batch_stats(x, where=where))
    for each in (state.num_samples, state.state_dict()["num_samples_tracked"]):
        assert each.tolist() == where.sum((0, 2)).tolist()
        each[...] = 7
    assert snapshot(state) == before
    state.reset_running()
    state.update(plain := nbnorm.batch_stats(x))
    assert np.asarray(state.num_samples).tolist() == 48
    assert same_bits(state.running_mean, plain.mean)


def test_merged_pieces_equal_the_whole(rng):
    x, where = sample(rng, (40, 3, 6)), rng.random((40, 3, 6)) < 0.4
    pieces = [nbnorm.batch_stats(x[part], where=where[part]) for part in (slice(9), slice(9, 9), slice(9, 30))]
    merged = nbnorm.merge_stats(*pieces, nbnorm.batch_stats(x[30:]))
    where[30:] = True
    count, mean, m2 = reference.weighted_stats(x, reference.counts(x, where))
    assert np.array_equal(merged.count, count.astype(float))
    assert_stat_close(merged.mean, mean)
    assert_stat_close(merged.m2, m2)


@pytest.mark.parametrize("mode", ["training", "frozen", "evaluation"])
def test_the_layer_takes_them_in_every_mode(mode, rng):
    x, dy, where = sample(rng, (6, 3, 7)), sample(rng, (6, 3, 7)), rng.random((6, 1, 7)) < 0.6
    x = np.where(where, x, np.float32(np.nan))
    layer = nbnorm.BatchNorm(3)
    layer.frozen = mode == "frozen"
    layer.train(mode != "evaluation")
    running = (layer.state.running_mean.copy(), layer.state.running_var.copy())
    layer(x, where=where)
    dx = layer.backward(dy)
    w = reference.counts(x, where)
    gone = reference.absent(x, w)
    if mode == "training":
        exact = reference.weighted_backward(dy, x, w)
    else:
        exact = reference.frozen_backward(np.where(gone, 0, dy), np.where(gone, 0, x), *running)
    assert_close(dx, exact.dx)
    assert_stat_close(layer.dbeta, exact.dbeta)
    assert_stat_close(layer.dgamma, exact.dgamma)


def test_copies_of_saved_give_the_same_gradients(rng):
    x, dy = sample(rng, (6, 3, 70)), sample(rng, (6, 3, 70))
    counting = {"where": rng.random((6, 1, 70)) < 0.6, "weights": rng.uniform(1, 2, (6, 1, 1)), "nan": "omit"}
    _, saved = nbnorm.batch_norm_training(x, nbnorm.BatchNormState(3), **counting)
    exact = nbnorm.batch_norm_backward(dy, saved)
    for other in (copy.deepcopy(saved), pickle.loads(pickle.dumps(saved))):
        assert all(same_bits(a, b) for a, b in zip(nbnorm.batch_norm_backward(dy, other), exact, strict=True))
    w = reference.counts(x, counting["where"], counting["weights"])
    assert_stat_close(saved.count, reference.weighted_stats(x, w)[0])
    assert_stat_close(saved.var, reference.weighted_training(x, w).var)


@pytest.mark.parametrize(
    ("shape", "of_where"),
    [((9, 6, 80, 80), (9, 1, 80, 80)), ((20_001, 17), (20_001, 17)), ((65, 2_500), (65, 2_500))],
    ids=str,
)
def test_any_number_of_threads_gives_the_same_bits(shape, of_where, rng):
    x, dy = sample(rng, shape), sample(rng, shape)
    where, results = rng.random(of_where) < 0.6, []
    state = random_state(rng, shape[1], dtype="float64")  # dgamma and dbeta show more bits of sums than y and dx do
    for number in (1, 2):
        nbnorm.set_num_threads(number)
        try:
            y, saved = nbnorm.batch_norm_training(x, state, where=where, update_running=False)
            results.append((y, saved.mean, saved.inv_std, *nbnorm.batch_norm_backward(dy, saved)))
        finally:
            nbnorm.set_num_threads(None)
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


def test_nothing_of_the_size_of_x_is_made(rng):
    """Beside y: a mask of rows, of padding or of x's own shape is read where it is."""
    x = sample(rng, (32, 16, 64, 64))
    y, state = np.empty_like(x), nbnorm.BatchNormState(16)
    nbnorm.set_num_threads(1)  # fewer arrays
    try:
        for shape in ((32, 1, 1, 1), (32, 1, 64, 64), x.shape):
            where = rng.random(shape) < 0.7
            training(x, state, where=where, out=y)
            tracemalloc.start()
            training(x, state, where=where, out=y)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < x.nbytes / 50
    finally:
        nbnorm.set_num_threads(None)
