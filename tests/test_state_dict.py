"""state_dict and from_state_dict: PyTorch's names, copies, and what is refused."""

import numpy as np
import pytest
from common import random_state, refuse, same_bits, sample, snapshot

from nbnorm import BatchNormState, batch_norm_training

RUNNING = ("running_mean", "running_var", "num_batches_tracked", "num_samples_tracked")


def trained(rng, features=3, **options):
    state = random_state(rng, features, **options)
    axis = (1, 2) if isinstance(features, tuple) else 1
    for _ in range(2):
        batch_norm_training(sample(rng, (6, *np.atleast_1d(features)), axis=axis), state, axis=axis)
    return state


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ("weight", "bias", *RUNNING)),
        ({"use_gamma": False}, ("bias", *RUNNING)),
        ({"use_beta": False}, ("weight", *RUNNING)),
        ({"track_running": False}, ("weight", "bias")),
    ],
    ids=str,
)
def test_the_names_are_those_of_pytorch(options, names, rng):
    state = trained(rng, **options)
    found = state.state_dict()
    assert set(found) == set(names)
    pairs = {"weight": state.gamma, "bias": state.beta, "running_mean": state.running_mean}
    pairs["running_var"] = state.running_var
    assert all(same_bits(found[name], array) for name, array in pairs.items() if array is not None)
    if "running_mean" in found:
        assert (int(found["num_batches_tracked"]), int(found["num_samples_tracked"])) == (2, 12)


def test_the_arrays_are_copies(rng):
    state = trained(rng)
    before, found = snapshot(state), state.state_dict()
    for array in found.values():
        array[...] = 99
    assert snapshot(state) == before
    found = state.state_dict()
    twin = BatchNormState.from_state_dict(found)
    for array in found.values():
        array[...] = 99
    assert snapshot(twin) == before


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_gamma": False},
        {"use_beta": False},
        {"track_running": False},
        {"dtype": "float64"},
        {"features": (2, 4)},
    ],
    ids=str,
)
@pytest.mark.parametrize("prefix", ["", "layer1.0.bn1."])
def test_a_state_comes_back_from_its_dictionary(options, prefix, rng):
    state = trained(rng, **options)
    stored = {prefix + name: array for name, array in state.state_dict().items()}
    if prefix:
        stored |= {
            "layer1.0.conv1.weight": np.ones((3, 3)),
            "layer1.0.bn2.weight": np.ones(5),
            "bn1.bias": np.ones(7),
        }
    twin = BatchNormState.from_state_dict(stored, prefix, eps=1e-3, momentum=None)
    assert snapshot(twin) == snapshot(state)
    assert (twin.num_features, twin.dtype) == (state.num_features, state.dtype)
    assert (twin.eps, twin.momentum) == (1e-3, None)


def test_what_pytorch_stores_can_be_read(rng):
    """float32 statistics, an integer counter, no count of values."""
    stored = {
        name: rng.uniform(1, 2, 3).astype(np.float32) for name in ("weight", "bias", "running_mean", "running_var")
    }
    stored["num_batches_tracked"] = np.array(7)
    state = BatchNormState.from_state_dict(stored)
    assert (state.num_batches, state.num_samples, state.eps, state.momentum) == (7, 0, 1e-5, 0.1)
    assert same_bits(state.gamma, stored["weight"])
    assert same_bits(state.running_var, stored["running_var"].astype(np.float64))


def test_running_statistics_alone_make_a_state_without_parameters():
    state = BatchNormState.from_state_dict({"running_mean": [1.0, 2.0], "running_var": [3.0, 4.0]})
    assert (state.gamma, state.beta) == (None, None)
    assert (state.running_mean.tolist(), state.running_var.tolist()) == ([1, 2], [3, 4])


GOOD = {"weight": np.ones(3), "bias": np.ones(3), "running_mean": np.ones(3), "running_var": np.ones(3)}
BAD = {
    "unknown name": ({**GOOD, "running_std": np.ones(3)}, "running_std"),
    "many unknown names": ({**GOOD, **{f"unknown_{i}": 0 for i in range(99)}}, "unknown_"),
    "long unknown name": ({**GOOD, "u" * 500: 0}, "uuu"),
    "empty": ({}, "weight"),
    "shapes differ": ({**GOOD, "bias": np.ones(4)}, "shape"),
    "would broadcast": ({**GOOD, "running_mean": np.ones(1), "running_var": np.ones(1)}, "running_"),
}


@pytest.mark.parametrize("prefix", ["", "bn.", "p" * 500])
@pytest.mark.parametrize(("stored", "text"), BAD.values(), ids=BAD)
def test_what_is_no_state_is_refused(given, stored, text, prefix):
    stored = {prefix + name: array for name, array in stored.items()}
    refuse(given, lambda: BatchNormState.from_state_dict(stored, prefix), ValueError, text)


def test_nothing_under_the_prefix_is_refused(given):
    refuse(given, lambda: BatchNormState.from_state_dict(GOOD, "bn."), ValueError, "bn.")
