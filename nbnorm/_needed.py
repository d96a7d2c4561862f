"""Packages that only a part of nbnorm needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def package(what: str, install: str) -> Iterator[None]:
    """Around the import of a package that `what` needs and the rest does without: its ImportError says what to do."""
    try:
        yield
    except ImportError as error:
        error.add_note(f"{what} needs a package, or a newer one: {install}")
        raise
