"""Which variance the running one is: moving averages and pooling of both kinds, files and copies, other libraries'."""

import copy
import pickle

import numpy as np
import pytest
import reference
from common import random_state, refuse, sample, snapshot
from tolerance import assert_stat_close

import nbnorm
from nbnorm import BatchNormState


def train(state, batches):
    for x in batches:
        nbnorm.batch_norm_training(x, state)


def update(state, batches):
    for x in batches:
        state.update(nbnorm.batch_stats(x))


@pytest.mark.parametrize("step", [train, update])
@pytest.mark.parametrize("unbiased", [True, False])
def test_a_moving_average_takes_this_variance(unbiased, step, rng):
    state = random_state(rng, 3, momentum=0.25, unbiased=unbiased)
    mean, var = reference.wide(state.running_mean), reference.wide(state.running_var)
    batches = [sample(rng, (n, 3)) for n in (2, 5, 9)]
    step(state, batches)
    for x in batches:
        count, new, m2 = reference.stats(x)
        mean, var = 0.75 * mean + 0.25 * new, 0.75 * var + 0.25 * m2 / (count - unbiased)
    assert_stat_close(state.running_mean, mean)
    assert_stat_close(state.running_var, var)


@pytest.mark.parametrize("step", [train, update])
@pytest.mark.parametrize("unbiased", [True, False])
def test_pooling_gives_this_variance_of_everything(unbiased, step, rng):
    state = BatchNormState(3, momentum=None, unbiased=unbiased)
    batches = [sample(rng, (n, 3)) for n in (2, 5, 9)]
    step(state, batches)
    count, mean, m2 = reference.stats(np.concatenate(batches))
    assert_stat_close(state.running_mean, mean)
    assert_stat_close(state.running_var, m2 / (count - unbiased))
    assert state.num_samples == count


def test_pooling_single_values(rng):
    """The unbiased variance of one value is not known, the biased one is 0."""
    x = rng.normal(size=(3, 2))
    pooled = {kind: BatchNormState(2, momentum=None, unbiased=kind) for kind in (True, False)}
    for number, row in enumerate(x, 1):
        for unbiased, state in pooled.items():
            update(state, [row[None]])
            exact = reference.stats(x[:number])[2] / max(1, number - unbiased)
            if unbiased and number == 1:
                exact += 1  # as it has been
            assert_stat_close(state.running_var, exact)
    update(pooled[False], [x[:0]])
    assert_stat_close(pooled[False].running_var, reference.stats(x)[2] / 3)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("momentum", [0.25, None])
def test_it_is_kept(unbiased, momentum, rng, tmp_path):
    """In copies, in pickles, in files and through a reset: what they go on with is the same."""
    state = BatchNormState(3, momentum=momentum, unbiased=unbiased)
    train(state, [sample(rng, (5, 3))])
    state.save(tmp_path / "state.npz")
    state.save(tmp_path / "state.safetensors")
    twins = [copy.copy(state), copy.deepcopy(state), pickle.loads(pickle.dumps(state))]
    twins += [BatchNormState.load(tmp_path / f"state.{suffix}") for suffix in ("npz", "safetensors")]
    numbers = {"momentum": momentum, "unbiased": unbiased}
    twins.append(BatchNormState.from_state_dict(state.state_dict(), num_samples=state.num_samples, **numbers))
    x = sample(rng, (4, 3))
    train(state, [x])
    for twin in twins:
        assert twin.unbiased is unbiased
        train(twin, [x])
        assert snapshot(twin) == snapshot(state)
    state.reset_running()
    assert state.unbiased is unbiased


def test_without_a_running_variance_there_is_none(tmp_path):
    state = BatchNormState(3, track_running=False, unbiased=False)
    state.save(tmp_path / "state.npz")
    assert (state.unbiased, BatchNormState.load(tmp_path / "state.npz").unbiased) == (None, None)
    with pytest.raises(AttributeError):
        BatchNormState(3).unbiased = False  # what running_var is does not change under it


def test_the_layer_has_it():
    assert nbnorm.BatchNorm(3).state.unbiased is True
    assert nbnorm.BatchNorm(3, unbiased=False).state.unbiased is False


LIKE = {
    "pytorch": (1e-5, 0.1, True),
    "keras": (1e-3, 0.01, False),
    "flax": (1e-5, 0.01, False),
    "onnx": (1e-5, 0.1, False),
    "chainer": (2e-5, 0.1, True),
}


@pytest.mark.parametrize("library", LIKE)
def test_like(library):
    state = BatchNormState.like(library, (3, 2))
    assert (state.eps, state.momentum, state.unbiased) == LIKE[library]
    assert (state.num_features, state.num_batches) == ((3, 2), 0)
    changed = BatchNormState.like(library, 3, momentum=None, use_beta=False, dtype="float64", unbiased=True)
    assert (changed.eps, changed.momentum, changed.unbiased) == (LIKE[library][0], None, True)
    assert (changed.beta, changed.dtype) == (None, np.float64)


def test_like_what(given):
    refuse(given, lambda: BatchNormState.like("tensorflow", 3), ValueError, "library is 'tensorflow'", "'keras'")
    refuse(given, lambda: BatchNormState.like("keras", 3, epsilon=1e-3), TypeError, "epsilon")
    refuse(given, lambda: BatchNormState.like("keras", 3, momentum=99), ValueError, "momentum is 99")
