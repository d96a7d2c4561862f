"""BatchNormState.update: statistics of pieces folded into the running ones."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from common import random_state, sample, snapshot

import nbnorm


@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
def test_an_update_is_that_of_a_training_step(momentum, rng):
    """The mean comes as one number here and as two there: a rounding of it apart."""
    x = sample(rng, (50, 3, 8))
    state = random_state(rng, 3, momentum=momentum)
    trained = nbnorm.BatchNormState.from_state_dict(state.state_dict(), momentum=momentum)
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
    state._running.counters[...] = 3, 7
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


GOOD = nbnorm.batch_stats(np.array([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]]))


@pytest.mark.parametrize(("stats", "error", "text"), [
    (tuple(GOOD), TypeError, "stats is a tuple; expected what nbnorm.batch_stats"),
    (GOOD._replace(mean=[1.0, 2.0, 3.0]), TypeError, "stats.mean is a builtins.list"),
    (GOOD._replace(mean=GOOD.mean[:2]), ValueError, "stats.mean has shape (2,); expected (3,)"),
    (GOOD._replace(m2=GOOD.m2[:, None]), ValueError, "stats.m2 has shape (3, 1); expected (3,)"),
    (GOOD._replace(m2=GOOD.m2 + 1j), TypeError, "stats.m2 has dtype complex128; expected float64"),
    (GOOD._replace(m2=GOOD.m2.tolist()), TypeError, "stats.m2 is a builtins.list"),
    (GOOD._replace(m2=-GOOD.m2), ValueError, "stats.m2 has negative values"),
    (GOOD._replace(count=np.array(2.5)), ValueError, "stats.count is 2.5"),
    (GOOD._replace(count=np.array(np.nan)), ValueError, "stats.count is nan"),
    (GOOD._replace(count=np.array(-1.0)), ValueError, "stats.count is -1"),
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


def test_a_state_without_running_statistics():
    with pytest.raises(ValueError, match="no running statistics"):
        nbnorm.BatchNormState(3, track_running=False).update(GOOD)
