"""Maps for float32 arithmetic (docs/math.md, Eq. 19 and 42): their coefficients, from float64 numbers.

The functions without a decorator are Python's and work on float64 numbers only; kernels have them through
_cpu/traced.py and _cuda/intrinsics_single.py. They choose instead of branching, so that LLVM takes several channels at
a time.
"""

from __future__ import annotations

import math

from nbnorm._formulas import fma, formula


def exponent_of(x: float) -> int:
    """Of the largest power of two that is no larger than abs(x): -1023 for 0, 1024 for what is not finite."""
    return 1024 if not math.isfinite(x) else math.frexp(x)[1] - 1 if x else -1023


def power_of_two(exponent: int) -> float:
    """For exponents of float32 numbers."""
    return math.ldexp(1.0, exponent)


def single_map(k, scale, shift, varies):
    """Eq. 19: power, offset, factor, what that lost, and rest of y = factor*w + (lost*w + rest), w = power*x + offset,
    for float32 arithmetic.

    For float64 numbers only; the five are to be stored as float32, whose exponents are -149 to 127. Where the root is
    beyond all x, or the channel constant (`varies` false), offset is -power*k and rest shift, plus what rounding left.
    """
    largest = 119 - exponent_of(k)  # so that neither power*k nor offset overflows
    exponent = smaller_of(smaller_of(exponent_of(scale), largest), 126)
    exponent = chosen(exponent > -149, exponent, -149)
    power, factor = power_of_two(exponent), scale * power_of_two(-exponent)
    # Where that is larger, nothing is finite but the root: eps is below 1e-70 then, or gamma beyond float32.
    factor = chosen(factor > 2.0**127, 2.0**127, chosen(factor < -(2.0**127), -(2.0**127), factor))
    vanishes = abs(factor) < 2.0**-126  # no x is so large that its share of y would be a number
    has_root = varies & (abs(shift) < 2.0**126 * abs(factor))
    of_root = quotient(shift, chosen(vanishes, 1.0, factor))
    offset = leading_digits(chosen(has_root, of_root, 0.0) - power * k)
    # However exact these are: what they leave of y at k.
    rest = fma(-factor, fma(power, k, offset), shift)
    # Below the factor, so that what it lost is not 0 and has its sign: an infinite w stays infinite.
    high = leading_digits(factor * (1 - 2.0**-24))
    return (
        chosen(vanishes, 0.0, power),
        chosen(vanishes, 0.0, offset),
        chosen(vanishes, 0.0, high),
        chosen(vanishes, 0.0, factor - high),
        chosen(vanishes, shift - scale * k, rest),
    )


def single_map_of_two(h, a, k, scale, shift):
    """Eq. 42: power, offset and factor of dy, the same of x, and the rest that both leave, for float32 arithmetic.

    dx is factor*v of dy, v = power*dy + offset, and factor*w + rest of x, w = power*x + offset; factors are to be
    rounded to nearest, so `lost` is none.
    """
    power_of_dy, offset_of_dy, of_dy, lost_of_dy, rest_of_dy = single_map(h, a, 0.0, True)
    power, offset, of_x, lost, rest = single_map(k, scale, shift, True)
    return power_of_dy, offset_of_dy, of_dy + lost_of_dy, power, offset, of_x + lost, rest + rest_of_dy


def chosen(condition, a, b):
    """One of two that are both there: without a branch LLVM takes several channels at a time."""
    return a if condition else b


def smaller_of(a, b):
    return chosen(a < b, a, b)


def quotient(a, b):
    """On a GPU within 2**-40."""
    return a / b


@formula
def leading_digits(a):
    """24 of 53 bits (Veltkamp)."""
    shifted = a * (2.0**29 + 1)
    return shifted - (shifted - a)


@formula
def affine_in_single(w, factor, lost, rest):
    """Eq. 19: the same in float32, w = power*x + offset."""
    return fma(w, factor, fma(w, lost, rest))
