"""What _traced.py leaves behind, where kernels call `single_map` and `single_map_of_two`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.core.typing import signature
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import lower_builtin

from nbnorm import _single_map
from nbnorm._traced import Traced, traced

FORMULAS = traced()


def _callable(plain: Callable[..., Any], results: int) -> Callable[..., Any]:
    """Let Numba put what tracing gives where the formula is called, which returns so many float64 numbers."""

    @infer_global(plain)
    class _(AbstractTemplate):
        key = plain

        def generic(self, args, kws):
            return signature(types.UniTuple(types.float64, results), *args)

    @lower_builtin(plain, types.VarArg(types.Any))
    def emit(ctx, builder, sig, args):
        found = FORMULAS[plain.__name__](*(Traced(builder, value) for value in args))
        return ctx.make_tuple(builder, sig.return_type, [one.value for one in found])

    return plain


single_map = _callable(_single_map.single_map, 5)
single_map_of_two = _callable(_single_map.single_map_of_two, 7)
