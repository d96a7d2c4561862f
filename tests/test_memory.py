"""Memory beyond the output: at most 2 % of x and 4 MB, or what the channels themselves need; and it does not grow."""

import gc
import json
import sys
import tracemalloc
import weakref

import numpy as np
import pytest
from test_processes import run

import nbnorm
from nbnorm._cpu import memory
from nbnorm._layout import layout_of

SHAPES = {
    "channels first": (8, 32, 64, 64),
    "one channel": (1, 1, 1 << 20),
    "small images": (32, 512, 7, 7),
    "table": (40_000, 32),
    "wide table": (300, 5_000),
    "very wide table": (9, 200_000),
}


def test_what_kernels_read_of_a_read_only_array_keeps_it():
    x = np.array([[0, 1, 2, 3], [4, 5, 6, 7]], np.float32)
    x.flags.writeable = False
    alive, flat = weakref.ref(x), memory.read(layout_of(x, (1,)), x)
    del x
    gc.collect()
    assert alive() is not None
    assert flat.flags.writeable
    assert flat.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def peak_beyond(allowed, call):
    tracemalloc.start()
    try:
        result = call()
        return tracemalloc.get_traced_memory()[1] - allowed, result
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_call_needs_little_more_than_its_output(shape):
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    dy, state = x[::-1].copy(), nbnorm.BatchNormState(shape[1])
    # Statistics (4), sums (3), coefficients (4), gamma and beta are float64 arrays of C: with a few rows of very many
    # channels they are what counts.
    of_channels = (4 + 3 + 4 + 2) * 8 * shape[1]
    budget = 0.02 * x.nbytes + max(4 << 20, of_channels + (1 << 20))
    for _ in range(2):  # what compiling needs, in the first round, does not count
        training, (y, saved) = peak_beyond(x.nbytes, lambda: nbnorm.batch_norm_training(x, state))
        backward, gradients = peak_beyond(x.nbytes, lambda: nbnorm.batch_norm_backward(dy, saved))  # noqa: B023
        inference, _ = peak_beyond(x.nbytes, lambda: nbnorm.batch_norm_inference(x, state))
    assert max(training, backward, inference) <= budget
    in_place, z = peak_beyond(0, lambda: nbnorm.batch_norm_inference(x, state, out=y))
    assert z is y
    assert in_place <= budget
    assert gradients.dx.shape == x.shape


def growth(*arguments):
    done = run("growth", *arguments, threads=1)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["digests"][0][0]


@pytest.mark.longer
@pytest.mark.skipif(sys.platform != "linux", reason="NO GROWTH TEST: it reads /proc/self/statm")
def test_memory_does_not_grow_with_the_calls(pytestconfig):
    number = 100_000 if pytestconfig.getoption("exhaustive") else 30_000
    assert growth(number) <= 256 << 10
    assert growth(number, "leak") > 256 << 10  # an array of four numbers at every fourth
