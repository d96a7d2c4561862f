"""Maps: the affine map of a channel on vectors and runs of values (docs/math.md, Eq. 7, 13, 19, 29, 34, 35 and 42).

y = scale*(x - k) + shift, or with dy an array dx = a*(dy - h) + scale*(x - k) + shift, and with `other`, ddx, too
dx = a*(dy - h) + b*(ddx - o) + scale*(x - k) + shift, in float64; with coefficients in float32 their forms in float32
(coefficients.py). One read of each input, one write.

With a `slope` there is an activation. Forwards `other` is a residual, or None; backwards b and o are scale and shift of
y, whose sign says how much of dy is let through.
"""

from __future__ import annotations

import numpy as np
from numba.extending import overload

from nbnorm._cpu.arrays import leading, of_ddx
from nbnorm._cpu.counted import counted_image, lanes_that_count
from nbnorm._cpu.cursor import shifted
from nbnorm._cpu.origins import let_through
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
    lanes,
    lanes_of_columns,
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
ABREAST = 4  # rows that share what is loaded of the tables


@routine
def image(x, dy, other, slope, w, n, k, h, o, a, b, scale, shift, t):
    """The map of vectors x, dy and other (or None), at the cursor, of which n lanes are there.

    Coefficients are numbers, vectors, or tables read at t.
    """
    u, scale, shift = deviation(x, lanes(k, t), lanes(o, t), lanes(b, t)), lanes(scale, t), lanes(shift, t)
    g = dy
    if dy is not None:  # noqa: SIM102  the compiler prunes what stands under a test of None and nothing else
        if slope is not None:
            g = let_through(dy, u, slope, lanes(b, t), lanes(o, t))
    if w is not None:
        m, factor = lanes_that_count(w, x, n)
        return counted_image(
            x, leading(g), of_ddx(g), other, u, m, factor, lanes(h, t), lanes(o, t), lanes(a, t), lanes(b, t), scale,
            shift,
        )  # fmt: skip
    if dy is None:
        return beside(placed(u, scale, lanes(k, t), shift), other, slope)
    # dy - h in float64, k*dy + h in float32
    v, a = deviation(leading(g), lanes(h, t), lanes(h, t), lanes(k, t)), lanes(a, t)
    if other is None:
        return affine_of_two(v, a, u, scale, shift)
    return affine_of_three(minus(other, lanes(o, t)), lanes(b, t), v, a, u, scale, shift)


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
def part(x, dy, other, slope, w, y, i, n, k, h, o, a, b, scale, shift, t):
    """y[i : i + n], n <= LANES."""
    u, v = load_part_as(scale, x, i, n, LANES), load_part_as(scale, dy, i, n, LANES)
    z = load_part_as(scale, other, i, n, LANES)
    store_part(y, i, n, image(u, v, z, slope, w, n, k, h, o, a, b, scale, shift, t), LANES)


@routine
def few(x, dy, other, slope, w, y, i, n, k, h, o, a, b, scale, shift):
    """y[i : i + n], n <= FEW."""
    u, v = load_part_as(scale, x, i, n, FEW), load_part_as(scale, dy, i, n, FEW)
    z = load_part_as(scale, other, i, n, FEW)
    store_part(y, i, n, image(u, v, z, slope, w, n, k, h, o, a, b, scale, shift, START), FEW)


@routine
def run(x, dy, other, slope, w, y, i, end, k, h, o, a, b, scale, shift, t, streaming, ahead):
    """y[i:end], which is at the cursor; coefficients are numbers, or tables read from position t on.

    Streaming from memory, it asks for what lies `ahead` values further on; 0 where the CPU sees that coming.
    """
    if streaming:
        n = smaller(end - i, until_line(y, i))
        if n > 0:
            part(x, dy, other, slope, w, y, i, n, k, h, o, a, b, scale, shift, t)
            i += n
            t += n
            w = shifted(w, 0, 0, n)
        while i + LANES <= end:
            if ahead > 0:
                prefetch(scale, x, i + ahead)
                prefetch(scale, dy, i + ahead)
                prefetch(scale, other, i + ahead)
            u, v, z = load_as(scale, x, i), load_as(scale, dy, i), load_as(scale, other, i)
            stream(y, i, image(u, v, z, slope, w, ALL, k, h, o, a, b, scale, shift, t))
            i += LANES
            t += LANES
            w = shifted(w, 0, 0, LANES)
    else:
        while i + LANES <= end:
            u, v, z = load_as(scale, x, i), load_as(scale, dy, i), load_as(scale, other, i)
            store(y, i, image(u, v, z, slope, w, ALL, k, h, o, a, b, scale, shift, t))
            i += LANES
            t += LANES
            w = shifted(w, 0, 0, LANES)
    if i < end:
        part(x, dy, other, slope, w, y, i, end - i, k, h, o, a, b, scale, shift, t)


# ---- rows


@once
def rows_image(x, dy, other, slope, w, y, i, rows, stride, k, h, o, a, b, scale, shift):
    for r in range(rows):
        at = i + r * stride
        u, v, z = load_as(scale, x, at), load_as(scale, dy, at), load_as(scale, other, at)
        store(y, at, image(u, v, z, slope, shifted(w, r, 0, 0), ALL, k, h, o, a, b, scale, shift, START))


@routine
def rows_rest(x, dy, other, slope, w, y, i, n, k, h, o, a, b, scale, shift):
    """y[i : i + n], fewer columns than are mapped at once."""
    if w is None:
        rest_of_few(x, dy, other, slope, w, y, i, n, k, h, o, a, b, scale, shift)
    else:
        rest_of_many(x, dy, other, slope, w, y, i, n, k, h, o, a, b, scale, shift)


@routine
def rest_of_many(x, dy, other, slope, w, y, i, n, k, h, o, a, b, scale, shift):
    part(x, dy, other, slope, w, y, i, n, k, h, o, a, b, scale, shift, START)


rest_of_few = rest_of_many if narrow is vector else few


@function
def rows_run(x, dy, other, slope, w, y, i, end, stride, cols, k, h, o, a, b, scale, shift, t, streaming):
    """`cols` columns of each row from y[i] to y[end]; the tables are read from position t on, once for ABREAST rows
    where y is not streamed, as many columns at a time as registers hold.

    Rows without a gap that are whole vectors wide may begin behind their first values, so that stores fill lines (half
    lines take twice as long): the tables repeat their first LANES columns behind the last. For the cursor a row is a
    sample.
    """
    if w is None:  # noqa: SIM102  the compiler prunes what stands under a test of None and nothing else
        if cols == stride and cols % LANES == 0 and i + ABREAST * stride < end:
            head = until_line(y, i)
            if head > 0:
                part(x, dy, other, slope, w, y, i, head, k, h, o, a, b, scale, shift, t)
                i += head
                t += head
    while not streaming and i + (ABREAST - 1) * stride + cols <= end:
        j = 0
        while j < cols:
            kv, hv, ov = lanes_of_columns(w, k, t + j), lanes_of_columns(w, h, t + j), lanes_of_columns(w, o, t + j)
            av, bv = lanes_of_columns(w, a, t + j), lanes_of_columns(w, b, t + j)
            scale_v, shift_v = lanes_of_columns(w, scale, t + j), lanes_of_columns(w, shift, t + j)
            its = shifted(w, 0, 0, j)
            if j + columns_at_once(w) <= cols:
                rows_image(x, dy, other, slope, its, y, i + j, ABREAST, stride, kv, hv, ov, av, bv, scale_v, shift_v)
            else:
                for r in range(ABREAST):
                    at, n = i + r * stride + j, cols - j
                    of_row = shifted(its, r, 0, 0)
                    rows_rest(x, dy, other, slope, of_row, y, at, n, kv, hv, ov, av, bv, scale_v, shift_v)
            j += columns_at_once(w)
        i += ABREAST * stride
        w = shifted(w, ABREAST, 0, 0)
    while i < end:
        stop = smaller(i + cols, end)
        run(x, dy, other, slope, w, y, i, stop, k, h, o, a, b, scale, shift, t, streaming, NONE)
        i += stride
        w = shifted(w, 1, 0, 0)
