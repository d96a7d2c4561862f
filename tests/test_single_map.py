"""The maps in float32 (docs/math.md, Eq. 19 and 42): how far their y and dx are from those of exact fractions, at any
magnitude.
"""

import math
import os
from fractions import Fraction as F
from itertools import product

import numba
import numpy as np
import pytest
from tolerance import dtype_of, needs_bfloat16

from nbnorm._cpu.traced import single_map, single_map_of_two

SMALLEST = F(1, 2**149)  # float32 number
LARGEST = {"float16": 4.8, "bfloat16": 38.0, "float32": 38.0}  # exponents of ten
SMALLEST_TEN = {"float16": -7.0, "bfloat16": -38.0, "float32": -38.0}
pytestmark = [pytest.mark.filterwarnings("ignore:overflow"), pytest.mark.longer]
TIMES = int(os.environ.get("NBNORM_EXAMPLES", "500"))
narrow_dtypes = pytest.mark.parametrize("name", ["float16", "float32", pytest.param("bfloat16", marks=needs_bfloat16)])


def fused(a, b, c):
    """a*b + c of float32 numbers with one rounding: the sum of Python's fractions is exact."""
    if not np.isfinite([a, b, c]).all():
        return a * b + c
    exact = F(float(a)) * F(float(b)) + F(float(c))
    if abs(exact) >= 2**128:
        return np.float32(math.copysign(math.inf, exact))
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
    """Eq. 19: y is within 1.5 units in its last place, and a thousandth for what `lost` and `rest` have no digits for;
    and within the roundings of factor and shift/factor, float64 numbers, of their terms. Three units of a subnormal y.
    """
    exact = F(scale) * (F(x) - F(k)) + F(shift)
    if abs(exact) < 2**127:
        unit = F(2) ** (math.frexp(float(exact))[1] - 24)
        error = abs(F(float(y)) - exact)
        terms = abs(F(scale) * (F(x) - F(k))) / 2**51 + abs(F(shift)) / 2**51
        assert error <= (F(3, 2) + F(1, 2**10)) * unit + terms + 3 * SMALLEST, (x, k, scale, shift)


@narrow_dtypes
@pytest.mark.parametrize("kind", ["no beta", "beta", "root at x"])
def test_any_magnitude(name, kind, rng):
    dtype = dtype_of(name)
    for _ in range(TIMES):
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
    """Up to the product that is fused in it, which is about the size of shift."""
    compiled = numba.njit(lambda k, scale, shift, varies: single_map(k, scale, shift, varies))
    drawn = rng.normal(size=(300, 3)) * 10 ** rng.uniform(-45, 45, (300, 3))
    extremes = product((0.0, -1e-300, 1e-90, 3.0, 1e80, -1e300, np.inf, np.nan), repeat=3)
    for (k, scale, shift), varies in product([*drawn, *extremes], (True, False)):
        with np.errstate(all="ignore"):
            plain = single_map(*np.float64((k, scale, shift)), varies)
        found = compiled(k, scale, shift, varies)
        np.testing.assert_array_equal(found[:4], plain[:4])
        np.testing.assert_allclose(found[4], plain[4], rtol=2.0**-24, atol=2.0**-52 * np.nan_to_num(abs(shift)))


def test_the_code_that_is_traced_gives_the_numbers_of_the_formula_of_two(rng):
    compiled = numba.njit(lambda h, a, k, scale, shift: single_map_of_two(h, a, k, scale, shift))
    extremes = rng.choice((0.0, -1e-300, 3.0, 1e80, np.inf, np.nan), (300, 5))
    for numbers in (*rng.normal(size=(300, 5)) * 10 ** rng.uniform(-45, 45, (300, 5)), *extremes):
        with np.errstate(all="ignore"):
            plain = single_map_of_two(*numbers)
        found = compiled(*numbers)
        np.testing.assert_array_equal(found[:6], plain[:6])
        np.testing.assert_allclose(found[6], plain[6], rtol=2.0**-24, atol=2.0**-52 * np.nan_to_num(abs(numbers[4])))


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
    for scale in (316.0, -1e45, 1e90):  # of an eps of 1e-5, 1e-90 and 1e-180
        assert in_single(k, k, scale, shift, varies=False) == np.float32(shift)


def test_what_is_infinite_or_becomes_so(rng):
    for k, scale, shift in (*rng.normal(size=(50, 3)), (0.0, 1.0, 0.0), (0.0, 2.0, 1.0), (1.0, -3.0, 0.5)):
        sign = math.copysign(1, scale)
        assert in_single(np.inf, k, scale, shift) == sign * np.inf
        assert in_single(-np.inf, k, scale, shift) == -sign * np.inf
        assert in_single(3e38, k, 4 * sign + scale, shift) == sign * np.inf


def test_large_parameters_beside_a_root(rng):
    for _ in range(200):
        k, gamma = rng.normal(5, 1), 10 ** rng.uniform(30, 37)
        root = float(np.float32(k + rng.normal()))
        for x in (root, np.nextafter(np.float32(root), np.float32(9)), root + 2.0**-8, root + 1):
            assert_near(in_single(float(x), k, gamma, -gamma * (root - k)), float(x), k, gamma, -gamma * (root - k))


def gradient_in_single(dy, x, h, a, k, scale, shift):
    """What the kernels compute."""
    found = [np.float32(value) for value in single_map_of_two(h, a, k, scale, shift)]
    assert np.isfinite(found).all()
    power_of_dy, offset_of_dy, of_dy, power, offset, of_x, rest = found
    v, w = fused(power_of_dy, dy, offset_of_dy), fused(power, x, offset)
    return fused(of_dy, v, fused(of_x, w, rest))


def assert_dx_near(dx, dy, x, h, a, k, scale, shift):
    """Eq. 42: three roundings to 24 bits of what comes from dy and four of what comes from x, a thousandth for what
    `rest` and products of roundings are; the roundings of float64 numbers in the terms of both, and five units of a
    subnormal.
    """
    of_dy, of_x = F(a) * (F(dy) - F(h)), F(scale) * (F(x) - F(k)) + F(shift)
    unit = F(1, 2**24) * (1 + F(1, 2**10))
    terms = abs(F(a)) * (abs(F(dy)) + abs(F(h))) + abs(F(scale) * (F(x) - F(k))) + abs(F(shift))
    if max(abs(of_dy), abs(of_x), abs(of_dy + of_x)) < 2**127:
        error = abs(F(float(dx)) - (of_dy + of_x))
        allowed = unit * (3 * abs(of_dy) + 4 * abs(of_x)) + terms / 2**51 + 5 * SMALLEST
        assert error <= allowed, (dy, x, h, a, k, scale, shift)


@narrow_dtypes
@pytest.mark.parametrize("mean", [0, 1, 1e4])
def test_a_gradient_of_any_magnitude(name, mean, rng):
    dtype, mean, tried = dtype_of(name), min(mean, 30) if name == "float16" else mean, 0
    while tried < TIMES:
        size, of_dy = 10 ** rng.uniform(SMALLEST_TEN[name], LARGEST[name] - 5, 2)
        k, *xs = (size * (mean + rng.normal(size=6))).astype(dtype).astype(float)
        h, *dys = (of_dy * (mean + rng.normal(size=6))).astype(dtype).astype(float)
        inv_std = 1 / math.sqrt(size**2 + 10 ** rng.uniform(-12, -3))
        a = rng.normal() * 10 ** rng.uniform(-3, 3) * inv_std
        scale = -a * inv_std**2 * of_dy * size * rng.normal()
        shift = a * of_dy * rng.normal() - scale * size * rng.normal()
        if not max(abs(a) * abs(h), abs(scale * k), abs(a) * of_dy, abs(scale) * size) < 1e36:
            continue  # terms that are no float32 numbers
        tried += 1
        for dy, x in zip(dys, xs, strict=True):
            dx = gradient_in_single(dy, x, h, a, k, scale, shift)
            assert_dx_near(dx, dy, x, h, a, k, scale, shift)


def test_factors_of_gradients_are_those_of_the_map_rounded_to_nearest(rng):
    for _ in range(500):
        h, a, k, scale, shift = rng.normal(size=5) * 10 ** rng.uniform(-8, 8, 5)
        power_of_dy, _, of_dy, power, _, of_x, _ = single_map_of_two(h, a, k, scale, shift)
        assert np.float32(of_dy) == np.float32(a / power_of_dy)
        assert np.float32(of_x) == np.float32(scale / power)


def test_an_origin_of_dy_that_is_no_value_of_the_type(rng):
    """As with shards, whose origins may be any float64 numbers."""
    for _ in range(200):
        h, k, a, scale, shift = rng.normal(size=5) * (1e3, 1e3, 1, 1e-2, 1)
        dy, x = (float(np.float32(origin + rng.normal())) for origin in (h, k))
        assert_dx_near(gradient_in_single(dy, x, h, a, k, scale, shift), dy, x, h, a, k, scale, shift)
