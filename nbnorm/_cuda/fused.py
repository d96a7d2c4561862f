"""Fused: reduce, finalize and apply in one launch, by blocks that keep on the chip meanwhile what they read.

The same routines in the same order as the two launches that it saves: so the same bits. x (and dy) are read once, not
twice. plan.group says whether this is used, and how many blocks share a channel; they are a cluster, and each has as
many of its parts. `parts` is where they leave their sums for each other, None where a channel is one part.
"""

from __future__ import annotations

from numba import float64

from nbnorm._cuda.apply import map_segments
from nbnorm._cuda.finalize import channel_sums, finalize_backward, finalize_forward
from nbnorm._cuda.launch import Kernel, cuda
from nbnorm._cuda.plan import PAIRS
from nbnorm._cuda.reduce import block_sums, keep_sums, origins, segment_sums, signs_of
from nbnorm._cuda.vector import cluster_barrier, lanes, room, routine
from nbnorm._formulas import ORIGIN


@routine
def whole_sums(
    x, dy, slope, x_room, dy_room, parts, shared, c, g, share, t, T, N, C, S, SV, per, P, k, h, scale, shift
):  # fmt: skip
    """s and q of channel c, of which this block reads and keeps parts g*share to (g + 1)*share."""
    s, q, p = 0.0, 0.0, g * share
    while p < (g + 1) * share:
        s, q, _ = segment_sums(
            x, dy, slope, None, x_room, dy_room, c, p, t, T, N, C, S, SV, per, P, k, h, scale, shift
        )  # fmt: skip
        s, q = block_sums(s, q, shared, t, T)
        if parts is not None:
            if t == 0:
                keep_sums(parts, c, p, P, s, q)
            cuda.syncthreads()  # not before all threads have seen the sums may the next ones take their place
        p += 1
    if parts is not None:
        cluster_barrier()
        s, q = channel_sums(parts, shared, c, C, P, 1, t, T)
    return s, q


@Kernel
def fused_segments(x, residual, slope, y, parts, stats, gamma, beta, N, C, S, SV, per, P, count, eps):
    """Block (c, g): a training forward of channel c; the first of a channel keeps its statistics."""
    c, g, t, T = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x, cuda.blockDim.x
    share = P // cuda.gridDim.y
    packs = share * per  # of this block
    shared, x_room = cuda.shared.array(PAIRS, float64), room(x, -g * packs)  # pack j of the channel is its pack j
    whole = SV * lanes(x)  # what S is, as the compiler sees it: no value is in no pack
    k, h = origins(x, None, None, None, 1, c, N, C, S, stats)
    first = g == 0 and t == 0
    if first:
        stats[ORIGIN * C + c] = k
    s, q = whole_sums(
        x, None, None, x_room, None, parts, shared, c, g, share, t, T, N, C, whole, SV, per, P, k, h, 0.0, 0.0
    )  # fmt: skip
    k, scale, shift = finalize_forward(s, q, c, C, first, stats, gamma, beta, eps, count)
    map_segments(
        x, None, residual, slope, None, y, x_room, None, c, g, t, T, N, C, whole, SV, packs, P, k, scale, shift,
        0.0, 0.0, 0.0, 0.0,
    )  # fmt: skip


@Kernel
def fused_gradient_segments(x, dy, slope, dx, parts, stats, dgamma, dbeta, N, C, S, SV, per, P, count):
    """Block (c, g): a backward pass of channel c; the first of a channel keeps dgamma and dbeta."""
    c, g, t, T = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x, cuda.blockDim.x
    share = P // cuda.gridDim.y
    packs = share * per
    shared, x_room = cuda.shared.array(PAIRS, float64), room(x, -g * packs)
    dy_room = room(dy, packs - g * packs)  # behind all of x
    whole = SV * lanes(x)
    k, h = origins(x, dy, slope, None, 1, c, N, C, S, stats)
    b, o = signs_of(slope, c, C, stats)
    s, q = whole_sums(
        x, dy, slope, x_room, dy_room, parts, shared, c, g, share, t, T, N, C, whole, SV, per, P, k, h, b, o
    )  # fmt: skip
    k, scale, shift, a, h = finalize_backward(s, q, c, C, g == 0 and t == 0, h, stats, dgamma, dbeta, count)
    map_segments(
        x, dy, None, slope, None, dx, x_room, dy_room, c, g, t, T, N, C, whole, SV, packs, P, k, scale, shift,
        a, h, b, o,
    )  # fmt: skip
