"""The one-launch kernels of fused.py: the oracle's values, and the bits of two launches."""

from __future__ import annotations

import numpy as np
import pytest
from common import sample
from conftest import SIMULATED
from steps import check_backward, check_forward, check_step
from tolerance import dtype_of

import nbnorm
from nbnorm._channel_rows import COUNT

SHAPES = {
    "whole packs": (1, 9, 64),
    "several segments": (3, 9, 72),
    "many channels": (2, 9, 8, 9),
}
PARTS = (3, 2, 88)  # in the simulator a channel of this has several parts


@pytest.fixture
def fused(monkeypatch):
    """The kernels of fused.py that were started since."""
    from nbnorm._cuda import stages

    started = []

    def recording(kernel):
        def start(*args, **kwargs):
            started.append(kernel.__name__)
            kernel(*args, **kwargs)

        return start

    for name in ("fused_segments", "fused_gradient_segments"):
        monkeypatch.setattr(stages, name, recording(getattr(stages, name)))
    return started


@pytest.mark.skipif(not SIMULATED, reason="ONLY THE SIMULATOR has blocks so small")
def test_shapes_have_one_part_and_several(cupy):
    from nbnorm._cuda import plan

    found = {shape: plan.cut((*shape[:2], int(np.prod(shape[2:]))), 4).grid[1] for shape in (*SHAPES.values(), PARTS)}
    assert found == dict.fromkeys(SHAPES.values(), 1) | {PARTS: 4}


@pytest.mark.each_value
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_step(cupy, rng, shape, dtype, fused):
    x, dy = (cupy.asarray(sample(rng, shape, dtype)) for _ in range(2))
    check_step(cupy, x, dy, rng)
    assert fused == ["fused_segments", "fused_gradient_segments"]


@pytest.mark.parametrize("options", [{"use_gamma": False, "use_beta": False}, {"track_running": False}], ids=str)
def test_options_of_the_state(cupy, rng, options, fused):
    x, dy = (cupy.asarray(sample(rng, (2, 9, 72))) for _ in range(2))
    check_step(cupy, x, dy, rng, **options)
    assert len(fused) == 2


@pytest.mark.parametrize("mean", [1e4, -1e8])
def test_no_digit_is_lost_when_the_mean_is_large(cupy, rng, mean, fused):
    x = (rng.normal(size=(2, 9, 72)) + mean).astype(np.float32)
    check_step(cupy, cupy.asarray(x), cupy.asarray(rng.normal(size=x.shape).astype(np.float32)), rng)
    assert len(fused) == 2


@pytest.mark.each_value
@pytest.mark.parametrize("over", ["dy", "x"])
def test_results_go_where_they_should(cupy, rng, over, dtype, fused):
    """Also over what other threads of the block still need."""
    x, dy = (cupy.asarray(sample(rng, (3, 9, 72), dtype)) for _ in range(2))
    state, _, _, saved = check_forward(cupy, x, rng, out=cupy.empty_like(x))
    given = {"dy": dy, "x": x}
    before = {name: array.get() for name, array in given.items()}
    separate = nbnorm.batch_norm_backward(dy, saved).dx
    assert all(np.array_equal(given[name].get(), values) for name, values in before.items())
    check_backward(cupy, dy, saved, state)
    assert nbnorm.batch_norm_backward(dy, saved, out=given[over]).dx is given[over]
    assert given[over].get().tobytes() == separate.get().tobytes()
    assert fused == ["fused_segments"] + ["fused_gradient_segments"] * 3


@pytest.mark.pairs_at_most("two launches or one, each value goes through the same formulas")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("activation", [None, "relu", ("leaky_relu", 0.3)], ids=str)
@pytest.mark.parametrize("with_residual", [False, True], ids=["alone", "residual"])
def test_the_bits_are_those_of_two_launches(cupy, rng, shape, dtype, activation, with_residual, fused, monkeypatch):
    from nbnorm._cuda import stages

    x = cupy.asarray((sample(rng, shape).astype(np.float64) + 1e4).astype(dtype_of(dtype)))
    dy = cupy.asarray(sample(rng, shape, dtype))
    residual = cupy.asarray(sample(rng, shape, dtype)) if with_residual else None
    runs = []
    for room_of in (stages.room_of, lambda *args, **kwargs: None):
        monkeypatch.setattr(stages, "room_of", room_of)
        state = nbnorm.BatchNormState(shape[1], device="cuda")
        y, saved = nbnorm.batch_norm_training(x, state, activation=activation, residual=residual)
        arrays = (y, *nbnorm.batch_norm_backward(dy, saved), state.running_mean, state.running_var)
        kept = [row for number, row in enumerate(saved._stats.get()) if number != COUNT]  # of which nothing is written
        counters = state.num_batches, state.num_samples
        runs.append([*(a.get().tobytes() for a in arrays), *(row.tobytes() for row in kept), counters])
    assert runs[0] == runs[1]
    assert len(fused) == 2


def test_what_does_not_fit_takes_two_launches(cupy, rng, fused, monkeypatch):
    from nbnorm._cuda import plan, stages

    x, dy = (cupy.asarray(sample(rng, (2, 9, 72))) for _ in range(2))
    monkeypatch.setattr(stages, "roomy", lambda: False)
    monkeypatch.setattr(plan, "ROOM", 2 * 72 * 4)  # x alone
    check_step(cupy, x, dy, rng)
    assert fused == ["fused_segments"]
    check_step(cupy, *(cupy.asarray(sample(rng, (2, 9, 67))) for _ in range(2)), rng)  # not whole packs
    monkeypatch.setattr(plan, "ROOM", 2 * 72 * 4 - 1)
    check_step(cupy, x, dy, rng)
    assert fused == ["fused_segments"]


def test_a_channel_of_several_parts_takes_two_launches(cupy, rng, fused):
    from nbnorm._cuda import plan

    check_step(cupy, *(cupy.asarray(sample(rng, PARTS)) for _ in range(2)), rng)
    assert fused == [] or plan.cut(PARTS, 4).grid[1] == 1  # on a GPU


def test_pooled_statistics_take_two_launches(cupy, rng, fused):
    """What was seen before must be read before any block changes it."""
    x = cupy.asarray(sample(rng, (3, 9, 72)))
    state = nbnorm.BatchNormState(9, momentum=None, device="cuda")
    for _ in range(2):
        nbnorm.batch_norm_training(x, state)
    exact = x.get().astype(np.float64)
    np.testing.assert_allclose(state.running_mean.get(), exact.mean((0, 2)), rtol=1e-12, atol=1e-12)
    assert (fused, state.num_samples) == ([], 2 * 3 * 72)
