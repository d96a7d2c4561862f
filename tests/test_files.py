"""save and load: what comes back, what is written, and what is left when a save fails or is killed."""

import errno
import os
import re
import stat
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from common import random_state, refuse, same_bits, sample, snapshot
from hostile import build, members
from hostile import described as described_file
from tolerance import dtype_of

from nbnorm import BatchNorm, BatchNormState, StateFileError, batch_norm_training

FORMATS = [".npz", ".safetensors"]
OPTIONS = [
    {},
    {"dtype": "float64"},
    {"momentum": None, "eps": 0.1 + 0.2},
    {"use_gamma": False},
    {"use_beta": False, "momentum": 1 / 3},
    {"track_running": False},
    {"unbiased": False},
    {"skip_nonfinite": True},
    {"skip_nonfinite": True, "momentum": None},
    {"use_gamma": False, "use_beta": False, "dtype": "float64"},
    {"use_gamma": False, "use_beta": False, "track_running": False, "dtype": "float64"},
]


def described(state):
    """All that a state is, beside its arrays."""
    return (state.num_features, state.dtype, state.eps, state.momentum, state.unbiased, state.skip_nonfinite,
            state.num_skipped, state.device)  # fmt: skip


@pytest.fixture(params=FORMATS)
def path(request, tmp_path):
    return tmp_path / f"state{request.param}"


@pytest.mark.parametrize("features", [3, (5,), (3, 4), 0, 1, (2, 0)], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_state_comes_back_bit_for_bit(options, features, path, rng):
    state = random_state(rng, features, **options)
    if np.prod(features) and state.running_mean is not None:
        axis = tuple(range(1, 1 + np.ndim(np.empty(features)))) if isinstance(features, tuple) else 1
        batch_norm_training(sample(rng, (6, *state.shape), axis=axis), state, axis=axis)
        if state.skip_nonfinite:
            batch_norm_training(np.full((6, *state.shape), np.inf), state, axis=axis)
            assert state.num_skipped == 1
    for array in (state.gamma, state.beta, state.running_mean):
        if array is not None and array.size:
            array.flat[0] = -0.0
            array.flat[-1] = np.nextafter(array.dtype.type(0), 1)
    before = snapshot(state), described(state)
    state.save(path)
    twin = BatchNormState.load(path)
    assert (snapshot(twin), described(twin)) == before == (snapshot(state), described(state))
    assert [type(n) for n in np.atleast_1d(twin.num_features).tolist()] == [int] * len(state.shape)
    twin.reset_running()
    twin.eps = 1.0
    twin = BatchNormState.load(str(path))
    assert (snapshot(twin), described(twin)) == before


def test_the_same_state_gives_the_same_bytes(path, rng):
    state = random_state(rng, 3)
    state.save(path)
    first = path.read_bytes()
    state.save(str(path))
    assert path.read_bytes() == first


def test_other_libraries_read_our_files(tmp_path, rng):
    state = random_state(rng, (2, 3))
    state.momentum = None
    expected = state.state_dict() | {"num_batches_skipped": np.array(0)}
    state.save(tmp_path / "state.npz")
    with np.load(tmp_path / "state.npz", allow_pickle=False) as found:
        assert set(found) == {"nbnorm.json", *expected}
        assert all(same_bits(found[name], array) for name, array in expected.items())
    state.save(tmp_path / "state.safetensors")
    found = safetensors.numpy.load_file(tmp_path / "state.safetensors")
    assert set(found) == set(expected)
    assert all(same_bits(found[name], array) for name, array in expected.items())


def network(rng, dtype="float32"):
    """As PyTorch names and types a network: statistics of the type of the parameters, an int64 counter."""
    arrays = {"conv1.weight": np.ones((3, 2, 1, 1)), "bn10.weight": np.ones(7), "fc.bias": np.zeros(0)}
    arrays |= {f"layer1.bn1.{name}": rng.uniform(1, 2, 3) for name in ("weight", "bias", "running_mean", "running_var")}
    arrays = {name: array.astype(dtype_of(dtype)) for name, array in arrays.items()}
    return arrays | {"layer1.bn1.num_batches_tracked": np.array(7), "step": np.array(True)}


def test_a_layer_of_a_network_is_read_by_its_prefix(dtype, tmp_path, rng):
    arrays, path = network(rng, dtype), tmp_path / "network.safetensors"
    safetensors.numpy.save_file(arrays, path)
    state = BatchNormState.load(path, "layer1.bn1.")
    assert (state.num_features, state.num_batches, state.num_samples) == (3, 7, 0)
    assert (state.eps, state.momentum, state.dtype) == (1e-5, 0.1, "float64" if dtype == "float64" else "float32")
    for own, name in (("gamma", "weight"), ("beta", "bias"), ("running_mean",) * 2, ("running_var",) * 2):
        expected = arrays[f"layer1.bn1.{name}"]
        assert same_bits(getattr(state, own), expected.astype(getattr(state, own).dtype))


CHANGES = {
    "no such layer": ({}, "bn2.", "no arrays"),
    "the whole network": ({}, "", "has names of a network; give prefix='layer1.bn1.'"),
    "a part of it": ({}, "layer1.", "give prefix='layer1.bn1.'"),
    "a long name": (
        {f"{'x' * 200}.{name}": np.ones(3) for name in ("running_mean", "running_var")},
        "layer1.bn1.",
        "give prefix=, what a layer begins with",
    ),
    "a shorter one beside it": (
        {f"{name}.running_mean": np.ones(3) for name in ("encoder.backbone.dense.block1.x.norm", "z")},
        "layer1.bn1.",
        "give prefix='layer1.bn1.z.'",
    ),
    "no batch normalization": ({}, "bn", "10.weight"),
    "another layer": ({}, "conv", "1.weight"),
    "the dot forgotten": ({}, "layer1.bn1", "begin with a dot; give prefix='layer1.bn1.'"),
    "unknown name": ({"running_std": np.ones(3)}, "layer1.bn1.", "running_std"),
    "shapes": ({"bias": np.ones(4)}, "layer1.bn1.", "several shapes"),
    "integers": ({"bias": np.ones(3, np.int32)}, "layer1.bn1.", "int32"),
    "half a counter": ({"num_batches_tracked": np.array(2.5)}, "layer1.bn1.", "num_batches_tracked is"),
    "infinite counter": ({"num_batches_tracked": np.array(np.inf)}, "layer1.bn1.", "num_batches_tracked is"),
    "many counters": ({"num_batches_tracked": np.array([7, 7])}, "layer1.bn1.", "expected one whole number"),
    "true": ({"num_batches_tracked": np.array(True)}, "layer1.bn1.", "expected one whole number"),
    "two dimensions": (
        {name: np.ones((1, 3)) for name in ("weight", "bias", "running_mean", "running_var")},
        "layer1.bn1.",
        "num_features=",
    ),
    "Keras": ({"moving_mean": np.ones(3)}, "layer1.bn1.", "rename moving_mean to running_mean"),
    "negative counter": ({"num_batches_tracked": np.array(-7)}, "layer1.bn1.", "num_batches_tracked"),
    "negative variance": ({"running_var": -np.ones(3)}, "layer1.bn1.", "running_var"),
    "NaN": ({"weight": np.array([1, np.nan, 1])}, "layer1.bn1.", "weight"),
}


@pytest.mark.parametrize(("change", "prefix", "text"), CHANGES.values(), ids=CHANGES)
def test_a_layer_that_is_none_is_refused(given, change, prefix, text, tmp_path, rng):
    path = tmp_path / "network.safetensors"
    arrays = network(rng) | {f"layer1.bn1.{name}": array for name, array in change.items()}
    safetensors.numpy.save_file(arrays, path)
    refuse(given, lambda: BatchNormState.load(path, prefix), StateFileError, text)


def test_only_what_is_asked_for_is_read(tmp_path):
    """Of 128 MB less than one is touched, also when the names are wrong."""
    path = tmp_path / "network.safetensors"
    arrays = {"big.weight": np.zeros((4000, 4000)), "big.bias": np.zeros(4000), "bn.weight": np.ones(3, np.float32)}
    safetensors.numpy.save_file(arrays, path)
    del arrays
    tracemalloc.start()
    try:
        assert BatchNormState.load(path, "bn.").gamma.tolist() == [1, 1, 1]
        for prefix in ("big.", ""):
            with pytest.raises(StateFileError):
                BatchNormState.load(path, prefix)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_of_a_long_path_the_end_is_shown(given, tmp_path):
    path = tmp_path / ("d" * 100) / "state.npz"
    path.parent.mkdir()
    path.write_bytes(b"junk")
    refuse(given, lambda: BatchNormState.load(path), StateFileError, f"...{str(path)[-87:]}: is too short for a zip")


def test_wrong_arguments_are_no_fault_of_the_file(given, tmp_path):
    for name in ("state", "state.npy", "state.npz.tmp", ".npz"):
        refuse(given, lambda n=name: given.state.save(tmp_path / n), ValueError, name, ".npz or .safetensors")
        refuse(given, lambda n=name: BatchNormState.load(tmp_path / n), ValueError, name, ".npz or .safetensors")
    for call in given.state.save, BatchNormState.load:
        refuse(given, lambda c=call: c(None), TypeError, "path is a NoneType; expected a str")
    assert list(tmp_path.iterdir()) == []
    for suffix in FORMATS:
        refuse_os_error(lambda s=suffix: BatchNormState.load(tmp_path / f"none{s}"), FileNotFoundError)
        refuse_os_error(lambda s=suffix: given.state.save(tmp_path / "none" / f"state{s}"), FileNotFoundError)
    path = tmp_path / "state.npz"
    given.state.save(path)
    refuse(given, lambda: BatchNormState.load(path, "bn1."), ValueError, "bn1.", "from_state_dict")
    safetensors.numpy.save_file({"bn.weight": np.ones(3)}, tmp_path / "other.safetensors")
    for kind, text, given_as in (
        (TypeError, "prefix is a int; expected what the names begin with", {"prefix": 3}),
        (TypeError, "prefix is a tuple", {"prefix": ("bn.",)}),
        (TypeError, "num_features is '3'", {"num_features": "3"}),
        (ValueError, "num_features is -3", {"num_features": -3}),
        (ValueError, "num_samples is -1", {"num_samples": -1}),
        (ValueError, "num_samples is 'ten'", {"num_samples": "ten"}),
    ):
        refuse_no_file(given, lambda a=given_as: BatchNormState.load(path, **a), kind, text)
        named = {"prefix": "bn."} | given_as
        if "num_samples" not in given_as:  # without running statistics there is nothing to count
            refuse_no_file(given, lambda a=named: BatchNormState.load(tmp_path / "other.safetensors", **a), kind, text)


def refuse_no_file(given, call, kind, text):
    refuse(given, call, kind, text)
    with pytest.raises(kind) as caught:
        call()
    assert not isinstance(caught.value, StateFileError)


def test_the_arrays_of_an_own_file_make_a_state_by_hand_too(path, tmp_path, rng):
    """As a part of a network's file, or read by another library."""
    state = random_state(rng, 3)
    batch_norm_training(sample(rng, (6, 3)), state)
    state.skip_nonfinite = True
    batch_norm_training(np.full((6, 3), np.nan, np.float32), state)
    state.skip_nonfinite = False  # which arrays do not say
    state.save(path)
    if path.suffix == ".npz":
        with np.load(path) as stored:
            with pytest.raises(ValueError, match=r"nbnorm\.json: it is a file of BatchNormState\.save, which .*load"):
                BatchNormState.from_state_dict(stored)
            stored = {name: stored[name] for name in stored if name != "nbnorm.json"}
    else:
        stored = safetensors.numpy.load_file(path)
    assert {"num_samples_tracked", "num_batches_skipped"} <= stored.keys()
    assert snapshot(BatchNormState.from_state_dict(stored)) == snapshot(state)
    network = tmp_path / "network.safetensors"
    safetensors.numpy.save_file({f"bn.{name}": array for name, array in stored.items()}, network)
    for twin in BatchNormState.from_state_dict(stored), BatchNormState.load(network, "bn."):
        assert snapshot(twin) == snapshot(state)
        assert twin.num_skipped == 1


def refuse_os_error(call, kind):
    with pytest.raises(kind) as caught:
        call()
    assert not isinstance(caught.value, StateFileError)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_what_load_would_refuse_is_not_saved(given, value, path):
    given.state.save(path)
    before = path.read_bytes()
    for name in ("running_var",) if value == -1 else ("gamma", "beta", "running_mean", "running_var"):
        array = getattr(given.state, name)
        old, array[1] = array[1], value
        key = {"gamma": "weight", "beta": "bias"}.get(name, name)
        refuse(given, lambda: given.state.save(path), ValueError, key)
        array[1] = old
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_new_file_has_the_permissions_of_any_new_file(given, path):
    given.state.save(path)
    other = path.with_name("other")
    other.write_bytes(b"")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


def test_a_private_file_stays_private(given, path):
    given.state.save(path)
    path.chmod(0o600)
    given.state.eps = 0.5
    given.state.save(path)
    assert BatchNormState.load(path).eps == 0.5
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_stays_a_link(given, path):
    target = path.with_name(f"target{path.suffix}")
    path.symlink_to(target)
    given.state.save(path)
    assert path.is_symlink()
    assert snapshot(BatchNormState.load(target)) == snapshot(given.state)


def test_a_save_that_fails_leaves_everything_as_it_was(given, path):
    BatchNormState(2).save(path)
    before, state = path.read_bytes(), snapshot(given.state)
    resource = pytest.importorskip("resource", reason="NO FULL DISK: only Unix limits the size of files")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))  # a full disk, for this process
    try:
        with pytest.raises(OSError, match=re.escape(f"{os.strerror(errno.EFBIG)}: {str(path)!r}") + "$"):
            given.state.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    directory = path.with_name(f"directory{path.suffix}")
    directory.mkdir()
    refuse_os_error(lambda: given.state.save(directory), IsADirectoryError)
    nowhere = path.parent / "missing" / path.name
    with pytest.raises(FileNotFoundError, match=re.escape(f": {str(nowhere)!r}") + "$"):
        given.state.save(nowhere)
    refuse_os_error(lambda: BatchNormState.load(directory), IsADirectoryError)
    assert sorted(path.parent.iterdir()) == sorted([path, directory])
    assert path.read_bytes() == before
    assert snapshot(given.state) == state


@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="root may write everywhere")
def test_an_unwritable_directory(given, path):
    path.parent.chmod(0o500)
    try:
        refuse_os_error(lambda: given.state.save(path), PermissionError)
        assert list(path.parent.iterdir()) == []
    finally:
        path.parent.chmod(0o700)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_fifty_kills_during_save_leave_a_readable_file(path):
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("kill_saves.py"), path],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    found = re.fullmatch(r"\d+ kills, (\d+) during a save, (\d+) different states\n", done.stdout)
    assert found, done.stdout
    assert int(found[1]) >= 10
    assert int(found[2]) >= 10


@pytest.mark.parametrize("value", [np.array([7]), np.full((1, 1), 7, np.int32), np.array(7.0, np.float32), np.uint8(7)])
def test_a_counter_in_any_form(value, tmp_path, rng):
    path = tmp_path / "network.safetensors"
    safetensors.numpy.save_file(network(rng) | {"layer1.bn1.num_batches_tracked": np.asarray(value)}, path)
    assert BatchNormState.load(path, "layer1.bn1.").num_batches == 7


def test_a_layer_of_another_library_and_exact_pooling(tmp_path, rng):
    path = tmp_path / "network.safetensors"
    safetensors.numpy.save_file(network(rng), path)
    state = BatchNormState.load(path, "layer1.bn1.")
    state.momentum = None
    with pytest.raises(ValueError, match="num_samples= to from_state_dict or load"):
        batch_norm_training(sample(rng, (6, 3)), state)
    counted = {"prefix": "layer1.bn1.", "num_samples": 70}
    for state in (BatchNormState.load(path, **counted), BatchNorm.load(path, **counted).state):
        state.momentum = None
        batch_norm_training(sample(rng, (6, 3)), state)
        assert (state.num_batches, state.num_samples) == (8, 76)
    arrays = {name: np.ones((1, 3)) for name in ("running_mean", "running_var")}
    safetensors.numpy.save_file(arrays, path)
    for state in (BatchNormState.load(path, num_features=(1, 3)), BatchNorm.load(path, num_features=(1, 3)).state):
        assert state.num_features == (1, 3)


def test_what_a_network_does_not_store_can_be_said(given, tmp_path, rng):
    path = tmp_path / "network.safetensors"
    safetensors.numpy.save_file(network(rng), path)
    x, said = sample(rng, (6, 3)), {"eps": 1e-3, "momentum": 0.25, "unbiased": False}
    for state in (
        BatchNormState.load(path, "layer1.bn1.", **said),
        BatchNorm.load(path, "layer1.bn1.", axis=-1, **said).state,
    ):
        expected = BatchNormState.from_state_dict(safetensors.numpy.load_file(path), "layer1.bn1.", **said)
        assert (described(state), snapshot(state)) == (described(expected), snapshot(expected))
        assert (state.eps, state.momentum, state.unbiased) == (1e-3, 0.25, False)
        assert same_bits(batch_norm_training(x, state)[0], batch_norm_training(x, expected)[0])
        assert snapshot(state) == snapshot(expected)
    state = BatchNormState.load(path, "layer1.bn1.", momentum=None, num_samples=70)
    batch_norm_training(x, state)
    assert (state.momentum, state.num_samples) == (None, 76)
    with pytest.warns(UserWarning, match="mean momentum=0.01 here") as caught:
        assert BatchNormState.load(path, "layer1.bn1.", momentum=0.99).momentum == 0.99
    assert (len(caught), caught[0].filename) == (1, __file__)
    for kind, text, given_as in (
        (ValueError, "eps is -1", {"eps": -1}),
        (ValueError, "eps is None", {"eps": None}),
        (ValueError, "momentum is '0.1'", {"momentum": "0.1"}),
        (ValueError, "num_samples= to from_state_dict or load", {"momentum": None}),
        (TypeError, "unbiased is 'no'; expected True or False", {"unbiased": "no"}),
    ):
        refuse_no_file(given, lambda a=given_as: BatchNormState.load(path, "layer1.bn1.", **a), kind, text)


def test_an_own_file_says_it_itself(given, path):
    BatchNormState(3, eps=1e-3).save(path)
    for name, value in (("eps", 1e-3), ("momentum", None), ("unbiased", False)):
        for load in BatchNormState.load, BatchNorm.load:
            text = f"{name} is {value}, but the file is one of save, which has its own"
            refuse_no_file(given, lambda a={name: value}, load=load: load(path, **a), ValueError, text)
    assert BatchNormState.load(path).eps == 1e-3


def test_bfloat16_names_the_package_that_it_needs(tmp_path, rng, monkeypatch):
    path = tmp_path / "network.safetensors"
    safetensors.numpy.save_file(network(rng, "bfloat16"), path)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ImportError) as caught:
        BatchNormState.load(path, "layer1.bn1.")
    assert "pip install ml_dtypes" in caught.value.__notes__[0]


def test_statistics_without_a_count_come_back_without_one(given, path):
    state = BatchNormState(3, momentum=None)
    state.running_mean = [1.0, 2.0, 3.0]
    state.save(path)
    refuse(given, lambda: batch_norm_training(given.x, BatchNormState.load(path)), ValueError, "num_samples")
    state.momentum = 0.5
    batch_norm_training(given.x, state)
    state.momentum = None
    state.save(path)
    refuse(given, lambda: batch_norm_training(given.x, BatchNormState.load(path)), ValueError, "num_samples")
    twin = BatchNormState.load(path, num_samples=10)
    batch_norm_training(given.x, twin)
    assert twin.num_samples == 58
    refuse(given, lambda: BatchNormState.load(path, num_features=4), StateFileError, "num_features=3")


def test_files_of_version_1_are_read(tmp_path, rng):
    """As the first version wrote them: every number of values, nothing of skipped batches and of biased variances."""
    state = random_state(rng, 3, momentum=None)
    batch_norm_training(sample(rng, (6, 3)), state)
    state.save(tmp_path / "new.npz")
    found = members(tmp_path / "new.npz")
    del found["num_batches_skipped.npy"]
    build(tmp_path / "old.npz", (found | described_file(found, version=1, skip_nonfinite=..., unbiased=...)).items())
    twin = BatchNormState.load(tmp_path / "old.npz")
    assert (snapshot(twin), described(twin)) == (snapshot(state), described(state))
