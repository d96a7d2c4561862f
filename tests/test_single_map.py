"""The map in float32 (docs/math.md, Eq. 19): how far its y is from that of exact fractions, at any magnitude."""

import math
from fractions import Fraction as F

import numba
import numpy as np
import pytest
from tolerance import dtype_of, needs_bfloat16

from nbnorm._cpu.traced import single_map

SMALLEST = F(1, 2**148)  # twice the smallest float32
LARGEST = {"float16": 4.8, "bfloat16": 38.0, "float32": 38.0}  # exponents of ten
SMALLEST_TEN = {"float16": -7.0, "bfloat16": -38.0, "float32": -38.0}
pytestmark = pytest.mark.filterwarnings("ignore:overflow")
narrow_dtypes = pytest.mark.parametrize("name", ["float16", "float32", pytest.param("bfloat16", marks=needs_bfloat16)])


def fused(a, b, c):
    """a*b + c of float32 numbers with one rounding: the sum of Python's fractions is exact."""
    exact = F(float(a)) * F(float(b)) + F(float(c))
    near = np.float32(float(exact))  # rounded twice, which may be a neighbour
    around = np.nextafter(near, np.float32([-np.inf, np.inf]))
    return min((near, *around), key=lambda y: abs(F(float(y)) - exact) if np.isfinite(y) else F(2**200))


def in_single(x, k, scale, shift, varies=True):
    """What the kernels compute."""
    power, offset, factor, lost, rest = (np.float32(value) for value in single_map(k, scale, shift, varies))
    assert np.isfinite([power, offset, factor, lost, rest]).all()
    w = fused(power, x, offset)
    return fused(factor, w, fused(lost, w, rest))


def assert_near(y, x, k, scale, shift):
    """Eq. 19: y is within two roundings of its own size, and less than a third one for what `lost` and `rest` have no
    digits for; and within those of factor and shift/factor, which are float64, of their terms.
    """
    exact = F(scale) * (F(x) - F(k)) + F(shift)
    if abs(exact) < 2**127:
        error = abs(F(float(y)) - exact)
        terms = abs(F(scale) * (F(x) - F(k))) / 2**51 + abs(F(shift)) / 2**51
        assert error <= 3 * abs(exact) / 2**24 + terms + SMALLEST, (x, k, scale, shift)


@narrow_dtypes
@pytest.mark.parametrize("kind", ["no beta", "beta", "root at x"])
def test_any_magnitude(name, kind, rng):
    dtype = dtype_of(name)
    for _ in range(500):
        size = 10 ** rng.uniform(SMALLEST_TEN[name], LARGEST[name])
        k, *values = (size * rng.normal() * 10 ** rng.uniform(-4, 0, 9)).astype(dtype).astype(float)
        inv_std = 1 / math.sqrt(size**2 * 10 ** rng.uniform(-6, 3) + 10 ** rng.uniform(-12, -3))
        scale = rng.normal() * 10 ** rng.uniform(-3, 3) * inv_std
        shift = {"no beta": 0.0, "beta": rng.normal(), "root at x": -scale * (values[0] - k)}[kind]
        shift *= 1 + rng.choice([0, 1e-12, 1e-9, 1e-6, 1e-3])
        for x in values:
            if math.isfinite(x) and math.isfinite(k):
                assert_near(in_single(x, k, scale, shift), x, k, scale, shift)


@narrow_dtypes
def test_a_mean_that_is_no_value_of_the_type(name, rng):
    """As in inference: x may be as near to k as float64 allows, and the root between them."""
    for exponent in range(8, 40):
        for _ in range(30):
            x = float(np.array(rng.uniform(0.5, 2)).astype(dtype_of(name)))
            k = x * (1 + rng.choice([-1, 1]) * rng.uniform(1, 2) * 2.0**-exponent)
            scale = rng.normal() * 10 ** rng.uniform(-2, 2)
            shift = -scale * (x - k) * (1 + rng.choice([0, 1e-9, 1e-7, 1e-3, 1]))
            assert_near(in_single(x, k, scale, shift), x, k, scale, shift)


def test_the_code_that_is_traced_gives_the_numbers_of_the_formula(rng):
    """Up to the one product that is fused in it."""
    compiled = numba.njit(lambda k, scale, shift, varies: single_map(k, scale, shift, varies))
    for k, scale, shift in rng.normal(size=(300, 3)) * 10 ** rng.uniform(-45, 45, (300, 3)):
        for varies in (True, False):
            plain, found = single_map(k, scale, shift, varies), compiled(k, scale, shift, varies)
            assert found[:4] == plain[:4], (k, scale, shift)
            assert abs(found[4] - plain[4]) <= abs(plain[4]) / 2**24, (k, scale, shift)


@pytest.mark.parametrize("k", [np.inf, np.nan])
def test_a_mean_that_is_no_number_leaves_no_number(k):
    assert np.isnan(single_map(k, 0.0, 0.25, True)[4])


@narrow_dtypes
@pytest.mark.parametrize(
    ("k", "scale", "shift"),
    [
        (1.0, 0.0, 0.25),  # gamma 0
        (1.0, 1e-60, 0.25),
        (2.0**-30, 1e38, 2.0**-7),
        (2.0**-24, 316.0, 0.0),
        (65504.0, 316.0, 1.0),
        (1.0, 1e-3, 1e30),
        (1.0, -(2.0**-149), 2.0**-140),
        (1e170, 1e-150, 0.0),
    ],
)
def test_magnitudes_of_the_parameters(name, k, scale, shift):
    for x in np.array([0, 2.0**-24, 0.5, 1, -1, 1.5, 3, 40000]).astype(dtype_of(name)).astype(float):
        assert_near(in_single(x, k, scale, shift), x, k, scale, shift)


@pytest.mark.parametrize(("k", "scale"), [(3e38, 316.0), (3e38, 1e-39), (-3e38, 2e-39), (1e-40, 1e40), (1e-40, 316.0)])
def test_the_ends_of_bfloat16(k, scale):
    k = float((np.array(k, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32))
    for x in (k, -k, 0.0, k / 2):
        assert_near(in_single(x, k, scale, 0.125), x, k, scale, 0.125)


@pytest.mark.parametrize("shift", [0.1, -1e6, 1 + 2.0**-9])
@pytest.mark.parametrize("k", [0.0, 0.0999755859375, 65504.0, 1.5 * 2.0**127])
def test_a_constant_channel_is_shift_to_the_bit(k, shift):
    assert in_single(k, k, 316.0, shift, varies=False) == np.float32(shift)
