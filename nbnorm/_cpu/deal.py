"""Deal: how work is cut where kernels do it, and which worker computes what.

Each worker has a share of the tasks, the same one in every call, whose data its own cache may hold. It takes the share
in portions, each half of what is left, and when nothing is left portions of the workers behind it: a thread that has to
be woken does not keep the others waiting, one that loses its processor only with the portion it has. No bit depends on
who does what, and nothing that one worker writes is read by another before all are done.
"""

from __future__ import annotations

import numpy as np
from numba import config, types

from nbnorm._cpu.intrinsic import intrinsic
from nbnorm._cpu.vector import LANES, function, routine, smaller
from nbnorm._cpu.vector_memory import LINE
from nbnorm._floats import I64

PORTIONS = 6  # of a share; the last two are 1/32
NONE_DONE = np.intp(0)  # of the shares that a worker looks at; for a literal `portion` would be compiled once more
HELPED = 4  # workers whose shares one looks at, itself included: where there are many, most have nothing left


@routine
def share(w, workers, tasks):
    """First and last task of worker w."""
    return w * tasks // workers, (w + 1) * tasks // workers


@routine
def even(columns, most):
    """The width of parts, `most` at most, of so many columns: that of equal parts, rounded up to whole vectors."""
    parts = (columns + most - 1) // most
    return (columns + parts * LANES - 1) // (parts * LANES) * LANES


@routine
def chunk_bounds(t, per, piece, N, S):
    """Segments n0:n1 and values i0:i1 of each that make up chunk t of a channel."""
    pieces = (S + piece - 1) // piece
    n0, i0 = t // pieces * per, t % pieces * piece
    return n0, smaller(N, n0 + per), i0, smaller(S, i0 + piece)


@intrinsic
def take(typingctx, taken, owner):
    """How many portions of the owner's share were taken; one more now."""

    def emit(ctx, builder, sig, args):
        place = builder.add(args[0], builder.mul(args[1], I64(LINE)))
        return builder.atomic_rmw("add", builder.inttoptr(place, I64.as_pointer()), I64(1), "monotonic")

    return types.int64(types.int64, types.int64), emit


if config.DISABLE_JIT:
    from nbnorm._cpu.vector_python import take


@function
def portion(taken, helped, worker, workers, tasks):
    """How many shares are done, and first and last task of the next portion; equal when all are done."""
    portions = 1 if workers == 1 else PORTIONS
    while helped < smaller(workers, HELPED):
        owner = (worker + helped) % workers
        first, last = share(owner, workers, tasks)
        n = take(taken, owner)
        if n < portions:
            begin = last - ((last - first) >> n)
            end = last if n == portions - 1 else last - ((last - first) >> (n + 1))
            if begin < end:
                return helped, begin, end
        helped += 1
    return helped, np.intp(0), np.intp(0)


@function
def portion_from_the_end(taken, helped, worker, workers, tasks):
    """The same where shares are walked back to front; worker and tasks lie as in `portion`."""
    helped, first, last = portion(taken, helped, workers - 1 - worker, workers, tasks)
    return helped, tasks - last, tasks - first
