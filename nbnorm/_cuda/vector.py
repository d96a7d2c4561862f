"""The vector value: intrinsics.py on a GPU, simulator.py in Numba's CUDA simulator."""

from nbnorm._cuda.launch import SIMULATED

if SIMULATED:
    from nbnorm._cuda.simulator import (
        element,
        fold,
        lanes,
        load,
        load_table,
        put,
        routine,
        store,
        store_table,
        zeros,
    )  # fmt: skip
else:
    from nbnorm._cuda.intrinsics import (
        element,
        fold,
        lanes,
        load,
        load_table,
        put,
        routine,
        store,
        store_table,
        zeros,
    )  # fmt: skip

__all__ = [
    "element", "fold", "lanes", "load", "load_table", "put", "routine", "store", "store_table", "zeros",
]  # fmt: skip
