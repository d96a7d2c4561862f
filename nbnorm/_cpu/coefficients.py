"""Coefficients: what maps need to know of each channel, a row of `coef` (7, C) each.

In float64 dx = a*(dy - h) + b*(ddx - o) + scale*(x - k) + shift, where k is that of stats; y and what has no ddx have
less of it. In float32, for maps of x alone and of x and dy, all of whose values count (Eq. 19, 42), the same rows hold
other numbers: y = scale*w + (k*w + shift) and dx = a*(k*dy + h) + (scale*w + shift), with w = b*x + o. So b and k are
powers of two there, o and h what they leave of the roots; without dy k is what scale has lost.
"""

from __future__ import annotations

from numba import types
from numba.extending import overload, register_jitable

from nbnorm._channel_rows import SIGN_SCALE, SIGN_SHIFT
from nbnorm._cpu.traced import single_map, single_map_of_two
from nbnorm._cpu.vector import INLINED, once
from nbnorm._cpu.vector_memory import is_single

SCALE, SHIFT, B, ORIGIN_OF_DDX, K, A, H = range(7)
OF_ONE, OF_TWO = 5, 7  # rows that maps of x alone have, and of x and dy
POWER, OFFSET_OF_X, LOST = B, ORIGIN_OF_DDX, K  # when they are float32
POWER_OF_DY, OFFSET_OF_DY = K, H


def set_map(coef, c, k, scale, shift, varies):
    """y = scale*(x - k) + shift; `varies` is false for a channel that is known to be constant."""
    if is_single(coef):
        set_single_map(coef, c, k, scale, shift, varies)
    else:
        coef[SCALE, c], coef[SHIFT, c] = scale, shift


@once
def set_single_map(coef, c, k, scale, shift, varies):
    coef[POWER, c], coef[OFFSET_OF_X, c], coef[SCALE, c], coef[LOST, c], coef[SHIFT, c] = single_map(
        k, scale, shift, varies
    )


@overload(set_map, jit_options=INLINED)
def _(coef, c, k, scale, shift, varies):
    if coef.dtype == types.float32:

        def body(coef, c, k, scale, shift, varies):
            set_single_map(coef, c, k, scale, shift, varies)
    else:

        def body(coef, c, k, scale, shift, varies):
            coef[SCALE, c], coef[SHIFT, c] = scale, shift

    return body


def set_gradient_map(coef, c, h, a, k, scale, shift):
    """dx = a*(dy - h) + scale*(x - k) + shift."""
    if is_single(coef):
        set_single_gradient_map(coef, c, h, a, k, scale, shift)
    else:
        coef[A, c], coef[H, c], coef[SCALE, c], coef[SHIFT, c] = a, h, scale, shift


@once
def set_single_gradient_map(coef, c, h, a, k, scale, shift):
    (
        coef[POWER_OF_DY, c], coef[OFFSET_OF_DY, c], coef[A, c], coef[POWER, c], coef[OFFSET_OF_X, c], coef[SCALE, c],
        coef[SHIFT, c],
    ) = single_map_of_two(h, a, k, scale, shift)  # fmt: skip


@overload(set_gradient_map, jit_options=INLINED)
def _(coef, c, h, a, k, scale, shift):
    if coef.dtype == types.float32:

        def body(coef, c, h, a, k, scale, shift):
            set_single_gradient_map(coef, c, h, a, k, scale, shift)
    else:

        def body(coef, c, h, a, k, scale, shift):
            coef[A, c], coef[H, c], coef[SCALE, c], coef[SHIFT, c] = a, h, scale, shift

    return body


@register_jitable(**INLINED)
def signs_for_map(stats, c, coef):
    """b and o of channel c, or for c = ... of every channel, where an activation asks for the sign of y."""
    coef[B, c], coef[ORIGIN_OF_DDX, c] = stats[SIGN_SCALE, c], stats[SIGN_SHIFT, c]


def own_k(origins, coef):
    """The k of maps: the origins, or in float32 the row that is its own."""
    return coef[K] if is_single(coef) else origins


@overload(own_k, jit_options=INLINED)
def _(origins, coef):
    return (lambda origins, coef: coef[K]) if coef.dtype == types.float32 else (lambda origins, coef: origins)
