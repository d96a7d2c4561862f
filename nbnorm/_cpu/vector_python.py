"""The vector value in NumPy, for NUMBA_DISABLE_JIT=1, to be stepped through: what other files have as LLVM code.

A vector is a float64 (or float32) array of LANES. Names, arguments and results are theirs, but fused
products round twice. Every access checks that it stays inside its array and, where it must, that it is aligned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbnorm._counted import Both, Counted, Tangent, each
from nbnorm._cpu.plan import LANES, LINE
from nbnorm._emitted_python import activated, gated, is_tangent, leading, narrow, of_ddx, of_dy, widen  # noqa: F401
from nbnorm._floats import of_map

Vector = NDArray[np.float64] | NDArray[np.float32]


def _inside(array: NDArray, i: int, n: int) -> NDArray:
    assert 0 <= i <= i + n <= array.size, f"{i}:{i + n} of {array.size} places"
    assert array.flags.c_contiguous
    return array[i : i + n]


# ---- vector.py


smaller, larger = min, max


def zeros() -> Vector:
    return np.zeros(LANES)


def minus(a: Vector, b: Vector) -> Vector:
    return a - b


def deviation(x: Vector, origin: Vector, offset: Vector, power: Vector) -> Vector:
    return power * x + offset if is_single(x) else x - origin


def fold(v: Vector) -> float:
    while v.size > 1:
        v = v[: v.size // 2] + v[v.size // 2 :]
    return v[0]


def keep(v: Vector, n: int, width: int) -> Vector:
    assert 0 <= n <= width
    return np.concatenate([v[:n], np.zeros(LANES - n)])


# ---- arrays.py


def matrix(memory: NDArray, at: int, rows: int, columns: int) -> NDArray:
    return memory[at : at + rows * columns].reshape(rows, columns)


def matrix_of_map(
    x: NDArray, dy: Any, slope: float | None, w: Counted | None, memory: NDArray, at: int, rows: int, columns: int
) -> NDArray:
    dtype = of_map(x.itemsize, dy is not None, slope is not None, w is not None)
    return matrix(memory[at:].view(dtype), 0, rows * 8 // dtype.itemsize, columns)


def element(array: NDArray | Tangent | Both, i: int) -> float:
    return widen(_inside(leading(array), i, 1))[0]


def double(array: NDArray, i: int) -> float:
    return _inside(array, 2 * i, 2).view(np.float64)[0]


def set_double(array: NDArray, i: int, number: float) -> None:
    _inside(array, 2 * i, 2).view(np.float64)[0] = number


# ---- vector_memory.py


def _load(array: Any, i: int) -> Any:
    if isinstance(array, Tangent | Both):
        return each(lambda one: _load(one, i), array)
    return None if array is None else widen(_inside(array, i, LANES))


def load_part(array: Any, i: int, n: int, width: int) -> Any:
    assert 0 <= n <= width
    if isinstance(array, Tangent | Both):
        return each(lambda one: load_part(one, i, n, width), array)
    return None if array is None else np.concatenate([widen(_inside(array, i, n)), np.zeros(LANES - n)])


def is_single(k: Any) -> bool:
    return getattr(k[0] if isinstance(k, tuple) else k, "dtype", None) == np.float32


def load_as(k: Any, array: Any, i: int) -> Any:
    return _as(k, _load(array, i))


def load_part_as(k: Any, array: Any, i: int, n: int, width: int) -> Any:
    return _as(k, load_part(array, i, n, width))


def columns_at_once(w: Counted | None) -> int:
    return LANES


def load_columns(w: Counted | None, array: Any, i: int) -> Any:
    return _load(array, i)


def _as(k: Any, v: Any) -> Any:
    return v.astype(np.float32) if v is not None and is_single(k) else v


def store(array: NDArray, i: int, v: Vector) -> None:
    _inside(array, i, LANES)[:] = narrow(v, array.dtype)


def store_part(array: NDArray, i: int, n: int, v: Vector, width: int) -> None:
    assert 0 <= n <= width
    _inside(array, i, n)[:] = narrow(v[:n], array.dtype)


def stream(array: NDArray, i: int, v: Vector) -> None:
    assert until_line(array, i) == 0
    store(array, i, v)


def prefetch(k: Any, array: NDArray | None, i: int) -> None:
    pass


def fence() -> None:
    pass


def until_line(array: NDArray, i: int) -> int:
    return -(array.ctypes.data + i * array.itemsize) % LINE // array.itemsize


def lanes(values: NDArray | float, i: int) -> Vector:
    return np.full(LANES, values) if np.ndim(values) == 0 else _inside(values, i, LANES)  # type: ignore[arg-type]


# ---- tables.py


def lanes_of(coef: NDArray | tuple, row: int, i: int) -> Vector:
    return lanes(coef[row], i if isinstance(coef, np.ndarray) else 0)


def lanes_of_columns(dy: NDArray | None, w: Counted | None, tables: NDArray, i: int) -> tuple[Vector, ...]:
    return tuple(lanes(row, i) for row in tables)


def numbers_of(dy: NDArray | None, coef: NDArray, k: NDArray, c: int) -> tuple:
    return *coef[:4, c], k[c], *coef[5:, c]  # 4 is coefficients.K


def blended(own: tuple, following: tuple, n: int) -> tuple[Vector, ...]:
    return tuple(np.where(np.arange(LANES) < n, a, b) for a, b in zip(own, following, strict=True))


# ---- vector_mask.py, bool arrays


Mask = NDArray[np.bool_]


def below(n: int) -> Mask:
    return np.arange(LANES) < n


def finite(v: Vector) -> Mask:
    return np.isfinite(v)


def positive(v: Vector | None) -> Mask | None:
    return None if v is None else v > 0


def joined(a: Mask | None, b: Mask | None) -> Mask | None:
    return b if a is None else a if b is None else a & b


def either(a: Mask, b: Mask) -> Mask:
    return a | b


def kept(m: Mask, v: Vector) -> Vector:
    return np.where(m, v, 0)


def often(m: Mask, factor: Vector | None) -> Vector:
    return np.where(m, 1.0 if factor is None else factor, 0.0)


# ---- cursor.py


def cursor(w: Counted | None) -> Counted | None:
    return w


def shifted(w: Counted | None, n: int, c: int, s: int) -> Counted | None:
    return w and w._replace(
        where_0=w.where_0 + n * w.where_n + c * w.where_c + s * w.where_s,
        weights_0=w.weights_0 + n * w.weights_n + c * w.weights_c + s * w.weights_s,
    )


def rows_of(w: Counted | None, n: int) -> Counted | None:
    return w and w._replace(where_n=n * w.where_n, weights_n=n * w.weights_n)


def if_backward(dy: NDArray | None, w: Counted | None) -> Counted | None:
    return None if dy is None else w


def omits(w: Counted) -> bool:
    return w.omit


def present(v: Vector, w: Counted) -> Mask:
    return ~(np.isnan(v) & w.omit)


def counts(w: Counted) -> float:
    held, weight = (_apart(w.where, w.where_0, 0, 1), _apart(w.weights, w.weights_0, 0, 1))
    return float(held is None or held[0] != 0) * (1.0 if weight is None else weight[0])


def _apart(array: NDArray | None, i: int, step: int, n: int) -> Vector | None:
    assert 1 <= n <= LANES
    if array is None:
        return None
    assert 0 <= min(i, i + (n - 1) * step) <= max(i, i + (n - 1) * step) < array.size
    return np.concatenate([array[i + step * np.arange(n)].astype(np.float64), np.zeros(LANES - n)])


def factors(w: Counted, n: int) -> Vector | None:
    return _apart(w.weights, w.weights_0, w.weights_s, n)


def holds(w: Counted, n: int) -> Mask | None:
    found = _apart(w.where, w.where_0, w.where_s, n)
    return None if found is None else found != 0


# ---- region.py


def each_worker(body: Callable[..., None], workers: int, share_out: int, *arguments: Any) -> None:
    taken = [0] * workers
    for worker in range(workers):
        body(taken, worker, workers, *arguments)


# ---- deal.py


def take(taken: list[int], owner: int) -> int:
    taken[owner] += 1
    return taken[owner] - 1
