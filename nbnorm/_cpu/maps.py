"""Maps: the affine map of a channel on vectors and runs of values (docs/math.md, Eq. 7, 13, 19, 29, 34, 35 and 42).

y = scale*(x - k) + shift, or with dy an array dx = a*(dy - h) + scale*(x - k) + shift, and with `other`, ddx, too
dx = a*(dy - h) + b*(ddx - o) + scale*(x - k) + shift, in float64; with coefficients in float32 their forms in float32
(coefficients.py). One read of each input, one write. `coef` has their rows: tables, or a number or a vector for each.

With a `slope` there is an activation. Forwards `other` is a residual, or None; backwards b and o are scale and shift of
y, whose sign says how much of dy is let through.
"""

from __future__ import annotations

import numpy as np
from numba.extending import overload

from nbnorm._cpu.arrays import leading, of_ddx
from nbnorm._cpu.coefficients import ORIGIN_OF_DDX, SCALE, SHIFT, A, B, H, K
from nbnorm._cpu.counted import counted_image, lanes_that_count
from nbnorm._cpu.cursor import shifted
from nbnorm._cpu.origins import let_through
from nbnorm._cpu.plan import LINE
from nbnorm._cpu.tables import lanes_of, lanes_of_columns
from nbnorm._cpu.vector import (
    FEW,
    INLINED,
    LANES,
    activated,
    deviation,
    function,
    is_float32,
    minus,
    narrow,
    once,
    routine,
    smaller,
    vector,
)
from nbnorm._cpu.vector_memory import (
    columns_at_once,
    is_single,
    load_as,
    load_part_as,
    prefetch,
    store,
    store_part,
    stream,
    until_line,
)
from nbnorm._formulas import affine, affine_of_three, affine_of_two
from nbnorm._single_map import affine_in_single

# Not literals, for which Numba would compile routines once more; LLVM sees the values all the same.
NONE, START, ALL = np.intp(0), np.intp(0), np.intp(LANES)
STREAMING, ORDINARY = np.bool_(True), np.bool_(False)
IN_CACHE = np.bool_(False)
ABREAST = 4  # rows that share what is loaded of the tables


@routine
def image(x, dy, other, slope, w, n, coef, t):
    """The map of vectors x, dy and other (or None), at the cursor, of which n lanes are there; of tables from t on."""
    k, o, b = lanes_of(coef, K, t), lanes_of(coef, ORIGIN_OF_DDX, t), lanes_of(coef, B, t)
    u, scale, shift = deviation(x, k, o, b), lanes_of(coef, SCALE, t), lanes_of(coef, SHIFT, t)
    if dy is None:
        return beside(placed(u, scale, k, shift), other, slope)
    a, h, g = lanes_of(coef, A, t), lanes_of(coef, H, t), dy
    if slope is not None:
        g = let_through(dy, u, slope, b, o)
    if w is not None:
        m, factor = lanes_that_count(w, x, n)
        return counted_image(x, leading(g), of_ddx(g), other, u, m, factor, h, o, a, b, scale, shift)
    v = deviation(leading(g), h, h, k)  # dy - h in float64, k*dy + h in float32
    if other is None:
        return affine_of_two(v, a, u, scale, shift)
    return affine_of_three(minus(other, o), b, v, a, u, scale, shift)


def placed(u, scale, lost, shift):
    """y of a deviation."""
    return affine_in_single(u, scale, lost, shift) if is_single(u) else affine(u, scale, shift)


@overload(placed, jit_options=INLINED)
def _(u, scale, lost, shift):
    if is_float32(u):
        return lambda u, scale, lost, shift: affine_in_single(u, scale, lost, shift)
    return lambda u, scale, lost, shift: affine(u, scale, shift)


@routine
def beside(z, residual, slope):
    """Eq. 34."""
    if residual is not None:
        z = z + residual
    if slope is not None:
        z = activated(z, slope)
    return z


@routine
def part(x, dy, other, slope, w, y, i, n, coef, t):
    """y[i : i + n], n <= LANES."""
    u, v = load_part_as(coef, x, i, n, LANES), load_part_as(coef, dy, i, n, LANES)
    z = load_part_as(coef, other, i, n, LANES)
    store_part(y, i, n, image(u, v, z, slope, w, n, coef, t), LANES)


@routine
def few(x, dy, other, slope, w, y, i, n, coef):
    """y[i : i + n], n <= FEW."""
    u, v = load_part_as(coef, x, i, n, FEW), load_part_as(coef, dy, i, n, FEW)
    z = load_part_as(coef, other, i, n, FEW)
    store_part(y, i, n, image(u, v, z, slope, w, n, coef, START), FEW)


@routine
def ask(x, dy, other, i, coef):
    """For what vectors from i on are loaded from."""
    prefetch(coef, x, i)
    prefetch(coef, dy, i)
    prefetch(coef, other, i)


@routine
def vector_image(x, dy, other, slope, w, y, i, coef, t, streaming):
    """y[i : i + LANES]."""
    u, v, z = load_as(coef, x, i), load_as(coef, dy, i), load_as(coef, other, i)
    values = image(u, v, z, slope, w, ALL, coef, t)
    if streaming:
        stream(y, i, values)
    else:
        store(y, i, values)


@routine
def run(x, dy, other, slope, w, y, i, end, coef, t, streaming, ahead):
    """y[i:end], which is at the cursor; of tables from position t on.

    It asks for what lies `ahead` values further on; 0 where that is near, or the CPU sees it coming.
    """
    if streaming:
        n = smaller(end - i, until_line(y, i))
        if n > 0:
            part(x, dy, other, slope, w, y, i, n, coef, t)
            i += n
            t += n
            w = shifted(w, 0, 0, n)
    while i + LANES <= end:
        if ahead > 0:
            ask(x, dy, other, i + ahead, coef)
        vector_image(x, dy, other, slope, w, y, i, coef, t, streaming)
        i += LANES
        t += LANES
        w = shifted(w, 0, 0, LANES)
    if i < end:
        part(x, dy, other, slope, w, y, i, end - i, coef, t)


# ---- rows


@once
def rows_image(x, dy, other, slope, w, y, i, rows, stride, coef):
    for r in range(rows):
        at = i + r * stride
        u, v, z = load_as(coef, x, at), load_as(coef, dy, at), load_as(coef, other, at)
        store(y, at, image(u, v, z, slope, shifted(w, r, 0, 0), ALL, coef, START))


@routine
def rows_rest(x, dy, other, slope, w, y, i, n, coef):
    """y[i : i + n], fewer columns than are mapped at once."""
    if w is None:
        rest_of_few(x, dy, other, slope, w, y, i, n, coef)
    else:
        rest_of_many(x, dy, other, slope, w, y, i, n, coef)


@routine
def rest_of_many(x, dy, other, slope, w, y, i, n, coef):
    part(x, dy, other, slope, w, y, i, n, coef, START)


rest_of_few = rest_of_many if narrow is vector else few


@function
def rows_run(x, dy, other, slope, w, y, i, end, stride, cols, tables, t, streaming, far):
    """`cols` columns of each row from y[i] to y[end]; the tables are read from position t on, once for ABREAST rows
    where y is not streamed, as many columns at a time as registers hold. Where they come from `far`, beyond a
    second-level cache, the next such rows are asked for meanwhile: the CPU does not see several coming.

    Rows without a gap that are whole vectors wide may begin behind their first values, so that stores fill lines (half
    lines take twice as long): the tables repeat their first LANES columns behind the last. For the cursor a row is a
    sample.
    """
    if w is None:  # noqa: SIM102  the compiler prunes what stands under a test of None and nothing else
        if cols == stride and cols % LANES == 0 and i + ABREAST * stride < end:
            head = until_line(y, i)
            if head > 0:
                part(x, dy, other, slope, w, y, i, head, tables, t)
                i += head
                t += head
    while not streaming and i + (ABREAST - 1) * stride + cols <= end:
        j = 0
        while j < cols:
            coef, its = lanes_of_columns(dy, w, tables, t + j), shifted(w, 0, 0, j)
            if j + columns_at_once(w) <= cols:
                if far and j % (LINE // y.itemsize) < columns_at_once(w):  # once a line
                    for r in range(ABREAST, 2 * ABREAST):
                        ask(x, dy, other, i + r * stride + j, coef)
                rows_image(x, dy, other, slope, its, y, i + j, ABREAST, stride, coef)
            else:
                for r in range(ABREAST):
                    at, n = i + r * stride + j, cols - j
                    rows_rest(x, dy, other, slope, shifted(its, r, 0, 0), y, at, n, coef)
            j += columns_at_once(w)
        i += ABREAST * stride
        w = shifted(w, ABREAST, 0, 0)
    while i < end:
        stop = smaller(i + cols, end)
        run(x, dy, other, slope, w, y, i, stop, tables, t, streaming, NONE)
        i += stride
        w = shifted(w, 1, 0, 0)
