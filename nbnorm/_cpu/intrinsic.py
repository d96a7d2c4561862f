"""Intrinsic: Numba's decorator of this name, but for what that does at every use.

Numba's own looks for new definitions of anything each time an intrinsic is called, hundreds of times in a kernel. This
one defines it once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from numba import types
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import lower_builtin

Function = Callable[..., Any]


def intrinsic(define: Function | None = None, *, prefer_literal: bool = False) -> Any:
    """`define(typingctx, *types)` gives a signature and what emits the code, or None where it knows none."""
    if define is None:
        return partial(_known, prefer_literal=prefer_literal)
    return _known(define, prefer_literal)


def _known(define: Function, prefer_literal: bool) -> Function:
    emitters: dict[Any, Function] = {}

    class Intrinsic(AbstractTemplate):
        key = define

        def generic(self, args: Any, kws: Any) -> Any:
            found = define(self.context, *args)
            if found is None:
                return None
            signature, emitters[signature] = found
            return signature

    Intrinsic.prefer_literal = prefer_literal
    infer_global(define, types.Function(Intrinsic))

    @lower_builtin(define, types.VarArg(types.Any))
    def emit(ctx: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emitters[sig](ctx, builder, sig, args)

    define.is_intrinsic = True  # type: ignore[attr-defined]
    return define
