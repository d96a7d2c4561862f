"""nbnorm.parallel.mpi under mpiexec, with real processes: several training steps, empty shards, failing ranks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import reference
from tolerance import assert_close, dtype_of

import nbnorm
from nbnorm.parallel import mpi

HERE = Path(__file__).parent
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
SECONDS = 300  # until a hanging group is ended

try:
    import mpi4py  # noqa: F401

    MISSING = None if MPIEXEC else "there is no mpiexec"
except ImportError:
    MISSING = "mpi4py is not installed"
if MISSING and os.environ.get("NBNORM_REQUIRE_PARALLEL") == "1":
    raise RuntimeError(f"the tests of MPI are required: {MISSING}")
real = pytest.mark.skipif(MISSING is not None, reason=f'NO MPI TESTS: {MISSING}; pip install -e ".[mpi]" mpich')


def mpiexec(size, scenario, directory):
    """Run tests/mpi_ranks.py in that many processes."""
    paths = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "NUMBA_NUM_THREADS": "1"}
    command = [MPIEXEC, "-n", str(size), sys.executable, str(HERE / "mpi_ranks.py"), scenario, str(directory)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]


def assert_relative(found, exact):
    assert (abs(found - exact) <= 1e-12 * abs(exact)).all()


@real
def test_training_equals_that_of_one_process(dtype, tmp_path):
    check_training(3, dtype, tmp_path)


@real
def test_two_ranks(tmp_path):
    check_training(2, "float32", tmp_path)


def check_training(size, dtype, tmp_path):
    import mpi_ranks

    mpiexec(size, f"training:{dtype}", tmp_path)
    found = [dict(np.load(tmp_path / f"{rank}.npz")) for rank in range(size)]
    kind = dtype_of(dtype)
    joined = {
        name: np.concatenate([each[name] if dtype != "bfloat16" else each[name].view(kind) for each in found])
        for name in found[0]
        if name[0] in "yd" and name[1:2] in "x0123"
    }
    whole = mpi_ranks.train(dtype)
    for name in ("running_mean", "running_var", "counters", *(n for n in whole if n.startswith(("gamma", "all_")))):
        assert len({each[name].tobytes() for each in found}) == 1, name
        assert_relative(found[0][name], whole[name])
    beta = np.zeros(6)
    for i, (x, dy) in enumerate(mpi_ranks.data(dtype)):
        gamma = found[0][f"gamma{i}"]
        assert_close(joined[f"y{i}"], reference.training(x, gamma, beta).y)
        exact = reference.backward(dy, x, gamma)
        if dtype != "float64":
            assert_close(joined[f"dx{i}"], exact.dx, terms=exact.terms)
        for name, value in (("dgamma", exact.dgamma), ("dbeta", exact.dbeta)):
            assert_relative(sum(each[f"{name}{i}"] for each in found), value)
            assert_relative(found[-1][f"all_{name}{i}"], value)
        beta = beta - 1e-4 * found[0][f"all_dbeta{i}"]


@real
def test_masks_of_each_rank(tmp_path):
    import mpi_ranks

    mpiexec(3, "masked:float32", tmp_path)
    found = [dict(np.load(tmp_path / f"{rank}.npz")) for rank in range(3)]
    beta = np.zeros(6)
    for i, ((x, dy), where) in enumerate(zip(mpi_ranks.data("float32"), mpi_ranks.masks(), strict=True)):
        gamma = found[0][f"gamma{i}"]
        batch = reference.weighted_training(x, where, gamma, beta)
        exact = reference.weighted_backward(dy, x, where, gamma)
        assert_close(np.concatenate([each[f"y{i}"] for each in found]), batch.y)
        assert_close(np.concatenate([each[f"dx{i}"] for each in found]), exact.dx)
        for each in found:
            assert_relative(each[f"all_dgamma{i}"], exact.dgamma)
            assert_relative(each[f"all_dbeta{i}"], exact.dbeta)
        beta = beta - 1e-4 * found[0][f"all_dbeta{i}"]
    seen = np.sum(mpi_ranks.masks(), (0, 1, 3))
    for each in found:
        assert each["counters"].tolist() == [mpi_ranks.STEPS, *seen]
        assert each["running_var"].tobytes() == found[0]["running_var"].tobytes()


@real
@pytest.mark.parametrize(("which", "own"), [
    ("forward", "TypeError: x has dtype int64"),
    ("backward", "ValueError: dy has shape (5, 3)"),
    ("values", "ValueError: training needs at least 2 values per channel, got 1 (on all ranks together)"),
])  # fmt: skip
def test_a_failing_rank_leaves_nobody_waiting(which, own, tmp_path):
    size = 3
    mpiexec(size, f"failure:{which}", tmp_path)
    said, after = zip(*((tmp_path / f"{rank}.txt").read_text().split("\n") for rank in range(size)), strict=True)
    assert said[-1].startswith(own)
    for text in said[:-1]:
        assert text.startswith(own if which == "values" else f"RuntimeError: rank {size - 1} of {size} failed")
    assert len(set(after)) == 1
    assert after[0].startswith("0 1 ")  # the failed call has counted nothing


# ---- what a communicator is asked for, without MPI


class Communicator:
    """Two ranks with the same numbers; keeps what it was given."""

    def __init__(self):
        self.log = []

    def Get_size(self):
        return 2

    def Allgather(self, packed, everyone):
        self.log.append((type(packed), packed.tolist(), type(everyone), everyone.shape))
        np.asarray(everyone)[...] = np.asarray(packed)


def test_numpy_arrays_go_as_they_are(given):
    comm = Communicator()
    sync = mpi.sync(comm)
    assert sync(np.array([1.0, 2.0])).tolist() == [[1, 2], [1, 2]]
    assert comm.log == [(np.ndarray, [1, 2], np.ndarray, (2, 2))]
    assert repr(sync) == "nbnorm.parallel.mpi.sync(<2 ranks>, gpu_aware=False)"
    _, saved = nbnorm.batch_norm_training(given.x, given.state, sync=sync)
    assert saved.sync is sync


class DeviceArray(np.ndarray):
    def get(self):
        return np.array(self)


@pytest.mark.parametrize("gpu_aware", [False, True])
def test_cupy_arrays_go_through_the_host_unless_asked_otherwise(gpu_aware, monkeypatch):
    log = []
    stream = SimpleNamespace(synchronize=lambda: log.append("synchronize"))
    cupy = SimpleNamespace(
        asarray=lambda a: np.asarray(a).view(DeviceArray),
        empty=lambda shape: np.empty(shape).view(DeviceArray),
        cuda=SimpleNamespace(get_current_stream=lambda: stream),
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    comm = Communicator()
    comm.log = log
    packed = np.array([1.0, 2.0]).view(DeviceArray)

    everyone = mpi.sync(comm, gpu_aware=gpu_aware)(packed)
    assert type(everyone) is DeviceArray
    assert everyone.tolist() == [[1, 2], [1, 2]]
    kind = DeviceArray if gpu_aware else np.ndarray
    sent = (kind, [1, 2], kind, (2, 2))
    assert log == (["synchronize", sent] if gpu_aware else [sent])


def test_something_else_than_a_communicator():
    with pytest.raises(TypeError, match=r"comm is a int; expected a communicator, such as mpi4py\.MPI\.COMM_WORLD"):
        mpi.sync(3)
