"""_cpu/vector.py and its twin: what the kernels' tests do not see."""

from inspect import isbuiltin, isfunction

import numpy as np
from numba import config, njit
from numba.extending import _Intrinsic

from nbnorm._cpu import arrays, cursor, deal, vector, vector_mask, vector_memory, vector_python
from nbnorm._cpu.vector import LANES, minus
from nbnorm._cpu.vector_memory import load, store

TINY, HUGE = 5e-324, 1.7976931348623157e308
TWINS = (vector, arrays, vector_memory, vector_mask, cursor, deal)  # of vector_python
VALUES = [0.0, -0.0, 1.0, -1.0, 1 / 3, TINY, -TINY, 2.0**-1022, HUGE, -HUGE, np.inf, -np.inf, np.nan]


@njit
def differences(a, b, result):
    for i in range(0, a.size, LANES):
        store(result, i, minus(load(a, i), load(b, i)))


def test_a_difference_as_a_product_has_the_bits_of_a_subtraction(rng):
    some = np.concatenate([VALUES, 10 ** rng.uniform(-300, 300, 50) * rng.choice([-1, 1], 50)])
    a, b = (np.resize(pair.ravel(), -(-pair.size // LANES) * LANES) for pair in np.meshgrid(some, some))
    found = np.empty_like(a)
    differences(a, b, found)
    with np.errstate(all="ignore"):
        exact = a - b
    np.testing.assert_array_equal(found, exact)
    np.testing.assert_array_equal(np.signbit(found)[exact == 0], np.signbit(exact)[exact == 0])


def test_the_twin_in_python_does_not_warn_of_memory_that_nothing_was_written_to():
    signaling = (
        np.array([0x7F81], np.int16),
        np.array([0x7F800001], np.uint32),
        np.array([0x7FF0000000000001], np.uint64),
    )
    for bits, dtype in zip(signaling, (np.int16, np.float32, np.float64), strict=True):
        found = vector_python.load(np.repeat(bits, LANES).view(dtype), 0)
        assert np.isnan(found).all()


def test_the_twin_in_python_has_nothing_else():
    own = {name: value for name, value in vars(vector_python).items() if not name.startswith("_")}
    functions = {
        name
        for name, value in own.items()
        if isbuiltin(value) or (isfunction(value) and value.__module__ == vector_python.__name__)
    }
    assert {"load", "fold", "lanes"} <= functions
    names = {name: value for module in TWINS for name, value in vars(module).items()}
    intrinsics = {n for n, value in names.items() if isinstance(value, _Intrinsic) and not n.startswith("_")}
    assert functions - set(names) == set()
    assert config.DISABLE_JIT or {"load", "fold", "lanes"} <= intrinsics
    assert intrinsics <= functions
