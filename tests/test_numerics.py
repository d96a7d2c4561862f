"""The accuracy contract (docs/numerics.md), case by case: training, backward and inference."""

from typing import NamedTuple

import numpy as np
import pytest
import reference
from common import (
    check_backward,
    check_forward,
    check_inference,
    check_step,
    exact_backward,
    random_state,
    same_bits,
    sample,
)
from tolerance import DTYPES, assert_close, assert_stat_close, dtype_of, needs_bfloat16, needs_wide

import nbnorm
from nbnorm._cpu import plan


class Case(NamedTuple):
    make: object  # from normal noise (N, H, W) to the values of one channel
    dtypes: list
    eps: float = 1e-5
    of_dy: float = 1.0  # magnitude of dy, such that dx neither overflows nor vanishes


def put(i, value):
    def make(z):
        z = z.copy()
        z.flat[i] = value
        return z

    return make


def alternating(value):
    return lambda z: np.where(np.arange(z.size).reshape(z.shape) % 2, value, -value)


HALF = ["float16"]
SINGLE = [pytest.param("bfloat16", marks=needs_bfloat16), "float32"]
DOUBLE = [pytest.param("float64", marks=needs_wide)]
WIDE = SINGLE + DOUBLE  # exponents of float32 and more
CASES = {
    "N(0, 1)": Case(lambda z: z, DTYPES),
    **{f"mean 1e{i}": Case(lambda z, m=10.0**i: z + m, DTYPES if i < 5 else WIDE) for i in range(1, 9)},
    "mean 1e8, std 100": Case(lambda z: 100 * z + 1e8, WIDE),
    "mean -1e8, std 1e4": Case(lambda z: 1e4 * z - 1e8, WIDE),
    "mean 1, std 1e-6": Case(lambda z: 1 + 1e-6 * z, DTYPES),
    "std 1e-30": Case(lambda z: 1e-30 * z, WIDE),
    "std 1e-30, small eps": Case(lambda z: 1e-30 * z, WIDE, 1e-65, 1e-30),
    "alternating 1e8": Case(alternating(1e8), WIDE),
    "alternating 65504": Case(alternating(65504), HALF),
    **{f"outlier 1e6 at {i}": Case(put(i, 1e6), WIDE) for i in (0, 1, -1)},
    "outlier 1e6 in the middle": Case(lambda z: put((len(z) // 2 * z[0].size) + z[0].size // 2, 1e6)(z), WIDE),
    "outlier 65504": Case(put(0, 65504), HALF),
    "up to 65504": Case(lambda z: np.clip(4e4 * z, -65504, 65504), HALF),
    "±3e38": Case(lambda z: np.copysign(3e38, z), WIDE),
    "up to 3e38": Case(lambda z: np.clip(2e38 * z, -3e38, 3e38), WIDE),
    "denormal": Case(lambda z: 1e-40 * z, SINGLE),
    "denormal, small eps": Case(lambda z: 1e-40 * z, SINGLE, 1e-90, 1e-35),
    "float16 denormal": Case(lambda z: 1e-6 * z, HALF),
    "float16 denormal, small eps": Case(lambda z: 1e-6 * z, HALF, 1e-20, 1e-3),
    "float64 denormal": Case(lambda z: 1e-310 * z, DOUBLE),
    "1e60": Case(lambda z: 1e60 * (z + 3), DOUBLE),
    "1e-60": Case(lambda z: 1e-60 * (z + 3), DOUBLE, 1e-130, 1e-50),
}
FORMS = {  # (N, C, 8, 8) -> segments of 64 values, rows of channels, segments of 49 values
    "channels first": lambda v: (v, 1),
    "channels last": lambda v: (np.ascontiguousarray(np.moveaxis(v, 1, -1)), -1),
    "7x7": lambda v: (np.ascontiguousarray(v[..., :7, :7]), 1),
}
every_form = pytest.mark.parametrize("form", FORMS)


def of_cases(cases, *left_out):
    """Names and dtypes, of which some are left out by default: each has kernels of its own to compile."""
    mark = pytest.mark.exhaustive("the other dtypes")
    return [
        pytest.param(name, dtype, marks=(*marks, *[mark] * (dtype in left_out)))
        for name, one in cases.items()
        for dtype, marks in ((getattr(d, "values", [d])[0], getattr(d, "marks", ())) for d in one.dtypes)
    ]


def of_case(rng, name, dtype, form):
    """x, its channel axis, dy and the options of states."""
    case, noise = CASES[name], rng.normal(size=(70, 2, 8, 8))
    noise[:, 0] = case.make(noise[:, 0])
    noise[:, 1] *= np.sqrt(case.eps) if case.of_dy != 1 else 1  # the other channel, of the same order
    x, axis = FORMS[form](noise.astype(dtype_of(dtype)))
    dy = (rng.normal(size=x.shape) * case.of_dy).astype(x.dtype)
    return x, axis, dy, [{"eps": case.eps}, {"eps": case.eps, "use_gamma": False, "use_beta": False}]


@pytest.mark.each_pair
@every_form
@pytest.mark.parametrize(("name", "case_dtype"), of_cases(CASES))
def test_the_contract_holds(name, case_dtype, form, rng):
    x, axis, dy, every_options = of_case(rng, name, case_dtype, form)
    for options in every_options:
        state = random_state(rng, 2, **options)
        _, saved = check_forward(x, state, axis)
        check_backward(dy, saved, state)
        state.running_mean = saved.mean
        state.running_var = reference.training(x, axis=axis).var
        check_inference(x, state, axis)


@pytest.mark.each_pair
@every_form
@pytest.mark.parametrize(("name", "case_dtype"), of_cases(CASES, "bfloat16", "float64"))
def test_the_contract_holds_with_the_running_statistics(name, case_dtype, form, rng):
    x, axis, dy, every_options = of_case(rng, name, case_dtype, form)
    for options in every_options:
        state = random_state(rng, 2, **options)
        exact = reference.training(x, axis=axis)
        state.running_mean, state.running_var = exact.mean, exact.var
        running = state.running_mean.copy(), state.running_var.copy()
        _, saved = check_forward(x, state, axis, use_running=True, update_running=False)
        check_backward(dy, saved, state, running)


@pytest.mark.each_pair
@every_form
@pytest.mark.parametrize(
    ("name", "dy_mean"),
    [
        ("float16", 1e2),
        ("float16", 1e3),
        ("float32", 1e2),
        ("float32", 1e3),
        ("float32", 1e5),
        ("float32", 1e6),
    ],
)
def test_the_contract_holds_for_gradients_far_from_zero(name, dy_mean, form, rng):
    x, axis = FORMS[form](sample(rng, (70, 3, 8, 8), name))
    dy = (rng.normal(size=x.shape) + dy_mean).astype(x.dtype)
    check_step(x, dy, random_state(rng, 3), axis)


@every_form
@pytest.mark.parametrize("value", [0.1, 14.62, 1e4 + 0.1, 1e8, 3e38, 1e-40, 0.0])
def test_a_constant_channel_gives_beta_exactly(dtype, value, form, rng):
    v = sample(rng, (70, 3, 8, 8), dtype)
    v[:, 1] = min(value, 65504) if dtype == "float16" else value
    x, axis = FORMS[form](v)
    state = random_state(rng, 3)
    beta = state.beta[1].astype(x.dtype)
    variance = 0.9 * state.running_var[1]
    y, _ = check_step(x, sample(rng, x.shape, dtype), state, axis)
    assert np.all(y.take(1, axis) == beta)
    assert abs(state.running_var[1] - variance) <= 2.0**-52 * variance
    stats = nbnorm.batch_stats(x, axis=axis)
    assert (stats.mean[1], stats.m2[1]) == (float(v.flat[64]), 0)


@pytest.mark.parametrize("table", [False, True])
def test_ten_million_values_in_a_channel(table, rng):
    """A hundred copies of a sample have its mean and variance; results of a copy are those of the first."""
    part = (rng.normal(size=(1, 1, 100_000)) + 100).astype(np.float32)
    dy_part = rng.normal(size=part.shape).astype(np.float32)
    x, dy = np.tile(part, 100), np.tile(dy_part, 100)
    if table:
        x, dy = x.reshape(-1, 1), dy.reshape(-1, 1)
    state = random_state(rng, 1)
    running = state.running_mean.copy(), state.running_var.copy()
    y, saved = nbnorm.batch_norm_training(x, state)
    dx, dgamma, dbeta = nbnorm.batch_norm_backward(dy, saved)

    exact = reference.training(part, state.gamma, state.beta)
    gradients = reference.backward(dy_part, part, state.gamma)
    assert_stat_close(saved.mean, exact.mean)
    assert_stat_close(saved.inv_std, 1 / np.sqrt(exact.var + reference.Wide(state.eps)))
    new = reference.moving_average(*running, exact.mean, exact.var * 10**7, 10**7, state.momentum)
    assert_stat_close(state.running_mean, new[0])
    assert_stat_close(state.running_var, new[1])
    assert_stat_close(dgamma, 100 * gradients.dgamma)
    assert_stat_close(dbeta, 100 * gradients.dbeta)
    for found, wanted, terms in ((y, exact.y, None), (dx, gradients.dx, gradients.terms)):
        copies = found.reshape(100, -1)
        assert (copies == copies[0]).all()
        assert_close(copies[0].reshape(part.shape), wanted, terms=terms)


@pytest.mark.longer
@pytest.mark.each_pair
@needs_wide
@every_form
@pytest.mark.parametrize("ratio", [0, 1e2, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("std", [1e-3, 1, 1e3])
def test_float64_is_within_16_units_for_any_mean(ratio, std, form, rng, pytestconfig):
    N, C = (70, 64) if pytestconfig.getoption("exhaustive") else (60, 16)  # for several threads, or for one
    x, axis = FORMS[form](std * (rng.normal(size=(N, C, 8, 8)) + ratio))
    check_forward(x, random_state(rng, C), axis)


@needs_wide
def test_float64_keeps_what_adding_up_the_chunks_of_a_channel_loses(rng):
    """Two values make up the variance, and each of 160 chunks has nearly half a unit of it more."""
    x = np.tile([2.0**-34.1, -(2.0**-34.1)], (160 * 256, 1, 64))
    x[0, 0, :2] = 1.0, -0.25
    check_forward(x, random_state(rng, 1, eps=1e-30))


@pytest.fixture
def short_blocks(monkeypatch):
    """Many blocks of rows in a table that has few."""
    monkeypatch.setattr(plan, "BLOCK", 0)
    plan.columns.cache_clear()
    plan.blocks.cache_clear()
    yield
    plan.columns.cache_clear()
    plan.blocks.cache_clear()


# Of 64 values each: segments of a channel, 32 rows of two channels, which are summed side by side, and rows of 64.
of_rows = pytest.mark.parametrize("shape", [(5_120, 1, 64), (163_840, 2), (5_120, 64)], ids=str)


@needs_wide
@of_rows
def test_float64_keeps_what_adding_up_small_squares_loses(shape, rng, short_blocks):
    """One value makes up the variance. The others have nearly half a unit of it each, in its lane or column and, once
    in each, in other blocks. The origin is 0.
    """
    rows = np.zeros((5_120, 64))
    rows[1:64] = rows[64::64] = 2.0**-26.51
    rows[0, : shape[1]] = 1.0
    check_forward(rows.reshape(shape), random_state(rng, shape[1], eps=1e-30))


@needs_wide
@of_rows
def test_float64_keeps_what_adding_up_large_sums_loses(shape, rng):
    """Nearly half a unit of what a lane or column has in the end, each time. The origin is 0."""
    rows = np.zeros((5_120, 64))
    rows[3_072:] = 1 + 2.0**-44.1
    check_forward(rows.reshape(shape), random_state(rng, shape[1]))


BAD = {"nan": [np.nan, 1], "inf": [1, np.inf], "-inf": [-np.inf, 1], "both inf": [np.inf, -np.inf]}
AT = {"first": 0, "elsewhere": 1 / 3, "middle": 1 / 2, "last": 1}  # of the way through the channel
TABLE = {"table": lambda v: (np.tile(FORMS["channels last"](v)[0].reshape(-1, 3), (9, 1)), 1)}


@pytest.mark.each_pair
@pytest.mark.float32_in("table", "channels last, fewer rows")
@pytest.mark.parametrize("form", FORMS | TABLE)
@pytest.mark.parametrize("at", AT)
@pytest.mark.parametrize("bad", BAD)
def test_what_is_not_finite_stays_in_its_channel(dtype, bad, at, form, rng):
    x, axis = (FORMS | TABLE)[form](sample(rng, (71, 3, 8, 8), dtype))
    x_bad = x.copy(order="K")
    channel = np.moveaxis(x_bad, axis, 0)[1]
    for i, value in enumerate(BAD[bad]):
        place = min(int(AT[at] * channel.size), channel.size - 2) + i
        channel[np.unravel_index(place, channel.shape)] = value
    dy = sample(rng, x.shape, dtype)
    state, state_bad = random_state(np.random.default_rng(1), 3), random_state(np.random.default_rng(1), 3)
    y, saved = nbnorm.batch_norm_training(x, state, axis=axis)
    y_bad, saved_bad = nbnorm.batch_norm_training(x_bad, state_bad, axis=axis)
    dx, dgamma, dbeta = nbnorm.batch_norm_backward(dy, saved)
    dx_bad, dgamma_bad, dbeta_bad = nbnorm.batch_norm_backward(dy, saved_bad)
    for good, other in ((y, y_bad), (dx, dx_bad)):
        assert same_bits(good.take([0, 2], axis), other.take([0, 2], axis))
        assert np.isnan(other.take(1, axis)).all()
    per_channel = [
        (saved.mean, saved_bad.mean), (dgamma, dgamma_bad),
        (state.running_mean, state_bad.running_mean), (state.running_var, state_bad.running_var),
    ]  # fmt: skip
    for good, other in per_channel:
        assert same_bits(good[[0, 2]], other[[0, 2]])
        assert np.isnan(other[1])
    assert same_bits(dbeta, dbeta_bad)


@every_form
def test_a_gradient_that_is_not_finite_stays_in_its_channel(dtype, form, rng):
    x, axis = FORMS[form](sample(rng, (71, 3, 8, 8), dtype))
    dy, _ = FORMS[form](rng.normal(size=(71, 3, 8, 8)).astype(x.dtype))
    _, saved = nbnorm.batch_norm_training(x, random_state(rng, 3), axis=axis)
    good = nbnorm.batch_norm_backward(dy, saved)
    np.moveaxis(dy, axis, 0)[1, 5, 3] = np.nan
    bad = nbnorm.batch_norm_backward(dy, saved)
    assert same_bits(good.dx.take([0, 2], axis), bad.dx.take([0, 2], axis))
    assert np.isnan(bad.dx.take(1, axis)).all()
    for a, b in ((good.dgamma, bad.dgamma), (good.dbeta, bad.dbeta)):
        assert same_bits(a[[0, 2]], b[[0, 2]])
        assert np.isnan(b[1])


@every_form
def test_inference_passes_nan_and_infinity_through_where_they_are(dtype, form, rng):
    x, axis = FORMS[form](sample(rng, (71, 3, 8, 8), dtype))
    state = random_state(rng, 3)
    bad = x.copy()
    bad.flat[[5, 700]] = np.nan, np.inf
    y, y_bad = (
        nbnorm.batch_norm_inference(x, state, axis=axis),
        nbnorm.batch_norm_inference(bad, state, axis=axis),
    )
    assert np.isnan(y_bad.flat[5])
    assert np.isinf(y_bad.flat[700])
    y_bad.flat[[5, 700]] = y.flat[[5, 700]]
    assert same_bits(y, y_bad)


@every_form
@pytest.mark.parametrize(
    ("name", "large", "one"),
    [("float16", 6e4, 60032), ("float32", 1e8, 1e8 + 64), ("float32", 3, 3.000001)],
)
def test_the_mean_is_right_where_it_is_far_smaller_than_the_values(name, large, one, form, rng):
    values = alternating(large)(np.empty((70, 2, 8, 8)))
    values[11, :, 3, 3] = one
    x, axis = FORMS[form](values.astype(name))
    _, mean, m2 = nbnorm.batch_stats(x, axis=axis)
    _, exact_mean, exact_m2 = reference.stats(x, axis)
    assert_stat_close(mean, exact_mean)
    assert_stat_close(m2, exact_m2)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1, 1)])
@pytest.mark.parametrize("kind", ["float32", pytest.param("float64", marks=needs_wide)])
def test_a_gradient_that_cancels_entirely_is_as_good_as_its_terms(shape, kind, rng):
    """With two values a channel dx is eps/var of its terms: here 1e-19 of them, below every rounding."""
    state, dy = random_state(rng, 3), sample(rng, shape, kind)
    x = rng.uniform(1e7, 2e7, shape).astype(kind)
    x[0] *= -1
    exact, terms = exact_backward(dy, x, state, 1)
    _, saved = nbnorm.batch_norm_training(x, state)
    dx = reference.by_channel(nbnorm.batch_norm_backward(dy, saved).dx, 1)
    exact_dx = reference.by_channel(exact.dx, 1)
    assert (np.abs(exact_dx).max(-1) < 2.0**-53 * terms).all()
    limit = 2.0**-22 * reference.by_channel(exact.terms, 1) if kind == "float32" else 1e-12 * terms[:, None]
    assert (np.abs(dx - exact_dx) <= limit).all()
