"""The state: what it holds, how it is set, updated, copied and stored."""

import copy
import itertools
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import reference
from common import random_state, refuse, same_bits, sample, snapshot
from tolerance import assert_stat_close

import nbnorm
from nbnorm import BatchNormState, batch_norm_inference, batch_norm_training

ARRAYS = ["gamma", "beta", "running_mean", "running_var"]


@pytest.mark.parametrize("parameters", ["float32", "float64"])
@pytest.mark.parametrize(("features", "shape"), [(3, (3,)), ((3, 4), (3, 4)), ((5,), (5,)), (0, (0,)), (1, (1,))])
def test_a_new_state_normalizes_without_changing_the_scale(features, shape, parameters):
    state = BatchNormState(features, dtype=parameters)
    assert (state.num_features, state.dtype, state.device) == (features, np.dtype(parameters), "cpu")
    assert (state.eps, state.momentum, state.num_batches, state.num_samples) == (1e-5, 0.1, 0, 0)
    for name, value, kind in zip(ARRAYS, (1, 0, 0, 1), (parameters, parameters, "float64", "float64"), strict=True):
        assert same_bits(getattr(state, name), np.full(shape, value, kind))


def test_what_the_state_is_made_without_is_none():
    state = BatchNormState(3, use_gamma=False, use_beta=False, track_running=False)
    assert [getattr(state, name) for name in ARRAYS] == [None] * 4


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"num_features": -1}, ValueError, "num_features"),
        ({"num_features": (3, -1)}, ValueError, "num_features"),
        ({"num_features": 2.5}, TypeError, "num_features"),
        ({"num_features": "3"}, TypeError, "num_features"),
        ({"num_features": None}, TypeError, "num_features"),
        ({"num_features": (2, 1.0)}, TypeError, "num_features"),
        ({"num_features": 3, "dtype": "float16"}, ValueError, "dtype is float16"),
        ({"num_features": 3, "dtype": "int32"}, ValueError, "dtype is int32"),
        ({"num_features": 3, "dtype": None}, ValueError, "dtype is None"),
        ({"num_features": 3, "dtype": "foo"}, TypeError, "dtype is 'foo'"),
        ({"num_features": 10**30}, ValueError, "num_features"),
    ],
    ids=str,
)
def test_bad_arguments_of_the_constructor(given, arguments, error, text):
    refuse(given, lambda: BatchNormState(**arguments), error, text, "expected")


@pytest.mark.parametrize("name", ARRAYS)
def test_assignment_copies_into_the_array(name):
    state = BatchNormState(3)
    array, value = getattr(state, name), np.array([1.5, 2.5, 3.5])
    setattr(state, name, value)
    value[:] = 9
    assert getattr(state, name) is array
    assert array.tolist() == [1.5, 2.5, 3.5]
    setattr(state, name, [4, 5, 6])
    assert array.tolist() == [4, 5, 6]
    array *= 2
    assert getattr(state, name).tolist() == [8, 10, 12]


@pytest.mark.parametrize(
    ("name", "value", "way_out"),
    [
        ("device", "cuda", "state.to(device) gives a copy there"), ("dtype", "float64", "make it with dtype="),
        ("num_features", 4, "make it with num_features="), ("shape", (4,), "make it with num_features="),
        ("unbiased", False, "make it with unbiased="), ("num_skipped", 0, "reset_running() makes it 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_set_says_what_can_be_done(given, name, value, way_out):
    before = getattr(given.state, name)
    refuse(
        given, lambda: setattr(given.state, name, value), AttributeError, f"{name} of a state cannot be set", way_out
    )
    assert getattr(given.state, name) == before

    class State(BatchNormState):  # which may have it otherwise
        said = None

        @property
        def device(self):
            return self.said or super().device

        @device.setter
        def device(self, value):
            self.said = value

    state = State(3)
    state.device = "here"
    assert state.device == "here"


def test_the_skipped_batches_can_be_forgotten():
    state = BatchNormState(2, skip_nonfinite=True)
    batch_norm_training(np.full((4, 2), np.nan), state)
    assert state.num_skipped == 1
    state.reset_running()
    assert state.num_skipped == 0


def test_parameters_can_be_updated_in_place():
    state = BatchNormState(2)
    gamma = state.gamma
    state.gamma -= 0.5 * np.array([1, 2], np.float32)
    state.beta += 3
    assert state.gamma is gamma
    assert (gamma.tolist(), state.beta.tolist()) == ([0.5, 0.0], [3.0, 3.0])
    assert state.gamma.dtype == np.float32


@pytest.mark.parametrize("name", ARRAYS)
def test_what_does_not_fit_is_not_assigned(given, name):
    for value in (1.0, np.ones(4), np.ones((1, 3)), np.ones((3, 1)), np.ones(0), None):
        refuse(given, lambda v=value: setattr(given.state, name, v), (ValueError, TypeError), name)
    for value in (np.ones(3, complex), np.array(["a", "b", "c"]), np.array([None] * 3)):
        refuse(given, lambda v=value: setattr(given.state, name, v), TypeError, name, str(value.dtype))
    bare = BatchNormState(3, use_gamma=False, use_beta=False, track_running=False)
    refuse(given, lambda: setattr(bare, name, np.ones(3)), ValueError, name, "=True")
    assert getattr(bare, name) is None


@pytest.mark.parametrize("value", [-1.0, -np.inf, -1e-320])
def test_a_negative_variance_is_refused_wherever_it_comes_from(given, value):
    """One rule: docs/reliability.md. Zero, NaN and infinity may be in memory and in dictionaries."""
    bad = np.array([1.0, value, 1.0])
    for given_as in (bad, bad.tolist(), bad.astype(np.longdouble)):
        refuse(given, lambda v=given_as: setattr(given.state, "running_var", v), ValueError, "running_var has negative")
    stored = {"running_mean": np.zeros(3), "running_var": bad}
    refuse(given, lambda: BatchNormState.from_state_dict(stored), ValueError, "running_var has negative")
    for good in (np.nan, np.inf, 0.0, -0.0):
        given.state.running_var = stored["running_var"] = np.array([1.0, good, 2.0])
        assert same_bits(given.state.running_var, stored["running_var"])
        assert same_bits(BatchNormState.from_state_dict(stored).running_var, stored["running_var"])
    given.state.running_mean = given.state.gamma = given.state.beta = [-1, np.nan, -np.inf]  # anything


@pytest.mark.parametrize("momentum", [0.01, 0.1, 0.5])
def test_running_statistics_are_moving_averages_of_unbiased_statistics(momentum, rng):
    state = BatchNormState(4, momentum=momentum)
    mean, var, samples = np.zeros(4, reference.Wide), np.ones(4, reference.Wide), 0
    for n in (5, 2, 40):
        x = sample(rng, (n, 4, 3))
        batch_norm_training(x, state)
        count, new, m2 = reference.stats(x)
        mean, var = reference.moving_average(mean, var, new, m2, count, momentum)
        samples += count
        assert_stat_close(state.running_mean, mean)
        assert_stat_close(state.running_var, var)
    assert (state.num_batches, state.num_samples) == (3, samples)


@pytest.mark.parametrize("use_running", [False, True])
def test_without_momentum_the_statistics_are_those_of_all_values(use_running, rng):
    state, x = BatchNormState(4, momentum=None), sample(rng, (60, 4, 3)) + np.float32(1e4)
    cuts = [0, 2, 3, 30, 60]
    for batches, (start, stop) in enumerate(itertools.pairwise(cuts), 1):
        batch_norm_training(x[start:stop], state, use_running=use_running)
        count, mean, m2 = reference.stats(x[:stop])
        assert (state.num_batches, state.num_samples) == (batches, count)
        assert_stat_close(state.running_mean, mean)
        assert_stat_close(state.running_var, m2 / (count - 1))


def test_pooling_begins_with_one_value_or_none():
    state = BatchNormState(1, momentum=None)
    seen = []
    for rows in (np.empty((0, 1)), [[5.0]], np.empty((0, 1)), [[7.0]], [[6.0]]):
        batch_norm_training(np.asarray(rows), state, use_running=True)
        seen.append((state.running_mean[0], state.running_var[0], state.num_batches, state.num_samples))
    assert seen == [(0, 1, 1, 0), (5, 1, 2, 1), (5, 1, 3, 1), (6, 2, 4, 2), (6, 1, 5, 3)]


def test_use_running_normalizes_with_the_statistics_before_the_batch(rng):
    x, state = sample(rng, (6, 3, 5)), random_state(rng, 3)
    expected = batch_norm_inference(x, state)
    y, saved = batch_norm_training(x, state, use_running=True)
    assert same_bits(y, expected)
    assert not np.array_equal(saved.mean, state.running_mean)


def test_threads_that_share_a_state_lose_no_batch(rng):
    state, x = BatchNormState(3, momentum=None), sample(rng, (400, 5, 3, 4))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda part: batch_norm_training(part, state), x))
    count, mean, m2 = reference.stats(x.reshape(-1, 3, 4))
    assert (state.num_batches, state.num_samples) == (400, count)
    assert_stat_close(state.running_mean, mean)
    assert_stat_close(state.running_var, m2 / (count - 1))


def test_reset_forgets_the_batches_and_keeps_the_parameters(rng):
    state = random_state(rng, 3)
    batch_norm_training(sample(rng, (6, 3)), state)
    gamma, beta = state.gamma.copy(), state.beta.copy()
    state.reset_running()
    assert (state.running_mean.tolist(), state.running_var.tolist()) == ([0, 0, 0], [1, 1, 1])
    assert (state.num_batches, state.num_samples) == (0, 0)
    assert same_bits(state.gamma, gamma)
    assert same_bits(state.beta, beta)


@pytest.mark.parametrize("options", [{}, {"use_gamma": False}, {"use_beta": False}, {"dtype": "float64"}], ids=str)
def test_the_affine_form_is_inference(options, rng):
    state = random_state(rng, (3, 2), **options)
    scale, shift = state.as_affine()
    assert (scale.dtype, shift.dtype, scale.shape, shift.shape) == (np.float64, np.float64, (3, 2), (3, 2))
    x = np.array([0.0, 1.0])[:, None, None] * np.ones((3, 2))
    at_0, at_1 = reference.inference(
        x, state.running_mean, state.running_var, state.gamma, state.beta, state.eps, (1, 2)
    )
    # Four roundings in scale, two more terms in shift.
    size = np.abs(at_1 - at_0) * (1 + np.abs(state.running_mean)) + np.abs(at_0)
    assert np.all(np.abs(scale - (at_1 - at_0)) <= 4 * 2.0**-53 * np.abs(at_1 - at_0))
    assert np.all(np.abs(shift - at_0) <= 8 * 2.0**-53 * size)


def test_the_affine_form_needs_running_statistics(given):
    refuse(given, BatchNormState(3, track_running=False).as_affine, ValueError, "track_running=False")


COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda s: pickle.loads(pickle.dumps(s))}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("options", [{}, {"use_gamma": False, "track_running": False}, {"momentum": None}], ids=str)
def test_copies_are_equal_and_independent(duplicate, options, rng):
    state, x = random_state(rng, 3, eps=1e-3, **options), sample(rng, (6, 3, 5))
    batch_norm_training(x, state)
    before = snapshot(state)
    twin = duplicate(state)
    assert type(twin) is BatchNormState
    assert snapshot(twin) == before
    assert repr(twin) == repr(state)
    batch_norm_training(x, twin)
    twin.reset_running()
    twin.beta += 1
    twin.eps, twin.momentum = 0.5, 0.8
    assert snapshot(state) == before
    assert (state.eps, state.momentum) == (1e-3, options.get("momentum", 0.1))
    y = batch_norm_training(x, duplicate(state))[0]
    assert same_bits(y, batch_norm_training(x, state)[0])


def test_to_cpu_is_the_state_on_the_cpu(rng):
    state = random_state(rng, 3)
    there = state.to("cpu")
    assert there.device == "cpu"
    assert snapshot(there) == snapshot(state)


def test_repr_shows_what_matters(rng):
    state = random_state(rng, (3, 4), eps=1e-3, momentum=None, dtype="float64")
    batch_norm_training(sample(rng, (6, 3, 4)), state, axis=(1, 2))
    for text in (r"\(3, 4\)", "eps=0.001", "momentum=None", "float64", "cpu", "num_batches=1"):
        assert re.search(text, repr(state))
    assert "momentum=0.1" in repr(nbnorm.BatchNormState(3))


def test_a_pickle_of_the_first_version_is_read(rng):
    """It had the running statistics and counters beside each other."""
    state = random_state(rng, (2, 3))
    batch_norm_training(sample(rng, (6, 2, 3), axis=(1, 2)), state, axis=(1, 2))
    names = ("num_features", "dtype", "device", "eps", "momentum", "gamma", "beta", "running_mean", "running_var")
    old = {"_" + name: getattr(state, name) for name in names}
    old["_counters"] = np.array([state.num_batches, state.num_samples])
    read = BatchNormState.__new__(BatchNormState)
    read.__setstate__({**old})
    assert snapshot(read) == snapshot(state)
    assert read.state_dict().keys() == state.state_dict().keys()
    bare = BatchNormState.__new__(BatchNormState)
    bare.__setstate__({**old, "_running_mean": None, "_running_var": None})
    assert (bare.running_mean, bare.running_var, bare.num_batches) == (None, None, 0)
