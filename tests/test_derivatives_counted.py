"""Forward mode and the double backward pass where values count by a mask, by weights, or are missing."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import ranks
import reference
from common import random_state, same_bits, sample
from derivatives import assert_derivatives, check_derivatives, exact_derivatives, sizes
from test_counted import FORMS, KINDS, SHAPE, cut, every_form, every_mask, spoiled
from test_training import LAYOUTS, every_layout, features
from tolerance import OTHER_DTYPES, assert_gradient_close, needs_wide

import nbnorm

frozen_or_not = pytest.mark.parametrize("use_running", [False, True], ids=["batch", "running"])
# A step has ten kernels for masks, and others for weights; for segments, and others for columns; for every dtype. By
# default float32 segments with a mask, weights and missing values are compared with the oracle.
other_kernels = pytest.mark.exhaustive("float32 segments with a mask, weights and missing values")
SHAPES = [(4, 3, 1), (3, 2, 4), (3, 2, 70), (40, 3, 9)]  # (N, C, S)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
of_all_kinds = pytest.mark.parametrize(
    "more",
    [{"weights": np.ones((1, 1, 1)), "nan": "omit"}, pytest.param({}, marks=other_kernels)],
    ids=["all", "a mask"],
)


def some_weights(rng, shape, fractions=True):
    """Of every channel two values or more count, the first as often as nothing else."""
    w = rng.integers(0, 3, shape) * (rng.uniform(0.5, 2, shape) if fractions else 1.0)
    w[0], w[-1] = 2, 1
    return w


def case(rng, shape, dtype="float64", axis=1, **options):
    """x, dy, state and (ddx, ddgamma, ddbeta)."""
    x, dy, ddx = (sample(rng, shape, dtype, axis) for _ in range(3))
    state = random_state(rng, features(x, axis), **{"dtype": "float64", **options})
    of_parameters = (rng.normal(size=state.gamma.shape).astype(state.dtype) for _ in range(2))
    return x, dy, state, (ddx, *of_parameters)


def forward(x, state, use_running, axis=1, **counting):
    """`saved`, and the statistics if they are constants."""
    running = (state.running_mean.copy(), state.running_var.copy()) if use_running else None
    _, saved = nbnorm.batch_norm_training(
        x, state, axis=axis, use_running=use_running, update_running=False, **counting
    )  # fmt: skip
    return saved, running


# ---- float64


@every_shape
def test_the_oracle_equals_the_complex_step(shape, rng):
    x, dy, state, cotangents = case(rng, shape)
    w = some_weights(rng, shape)
    exact, tangent = exact_derivatives(*cotangents, dy, x, state, 1, w=w)
    step = reference.complex_double_step(*cotangents, dy, x, state.gamma, state.eps, w=w)
    terms = sizes(*cotangents, dy, x, state.gamma, state.eps, 1, w=w)
    assert_gradient_close(exact.ddy, step.ddy, terms[0][:, None])
    assert_gradient_close(exact.dx, step.dx, terms[1][:, None])
    assert_gradient_close(exact.dgamma, step.dgamma, terms[2])
    assert_gradient_close(tangent, exact.ddy, terms[0][:, None])


@other_kernels
@every_shape
def test_both_equal_the_complex_step(shape, rng):
    x, dy, state, cotangents = case(rng, shape)
    w = some_weights(rng, shape)
    saved, _ = forward(x, state, False, weights=w)
    terms = sizes(*cotangents, dy, x, state.gamma, state.eps, 1, w=w)
    expected = reference.complex_double_step(*cotangents, dy, x, state.gamma, state.eps, w=w)
    found = nbnorm.batch_norm_double_backward(*cotangents, dy, saved)
    assert_gradient_close(found.ddy, expected.ddy, terms[0][:, None])
    assert_gradient_close(found.dx, expected.dx, terms[1][:, None])
    assert_gradient_close(found.dgamma, expected.dgamma, terms[2])

    h = 1e-100
    moved = [one + 1j * h * along for one, along in zip((x, state.gamma, state.beta), cotangents, strict=True)]
    expected = reference.formula(*moved, state.eps, w=w).imag / h
    assert_gradient_close(nbnorm.batch_norm_jvp(*cotangents, saved), expected, terms[0][:, None])


@other_kernels
@every_shape
@frozen_or_not
def test_the_backward_pass_is_the_adjoint_of_forward_mode(shape, use_running, rng):
    x, g, state, tangents = case(rng, shape)
    w = some_weights(rng, shape)
    x[(w == 0) & (rng.random(shape) < 0.3)] = np.nan
    saved, _ = forward(x, state, use_running, weights=w)
    dy = nbnorm.batch_norm_jvp(*tangents, saved)
    assert same_bits(dy, nbnorm.batch_norm_double_backward(*tangents, g, saved).ddy)
    pairs = [(dy, g), *zip(tangents, nbnorm.batch_norm_backward(g, saved), strict=True)]
    left, *right = ((one * other).sum() for one, other in pairs)
    assert abs(left - sum(right)) <= 1e-12 * sum(np.abs(one * other).sum() for one, other in pairs)


@needs_wide
@other_kernels
@every_shape
@frozen_or_not
def test_gamma_may_be_zero(shape, use_running, rng):
    x, dy, state, cotangents = case(rng, shape)
    w = some_weights(rng, shape)
    state.gamma[...] = 0
    saved, running = forward(x, state, use_running, weights=w)
    found = check_derivatives(*cotangents, dy, saved, state, running, w)
    assert np.abs(found.dgamma).min() > 0


@needs_wide
@other_kernels
@pytest.mark.parametrize("present", [(True, False, False), (False, True, True), (False, False, False)], ids=str)
@frozen_or_not
def test_what_is_not_there_is_zero(present, use_running, rng):
    x, dy, state, cotangents = case(rng, (40, 3, 9))
    w = some_weights(rng, x.shape)
    x[w == 0] = np.inf
    saved, running = forward(x, state, use_running, weights=w)
    cotangents = [array if given else None for array, given in zip(cotangents, present, strict=True)]
    check_derivatives(*cotangents, dy, saved, state, running, w)


# ---- what must be so


@other_kernels
@pytest.mark.parametrize("shape", [(6, 3, 70), (6, 3)], ids=str)
def test_integer_weights_are_repeated_rows(shape, rng):
    """Of cotangents that are the same in every repetition: the gradient of a weighted row is the sum of theirs."""
    x, _, state, (ddx, *of_parameters) = case(rng, shape)
    dy, times = rng.normal(size=shape), np.array([1, 3, 1, 2, 1, 2])
    weights = times.reshape(-1, *(1,) * (len(shape) - 1)).astype(float)
    saved, _ = forward(x, state, False, weights=weights)
    # y of the weighted row stands once in a loss, that of a repeated one in each row: dy is shared out among them.
    found = nbnorm.batch_norm_double_backward(ddx, *of_parameters, dy, saved)
    saved_rows, _ = forward(np.repeat(x, times, 0), state, False)
    shares, many = np.repeat(dy / weights, times, 0), np.repeat(ddx, times, 0)
    expected = nbnorm.batch_norm_double_backward(many, *of_parameters, shares, saved_rows)
    first = np.cumsum(times) - times
    terms = sizes(ddx, *of_parameters, dy, x, state.gamma, state.eps, 1, w=np.broadcast_to(weights, shape))
    places = (slice(None),) + (None,) * (len(shape) - 2)
    assert_gradient_close(found.ddy, expected.ddy[first], terms[0][places])
    assert_gradient_close(found.dx, expected.dx[first] * weights, terms[1][places])
    assert_gradient_close(found.dgamma, expected.dgamma, terms[2])


@pytest.mark.parametrize(
    ("shape", "weights"),
    [
        ((8, 3, 70), True),
        pytest.param((8, 3, 70), False, marks=other_kernels),
        pytest.param((8, 3), False, marks=other_kernels),
    ],
    ids=str,
)
def test_a_mask_of_rows_equals_the_rows(shape, weights, rng):
    """Whose cotangents and gradients are 0 elsewhere, also where x, dy and ddx are not finite."""
    x, dy, state, (ddx, *of_parameters) = case(rng, shape, "float32")
    rows = np.array([1, 0, 1, 1, 0, 1, 1, 1], bool)
    x[~rows], dy[~rows], ddx[~rows] = np.nan, np.inf, np.nan
    where = rows.reshape(-1, *(1,) * (len(shape) - 1))
    more = {"weights": np.ones(where.shape), "nan": "omit"} if weights else {}
    saved, _ = forward(x, state, False, where=where, **more)
    found = nbnorm.batch_norm_double_backward(ddx, *of_parameters, dy, saved)
    tangent = nbnorm.batch_norm_jvp(ddx, *of_parameters, saved)
    for array in (found.ddy, found.dx, tangent):
        assert not array[~rows].any()
    assert_derivatives(
        (found.ddy[rows], found.dx[rows], found.dgamma), tangent[rows], ddx[rows], *of_parameters, dy[rows], x[rows],
        state, 1,
    )  # fmt: skip


@needs_wide
@other_kernels
@pytest.mark.parametrize("scale", [1e-9, 1e9, 1e18])
def test_weights_may_be_of_any_size(scale, rng):
    """Far from their mean 0, dy and ddx need origins that do not grow with the weights."""
    x, dy, state, cotangents = case(rng, (40, 3, 9))
    dy += 100
    cotangents[0][...] -= 30
    w = some_weights(rng, x.shape) * scale
    saved, _ = forward(x, state, False, weights=w)
    check_derivatives(*cotangents, dy, saved, state, w=w)


@of_all_kinds
def test_a_gradient_that_is_not_finite_stays_in_its_channel(more, rng):
    """Also where the value does not count: its dx is multiplied with ddx."""
    x, dy, state, cotangents = case(rng, (6, 3, 70), "float32")
    where = np.ones((6, 1, 70), bool)
    where[2, 0, 5] = False
    saved, _ = forward(x, state, False, where=where, **more)
    good = nbnorm.batch_norm_double_backward(*cotangents, dy, saved)
    for array in (dy, cotangents[0]):
        before, array[2, 1, 5] = array[2, 1, 5], np.nan
        bad = nbnorm.batch_norm_double_backward(*cotangents, dy, saved)
        array[2, 1, 5] = before
        for one, other in ((good.ddy, bad.ddy), (good.dx, bad.dx)):
            assert same_bits(one[:, [0, 2]], other[:, [0, 2]])
        assert np.isnan(bad.dgamma).tolist() == [False, True, False]


# ---- every dtype, layout and form


def check_form(rng, layout, form, dtype, use_running, shape=SHAPE):
    x, axis = LAYOUTS[layout](sample(rng, shape, dtype))
    dy, ddx = (LAYOUTS[layout](sample(rng, shape, dtype))[0] for _ in range(2))
    counting = FORMS[form](rng, x, axis)
    x, w = spoiled(rng, x, counting, axis)
    gone = reference.absent(x, w)
    dy, ddx = (np.where(gone, np.full((), np.nan, x.dtype), array) for array in (dy, ddx))
    state = random_state(rng, features(x, axis), dtype="float64", eps=1e-3)
    of_parameters = rng.normal(size=(2, *state.gamma.shape))
    saved, running = forward(x, state, use_running, axis, **counting)
    check_derivatives(ddx, *of_parameters, dy, saved, state, running, w)


@pytest.mark.parametrize(
    ("layout", "form"),
    [
        ("NCHW", "all"),
        pytest.param("NCHW", "where, padding", marks=other_kernels),
        pytest.param("rows", "where, first axis", marks=other_kernels),
    ],
)
def test_each_form_of_work(layout, form, rng):
    check_form(rng, layout, form, "float32", False)


@pytest.mark.values_at_most("pairs of layouts and forms: test_counted.py")
@pytest.mark.exhaustive("test_each_form_of_work")
@every_layout
@every_form
@frozen_or_not
def test_both_equal_the_oracle(layout, form, use_running, rng):
    check_form(rng, layout, form, "float32", use_running)


@pytest.mark.values_at_most("float32 in every layout; only what loads and stores knows the dtype")
@pytest.mark.exhaustive("test_each_form_of_work, float32")
@pytest.mark.parametrize("memory", OTHER_DTYPES)
@pytest.mark.parametrize("layout", ["NCHW", "rows"])
@pytest.mark.parametrize("form", ["where, all of x", "all"])
@frozen_or_not
def test_other_dtypes(memory, layout, form, use_running, rng):
    check_form(rng, layout, form, memory, use_running)


@pytest.mark.values_at_most("one way of cutting for every form; without a mask: test_both_equal_the_oracle")
@pytest.mark.exhaustive("test_each_form_of_work has small shapes")
@pytest.mark.parametrize(
    "shape", [(700, 3), (300, 96), (65, 2_500), (8, 64, 7, 7), (33, 4, 13, 13), (3, 2, 63), (1, 2, 40_000)], ids=str
)
@every_mask
def test_every_shape(shape, form, rng):
    """Every way in which work is cut."""
    x, dy, ddx = (sample(rng, shape) for _ in range(3))
    counting = FORMS[form](rng, x, 1)
    x, w = spoiled(rng, x, counting, 1)
    state = random_state(rng, shape[1], dtype="float64")
    saved, _ = forward(x, state, False, **counting)
    check_derivatives(ddx, *rng.normal(size=(2, shape[1])), dy, saved, state, w=w)


@pytest.mark.parametrize(
    ("name", "mean"),
    [
        ("float32", 1e3),
        ("float32", 1e6),
        pytest.param("float16", 1e2, marks=pytest.mark.exhaustive("kernels of its own")),
    ],
)
@of_all_kinds
def test_the_contract_holds_for_gradients_far_from_zero(name, mean, more, rng):
    x = sample(rng, (40, 3, 70), name)
    dy, ddx = ((rng.normal(size=x.shape) + mean).astype(x.dtype) for _ in range(2))
    state, where = random_state(rng, 3), rng.random((40, 1, 70)) < 0.7
    saved, _ = forward(x, state, False, where=where, **more)
    w = reference.counts(x, where)
    check_derivatives(ddx, rng.normal(size=3), None, dy, saved, state, w=w)


# ---- shards


def check_shards(rng, form, shape, use_running, dtype="float32", bounds=(0, 2, 2, 8, 9), without=()):
    """Ranks with masks of their own, one of them without a sample, those in `without` without a mask."""
    x, dy, ddx = ((sample(rng, shape, "float64") + mean).astype(dtype) for mean in (100, 3, -5))
    counting = FORMS[form](rng, x, 1)
    parts = [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
    for rank in without:
        counting["where"][parts[rank]] = True
    x, w = spoiled(rng, x, counting, 1)
    state, of_parameters = random_state(rng, shape[1], dtype="float64"), rng.normal(size=(2, shape[1]))

    def work(rank, sync):
        part, own = parts[rank], copy.deepcopy(state)
        own_counting = {} if rank in without else cut(counting, part.start, part.stop)
        _, saved = nbnorm.batch_norm_training(
            x[part], own, sync=sync, use_running=use_running, update_running=False, **own_counting
        )
        cotangents = ddx[part], *of_parameters
        whole = nbnorm.batch_norm_double_backward(*cotangents, dy[part], saved, param_grads="global")
        local = nbnorm.batch_norm_double_backward(*cotangents, dy[part], saved)
        return *whole, local.dgamma, nbnorm.batch_norm_jvp(*cotangents, saved)

    ddy, dx, dgamma, local, tangent = zip(*ranks.work_of(ranks.run(len(parts), work)), strict=True)
    running = (state.running_mean, state.running_var) if use_running else None
    assert all(same_bits(one, dgamma[0]) for one in dgamma)
    for one in (dgamma[-1], sum(local)):
        found = np.concatenate(ddy), np.concatenate(dx), one
        assert_derivatives(
            found, np.concatenate(tangent), ddx, *of_parameters, dy, x, state, 1, running, w, in_single=bool(without)
        )  # fmt: skip


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        ("all", (9, 3, 70)),
        pytest.param("where, all of x", (9, 3, 70), marks=other_kernels),
        pytest.param("where, all of x", (9, 3, 7), marks=other_kernels),
    ],
    ids=str,
)
def test_shards_with_masks_of_their_own(form, shape, rng):
    check_shards(rng, form, shape, False)


@other_kernels
def test_one_shard_may_have_no_mask(rng):
    check_shards(rng, "where, all of x", (9, 3, 70), False, without=(2,))


@pytest.mark.values_at_most("test_derivatives_sync.py has the exchange, test_both_equal_the_oracle the forms")
@pytest.mark.exhaustive("test_shards_with_masks_of_their_own")
@pytest.mark.parametrize("form", KINDS)
@pytest.mark.parametrize("shape", [(9, 3, 70), (9, 3, 7), (9, 5)], ids=str)
@frozen_or_not
@pytest.mark.parametrize("memory", ["float32", pytest.param("float64", marks=needs_wide)])
def test_shards_equal_the_whole(form, shape, use_running, memory, rng):
    check_shards(rng, form, shape, use_running, memory)
