"""State files that would execute code, or need more memory than they have bytes."""

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from common import random_state
from hostile import NAMES, build, described, members, npy, refused


@pytest.fixture
def npz(tmp_path, rng):
    path = tmp_path / "state.npz"
    random_state(rng, 3).save(path)
    return path


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", [*NAMES, "nbnorm", "extra"])
def test_nothing_in_a_file_is_executed(name, npz):
    marker = npz.with_name("marker")
    array = npy(np.array([Payload(marker)]), allow_pickle=True)
    np.load(io.BytesIO(array), allow_pickle=True)
    assert marker.exists()  # it would work
    marker.unlink()
    found = members(npz)
    build(npz, (found | {f"{name}.npy": array}).items())
    refused(npz)
    raw = pickle.dumps(Payload(marker))
    build(npz, (found | {"nbnorm.json": raw}).items())
    refused(npz)
    for path in (npz, npz.with_suffix(".safetensors")):
        for data in (raw, array, len(raw).to_bytes(8, "little") + raw):
            path.write_bytes(data)
            refused(path)
    assert not marker.exists()


def compressed(path):
    build(path, (members(path) | {"running_var.npy": npy(np.zeros(1 << 25))}).items(), zipfile.ZIP_DEFLATED)


def huge_shape(path):
    found = members(path)
    header = npy(np.ones(3)).replace(b"(3,)" + b" " * 12, b"(1000000000000,)")
    build(path, (found | described(found, num_features=10**12) | {"running_var.npy": header}).items())


def huge_header(path):
    header = b"\x93NUMPY\2\0" + (1 << 30).to_bytes(4, "little") + b" " * (1 << 16)
    build(path, (members(path) | {"running_var.npy": header}).items())


def many_members(path):
    """300,000 entries of a directory for one member."""
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\1\2")
    entry = bytes(data[start : start + 46 + len("nbnorm.json")]) * 300_000
    path.write_bytes(
        data[:start] + entry + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, len(entry), start, 0)
    )


def hidden_directory(path):
    """The same, behind the pointer of a zip file above 4 GB."""
    many_members(path)
    data = path.read_bytes()
    start, length = data.index(b"PK\1\2"), len(data) - 22 - data.index(b"PK\1\2")
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 300_000, 300_000, length, start)
    pointer = struct.pack("<4sLQL", b"PK\6\7", 0, start + length, 1)
    small = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 76, start + length, 0)
    path.write_bytes(data[:-22] + record + pointer + small)


def sparse(path):
    """1 TB of nothing, then the end of a zip file."""
    end = path.read_bytes()[-22:]
    with open(path, "r+b") as file:
        file.seek(1 << 40)
        file.write(end)


def long_header(path):
    header = b'{"__metadata__":{"a":"' + b"a" * (90 << 20) + b'"}}'
    path.with_suffix(".safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


BOMBS = [compressed, huge_shape, huge_header, many_members, hidden_directory, sparse, long_header]


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__name__)
def test_a_bomb_is_refused_in_little_memory(bomb, npz):
    bomb(npz)
    path = npz.with_suffix(".safetensors") if bomb is long_header else npz
    tracemalloc.start()
    try:
        refused(path)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
        os.truncate(path, 0)
