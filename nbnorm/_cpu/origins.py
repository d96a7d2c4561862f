"""Origins: the numbers near the values of a channel from which its sums are counted (docs/math.md, Eq. 2 and 10).

k is found in the forward pass, and taken from it in the backward pass; h belongs to dy, of which only counts what an
activation lets through.
"""

from __future__ import annotations

import numpy as np

from nbnorm._channel_rows import COUNT, DY_ORIGIN, ORIGIN, SIGN_SCALE, SIGN_SHIFT
from nbnorm._cpu.arrays import element, is_tangent
from nbnorm._cpu.counted import anywhere, near, per_time
from nbnorm._cpu.vector import function, gated, routine
from nbnorm._formulas import TRIES, affine, ninther, sample_index, sample_place


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
def sample(array, x, slope, w, there, stats, c, part, N, C, S):
    """Of x, or of what is let through of dy, for each time it counts by the `stats` (Eq. 23)."""
    i = index(x, w, there, c, part, N, C, S)
    value = element(array, i)
    if slope is not None:
        z = affine(element(x, i) - stats[ORIGIN, c], stats[SIGN_SCALE, c], stats[SIGN_SHIFT, c])
        value = gated(value, z, slope)
    if w is not None:  # noqa: SIM102  the compiler prunes what stands under a test of None and nothing else
        if stats is not None:  # noqa: SIM102
            if not is_tangent(array):  # whose sum is weighted as that of x
                value = per_time(value, w, x, i, c, stats[COUNT, c] / (N * S), C, S)
    return value


def _origin(array, x, slope, w, stats, c, N, C, S):
    """k, or h, from nine values; 0 where none counts, or an activation lets nothing through, so that nothing comes
    back."""
    there = 0
    if w is not None:
        there = anywhere(x, w, c, N, C, S)
    result = 0.0
    if there >= 0:
        result = ninther(
            sample(array, x, slope, w, there, stats, c, np.intp(0), N, C, S),
            sample(array, x, slope, w, there, stats, c, np.intp(1), N, C, S),
            sample(array, x, slope, w, there, stats, c, np.intp(2), N, C, S),
            sample(array, x, slope, w, there, stats, c, np.intp(3), N, C, S),
            sample(array, x, slope, w, there, stats, c, np.intp(4), N, C, S),
            sample(array, x, slope, w, there, stats, c, np.intp(5), N, C, S),
            sample(array, x, slope, w, there, stats, c, np.intp(6), N, C, S),
            sample(array, x, slope, w, there, stats, c, np.intp(7), N, C, S),
            sample(array, x, slope, w, there, stats, c, np.intp(8), N, C, S),
        )
    return result


origin = routine(_origin)
gated_origin = function(_origin)  # nine gates are too much code to be in each caller


@routine
def origins(x, dy, slope, w, centred, stats, sums, first, last, N, C, S):
    """The origin of x in stats or of dy in sums, for channels first:last, when the sums are to be `centred` anew.

    Otherwise that of x is there already, and dy keeps its origin 0: frozen statistics do not depend on x, so that the
    sum of u is not known.
    """
    for c in range(first, last):
        if dy is None:
            if centred:
                stats[ORIGIN, np.uintp(c)] = origin(x, x, None, w, None, c, N, C, S)
        elif centred:
            if slope is None:
                sums[DY_ORIGIN, np.uintp(c)] = origin(dy, x, None, w, stats, c, N, C, S)
            else:
                sums[DY_ORIGIN, np.uintp(c)] = gated_origin(dy, x, slope, w, stats, c, N, C, S)


@routine
def signs_of(slope, stats, c):
    """Scale and shift of y in channel c, where its sign is asked for."""
    scale, shift = 0.0, 0.0
    if slope is not None:
        scale, shift = stats[SIGN_SCALE, c], stats[SIGN_SHIFT, c]
    return scale, shift


@routine
def let_through(dy, u, slope, scale, shift):
    """Eq. 35: scale and shift are those of y."""
    return gated(dy, affine(u, scale, shift), slope)
