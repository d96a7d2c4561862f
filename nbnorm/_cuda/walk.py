"""Walk: which packs of x (and dy and others) a thread reads, in which order, and when it asks for them.

reduce.py and apply.py walk alike: over the segments of a channel, or down the rows of a table. A thread has four packs
on their way, or two of each of several arrays; it asks for the next ones before it uses the last ones, and for the
first ones before its block finds the origins or the coefficients of the channel, which takes as long as memory does.
For the compiler's sake two are four of which the last two stand for nothing.
"""

from __future__ import annotations

from numba import int32

from nbnorm._cuda.vector import fetch, pack_at, routine

# ---- segments


@routine
def following(place, step, row, SV, packs):
    """A pack's address and segment, and the place of the next one: its segment, the first value of that, the pack in
    it. `row` values lie between the segments of a channel."""
    n, first, i = place
    dn, d_first, di = step
    at = pack_at(packs, first) + i
    next_n, first, i = n + dn, first + d_first, i + di
    if i >= SV:
        next_n, first, i = next_n + 1, first + row, i - SV
    return at, n, (next_n, first, i)


@routine
def four_places(packs, place, step, row, SV):
    """Addresses and segments of four packs, and the place of the fifth."""
    a0, n0, place = following(place, step, row, SV, packs)
    a1, n1, place = following(place, step, row, SV, packs)
    a2, n2, place = following(place, step, row, SV, packs)
    a3, n3, place = following(place, step, row, SV, packs)
    return (a0, a1, a2, a3), (n0, n1, n2, n3), place


@routine
def two_places(packs, place, step, row, SV):
    a0, n0, place = following(place, step, row, SV, packs)
    a1, n1, place = following(place, step, row, SV, packs)
    return (a0, a1, a1, a1), (n0, n1, n1, n1), place


@routine
def recall(x, at, room, j, here):
    """Pack `at` in memory, or from where fused.py keeps it, where `here` holds."""
    return fetch(x, at, here) if room is None else fetch(room, j, here)


@routine
def four_packs(x, at, room, j, T, left):
    """The packs at these addresses, where any are left."""
    return (
        recall(x, at[0], room, j, left > 0), recall(x, at[1], room, j + T, left > T),
        recall(x, at[2], room, j + 2 * T, left > 2 * T), recall(x, at[3], room, j + 3 * T, left > 3 * T),
    )  # fmt: skip


@routine
def two_packs(x, at, room, j, T, left):
    x0, x1 = recall(x, at[0], room, j, left > 0), recall(x, at[1], room, j + T, left > T)
    return x0, x1, x1, x1


@routine
def first_packs(x, dy, other, x_room, dy_room, c, p, t, T, N, C, S, SV, per):
    """Packs p*per + t, T packs further and so on, up to (p + 1)*per, of channel c: j, how many are left, the place
    behind the first ones and what leads on from there; addresses and segments of the first ones, what lies there."""
    j = p * per + t
    left = int32(min(N * SV, (p + 1) * per) - j)  # a block has far fewer
    n, dn = j // SV, T // SV
    place, step = (n, (n * C + c) * S, j - n * SV), (dn, dn * C * S, T - dn * SV)
    if dy is None and other is None:
        at, n, place = four_places(x, place, step, C * S, SV)
        v = four_packs(x, at, x_room, j, T, left)
        g, z = four_packs(dy, at, None, j, T, left), four_packs(other, at, None, j, T, left)  # of nothing nothing
    else:
        at, n, place = two_places(x, place, step, C * S, SV)
        v, g = two_packs(x, at, x_room, j, T, left), two_packs(dy, at, dy_room, j, T, left)
        z = two_packs(other, at, None, j, T, left)
    return j, left, place, step, at, n, v, g, z


@routine
def turned(begun):
    """What first_packs or first_rows has begun with, dy in the place of x."""
    return (*begun[:-3], begun[-2], begun[-3], begun[-1])


@routine
def first_rest(m, rest, step):
    """Segment, and place among the values that are in no pack of their segment, of value m of these; and what leads
    from there to value m + step."""
    n, dn = m // rest, step // rest
    return n, m - n * rest, dn, step - dn * rest


@routine
def place_of_rest(n, r, c, C, S, SV, lanes, packs):
    """Where in segment n of channel c its value r that is before or behind the packs lies."""
    first = (n * C + c) * S
    return r if r < pack_at(packs, first) * lanes - first else r + SV * lanes


# ---- rows


@routine
def four_rows(x, at, step, left, down):
    """The packs at `at`, `step` further and so on, where any rows are left."""
    return (
        fetch(x, at, left > 0), fetch(x, at + step, left > down),
        fetch(x, at + 2 * step, left > 2 * down), fetch(x, at + 3 * step, left > 3 * down),
    )  # fmt: skip


@routine
def two_rows(x, at, step, left, down):
    x0, x1 = fetch(x, at, left > 0), fetch(x, at + step, left > down)
    return x0, x1, x1, x1


@routine
def first_rows(x, dy, other, b, p, t, KV, rows, across, down, per):
    """The packs of thread t in rows p*per and following of block b, `down` rows apart: the first row, the address
    there, the step to the next one, how many rows are left, if the thread has any, and what lies in the first ones."""
    beside, below = t % across, t // across
    row, column = p * per + below, b * across + beside
    at, step, left = row * KV + column, down * KV, int32(0)
    if column < KV and below < down:
        left = int32(min(rows, (p + 1) * per) - row)
    if dy is None and other is None:
        v = four_rows(x, at, step, left, down)
        g, z = four_rows(dy, at, step, left, down), four_rows(other, at, step, left, down)
    else:
        v, g = two_rows(x, at, step, left, down), two_rows(dy, at, step, left, down)
        z = two_rows(other, at, step, left, down)
    return row, at, step, left, v, g, z


@routine
def channel_of(column, C, S):
    """Of column, counted around; without a division, 30 instructions, where it needs none."""
    i = column if S == 1 else column // S
    return i if i < C else i % C


@routine
def first_of_channel(column, C, S):
    return column < C * S and (S == 1 or column % S == 0)
