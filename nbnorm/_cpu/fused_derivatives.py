"""Fused double backward pass: sums, coefficients and both maps of one channel while its values are still in cache.

The same sums in the same order as in the separate launches of derivatives.py, so the same bits; the three arrays are
read from memory once, not four times. The three pairs of a chunk are summed one after the other: the second and third
find it in the second-level cache.
"""

from __future__ import annotations

from nbnorm._cpu.deal import NONE_DONE, portion
from nbnorm._cpu.finalize_derivatives import second_channel, tangent_channel
from nbnorm._cpu.launch import Kernel
from nbnorm._cpu.origins import origin
from nbnorm._cpu.reduce import chunk_sums
from nbnorm._cpu.region import each_worker
from nbnorm._cpu.vector import routine
from nbnorm._cpu.vector_memory import fence
from nbnorm._cpu.walk import chunk
from nbnorm._formulas import CROSS, DDX, DEVIATION, DY_ORIGIN, OFFSET, ORIGIN, PRODUCT, SUM, centred_product


@routine
def fuse_double(
    taken, worker, workers, ddx, dy, x, ddy, dx, stats, sums, coef_of_ddy, coef_of_dx, directions, dgamma, N, C, S, per,
    piece, chunks, streaming,
):  # fmt: skip
    """What one worker does."""
    sums_of_ddx = sums[DDX:]
    origins = stats[ORIGIN]
    done, first, last = portion(taken, NONE_DONE, worker, workers, C)
    while first < last:
        for c in range(first, last):
            k, d, h, o = (
                stats[ORIGIN, c],
                stats[DEVIATION, c],
                origin(dy, x, None, None, c, N, C, S),
                origin(ddx, x, None, None, c, N, C, S),
            )
            s, q, t, r, cross = 0.0, 0.0, 0.0, 0.0, 0.0
            for j in range(chunks):
                its_s, its_q, _ = chunk_sums(x, dy, None, None, c, j, per, piece, N, C, S, k, h, k, h)
                its_t, its_r, _ = chunk_sums(x, ddx, None, None, c, j, per, piece, N, C, S, k, o, k, o)
                _, its_cross, _ = chunk_sums(dy, ddx, None, None, c, j, per, piece, N, C, S, h, o, h, o)
                s, q, t, r, cross = s + its_s, q + its_q, t + its_t, r + its_r, cross + its_cross
            sums[SUM, c], sums[PRODUCT, c], sums[DY_ORIGIN, c], sums[OFFSET, c] = (
                s,
                centred_product(s, q, d),
                h,
                0.0,
            )
            sums_of_ddx[SUM, c], sums_of_ddx[PRODUCT, c], sums_of_ddx[DY_ORIGIN, c] = t, centred_product(t, r, d), o
            sums[CROSS, c] = cross
            tangent_channel(c, stats, sums_of_ddx, directions, float(N * S), coef_of_ddy)
            second_channel(c, stats, sums, directions, dgamma, float(N * S), coef_of_dx)
            for j in range(chunks - 1, -1, -1):
                chunk(x, ddx, None, None, None, ddy, c, j, per, piece, N, C, S, origins, coef_of_ddy, streaming)
                chunk(x, dy, ddx, None, None, dx, c, j, per, piece, N, C, S, origins, coef_of_dx, streaming)
        done, first, last = portion(taken, done, worker, workers, C)
    if streaming:
        fence()


@Kernel
def fused_double_segments(
    ddx, dy, x, ddy, dx, stats, sums, coef_of_ddy, coef_of_dx, directions, dgamma, N, C, S, per, piece, chunks,
    streaming, workers, share_out,
):  # fmt: skip
    """coef_of_ddy and coef_of_dx (7, C) are the coefficients of the two maps, sums (8, C); all of them scratch."""
    each_worker(
        fuse_double, workers, share_out, ddx, dy, x, ddy, dx, stats, sums, coef_of_ddy, coef_of_dx, directions, dgamma,
        N, C, S, per, piece, chunks, streaming,
    )  # fmt: skip
