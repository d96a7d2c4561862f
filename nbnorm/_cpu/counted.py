"""Counted: which values of x count, and how often (docs/math.md, Eq. 20 to 24). `w` is a _counted.Counted.

A vector lies at `place`, the indices (n, c, s) of its first value; in columns c is 0 and s the index in a row.
"""

from __future__ import annotations

import numpy as np
from numba import float64

from nbnorm._cpu.launch import Compiled
from nbnorm._cpu.sums import add, add_count
from nbnorm._cpu.vector import function, minus, routine
from nbnorm._cpu.vector_mask import (
    below,
    either,
    factors,
    factors_part,
    finite,
    holds,
    holds_part,
    joined,
    kept,
    often,
    positive,
    present,
)
from nbnorm._cpu.vector_memory import element
from nbnorm._formulas import affine, fma, next_place, ninther

TRIES = 64  # places where a value that counts is looked for, before every place is


@routine
def _where(w, place):
    n, c, s = place
    return w.where_0 + n * w.where_n + c * w.where_c + s * w.where_s


@routine
def _weight(w, place):
    n, c, s = place
    return w.weights_0 + n * w.weights_n + c * w.weights_c + s * w.weights_s


@routine
def lanes_that_count(w, x, place):
    """The mask of vector x, and its weights (or None)."""
    factor = factors(w.weights, _weight(w, place), w.weights_s)
    given = joined(holds(w.where, _where(w, place), w.where_s), positive(factor))
    return joined(given, present(x, w.omit)), factor


@routine
def lanes_that_count_part(w, x, place, n):
    """The same of its first n lanes."""
    factor = factors_part(w.weights, _weight(w, place), w.weights_s, n)
    given = joined(holds_part(w.where, _where(w, place), w.where_s, n), positive(factor))
    return joined(joined(given, present(x, w.omit)), below(n)), factor


@routine
def weighted(factor, v):
    result = v
    if factor is not None:
        result = v * factor
    return result


@routine
def add_counted(sums, count, x, dy, u, m, factor, inside, h):
    """The sums and one more vector: Eq. 21 when dy is None, otherwise Eq. 23, of the lanes `inside` (None: all)."""
    if dy is None:
        u = kept(m, u)
        return add(sums, weighted(factor, u), u), add_count(count, often(m, factor))
    there = joined(either(m, finite(x)), inside)
    return add(sums, kept(there, dy - often(m, factor) * h), kept(there, u)), count


@routine
def counted_image(x, dy, m, factor, k, h, a, scale, shift):
    """Eq. 24, and 0 where there is no value."""
    here = finite(x)
    of_x = kept(m, weighted(factor, affine(kept(here, minus(x, k)), scale, shift)))
    return kept(either(m, here), fma(dy - often(m, factor) * h, a, of_x))


# ---- one by one


@routine
def _once(where, i):
    result = 1.0
    if where is not None:
        result = 1.0 if where[i] != 0 else 0.0
    return result


@routine
def _factor(weights, i):
    result = 1.0
    if weights is not None:
        result = float64(weights[i])
    return result


@function
def times(w, x, i, n, c, s):
    """How often value (n, c, s), x[i], counts."""
    place = (n, c, s)
    result = _once(w.where, _where(w, place)) * _factor(w.weights, _weight(w, place))
    if w.omit:
        value = element(x, i)
        if value != value:
            result = 0.0
    return result


@function
def found(x, w, c, part, N, C, S):
    """The index of a value that counts, looked for from around part/8 of the way through channel c; -1: none does."""
    size = N * S
    m = (N - 1) * part // 8 * S + (S - 1) * part // 8
    for tries in range(TRIES + size):
        if tries == TRIES:
            m = 0
        n, s = m // S, m % S
        i = (n * C + c) * S + s
        if times(w, x, i, n, c, s) > 0.0:
            return i
        m = next_place(m, size) if tries < TRIES else m + 1
    return -1


@function
def sample(array, x, w, c, part, N, C, S):
    return element(array, found(x, w, c, part, N, C, S))


@function
def counted_origin(array, x, w, c, N, C, S):
    """Eq. 2 for values of x, or of dy, that count; 0 when none does."""
    if found(x, w, c, np.intp(0), N, C, S) < 0:
        return 0.0
    return ninther(
        sample(array, x, w, c, np.intp(0), N, C, S), sample(array, x, w, c, np.intp(1), N, C, S),
        sample(array, x, w, c, np.intp(2), N, C, S), sample(array, x, w, c, np.intp(3), N, C, S),
        sample(array, x, w, c, np.intp(4), N, C, S), sample(array, x, w, c, np.intp(5), N, C, S),
        sample(array, x, w, c, np.intp(6), N, C, S), sample(array, x, w, c, np.intp(7), N, C, S),
        sample(array, x, w, c, np.intp(8), N, C, S),
    )  # fmt: skip


@Compiled
def first_short(x, w, least, N, C, S, answer):
    """answer[0] is the first channel whose values do not count more than `least` times in all, or C."""
    answer[0] = C
    for c in range(C - 1, -1, -1):
        total = 0.0
        for m in range(N * S):
            n, s = m // S, m % S
            total += times(w, x, (n * C + c) * S + s, n, c, s)
            if total > least:
                break
        if not total > least:
            answer[0] = c
