"""Fused: reduce, finalize and apply in one launch, by blocks that keep on the chip meanwhile what they read.

The same routines in the same order as the two launches that it saves: so the same bits. x (and dy) are read once, not
twice. For channels that one block works on alone and has room for (plan.room_of).
"""

from __future__ import annotations

from numba import float64

from nbnorm._channel_rows import ORIGIN
from nbnorm._cuda.block import block_sums
from nbnorm._cuda.commits import commit_first, known_running
from nbnorm._cuda.finalize import (
    finalize_backward,
    finalize_forward,
    keep_sign_map,
    known_backward,
    parameter,
)
from nbnorm._cuda.launch import Kernel, cuda
from nbnorm._cuda.maps import map_segments
from nbnorm._cuda.origins import origins, signs_of
from nbnorm._cuda.plan import PAIRS
from nbnorm._cuda.sums import segment_sums
from nbnorm._cuda.vector import lanes, map_of_two, map_of_x, room
from nbnorm._cuda.walk import first_packs


@Kernel
def fused_segments(
    x, residual, slope, y, stats, gamma, beta, mean, var, counters, N, C, S, SV, per, P, count, eps, momentum, ddof
):  # fmt: skip
    """Block c: a training forward of channel c, which keeps its statistics and folds them in.

    Not into pooled ones: no launch before this one has kept what was seen.
    """
    c, t, T = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    shared, x_room = cuda.shared.array(PAIRS, float64), room(x, 0)
    whole = SV * lanes(x)  # what S is, as the compiler sees it: no value is in no pack
    begun = first_packs(x, None, None, None, None, None, None, c, 0, t, T, N, C, whole, SV, per, False)
    k, h = origins(x, None, None, None, 1, c, N, C, S, stats)
    known, old = (k, parameter(gamma, c, 1.0), parameter(beta, c, 0.0)), known_running(c, mean, var)
    if t == 0:
        stats[ORIGIN * C + c] = k
    s, q, _ = segment_sums(
        begun, x, None, None, None, x_room, None, c, 0, t, T, N, C, whole, SV, P, k, h, 0.0, 0.0
    )  # fmt: skip
    s, q = block_sums(s, q, shared, t, T)
    k, scale, shift, new, m2 = finalize_forward(s, q, c, C, t == 0, known, stats, eps, count)
    keep_sign_map(c, C, t == 0, slope, residual, scale, shift, stats)
    commit_first(c, t == 0, new, m2, 0.0, old, mean, var, counters, momentum, ddof, count)
    begun = first_packs(x, None, residual, slope, None, x_room, None, c, 0, t, T, N, C, whole, SV, per, True)
    map_segments(
        begun, x, None, residual, slope, None, y, x_room, None, c, 0, t, T, N, C, whole, SV, P,
        map_of_x(x, k, scale, shift, m2 > 0.0),
    )  # fmt: skip


@Kernel
def fused_gradient_segments(x, dy, slope, dx, stats, dgamma, dbeta, N, C, S, SV, per, P, count):
    """Block c: a backward pass of channel c, which keeps dgamma and dbeta."""
    c, t, T = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    shared, x_room, dy_room = cuda.shared.array(PAIRS, float64), room(x, 0), room(dy, per)  # dy's behind all of x
    whole = SV * lanes(x)
    begun = first_packs(x, dy, None, slope, None, None, None, c, 0, t, T, N, C, whole, SV, per, False)
    k, h = origins(x, dy, slope, None, 1, c, N, C, S, stats)
    b, o = signs_of(slope, c, C, stats)
    s, q, _ = segment_sums(
        begun, x, dy, slope, None, x_room, dy_room, c, 0, t, T, N, C, whole, SV, P, k, h, b, o
    )  # fmt: skip
    known = known_backward(c, C, stats)
    s, q = block_sums(s, q, shared, t, T)
    k, scale, shift, a, h = finalize_backward(s, q, c, t == 0, h, known, dgamma, dbeta, count)
    begun = first_packs(x, dy, None, slope, None, x_room, dy_room, c, 0, t, T, N, C, whole, SV, per, True)
    map_segments(
        begun, x, dy, None, slope, None, dx, x_room, dy_room, c, 0, t, T, N, C, whole, SV, P,
        map_of_two(x, None, slope, None, k, scale, shift, a, h, b, o),
    )  # fmt: skip
