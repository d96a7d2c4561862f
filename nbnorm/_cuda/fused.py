"""Fused: reduce, finalize and apply in one launch, by blocks that keep on the chip meanwhile what they read.

The same routines in the same order as the two launches that it saves: so the same bits. x (and dy) are read once, not
twice. plan.group says whether this is used, and how many blocks share a channel; they are a cluster, and each has as
many of its parts. `parts` is where they leave their sums for each other, None where a channel is one part.
"""

from __future__ import annotations

from numba import float64

from nbnorm._cuda.apply import map_segments
from nbnorm._cuda.finalize import channel_sums, commit_first, finalize_backward, finalize_forward
from nbnorm._cuda.launch import Kernel, cuda
from nbnorm._cuda.plan import PAIRS
from nbnorm._cuda.reduce import block_sums, keep_sums, origins, segment_sums, signs_of
from nbnorm._cuda.vector import cluster_barrier, lanes, room, routine
from nbnorm._cuda.walk import first_packs
from nbnorm._formulas import ORIGIN


@routine
def part_sums(begun, x, dy, slope, x_room, dy_room, shared, c, p, t, T, N, C, S, SV, P, k, h, scale, shift):
    s, q, _ = segment_sums(
        begun, x, dy, slope, None, x_room, dy_room, c, p, t, T, N, C, S, SV, P, k, h, scale, shift
    )  # fmt: skip
    return block_sums(s, q, shared, t, T)


@routine
def whole_sums(
    begun, x, dy, slope, x_room, dy_room, parts, shared, c, g, share, t, T, N, C, S, SV, per, P, k, h, scale, shift
):  # fmt: skip
    """s and q of channel c, of which this block reads and keeps parts g*share to (g + 1)*share; the first is begun."""
    p = g * share
    s, q = part_sums(begun, x, dy, slope, x_room, dy_room, shared, c, p, t, T, N, C, S, SV, P, k, h, scale, shift)
    if parts is not None:
        if t == 0:
            keep_sums(parts, c, p, P, s, q)
        while p + 1 < (g + 1) * share:
            p += 1
            begun = first_packs(x, dy, None, None, None, c, p, t, T, N, C, S, SV, per)
            cuda.syncthreads()  # not before all threads have seen the sums may the next ones take their place
            s, q = part_sums(
                begun, x, dy, slope, x_room, dy_room, shared, c, p, t, T, N, C, S, SV, P, k, h, scale, shift
            )  # fmt: skip
            if t == 0:
                keep_sums(parts, c, p, P, s, q)
        cluster_barrier()
        s, q = channel_sums(parts, shared, c, C, P, 1, t, T)
    return s, q


@Kernel
def fused_segments(
    x, residual, slope, y, parts, stats, gamma, beta, mean, var, counters, N, C, S, SV, per, P,
    count, eps, momentum, ddof,
):  # fmt: skip
    """Block (c, g): a training forward of channel c; the first of a channel keeps its statistics, and folds them in.

    Not into pooled ones: no launch before this one has kept what was seen.
    """
    c, g, t, T = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x, cuda.blockDim.x
    share = P // cuda.gridDim.y
    packs = share * per  # of this block
    shared, x_room = cuda.shared.array(PAIRS, float64), room(x, -g * packs)  # pack j of the channel is its pack j
    whole = SV * lanes(x)  # what S is, as the compiler sees it: no value is in no pack
    begun = first_packs(x, None, None, None, None, c, g * share, t, T, N, C, whole, SV, per)
    k, h = origins(x, None, None, None, 1, c, N, C, S, stats)
    first = g == 0 and t == 0
    if first:
        stats[ORIGIN * C + c] = k
    s, q = whole_sums(
        begun, x, None, None, x_room, None, parts, shared, c, g, share, t, T, N, C, whole, SV, per, P, k, h, 0.0, 0.0
    )  # fmt: skip
    k, scale, shift = finalize_forward(s, q, c, C, first, stats, gamma, beta, eps, count)
    commit_first(c, C, first, 0.0, stats, mean, var, counters, momentum, ddof, count)
    begun = first_packs(x, None, residual, x_room, None, c, g, t, T, N, C, whole, SV, packs)
    map_segments(
        begun, x, None, residual, slope, None, y, x_room, None, c, g, t, T, N, C, whole, SV, P, k, scale, shift,
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
    begun = first_packs(x, dy, None, None, None, c, g * share, t, T, N, C, whole, SV, per)
    k, h = origins(x, dy, slope, None, 1, c, N, C, S, stats)
    b, o = signs_of(slope, c, C, stats)
    s, q = whole_sums(
        begun, x, dy, slope, x_room, dy_room, parts, shared, c, g, share, t, T, N, C, whole, SV, per, P, k, h, b, o
    )  # fmt: skip
    k, scale, shift, a, h = finalize_backward(s, q, c, C, g == 0 and t == 0, h, stats, dgamma, dbeta, count)
    begun = first_packs(x, dy, None, x_room, dy_room, c, g, t, T, N, C, whole, SV, packs)
    map_segments(
        begun, x, dy, None, slope, None, dx, x_room, dy_room, c, g, t, T, N, C, whole, SV, P, k, scale, shift,
        a, h, b, o,
    )  # fmt: skip
