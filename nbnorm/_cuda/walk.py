"""Walk: which packs of x (and dy and others) a thread reads, in which order, and when it asks for them.

reduce.py and apply.py walk alike, over the segments of a channel or the rows of a table: reduce on from the first,
apply back from the last, since what was read last is still in the second-level cache. A thread has four packs on their
way, or two of each of several arrays; it asks for the next ones before it uses the last ones, and for the first ones
before its block finds the origins or the coefficients of the channel, which takes as long as memory does; of columns
in apply only the second-level cache gets them so early, since registers are full. For the compiler's sake two are four
of which the last two stand for nothing.
"""

from __future__ import annotations

from numba import int32

from nbnorm._cuda.vector import ahead, fetch, four_at_once, pack_at, routine

# ---- segments


@routine
def following(place, step, row, SV, packs, back):
    """A pack's address and segment, and the place of the next one: its segment, the first value of that, the pack in
    it, where `back` counts from the last one on. `row` values lie between the segments of a channel."""
    n, first, i = place
    dn, d_first, di = step
    at = pack_at(packs, first) + (SV - 1 - i if back else i)
    next_n, first, i = n + dn, first + d_first, i + di
    if i >= SV:
        next_n, first, i = next_n + (-1 if back else 1), first + row, i - SV
    return at, n, (next_n, first, i)


@routine
def four_places(packs, place, step, row, SV, back):
    """Addresses and segments of four packs, and the place of the fifth."""
    a0, n0, place = following(place, step, row, SV, packs, back)
    a1, n1, place = following(place, step, row, SV, packs, back)
    a2, n2, place = following(place, step, row, SV, packs, back)
    a3, n3, place = following(place, step, row, SV, packs, back)
    return (a0, a1, a2, a3), (n0, n1, n2, n3), place


@routine
def two_places(packs, place, step, row, SV, back):
    a0, n0, place = following(place, step, row, SV, packs, back)
    a1, n1, place = following(place, step, row, SV, packs, back)
    return (a0, a1, a1, a1), (n0, n1, n1, n1), place


@routine
def recall(x, at, room, j, here):
    """Pack `at` in memory, or from where fused.py keeps it, where `here` holds."""
    return fetch(x, at, here) if room is None else fetch(room, j, here)


@routine
def four_packs(x, at, room, j, stride, T, left):
    """The packs at these addresses, or `stride` apart in a room, where any are left."""
    return (
        recall(x, at[0], room, j, left > 0), recall(x, at[1], room, j + stride, left > T),
        recall(x, at[2], room, j + 2 * stride, left > 2 * T), recall(x, at[3], room, j + 3 * stride, left > 3 * T),
    )  # fmt: skip


@routine
def two_packs(x, at, room, j, stride, T, left):
    x0, x1 = recall(x, at[0], room, j, left > 0), recall(x, at[1], room, j + stride, left > T)
    return x0, x1, x1, x1


@routine
def first_packs(x, dy, other, slope, w, x_room, dy_room, c, p, t, T, N, C, S, SV, per, back):
    """Every T-th of packs p*per to (p + 1)*per of channel c: j, the number of the first one, and how many are left; the
    place behind the first ones, and what leads on from there; their addresses and segments, and what lies there."""
    begin, end = p * per, min(N * SV, (p + 1) * per)
    left = int32(end - begin - t)  # a block has far fewer
    j = end - 1 - t if back else begin + t
    n, dn = j // SV, T // SV
    i, step = j - n * SV, (dn, dn * C * S, T - dn * SV)
    if back:
        i, step = SV - 1 - i, (-dn, -dn * C * S, T - dn * SV)
    place, row, stride = (n, (n * C + c) * S, i), -C * S if back else C * S, -T if back else T
    if four_at_once(x, dy, other, slope, w):
        at, n_of, place = four_places(x, place, step, row, SV, back)
        v, g = four_packs(x, at, x_room, j, stride, T, left), four_packs(dy, at, dy_room, j, stride, T, left)
        z = four_packs(other, at, None, j, stride, T, left)
    else:
        at, n_of, place = two_places(x, place, step, row, SV, back)
        v, g = two_packs(x, at, x_room, j, stride, T, left), two_packs(dy, at, dy_room, j, stride, T, left)
        z = two_packs(other, at, None, j, stride, T, left)
    return j, left, place, step, at, n_of, v, g, z


@routine
def turned(begun):
    """What first_packs or first_rows has begun with, dy in the place of x."""
    return (*begun[:-3], begun[-2], begun[-3], begun[-1])


@routine
def alone(begun):
    """The same without the second array, where there is no third."""
    return (*begun[:-2], begun[-1], begun[-1])


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
def place_of_rows(b, p, t, KV, rows, across, down, per, back):
    """Of thread t in rows p*per to (p + 1)*per of block b: the first row and the address there, the step to the next
    one, and how many rows are left, if the thread has any."""
    beside, below = t % across, t // across
    begin, end = p * per, min(rows, (p + 1) * per)
    row, column = end - 1 - below if back else begin + below, b * across + beside
    at, step, left = row * KV + column, -down * KV if back else down * KV, int32(0)
    if column < KV and below < down:
        left = int32(end - begin - below)
    return row, at, step, left


@routine
def rows_ahead(x, dy, b, p, t, KV, rows, across, down, per, back):
    """Bring the first rows nearer, where registers hold no packs until their block knows what to do with them."""
    _, at, step, left = place_of_rows(b, p, t, KV, rows, across, down, per, back)
    i = int32(0)
    while i < (4 if dy is None else 2):
        ahead(x, at + i * step, left > i * down)
        ahead(dy, at + i * step, left > i * down)
        i = int32(i + 1)


@routine
def first_rows(x, dy, other, slope, w, b, p, t, KV, rows, across, down, per, back):
    """Every `down`-th of rows p*per to (p + 1)*per, of the packs of thread t in block b: place_of_rows, and what lies
    in the first ones."""
    row, at, step, left = place_of_rows(b, p, t, KV, rows, across, down, per, back)
    if four_at_once(x, dy, other, slope, w):
        v, g = four_rows(x, at, step, left, down), four_rows(dy, at, step, left, down)
        z = four_rows(other, at, step, left, down)
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
