"""The formulas with exact fractions: what they compute in exact arithmetic is what docs/math.md says."""

from fractions import Fraction as F

import pytest

from nbnorm import _formulas as formulas

X = [F(3), F(1, 2), F(-7, 3), F(5), F(22, 7)]
G = [F(1), F(-2, 5), F(1, 3), F(4), F(-1, 9)]
N = len(X)
MEAN = sum(X) / N
M2 = sum((x - MEAN) ** 2 for x in X)
ORIGINS = [F(0), X[2], F(1000, 3)]
INV_STD = F(3, 7)  # in exact arithmetic any number will do for the root


@pytest.fixture(autouse=True)
def _plain_python(monkeypatch):
    for name, found in vars(formulas).items():
        if hasattr(found, "py_func"):
            monkeypatch.setattr(formulas, name, found.py_func)


def sums(u, g):
    s = q = F(0)
    for one_u, one_g in zip(u, g, strict=True):
        s, q = formulas.accumulate(s, q, one_g, one_u)
    return s, q


@pytest.mark.parametrize("k", ORIGINS)
def test_moments_do_not_depend_on_the_origin(k):
    u = [x - k for x in X]
    assert formulas.moments(*sums(u, u), N) == (MEAN - k, M2)


def test_a_negative_m2_is_rounding_and_counts_as_zero():
    assert formulas.moments(4.0, 3.999999, 4.0) == (1.0, 0.0)


@pytest.mark.parametrize("k", ORIGINS)
def test_the_forward_map_is_the_definition(k):
    gamma, beta = F(5, 4), F(-1, 3)
    scale, shift = formulas.normalizing_map(MEAN - k, INV_STD, gamma, beta)
    found = [formulas.affine(x - k, scale, shift) for x in X]
    assert found == [gamma * (x - MEAN) * INV_STD + beta for x in X]


@pytest.mark.parametrize("k", ORIGINS)
def test_the_backward_map_is_the_definition(k):
    gamma, u, d = F(5, 4), [x - k for x in X], MEAN - k
    s, q = sums(u, G)
    sum_dy_xmu = formulas.centred_product(s, q, d)
    assert sum_dy_xmu == sum(g * (x - MEAN) for g, x in zip(G, X, strict=True))
    a, scale, shift = formulas.gradient_map(s, sum_dy_xmu, d, N, gamma, INV_STD)
    found = [formulas.affine_of_two(g, a, one, scale, shift) for g, one in zip(G, u, strict=True)]
    x_hat = [(x - MEAN) * INV_STD for x in X]
    mean_gx = sum(g * h for g, h in zip(G, x_hat, strict=True)) / N
    assert found == [gamma * INV_STD * (g - sum(G) / N - h * mean_gx) for g, h in zip(G, x_hat, strict=True)]


@pytest.mark.parametrize("cut", [0, 1, 3, N])
def test_merging_two_samples_equals_the_whole(cut):
    parts = []
    for part in (X[:cut], X[cut:]):
        mean = sum(part) / len(part) if part else F(0)
        parts += [F(len(part)), mean, sum((x - mean) ** 2 for x in part)]
    assert formulas.merge(*parts) == (N, MEAN, M2)


def test_moving_average_weighs_the_new_batch_with_the_momentum():
    assert formulas.moving_average(F(2), F(7), F(1, 10)) == F(9, 10) * 2 + F(1, 10) * 7
