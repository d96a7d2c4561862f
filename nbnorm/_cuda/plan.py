"""Plan: how the work on an (N, C, S) view is cut into blocks, from its shape and the size of an element alone.

Not from the GPU: the order of every sum follows from the cut, so every GPU sums alike. Whether one launch does all, of
which some GPUs do more than others, changes no bit. docs/kernels.md has the byte counts and the measurements behind the
numbers.
"""

from __future__ import annotations

from functools import lru_cache
from math import gcd
from typing import NamedTuple

Shape = tuple[int, int, int]  # (N, C, S)

THREADS = 256  # of a block, at most; a power of two, and whole warps
BLOCKS = 264  # at once on the GPU that this is tuned for: two on each of 132 multiprocessors (H100, H200)
BEGIN = 3_000  # packs that a block could read in the time that it takes to begin and to end
STEPS = 4  # packs a thread should meet at least: as many as it has on their way
ACCESS = 16  # bytes of the widest memory access
SHORT = 64  # segments shorter than this are treated as columns
WARP = 32  # threads that can pass numbers on without memory; packs beside each other in a block's row, at most
COLUMNS = 32  # of a block, where there are rows for so many threads below each other: 128 bytes of float32

# Shared memory, in float64.
PAIRS = 2 * THREADS  # two sums of every thread
WIDTH = 8 * WARP  # one number for every column of a block; a pack has at most 8 values
TABLES = 7 * WIDTH
PLACES = 2 * WIDTH  # int64: those of every column of a block in a mask and in weights
VALUES = 8 * THREADS  # one for every lane of every thread

# Bytes beside the sums: every GPU gives a block 48 KiB without being asked, and some need one of them themselves.
ROOM = (47 << 10) - 8 * PAIRS
# The same where a block may ask for more: so that two fit in the 228 KiB of a multiprocessor, which keeps one for each.
LARGE_ROOM = (228 << 10) // 2 - (1 << 10) - 8 * PAIRS


class Cut(NamedTuple):
    """How both reduce and apply cut the work.

    Segments (channels first): block (c, p) takes packs p*per to (p + 1)*per of channel c, in segments of SV packs each,
    from the first that is aligned. Wherever a segment begins it has so many whole packs; the S - SV*lanes values around
    them, none where packs divide S, are read and written one by one. Columns: `tile` rows of N lie side by side and
    make a row of K values, so that a row is whole packs and wide enough for a block; block (b, p) takes rows p*per to
    (p + 1)*per of `across` packs, `down` rows at once.
    """

    segments: bool
    lanes: int  # of a pack
    grid: tuple[int, int]
    threads: int
    numbers: tuple[int, ...]  # for kernels: N, C, S, SV, per, P or N, C, S, K, tile, across, down, per, P
    columns: int  # that have sums; a channel of the segments is one
    run: int  # sums of a channel that lie together
    copies: int  # of such runs
    finalize_threads: int  # of the block that finalizes a channel; a power of two


def room_of(cut: Cut, itemsize: int, arrays: int) -> int | None:
    """Bytes of shared memory in which a block keeps a channel of so many arrays; None where these are more than it may
    have anywhere, or the block is not alone with the channel."""
    if not cut.segments:
        return None
    _, _, S, SV, per, P = cut.numbers
    room = arrays * per * cut.lanes * itemsize
    return room if P == 1 and SV * cut.lanes == S and room <= LARGE_ROOM else None


def cut(shape: Shape, itemsize: int) -> Cut:
    return (_segments if shape[2] >= SHORT else _columns)(*shape, itemsize)


def alignment(shape: Shape, itemsize: int) -> int:
    """Bytes that the address of an array is a multiple of, for every cut here: no other one has larger packs."""
    return cut(shape, itemsize).lanes * itemsize if 0 not in shape else itemsize


def cut_of_two(shape: Shape, itemsize: int) -> Cut:
    """For a map of two arrays: of columns at most 4 to a pack, since coefficients of 8 would fill all registers."""
    found = cut(shape, itemsize)
    return found if found.segments else cut(shape, max(itemsize, 4))


def cut_of_three(shape: Shape, itemsize: int) -> Cut:
    """For a map of three arrays: of columns at most 2 to a pack."""
    found = cut(shape, itemsize)
    return found if found.segments else cut(shape, max(itemsize, 8))


def cut_counted(shape: Shape, itemsize: int, weights_itemsize: int = 0) -> Cut:
    """Where not every value counts once: at most 4 to a pack, since registers hold no more beside that; of columns with
    weights beside a mask 2 (`weights_itemsize` 0: there is no mask, or no weights)."""
    found = cut(shape, max(itemsize, 4))
    return found if found.segments else cut(shape, max(itemsize, 8 if weights_itemsize else 4))


def cut_gated(shape: Shape, itemsize: int, weights_itemsize: int = 0) -> Cut:
    """Where that meets an activation, or three arrays: at most 2 to a pack; of columns with float64 weights beside a
    mask 1."""
    found = cut(shape, max(itemsize, 8))
    return found if found.segments or weights_itemsize < 8 else cut(shape, ACCESS)


@lru_cache(1024)
def _segments(N: int, C: int, S: int, itemsize: int) -> Cut:
    lanes = ACCESS // itemsize
    if itemsize == 2 and S % lanes == lanes // 2:
        lanes //= 2  # half a pack beside the packs of each segment, value by value, takes longer
    SV = S // lanes if S % lanes == 0 else (S - lanes + 1) // lanes
    packs = N * SV
    threads = WARP
    while threads < THREADS and threads * STEPS < packs:
        threads *= 2
    parts = _parts(C, packs, max(1, packs // (threads * STEPS)))
    per = -(-packs // parts)
    P = -(-packs // per)
    return Cut(True, lanes, (C, P), threads, (N, C, S, SV, per, P), C, P, 1, _finalize_threads(P))


@lru_cache(1024)
def _columns(N: int, C: int, S: int, itemsize: int) -> Cut:
    base = C * S
    lanes = ACCESS // itemsize
    while lanes // gcd(base, lanes) > max(1, N // 16):  # a few rows cannot be laid side by side
        lanes //= 2
    whole = lanes // gcd(base, lanes)

    def side_by_side(wide: int) -> int:
        return whole * max(1, min(wide * lanes // (whole * base), N // (16 * whole)))

    wide = min(WARP, COLUMNS // lanes)
    while wide < WARP and N // side_by_side(wide) < THREADS // wide * 2 * STEPS:
        wide *= 2
    tile = side_by_side(wide)
    K, rows = base * tile, N // tile
    tiles = -(-K // (lanes * wide))
    across = -(-K // (lanes * tiles))
    down = THREADS // across
    parts = _parts(tiles, rows * across, max(1, rows // (down * STEPS)))
    per = max(1, -(-rows // parts))
    P = max(1, -(-rows // per))
    numbers = N, C, S, K, tile, across, down, per, P
    return Cut(False, lanes, (tiles, P), THREADS, numbers, K, S * P, tile, _finalize_threads(S * P * tile))


def _parts(groups: int, packs: int, most: int) -> int:
    """Into how many parts to cut the packs of each of so many channels or tiles.

    Blocks come in rounds of BLOCKS, of which the last may not be full; a round takes as long as one of its blocks.
    """
    choices = range(1, max(1, min(most, THREADS, 4 * BLOCKS // groups)) + 1)
    return min(choices, key=lambda parts: -(-groups * parts // BLOCKS) * (packs / parts + BEGIN))


def _finalize_threads(pairs: int) -> int:
    """A thread should meet few of a channel's pairs; THREADS is a power of two."""
    threads = WARP
    while threads < THREADS and threads < pairs:
        threads *= 2
    return threads
