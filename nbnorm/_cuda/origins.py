"""Origins: the numbers near the values of a channel from which its sums are counted (docs/math.md, Eq. 2 and 10).

k is found in the forward pass, and taken from it in the backward pass; h belongs to dy, of which only counts what an
activation lets through.
"""

from __future__ import annotations

from numba import float64

from nbnorm._channel_rows import COUNT, ORIGIN, SIGN_SCALE, SIGN_SHIFT
from nbnorm._cuda.counted import anywhere, counted_origin, index, per_time
from nbnorm._cuda.vector import element, element_to_compare, gated, is_tangent, leading, routine
from nbnorm._formulas import affine, median, ninther, sample_index


@routine
def sample(x, c, part, N, C, S):
    return element_to_compare(x, sample_index(c, part, N, C, S))


@routine
def origin(x, c, N, C, S):
    """k, from nine values."""
    k = ninther(
        sample(x, c, 0, N, C, S), sample(x, c, 1, N, C, S), sample(x, c, 2, N, C, S),
        sample(x, c, 3, N, C, S), sample(x, c, 4, N, C, S), sample(x, c, 5, N, C, S),
        sample(x, c, 6, N, C, S), sample(x, c, 7, N, C, S), sample(x, c, 8, N, C, S),
    )  # fmt: skip
    return float64(k)


@routine
def channel_origin(array, x, w, average, c, N, C, S):
    """h, of an array that is no x."""
    return origin(array, c, N, C, S) if w is None else counted_origin(array, x, w, average, c, N, C, S)


@routine
def average_of(dy, w, c, N, C, S, stats):
    """How often a value of channel c counts on average; -1 for a Tangent, which is weighted as x is."""
    average = -1.0
    if w is not None:
        average = -1.0 if is_tangent(dy) else stats[COUNT * C + c] / (N * S)
    return average


# Apart from those above, which read float32 values without widening them: the gate needs a sum in float64.


@routine
def gated_sample(dy, x, slope, w, there, stats, c, part, N, C, S):
    """Of what is let through of dy."""
    i = index(x, w, there, c, part, N, C, S)
    z = affine(element(x, i) - stats[ORIGIN * C + c], stats[SIGN_SCALE * C + c], stats[SIGN_SHIFT * C + c])
    g = gated(element(dy, i), z, slope)
    if w is not None:
        g = per_time(g, w, x, i, c, average_of(dy, w, c, N, C, S, stats), C, S)
    return g


@routine
def gated_origin(dy, x, slope, w, stats, c, N, C, S):
    """h where an activation lets dy through: 0 where it lets nothing, so that nothing comes back."""
    there = 0
    if w is not None:
        there = anywhere(x, w, c, N, C, S)
    h = 0.0
    if there >= 0:
        # The ninther (Eq. 2), of three as soon as they are known: nine would fill 18 registers.
        h = median(
            median(
                gated_sample(dy, x, slope, w, there, stats, c, 0, N, C, S),
                gated_sample(dy, x, slope, w, there, stats, c, 3, N, C, S),
                gated_sample(dy, x, slope, w, there, stats, c, 6, N, C, S),
            ),
            median(
                gated_sample(dy, x, slope, w, there, stats, c, 1, N, C, S),
                gated_sample(dy, x, slope, w, there, stats, c, 4, N, C, S),
                gated_sample(dy, x, slope, w, there, stats, c, 7, N, C, S),
            ),
            median(
                gated_sample(dy, x, slope, w, there, stats, c, 2, N, C, S),
                gated_sample(dy, x, slope, w, there, stats, c, 5, N, C, S),
                gated_sample(dy, x, slope, w, there, stats, c, 8, N, C, S),
            ),
        )
    return h


@routine
def origins(x, dy, slope, w, centred, c, N, C, S, stats):
    """k and h of channel c; k is found in the forward pass and taken from it in the backward pass.

    Not `centred`, k has been found before, and dy keeps its origin 0: frozen statistics do not depend on x, so that the
    sum of u is not known.
    """
    k, h = 0.0, 0.0
    if dy is None:
        if w is None:
            k = origin(x, c, N, C, S)
        elif centred:
            k = counted_origin(x, x, w, None, c, N, C, S)
        else:
            k = stats[ORIGIN * C + c]
    else:
        k = stats[ORIGIN * C + c]
        if centred:
            if slope is not None:
                h = gated_origin(dy, x, slope, w, stats, c, N, C, S)
            else:
                h = channel_origin(leading(dy), x, w, average_of(dy, w, c, N, C, S, stats), c, N, C, S)
    return k, h


@routine
def signs_of(slope, c, C, stats):
    """Scale and shift of y in channel c, where its sign is asked for."""
    scale, shift = 0.0, 0.0
    if slope is not None:
        scale, shift = stats[SIGN_SCALE * C + c], stats[SIGN_SHIFT * C + c]
    return scale, shift


@routine
def let_through(x, dy, slope, k, scale, shift):
    """Eq. 35, of values or packs; in a forward pass dy is None."""
    result = dy
    if dy is not None:  # noqa: SIM102  the compiler prunes what stands under a test of None and nothing else
        if slope is not None:
            result = gated(dy, affine(x - k, scale, shift), slope)
    return result
