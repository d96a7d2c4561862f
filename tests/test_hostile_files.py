"""Files that are damaged or made to do harm: a StateFileError with path and reason, or a state; nothing else."""

import random
import struct
import zipfile

import numpy as np
import pytest
from common import random_state, snapshot
from hostile import NAMES, build, described, members, npy, refused

from nbnorm import BatchNormState, StateFileError


@pytest.fixture(params=[".npz", ".safetensors"])
def path(request, tmp_path, rng):
    path = tmp_path / f"state{request.param}"
    random_state(rng, 3).save(path)
    return path


@pytest.fixture
def npz(tmp_path, rng):
    path = tmp_path / "state.npz"
    random_state(rng, 3).save(path)
    return path


def test_a_file_built_again_from_its_members_is_read(npz):
    """What is refused below is refused for what was changed in it."""
    before = snapshot(BatchNormState.load(npz))
    build(npz, members(npz).items())
    assert snapshot(BatchNormState.load(npz)) == before


def test_a_file_cut_anywhere_or_followed_by_anything_is_refused(path):
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        refused(path)
    text = {".npz": "does not end", ".safetensors": ""}[path.suffix]
    for more in (b"\0", whole):
        path.write_bytes(whole + more)
        refused(path, text if more == b"\0" else "")
        path.write_bytes(more + whole)
        refused(path, text)


def test_compressed_members_are_refused(npz):
    found = members(npz)
    build(npz, found.items(), zipfile.ZIP_DEFLATED)
    refused(npz, "compressed")


def test_data_outside_the_members_is_refused(npz):
    """Before the first, between two of them, before the directory and in it, with every pointer adjusted."""
    whole = npz.read_bytes()
    start = whole.index(b"PK\1\2")
    end = bytearray(whole[-22:])
    struct.pack_into("<L", end, 16, start + 7)
    npz.write_bytes(whole[:start] + bytes(7) + whole[start:-22] + end)
    refused(npz, "outside")
    struct.pack_into("<2L", end, 12, len(whole) - 22 - start + 7, start)
    npz.write_bytes(whole[:-22] + bytes(7) + end)
    refused(npz)
    entry = bytearray(whole[start:])
    place = 0
    for _ in range(7):
        size, extra = struct.unpack_from("<2H", entry, place + 28)
        struct.pack_into("<L", entry, place + 42, struct.unpack_from("<L", entry, place + 42)[0] + 7)
        place += 46 + size + extra
    struct.pack_into("<L", entry, len(entry) - 6, start + 7)
    npz.write_bytes(bytes(7) + whole[:start] + entry)
    refused(npz, "another place")


def mutated(data, rng):
    """Bytes overwritten, flipped, taken out, put in, repeated or exchanged, once or several times."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        i, j = rng.randrange(len(data)), rng.randrange(len(data))
        n = rng.choice([1, 1, 2, 4, 8, 40])
        kind = rng.randrange(6)
        if kind == 0:
            data[i] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif kind == 1:
            data[i] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del data[i : min(i + n, i + len(data) - 1)]
        elif kind == 3:
            data[i:i] = rng.randbytes(n)
        elif kind == 4:
            data[i:i] = data[j : j + n]
        else:
            data[i : i + n] = data[j : j + n]
    return bytes(data)


def test_five_thousand_mutations_of_each_format_are_refused_or_valid(path):
    whole, before, rng, loaded = path.read_bytes(), snapshot(BatchNormState.load(path)), random.Random(0), 0
    for _ in range(5_000):
        path.write_bytes(mutated(whole, rng))
        try:
            state = BatchNormState.load(path)
        except StateFileError:
            continue
        loaded += 1
        arrays = [a for a in (state.gamma, state.beta, state.running_mean, state.running_var) if a is not None]
        assert all(np.isfinite(array).all() and array.shape == (3,) for array in arrays)
        assert np.all(state.running_var >= 0)
        assert min(state.num_batches, state.num_samples) >= 0
        # A zip file has checksums: only what nobody reads, such as dates, can have changed.
        assert path.suffix != ".npz" or snapshot(state) == before
    assert 0 < loaded < 2_500


MEMBERS = {  # the members of a good file -> those of a bad one, and what the message has
    "extra": (lambda m: [*m.items(), ("extra.npy", npy(np.ones(3)))], "extra"),
    "extra text": (lambda m: [*m.items(), ("readme.txt", b"hello")], "readme.txt"),
    "absolute name": (lambda m: [*m.items(), ("/etc/evil.npy", npy(np.ones(3)))], "/etc/evil"),
    "name above": (lambda m: [*m.items(), ("../evil.npy", npy(np.ones(3)))], "../evil"),
    "only the name above": (lambda m: [("../" + n, d) for n, d in m.items()], "nbnorm.json"),
    "directory": (lambda m: [*m.items(), ("evil/", b"")], "evil/"),
    "not ASCII": (lambda m: [*m.items(), ("bïas.npy", m["bias.npy"])], "another kind"),
    "no description": (lambda m: list(m.items())[1:], "nbnorm.json"),
    "description last": (lambda m: list(m.items())[::-1], "nbnorm.json"),
    "none": (lambda m: [], "too short"),
    "long description": (lambda m: (m | {"nbnorm.json": b" " * 5000}).items(), "5000 bytes"),
    **{
        f"without {name}": (lambda m, n=name: [p for p in m.items() if p[0] != f"{n}.npy"], f"lacks array '{name}'")
        for name in NAMES
        if name not in ("num_samples_tracked", "num_batches_skipped")  # not known, or of version 1: test_files.py
    },
}


@pytest.mark.parametrize(("change", "text"), MEMBERS.values(), ids=MEMBERS)
def test_members_are_exactly_those_of_the_state(change, text, npz):
    build(npz, change(members(npz)))
    refused(npz, text)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_members_are_refused(npz):
    found = members(npz)
    for name, data in found.items():
        build(npz, [*found.items(), (name, data)])
        refused(npz, "two members", name)


FLOAT = np.array([1.0, 2.0, 3.0])
ARRAYS = {
    "float16": ("weight", npy(FLOAT.astype("f2")), "dtype <f2"),
    "float64 gamma": ("weight", npy(FLOAT), "float64"),
    "float32 mean": ("running_mean", npy(FLOAT.astype("f4")), "float32"),
    "big-endian": ("running_mean", npy(FLOAT.astype(">f8")), "dtype >f8"),
    "complex": ("running_mean", npy(FLOAT.astype("c16")), "dtype <c16"),
    "structured": ("running_mean", npy(FLOAT.view([("a", "f8")])), "header"),
    "text": ("running_mean", npy(FLOAT.astype("U5")), "dtype <U5"),
    "object": ("running_mean", npy(FLOAT.astype(object), allow_pickle=True), "dtype |O"),
    "longer": ("running_mean", npy(np.ones(4)), "(4,)"),
    "more dimensions": ("running_mean", npy(np.ones((1, 3))), "(1, 3)"),
    "would broadcast": ("running_mean", npy(np.ones(())), "()"),
    "Fortran order": ("running_mean", npy(np.asfortranarray(np.ones((3, 2)))), "header"),
    "version 2 of npy": ("running_mean", npy(FLOAT, version=(2, 0)), "header"),
    "no header": ("running_mean", bytes(200), "header"),
    "empty": ("running_mean", b"", "header"),
    "code in the header": ("running_mean", npy(FLOAT).replace(b"(3,)", b"(a,)"), "header"),
    "claims more": ("running_mean", npy(FLOAT).replace(b"(3,)", b"(9,)"), "bytes"),
    "claims less": ("running_mean", npy(FLOAT).replace(b"(3,)", b"(2,)"), "bytes"),
    "one more byte": ("running_mean", npy(FLOAT) + b"\0", "bytes"),
    "NaN mean": ("running_mean", npy(np.array([1, np.nan, 1])), "running_mean has NaN"),
    "infinite mean": ("running_mean", npy(np.array([1, np.inf, 1])), "running_mean has NaN"),
    "NaN variance": ("running_var", npy(np.array([1, np.nan, 1])), "running_var has NaN"),
    "negative variance": ("running_var", npy(np.array([1, -1e-300, 1])), "negative"),
    "NaN gamma": ("weight", npy(np.array([1, np.nan, 1], "f4")), "weight has NaN"),
    "infinite beta": ("bias", npy(np.array([1, -np.inf, 1], "f4")), "bias has NaN"),
    "negative counter": ("num_batches_tracked", npy(np.array(-1)), "num_batches_tracked"),
    "float counter": ("num_samples_tracked", npy(np.array(1.0)), "expected int64"),
    "many counters": ("num_samples_tracked", npy(np.array([1])), "expected int64"),
}


@pytest.mark.parametrize(("name", "data", "text"), ARRAYS.values(), ids=ARRAYS)
def test_arrays_are_of_the_expected_kind_and_valid(name, data, text, npz):
    build(npz, (members(npz) | {f"{name}.npy": data}).items())
    refused(npz, text)


ABOUT = {
    "later version": ({"version": 3}, "version 3"),
    "no version": ({"version": ...}, "version None"),
    "unknown key": ({"device": "cuda"}, "device"),
    "key missing": ({"eps": ...}, "describes"),
    "other features": ({"num_features": 4}, "(3,)"),
    "two axes": ({"num_features": [3, 1]}, "(3, 1)"),
    "negative features": ({"num_features": -3}, "num_features"),
    "huge features": ({"num_features": 10**18}, "1000000000000000000"),
    "huge and empty": ({"num_features": [0, 10**30]}, "num_features"),
    "features true": ({"num_features": True}, "num_features"),
    "no axes": ({"num_features": []}, "num_features"),
    "features in text": ({"num_features": "3"}, "num_features"),
    "features in lists": ({"num_features": [[3]]}, "num_features"),
    "eps 0": ({"eps": 0.0}, "eps"),
    "eps NaN": ({"eps": float("nan")}, "eps"),
    "eps infinite": ({"eps": float("inf")}, "eps"),
    "eps beyond floats": ({"eps": 10**400}, "eps is 1000"),
    "eps in text": ({"eps": "1e-5"}, "eps"),
    "momentum 2": ({"momentum": 2.0}, "momentum"),
    "momentum in a list": ({"momentum": [0.1]}, "momentum"),
    "dtype": ({"dtype": "object"}, "cannot be"),
    "no dtype": ({"dtype": None}, "cannot be"),
    "dtype in a dict": ({"dtype": {"a": 1}}, "cannot be"),
    "flag in text": ({"use_gamma": "yes"}, "cannot be"),
    "no gamma": ({"use_gamma": False}, "unknown array 'weight'"),
    "not tracked": ({"track_running": False}, "unknown array"),
}


@pytest.mark.parametrize(("changes", "text"), ABOUT.values(), ids=ABOUT)
def test_the_description_is_checked(changes, text, npz):
    found = members(npz)
    build(npz, (found | described(found, **changes)).items())
    refused(npz, text)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe", b"[" * 4000, b'{"version": 1e999}'])
def test_a_description_that_is_none_is_refused(text, npz):
    build(npz, (members(npz) | {"nbnorm.json": text}).items())
    refused(npz)
