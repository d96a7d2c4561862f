"""The .npz format: a zip file of arrays and one description, stored uncompressed, without pickle.

Stricter than `numpy.load`: what `write` would not have written is refused, from the zip directory and the headers of
the arrays alone.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

Specs = dict[str, tuple[str, tuple[int, ...]]]  # name: (dtype, shape)

ABOUT = "nbnorm.json"
_LONGEST = 4096  # bytes of the directory, of the description, of the header of an array: save writes some hundreds
_DTYPES = {b"<f4": "float32", b"<f8": "float64", b"<i8": "int64"}
_END = struct.Struct("<4s4H2LH")  # the last record: signature, disks, entries, size and place of the directory, comment
_HEADER = re.compile(rb"\{'descr': '([<>|=]?\w+)', 'fortran_order': False, 'shape': \(([\d, ]*)\), \} *\n")


def write(arrays: dict[str, NDArray], about: str) -> bytes:
    """The file, the same bytes for the same state."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(ABOUT), about)
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                little = array.astype(array.dtype.newbyteorder("<"), copy=False)
                np.lib.format.write_array(member, little, version=(1, 0), allow_pickle=False)
    return file.getvalue()


@contextmanager
def opened(path: str, prefix: str) -> Iterator[tuple[bytes, Specs, Callable[[str], NDArray]]]:
    """The description, what arrays there are, and a function that reads one of them."""
    with open(path, "rb") as file:
        start, length = _directory(file)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _check(members, start, length)
            headers = {member.filename.removesuffix(".npy"): _header(archive, member) for member in members[1:]}
            specs: Specs = {name: (dtype, shape) for name, (_, dtype, shape) in headers.items()}

            def read(name: str) -> NDArray:
                offset, dtype, shape = headers[name]
                little = np.dtype(dtype).newbyteorder("<")
                return np.frombuffer(archive.read(f"{name}.npy"), little, offset=offset).reshape(shape)

            yield archive.read(ABOUT), specs, read


def _directory(file: BinaryIO) -> tuple[int, int]:
    """Place and size of the zip directory, which `zipfile` would read whatever its size."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END.size - 20))
    tail = file.read()
    if len(tail) < _END.size + 20:
        raise ValueError("is too short for a zip file")
    signature, _, _, _, _, length, start, comment = _END.unpack(tail[20:])
    if signature != b"PK\5\6" or comment or start + length + _END.size != size:
        raise ValueError("does not end as a zip file: it is truncated, or followed by other data")
    # Before the end may be a pointer to a directory elsewhere, of files above 4 GB.
    if length > _LONGEST or tail.startswith(b"PK\6\7"):
        raise ValueError("has a larger directory than a state file has")
    return start, length


def _check(members: list[zipfile.ZipInfo], start: int, length: int) -> None:
    """Plain members, the description first, one behind the other without gaps."""
    names = [member.filename for member in members]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"has two members {twice[0]!r:.40}")
    if names[:1] != [ABOUT]:
        raise ValueError(f"does not begin with {ABOUT}: it was not written by BatchNormState.save")
    end = 0
    for member in members:
        name = f"{member.orig_filename!r:.40}"
        if member is not members[0] and not member.filename.endswith(".npy"):
            raise ValueError(f"has an unknown member {name}")
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise ValueError(f"has a compressed member, {name}")
        if member.flag_bits or member.header_offset != end:
            raise ValueError(f"has a member of another kind or in another place than save writes, {name}")
        end += 30 + len(member.orig_filename.encode()) + member.file_size
    if end != start or sum(46 + len(name) for name in names) != length:
        raise ValueError("has data outside its members")
    if members[0].file_size > _LONGEST:
        raise ValueError(f"has a {ABOUT} of {members[0].file_size} bytes; expected at most {_LONGEST}")


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[int, str, tuple[int, ...]]:
    """Where the values of an array begin, their dtype and shape; it has as many bytes as they need."""
    name = f"{member.filename!r:.40}"
    with archive.open(member) as file:
        magic, size = file.read(8), int.from_bytes(file.read(2), "little")
        header = _HEADER.fullmatch(file.read(size)) if magic == b"\x93NUMPY\1\0" and size <= _LONGEST else None
    if header is None:
        raise ValueError(f"has a member without the header of an array, {name}")
    if header[1] not in _DTYPES:
        raise ValueError(f"has {name} with dtype {header[1].decode():.20}; expected {', '.join(_DTYPES.values())}")
    dtype, shape = _DTYPES[header[1]], tuple(int(n) for n in header[2].split(b",") if n.strip())
    if member.file_size != 10 + size + prod(shape) * np.dtype(dtype).itemsize:
        raise ValueError(f"has {name} with {member.file_size} bytes, which is not what shape {shape!s:.40} needs")
    return 10 + size, dtype, shape
