"""How what only kernels call is compiled: its LLVM code is optimized as a part of each kernel, together with what it is
inlined into, and it has no machine code of its own.

Numba's default does both for each routine too, once more for each level of calls, a twelfth of a first call.
"""

from __future__ import annotations

from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase

from nbnorm._cpu.frontend import passes


class _Codegen:
    """Numba's, but for the place of a routine's Python objects, which machine code would look for."""

    def __init__(self, numbas: Any) -> None:
        self._numbas = numbas

    def __getattr__(self, name: str) -> Any:
        return getattr(self._numbas, name)

    def set_env(self, name: str, env: Any) -> None:
        pass


class Part(JITCodeLibrary):
    """LLVM code that waits to be linked. The names are Numba's own: one that a later Numba does not call costs time.

    Numba's passes over each function stay: without them maps of columns took three times as long.
    """

    @property
    def codegen(self) -> Any:
        return _Codegen(self._codegen)

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        return 0


class PartCompiler(CompilerBase):
    """Numba's passes, which end in a Part."""

    def define_pipelines(self) -> list:
        state = self.state
        state.library = Part(state.targetctx.codegen(), state.func_id.func_qualname)
        return passes(state)
