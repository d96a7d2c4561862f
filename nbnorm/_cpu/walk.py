"""Walk: what one worker maps of segments, and in which order: from the last to the first, in groups that go forwards
(apply.py says why).

Segments lie one behind the other, so their values are mapped as one run, whole lines at a time; a vector that reaches
into the next segment has numbers of both channels. So are those of a block of channels in the fused kernels. Where
values count by w each is a run of its own.
"""

from __future__ import annotations

import numpy as np

from nbnorm._cpu.coefficients import own_k
from nbnorm._cpu.cursor import shifted
from nbnorm._cpu.deal import NONE_DONE, chunk_bounds, portion_from_the_end
from nbnorm._cpu.maps import NONE, ORDINARY, START, STREAMING, ask, few, part, run, vector_image
from nbnorm._cpu.plan import CHUNK
from nbnorm._cpu.tables import blended, numbers_of
from nbnorm._cpu.vector import FEW, LANES, function, larger, routine, smaller
from nbnorm._cpu.vector_memory import fence, until_line

NEAR, WHOLE, TO_LINES = np.intp(512), np.intp(FEW), np.bool_(True)  # not literals, as in maps.py
GROUP = 65_536  # values that are walked forwards before going back
UNIT = 1_024  # values that are shared out together


# ---- one segment


@routine
def rest(x, dy, other, slope, w, y, i, end, own):
    """y[i:end], fewer values than a vector has lanes."""
    while i + FEW <= end:
        few(x, dy, other, slope, w, y, i, WHOLE, own)
        i += FEW
        w = shifted(w, 0, 0, FEW)
    if i < end:
        few(x, dy, other, slope, w, y, i, end - i, own)


@routine
def segment(x, dy, other, slope, w, y, c, i, end, origins, coef, streaming):
    """A run of values of channel c, which count by w."""
    own = numbers_of(dy, coef, own_k(origins, coef), c)
    if streaming:
        run(x, dy, other, slope, w, y, i, end, own, START, STREAMING, NONE)
        return
    while i + LANES <= end:
        vector_image(x, dy, other, slope, w, y, i, own, START, ORDINARY)
        i += LANES
        w = shifted(w, 0, 0, LANES)
    rest(x, dy, other, slope, w, y, i, end, own)


# ---- one behind the other


@routine
def segments(x, dy, other, slope, y, i, end, c, stop, origins, coef, C, S, to_lines, streaming):
    """y[i:end], of segments that are LANES long at least unless the run is a part of one; the first is of channel c and
    ends at `stop`. The end is that of a segment, or whole vectors later than where the run or, `to_lines`, its first
    line of y begins.
    """
    k = own_k(origins, coef)
    own, ahead = numbers_of(dy, coef, k, c), NONE
    if dy is None:  # noqa: SIM102  the compiler prunes what stands under a test of None and nothing else
        if other is not None:
            ahead = NEAR  # two arrays to read beside a streamed one: the CPU does not see that coming
    if to_lines:
        n = smaller(end - i, until_line(y, i))
        if n > 0:
            part(x, dy, other, slope, None, y, i, n, own, START)
            i += n
    while i + LANES <= end:
        whole = smaller(stop, end) - LANES
        while i <= whole:
            if streaming and ahead > 0:
                ask(x, dy, other, i + ahead, own)
            vector_image(x, dy, other, slope, None, y, i, own, START, streaming)
            i += LANES
        if i + LANES <= end:
            c = c + 1 if c + 1 < C else 0
            following = numbers_of(dy, coef, k, c)
            both = blended(own, following, stop - i)
            if streaming and ahead > 0:
                ask(x, dy, other, i + ahead, own)
            vector_image(x, dy, other, slope, None, y, i, both, START, streaming)
            own = following
            i += LANES
            stop += S
    rest(x, dy, other, slope, None, y, i, end, own)


@function
def chunk(x, dy, other, slope, w, y, first, last, t, per, piece, N, C, S, origins, coef, streaming):
    """Chunk t of channels first:last, whose segments lie one behind the other, or of one channel."""
    n0, n1, i0, i1 = chunk_bounds(t, per, piece, N, S)
    for n in range(n1 - 1, n0 - 1, -1):
        if w is None:
            b = (n * C + first) * S
            end = b + (last - first - 1) * S + i1
            segments(x, dy, other, slope, y, b + i0, end, first, b + S, origins, coef, C, S, streaming, streaming)
        else:
            for c in range(first, last):
                b = (n * C + c) * S
                segment(x, dy, other, slope, shifted(w, n, c, i0), y, c, b + i0, b + i1, origins, coef, streaming)


@routine
def segments_that_count(x, dy, other, slope, w, y, first, last, origins, coef, N, C, S, pieces, streaming):
    """Pieces first:last of all segments, of CHUNK values at most."""
    # Counted on from here: a division for each segment would take as long as a vector.
    b, p = first // pieces, first % pieces
    n, c = b // C, b % C
    for _ in range(first, last):
        its, i, end = shifted(w, n, c, p * CHUNK), b * S + p * CHUNK, b * S + smaller(S, (p + 1) * CHUNK)
        segment(x, dy, other, slope, its, y, c, i, end, origins, coef, streaming)
        p += 1
        if p == pieces:
            b, c, p = b + 1, c + 1, 0
            if c == C:
                n, c = n + 1, 0


@routine
def map_segments(taken, worker, workers, x, dy, other, slope, w, y, origins, coef, N, C, S, streaming):
    """What one worker does."""
    size, edge, pieces = N * C * S, until_line(y, 0), (S + CHUNK - 1) // CHUNK
    if w is None:
        tasks, group = (size - edge + UNIT - 1) // UNIT, GROUP // UNIT
    else:
        tasks, group = N * C * pieces, GROUP // larger(1, smaller(S, CHUNK))
    done, first, last = portion_from_the_end(taken, NONE_DONE, worker, workers, tasks)
    while first < last:
        start = larger(first, last - group)
        if w is None:
            i, end = edge + start * UNIT, smaller(size, edge + last * UNIT)
            if start == 0:
                i = 0
            b = i // S
            segments(x, dy, other, slope, y, i, end, b % C, (b + 1) * S, origins, coef, C, S, TO_LINES, streaming)
        else:
            segments_that_count(x, dy, other, slope, w, y, start, last, origins, coef, N, C, S, pieces, streaming)
        last = start
        if first == last:
            done, first, last = portion_from_the_end(taken, done, worker, workers, tasks)
    if streaming:
        fence()
