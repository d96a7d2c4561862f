"""The formulas with exact fractions: what they compute in exact arithmetic is what docs/math.md says."""

import math
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


def test_two_sum_keeps_what_rounding_loses():
    a, b = 1.0, 2.0**-60
    total, lost = formulas.two_sum(a, b)
    assert F(total) + F(lost) == F(a) + F(b)
    assert lost == b


def test_compensated_sums_equal_exact_ones():
    found = (0.0, 0.0, 0.0, 0.0)
    v, u = [1e16, 1.0, -1e16, 3.0], [1.0, 2.0**-30, 1.0, 1.0]
    for one_v, one_u in zip(v, u, strict=True):
        found = formulas.accumulate_compensated(*found, one_v, one_u)
    assert (found[0] + found[2], found[1] + found[3]) == (4.0, 3.0 + 2.0**-30)
    other = (1e16, 3.0, 0.25, 2.0**-60)
    s, q, s_lost, q_lost = formulas.join_compensated((1.0, 2.0**-53, 0.5, 2.0**-61), other)
    assert F(s) + F(s_lost) == 10**16 + F("1.75")
    assert F(q) + F(q_lost) == 3 + F(2) ** -53 + F(2) ** -60 + F(2) ** -61


def test_what_a_total_lost_is_added_but_to_an_infinite_one():
    assert formulas.with_lost(2.0**53, 3.0) == 2.0**53 + 4
    assert formulas.with_lost(math.inf, math.nan) == math.inf
    assert math.isnan(formulas.with_lost(math.nan, 1.0))


def test_a_negative_m2_is_rounding_and_counts_as_zero():
    d, m2 = formulas.moments(4.0, 3.999999, 4.0)
    assert (d, m2, math.copysign(1, m2)) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize("k", ORIGINS)
def test_the_forward_map_is_the_definition(k):
    gamma, beta = F(5, 4), F(-1, 3)
    scale, shift = formulas.normalizing_map(MEAN - k, INV_STD, gamma, beta)
    found = [formulas.affine(x - k, scale, shift) for x in X]
    assert found == [gamma * (x - MEAN) * INV_STD + beta for x in X]


@pytest.mark.parametrize("k", ORIGINS)
@pytest.mark.parametrize("h", [F(0), G[1], F(-77)])
def test_the_backward_map_is_the_definition(k, h):
    gamma, u, v, d = F(5, 4), [x - k for x in X], [g - h for g in G], MEAN - k
    s, q = sums(u, v)
    sum_dy_xmu = formulas.centred_product(s, q, d)
    assert sum_dy_xmu == sum(g * (x - MEAN) for g, x in zip(G, X, strict=True))
    assert formulas.whole_sum(s, h, N) == sum(G)
    a, scale, shift = formulas.gradient_map(s, sum_dy_xmu, d, N, gamma, INV_STD)
    found = [formulas.affine_of_two(one_v, a, one_u, scale, shift) for one_v, one_u in zip(v, u, strict=True)]
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


@pytest.mark.parametrize("k", ORIGINS)
def test_a_mean_may_be_counted_from_another_origin(k):
    assert formulas.moved(X[0], MEAN - X[0], k) == MEAN - k


@pytest.mark.parametrize("cut", [0, 2, 5])
@pytest.mark.parametrize("other_h", [F(0), F(9, 4)])
def test_sums_of_shards_add_up_for_any_origin_of_dy(cut, other_h):
    total_s = total_p = F(0)
    for x, g, h in ((X[:cut], G[:cut], F(7, 3)), (X[cut:], G[cut:], F(-1))):
        s = sum((one - h for one in g), F(0))
        p = sum(((one - h) * (value - MEAN) for one, value in zip(g, x, strict=True)), F(0))
        e = sum((value - MEAN for value in x), F(0))
        moved_s, moved_p = formulas.moved_sums(s, p, e, h, other_h, len(x))
        total_s, total_p = total_s + moved_s, total_p + moved_p
    assert total_s == sum(G) - N * other_h
    assert total_p == sum(g * (x - MEAN) for g, x in zip(G, X, strict=True))


Z = [F(2), F(1, 7), F(-3), F(4, 9), F(5, 11)]  # ddx


def test_second_derivatives_are_the_definition():
    """With any inv_std: what depends on its derivative, Eq. 29, is compared in test_derivatives.py."""
    gamma, of_gamma, of_beta, k, h, o = F(5, 4), F(2, 3), F(-7), X[1], G[0], F(9)
    u, v, w, d = [x - k for x in X], [g - h for g in G], [z - o for z in Z], MEAN - k
    (s, q), (t, r), (_, cross) = sums(u, v), sums(u, w), sums(v, w)
    means = [sum(values) / N for values in (G, Z)]
    x_hat = [(x - MEAN) * INV_STD for x in X]
    alpha = formulas.normalized_mean(formulas.centred_product(t, r, d), INV_STD, N)
    delta = formulas.normalized_mean(formulas.centred_product(s, q, d), INV_STD, N)
    sigma = formulas.covariance(cross, s, t, N)
    assert alpha == sum(z * one for z, one in zip(Z, x_hat, strict=True)) / N
    assert delta == sum(g * one for g, one in zip(G, x_hat, strict=True)) / N
    assert sigma == sum((g - means[0]) * (z - means[1]) for g, z in zip(G, Z, strict=True)) / N

    f = INV_STD * (of_gamma - gamma * INV_STD * alpha)
    a, scale, shift = formulas.tangent_map(t, alpha, d, N, gamma, INV_STD, of_gamma, of_beta)
    found = [formulas.affine_of_two(*one, scale, shift) for one in zip(w, [a] * N, u, strict=True)]
    centred = [(x - MEAN, g - means[0], z - means[1]) for x, g, z in zip(X, G, Z, strict=True)]
    assert found == [gamma * INV_STD * z + f * x + of_beta for x, _, z in centred]

    a, b, scale, shift = formulas.second_map(s, t, alpha, delta, sigma, d, N, gamma, INV_STD, of_gamma)
    found = [formulas.affine_of_three(*one, scale, shift) for one in zip(w, [b] * N, v, [a] * N, u, strict=True)]
    of_x = -(INV_STD**2) * (gamma * INV_STD * (sigma - 3 * alpha * delta) + of_gamma * delta)
    assert found == [f * g - gamma * INV_STD**2 * delta * z + of_x * x for x, g, z in centred]
    dx_hat = [g - means[0] - one * delta for g, one in zip(G, x_hat, strict=True)]
    by_gamma = INV_STD * sum(z * one for z, one in zip(Z, dx_hat, strict=True))
    assert formulas.second_dgamma(alpha, delta, sigma, INV_STD, N) == by_gamma


@pytest.mark.parametrize(("other_h", "other_o"), [(F(0), F(0)), (F(1, 3), F(-5))])
def test_a_sum_of_products_may_have_other_origins(other_h, other_o):
    h, o = G[2], Z[1]
    v, w = [g - h for g in G], [z - o for z in Z]
    product = sum(one * other for one, other in zip(v, w, strict=True))
    found = formulas.moved_product(product, sum(v), sum(w), h, other_h, o, other_o, N)
    assert found == sum((g - other_h) * (z - other_o) for g, z in zip(G, Z, strict=True))


@pytest.mark.parametrize("cut", [0, 2, 5])
def test_parts_of_shards_add_up_to_the_gradient_of_gamma(cut):
    mean, of_z = sum(G) / N, sum(Z) / N
    alpha, delta = (INV_STD * sum(a * (x - MEAN) for a, x in zip(values, X, strict=True)) / N for values in (Z, G))
    sigma = sum((z - of_z) * (g - mean) for z, g in zip(Z, G, strict=True)) / N
    total = F(0)
    for shard in (slice(cut), slice(cut, N)):
        product = sum((z * (g - mean) for z, g in zip(Z[shard], G[shard], strict=True)), F(0))
        ddx_xmu = sum((z * (x - MEAN) for z, x in zip(Z[shard], X[shard], strict=True)), F(0))
        total += formulas.shard_second_dgamma(product, ddx_xmu, delta, INV_STD)
    assert total == formulas.second_dgamma(alpha, delta, sigma, INV_STD, N)


def test_an_origin_is_far_at_two_standard_deviations():
    """Eq. 43, on both sides of the edge: |d| against 2*sqrt(m2/W)."""
    for m2, count in ((1.0, 1.0), (16.0, 4.0), (2.25, 0.25)):
        edge = 2 * (m2 / count) ** 0.5
        for sign in (-1, 1):
            assert not formulas.is_far(sign * edge, m2, count)
            assert formulas.is_far(sign * math.nextafter(edge, math.inf), m2, count)
    assert not formulas.is_far(0.0, 0.0, 3.0)  # the mean of what is constant


def test_origins_are_moved_as_often_as_float64_may_need():
    """Each time |d| shrinks by 2**50, and it lies between 2**1024 and 2**-1074."""
    assert (formulas.LOOKS - 1) * 50 < 1024 + 1074 <= formulas.LOOKS * 50
