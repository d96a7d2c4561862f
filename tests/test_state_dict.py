"""state_dict and from_state_dict: PyTorch's names, copies, what other libraries hand over, and what is refused."""

import numpy as np
import pytest
from arrays import FOREIGN
from common import random_state, refuse, same_bits, sample, snapshot
from tolerance import dtype_of

from nbnorm import BatchNorm, BatchNormState, batch_norm_training, batch_stats

RUNNING = ("running_mean", "running_var", "num_batches_tracked")


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
        ({"momentum": None}, ("weight", "bias", *RUNNING, "num_samples_tracked")),
        ({"skip_nonfinite": True}, ("weight", "bias", *RUNNING)),
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
        assert int(found["num_batches_tracked"]) == 2
        assert int(found.get("num_samples_tracked", 12)) == 12


def test_the_arrays_are_copies(rng):
    state = trained(rng)
    before, found = snapshot(state), state.state_dict()
    for array in found.values():
        array[...] = 99
    assert snapshot(state) == before
    found = state.state_dict()
    twin = BatchNormState.from_state_dict(found, num_samples=12)
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
        {"momentum": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("prefix", ["", "layer1.0.bn1."])
def test_a_state_comes_back_from_its_dictionary(options, prefix, rng):
    state = trained(rng, **options)
    stored = {f"{prefix}{name}" if prefix else name: array for name, array in state.state_dict().items()}
    if prefix:
        stored |= {
            "layer1.0.conv1.weight": np.ones((3, 3)),
            "layer1.0.bn2.weight": np.ones(5),
            "bn1.bias": np.ones(7),
        }
    said = {"num_features": state.num_features} if len(state.shape) > 1 else {}
    if state.momentum is not None and state.running_mean is not None:
        said["num_samples"] = state.num_samples
    twin = BatchNormState.from_state_dict(stored, prefix, eps=1e-3, momentum=None, **said)
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


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_one_parameter_in_float64_keeps_its_digits(name):
    stored = {"weight": np.full(2, 0.1, np.float32), "bias": np.full(2, 0.1, np.float32)}
    stored[name] = np.full(2, 0.1)
    state = BatchNormState.from_state_dict(stored)
    assert state.dtype == np.float64
    assert same_bits(state.gamma, stored["weight"].astype(np.float64))
    assert same_bits(state.beta, stored["bias"].astype(np.float64))


@pytest.mark.parametrize("kind", [">f8", "longdouble", "int64"])
def test_what_float32_does_not_hold_makes_a_state_of_float64(kind):
    values = np.array([2**24 + 1, 3], kind)
    state = BatchNormState.from_state_dict({"weight": values, "bias": np.ones(2, np.float32)})
    assert state.dtype == np.float64
    assert state.gamma.tolist() == [2**24 + 1, 3]


@pytest.mark.parametrize("kind", ["float16", "bfloat16", ">f4", "int8"])
def test_what_float32_holds_does_not(kind):
    state = BatchNormState.from_state_dict({"weight": np.array([1.5, 3]).astype(dtype_of(kind))})
    assert state.dtype == np.float32
    assert state.gamma.tolist() == np.array([1.5, 3]).astype(dtype_of(kind)).astype(np.float32).tolist()


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
    "two dimensions": ({name: array.reshape(1, 3) for name, array in GOOD.items()}, "num_features="),
    "four dimensions": ({name: array.reshape(1, 3, 1, 1) for name, array in GOOD.items()}, "expected one dimension"),
    "scalars": (dict.fromkeys(GOOD, 1.0), "one dimension"),
    "Keras": (
        {"gamma": np.ones(3), "beta": np.ones(3), "moving_mean": np.ones(3), "moving_variance": np.ones(3)},
        "rename beta to bias, gamma to weight, moving_mean to running_mean, moving_variance to running_var",
    ),
    "Flax": ({"scale": np.ones(3), "bias": np.ones(3), "mean": np.ones(3), "var": np.ones(3)}, "scale to weight"),
    "a dense layer": ({"kernel": np.ones((3, 3)), "bias": np.ones(3)}, "kernel; expected weight, bias, running_mean"),
    "negative variance": ({**GOOD, "running_var": np.array([1.0, -1.0, 1.0])}, "running_var has negative values"),
    "no variance": ({"weight": np.ones(3), "running_mean": np.ones(3)}, "only one of running_mean and running_var"),
    "no mean": ({"weight": np.ones(3), "running_var": np.ones(3)}, "only one of running_mean and running_var"),
    "a file of save": ({**GOOD, "nbnorm.json": np.array("{}")}, "it is a file of BatchNormState.save, which "),
    "no string": ({**GOOD, 3: np.ones(3)}, "unknown names, 3; expected weight"),
    "would broadcast": ({**GOOD, "running_mean": np.ones(1), "running_var": np.ones(1)}, "running_"),
}


@pytest.mark.parametrize("prefix", ["", "bn.", "p" * 500])
@pytest.mark.parametrize(("stored", "text"), BAD.values(), ids=BAD)
def test_what_is_no_state_is_refused(given, stored, text, prefix):
    stored = {f"{prefix}{name}" if prefix else name: array for name, array in stored.items()}
    refuse(given, lambda: BatchNormState.from_state_dict(stored, prefix), ValueError, text)


@pytest.mark.parametrize("value", ["0.1", 1.5, [0.1], np.nan], ids=repr)
def test_a_momentum_that_is_none_is_refused_by_its_name(given, value):
    refuse(
        given,
        lambda: BatchNormState.from_state_dict(GOOD, momentum=value),
        ValueError,
        f"momentum is {value!r}",
        "0 to 1",
    )


def test_nothing_is_warned_of_where_there_is_no_state(given):
    """A warning is an error in this suite."""
    refuse(given, lambda: BatchNormState.from_state_dict(GOOD, "bn.", momentum=0.99), ValueError, "no arrays under")


@pytest.mark.parametrize(
    ("prefix", "text"),
    [
        ("", "state_dict has names of a network; give prefix='layer1.0.bn1.'"),
        ("layer1.", "give prefix='layer1.0.bn1.'"),
        ("layer1.0.bn1", "state_dict has names that begin with a dot; give prefix='layer1.0.bn1.'"),
        ("layer1.0.bn", "give prefix='layer1.0.bn1.'"),
        ("fc.", "unknown names, kernel; expected weight"),
    ],
)
def test_a_prefix_that_is_wanting_is_named(given, prefix, text):
    stored = {f"layer1.0.bn{i}.{name}": array for i in (2, 1) for name, array in GOOD.items()}
    stored |= {"layer1.0.conv.weight": np.ones((3, 3)), "fc.kernel": np.ones(3)}
    refuse(given, lambda: BatchNormState.from_state_dict(stored, prefix), ValueError, text)


def test_a_prefix_is_a_str(given):
    refuse(
        given, lambda: BatchNormState.from_state_dict(GOOD, 3), TypeError, "prefix is a int; expected what the names"
    )


def test_no_batch_takes_a_counter_beyond_its_type():
    state = BatchNormState(2)
    state.num_batches = state.num_samples = 2**62
    batch_norm_training(np.eye(2, dtype=np.float32), state)
    assert (state.num_batches, state.num_samples) == (2**62 + 1, 2**62 + 2)


@pytest.mark.parametrize("stored", [list(GOOD), "weight", None, BatchNorm(3)], ids=lambda v: type(v).__name__)
def test_what_is_no_dictionary_is_refused(given, stored):
    refuse(given, lambda: BatchNormState.from_state_dict(stored), TypeError, "state_dict is a", "state_dict()")


@pytest.mark.parametrize("kind", ["complex64", "<U1", "S1", "m8[s]"])
def test_what_are_no_real_numbers_is_refused_by_its_name(given, kind):
    stored = {**GOOD, "bias": np.ones(3).astype(kind)}
    refuse(given, lambda: BatchNormState.from_state_dict(stored), TypeError, "bias has dtype", "expected real numbers")


def test_nothing_under_the_prefix_is_refused(given):
    refuse(given, lambda: BatchNormState.from_state_dict(GOOD, "bn."), ValueError, "bn.")


def test_several_dimensions_are_read_when_they_are_said():
    stored = {name: np.arange(6.0).reshape(2, 3) + i for i, name in enumerate(GOOD)}
    state = BatchNormState.from_state_dict(stored, num_features=(2, 3))
    assert (state.num_features, state.running_mean.tolist()) == ((2, 3), stored["running_mean"].tolist())
    assert BatchNormState.from_state_dict(GOOD, num_features=(3,)).num_features == (3,)
    with pytest.raises(ValueError, match=r"weight has shape \(2, 3\).*expected \(6,\)"):
        BatchNormState.from_state_dict(stored, num_features=6)


COUNTERS = {
    "int": 50, "0-d": np.array(50), "1-d": np.array([50]), "4-d": np.full((1, 1, 1, 1), 50), "uint8": np.uint8(50),
    "int32": np.array([50], np.int32), "uint64": np.array(50, np.uint64), "float": 50.0, "list": [50],
    "float16": np.array([50], np.float16), "float64": np.array([[50.0]]), "big-endian": np.array(50, ">i4"),
}  # fmt: skip
NO_COUNTERS = {
    "inf": np.inf, "-inf": -np.inf, "NaN": np.nan, "2.5": 2.5, "negative": -1, "negative array": np.array([-3]),
    "two": np.array([1, 1]), "none": np.array([]), "None": None, "text": "50", "bool": True, "complex": 50j,
    "too large": 2**62 + 1, "far too large": 1e300, "huge int": 10**40, "object": np.array([None]), "dict": {"a": 1},
}  # fmt: skip


@pytest.mark.parametrize("value", COUNTERS.values(), ids=COUNTERS)
def test_a_counter_is_one_whole_number_in_any_form(value):
    stored = {**GOOD, "num_batches_tracked": value, "num_samples_tracked": value}
    state = BatchNormState.from_state_dict(stored, momentum=None)
    assert (state.num_batches, state.num_samples) == (50, 50)
    state = BatchNormState(3)
    state.num_batches = state.num_samples = value
    assert (state.num_batches, state.num_samples) == (50, 50)


@pytest.mark.parametrize("key", ["num_batches_tracked", "num_samples_tracked"])
@pytest.mark.parametrize("value", NO_COUNTERS.values(), ids=NO_COUNTERS)
def test_what_is_no_counter_is_refused_by_its_name(given, key, value):
    refuse(given, lambda: BatchNormState.from_state_dict({**GOOD, key: value}), ValueError, key, "whole number")
    name = key.removesuffix("_tracked")
    refuse(given, lambda: setattr(given.state, name, value), ValueError, name, "whole number")
    refuse(given, lambda: BatchNormState.from_state_dict(GOOD, num_samples=-1), ValueError, "num_samples")


# ---- pooling needs a count

PYTORCH = {"running_mean": [100.0], "running_var": [1.0], "num_batches_tracked": 50}


def test_pooling_on_loaded_statistics_needs_their_count(given):
    load = BatchNormState.from_state_dict
    refuse(given, lambda: load(PYTORCH, momentum=None), ValueError, "num_samples= to from_state_dict")
    given.state = load(PYTORCH)
    given.state.momentum = None
    given.x, stats = np.array([[1.0], [3.0]]), batch_stats(np.array([[1.0], [3.0]]))
    for call in (lambda: batch_norm_training(given.x, given.state), lambda: given.state.update(stats)):
        refuse(given, call, ValueError, "set state.num_samples")
    for state in (load(PYTORCH, momentum=None, num_samples=98), given.state):
        state.num_samples = 98
        state.update(stats)
        # 98 values of mean 100 and variance 1, and 1 and 3.
        mean = (98 * 100 + 4) / 100
        m2 = 97 * 1 + 2 + 98 * 2 / 100 * (100 - 2) ** 2
        assert (state.num_batches, state.num_samples) == (51, 100)
        assert abs(state.running_mean[0] - mean) <= 4 * np.spacing(mean)
        assert abs(state.running_var[0] - m2 / 99) <= 4 * np.spacing(m2 / 99)
    state = load(PYTORCH, momentum=None, num_samples=0)
    state.update(stats)
    assert (state.running_mean.tolist(), state.num_samples) == ([2.0], 2)


def test_a_moving_average_and_inference_need_no_count():
    state = BatchNormState.from_state_dict(PYTORCH)
    batch_norm_training(np.array([[1.0], [3.0]]), state)
    assert state.running_mean.tolist() == [100 + 0.1 * (2.0 - 100)]
    state.momentum = None  # what is averaged in is no count of the rest
    with pytest.raises(ValueError, match="num_samples"):
        batch_norm_training(np.array([[1.0], [3.0]]), state)
    assert "num_samples_tracked" not in state.state_dict()


def test_a_fresh_model_needs_no_count():
    fresh = {"running_mean": [0.0], "running_var": [1.0], "num_batches_tracked": 0}
    state = BatchNormState.from_state_dict(fresh, momentum=None)
    state.update(batch_stats(np.array([[1.0], [3.0]])))
    assert (state.running_mean.tolist(), state.num_samples) == ([2.0], 2)
    with pytest.raises(ValueError, match="num_samples"):
        BatchNormState.from_state_dict({**fresh, "num_batches_tracked": 1}, momentum=None)


def test_a_count_without_statistics_is_refused(given):
    refuse(given, lambda: BatchNormState.from_state_dict({"weight": [1.0]}, num_samples=3), ValueError, "track_running")


# ---- other libraries' arrays


@pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN)
def test_arrays_of_other_libraries_are_read(foreign):
    values = [0.5, 1.5, 3.0]
    state = BatchNormState.from_state_dict({name: foreign(values) for name in GOOD})
    other = BatchNormState(3)
    for name in ("gamma", "beta", "running_mean", "running_var"):
        setattr(other, name, foreign(values))
        assert getattr(state, name).tolist() == getattr(other, name).tolist() == values


@pytest.mark.parametrize(
    "value",
    [{"a": 1}, [None] * 3, object(), np.ma.masked_array(np.ones(3), False)],
    ids=["dict", "None", "object", "masked"],
)
def test_what_is_no_array_is_refused_by_its_name(given, value):
    refuse(given, lambda: BatchNormState.from_state_dict({**GOOD, "bias": value}), TypeError, "bias is a")
    refuse(given, lambda: setattr(given.state, "gamma", value), TypeError, "gamma is a")
