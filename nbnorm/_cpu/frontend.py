"""From Python to types: Numba's passes for kernels and for what they call, without those that find nothing to do there,
with what operators on numbers return remembered, and with room for Python's frames: a fifth of a first call.

So a kernel has no comprehensions and no expressions of whole arrays.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from numba.core import types
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import PassManager

IDLE = "inline_closure_likes", "nopython_rewrites"  # Numba's names
OPERATORS = {bool, *(function for name, function in vars(operator).items() if not name.startswith("_"))}
NUMBERS = types.Number, types.Boolean

_signatures: dict[tuple[types.Function, tuple[Any, ...]], Any] = {}


class _Typing:
    """Numba's, which asks a dozen templates for each operator, and again wherever it occurs."""

    def __init__(self, numbas: Any) -> None:
        self._numbas = numbas

    def __getattr__(self, name: str) -> Any:
        return getattr(self._numbas, name)

    def resolve_function_type(self, function: Any, args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
        is_operator = isinstance(function, types.Function) and function.typing_key in OPERATORS
        if kws or not is_operator or not all(isinstance(a, NUMBERS) for a in args):
            return self._numbas.resolve_function_type(function, args, kws)
        found = _signatures.get((function, args))
        if found is None:
            found = _signatures[function, args] = self._numbas.resolve_function_type(function, args, kws)
        return found


def passes(state: Any) -> list[PassManager]:
    """Those of a compilation, which is told to remember."""
    state.typingctx = _Typing(state.typingctx)
    numbas = DefaultPassBuilder.define_nopython_pipeline(state)
    ours = PassManager(numbas.pipeline_name)
    for one, description in numbas.passes:
        if one.name() not in IDLE:
            ours.add_pass(one, description)
    ours.finalize()
    return [ours]


def _with_room(function: Callable[..., Any], *args: Any) -> Any:
    """The same, on a stack of a megabyte.

    CPython gets memory for the frames of Python functions 16 KiB at a time and gives it back at once: where a loop of
    Numba's calls across such a border, each call asks the system twice, which took up to a fifth of a first call.
    """
    return function(*args)


_with_room.__code__ = _with_room.__code__.replace(co_stacksize=140_000)  # numbers of 8 bytes: more than one MiB, so two


class KernelCompiler(CompilerBase):
    """Of what is called from Python."""

    def compile_extra(self, func: Any) -> Any:
        return _with_room(super().compile_extra, func)

    def define_pipelines(self) -> list:
        return passes(self.state)
