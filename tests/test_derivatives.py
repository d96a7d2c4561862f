"""Forward mode and the double backward pass: the complex step, the oracle, each other, and third derivatives."""

from typing import NamedTuple

import numba
import numpy as np
import pytest
import reference
from common import random_state, same_bits, sample
from derivatives import check_derivatives, sizes
from test_numerics import DOUBLE, FORMS, HALF, WIDE, alternating, every_form, of_cases, put
from tolerance import DTYPES, assert_gradient_close, dtype_of, needs_wide

import nbnorm
from nbnorm._cpu import derivatives as derivatives_on_cpu
from nbnorm._cpu import plan, threads

# A step has ten kernels for segments, others for columns, and for every dtype. By default float64 segments (and columns
# of one shape) are compared with the complex step, float32 columns and float32 and float16 segments with the oracle.
columns = pytest.mark.exhaustive("test_the_contract_holds has float32 columns")
SHAPES = [(2, 2, 70), (1, 2, 33)]  # (N, C, S)
SHAPES += [pytest.param(one, marks=columns) for one in ((2, 3, 1), (3, 2, 4), (7, 1, 3), (20, 5, 1))]
of_float32_columns = pytest.mark.float32_in("channels last", "7x7", "float16 segments; a plain step: test_training.py")
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
frozen_or_not = pytest.mark.parametrize("use_running", [False, True], ids=["batch", "running"])
PRESENT = ["ddx ddgamma ddbeta", "ddx", "ddgamma", "ddbeta", "ddx ddgamma", ""]


def case(rng, shape, dtype="float64", present=PRESENT[0], **options):
    """x, dy, state and (ddx, ddgamma, ddbeta), None where not present."""
    x, dy, ddx = (sample(rng, shape, dtype) for _ in range(3))
    state = random_state(rng, shape[1], **{"dtype": "float64", **options})
    of_gamma, of_beta = rng.normal(size=(2, shape[1]))
    every = {"ddx": ddx, "ddgamma": of_gamma.astype(state.dtype), "ddbeta": of_beta.astype(state.dtype)}
    return x, dy, state, tuple(array if name in present.split() else None for name, array in every.items())


def run_forward(x, state, use_running, axis=1):
    """`saved`, and the statistics if they are constants."""
    running = (state.running_mean.copy(), state.running_var.copy()) if use_running else None
    _, saved = nbnorm.batch_norm_training(x, state, axis=axis, use_running=use_running, update_running=False)
    return saved, running


def for_formula(running):
    return None if running is None else tuple(a[None, :, None] for a in running)


def in_formula(cotangents, shape):
    """As numbers where they are None."""
    ddx, ddgamma, ddbeta = cotangents
    of_parameters = (np.zeros(shape[1]) if a is None else a for a in (ddgamma, ddbeta))
    return np.zeros(shape) if ddx is None else ddx, *of_parameters


# ---- float64: exact


@pytest.mark.each_pair
@every_shape
@frozen_or_not
@pytest.mark.parametrize("present", PRESENT)
def test_both_equal_the_complex_step(shape, use_running, present, rng):
    x, dy, state, cotangents = case(rng, shape, present=present)
    saved, running = run_forward(x, state, use_running)
    ddx, ddgamma, ddbeta = in_formula(cotangents, shape)
    terms = sizes(*cotangents, dy, x, state.gamma, state.eps, 1, running)
    expected = reference.complex_double_step(
        ddx, ddgamma, ddbeta, dy, x, state.gamma, state.eps, for_formula(running)
    )  # fmt: skip
    found = nbnorm.batch_norm_double_backward(*cotangents, dy, saved)
    assert_gradient_close(found.ddy, expected.ddy, terms[0][:, None])
    assert_gradient_close(found.dx, expected.dx, terms[1][:, None])
    assert_gradient_close(found.dgamma, expected.dgamma, terms[2])

    h = 1e-100
    moved = (x + 1j * h * ddx, state.gamma + 1j * h * ddgamma, state.beta + 1j * h * ddbeta)
    expected = reference.formula(*moved, state.eps, for_formula(running)).imag / h
    assert_gradient_close(nbnorm.batch_norm_jvp(*cotangents, saved), expected, terms[0][:, None])


@needs_wide
@pytest.mark.each_pair
@every_shape
@frozen_or_not
@pytest.mark.parametrize(
    "options", [{}, {"use_gamma": False}, {"use_beta": False}, {"eps": 0.3}, {"dtype": "float32"}], ids=str
)
def test_both_equal_the_oracle(shape, use_running, options, rng):
    present = " ".join({"ddx", "ddgamma", "ddbeta"} - {f"dd{name[4:]}" for name in options})
    x, dy, state, cotangents = case(rng, shape, present=present, **options)
    saved, running = run_forward(x, state, use_running)
    check_derivatives(*cotangents, dy, saved, state, running)


@every_shape
@frozen_or_not
def test_the_oracle_equals_the_complex_step(shape, use_running, rng):
    x, dy, state, cotangents = case(rng, shape)
    running = (state.running_mean, state.running_var) if use_running else None
    exact = reference.double_backward(*cotangents, dy, x, state.gamma, state.eps, 1, running)
    step = reference.complex_double_step(*cotangents, dy, x, state.gamma, state.eps, for_formula(running))
    terms = sizes(*cotangents, dy, x, state.gamma, state.eps, 1, running)
    assert_gradient_close(exact.ddy, step.ddy, terms[0][:, None])
    assert_gradient_close(exact.dx, step.dx, terms[1][:, None])
    assert_gradient_close(exact.dgamma, step.dgamma, terms[2])
    tangent = reference.derivatives(*cotangents, x, state.gamma, state.eps, 1, running)
    assert_gradient_close(tangent, exact.ddy, terms[0][:, None])


@every_shape
@frozen_or_not
def test_the_backward_pass_is_the_adjoint_of_forward_mode(shape, use_running, rng):
    x, g, state, tangents = case(rng, shape)
    saved, _ = run_forward(x, state, use_running)
    dy = nbnorm.batch_norm_jvp(*tangents, saved)
    assert same_bits(dy, nbnorm.batch_norm_double_backward(*tangents, g, saved).ddy)
    pairs = [(dy, g), *zip(tangents, nbnorm.batch_norm_backward(g, saved), strict=True)]
    forward, *backward = ((one * other).sum() for one, other in pairs)
    assert abs(forward - sum(backward)) <= 1e-12 * sum(np.abs(one * other).sum() for one, other in pairs)


@every_shape
@frozen_or_not
def test_double_backward_is_the_adjoint_of_the_backward_pass_in_forward_mode(shape, use_running, rng):
    """The directional derivative of (dx, dgamma, dbeta) along any (dy, x, gamma), times the cotangents."""
    x, dy, state, cotangents = case(rng, shape)
    saved, running = run_forward(x, state, use_running)
    along_dy, along_x, along_gamma = rng.normal(size=shape), rng.normal(size=shape), rng.normal(size=shape[1])
    h = 1e-100
    moved = dy + 1j * h * along_dy, x + 1j * h * along_x, state.gamma + 1j * h * along_gamma
    derivative = [a.imag / h for a in reference.backward_formula(*moved, state.eps, for_formula(running))[:3]]
    found = nbnorm.batch_norm_double_backward(*cotangents, dy, saved)
    left = list(zip(cotangents, derivative, strict=True))
    right = list(zip(found, (along_dy, along_x, along_gamma), strict=True))
    of_ddy, of_dx, of_dgamma = sizes(*cotangents, dy, x, state.gamma, state.eps, 1, running)
    size = of_ddy.sum() * along_dy.size + of_dx.sum() * along_x.size + of_dgamma.sum()
    assert abs(sum((a * b).sum() for a, b in left) - sum((a * b).sum() for a, b in right)) <= 1e-12 * size


@frozen_or_not
def test_gamma_may_be_zero(use_running, rng):
    x, dy, state, cotangents = case(rng, (6, 3, 70))
    state.gamma = [0, 1.5, 0]
    saved, running = run_forward(x, state, use_running)
    found = check_derivatives(*cotangents, dy, saved, state, running)
    assert np.abs(found.dgamma).min() > 0


def test_without_cotangents_everything_is_zero(rng):
    x, dy, state, _ = case(rng, (6, 3, 70))
    saved, _ = run_forward(x, state, False)
    for array in (*nbnorm.batch_norm_double_backward(None, None, None, dy, saved),
                  nbnorm.batch_norm_jvp(None, None, None, saved)):  # fmt: skip
        assert not array.any()


@every_shape
def test_third_derivatives(shape, rng):
    """Central differences of the compiled function against those of the plain formula, differentiated exactly.

    Their truncation is the same; the formula's rounding is divided by the step: 1e-15/1e-5, and a factor for its terms.
    """
    x, dy, state, cotangents = case(rng, shape)
    step, along = 1e-5, [rng.normal(size=shape), rng.normal(size=shape), rng.normal(size=shape[1])]

    def ours(t):
        moved = random_state(rng, shape[1], dtype="float64", eps=0.1)
        moved.gamma = state.gamma + t * along[2]
        saved, _ = run_forward(x + t * along[1], moved, False)
        return nbnorm.batch_norm_double_backward(*cotangents, dy + t * along[0], saved)

    def plain(t):
        moved = dy + t * along[0], x + t * along[1], state.gamma + t * along[2]
        return reference.complex_double_step(*cotangents, *moved, 0.1)

    terms = sizes(*cotangents, dy, x, state.gamma, 0.1, 1)
    expected = [(b - a) / (2 * step) for a, b in zip(plain(-step), plain(step), strict=True)]
    found = [(b - a) / (2 * step) for a, b in zip(ours(-step), ours(step), strict=True)]
    for one, other, size in zip(found, expected, (terms[0][:, None], terms[1][:, None], terms[2]), strict=True):
        assert (np.abs(one - other) <= 1e-12 * size / step).all()


@pytest.mark.parametrize("shape", [(1, 2, 64), pytest.param((4, 2, 3), marks=columns)], ids=str)
def test_third_derivatives_by_the_complex_step(shape, rng):
    """...and these are right: the oracle's exact second derivatives, once more differentiated along a direction."""
    step = 1e-4
    x, dy, state, cotangents = case(rng, shape)
    along = rng.normal(size=shape)
    saved = [run_forward(x + t * along, state, False)[0] for t in (-step, step)]
    low, high = (nbnorm.batch_norm_double_backward(*cotangents, dy, one) for one in saved)
    difference = (high.dx - low.dx) / (2 * step)

    def phi(x):
        values = reference.backward_formula(dy, x, state.gamma, state.eps)[:3]
        return sum((a * b).sum() for a, b in zip(cotangents, values, strict=True))

    # d/dx_i of the directional derivative: a complex step along `along`, a central difference along x_i.
    h, exact = 1e-100, np.empty(shape)
    for i in np.ndindex(shape):
        unit = np.zeros(shape)
        unit[i] = step
        exact[i] = (phi(x + unit + 1j * h * along) - phi(x - unit + 1j * h * along)).imag / (2 * step * h)
    assert (np.abs(difference - exact) <= 2000 * step**2 * np.abs(exact).max()).all()


@pytest.mark.parametrize("shape", [(2, 3, 70), pytest.param((5, 3, 4), marks=columns)], ids=str)
def test_gradients_of_given_statistics(shape, rng):
    """The recipe of docs/derivatives.md: the complex step with the mean and the variance as variables."""
    x, dy, state, _ = case(rng, shape)
    saved, running = run_forward(x, state, True)
    _, dgamma, dbeta = nbnorm.batch_norm_backward(dy, saved)
    dmean = -saved.gamma * saved.inv_std * dbeta
    dvar = -0.5 * saved.gamma * saved.inv_std**2 * dgamma
    h = 1e-100
    for found, which in ((dmean, 0), (dvar, 1)):
        for c in range(3):
            moved = [a.astype(complex) for a in running]
            moved[which][c] += 1j * h
            y = reference.formula(x, state.gamma, state.beta, state.eps, for_formula(moved))
            expected, terms = (dy * y).sum().imag / h, np.abs(dy[:, c]).sum() * np.abs(saved.gamma[c])
            assert abs(found[c] - expected) <= 1e-12 * terms * (1 + np.abs(y[:, c]).max())


# ---- every dtype and layout: the contract


class Case(NamedTuple):
    make: object  # from normal noise to the values of one channel
    dtypes: list
    eps: float = 1e-5
    of_dy: float = 1.0  # magnitude of dy and of ddx, such that the results neither overflow nor vanish


CASES = {
    "N(0, 1)": Case(lambda z: z, DTYPES),
    "mean 1e3": Case(lambda z: z + 1e3, DTYPES),
    "mean 1e8": Case(lambda z: z + 1e8, WIDE),
    "mean -1e8, std 1e4": Case(lambda z: 1e4 * z - 1e8, WIDE),
    "std 1e-30, small eps": Case(lambda z: 1e-30 * z, WIDE, 1e-65, 1e-30),
    "alternating 1e8": Case(alternating(1e8), WIDE),
    "alternating 65504": Case(alternating(65504), HALF),
    "outlier 1e6 at 0": Case(put(0, 1e6), WIDE),
    "1e60": Case(lambda z: 1e60 * (z + 3), DOUBLE),
    "1e-60": Case(lambda z: 1e-60 * (z + 3), DOUBLE, 1e-130, 1e-50),
}


@pytest.mark.each_pair
@of_float32_columns
@every_form
@pytest.mark.parametrize(("name", "case_dtype"), of_cases(CASES, "bfloat16"))
def test_the_contract_holds(name, case_dtype, form, rng):
    case, noise = CASES[name], rng.normal(size=(70, 2, 8, 8))
    noise[:, 0] = case.make(noise[:, 0])
    noise[:, 1] *= np.sqrt(case.eps) if case.of_dy != 1 else 1  # the other channel, of the same order
    x, axis = FORMS[form](noise.astype(dtype_of(case_dtype)))
    dy, ddx = ((rng.normal(size=x.shape) * case.of_dy).astype(x.dtype) for _ in range(2))
    ddgamma, ddbeta = rng.normal(size=(2, 2)) * case.of_dy
    state = random_state(rng, 2, eps=case.eps)
    saved, _ = run_forward(x, state, False, axis)
    check_derivatives(ddx, ddgamma, ddbeta, dy, saved, state)
    check_derivatives(ddx, None, None, dy, saved, state)
    check_derivatives(None, ddgamma, ddbeta, dy, saved, state)
    state.running_mean = saved.mean
    state.running_var = reference.training(x, axis=axis).var
    saved, running = run_forward(x, state, True, axis)
    check_derivatives(ddx, ddgamma, ddbeta, dy, saved, state, running)


@of_float32_columns
@every_form
@pytest.mark.parametrize(
    ("name", "mean"), [("float16", 1e2), ("float16", 1e3), ("float32", 1e3), ("float32", 1e6), ("float64", 1e8)]
)
def test_the_contract_holds_for_gradients_far_from_zero(name, mean, form, rng):
    x, axis = FORMS[form](sample(rng, (70, 3, 8, 8), name))
    dy, ddx = ((rng.normal(size=x.shape) + mean).astype(x.dtype) for _ in range(2))
    state = random_state(rng, 3)
    saved, _ = run_forward(x, state, False, axis)
    check_derivatives(ddx, rng.normal(size=3), None, dy, saved, state)


@pytest.mark.float32_by_default("test_the_contract_holds")
def test_any_layout_and_channel_axes(dtype, rng):
    x, dy, ddx = (sample(rng, (5, 4, 3, 6), dtype) for _ in range(3))
    for axis, order in ((1, (0, 1, 2, 3)), (-1, (3, 0, 1, 2)), ((1, 2), (0, 1, 2, 3)), ((3, 1), (2, 0, 3, 1))):
        layout = [np.ascontiguousarray(a.transpose(order)).transpose(np.argsort(order)) for a in (x, dy, ddx)]
        mixed = layout[0], np.asfortranarray(dy), ddx[::1, ::-1][:, ::-1]
        axes = axis if isinstance(axis, tuple) else (axis,)
        channels = tuple(x.shape[i] for i in axes)
        state = random_state(rng, channels if len(channels) > 1 else channels[0])
        of_parameters = rng.normal(size=(2, *channels))
        for one_x, one_dy, one_ddx in (layout, mixed):
            saved, _ = run_forward(one_x, state, False, axis)
            check_derivatives(one_ddx, *of_parameters, one_dy, saved, state)


@pytest.mark.float32_by_default("test_numerics.py has that of the backward pass")
def test_a_gradient_that_is_not_finite_stays_in_its_channel(dtype, rng):
    x, dy, state, cotangents = case(rng, (6, 3, 70), dtype)
    saved, _ = run_forward(x, state, False)
    good = nbnorm.batch_norm_double_backward(*cotangents, dy, saved)
    for array in (dy, cotangents[0]):
        before, array[2, 1, 5] = array[2, 1, 5], np.nan
        bad = nbnorm.batch_norm_double_backward(*cotangents, dy, saved)
        array[2, 1, 5] = before
        for one, other in ((good.ddy, bad.ddy), (good.dx, bad.dx)):
            assert same_bits(one[:, [0, 2]], other[:, [0, 2]])
        assert np.isnan(bad.dx[:, 1]).all()
        assert np.isnan(bad.dgamma).tolist() == [False, True, False]


@pytest.mark.parametrize("shape", [(5, 8, 41, 13), (64, 96, 7, 7), (300, 17)], ids=str)
def test_bits_do_not_depend_on_threads_or_the_driver(shape, monkeypatch, rng):
    x, dy, state, cotangents = case(rng, shape, "float32")
    saved, _ = run_forward(x, state, False)
    used = []
    fused = derivatives_on_cpu.fused_double_segments
    monkeypatch.setattr(
        derivatives_on_cpu, "fused_double_segments", lambda *args: (used.append(args[-1]), fused(*args))
    )  # fmt: skip

    def bits():
        arrays = *nbnorm.batch_norm_double_backward(*cotangents, dy, saved), nbnorm.batch_norm_jvp(*cotangents, saved)
        return [array.tobytes() for array in arrays]

    several = min(2, numba.config.NUMBA_NUM_THREADS)  # more than there are would be too many for one of Numba's layers
    monkeypatch.setattr(threads, "get_num_threads", lambda: several)
    monkeypatch.setattr(threads, "SERIAL_BELOW", x.size * 100)
    serial = bits()
    monkeypatch.setattr(threads, "SERIAL_BELOW", 0)
    assert bits() == serial
    segments = used[:]
    monkeypatch.setattr(plan, "CHANNEL_BYTES", 0)
    assert bits() == serial
    assert used == segments == ([1, several] if len(shape) == 4 and shape[2] > 8 else [])


# ---- arguments


def test_forward_mode_writes_where_it_is_told(dtype, rng):
    x, _, state, tangents = case(rng, (6, 3, 70), dtype)
    saved, _ = run_forward(x, state, False)
    expected = nbnorm.batch_norm_jvp(*tangents, saved)
    out = np.empty_like(x)
    assert nbnorm.batch_norm_jvp(*tangents, saved, out=out) is out
    own = tangents[0].copy()
    assert nbnorm.batch_norm_jvp(own, *tangents[1:], saved, out=own) is own
    assert same_bits(out, expected)
    assert same_bits(own, expected)


@pytest.mark.parametrize("shape", [(6, 3, 70), (40, 64)], ids=str)
def test_forward_mode_may_write_over_x(shape, rng):
    x, _, state, tangents = case(rng, shape, "float32")
    saved, _ = run_forward(x, state, False)
    expected = nbnorm.batch_norm_jvp(*tangents, saved)
    assert nbnorm.batch_norm_jvp(*tangents, saved, out=x) is x
    assert same_bits(x, expected)


def test_empty_batches(rng):
    x, dy, state, (ddx, ddgamma, ddbeta) = case(rng, (6, 3, 4))
    x, dy, ddx = x[:0], dy[:0], ddx[:0]
    saved, _ = run_forward(x, state, True)
    found = nbnorm.batch_norm_double_backward(ddx, ddgamma, ddbeta, dy, saved)
    assert (found.ddy.shape, found.dx.shape, found.dgamma.tolist()) == (x.shape, x.shape, [0, 0, 0])
    assert nbnorm.batch_norm_jvp(ddx, ddgamma, ddbeta, saved).shape == x.shape


def refused(error, text, call):
    with pytest.raises(error, match=text) as caught:
        call()
    assert len(str(caught.value)) < 200


def test_what_does_not_fit_is_refused(given):
    ddx, of_gamma = given.dy, np.ones(3)
    double, jvp = nbnorm.batch_norm_double_backward, nbnorm.batch_norm_jvp
    for wrong, error, text in (
        (ddx[:-1], ValueError, "ddx has shape"),
        (ddx.astype(np.float64), TypeError, r"ddx.astype\(x.dtype\) converts"),
        ([1.0], TypeError, "ddx is a builtins.list; expected a numpy.ndarray"),
    ):
        refused(error, text, lambda wrong=wrong: double(wrong, None, None, given.dy, given.saved))
        refused(error, text[1:], lambda wrong=wrong: jvp(wrong, None, None, given.saved))
    for wrong, error, text in (
        (np.ones(2), ValueError, r"ddgamma has shape \(2,\); expected \(3,\), that of gamma"),
        (np.ones(3, int), TypeError, "ddgamma has dtype int64; expected float32 or float64"),
        (1.0, TypeError, "ddgamma is a builtins.float"),
    ):
        refused(error, text, lambda wrong=wrong: double(ddx, wrong, None, given.dy, given.saved))
        refused(error, text[1:], lambda wrong=wrong: jvp(ddx, wrong, None, given.saved))
    refused(ValueError, "dy has shape", lambda: double(ddx, None, None, given.dy[:1], given.saved))
    refused(ValueError, "param_grads is 'all'",
            lambda: double(ddx, None, None, given.dy, given.saved, param_grads="all"))  # fmt: skip
    refused(TypeError, "saved is a tuple; expected what", lambda: double(ddx, None, None, given.dy, ()))
    refused(TypeError, "saved is a tuple; expected what", lambda: jvp(ddx, None, of_gamma, ()))
    refused(ValueError, "out has shape", lambda: jvp(ddx, None, None, given.saved, out=given.out[1:]))
    refused(ValueError, "out overlaps dx in memory",
            lambda: jvp(given.memory[1:9], None, None, given.saved, out=given.memory[2:10]))  # fmt: skip


@pytest.mark.parametrize("name", ["gamma", "beta"])
def test_a_cotangent_for_a_parameter_that_the_state_has_not_is_refused(name, rng):
    x, dy, state, cotangents = case(rng, (6, 3, 4), present="ddx", **{f"use_{name}": False})
    saved, _ = run_forward(x, state, False)
    arguments = {"ddgamma": None, "ddbeta": None, f"dd{name}": np.ones(3)}
    text = f"d{name} is an array, but the state of the forward pass has no {name}; pass None"
    refused(ValueError, "d" + text, lambda: nbnorm.batch_norm_double_backward(
        cotangents[0], arguments["ddgamma"], arguments["ddbeta"], dy, saved))  # fmt: skip
    refused(ValueError, text,
            lambda: nbnorm.batch_norm_jvp(None, arguments["ddgamma"], arguments["ddbeta"], saved))  # fmt: skip
