"""Random calls, right and wrong: NBNORM_CALLS of them (20,000 if it is not set), and arrays between guard pages.

A call either works or raises a documented exception with a short message; one that raises has changed nothing; and
none touches a byte outside its arrays.
"""

import json
import os
import random
import signal
import sys
from collections import Counter

import numpy as np
import pytest
from common import snapshot
from test_processes import run
from tolerance import bfloat16

import nbnorm

CALLS = int(os.environ.get("NBNORM_CALLS", "20000"))
DOCUMENTED = (TypeError, ValueError)  # AxisError is a ValueError
FLOATS = [np.dtype(kind) for kind in ("float16", "float32", "float64", bfloat16 or "float32")]
OTHERS = [
    "int32",
    "bool",
    "complex64",
    "object",
    "U2",
    "longdouble",
    "datetime64[s]",
    "f4,f4",
    "V3",
    ">f4",
    ">f8",
    "<f2",
]
SHAPES = [(6, 3), (5, 3, 4), (2, 3, 70), (3, 3, 2, 2), (40, 3)]
ODD_SHAPES = [(), (3,), (0, 3), (1, 3), (4, 0), (4, 5), (0, 3, 0), (1, 3, 1), (2, 3, 1, 1, 1, 1), (3, 4, 5)]
NO_ARRAYS = [
    None,
    1.5,
    "x",
    [[1.0, 2.0]],
    object(),
    np.float32(2),
    np.ma.zeros((6, 3)),
    np.zeros((6, 3)).view(np.matrix),
    1 + 2j,
]
AXES = [1, 1, 1, 1, -1, 0, 2, 7, -9, (1,), (0, 1), (1, 1), (), 1.0, "1", None, True, [1], 10**30, (1, None), (2, 1)]
FLAGS = [True, False] * 8 + [1, 0, None, "yes"]  # the last two are none
needs_mprotect = pytest.mark.skipif(sys.platform != "linux", reason="NO GUARD PAGES: made with mprotect of Linux")
MARK = 0xA5  # of every byte that no call may touch


def fill(array, random_):
    rng = np.random.default_rng(random_.getrandbits(32))
    if array.dtype in FLOATS:
        array[...] = rng.normal(size=array.shape)
    return array


def an_array(r, shape, dtype):
    """A view of memory of its own, in some layout, and that memory."""
    kind = r.choice(["C", "C", "F", "steps", "back", "wider", "moved", "unaligned", "broadcast", "transposed"])
    size, item = int(np.prod(shape, dtype=int)), dtype.itemsize
    memory = np.full(4 * size * max(item, 1) + 128, MARK, np.uint8)
    plain = memory[64 : 64 + size * item]
    if dtype.hasobject or (kind == "broadcast" and r.random() < 0.5):
        return np.broadcast_to(np.zeros((), dtype), shape), memory
    if kind == "unaligned":
        return np.ndarray(shape, dtype, memory, offset=65), memory
    if kind == "steps" and shape:
        return np.ndarray((*shape[:-1], 2 * shape[-1]), dtype, memory, offset=64)[..., ::2], memory
    if kind == "wider" and shape:
        return np.ndarray((2 * shape[0], *shape[1:]), dtype, memory, offset=64)[shape[0] :], memory
    if kind == "broadcast" and shape:
        strides = [0] * len(shape)
        return np.ndarray(shape, dtype, memory, 64, strides), memory
    array = np.ndarray(shape, dtype, plain.data, order="F" if kind == "F" else "C") if size else np.empty(shape, dtype)
    if kind == "back":
        array = array[::-1] if shape else array
    if kind == "transposed":
        array = array.T
    return array, memory


class Call:
    """Arguments of one random call, and every byte that it can see."""

    FLOATS = FLOATS
    CALLS = "training", "training", "inference", "backward", "stats"
    second_out = None

    def __init__(self, seed):
        r = self.random = random.Random(seed)
        self.memories = []
        self.state = nbnorm.BatchNormState(
            r.choice([3, 3, 3, 3, (3,), (3, 4), 4, 0]),
            momentum=r.choice([0.1, None]),
            use_gamma=r.random() < 0.8,
            use_beta=r.random() < 0.8,
            track_running=r.random() < 0.8,
            dtype=r.choice(["float32", "float64"]),
        )
        shape = r.choice(SHAPES if r.random() < 0.85 else ODD_SHAPES)
        self.x = self.array(shape, r.choice(self.FLOATS))
        try:
            _, self.saved = nbnorm.batch_norm_training(self.x.copy(), nbnorm.BatchNormState(shape[1]))
        except (*DOCUMENTED, IndexError):
            self.saved = r.choice([None, self.state])
        if r.random() < 0.1:
            self.x = r.choice(NO_ARRAYS)
        self.axis = r.choice(AXES)
        self.out = self.an_out(shape)
        self.dy = self.array(shape if r.random() < 0.8 else r.choice(ODD_SHAPES), getattr(self.x, "dtype", FLOATS[1]))
        self.call = getattr(self, r.choice(self.CALLS))

    def array(self, shape, dtype):
        r = self.random
        if r.random() < 0.1:
            dtype = np.dtype(r.choice(OTHERS))
        array, memory = an_array(r, shape, dtype)
        if array.flags.writeable:
            fill(array, r)
            array.flags.writeable = r.random() < 0.9
        self.memories.append(memory)
        return array

    def an_out(self, shape):
        r = self.random
        dtype = getattr(self.x, "dtype", FLOATS[1])
        choices = [lambda: self.x, lambda: self.x[::-1], lambda: self.x[1:], lambda: r.choice(NO_ARRAYS)]
        if r.random() < 0.35:
            return None
        if r.random() < 0.25 and isinstance(self.x, np.ndarray) and self.x.ndim:
            return r.choice(choices)()
        return self.array(shape if r.random() < 0.8 else r.choice(ODD_SHAPES), dtype)

    def training(self):
        flags = {"use_running": self.random.choice(FLAGS), "update_running": self.random.choice(FLAGS)}
        return nbnorm.batch_norm_training(self.x, self.state, axis=self.axis, out=self.out, **flags)[0]

    def inference(self):
        return nbnorm.batch_norm_inference(self.x, self.state, axis=self.axis, out=self.out)

    def backward(self):
        self.out = None if self.out is self.x else self.out
        return nbnorm.batch_norm_backward(self.dy, self.saved, out=self.out).dx

    def stats(self):
        self.out = None
        return nbnorm.batch_stats(self.x, axis=self.axis)

    def all_bytes(self):
        return [memory.copy() for memory in self.memories], snapshot(self.state)

    def changed(self, before, but_for_out=False):
        """Whether a byte differs from `before`, of the state or of any memory around the arrays."""
        memories, state = before
        differ = [memory != old for memory, old in zip(self.memories, memories, strict=True)]
        for out in (self.out, self.second_out) if but_for_out else ():
            if isinstance(out, np.ndarray) and out.size:
                for memory, found in zip(self.memories, differ, strict=True):
                    first, end = np.lib.array_utils.byte_bounds(memory)
                    offset = out.__array_interface__["data"][0] - first
                    if 0 <= offset < end - first:
                        places = (*out.shape, out.itemsize), np.uint8, found, offset, (*out.strides, 1)
                        np.ndarray(*places)[...] = 0
        return any(found.any() for found in differ) or (not but_for_out and snapshot(self.state) != state)


class CallWithOptions(Call):
    """The same with what stands beside x; of float32, since each dtype, mask and activation has kernels of its own."""

    FLOATS = (np.dtype("float32"),)
    CALLS = "training", "training", "inference", "backward", "stats", "jvp", "double_backward"

    def __init__(self, seed):
        super().__init__(seed)
        r, shape = self.random, getattr(self.x, "shape", (6, 3))
        masks = {
            "where": self.one_of(self.like(shape, np.dtype(bool)), self.like(shape[:1] + (1,) * len(shape[1:]), bool)),
            "weights": self.one_of(self.like(shape, np.dtype("float64"))),
            "nan": r.choice(["omit", "omit", "none", None, 0]),
        }
        forms = (), ("where",), ("weights",), ("nan",), tuple(masks)  # few, for each of which there are kernels
        self.masks = {name: masks[name] for name in r.choice(forms)}
        self.beside = {
            "residual": self.one_of(self.like(shape, np.dtype("float32")), self.x),
            "activation": r.choice([None, None, "relu", "relu", ("leaky_relu", 0.25), ("leaky_relu", -1), "gelu", 3]),
        }
        self.other = {
            "ghost": r.choice([None, None, None, 2, 3, 0, True, "2"]),
            "renorm": r.choice([None, None, None, nbnorm.Renorm(2.0, 1.0), (2.0, 1.0)]),
            "sync": r.choice([None, None, None, lambda packed: packed[None], lambda packed: packed, 7]),
        }
        if self.call == self.backward:
            self.second_out = self.an_out(shape)
        if r.random() < 0.7:
            try:
                given = np.ascontiguousarray(self.x), nbnorm.BatchNormState(3)
                options = r.choice([self.masks, self.beside, self.other, self.masks | self.beside])
                _, self.saved = nbnorm.batch_norm_training(*given, **options)
            except DOCUMENTED:
                pass

    def one_of(self, *wanted):
        r = self.random
        return r.choice([None, None, r.choice(wanted), r.choice(wanted), r.choice(wanted), r.choice(NO_ARRAYS)])

    def like(self, shape, dtype):
        """An array of this shape, or of another one; of another dtype now and then."""
        array = self.array(shape if self.random.random() < 0.9 else self.random.choice(ODD_SHAPES), np.dtype(dtype))
        if array.flags.writeable and array.dtype.kind in "bfi":
            values = np.random.default_rng(self.random.getrandbits(32)).random(array.shape)
            array[...] = (values > 0.3 if array.dtype.kind == "b" else values).astype(array.dtype)
        return array

    def some(self, options):
        return {name: value for name, value in options.items() if self.random.random() < 0.5}

    def training(self):
        options = self.masks | self.some(self.beside) | self.some(self.other)
        flags = {"use_running": self.random.choice([False, False, True])}
        return nbnorm.batch_norm_training(self.x, self.state, axis=self.axis, out=self.out, **flags, **options)

    def inference(self):
        return nbnorm.batch_norm_inference(self.x, self.state, axis=self.axis, out=self.out, **self.some(self.beside))

    def backward(self):
        which = {"param_grads": self.random.choice(["local", "local", "global", None])}
        return nbnorm.batch_norm_backward(
            self.dy, self.saved, out=self.out, dresidual_out=self.second_out, **self.some(which)
        )

    def stats(self):
        self.out = None
        return nbnorm.batch_stats(self.x, axis=self.axis, **self.masks)

    def directions(self):
        return (self.one_of(np.ones(3), np.ones(3, np.float32), np.ones(4), np.ones(3, int)) for _ in range(2))

    def jvp(self):
        return nbnorm.batch_norm_jvp(self.one_of(self.dy), *self.directions(), self.saved, out=self.out)

    def double_backward(self):
        self.out = None
        return nbnorm.batch_norm_double_backward(self.one_of(self.x), *self.directions(), self.dy, self.saved)


KINDS_OF_ERRORS = "worked", "x", "out", "axis", "dy", "saved", "the", "training"
KINDS_WITH_OPTIONS = (
    *("worked", "where", "weights", "nan", "activation", "residual", "ghost", "renorm", "sync"),
    *("dresidual_out", "dx", "ddx", "dgamma"),
)


@pytest.mark.longer
@pytest.mark.parametrize(
    ("kind", "calls", "kinds"),
    [
        pytest.param(Call, CALLS, KINDS_OF_ERRORS, id="plain"),
        pytest.param(
            CallWithOptions,
            CALLS // 8,
            KINDS_WITH_OPTIONS,
            id="with options",
            marks=pytest.mark.exhaustive("each option's own errors, in its test file; a hundred kernels to compile"),
        ),
    ],
)
def test_random_calls_work_or_raise_what_is_documented_and_change_nothing_else(kind, calls, kinds):
    seen = Counter()
    with np.errstate(all="ignore"):  # dtypes and values are arbitrary here
        for seed in range(calls):
            call = kind(seed)
            before = call.all_bytes()
            error = None
            try:
                call.call()
            except DOCUMENTED as caught:
                error = str(caught)
            except Exception as caught:
                raise AssertionError(f"seed {seed}: {type(caught).__name__}: {caught}") from caught
            if error is None:
                assert not call.changed(before, but_for_out=True), f"seed {seed}: a byte outside of out has changed"
            else:
                assert len(error) < 200, f"seed {seed}: {error}"
                assert not call.changed(before), f"seed {seed}: a call that failed has changed something: {error}"
            seen["worked" if error is None else error.split()[0]] += 1
    assert [what for what in kinds if seen[what] < calls / 2000] == []  # of all kinds: none of these is rare


# ---- guard pages


@needs_mprotect
def test_no_kernel_touches_memory_beside_its_arrays():
    """Every array begins at, or ends at, a page that cannot be touched."""
    done = run("guard_pages", threads=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["digests"][0][0] > 100


@needs_mprotect
@pytest.mark.parametrize("place", ["before", "behind"])
def test_a_touch_beside_an_array_would_kill(place):
    assert run("touch", place).returncode == -signal.SIGSEGV
