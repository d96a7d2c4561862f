"""Fused double backward pass: sums, coefficients and both maps of a block of channels, still in cache.

The same sums in the same order as in the separate launches of derivatives.py, so the same bits; the three arrays are
read from memory once, not four times. The three pairs of a chunk are summed one after the other: the second and third
find it in a cache.
"""

from __future__ import annotations

from nbnorm._channel_rows import CROSS, DDX, DEVIATION, DY_ORIGIN, OFFSET, ORIGIN, PRODUCT, SUM
from nbnorm._cpu.arrays import matrix
from nbnorm._cpu.deal import NONE_DONE, portion
from nbnorm._cpu.finalize_derivatives import second_channel, tangent_channel
from nbnorm._cpu.launch import Kernel
from nbnorm._cpu.origins import origin
from nbnorm._cpu.region import each_worker
from nbnorm._cpu.sums_of_segments import add_chunks, chunk_sums, room_of_worker, total_of_chunks
from nbnorm._cpu.vector import routine, smaller
from nbnorm._cpu.vector_memory import fence
from nbnorm._cpu.walk import chunk
from nbnorm._formulas import centred_product


@routine
def fuse_double(
    taken, worker, workers, ddx, dy, x, ddy, dx, stats, sums, coef_of_ddy, coef_of_dx, directions, dgamma, scratch,
    room, N, C, S, per, piece, chunks, channels, streaming,
):  # fmt: skip
    """What one worker does."""
    size, sums_of_ddx = 3 * C * chunks, sums[DDX:]
    parts_of_dy = matrix(scratch, 0, C * chunks, 3)
    parts_of_ddx = matrix(scratch, size, C * chunks, 3)
    parts_of_both = matrix(scratch, 2 * size, C * chunks, 3)
    acc = room_of_worker(scratch, 3 * size, worker, room)
    k, h, o = stats[ORIGIN], sums[DY_ORIGIN], sums_of_ddx[DY_ORIGIN]
    blocks = (C + channels - 1) // channels
    done, first, last = portion(taken, NONE_DONE, worker, workers, blocks)
    while first < last:
        c0, c1 = first * channels, smaller(C, (first + 1) * channels)
        for c in range(c0, c1):
            h[c], o[c] = origin(dy, x, None, None, None, c, N, C, S), origin(ddx, x, None, None, None, c, N, C, S)
        for t in range(chunks):
            chunk_sums(x, dy, None, None, c0, c1, t, per, piece, chunks, N, C, S, k, h, stats, acc, parts_of_dy)
            chunk_sums(x, ddx, None, None, c0, c1, t, per, piece, chunks, N, C, S, k, o, stats, acc, parts_of_ddx)
            chunk_sums(dy, ddx, None, None, c0, c1, t, per, piece, chunks, N, C, S, h, o, stats, acc, parts_of_both)
        add_chunks(dy, None, parts_of_dy, c0, c1, chunks, stats, sums)
        add_chunks(ddx, None, parts_of_ddx, c0, c1, chunks, stats, sums_of_ddx)
        for c in range(c0, c1):
            d = stats[DEVIATION, c]
            sums[PRODUCT, c], sums[OFFSET, c], sums[CROSS, c] = (
                centred_product(sums[SUM, c], sums[PRODUCT, c], d),
                0.0,
                total_of_chunks(parts_of_both, c, chunks, 1),
            )
            sums_of_ddx[PRODUCT, c] = centred_product(sums_of_ddx[SUM, c], sums_of_ddx[PRODUCT, c], d)
            tangent_channel(c, stats, sums_of_ddx, directions, float(N * S), coef_of_ddy)
            second_channel(c, stats, sums, directions, dgamma, float(N * S), coef_of_dx)
        for t in range(chunks - 1, -1, -1):
            chunk(x, ddx, None, None, None, ddy, c0, c1, t, per, piece, N, C, S, k, coef_of_ddy, streaming)
            chunk(x, dy, ddx, None, None, dx, c0, c1, t, per, piece, N, C, S, k, coef_of_dx, streaming)
        first += 1
        if first == last:
            done, first, last = portion(taken, done, worker, workers, blocks)
    if streaming:
        fence()


@Kernel
def fused_double_segments(
    ddx, dy, x, ddy, dx, stats, sums, coef_of_ddy, coef_of_dx, directions, dgamma, scratch, room, N, C, S, per, piece,
    chunks, channels, streaming, workers, share_out,
):  # fmt: skip
    """coef_of_ddy and coef_of_dx (7, C) are the coefficients of the two maps, sums (8, C); all of them scratch. So is
    what `scratch_of_segments` makes, with 3 numbers three times for each chunk of each channel.
    """
    each_worker(
        fuse_double, workers, share_out, ddx, dy, x, ddy, dx, stats, sums, coef_of_ddy, coef_of_dx, directions, dgamma,
        scratch, room, N, C, S, per, piece, chunks, channels, streaming,
    )  # fmt: skip
