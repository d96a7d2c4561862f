"""Dispatch: which kernels work on an array. The only choice of a backend in the library."""

from __future__ import annotations

import sys
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from nbnorm import _arguments, _device, _needed

_WAY_OUT = {  # by the package of the type, which is not imported for it
    "torch": "pass {0}.detach().numpy()",
    "torch.bfloat16": "pass {0}.detach().float().numpy()",  # of this dtype, which NumPy lacks
    "jax": "pass np.asarray({0}), outside of jax.jit",  # inside there are no values
    "numba": "pass {0}.copy_to_host()",
    "dask": "use nbnorm.parallel.dask, or pass {0}.compute()",
    "pandas": "pass {0}.to_numpy()",
    "polars": "pass {0}.to_numpy()",
    "xarray": "pass .to_numpy() of a DataArray, or see nbnorm.xarray",
    "scipy": "pass {0}.toarray()",  # its sparse matrices
    "cupyx": "pass {0}.toarray()",
    "sparse": "pass {0}.todense()",
}


def kernels_for(name: str, array: Any) -> ModuleType:
    """The backend of `array`, the argument called `name`.

    Raises
    ------
    TypeError
        When no backend knows the type, with the way out.
    ImportError
        When a package that the backend needs is missing, or cannot work with this NumPy: with a line of advice.
    """
    if type(array) is not np.ndarray:
        cupy = sys.modules.get("cupy")
        if cupy is not None and isinstance(array, cupy.ndarray):
            return _cuda()
        _refuse_foreign(name, array)
    return _cpu()


def kernels_on(name: str, array: Any, device: str, owner: str, way_out: str = "an array there") -> ModuleType:
    """The same of an array that has to be on a device, where `owner` is."""
    kernels = kernels_for(name, array)
    _arguments.same_device(name, array, kernels.device(array), device, owner, way_out)
    return kernels


@cache  # an import statement takes a fifth of a microsecond each time
def _cpu() -> ModuleType:
    from nbnorm import _cpu

    return _cpu


@cache
def _cuda() -> ModuleType:
    if problem := _device.compiler_problem():
        raise ImportError(problem)
    with _needed.package("A CuPy array", _device.GPU_PACKAGES):
        from nbnorm import _cuda
    return _cuda


def _refuse_foreign(name: str, array: Any) -> None:
    """Other ndarray subclasses than these two are plain arrays to us."""
    kind = type(array)
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be ignored; pass {name}.filled(value)")
    if isinstance(array, np.matrix):
        raise TypeError(f"{name} is a numpy.matrix; pass np.asarray({name})")
    if not isinstance(array, np.ndarray):
        package = kind.__module__.split(".")[0]
        if package == "torch" and str(getattr(array, "dtype", None)) == "torch.bfloat16":
            package = "torch.bfloat16"
        way_out = _WAY_OUT.get(package, "pass np.asarray({0})")
        if hasattr(array, "__cuda_array_interface__"):
            way_out = "pass cupy.asarray({0})"
        shown = f"{kind.__module__}.{kind.__qualname__}"
        way_out = "" if array is None else f": {way_out.format(name)}"  # nothing makes an array of values of it
        raise TypeError(f"{name} is a {shown}; expected a numpy.ndarray{way_out}")
