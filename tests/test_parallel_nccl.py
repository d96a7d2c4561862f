"""nbnorm.parallel.nccl with a recording communicator: what it is asked for. No GPU and no NCCL takes part."""

from __future__ import annotations

import copy
import ctypes
import sys
import types

import fake_cupy
import numpy as np
import pytest
import reference
from common import random_state, sample, snapshot
from tolerance import assert_close

import nbnorm

FLOAT64 = 8  # ncclFloat64 in nccl.h


@pytest.fixture
def libraries(monkeypatch):
    """What `cupy.cuda.nccl` has beside the stand-in for CuPy, before anything imports our module."""
    for module in ("cupy", "cupy.cuda"):  # what is there comes back afterwards
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(vars(nbnorm.parallel), "nccl", raising=False)
    cupy = fake_cupy.install()
    cupy.cuda.nccl = types.SimpleNamespace(NCCL_FLOAT64=FLOAT64, available=True)
    cupy.cuda.get_current_stream = lambda: types.SimpleNamespace(ptr=77)
    cuda = types.ModuleType("cupy.cuda")
    cuda.nccl = cupy.cuda.nccl
    sys.modules["cupy.cuda"] = cuda
    monkeypatch.delitem(sys.modules, "nbnorm.parallel.nccl", raising=False)
    yield cupy.cuda.nccl
    monkeypatch.delitem(sys.modules, "nbnorm.parallel.nccl", raising=False)


@pytest.fixture
def nccl(libraries):
    """The module, imported with the stand-in for CuPy."""
    from nbnorm.parallel import nccl

    return nccl


def test_cupy_without_nccl_is_an_import_error_with_a_way_out(libraries):
    """CuPy's module is there then, and has nothing but this."""
    vars(libraries).clear()
    libraries.available = False
    with pytest.raises(ImportError, match="CuPy finds no NCCL; install nvidia-nccl-cu13") as caught:
        nbnorm.parallel.nccl  # noqa: B018
    assert len(str(caught.value)) < 200


class Communicator:
    """Three ranks; rank r sends r more than this one."""

    def __init__(self):
        self.log = []

    def size(self):
        return 3

    def allGather(self, sent, received, count, kind, stream):
        self.log.append((count, kind, stream))
        own = np.ctypeslib.as_array((ctypes.c_double * count).from_address(sent))
        everyone = np.ctypeslib.as_array((ctypes.c_double * (3 * count)).from_address(received)).reshape(3, count)
        everyone[...] = own + np.arange(3)[:, None]


@pytest.mark.parametrize("on_gpu", [False, True])
def test_one_gather_on_the_current_stream(nccl, on_gpu):
    packed = np.array([1.0, 10.0])
    comm = Communicator()
    everyone = nccl.sync(comm)(sys.modules["cupy"].asarray(packed) if on_gpu else packed)
    assert comm.log == [(2, FLOAT64, 77)]
    assert hasattr(everyone, "get") == on_gpu
    found = everyone.get() if on_gpu else everyone
    assert found.tolist() == [[1, 10], [2, 11], [3, 12]]


def test_something_else_than_a_communicator(nccl):
    with pytest.raises(TypeError, match=r"comm is a int; expected a cupy\.cuda\.nccl\.NcclCommunicator"):
        nccl.sync(3)
    assert repr(nccl.sync(Communicator())) == "nbnorm.parallel.nccl.sync(<3 ranks>)"


class Alone(Communicator):
    """One rank."""

    def size(self):
        return 1

    def allGather(self, sent, received, count, kind, stream):
        self.log.append((count, kind, stream))
        ctypes.memmove(received, sent, 8 * count)


@pytest.mark.parametrize(
    "shape", [(6, 3, 70), pytest.param((6, 3, 1), marks=pytest.mark.exhaustive("kernels of their own"))], ids=str
)
@pytest.mark.parametrize(("mask", "of_statistics"), [(None, 9), ((6, 1, 1), 12), ((6, 3, 1), 12)], ids=str)
def test_a_step_with_a_mask(nccl, rng, mask, of_statistics, shape):
    """Three messages: whether all is well, the statistics, of each channel its count too, and the gradients."""
    x, dy = sample(rng, shape), sample(rng, shape)
    counting = {} if mask is None else {"where": np.arange(np.prod(mask)).reshape(mask) % 4 > 0}
    state, comm = random_state(rng, 3), Alone()
    other = copy.deepcopy(state)
    y, saved = nbnorm.batch_norm_training(x, state, sync=nccl.sync(comm), **counting)
    expected, saved_alone = nbnorm.batch_norm_training(x, other, **counting)
    assert_close(y, reference.wide(expected))
    assert_close(
        nbnorm.batch_norm_backward(dy, saved).dx, reference.wide(nbnorm.batch_norm_backward(dy, saved_alone).dx)
    )
    assert snapshot(state) == snapshot(other)
    assert comm.log == [(count, FLOAT64, 77) for count in (3, of_statistics, 13)]
