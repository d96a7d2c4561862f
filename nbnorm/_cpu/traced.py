"""Traced: a formula without branches as LLVM code, which calling it with what stands for numbers leaves behind.

Numba would infer the type of every step: for `single_map` that takes half a second in each kernel, this milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing import signature
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import lower_builtin

from nbnorm import _formulas, _single_map
from nbnorm._cpu.arrays import I64
from nbnorm._cpu.vector import call_fma
from nbnorm._floats import DOUBLE


class Traced:
    """A float64, an int64 or a condition. What it is combined with may be a number of Python."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value

    def _with(self, other: Any, of_floats: str, of_integers: str = "", reflected: bool = False) -> Traced:
        pair = self.value, _value(other, self.value.type)
        emit = getattr(self.builder, of_floats if self.value.type == DOUBLE else of_integers)
        return Traced(self.builder, emit(*(reversed(pair) if reflected else pair)))

    def _compared(self, relation: str, other: Any) -> Traced:
        compare = self.builder.fcmp_ordered if self.value.type == DOUBLE else self.builder.icmp_signed
        return Traced(self.builder, compare(relation, self.value, _value(other, self.value.type)))

    def __add__(self, other: Any) -> Traced:
        return self._with(other, "fadd", "add")

    def __sub__(self, other: Any) -> Traced:
        return self._with(other, "fsub", "sub")

    def __rsub__(self, other: Any) -> Traced:
        return self._with(other, "fsub", "sub", reflected=True)

    def __mul__(self, other: Any) -> Traced:
        return self._with(other, "fmul")

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Traced:
        return self._with(other, "fdiv")

    def __rtruediv__(self, other: Any) -> Traced:
        return self._with(other, "fdiv", reflected=True)

    def __and__(self, other: Any) -> Traced:
        return self._with(other, "", "and_")

    __rand__ = __and__

    def __neg__(self) -> Traced:
        return Traced(self.builder, (self.builder.fneg if self.value.type == DOUBLE else self.builder.neg)(self.value))

    def __abs__(self) -> Traced:
        kind = ir.FunctionType(DOUBLE, [DOUBLE])
        fabs = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.fabs.f64")
        return Traced(self.builder, self.builder.call(fabs, [self.value]))

    def __lt__(self, other: Any) -> Traced:
        return self._compared("<", other)

    def __gt__(self, other: Any) -> Traced:
        return self._compared(">", other)


def _value(number: Any, kind: ir.Type) -> ir.Value:
    return number.value if isinstance(number, Traced) else kind(number)


def _chosen(condition: Traced, a: Any, b: Any) -> Traced:
    kind = next((number.value.type for number in (a, b) if isinstance(number, Traced)), DOUBLE)
    return Traced(condition.builder, condition.builder.select(condition.value, _value(a, kind), _value(b, kind)))


def _fma(a: Traced, b: Traced, c: Traced) -> Traced:
    return Traced(a.builder, call_fma(a.builder, a.value, b.value, c.value))


def _exponent_of(x: Traced) -> Traced:
    builder = x.builder
    bits = builder.and_(builder.lshr(builder.bitcast(x.value, I64), I64(52)), I64(0x7FF))
    return Traced(builder, builder.sub(bits, I64(1023)))


def _power_of_two(exponent: Traced) -> Traced:
    builder = exponent.builder
    return Traced(builder, builder.bitcast(builder.shl(builder.add(exponent.value, I64(1023)), I64(52)), DOUBLE))


# The names that formulas know, as they are to be understood here.
_NAMES: dict[str, Any] = {
    "chosen": _chosen, "fma": _fma, "exponent_of": _exponent_of, "power_of_two": _power_of_two,
}  # fmt: skip


def _here(plain: Any) -> Callable[..., Any]:
    """A formula whose names mean what they mean here."""
    plain = getattr(plain, "py_func", plain)
    return FunctionType(plain.__code__, _NAMES)


_NAMES["two_sum"] = _here(_formulas.two_sum)
for _name in ("smaller_of", "leading_digits", "single_map"):
    _NAMES[_name] = _here(getattr(_single_map, _name))


def traced(plain: Callable[..., Any], results: int) -> Callable[..., Any]:
    """Let Numba put what tracing gives where the formula is called, which returns so many float64 numbers."""

    @infer_global(plain)
    class _(AbstractTemplate):
        key = plain

        def generic(self, args, kws):
            return signature(types.UniTuple(types.float64, results), *args)

    @lower_builtin(plain, types.VarArg(types.Any))
    def emit(ctx, builder, sig, args):
        found = _here(plain)(*(Traced(builder, value) for value in args))
        return ctx.make_tuple(builder, sig.return_type, [one.value for one in found])

    return plain


single_map = traced(_single_map.single_map, 5)
single_map_of_two = traced(_single_map.single_map_of_two, 7)
