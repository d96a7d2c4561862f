"""The maths of batch normalization: one function per numbered equation of docs/math.md.

Every function is written for one value, and works unchanged on float64 scalars and, through `.py_func`, on
`fractions.Fraction`; without a branch or a root also on the vector values of a target (`_cpu/vector.py`) and on NumPy
arrays. `fma` is Python's: each target has a form of it. What float32 arithmetic needs stands in _single_map.py.
"""

from __future__ import annotations

import math
from typing import Any

import numba

formula: Any = numba.njit(inline="always")

# How often sums of weighted values are taken from nearer origins at most (Eq. 43): each takes 50 of the 2,098 powers of
# two of float64 off the distance, but for weights so small that their products underflow.
LOOKS = 42


def fma(a: Any, b: Any, c: Any) -> Any:
    """a*b + c. Each target replaces it by the instruction with one rounding when it compiles."""
    return a * b + c


@formula
def sample_index(c, part, N, C, S):
    """Where in an (N, C, S) array to look for a value from around part/8 of the way through channel c."""
    return (((N - 1) * part >> 3) * C + c) * S + ((S - 1) * part >> 3)  # shifts: a division takes 20 instructions


# How many of a channel's places are looked at for a value that counts, for each of nine. Where none is found there the
# first one's serves, for which more are looked at, one in TRIES but no more than MANY_TRIES, and then all.
TRIES, MANY_TRIES = 64, 4_096


@formula
def sample_place(part, N, S):
    """The place of a channel's N*S values that is around part/8 of the way through it."""
    return ((N - 1) * part >> 3) * S + ((S - 1) * part >> 3)


@formula
def next_place(m, size):
    """Where among so many places to look next for a value that counts: a golden section further on, around."""
    return (m + size * 618_034 // 1_000_000 + 1) % size


@formula
def median(a, b, c):
    return max(min(a, b), min(max(a, b), c))


@formula
def ninther(a, b, c, d, e, f, g, h, i):
    """Eq. 2: the median of three medians, each of values from all over the channel."""
    return median(median(a, d, g), median(b, e, h), median(c, f, i))


@formula
def accumulate(s, q, v, u):
    """Eq. 3 (with v = u) and Eq. 10: the running sums of v and of v*u, where u = x - k and v = dy - h."""
    return s + v, fma(v, u, q)


@formula
def two_sum(a, b):
    """Eq. 15 (Knuth): a + b rounded, and exactly what the rounding lost."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


@formula
def accumulate_compensated(s, q, s_lost, q_lost, v, u):
    """The same sums for float64 data, with what every addition loses."""
    s, s_error = two_sum(s, v)
    q, q_error = two_sum(q, v * u)
    return s, q, s_lost + s_error, q_lost + q_error


@formula
def count_compensated(count, lost, often):
    """The same for how often values count."""
    count, error = two_sum(count, often)
    return count, lost + error


@formula
def join_compensated(sums, others):
    """Two compensated sums together."""
    s, s_error = two_sum(sums[0], others[0])
    q, q_error = two_sum(sums[1], others[1])
    return s, q, sums[2] + others[2] + s_error, sums[3] + others[3] + q_error


@formula
def with_lost(total, lost):
    """Eq. 15: a total and what its additions lost; an infinite one, of values that are finite or not, has lost nothing
    that could be known, and stays infinite."""
    return total + lost if total - total == 0.0 else total


@formula
def moments(s, q, count):
    """Eq. 4: d = mean - k and m2, from the sums of u and u*u.

    Rounding can leave a tiny negative m2: it is 0. An infinite or NaN m2 makes d NaN too, so that a channel
    with an infinity has no mean rather than half a result.
    """
    d = s / count
    m2 = fma(-d, s, q)
    if m2 < 0:
        m2 = -m2 * 0
    return d + (m2 - m2), m2


@formula
def is_far(d, m2, count):
    """Eq. 43: whether k is more than two standard deviations from the mean, as a value that hardly counts may be."""
    return d * d * count > 4.0 * m2


@formula
def standard_deviation(var, eps):
    """σ of Eq. 36."""
    return math.sqrt(var + eps)


@formula
def inverse_std(var, eps):
    """Eq. 5: the reciprocal of the same, not by a call, which every first call would have to compile."""
    return 1.0 / math.sqrt(var + eps)


@formula
def normalizing_map(d, inv_std, gamma, beta):
    """Eq. 6: scale and shift of y = scale*(x - k) + shift."""
    scale = gamma * inv_std
    return scale, fma(-d, scale, beta)


@formula
def affine(u, scale, shift):
    """Eq. 7: the map of the forward pass, u = x - k."""
    return fma(u, scale, shift)


@formula
def affine_of_two(v, a, u, scale, shift):
    """Eq. 13: the map of the backward pass, v = dy - h and u = x - k."""
    return fma(v, a, affine(u, scale, shift))


@formula
def merge(count_a, mean_a, m2_a, count_b, mean_b, m2_b):
    """Eq. 8 (Chan, Golub and LeVeque): the statistics of two samples together, neither of them empty.

    An m2 that overflows is NaN. Left infinite, inv_std would be 0 and y = beta, without a word.
    """
    count = count_a + count_b
    share = count_b / count
    delta = mean_b - mean_a
    m2 = m2_a + m2_b + delta * (count_a * share) * delta  # delta*delta may overflow though this does not
    return count, mean_a + delta * share, m2 + (m2 - m2)


@formula
def pool(count_a, mean_a, m2_a, count_b, mean_b, m2_b):
    """Eq. 8 for any two samples: an empty one leaves the other as it is, to the bit."""
    if count_b == 0:
        count, mean, m2 = count_a, mean_a, m2_a
    elif count_a == 0:
        count, mean, m2 = count_b, mean_b, m2_b
    else:
        count, mean, m2 = merge(count_a, mean_a, m2_a, count_b, mean_b, m2_b)
    return count, mean, m2


@formula
def pooled(seen, mean, var, count, new, m2, ddof):
    """Eq. 8 on running statistics of `seen` values: mean and variance with those of `count` more.

    The variance stays as it is while there are no more values than ddof.
    """
    seen_m2 = var * (seen - ddof) if seen > ddof else 0.0
    total, mean, m2 = pool(seen, mean, seen_m2, count, new, m2)
    return mean, m2 / (total - ddof) if total > ddof and count > 0 else var


@formula
def moving_average(running, new, momentum):
    """Eq. 9: momentum is the weight of the new batch. With 1 nothing of what was, and maybe is infinite, remains."""
    return new if momentum == 1.0 else running + momentum * (new - running)


@formula
def centred_product(s, q, d):
    """Eq. 11: the sum of dy*(x - mean) from the sums of v and v*u."""
    return fma(-d, s, q)


@formula
def whole_sum(s, h, count):
    """Eq. 11: the sum of dy from that of v = dy - h."""
    return fma(count, h, s)


@formula
def gamma_gradient(sum_dy_xmu, inv_std):
    """Eq. 11: dgamma."""
    return sum_dy_xmu * inv_std


@formula
def gradient_map(s, sum_dy_xmu, d, count, gamma, inv_std):
    """Eq. 12: a, scale and shift of dx = a*v + scale*u + shift."""
    a = gamma * inv_std
    scale = -a * (inv_std * (inv_std * sum_dy_xmu / count))  # in this order nothing overflows that need not
    return a, scale, fma(-d, scale, -a * s / count)


@formula
def moved(k, d, other_k):
    """Eq. 16: mean - other_k, from d = mean - k."""
    return (k - other_k) + d


@formula
def shard_offset(own_k, own_d, k, d, count):
    """Eq. 17: e, the sum of x - mean over a shard, whose own mean is own_k + own_d."""
    return count * (moved(own_k, own_d, k) - d)


@formula
def moved_sums(s, p, e, h, other_h, count):
    """Eq. 18: the sums of v and v*(x - mean) for another origin of dy; with 0 those of dy itself."""
    return fma(count, h - other_h, s), fma(h - other_h, e, p)


@formula
def normalized_mean(product, inv_std, count):
    """Eq. 25 and 27: the mean of ddx*(x - mean)*inv_std or dy*(x - mean)*inv_std, from the sum without inv_std."""
    return inv_std * product / count


@formula
def tangent_map(t, alpha, d, count, gamma, inv_std, dgamma, dbeta):
    """Eq. 25 and 26: a, scale and shift of a*(ddx - o) + scale*(x - k) + shift, tangent of y or gradient of dy."""
    a = gamma * inv_std
    scale = inv_std * (dgamma - a * alpha)
    return a, scale, fma(-d, scale, dbeta - a * t / count)


@formula
def covariance(product, s, t, count):
    """Eq. 30: sigma, from the sums of v*w, v and w."""
    return fma(-s / count, t, product) / count


@formula
def second_map(s, t, alpha, delta, sigma, d, count, gamma, inv_std, ddgamma):
    """Eq. 29: a, b, scale and shift of a*(dy - h) + b*(ddx - o) + scale*(x - k) + shift, the gradient of x."""
    of_y = gamma * inv_std
    a, b = inv_std * (ddgamma - of_y * alpha), -of_y * (inv_std * delta)
    scale = -inv_std * (inv_std * (of_y * (sigma - 3 * alpha * delta) + ddgamma * delta))
    return a, b, scale, fma(-d, scale, -(a * s + b * t) / count)


@formula
def second_dgamma(alpha, delta, sigma, inv_std, count):
    """Eq. 28: the gradient of gamma."""
    return count * inv_std * (sigma - alpha * delta)


@formula
def moved_product(product, s, t, h, other_h, o, other_o, count):
    """Eq. 32: the sum of v*w for other origins of dy and ddx."""
    return product + (h - other_h) * t + (o - other_o) * s + count * (h - other_h) * (o - other_o)


@formula
def shard_second_dgamma(product, ddx_xmu, delta, inv_std):
    """Eq. 33: a shard's part of the gradient of gamma, from its sums of ddx*(dy - mean of dy) and ddx*(x - mean)."""
    return inv_std * (product - delta * (inv_std * ddx_xmu))


@formula
def affine_of_three(w, b, v, a, u, scale, shift):
    """Eq. 29: the map of the double backward pass; w = ddx - o, v = dy - h and u = x - k."""
    return fma(v, a, fma(w, b, affine(u, scale, shift)))


@formula
def within(value, least, most):
    """`value` no smaller and no larger than these; NaN stays NaN."""
    return least if value < least else most if value > most else value


@formula
def corrections(mean_offset, std, running_std, rmax, dmax):
    """Eq. 36: r and d of batch renormalization, from mean - running mean."""
    return within(std / running_std, 1.0 / rmax, rmax), within(mean_offset / running_std, -dmax, dmax)


@formula
def corrected(gamma, beta, r, d):
    """Eq. 37: gamma and beta that do to the plain x_hat what gamma and beta do to the corrected one."""
    return gamma * r, fma(gamma, d, beta)


@formula
def corrected_dgamma(r, d, sum_dy_x_hat, sum_dy):
    """Eq. 38: dgamma, from the sum of dy times the plain x_hat."""
    return fma(r, sum_dy_x_hat, d * sum_dy)
