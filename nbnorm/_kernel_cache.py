"""Numba's kernel cache: what nbnorm knows of its inside. Private names, so each function makes do without them."""

from __future__ import annotations

import traceback
import types
from collections.abc import Iterator
from typing import Any


def only_own_entries(dispatcher: Any) -> Any:
    """The dispatcher, with a name in each file of its cache: what belongs to another signature is not there.

    Numba numbers the files of a kernel by an index, and of two processes that add a signature in the same moment both
    take the same number: one of them would later be handed the other's machine code, int16 for uint16.
    """
    file = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if file is not None:
        read, write = file.load, file.save

        def load(key: Any) -> Any:
            found = read(key)
            return found[1] if found is not None and found[0] == (file._source_stamp, key) else None

        file.load = load
        file.save = lambda key, data: write(key, ((file._source_stamp, key), data))
    return dispatcher


def comes_from_the_cache(error: Exception) -> bool:
    """Then no kernel has run yet: Numba reads and writes the cache when it compiles."""
    return any(True for _ in _frames_of_the_cache(error))


def unreadable_file(error: Exception) -> str | None:
    """The index or the data of one signature, if Numba made no sense of it; None when something else has failed."""
    if isinstance(error, OSError | MemoryError):  # of the machine, not of the file
        return None
    try:
        key: Any = None
        for frame in _frames_of_the_cache(error):
            name, found = frame.f_code.co_name, frame.f_locals
            if name == "_load_index":
                return found["self"]._index_path
            if name == "_load_overload":
                file, key = found["self"]._cache_file, found["key"]
        return None if key is None else file._data_path(file._load_index()[key])
    except Exception:  # another version of Numba need not have these names: then the cache is left
        return None


def _frames_of_the_cache(error: Exception) -> Iterator[types.FrameType]:
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__") == "numba.core.caching":
            yield frame
