"""How far a result may be from the oracle: the contract of docs/numerics.md, as formulas."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import reference

try:
    from ml_dtypes import bfloat16
except ImportError:  # what needs it is skipped, loudly
    bfloat16 = None


class Format(NamedTuple):
    bits: int  # of the significand, with the hidden one
    smallest: int  # exponent of the smallest subnormal number
    overflow: int  # exponent of the first power of two that is too large


FORMATS = {
    "float16": Format(11, -24, 16),
    "bfloat16": Format(8, -133, 128),
    "float32": Format(24, -149, 128),
    "float64": Format(53, -1074, 1024),
}


def dtype_of(name):
    return np.dtype(bfloat16 if name == "bfloat16" else name)


needs_bfloat16 = pytest.mark.skipif(bfloat16 is None, reason="NO bfloat16 TESTS: ml_dtypes is not installed")
needs_wide = pytest.mark.skipif(
    not reference.WIDER_THAN_FLOAT64, reason="NO float64 ORACLE: longdouble is float64 on this platform"
)
DTYPES = [
    "float16",
    pytest.param("bfloat16", marks=needs_bfloat16),
    "float32",
    pytest.param("float64", marks=needs_wide),
]
OTHER_DTYPES = [dtype for dtype in DTYPES if dtype != "float32"]


def float32_by_default(instead, dtypes=DTYPES):
    """The others with --exhaustive (tests/selection.py), since every dtype has kernels of its own to compile."""
    marks = [getattr(dtype, "marks", ()) for dtype in dtypes]
    names = [getattr(dtype, "values", [dtype])[0] for dtype in dtypes]
    return [
        pytest.param(name, marks=mark if name == "float32" else (*mark, pytest.mark.exhaustive(instead)))
        for name, mark in zip(names, marks, strict=True)
    ]


class Tolerance(NamedTuple):
    ulps: int  # of the exact result, rounded once to the type
    of_largest: float  # share of the largest magnitude in the channel


def tolerance(dtype, count):
    """Of y, and of a dx that is computed in float64, for x of this dtype with `count` values a channel.

    float16, bfloat16, float32: 2 ulp of the exact result rounded once, plus 2**-44 of the channel's largest
    result. One rounding to the type is half an ulp; the rest of the arithmetic is in float64 (y in float32, with
    1.5 ulp of that in all: tests/test_single_map.py). Its errors, some 2**-53 of the largest term, do not shrink
    where terms cancel (y near 0), and sums of up to 10**7 values add a few bits: 2**-44 leaves 9 bits for both,
    and is below a float32 ulp wherever y is not near 0.

    float64: 16 units of 2**-53 of the channel's largest result, for a mean of up to 10**8 standard
    deviations: the arithmetic is that of the type itself, so a dozen roundings of the largest term show.
    """
    assert 0 <= count <= 10**7, "the contract speaks of up to 10**7 values a channel"
    return Tolerance(0, 16 * 2.0**-53) if dtype_of(dtype) == np.float64 else Tolerance(2, 2.0**-44)


def ulp(exact, bits, smallest=-16000):
    """Unit in the last place of a number format with so many bits, at each value."""
    _, exponent = np.frexp(exact)
    return np.ldexp(reference.Wide(1), np.where(exact == 0, smallest, np.maximum(exponent - bits, smallest)))


def rounded(exact, dtype):
    """To nearest even, by exact scaling: no conversion function is trusted. Overflow gives 2**overflow."""
    form = FORMATS[dtype]
    unit = ulp(exact, form.bits, form.smallest)
    limit = np.ldexp(reference.Wide(1), form.overflow)
    return np.clip(np.rint(exact / unit) * unit, -limit, limit)


def assert_close(actual, exact, axis=1, terms=None):
    """y or dx is as near to the exact result as its dtype promises.

    A dx of 16 or 32 bits, of a batch all of whose values count, is computed in float32: each of the `terms` it is a sum
    of is there within 2**-22 of its size (docs/math.md, Eq. 42: four roundings to 24 bits, and five units of 2**-149),
    beside 2**-44 of the largest for what is computed in float64. Rounded to 16 bits it is half an ulp further from the
    exact result, which is half an ulp from what it is compared with.
    """
    dtype, exact = actual.dtype.name, np.asarray(exact)
    assert actual.shape == exact.shape
    of_sum = terms is not None and dtype != "float64"
    sizes = reference.by_channel(terms, axis) if of_sum else None
    values, largest = reference.by_channel(exact, axis), np.ldexp(reference.Wide(1), FORMATS[dtype].overflow)
    is_wide = dtype == "float64" or (of_sum and dtype == "float32")
    target = values if is_wide else rounded(values, dtype)
    found = np.clip(reference.by_channel(actual, axis), -largest, largest)
    _assert_within(found, target, _limit(dtype, target, _largest(values), sizes))


def assert_both_close(found, expected, axis=1, terms=None):
    """Two results for one exact y or dx, from sums in another order: each as near to it as `assert_close` asks."""
    assert found.dtype == expected.dtype
    values = reference.by_channel(expected, axis)
    sizes = None if terms is None else reference.by_channel(terms, axis)
    limit = _limit(expected.dtype.name, values, _largest(values), sizes)
    _assert_within(reference.by_channel(found, axis), values, 2 * limit)


def _limit(dtype, exact, largest, sizes):
    """What `assert_close` allows, for values by channel; `sizes` are those of the terms, None for what is no sum."""
    form, allowed = FORMATS[dtype], tolerance(dtype, exact.shape[-1])
    if sizes is None or dtype == "float64":
        return allowed.ulps * ulp(exact, form.bits, form.smallest) + allowed.of_largest * largest
    limit = 2.0**-22 * sizes + 2.0**-44 * _largest(sizes) + 5 * 2.0**-149
    return limit if dtype == "float32" else limit + ulp(exact, form.bits, form.smallest)


def _largest(values):
    return np.abs(values).max(-1, keepdims=True, initial=0)


def assert_parts_close(parts, whole):
    """Parameter gradients of shards in float32, which add up to those of the whole: all of them are within an ulp,
    at most 2**-23 of their size, and each addition rounds by half as much.
    """
    sizes = sum(np.abs(reference.wide(part)) for part in parts)
    limit = 2.0**-23 * (len(parts) * sizes + np.abs(reference.wide(whole)))
    _assert_within(reference.wide(sum(parts)), reference.wide(whole), limit)


def assert_stat_close(actual, exact):
    """Statistics and parameter gradients: within 1 float32 ulp of the exact value, of any magnitude.

    They are float64 sums of up to 10**7 terms. What those lose, some 2**-45 of the sum of magnitudes, is
    2**20 times less than a float32 ulp of the result unless the terms cancel to a millionth.
    In a float32 array the result is rounded once more, half an ulp, and has no digits below 2**-149.
    """
    actual = np.asarray(actual)
    smallest = FORMATS["float32"].smallest if actual.dtype == np.float32 else -16000
    _assert_within(reference.wide(actual), reference.wide(exact), ulp(exact, 24, smallest))


def assert_gradient_close(actual, exact, scale):
    """Gradients of float64 data: 1e-12 relative to `scale`, the size of the terms of which they are sums.

    Float64 arithmetic gives a few dozen times 2**-53 of the terms (an error of the complex step as much as of
    nbnorm's); 1e-12 is 9007 times 2**-53. Relative to dx itself no float64 formula can promise this: with two
    values a channel, dx is eps/var of its terms.
    """
    _assert_within(reference.wide(actual), reference.wide(exact), 1e-12 * np.broadcast_to(scale, np.shape(exact)))


def _assert_within(found, target, limit):
    assert found.shape == target.shape
    if not found.size:
        return
    error = np.abs(found - target)
    inside = error <= limit  # False for NaN
    if not inside.all():
        ratio = error / np.maximum(limit, np.finfo(reference.Wide).tiny)
        i = np.unravel_index(np.argmax(np.where(inside, -1, ratio)), inside.shape)
        raise AssertionError(
            f"{(~inside).sum()} of {inside.size} values differ, worst at {tuple(map(int, i))}: found "
            f"{found[i]!r}, exact {target[i]!r}, error {error[i]:.3g}, allowed {limit[i]:.3g}"
        )
