"""The .safetensors format, by the package of that name: files of ours, and a layer out of a whole network's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

from numpy.typing import NDArray

from nbnorm import _needed
from nbnorm._npz import Specs

_ABOUT = "nbnorm"
_LONGEST = 1 << 19  # bytes of the header: 4,000 arrays or more; the package itself would read 100 MB
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
_DTYPES |= {
    f"{code}{bits}": f"{name}{bits}" for code, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)
}


def write(arrays: dict[str, NDArray], about: str) -> bytes:
    """The file, for `safetensors` in any language: PyTorch's names, and our description in the metadata."""
    return _package().numpy.save(arrays, metadata={_ABOUT: about})


@contextmanager
def opened(path: str, prefix: str) -> Iterator[tuple[str | None, Specs, Callable[[str], NDArray]]]:
    """The description, if any, what arrays there are under the prefix, and a function that reads one of them."""
    package = _package()
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _LONGEST:
        raise ValueError(f"has a header of {length} bytes; expected at most {_LONGEST}")
    with package.safe_open(path, framework="np") as file:
        names = file.keys()
        places = {name.removeprefix(prefix): file.get_slice(name) for name in names if name.startswith(prefix)}
        specs: Specs = {
            name: (_DTYPES.get(place.get_dtype(), place.get_dtype()), tuple(place.get_shape()))
            for name, place in places.items()
        }

        def read(name: str) -> NDArray:
            if specs[name][0] == "bfloat16":
                with _needed.package("bfloat16", "pip install ml_dtypes"):  # the other package's error is hard to read
                    import ml_dtypes  # noqa: F401
            return file.get_tensor(prefix + name)

        yield None if prefix else (file.metadata() or {}).get(_ABOUT), specs, read


def _package() -> ModuleType:
    with _needed.package("A .safetensors file", "pip install safetensors"):
        import safetensors.numpy
    return safetensors
