"""The one-launch kernels of fused.py, which wait behind a switch: the oracle's values, and the bits of two launches.

The simulator runs blocks one after the other, which cannot wait for each other: there one block has all parts of a
channel. Clusters on a GPU: test_gpu_only.py.
"""

from __future__ import annotations

import numpy as np
import pytest
from common import sample
from conftest import SIMULATED
from steps import check_backward, check_forward, check_step
from tolerance import dtype_of

import nbnorm

SHAPES = {
    "whole packs": (1, 9, 64),
    "several segments": (3, 9, 72),
    "many channels": (2, 9, 8, 9),
    "several parts": (3, 2, 88),  # in the simulator; they begin within a segment
    "parts of one segment": (1, 3, 416),
}


@pytest.fixture
def switched_on(monkeypatch):
    """The kernels of fused.py that were started since."""
    from nbnorm._cuda import plan, stages

    started = []

    def recording(kernel):
        def start(*args, **kwargs):
            started.append(kernel.__name__)
            kernel(*args, **kwargs)

        return start

    for name in ("fused_segments", "fused_gradient_segments"):
        monkeypatch.setattr(stages, name, recording(getattr(stages, name)))
    monkeypatch.setattr(plan, "ONE_LAUNCH", True)
    if SIMULATED:
        monkeypatch.setattr(plan, "CLUSTER", 1)
        monkeypatch.setattr(stages, "clusters", lambda: True)
    return started


@pytest.mark.skipif(not SIMULATED, reason="ONLY THE SIMULATOR has blocks so small")
def test_shapes_have_one_part_and_several(cupy):
    from nbnorm._cuda import plan

    found = {name: plan.cut((*shape[:2], int(np.prod(shape[2:]))), 4).grid[1] for name, shape in SHAPES.items()}
    assert found == dict.fromkeys(SHAPES, 1) | {"several parts": 4, "parts of one segment": 3}


@pytest.mark.each_value
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_step(cupy, rng, shape, dtype, switched_on):
    x, dy = (cupy.asarray(sample(rng, shape, dtype)) for _ in range(2))
    check_step(cupy, x, dy, rng)
    assert switched_on == ["fused_segments", "fused_gradient_segments"]


@pytest.mark.parametrize("options", [{"use_gamma": False, "use_beta": False}, {"track_running": False}], ids=str)
def test_options_of_the_state(cupy, rng, options, switched_on):
    x, dy = (cupy.asarray(sample(rng, (2, 9, 72))) for _ in range(2))
    check_step(cupy, x, dy, rng, **options)
    assert len(switched_on) == 2


@pytest.mark.parametrize("mean", [1e4, -1e8])
def test_no_digit_is_lost_when_the_mean_is_large(cupy, rng, mean, switched_on):
    x = (rng.normal(size=(2, 9, 72)) + mean).astype(np.float32)
    check_step(cupy, cupy.asarray(x), cupy.asarray(rng.normal(size=x.shape).astype(np.float32)), rng)
    assert len(switched_on) == 2


@pytest.mark.each_value
@pytest.mark.parametrize("over", ["dy", "x"])
@pytest.mark.parametrize("shape", [(3, 9, 72), (3, 2, 88)], ids=str)
def test_results_go_where_they_should(cupy, rng, shape, over, dtype, switched_on):
    """Also over what other threads of the block still need."""
    x, dy = (cupy.asarray(sample(rng, shape, dtype)) for _ in range(2))
    state, _, _, saved = check_forward(cupy, x, rng, out=cupy.empty_like(x))
    given = {"dy": dy, "x": x}
    before = {name: array.get() for name, array in given.items()}
    separate = nbnorm.batch_norm_backward(dy, saved).dx
    assert all(np.array_equal(given[name].get(), values) for name, values in before.items())
    check_backward(cupy, dy, saved, state)
    assert nbnorm.batch_norm_backward(dy, saved, out=given[over]).dx is given[over]
    assert given[over].get().tobytes() == separate.get().tobytes()
    assert switched_on == ["fused_segments"] + ["fused_gradient_segments"] * 3


@pytest.mark.each_value
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_bits_are_those_of_two_launches(cupy, rng, shape, dtype, switched_on, monkeypatch):
    from nbnorm._cuda import plan

    x = cupy.asarray((sample(rng, shape).astype(np.float64) + 1e4).astype(dtype_of(dtype)))
    dy = cupy.asarray(sample(rng, shape, dtype))
    runs = []
    for one_launch in (True, False):
        monkeypatch.setattr(plan, "ONE_LAUNCH", one_launch)
        state = nbnorm.BatchNormState(shape[1], device="cuda")
        y, saved = nbnorm.batch_norm_training(x, state)
        arrays = (y, *nbnorm.batch_norm_backward(dy, saved), saved._stats, state.running_mean, state.running_var)
        runs.append([a.get().tobytes() for a in arrays])
    assert runs[0] == runs[1]
    assert len(switched_on) == 2


def test_what_does_not_fit_takes_two_launches(cupy, rng, switched_on, monkeypatch):
    from nbnorm._cuda import plan, stages

    x, dy = (cupy.asarray(sample(rng, (2, 9, 72))) for _ in range(2))
    for room, clusters in (("ROOM", False), ("CLUSTER_ROOM", True)):
        monkeypatch.setattr(stages, "clusters", lambda there=clusters: there)
        switched_on.clear()
        monkeypatch.setattr(plan, room, 2 * 72 * 4)  # x alone
        check_step(cupy, x, dy, rng)
        assert switched_on == ["fused_segments"]
        check_step(cupy, *(cupy.asarray(sample(rng, (2, 9, 67))) for _ in range(2)), rng)  # not whole packs
        monkeypatch.setattr(plan, room, 2 * 72 * 4 - 1)
        check_step(cupy, x, dy, rng)
        assert switched_on == ["fused_segments"]


@pytest.mark.parametrize("shape", [(3, 2, 88), (1, 3, 416)], ids=str)
def test_without_clusters_parts_take_two_launches(cupy, rng, shape, switched_on, monkeypatch):
    from nbnorm._cuda import plan, stages

    monkeypatch.setattr(stages, "clusters", lambda: False)
    check_step(cupy, *(cupy.asarray(sample(rng, shape)) for _ in range(2)), rng)
    assert switched_on == [] or plan.cut(shape, 4).grid[1] == 1  # on a GPU
