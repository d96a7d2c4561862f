"""State files: what they hold, how they are written and what is refused. Nothing in a file is ever executed.

A file holds the arrays of `BatchNormState.state_dict`, every counter and a description: the version of the format and
the arguments of the constructor. The description says which arrays there are, of which dtype and shape; all else is
refused before any of them is read.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import prod
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbnorm import _arguments, _device, _npz, _options, _safetensors
from nbnorm._content import COUNTERS, NAMES, SKIPPED_BATCHES, shape_of
from nbnorm._foreign import counts_of_values
from nbnorm._npz import Specs
from nbnorm._state_dict import unknown_names

Path = str | os.PathLike[str]

_VERSION = 2  # 1 had neither unbiased nor skip_nonfinite
_FORMATS = {".npz": _npz, ".safetensors": _safetensors}
_NAMES = (*NAMES.values(), *COUNTERS)
_OPTIONAL = (COUNTERS[1], SKIPPED_BATCHES)  # unknown; what version 1 did not have
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))


class StateFileError(ValueError):
    """A state file that is damaged, hostile or of another kind. The message has its path and the reason.

    Examples
    --------
    >>> import nbnorm, tempfile
    >>> with tempfile.NamedTemporaryFile(suffix=".npz") as file:
    ...     try:
    ...         nbnorm.BatchNormState.load(file.name)
    ...     except nbnorm.StateFileError as error:
    ...         print(str(error).removeprefix(file.name))
    : is too short for a zip file
    """


def save(path: Path, arrays: dict[str, NDArray], arguments: dict[str, Any]) -> None:
    """Write a file that `read` reads, of arrays of any device, or leave everything as it is.

    Raises
    ------
    ValueError
        When the suffix is unknown, or a value is one that `read` would refuse.
    OSError
        Of `path`, when it cannot be written.
    """
    form = _format(path)
    arrays = {name: _device.host(array) for name, array in arrays.items()}
    _check_values(arrays)
    data = form.write(arrays, json.dumps({"version": _VERSION, **arguments}))
    # A link stays a link: what it points to is replaced.
    try:
        _replace(os.path.realpath(path), data)
    except OSError as error:  # which names no file, or the temporary one
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def read(
    path: Path, prefix: str, num_features: int | tuple[int, ...] | None
) -> tuple[dict[str, NDArray], dict[str, Any] | None]:
    """The arrays by PyTorch's names, and the arguments of the constructor; None for a file of another library."""
    with _format(path).opened(os.fspath(path), prefix) as (about, specs, array):
        arguments = None if about is None else _arguments_of(about)
        if arguments is None:
            _check_layer(specs, prefix, num_features)
        else:
            _check_own(specs, arguments)
        arrays = {name: array(name) for name in specs}
    _check_values(arrays)
    if arguments is not None and num_features not in (None, arguments["num_features"]):
        raise ValueError(f"has num_features={arguments['num_features']!s:.30}, not {num_features!s:.30}")
    return arrays, arguments


@contextmanager
def refusing(path: Path, prefix: str) -> Iterator[None]:
    """Whatever is wrong with the content of a file becomes a `StateFileError`; a wrong argument does not.

    Raises
    ------
    ValueError
        When the suffix is unknown, or there is a prefix for an .npz file.
    """
    if prefix and _format(path) is _npz:
        raise ValueError(
            f"prefix is {prefix!r:.40}; an .npz file of save has one state, without prefix "
            "(from_state_dict(numpy.load(path), prefix) reads another one)"
        )
    _format(path)
    try:
        yield
    except (OSError, MemoryError, ImportError):
        raise
    except Exception as cause:  # the parsers of zip, JSON and safetensors raise a dozen kinds
        shown = os.fspath(path)
        shown = shown if len(shown) <= 90 else "..." + shown[-87:]
        raise StateFileError(f"{shown}: {cause!s:.100}") from cause


def refuse_beside(given: dict[str, Any]) -> None:
    """No argument is given beside a file that `save` wrote, which says it itself.

    Raises
    ------
    ValueError
    """
    for name, value in given.items():
        raise ValueError(
            f"{name} is {_arguments.short(value)}, but the file is one of save, which has its own; leave it out "
            "(state.eps and state.momentum can be assigned)"
        )


def _format(path: Path) -> ModuleType:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path is a {type(path).__qualname__}; expected a str or an os.PathLike")
    suffix = os.path.splitext(os.fspath(path))[1]
    if suffix not in _FORMATS:
        raise ValueError(f"path is {os.fspath(path)[-60:]!r}; expected a name that ends in {' or '.join(_FORMATS)}")
    return _FORMATS[suffix]


def _arguments_of(about: str | bytes) -> dict[str, Any]:
    """The description as arguments of the constructor, checked: no number of features costs memory yet."""
    found = json.loads(about)
    version = found.pop("version", None) if isinstance(found, dict) else None
    if version not in range(1, _VERSION + 1):
        raise ValueError(f"has version {version!r:.20} of the format; this version of nbnorm reads 1 to {_VERSION}")
    if version == 1:
        found = {"unbiased": True, "skip_nonfinite": False} | found
    flags = ("use_gamma", "use_beta", "track_running", "unbiased", "skip_nonfinite")
    if set(found) != {"num_features", "eps", "momentum", "dtype", *flags}:
        raise ValueError(f"describes its state by {', '.join(sorted(found))[:60]}")
    if not all(isinstance(found[flag], bool) for flag in flags) or found["dtype"] not in ("float32", "float64"):
        raise ValueError("describes a state that cannot be")
    features = found["num_features"]
    found["num_features"] = _options.num_features(tuple(features) if isinstance(features, list) else features)
    found["eps"], found["momentum"] = _options.eps(found["eps"]), _options.momentum(found["momentum"])
    return found


def _check_own(specs: Specs, arguments: dict[str, Any]) -> None:
    """Exactly the arrays that the state has, each of its dtype and shape."""
    shape = shape_of(arguments["num_features"])
    has = [arguments["use_gamma"], arguments["use_beta"], *[arguments["track_running"]] * 5]
    dtypes = [arguments["dtype"]] * 2 + ["float64"] * 2 + ["int64"] * 3
    shapes, names = [shape] * 4 + [()] * 3, (*_NAMES, SKIPPED_BATCHES)
    expected = {name: (dtype, shape) for name, there, dtype, shape in zip(names, has, dtypes, shapes) if there}
    for name in sorted(expected.keys() ^ specs.keys()):
        if name not in expected or name not in _OPTIONAL:
            raise ValueError(f"{'lacks' if name in expected else 'has an unknown'} array {name!r:.40}")
    for name, spec in specs.items():
        if expected[name] != spec and not (name == COUNTERS[1] and spec == ("float64", shape)):  # one of each channel
            raise ValueError(f"has {name} of {_shown(spec)}; expected {_shown(expected[name])}")


def _check_layer(specs: Specs, prefix: str, num_features: int | tuple[int, ...] | None) -> None:
    """The arrays of one batch normalization of PyTorch: other layers have other names or shapes."""
    counters = (*COUNTERS, SKIPPED_BATCHES)
    unknown = specs.keys() - {*_NAMES, SKIPPED_BATCHES}
    if unknown:
        raise ValueError(f"has {unknown_names(unknown, prefix)}")
    shapes = {shape for name, (_, shape) in specs.items() if name not in counters}
    if len(shapes) != 1:
        raise ValueError(f"has {'arrays of several shapes' if shapes else 'no arrays'} under the prefix")
    shape = shapes.pop()
    if num_features is None and len(shape) != 1:
        raise ValueError(f"has arrays of shape {shape!s:.24}; expected one dimension, or say num_features=")
    for name, spec in specs.items():
        each = name == COUNTERS[1] and spec == ("float64", shape)
        if name in counters and not each and (prod(spec[1]) != 1 or spec[0] not in (*_INTEGERS, *_FLOATS)):
            raise ValueError(f"has {name} of {_shown(spec)}; expected one whole number")
        if name not in counters and spec[0] not in _FLOATS:
            raise ValueError(f"has {name} of {_shown(spec)}; expected {', '.join(_FLOATS)}")


def _shown(spec: tuple[str, tuple[int, ...]]) -> str:
    return f"{spec[0]:.12} {spec[1]!s:.24}"


def _check_values(arrays: dict[str, NDArray]) -> None:
    """Numbers that a state can work with."""
    for name, array in arrays.items():
        if name in (*COUNTERS, SKIPPED_BATCHES):
            counts_of_values(name, array, array.shape if name == COUNTERS[1] and array.ndim else None)
        elif not np.isfinite(array).all() or (name == "running_var" and np.any(array < 0)):
            raise ValueError(f"{name} has NaN, infinite or negative values, which no state file may have")


def _replace(target: str, data: bytes) -> None:
    """Put a file in the place of another one, or of none, at one moment: nobody sees half of it."""
    directory = os.path.dirname(target)
    temporary = os.path.join(directory, f".nbnorm-{os.urandom(8).hex()}.tmp")
    file = open(temporary, "xb")  # noqa: SIM115  what has not been created must not be removed
    try:
        with file:
            with suppress(FileNotFoundError, PermissionError):
                os.chmod(temporary, stat.S_IMODE(os.stat(target).st_mode))  # what is private stays so
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    with suppress(OSError):  # Windows cannot open directories
        entry = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(entry)
        finally:
            os.close(entry)
