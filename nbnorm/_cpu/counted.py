"""Counted: which values of x count, and how often (docs/math.md, Eq. 20 to 24 and 39 to 41).

`w` is a cursor (cursor.py). Only where there is one may dy be a Tangent or a Both, whose arrays come apart here.
"""

from __future__ import annotations

from nbnorm._cpu.arrays import element
from nbnorm._cpu.cursor import counts, cursor, factors, holds, omits, present, shifted
from nbnorm._cpu.launch import Compiled
from nbnorm._cpu.sums import add, add_values
from nbnorm._cpu.vector import function, routine, smaller
from nbnorm._cpu.vector_mask import below, either, finite, joined, kept, often, positive
from nbnorm._formulas import MANY_TRIES, TRIES, affine, affine_of_two, fma, next_place


@routine
def lanes_that_count(w, x, n):
    """The mask of the first n lanes of vector x at the cursor, and its weights (or None)."""
    factor = factors(w, n)
    return joined(joined(joined(holds(w, n), positive(factor)), present(x, w)), below(n)), factor


@routine
def weighted(factor, v):
    result = v
    if factor is not None:
        result = v * factor
    return result


@routine
def add_counted(sums, x, dy, ddx, u, m, factor, inside, k, h):
    """The sums and one more vector: Eq. 21 when dy is None, otherwise Eq. 23, of the lanes `inside` (None: all).

    With ddx Eq. 39, and when dy is not None Eq. 40.
    """
    if ddx is None:
        if dy is None:
            u = kept(m, u)
            return add_values(sums, weighted(factor, u), u, often(m, factor))
        there = joined(either(m, finite(x)), inside)
        return add(sums, kept(there, dy - often(m, factor) * h), kept(there, u))
    if dy is None:
        return add(sums, kept(m, weighted(factor, ddx - h)), kept(m, u))
    there = joined(either(m, finite(x)), inside)
    return add(sums, kept(there, dy - often(m, factor) * h), kept(there, ddx - k))


@routine
def counted_image(x, dy, tangent, ddx, u, m, factor, h, o, a, b, scale, shift):
    """Eq. 24, or with ddx Eq. 41, and 0 where there is no value; Eq. 26 where dy is a tangent."""
    here = finite(x)
    there = either(m, here)
    if tangent is not None:
        return kept(there, affine_of_two(dy - h, a, kept(there, u), scale, shift))
    of_x = affine(kept(here, u), scale, shift)
    if ddx is not None:
        of_x = fma(ddx - o, b, of_x)
    return kept(there, fma(dy - often(m, factor) * h, a, kept(m, weighted(factor, of_x))))


# ---- one by one


@function
def times(w, x, i):
    """How often x[i], the value at the cursor, counts."""
    result = counts(w)
    if omits(w):
        value = element(x, i)
        if value != value:
            result = 0.0
    return result


@function
def near(x, w, c, m, tries, N, C, S):
    """The index of a value of channel c that counts, at place m or golden sections on; -1 after so many tries."""
    for _ in range(tries):
        n, s = m // S, m % S
        i = (n * C + c) * S + s
        if times(shifted(w, n, c, s), x, i) > 0.0:
            return i
        m = next_place(m, N * S)
    return -1


@function
def anywhere(x, w, c, N, C, S):
    """The index of a value of channel c that counts; -1: none does."""
    i = near(x, w, c, 0, smaller(TRIES + N * S // TRIES, MANY_TRIES), N, C, S)
    if i >= 0:
        return i
    for n in range(N):
        for s in range(S):
            i = (n * C + c) * S + s
            if times(shifted(w, n, c, s), x, i) > 0.0:
                return i
    return -1


@function
def per_time(value, w, x, i, c, average, C, S):
    """Eq. 23: `value` of dy at x[i], of channel c, for each time it counts."""
    return value / max(times(shifted(w, i // (C * S), c, i % S), x, i), average)


@Compiled
def first_short(x, w, least, N, C, S, totals, answer):
    """answer[0] is the first channel whose values do not count more than `least` times in all, or C; w a Counted.

    totals (C), zeros, is scratch. Sample by sample, as memory goes, until every channel has enough.
    """
    its = cursor(w)
    for n in range(N):
        enough = True
        for c in range(C):
            total, s = totals[c], 0
            while s < S and not total > least:
                total += times(shifted(its, n, c, s), x, (n * C + c) * S + s)
                s += 1
            totals[c] = total
            enough = enough and total > least
        if enough:
            break
    answer[0] = C
    for c in range(C - 1, -1, -1):
        if not totals[c] > least:
            answer[0] = c
