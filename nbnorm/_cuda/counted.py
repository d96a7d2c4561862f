"""Counted: which values of x count, and how often (docs/math.md, Eq. 20 to 24 and 39 to 41).

`w` is a _counted.Counted of pointers. Only where there is one may dy be a Tangent or a Both, whose arrays come apart
here.
How often the values of a pack count is a vector of numbers, 0 where they do not. A pack of the segments has one stride
in a mask; the columns of a row have a table of their places, the same in every row.
"""

from __future__ import annotations

from numba import float64

from nbnorm._cuda.block import block_sums
from nbnorm._cuda.launch import Kernel, cuda
from nbnorm._cuda.plan import PAIRS, WIDTH
from nbnorm._cuda.vector import element, finite, joined, kept, lanes_at, lanes_from, ordered, routine
from nbnorm._formulas import (
    MANY_TRIES,
    TRIES,
    accumulate,
    affine,
    affine_of_two,
    fma,
    median,
    next_place,
    sample_index,
    sample_place,
)

AT_ONCE = 8  # places that a thread looks at before any of them is known


@routine
def present(w, x, m):
    """m, and 0 where x is missing."""
    result = m
    if w.omit:
        result = kept(ordered(x), m)
    return result


@routine
def times_in_segment(w, x, packs, n, c, s):
    """How often the values of pack x count, which begins at (n, c, s)."""
    where = lanes_from(w.where, w.where_0 + n * w.where_n + c * w.where_c + s * w.where_s, w.where_s, packs)
    at = w.weights_0 + n * w.weights_n + c * w.weights_c + s * w.weights_s
    return present(w, x, joined(where, lanes_from(w.weights, at, w.weights_s, packs)))


@routine
def times_in_row(w, x, packs, n, j, places):
    """The same of a pack in column j of a block, in a row that begins with sample n."""
    where = lanes_at(w.where, w.where_0 + n * w.where_n, places, j, packs)
    return present(w, x, joined(where, lanes_at(w.weights, w.weights_0 + n * w.weights_n, places, WIDTH + j, packs)))


@routine
def keep_places(w, places, j, n, c, s):
    """Where in the masks the values of the block's column j lie, (n, c, s) in the first row."""
    places[j] = n * w.where_n + c * w.where_c + s * w.where_s
    places[WIDTH + j] = n * w.weights_n + c * w.weights_c + s * w.weights_s


@routine
def counted_terms(x, dy, ddx, m, k, h):
    """w*u and u of Eq. 21 when dy is None, otherwise v and u of Eq. 23. For values and for packs.

    With ddx those of Eq. 39, and when dy is not None of Eq. 40.
    """
    if ddx is None:
        if dy is None:
            u = kept(m, x - k)
            return u * m, u
        there = m + finite(x)
        return kept(there, dy - m * h), kept(there, x - k)
    if dy is None:
        return kept(m, (ddx - h) * m), kept(m, x - k)
    there = m + finite(x)
    return kept(there, dy - m * h), kept(there, ddx - k)


@routine
def add_counted(s, q, n, x, dy, ddx, m, k, h):
    """The sums and the count, and one more value or pack of each array."""
    v, u = counted_terms(x, dy, ddx, m, k, h)
    s, q = accumulate(s, q, v, u)
    if dy is None:  # noqa: SIM102  the compiler prunes what stands under a test of None and nothing else
        if ddx is None:
            n = n + m
    return s, q, n


@routine
def counted_image(x, dy, tangent, ddx, m, coef):
    """Eq. 24, or with ddx Eq. 41, and 0 where there is no value; Eq. 26 where dy is a tangent."""
    k, scale, shift, a, h, b, o = coef
    here = finite(x)
    there = m + here
    if tangent is not None:
        return kept(there, affine_of_two(dy - h, a, kept(there, x - k), scale, shift))
    of_x = affine(kept(here, x - k), scale, shift)
    if ddx is not None:
        of_x = fma(ddx - o, b, of_x)
    return kept(there, fma(dy - m * h, a, kept(m, m * of_x)))


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


@routine
def times(w, x, i, n, c, s):
    """How often value (n, c, s), x[i], counts."""
    result = _once(w.where, w.where_0 + n * w.where_n + c * w.where_c + s * w.where_s)
    result *= _factor(w.weights, w.weights_0 + n * w.weights_n + c * w.weights_c + s * w.weights_s)
    if w.omit:
        value = element(x, i)
        if value != value:
            result = 0.0
    return result


@routine
def near(x, w, c, m, tries, N, C, S):
    """The index of a value of channel c that counts, at place m or golden sections on; -1 after so many tries."""
    for _ in range(tries):
        n, s = m // S, m % S
        i = (n * C + c) * S + s
        if times(w, x, i, n, c, s) > 0.0:
            return i
        m = next_place(m, N * S)
    return -1


@routine
def anywhere(x, w, c, N, C, S):
    """The index of a value of channel c that counts; -1: none does.

    Of all places so many at a time, since a load that waits for the last one takes most of a microsecond.
    """
    i = near(x, w, c, 0, min(TRIES + N * S // TRIES, MANY_TRIES), N, C, S)
    if i >= 0:
        return i
    size = N * S
    for first in range(0, size, AT_ONCE):
        total = 0.0
        for m in range(first, first + AT_ONCE):
            n, s = min(m, size - 1) // S, min(m, size - 1) % S
            total += times(w, x, (n * C + c) * S + s, n, c, s)
        if total > 0.0:
            for m in range(first, size):
                n, s = m // S, m % S
                i = (n * C + c) * S + s
                if times(w, x, i, n, c, s) > 0.0:
                    return i
    return -1


@routine
def index(x, w, there, c, part, N, C, S):
    """Of a value around part/8 of the way through channel c that counts, or the one that is `there`."""
    i = sample_index(c, part, N, C, S)
    if w is not None:
        i = near(x, w, c, sample_place(part, N, S), TRIES, N, C, S)
        if i < 0:
            i = there
    return i


@routine
def per_time(value, w, x, i, c, average, C, S):
    """Eq. 23: `value` of dy at x[i], of channel c, for each time it counts; of x itself, without an `average`."""
    result = value
    if average is not None:  # noqa: SIM102  the compiler prunes what stands under a test of None and nothing else
        if average >= 0.0:
            result = value / max(times(w, x, i, i // (C * S), c, i % S), average)
    return result


@routine
def sample(array, x, w, there, average, c, part, N, C, S):
    i = index(x, w, there, c, part, N, C, S)
    return per_time(element(array, i), w, x, i, c, average, C, S)


@routine
def counted_origin(array, x, w, average, c, N, C, S):
    """Eq. 2 for values of x, or of dy, that count; 0 when none does."""
    k, there = 0.0, anywhere(x, w, c, N, C, S)
    if there >= 0:
        # The ninther (Eq. 2), of three as soon as they are known: nine would fill 18 registers.
        k = median(
            median(
                sample(array, x, w, there, average, c, 0, N, C, S),
                sample(array, x, w, there, average, c, 3, N, C, S),
                sample(array, x, w, there, average, c, 6, N, C, S),
            ),
            median(
                sample(array, x, w, there, average, c, 1, N, C, S),
                sample(array, x, w, there, average, c, 4, N, C, S),
                sample(array, x, w, there, average, c, 7, N, C, S),
            ),
            median(
                sample(array, x, w, there, average, c, 2, N, C, S),
                sample(array, x, w, there, average, c, 5, N, C, S),
                sample(array, x, w, there, average, c, 8, N, C, S),
            ),
        )
    return k


@Kernel
def first_short(x, w, short, N, C, S, least):
    """Block c: whether the values of channel c do not count more than `least` times in all."""
    c, t, T = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    shared = cuda.shared.array(PAIRS, float64)
    total, first, size = 0.0, 0, N * S
    while first < size and not total > least:
        often = 0.0
        for m in range(first + t, min(first + AT_ONCE * T, size), T):
            n, s = m // S, m % S
            often += times(w, x, (n * C + c) * S + s, n, c, s)
        more, _ = block_sums(often, 0.0, shared, t, T)
        total += more
        cuda.syncthreads()
        first += AT_ONCE * T
    if t == 0:
        short[c] = 0.0 if total > least else 1.0
