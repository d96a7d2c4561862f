"""Fused: reduce, finalize and apply for a block of channels while its values are still in cache.

The same sums in the same order as in the three separate launches, so the same bits; x is read from memory once
instead of twice. Forward with dy None, backward with an array.
"""

from __future__ import annotations

from nbnorm._channel_rows import DY_ORIGIN, ORIGIN, SIGN_SCALE, SIGN_SHIFT
from nbnorm._cpu.arrays import matrix, matrix_of_map
from nbnorm._cpu.coefficients import OF_ONE, OF_TWO, ORIGIN_OF_DDX, B, H, K, signs_for_map
from nbnorm._cpu.cursor import cursor, if_backward, rows_of, shifted
from nbnorm._cpu.deal import NONE_DONE, portion
from nbnorm._cpu.finalize import finalize_channel, finalize_channels, read_parameters, write_gradients
from nbnorm._cpu.launch import Kernel
from nbnorm._cpu.maps import IN_CACHE, START, rows_run
from nbnorm._cpu.origins import origins
from nbnorm._cpu.region import each_worker
from nbnorm._cpu.rows import ONE_ROW
from nbnorm._cpu.sums import add_sums
from nbnorm._cpu.sums_of_columns import channels_totals, column_sums
from nbnorm._cpu.sums_of_segments import add_chunks, chunk_sums, room_of_worker
from nbnorm._cpu.tables import spread, spread_map
from nbnorm._cpu.vector import LANES, routine, smaller, zeros
from nbnorm._cpu.vector_memory import fence, store, until_line
from nbnorm._cpu.walk import chunk


@routine
def fuse_segments(
    taken, worker, workers, x, dy, other, slope, w, y, stats, gamma, beta, dgamma, dbeta, eps, count, scratch, room, N,
    C, S, per, piece, chunks, channels, streaming,
):  # fmt: skip
    """What one worker does."""
    at = (3 + (OF_ONE if dy is None else OF_TWO)) * C
    sums = matrix(scratch, 0, 3, C)
    coef = matrix_of_map(x, dy, slope, w, scratch, 3 * C, OF_ONE if dy is None else OF_TWO, C)
    parts, acc = matrix(scratch, at, C * chunks, 3), room_of_worker(scratch, at + 3 * C * chunks, worker, room)
    its, k, h, blocks = cursor(w), stats[ORIGIN], sums[DY_ORIGIN], (C + channels - 1) // channels
    of_map, slope_of_dy = if_backward(dy, its), if_backward(dy, slope)
    done, first, last = portion(taken, NONE_DONE, worker, workers, blocks)
    while first < last:
        begin, end = first * channels, smaller(C, last * channels)
        read_parameters(gamma, beta, begin, end, stats, sums)
        for c0 in range(begin, end, channels):
            c1 = smaller(end, c0 + channels)
            origins(x, dy, slope_of_dy, its, True, stats, sums, c0, c1, N, C, S)
            for t in range(chunks):
                chunk_sums(x, dy, slope_of_dy, its, c0, c1, t, per, piece, chunks, N, C, S, k, h, stats, acc, parts)
            add_chunks(dy, w, parts, c0, c1, chunks, stats, sums)
            for c in range(c0, c1):
                if dy is not None:  # noqa: SIM102  the compiler prunes what stands under a test of None and nothing else
                    if slope is not None:
                        signs_for_map(stats, c, coef)
                finalize_channel(dy, gamma, c, stats, sums, eps, count, coef)
            for t in range(chunks - 1, -1, -1):
                chunk(x, dy, other, slope, of_map, y, c0, c1, t, per, piece, N, C, S, k, coef, streaming)
        write_gradients(dgamma, dbeta, begin, end, sums)
        done, first, last = portion(taken, done, worker, workers, blocks)
    if streaming:
        fence()


@Kernel
def fused_segments(
    x, dy, other, slope, w, y, stats, gamma, beta, dgamma, dbeta, eps, count, scratch, room, N, C, S, per, piece,
    chunks, channels, streaming, workers, share_out,
):  # fmt: skip
    """Blocks of `channels` channels. scratch has sums (3, C), room for coef, as many float64 numbers whatever it is in,
    and is behind them as `scratch_of_segments` makes it.
    """
    each_worker(
        fuse_segments, workers, share_out, x, dy, other, slope, w, y, stats, gamma, beta, dgamma, dbeta, eps, count,
        scratch, room, N, C, S, per, piece, chunks, channels, streaming,
    )  # fmt: skip


@routine
def fuse_columns(
    taken, worker, workers, x, dy, other, slope, w, y, stats, gamma, beta, dgamma, dbeta, eps, count, scratch, room,
    terms, width, channels, N, C, S, tile, block, streaming,
):  # fmt: skip
    """What one worker does."""
    numbers = OF_ONE if dy is None else OF_TWO
    # Made here, so that LLVM sees how far apart they lie.
    sums, coef = matrix(scratch, 0, 3, C), matrix_of_map(x, dy, slope, w, scratch, 3 * C, numbers, C)
    edge = (3 + numbers) * C + until_line(scratch, (3 + numbers) * C)
    stride = C * S * tile
    rows, rest = N // tile, N % tile * C * S
    blocks = (C + channels - 1) // channels
    its, slope_of_dy = cursor(w), if_backward(dy, slope)
    of_rows = rows_of(its, tile)
    acc = scratch[edge + worker * room :]
    # What sums read of each column, and in the same place what the map reads: its own where that is float32.
    of_sums = matrix(acc, 2 * terms * width, numbers, width)
    tables = matrix_of_map(x, dy, slope, w, acc, 2 * terms * width, numbers, width)
    k, of_scale, of_shift = of_sums[K], of_sums[B], of_sums[ORIGIN_OF_DDX]
    h = k
    if dy is not None:
        h = of_sums[H]
    done, first, last = portion(taken, NONE_DONE, worker, workers, blocks)
    while first < last:
        c0, c1 = first * channels, smaller(C, (first + 1) * channels)
        cols = (c1 - c0) * S * tile
        reach = cols + LANES if cols == stride else cols  # rows_run goes on from the last column to the first
        origins(x, dy, slope_of_dy, its, True, stats, sums, c0, c1, N, C, S)
        spread(k, stats[ORIGIN], c0 * S, reach, C, S)
        if dy is not None:
            spread(h, sums[DY_ORIGIN], c0 * S, reach, C, S)
            if slope is not None:
                spread(of_scale, stats[SIGN_SCALE], c0 * S, reach, C, S)
                spread(of_shift, stats[SIGN_SHIFT], c0 * S, reach, C, S)
        for r in range(0, rows, block):
            at = terms * width if r > 0 else 0  # the sums of all blocks, and behind them those of one
            for j in range(at, at + terms * width, LANES):
                store(acc, j, zeros())
            i, of_block = r * stride + c0 * S, shifted(of_rows, r, 0, c0 * S)
            n = smaller(block, rows - r)
            column_sums(x, dy, slope_of_dy, of_block, i, n, stride, cols, k, h, of_scale, of_shift, acc, at, width)
            if rest > 0 and r + block >= rows:
                i, of_rest = rows * stride, shifted(of_rows, rows, 0, 0)
                column_sums(
                    x, dy, slope_of_dy, of_rest, i, ONE_ROW, stride, rest, k, h, of_scale, of_shift, acc, at, width
                )  # fmt: skip
            if at > 0:
                add_sums(x, dy, its, acc, at, width)
        channels_totals(x, dy, its, acc, width, c0, c1, S, tile, stats, sums)
        read_parameters(gamma, beta, c0, c1, stats, sums)
        finalize_channels(dy, gamma, c0, c1, stats, sums, eps, count, coef)
        write_gradients(dgamma, dbeta, c0, c1, sums)
        spread_map(tables, dy, other, slope, k, coef, True, c0 * S, reach, C, S)
        of_map = if_backward(dy, shifted(of_rows, 0, 0, c0 * S))
        i, end = c0 * S, (N - 1) * C * S + c1 * S
        rows_run(x, dy, other, slope, of_map, y, i, end, stride, cols, tables, START, streaming, IN_CACHE)
        first += 1
        if first == last:
            done, first, last = portion(taken, done, worker, workers, blocks)
    if streaming:
        fence()


@Kernel
def fused_columns(
    x, dy, other, slope, w, y, stats, gamma, beta, dgamma, dbeta, eps, count, scratch, room, terms, width, channels, N,
    C, S, tile, block, streaming, workers, share_out,
):  # fmt: skip
    """Blocks of `channels` channels, `tile` samples side by side; scratch has the same and, 7 numbers later at most,
    where a line begins, for each worker the sums and tables of a block: room is (2 * terms + OF_ONE) * width,
    with dy OF_TWO in the place of OF_ONE.
    """
    each_worker(
        fuse_columns, workers, share_out, x, dy, other, slope, w, y, stats, gamma, beta, dgamma, dbeta, eps, count,
        scratch, room, terms, width, channels, N, C, S, tile, block, streaming,
    )  # fmt: skip
