"""Plan: how the work on an (N, C, S) view is cut, from its shape alone.

Whatever decides the order of a sum (chunks, blocks of rows, folding) depends on nothing else, above all not on
the number of threads or the size of an element: every run gives the same bits. docs/kernels.md has the measurements
behind the numbers.
"""

from __future__ import annotations

from functools import lru_cache
from math import gcd
from typing import NamedTuple

Shape = tuple[int, int, int]  # (N, C, S)

LANES, FEW = 32, 8  # of a vector, and of a part of one (vector.py); this module does not load Numba
LINE = 64  # bytes of a cache line, and the alignment of a streaming store
SHORT = 64  # segments shorter than this are summed, and reduced and mapped at once, as columns
CHUNK = 32_768  # values of a channel in one partial sum
RUN_OF_SEGMENTS = 4_096  # values side by side that a block of channels has: shorter runs the CPU does not see coming
BLOCK_OF_SEGMENTS = 786_432  # values of such a block, which a last-level cache holds for each worker
BLOCKS_EACH = 16  # for a worker, where C allows it, so that all end at about the same time
PANEL = 1_024  # columns whose sums and origins, 4 float64 each, stay in a first-level cache
MAP_OF_ONE, MAP_OF_TWO = 1_024, 512  # those whose coefficients, up to 7 float32 each, do so beside the data
MAP_WIDTH = 8_192  # and those whose coefficients fill a part of a second-level cache
AHEAD = 2_048  # values from what is read of several rows to what is asked for
BLOCK = 131_072  # values of a block of rows
CHANNEL_BYTES = 6 << 20  # largest channel that is reduced and applied in one go
L2_BYTES = 384 << 10  # the part of a second-level cache that a block of channels may fill
RUN = 352  # columns of such a block side by side, at least: shorter runs cost more than reading all twice
TALL = 256  # values of a channel beside which what each channel costs is little
FAR = 1_048_576  # values of an array that no second-level cache holds beside another
SMALL = 65_536  # values that stay in a second-level cache, whatever their dtype
CACHE_BYTES = 32 << 20  # what of a last-level cache a process may hope to have, on whatever machine
PAGE = 4_096  # bytes after which addresses fall into the same set of a first-level cache


class Segments(NamedTuple):
    """A chunk is `piece` values of `per` segments."""

    per: int
    piece: int
    chunks: int  # per channel
    channels: int  # of a block; several only where a segment is one piece, and as long as a vector at least


class Columns(NamedTuple):
    """`tile` rows of N side by side make a row of K columns, so that short rows fill whole vectors."""

    tile: int
    block: int  # rows of a partial sum
    blocks: int
    K: int
    width: int  # K rounded up to whole vectors
    map_K: int  # the same as K, for apply
    channels: int  # of a block that stays in cache between reduce and apply; 0: none would


class Blocks(NamedTuple):
    """Columns of `channels` channels, which are reduced, finalized and applied together."""

    channels: int
    width: int  # of their tables
    tile: int  # rows of N side by side, for all channels only
    rows: int  # of a partial sum


class Map(NamedTuple):
    """Rows of K columns, or segments where K is 0."""

    K: int
    width: int  # of a table of coefficients
    streaming: bool


def up(n: int, step: int) -> int:
    return -(-n // step) * step


def in_segments(S: int, rows: bool) -> bool:
    """Whether channels are summed by segments; `rows` says whether what counts lies so that columns would do."""
    return S >= SHORT or not rows


def fits_cache(N: int, C: int, S: int, itemsize: int, workers: int) -> bool:
    """Whether channels of segments stay in cache between reduce and apply, with work for all."""
    balanced = workers == 1 or C % workers == 0 or 4 * workers <= C
    return N * S * itemsize <= CHANNEL_BYTES and balanced


@lru_cache(1024)
def segments(N: int, C: int, S: int, workers: int, one_by_one: bool = False) -> Segments:
    """Workers choose the blocks, in which each channel is summed for itself; `one_by_one` says how they are mapped."""
    per = min(N, 8 * max(1, CHUNK // (8 * S)))
    piece = min(S, CHUNK)
    block = SMALL if one_by_one else BLOCK_OF_SEGMENTS
    channels = max(1, min(RUN_OF_SEGMENTS // S, block // (N * S), C // (BLOCKS_EACH * workers)))
    if S < LANES:  # a vector of a map has numbers of two channels at most
        channels = 1
    return Segments(per, piece, -(-N // per) * -(-S // piece), channels)


@lru_cache(1024)
def columns(N: int, C: int, S: int, together: bool = True) -> Columns:
    """`together`: whether rows may lie side by side."""
    base = C * S
    small = N * base <= SMALL  # a column more then costs as much as what lies in it
    whole = LANES // gcd(base, LANES)  # rows until columns fill whole vectors
    tile = whole if whole * base <= 1024 and (base < LANES or not small) else 1
    tile = max(1, min(N, tile * max(1, SHORT // (tile * base)))) if together else 1
    K = base * tile
    rows = -(-N // tile)
    # Partial sums take 16 K bytes a block; wide rows get long blocks, so that they stay below 1 % of x.
    block = max(64 if K <= PANEL else 1024, BLOCK // min(K, PANEL), -(-rows // 128))
    # Apply prefers runs of a whole panel, unless the tables would cost more than the map.
    map_tile = tile * max(1, min(MAP_OF_TWO, N * base // 128) // K) if together else 1
    channels = C if small else min(C, L2_BYTES // (4 * N * S))
    if channels * S < min(RUN, base) or (tile > 1 and not small):
        channels = 0
    return Columns(tile, block, -(-rows // block), K, up(K, LANES), base * map_tile, channels)


@lru_cache(1024)
def blocks(N: int, C: int, S: int, together: bool, workers: int, streaming: bool) -> Blocks | None:
    """For the fused driver; None where blocks would not stay in cache, and where to read x twice is mostly faster."""
    cols = columns(N, C, S, together)
    if not cols.channels or (cols.tile > 1 and workers > 1) or (streaming and N * S >= TALL):
        return None
    channels = C if cols.tile > 1 else min(cols.channels, -(-C // workers), max(1, -(-512 // S)))
    # Rows go on, and a vector reaches, beyond the columns.
    return Blocks(channels, up(channels * S * cols.tile, LANES) + 2 * LANES, cols.tile, cols.block)


def streams(nbytes: int) -> bool:
    """Whether stores should go past the caches, which have no room for all that is read and written."""
    return nbytes > 0.9 * CACHE_BYTES


def crowds(nbytes: int) -> bool:
    """Whether these fill so much of a last-level cache that it is faster to read x twice, in order, than once in the
    short runs of a few channels; beyond the caches it is not."""
    return nbytes >= 0.5 * CACHE_BYTES and not streams(nbytes)


@lru_cache(1024)
def mapping(tensors: int, itemsize: int, N: int, C: int, S: int, in_rows: bool = True, together: bool = True) -> Map:
    """For a map that reads and writes so many tensors. Its values are the same either way."""
    traffic = tensors * itemsize * N * C * S
    streaming = streams(traffic)
    if not in_rows or S > LANES or traffic == 0:
        return Map(0, 0, streaming)
    K = columns(N, C, S, together).map_K
    return Map(K, min(K, MAP_WIDTH) + 3 * LANES, streaming)
