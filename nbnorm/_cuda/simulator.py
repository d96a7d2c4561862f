"""The names of intrinsics.py in NumPy, for Numba's CUDA simulator: a vector value is a float64 array.

Slow and plain: the simulator is there to compare values, with kernels and host code as they are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbnorm import _formulas, _single_map
from nbnorm._counted import Both, Tangent, each
from nbnorm._cuda import plan
from nbnorm._cuda.coefficients import OF_ONE, OF_TWO
from nbnorm._cuda.plan import PLACES
from nbnorm._emitted_python import activated, gated, is_tangent, leading, narrow, of_ddx, of_dy, widen  # noqa: F401


class Packs(NamedTuple):
    """A pointer to packs of values."""

    values: NDArray
    lanes: int


def routine(function: Any) -> Any:
    """Plain Python: the simulator runs it in the thread that calls."""
    return function


def zeros(packs: Packs) -> NDArray[np.float64]:
    return np.zeros(packs.lanes)


def fold(vector: NDArray[np.float64]) -> np.float64:
    while vector.size > 1:
        half = vector.size // 2
        vector = vector[:half] + vector[half:]
    return vector[0]


def lanes(packs: Packs) -> int:
    return packs.lanes


def pack_at(packs: Packs, i: int) -> int:
    return -(-i // packs.lanes)


def four_at_once(x: Packs, dy: Any, other: Any, slope: Any, w: Any) -> bool:
    arrays = 3 - (dy is None) - (other is None)
    small = slope is None and w is None and x.lanes * x.values.itemsize <= plan.ACCESS // 2
    return arrays == 1 or (small and arrays == 2)


def fetch(packs: Any, i: int, here: bool) -> Any:
    """Nothing where there is nothing: whoever uses it fails."""
    if isinstance(packs, Tangent | Both):
        return each(lambda one: fetch(one, i, here), packs)
    return None if packs is None or not here else packs.values[i * packs.lanes : (i + 1) * packs.lanes].copy()


def values(raw: Any) -> Any:
    if isinstance(raw, Tangent | Both):
        return each(values, raw)
    return None if raw is None else widen(raw)


def values_as(k: Any, raw: Any) -> Any:
    found = values(raw)
    return found.astype(np.float32) if found is not None and _is_single(k) else found


def _is_single(k: Any) -> bool:
    return getattr(k, "dtype", None) == np.float32


def ahead(packs: Packs | None, i: int, here: bool) -> None:
    assert packs is None or not here or 0 <= i < packs.values.size // packs.lanes


def store(packs: Packs, i: int, vector: NDArray[np.float64]) -> None:
    packs.values[i * packs.lanes : (i + 1) * packs.lanes] = narrow(vector, packs.values.dtype)


def put_by(packs: Packs, i: int, raw: NDArray) -> None:
    packs.values[i * packs.lanes : (i + 1) * packs.lanes] = raw


def element(packs: Any, i: int) -> Any:
    if isinstance(packs, Tangent | Both):
        return each(lambda one: element(one, i), packs)
    return None if packs is None else widen(packs.values[i : i + 1])[0]


def element_as(k: Any, packs: Any, i: int) -> Any:
    found = element(packs, i)
    return np.float32(found) if found is not None and _is_single(k) else found


def element_to_compare(packs: Packs, i: int) -> Any:
    value = element(packs, i)
    return value if packs.values.dtype == np.float64 else np.float32(value)


def put(packs: Packs, i: int, value: float) -> None:
    packs.values[i : i + 1] = narrow(np.array([value]), packs.values.dtype)


def room(packs: Packs, first: int) -> Packs:
    from nbnorm._cuda.launch import cuda  # which imports this module

    return Packs(cuda.shared.array(0, packs.values.dtype)[first * packs.lanes :], packs.lanes)


def from_further(value: float, delta: int) -> float:
    """By way of memory and barriers; a warp has WARP threads, all of which have to take part."""
    from nbnorm._cuda.launch import cuda  # which imports this module

    t, of_threads = cuda.threadIdx.x, cuda.shared.array(plan.THREADS, np.float64)
    of_threads[t] = value
    wait_for_warp()
    result = of_threads[t + delta if t % plan.WARP + delta < plan.WARP else t]
    wait_for_warp()
    return result


def wait_for_warp() -> None:
    """For the whole block: the simulator knows no warps."""
    from nbnorm._cuda.launch import cuda  # which imports this module

    cuda.syncthreads()


def load_table(table: NDArray, i: int, packs: Packs) -> NDArray:
    return np.array([table[i + lane] for lane in range(packs.lanes)])


def store_table(table: NDArray[np.float64], i: int, vector: NDArray[np.float64]) -> None:
    for lane, value in enumerate(vector):
        table[i + lane] = value


# ---- maps in float32


def _in_single(packs: Packs, dy: Any, other: Any, slope: Any, w: Any) -> bool:
    return packs.values.dtype != np.float64 and (dy is None or other is slope is w is None)


def _rows(found: tuple, places: tuple[int, ...]) -> tuple:
    rows = [np.float32(0)] * 7
    for place, one in zip(places, found, strict=True):
        rows[place] = np.float32(one)
    return tuple(rows)


def map_of_x(packs: Packs, k: float, scale: float, shift: float, varies: bool) -> tuple:
    if not _in_single(packs, None, None, None, None):
        return k, scale, shift, 0.0, 0.0, 0.0, 0.0
    with np.errstate(all="ignore"):
        return _rows(_single_map.single_map(np.float64(k), np.float64(scale), np.float64(shift), varies), OF_ONE)


def map_of_two(
    packs: Packs, other: Any, slope: Any, w: Any, k: float, scale: float, shift: float, a: float, h: float, b: float,
    o: float,
) -> tuple:  # fmt: skip
    if not _in_single(packs, packs, other, slope, w):
        return k, scale, shift, a, h, b, o
    with np.errstate(all="ignore"):
        return _rows(_single_map.single_map_of_two(*map(np.float64, (h, a, k, scale, shift))), OF_TWO)


def tables_for(packs: Packs, dy: Any, other: Any, slope: Any, w: Any) -> NDArray:
    from nbnorm._cuda.launch import cuda  # which imports this module

    return cuda.shared.array(plan.TABLES, np.float32 if _in_single(packs, dy, other, slope, w) else np.float64)


def deviation(x: Any, origin: Any, offset: Any, power: Any) -> Any:
    return power * x + offset if _is_single(x) else x - origin


def placed(u: Any, scale: Any, lost: Any, shift: Any) -> Any:
    if _is_single(u):
        return _single_map.affine_in_single(u, scale, lost, shift)
    return _formulas.affine(u, scale, shift)


# ---- which lanes count: numbers, 0 where one does not


def finite(v: Any) -> Any:
    return 1.0 * np.isfinite(v)


def ordered(v: Any) -> Any:
    return 1.0 * (v == v)


def kept(m: Any, v: Any) -> Any:
    return np.where(m > 0, v, 0.0)


def joined(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else a * b


def lanes_from(array: NDArray | None, i: int, step: int, packs: Packs) -> NDArray[np.float64] | None:
    return None if array is None else _often(array[[i + lane * step for lane in range(packs.lanes)]])


def lanes_at(
    array: NDArray | None, i: int, places: NDArray[np.int64], j: int, packs: Packs
) -> NDArray[np.float64] | None:  # fmt: skip
    return None if array is None else _often(np.array([array[i + places[j + lane]] for lane in range(packs.lanes)]))


def places_for(w: Any) -> NDArray[np.int64] | None:
    from nbnorm._cuda.launch import cuda  # which imports this module

    return None if w is None else cuda.shared.array(PLACES, np.int64)


def _often(raw: NDArray) -> NDArray[np.float64]:
    return (raw != 0) * 1.0 if raw.dtype == np.uint8 else raw.astype(np.float64)
