"""Attributes and keywords that do not exist: no assignment makes one, and the error names what was meant."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar, cast

_Kind = TypeVar("_Kind", bound=type)
_Function = TypeVar("_Function", bound=Callable[..., Any])

_ARRAYS = {  # other libraries' names
    "gamma": ("weight", "scale", "kernel"),
    "beta": ("bias", "offset", "center"),
    "running_mean": ("moving_mean", "mean"),
    "running_var": ("moving_variance", "moving_var", "running_variance", "variance", "var"),
    "eps": ("epsilon",),
    "num_batches": ("num_batches_tracked",),
    "num_features": ("num_channels",),
}
OF_STATE = {
    **{foreign: f"its name is {name}" for name, names in _ARRAYS.items() for foreign in names},
    "forward": "use batch_norm_training(x, state)",
    "parameters": "they are gamma and beta",
    "affine": "gamma and beta are None where there are none",
    "track_running_stats": "running_mean is None where there is none",
    "reset_running_stats": "its name is reset_running",
}
OF_LAYER = {
    **{foreign: f"it is state.{name}" for name, names in _ARRAYS.items() for foreign in (name, *names)},
    **{name: f"it is state.{name}" for name in ("momentum", "num_samples", "dtype", "device", "reset_running")},
    "forward": "call the layer itself, bn(x)",
    "parameters": "they are state.gamma and state.beta",
    "affine": "state.gamma and state.beta are None where there are none",
    "track_running_stats": "state.running_mean is None where there is none",
    "reset_running_stats": "it is state.reset_running",
    "trainable": "frozen=True keeps the running statistics",
    "load_state_dict": "use BatchNorm.from_state(BatchNormState.from_state_dict(...))",
}
FIXED_OF_STATE = {  # attributes that can only be read
    "device": "state.to(device) gives a copy there",
    "dtype": "make it with dtype=",
    "num_features": "make it with num_features=",
    "shape": "make it with num_features=",
    "unbiased": "running_var is of the variances that it has seen; make it with unbiased=",
    "num_skipped": "reset_running() makes it 0",
}
_SWITCHES = "bn.train() and bn.eval() say whether a call uses the batch"
OF_EXCHANGE = {"epsilon": "it is eps= here"}  # keywords, of functions and of constructors
OF_CONSTRUCTORS = {
    **OF_EXCHANGE,
    "decay": "it is momentum=1 - decay here, the weight of the new batch",
    "affine": "it is use_gamma= and use_beta= here",
    "track_running_stats": "it is track_running= here",
    **dict.fromkeys(("scale", "use_scale"), "it is use_gamma= here"),
    **dict.fromkeys(("center", "use_bias", "bias"), "it is use_beta= here"),
    "num_channels": "it is num_features here",
    "data_format": "channels last are axis=-1 of a layer or a call",
}
OF_CONSTRUCTOR_OF_LAYER = {
    **OF_CONSTRUCTORS,
    **dict.fromkeys(("training", "use_running_average"), _SWITCHES),
    "trainable": "bn.frozen = True keeps the running statistics",
}
OF_CALL = {
    "training": _SWITCHES,
    "mask": "it is where= here, True where a value counts",
    **dict.fromkeys(
        ("use_running_average", "use_running"), "bn.eval() uses the running statistics, bn.frozen = True too"
    ),
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


def refuse_fixed(instance: object, name: str, fixed: Mapping[str, str]) -> None:
    """Raise, where the attribute is one of these and has no setter; that of a subclass may have one.

    Raises
    ------
    AttributeError
    """
    if name in fixed and getattr(getattr(type(instance), name), "fset", name) is None:
        raise AttributeError(f"{name} of a state cannot be set; {fixed[name]}")


def missing(kind: type, name: str, known: Mapping[str, str]) -> AttributeError:
    """The error for an attribute that there is not."""
    own = [own for own in (*dir(kind), *kind.__annotations__) if not (own.startswith("_") or own in known)]
    return AttributeError(f"a {kind.__name__} has no attribute {name!r:.40}{_way_out(name, known, own)}")


def asked(known: Mapping[str, str]) -> Callable[[_Function], _Function]:
    """A function that says what was meant by a keyword that it does not take."""

    def decorate(function: _Function) -> _Function:
        own = inspect.signature(function).parameters

        @wraps(function)
        def checked(*args: Any, **given: Any) -> Any:
            if not own.keys() >= given.keys():
                raise unexpected(function, given, known)
            return function(*args, **given)

        return cast(_Function, checked)

    return decorate


def closed(function: _Function) -> _Function:
    """The same for a call that is too short for a wrapper: its ``**unknown: Never`` is there for `unexpected` alone,
    and its signature is shown without."""
    shown = inspect.signature(function)
    taken = [one for one in shown.parameters.values() if one.kind is not one.VAR_KEYWORD]
    setattr(function, "__signature__", shown.replace(parameters=taken))  # noqa: B010  mypy knows no such attribute
    return function


def unexpected(function: Callable[..., Any], given: Mapping[str, object], known: Mapping[str, str]) -> TypeError:
    """The error for the first keyword that there is not: Python's, and what is meant."""
    own = [name for name in inspect.signature(function).parameters if name != "self"]
    name = next(name for name in given if name not in own)
    got = f"{function.__qualname__}() got an unexpected keyword argument {name!r:.40}"
    return TypeError(got + _way_out(name, known, own))


def _way_out(name: str, known: Mapping[str, str], own: list[str]) -> str:
    """What was meant, if that can be said."""
    if name in known:
        return f"; {known[name]}"
    if name.startswith("_"):
        return ""
    from difflib import get_close_matches

    return next((f"; there is {match}" for match in get_close_matches(name, own, 1)), "")
