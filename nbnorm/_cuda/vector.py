"""The vector value: intrinsics.py on a GPU, simulator.py in Numba's CUDA simulator."""

from nbnorm._cuda.launch import SIMULATED

if SIMULATED:
    from nbnorm._cuda import simulator as target
else:
    from nbnorm._cuda import intrinsics as target  # type: ignore[no-redef]

routine = target.routine
element, element_to_compare, put = target.element, target.element_to_compare, target.put
fold, lanes, pack_at, zeros = target.fold, target.lanes, target.pack_at, target.zeros
fetch, values, store, put_by = target.fetch, target.values, target.store, target.put_by
four_at_once = target.four_at_once
room = target.room
from_further = target.from_further
load_table, store_table = target.load_table, target.store_table
activated, gated = target.activated, target.gated
finite, ordered, kept, joined = target.finite, target.ordered, target.kept, target.joined
of_dy, of_ddx, leading, is_tangent = target.of_dy, target.of_ddx, target.leading, target.is_tangent
lanes_from, lanes_at, places_for = target.lanes_from, target.lanes_at, target.places_for
