"""Kinds: what a launch has to know of each argument beside its pointer or number (launch.py)."""

from __future__ import annotations

from typing import Any

from nbnorm._counted import Counted, each
from nbnorm._cuda.launch import COUNTED, NUMBER, Kind
from nbnorm._cuda.memory import in_memory

Array = Any
F64: Kind = "float64"


def kind(array: Array | None) -> Kind:
    return None if array is None else in_memory(array.dtype)


def packs(array: Array | None, pack: Kind) -> Kind:
    """The kind of an array, or of a Tangent or a Both of arrays, in packs."""
    return None if array is None else each(lambda _: pack, array) if isinstance(array, tuple) else pack


def kind_of_counted(w: Counted | None) -> Kind:
    return None if w is None else (kind(w.where), kind(w.weights), COUNTED)


def kind_of_number(value: float | None) -> Kind:
    return None if value is None else NUMBER
