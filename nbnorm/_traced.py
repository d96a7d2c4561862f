"""Traced: a formula without branches as LLVM code, which calling it with what stands for numbers leaves behind.

Numba would infer the type of every step: for `single_map` that takes half a second in each kernel, this milliseconds.
_cpu/traced.py and _cuda/intrinsics_single.py let kernels call what is traced.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from llvmlite import ir

from nbnorm import _single_map
from nbnorm._floats import DOUBLE, I64, call_fma


class Traced:
    """A float64, an int64 or a condition. What it is combined with may be a number of Python."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value

    def _with(self, other: Any, of_floats: str, of_integers: str = "", reflected: bool = False) -> Traced:
        pair = self.value, value_of(other, self.value.type)
        emit = getattr(self.builder, of_floats if self.value.type == DOUBLE else of_integers)
        return Traced(self.builder, emit(*(reversed(pair) if reflected else pair)))

    def _compared(self, relation: str, other: Any) -> Traced:
        compare = self.builder.fcmp_ordered if self.value.type == DOUBLE else self.builder.icmp_signed
        return Traced(self.builder, compare(relation, self.value, value_of(other, self.value.type)))

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
        if self.value.type == DOUBLE:  # NVIDIA's LLVM is too old for fneg
            return Traced(self.builder, self.builder.fsub(DOUBLE(-0.0), self.value))
        return Traced(self.builder, self.builder.neg(self.value))

    def __abs__(self) -> Traced:
        bits = self.builder.and_(self.builder.bitcast(self.value, I64), I64(2**63 - 1))  # which knows no fabs either
        return Traced(self.builder, self.builder.bitcast(bits, DOUBLE))

    def __lt__(self, other: Any) -> Traced:
        return self._compared("<", other)

    def __gt__(self, other: Any) -> Traced:
        return self._compared(">", other)


def value_of(number: Any, kind: ir.Type) -> ir.Value:
    """Of what a formula combines: Traced, or a number of Python."""
    return number.value if isinstance(number, Traced) else kind(number)


def _chosen(condition: Traced, a: Any, b: Any) -> Traced:
    kind = next((number.value.type for number in (a, b) if isinstance(number, Traced)), DOUBLE)
    return Traced(condition.builder, condition.builder.select(condition.value, value_of(a, kind), value_of(b, kind)))


def _fma(a: Traced, b: Traced, c: Any) -> Traced:
    return Traced(a.builder, call_fma(a.builder, a.value, b.value, value_of(c, DOUBLE)))


def _exponent_of(x: Traced) -> Traced:
    builder = x.builder
    bits = builder.and_(builder.lshr(builder.bitcast(x.value, I64), I64(52)), I64(0x7FF))
    return Traced(builder, builder.sub(bits, I64(1023)))


def _power_of_two(exponent: Traced) -> Traced:
    builder = exponent.builder
    return Traced(builder, builder.bitcast(builder.shl(builder.add(exponent.value, I64(1023)), I64(52)), DOUBLE))


def traced(**instead: Callable[..., Any]) -> dict[str, Any]:
    """The formulas of _single_map.py by their names, for arguments that are Traced; `instead` has what a compiler needs
    in the place of one of them."""
    names: dict[str, Any] = {
        "chosen": _chosen, "fma": _fma, "exponent_of": _exponent_of, "power_of_two": _power_of_two,
    }  # fmt: skip
    for plain in (
        _single_map.leading_digits, _single_map.smaller_of, _single_map.quotient, _single_map.single_map,
        _single_map.single_map_of_two,
    ):  # fmt: skip
        plain = getattr(plain, "py_func", plain)
        names[plain.__name__] = FunctionType(plain.__code__, names)  # what it calls is looked up here
    names.update(instead)
    return names
