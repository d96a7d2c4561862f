"""_cpu/vector.py and its twin: what the kernels' tests do not see."""

import os
import subprocess
import sys
from inspect import isbuiltin, isfunction

import numpy as np
import pytest
from numba import config, njit

from nbnorm import _emitted_python
from nbnorm._cpu import arrays, cursor, deal, region, tables, vector, vector_mask, vector_memory, vector_python
from nbnorm._cpu.apply import in_step
from nbnorm._cpu.vector import LANES, minus, zeros
from nbnorm._cpu.vector_memory import LINE, load_as, store

TINY, HUGE = 5e-324, 1.7976931348623157e308
TWINS = (vector, arrays, vector_memory, vector_mask, cursor, deal, region, tables)  # of vector_python
VALUES = [0.0, -0.0, 1.0, -1.0, 1 / 3, TINY, -TINY, 2.0**-1022, HUGE, -HUGE, np.inf, -np.inf, np.nan]


@njit
def differences(a, b, result):
    for i in range(0, a.size, LANES):
        store(result, i, minus(load_as(zeros(), a, i), load_as(zeros(), b, i)))


def test_a_difference_as_a_product_has_the_bits_of_a_subtraction(rng):
    some = np.concatenate([VALUES, 10 ** rng.uniform(-300, 300, 50) * rng.choice([-1, 1], 50)])
    a, b = (np.resize(pair.ravel(), -(-pair.size // LANES) * LANES) for pair in np.meshgrid(some, some))
    found = np.empty_like(a)
    with np.errstate(all="ignore"):
        differences(a, b, found)
        exact = a - b
    np.testing.assert_array_equal(found, exact)
    np.testing.assert_array_equal(np.signbit(found)[exact == 0], np.signbit(exact)[exact == 0])


@njit
def begin(tables, y):
    return in_step(tables, y)


@pytest.mark.parametrize(
    ("of_tables", "of_y"),
    [("float32", "uint16"), ("float32", "float32"), ("float64", "float32"), ("float64", "float64")],
)
def test_tables_lie_to_lines_as_y_does(of_tables, of_y):
    for i in range(LINE // np.dtype(of_tables).itemsize):
        for j in range(LINE // np.dtype(of_y).itemsize):
            tables, y = np.empty(64, of_tables)[i:], np.empty(64, of_y)[j:]
            at, until = begin(tables, y), -y.ctypes.data % LINE // y.itemsize
            assert 0 <= at < LINE // tables.itemsize
            assert (tables.ctypes.data + (at + until) * tables.itemsize) % LINE == 0


STEPS = """
import zlib
import numpy as np
import nbnorm
from nbnorm._cpu.vector import LARGE_REGISTERS

print(LARGE_REGISTERS)
rng = np.random.default_rng(0)
for shape in (700, 37), (90, 1024), (40, 5, 7, 7), (9, 3, 30, 40):
    mask = {"where": rng.random(shape) < 0.7}
    for dtype, options in ("float32", {}), ("float32", {"activation": "relu"}), ("float64", {}), ("float32", mask):
        x = rng.standard_normal(shape).astype(dtype) + 3
        state = nbnorm.BatchNormState(shape[1])
        y, saved = nbnorm.batch_norm_training(x, state, **options)
        for array in (y, *nbnorm.batch_norm_backward(x, saved), state.running_mean, state.running_var):
            print(zlib.crc32(array))
"""
# The code is for this processor, which Numba knows by then: only the choice of the width is another.
AS_IF_REGISTERS_WERE_OTHERS = """
from numba.core import codegen
from numba.core.registry import cpu_target
cpu_target.target_context
own = codegen.get_host_cpu_features
features = own()
others = features.replace("+avx512f", "-avx512f") if "+avx512f" in features else features + ",+avx512f"
codegen.get_host_cpu_features = lambda: others
import nbnorm._cpu.vector
codegen.get_host_cpu_features = own
"""


@pytest.mark.skipif(config.DISABLE_JIT, reason="about compiled code")
@pytest.mark.exhaustive("the width of this processor, against the oracle: test_training")
def test_fewer_lanes_at_a_time_have_the_same_bits(tmp_path):
    found, one_thread = [], {**os.environ, "NUMBA_NUM_THREADS": "1"}
    others_cache = one_thread | {"NUMBA_CACHE_DIR": str(tmp_path)}  # Numba names an entry by the true processor
    for program, environment in ((STEPS, one_thread), (AS_IF_REGISTERS_WERE_OTHERS + STEPS, others_cache)):
        command = [sys.executable, "-c", program]
        found.append(subprocess.check_output(command, env=environment, text=True).split())
    (large, *bits), (other, *others) = found
    assert {large, other} == {"True", "False"}
    assert len(bits) == 4 * 4 * 6
    assert bits == others


def test_the_twin_in_python_does_not_warn_of_memory_that_nothing_was_written_to():
    signaling = (
        np.array([0x7F81], np.int16),
        np.array([0x7F800001], np.uint32),
        np.array([0x7FF0000000000001], np.uint64),
    )
    for bits, dtype in zip(signaling, (np.int16, np.float32, np.float64), strict=True):
        found = vector_python._load(np.repeat(bits, LANES).view(dtype), 0)
        assert np.isnan(found).all()


def test_the_twin_in_python_has_nothing_else():
    known = {name: value for name, value in vars(vector_python).items() if not name.startswith("_")}
    functions = {
        name
        for name, value in known.items()
        if isbuiltin(value) or (isfunction(value) and value.__module__ == vector_python.__name__)
    }
    assert {"load_as", "fold", "lanes"} <= functions
    names = {name: value for module in TWINS for name, value in vars(module).items()}
    intrinsics = {n for n, value in names.items() if getattr(value, "is_intrinsic", False) and not n.startswith("_")}
    assert functions - set(names) == set()
    assert config.DISABLE_JIT or {"load_as", "fold", "lanes"} <= intrinsics
    assert intrinsics <= functions | {name for name in known if name in vars(_emitted_python)}
