"""Attributes that do not exist: no assignment makes one, and the error names what was meant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

_Kind = TypeVar("_Kind", bound=type)

_ARRAYS = {  # other libraries' names
    "gamma": ("weight", "scale", "kernel"),
    "beta": ("bias", "offset", "center"),
    "running_mean": ("moving_mean", "mean"),
    "running_var": ("moving_variance", "moving_var", "running_variance", "variance", "var"),
    "eps": ("epsilon",),
    "num_batches": ("num_batches_tracked",),
    "num_features": ("num_channels",),
}
OF_STATE = {foreign: f"its name is {name}" for name, names in _ARRAYS.items() for foreign in names}
OF_LAYER = {
    **{foreign: f"it is state.{name}" for name, names in _ARRAYS.items() for foreign in (name, *names)},
    **{name: f"it is state.{name}" for name in ("momentum", "num_samples", "dtype", "device")},
    "trainable": "frozen=True keeps the running statistics",
    "load_state_dict": "use BatchNorm.from_state(BatchNormState.from_state_dict(...))",
}


class _Refused(property):
    """A name that is not there."""


def pointing(known: Mapping[str, str]) -> Callable[[_Kind], _Kind]:
    """A class whose instances say where these are when they are read.

    By a property each: `__getattr__` would make every other attribute slower to read. `dir` leaves them out.
    """

    def names(instance: Any) -> list[str]:
        of_kind = type(instance)
        return [name for name in object.__dir__(instance) if not isinstance(getattr(of_kind, name, None), _Refused)]

    def decorate(kind: _Kind) -> _Kind:
        for name in known:
            setattr(kind, name, _Refused(_refusal(kind, name, known), doc=f"No attribute: {known[name]}."))
        setattr(kind, "__dir__", names)  # noqa: B010  mypy lets no method be assigned
        return kind

    return decorate


def _refusal(kind: type, name: str, known: Mapping[str, str]) -> Callable[[Any], None]:
    def refuse(instance: Any) -> None:
        raise missing(kind, name, known)

    return refuse


def refuse_new(instance: object, kind: type, name: str, known: Mapping[str, str]) -> None:
    """Raise, unless `kind` has the attribute; subclasses may have more, but none of a name that is `known`.

    Raises
    ------
    AttributeError
    """
    is_own = name.startswith("_") or hasattr(kind, name) or name in kind.__annotations__
    if name in known or not (is_own or type(instance) is not kind):
        raise missing(kind, name, known)


def missing(kind: type, name: str, known: Mapping[str, str]) -> AttributeError:
    """The error for an attribute that there is not."""
    way_out = known.get(name)
    if way_out is None and not name.startswith("_"):
        from difflib import get_close_matches

        own = [own for own in (*dir(kind), *kind.__annotations__) if not (own.startswith("_") or own in known)]
        way_out = next((f"there is {match}" for match in get_close_matches(name, own, 1)), None)
    return AttributeError(f"a {kind.__name__} has no attribute {name!r:.40}" + (f"; {way_out}" if way_out else ""))
