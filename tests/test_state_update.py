"""BatchNormState.update: statistics of pieces folded into the running ones."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import ranks
import reference
from common import random_state, sample, snapshot

import nbnorm


@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
def test_an_update_is_that_of_a_training_step(momentum, rng):
    """The mean comes as one number here and as two there: a rounding of it apart."""
    x = sample(rng, (50, 3, 8))
    state = random_state(rng, 3, momentum=momentum)
    trained = nbnorm.BatchNormState.from_state_dict(state.state_dict(), momentum=momentum, num_samples=0)
    for part in (x[:20], x[20:]):
        state.update(nbnorm.batch_stats(part))
        nbnorm.batch_norm_training(part, trained)
    assert (state.num_batches, state.num_samples) == (trained.num_batches, trained.num_samples) == (2, 400)
    for name in ("running_mean", "running_var"):
        found, expected = getattr(state, name), getattr(trained, name)
        assert (abs(found - expected) <= 4 * np.spacing(abs(expected))).all()


def test_a_memory_map_in_pieces(rng, tmp_path):
    x = (rng.normal(size=(1000, 4)) + 1e4).astype(np.float32)
    x.tofile(tmp_path / "x.dat")
    file = np.memmap(tmp_path / "x.dat", np.float32, "r", shape=x.shape)
    state = nbnorm.BatchNormState(4, momentum=None)
    for start, stop in ((0, 1), (1, 300), (300, 300), (300, 1000)):
        state.update(nbnorm.batch_stats(file[start:stop]))
    count, mean, m2 = reference.stats(x)
    assert state.num_samples == count
    for found, exact in ((state.running_mean, mean), (state.running_var, m2 / (count - 1))):
        assert (abs(found - exact) <= 1e-12 * abs(exact)).all()


def test_nothing_changes_no_bit_of_the_pooled_statistics(rng):
    state = random_state(rng, 500, momentum=None)
    state.num_batches, state.num_samples = 3, 7
    before = state.running_mean.copy(), state.running_var.copy()
    state.update(nbnorm.batch_stats(np.empty((0, 500))))
    assert (state.running_mean == before[0]).all()
    assert (state.running_var == before[1]).all()


def test_a_shape_of_several_axes(rng):
    x = sample(rng, (9, 3, 4), axis=(1, 2))
    state = nbnorm.BatchNormState((3, 4), momentum=None)
    state.update(nbnorm.batch_stats(x, axis=(1, 2)))
    _, mean, m2 = reference.stats(x, (1, 2))
    assert (abs(state.running_mean - mean) <= 1e-12 * abs(mean)).all()
    assert (abs(state.running_var - m2 / 8) <= 1e-12 * m2 / 8).all()


GOOD = nbnorm.BatchStats(np.array(2.0), np.array([2.0, 3.0, 4.0]), np.array([2.0, 2.0, 2.0]))


@pytest.mark.parametrize(("stats", "error", "text"), [
    (tuple(GOOD), TypeError, "stats is a tuple; expected what nbnorm.batch_stats"),
    (GOOD._replace(mean=[1.0, 2.0, 3.0]), TypeError, "stats.mean is a builtins.list"),
    (GOOD._replace(mean=GOOD.mean[:2]), ValueError, "stats.mean has shape (2,); expected (3,)"),
    (GOOD._replace(m2=GOOD.m2[:, None]), ValueError, "stats.m2 has shape (3, 1); expected (3,)"),
    (GOOD._replace(m2=GOOD.m2 + 1j), TypeError, "stats.m2 has dtype complex128; expected float64"),
    (GOOD._replace(m2=GOOD.m2.tolist()), TypeError, "stats.m2 is a builtins.list"),
    (GOOD._replace(m2=-GOOD.m2), ValueError, "stats.m2 has negative values"),
    (GOOD._replace(count=[2.0, 2.0]), TypeError, "stats.count is a list; expected a number, or an array"),
    (GOOD._replace(count=np.ma.array([2.0, 2, 2], mask=[0, 1, 0])), TypeError, "stats.count is a masked array"),
    (GOOD._replace(count=np.array(2.5)), ValueError, "stats.count is 2.5"),
    (GOOD._replace(count=np.array(np.nan)), ValueError, "stats.count is nan"),
    (GOOD._replace(count=np.array(-1.0)), ValueError, "stats.count is -1"),
    (GOOD._replace(count=np.array(2.0**53 + 2)), ValueError, "stats.count is 9.0072e+15"),
    (GOOD._replace(count=np.array([2.0, 2.0])), ValueError, "stats.count is float64 of shape (2,)"),
    (GOOD._replace(count=np.array([2j, 2, 2])), ValueError, "stats.count is complex128 of shape (3,)"),
    (GOOD._replace(count=np.array([2.0, np.inf, 2.0])), ValueError, "stats.count has negative, infinite or NaN values"),
    (GOOD._replace(count=np.array([2.0, np.nan, 2.0])), ValueError, "stats.count has negative, infinite or NaN values"),
    (GOOD._replace(count=np.array([2.0, -2.0, 2.0])), ValueError, "stats.count has negative, infinite or NaN values"),
    (GOOD._replace(count=np.array([2.0, 1.0, 2.0])), ValueError, "stats has a channel whose values count 1 times"),
    (GOOD._replace(count=np.array(1.0)), ValueError, "a moving average needs at least 2"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_and_changes_nothing(stats, error, text):
    state = nbnorm.BatchNormState(3)
    before = snapshot(state)
    with pytest.raises(error) as caught:
        state.update(stats)
    assert text in str(caught.value)
    assert len(str(caught.value)) < 200
    assert snapshot(state) == before


@pytest.mark.parametrize("before", [1e6, 1e17, np.inf, np.nan])
def test_with_momentum_1_nothing_of_what_was_remains(before, rng):
    x = rng.normal(3, 2, (20, 3))
    count, mean, m2 = nbnorm.batch_stats(x)
    for step in "training", "update":
        state = nbnorm.BatchNormState(3, momentum=1.0)
        state.running_mean, state.running_var = [before] * 3, [before] * 3
        nbnorm.batch_norm_training(x, state) if step == "training" else state.update(nbnorm.batch_stats(x))
        np.testing.assert_array_equal(state.running_mean, mean)
        np.testing.assert_array_equal(state.running_var, m2 / (count - 1))


def test_a_state_without_running_statistics():
    with pytest.raises(ValueError, match="no running statistics"):
        nbnorm.BatchNormState(3, track_running=False).update(GOOD)


@pytest.mark.parametrize("value", [1e160, -1e160, 1e-320, 1e300])
def test_an_empty_piece_first_or_last(value):
    """The square of a mean of 1e160 is infinite, and infinite times no values is NaN."""
    x, empty = np.full((4, 1), value), nbnorm.batch_stats(np.empty((0, 1)))
    for pieces in ((empty, nbnorm.batch_stats(x)), (nbnorm.batch_stats(x), empty), (nbnorm.batch_stats(x),)):
        state = nbnorm.BatchNormState(1, momentum=None)
        for piece in pieces:
            state.update(piece)
        assert (state.running_mean.tolist(), state.running_var.tolist(), state.num_samples) == ([value], [0.0], 4)


# ---- statistics assigned by hand


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_assigned_statistics_are_not_forgotten_by_pooling(name):
    state = nbnorm.BatchNormState(3, momentum=None)
    setattr(state, name, [2.0, 3.0, 4.0])
    before = snapshot(state)
    for call in (lambda: state.update(GOOD), lambda: nbnorm.batch_norm_training(np.eye(3), state)):
        with pytest.raises(ValueError, match=r"set state\.num_samples") as caught:
            call()
        assert len(str(caught.value)) < 200
        assert snapshot(state) == before
    state.num_samples = 4
    old = [float(array[0]) for array in (state.running_mean, state.running_var)]
    state.update(GOOD)
    mean = (4 * old[0] + 2 * 2.0) / 6
    m2 = 3 * old[1] + 2.0 + 4 * 2 / 6 * (old[0] - 2.0) ** 2
    assert abs(state.running_mean[0] - mean) <= 4 * np.spacing(mean)
    assert abs(state.running_var[0] - m2 / 5) <= 4 * np.spacing(m2 / 5)
    assert (state.num_batches, state.num_samples) == (1, 6)


def test_what_makes_assigned_statistics_count_or_not():
    def fresh(**options):
        state = nbnorm.BatchNormState(3, momentum=None, **options)
        state.running_mean = [2.0, 3.0, 4.0]
        return state

    for state in (copy.copy(fresh()), copy.deepcopy(fresh()), pickle.loads(pickle.dumps(fresh()))):
        with pytest.raises(ValueError, match="num_samples"):
            state.update(GOOD)
    state = fresh()
    state.reset_running()
    state.update(GOOD)  # nothing assigned is left
    assert state.running_mean.tolist() == GOOD.mean.tolist()
    state.running_mean = [2.0, 3.0, 4.0]  # in the place of a counted one
    state.update(GOOD)
    assert (state.num_samples, state.running_mean.tolist()) == (4, [2, 3, 4])
    state = fresh()
    state.num_samples = 0  # says that they count for nothing
    state.update(GOOD)
    assert state.running_mean.tolist() == GOOD.mean.tolist()
    state = fresh()
    state.momentum = 0.5
    state.update(GOOD)  # a moving average needs no count
    assert state.running_mean.tolist() == [2, 3, 4]
    with pytest.raises(ValueError, match="num_batches"):
        state.num_batches = 2.5
    bare = nbnorm.BatchNormState(3, track_running=False)
    with pytest.raises(ValueError, match="track_running"):
        bare.num_samples = 3


# ---- batches that are not finite

BAD = {"NaN": np.nan, "inf": np.inf, "-inf": -np.inf, "overflow": 1e200}


def learned(state):
    """What a batch that is skipped leaves as it was."""
    *everything, _ = snapshot(state)  # but how many there have been
    return everything


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_a_batch_that_is_not_finite_is_skipped(momentum, value, rng):
    """Whichever channel it is in; the batch is normalized as ever."""
    good = sample(rng, (6, 3, 4), "float64")
    for channel in range(3):
        guarded = nbnorm.BatchNormState(3, momentum=momentum, skip_nonfinite=True)
        plain = nbnorm.BatchNormState(3, momentum=momentum)
        bad = good.copy()
        bad[1, channel, 2] = value
        for call in (train, frozen, update):
            call(guarded, bad)
            call(guarded, good)
            call(plain, good)
            assert learned(guarded) == learned(plain)
        assert (guarded.num_batches, guarded.num_samples, guarded.num_skipped) == (3, 72, 3)
        assert plain.num_skipped == 0
        y, expected = (nbnorm.batch_norm_training(bad, state)[0] for state in (guarded, plain))
        assert y.tobytes() == expected.tobytes()
        assert not np.isfinite(plain.running_mean[channel]) or not np.isfinite(plain.running_var[channel])
        assert np.isfinite(guarded.running_mean).all()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_masked_batch_that_is_finite_is_counted_in_each_channel(momentum, rng):
    x, where = sample(rng, (6, 3, 7)), rng.random((6, 3, 7)) < 0.6
    guarded = nbnorm.BatchNormState(3, momentum=momentum, skip_nonfinite=True)
    plain = nbnorm.BatchNormState(3, momentum=momentum)
    for state in (guarded, plain):
        nbnorm.batch_norm_training(x, state, where=where)
    assert snapshot(guarded) == snapshot(plain)
    assert guarded.num_samples.tolist() == where.sum((0, 2)).tolist()


def train(state, x):
    nbnorm.batch_norm_training(x, state)


def frozen(state, x):
    nbnorm.batch_norm_training(x, state, use_running=True)


def update(state, x):
    state.update(nbnorm.batch_stats(x))


def test_skipping_is_kept_set_and_reset(rng):
    state = nbnorm.BatchNormState(2, skip_nonfinite=True)
    train(state, np.full((2, 2), np.nan))
    for twin in (copy.copy(state), pickle.loads(pickle.dumps(state)), state.to("cpu")):
        assert (twin.skip_nonfinite, twin.num_skipped, snapshot(twin)) == (True, 1, snapshot(state))
    assert "num_batches_skipped" not in state.state_dict()
    state.skip_nonfinite = False
    train(state, np.full((2, 2), np.nan))
    assert np.isnan(state.running_mean).all()
    assert (state.num_skipped, state.num_batches) == (1, 1)
    state.reset_running()
    assert (state.num_skipped, state.running_mean.tolist()) == (0, [0, 0])
    with pytest.raises(ValueError, match="track_running"):
        nbnorm.BatchNormState(2, skip_nonfinite=True, track_running=False)
    none = nbnorm.BatchNormState(2, track_running=False)
    none.skip_nonfinite = False  # as it is
    assert none.skip_nonfinite is False


def test_all_ranks_skip_the_same_batch(rng):
    x = sample(rng, (12, 3, 4))
    x[2, 1, 0] = np.inf  # on the first rank only
    state = nbnorm.BatchNormState(3, skip_nonfinite=True)
    before = learned(state)
    steps = ranks.step_in_shards(x, x, state, (4, 4, 4), 1, "global")
    assert {(one.state.num_batches, one.state.num_skipped) for one in steps} == {(0, 1)}
    assert all(learned(one.state) == before for one in steps)


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0), (0, 0, 2, 0, 2)], ids=str)
@pytest.mark.parametrize("value", [1e160, -1e160])
def test_an_empty_shard(sizes, value):
    """Its origin is 0, and so 1e160 away from everyone's."""
    x = np.full((4, 1), value)
    for one in ranks.step_in_shards(x, np.ones((4, 1)), nbnorm.BatchNormState(1, momentum=None), sizes, 1, "global"):
        assert (one.state.running_mean.tolist(), one.state.running_var.tolist()) == ([value], [0.0])
        assert one.y.tolist() == [[0.0]] * len(one.y)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(("mean", "m2"), [(np.nan, 1.0), (np.inf, 1.0), (0.5, np.inf)])
def test_either_moment_that_is_not_finite_is_skipped(momentum, mean, m2):
    state = nbnorm.BatchNormState(2, momentum=momentum, skip_nonfinite=True)
    before = learned(state)
    state.update(nbnorm.BatchStats(np.array(4.0), np.array([0.0, mean]), np.array([1.0, m2])))
    assert (learned(state), state.num_skipped) == (before, 1)


def test_the_channel_whose_variance_would_be_lost_is_the_one_that_is_named():
    state = nbnorm.BatchNormState(3, momentum=None)
    before = snapshot(state)
    with pytest.raises(ValueError, match=r"count 0\.4 times in all"):
        state.update(nbnorm.BatchStats(np.array([7.0, 0.0, 0.4]), np.zeros(3), np.array([1.0, 0.0, 1.0])))
    assert snapshot(state) == before
