"""The vector value: intrinsics.py and others on a GPU, simulator.py in Numba's CUDA simulator."""

from nbnorm._cuda.launch import SIMULATED

if SIMULATED:
    from nbnorm._cuda import simulator as arithmetic
    from nbnorm._cuda import simulator as mask
    from nbnorm._cuda import simulator as memory
    from nbnorm._cuda import simulator as single
else:
    from nbnorm._cuda import intrinsics as arithmetic  # type: ignore[no-redef]
    from nbnorm._cuda import intrinsics_mask as mask  # type: ignore[no-redef]
    from nbnorm._cuda import intrinsics_memory as memory  # type: ignore[no-redef]
    from nbnorm._cuda import intrinsics_single as single  # type: ignore[no-redef]

routine = arithmetic.routine
fold, zeros = arithmetic.fold, arithmetic.zeros
activated, gated = arithmetic.activated, arithmetic.gated

lanes, pack_at, four_at_once = memory.lanes, memory.pack_at, memory.four_at_once
fetch, ahead, values, store, put_by = memory.fetch, memory.ahead, memory.values, memory.store, memory.put_by
element, element_to_compare, put = memory.element, memory.element_to_compare, memory.put
values_as, element_as = memory.values_as, memory.element_as
room, load_table, store_table = memory.room, memory.load_table, memory.store_table
from_further = memory.from_further

map_of_x, map_of_two, tables_for = single.map_of_x, single.map_of_two, single.tables_for
deviation, placed = single.deviation, single.placed

finite, ordered, kept, joined = mask.finite, mask.ordered, mask.kept, mask.joined
of_dy, of_ddx, leading, is_tangent = mask.of_dy, mask.of_ddx, mask.leading, mask.is_tangent
lanes_from, lanes_at, places_for = mask.lanes_from, mask.lanes_at, mask.places_for
