"""Values of the CUDA backend against the oracle: every way through the kernels, every dtype, layouts and edges."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from common import sample
from steps import check_backward, check_forward, check_step, state_on_gpu
from tolerance import assert_close, assert_stat_close, dtype_of

import nbnorm

SHAPES = {
    "segments of whole packs": (3, 2, 64),
    "segments of half packs": (2, 3, 68),
    "segments of single values": (2, 2, 67),
    "one long channel": (1, 1, 700),
    "a table": (37, 5),
    "a table of whole packs": (33, 16),
    "a wide table of few rows": (3, 67),
    "one channel": (150, 1),
    "short segments": (9, 3, 5),
    "small images": (6, 8, 3, 3),
    "two values": (2, 3),
}


@pytest.mark.each_value
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_step(cupy, rng, shape, dtype):
    x, dy = (cupy.asarray(sample(rng, shape, dtype)) for _ in range(2))
    check_step(cupy, x, dy, rng)


@pytest.mark.each_value
@pytest.mark.parametrize("S", [65, 66, 69, 70, 71, 76])
def test_segments_begin_anywhere_between_packs(cupy, rng, S, dtype):
    """Whole packs from the first that is aligned, the values around them one by one; nothing beside is touched."""
    room = cupy.asarray(sample(rng, (4 * 3 * S + 32,), dtype, axis=0))
    x, out = room[: 6 * S].reshape(2, 3, S), room[-(-6 * S // 8) * 8 + 16 :][: 6 * S].reshape(2, 3, S)
    first = out.data.ptr - room.data.ptr
    before = room.get().tobytes()
    state, _, _, saved = check_forward(cupy, x, rng, out=out)
    check_backward(cupy, cupy.asarray(sample(rng, x.shape, dtype)), saved, state)
    after = room.get().tobytes()
    assert after[:first] == before[:first]
    assert after[first + out.nbytes :] == before[first + out.nbytes :]


@pytest.mark.each_value
@pytest.mark.parametrize("shape", [(2, 3, 68), (37, 5)], ids=str)
def test_a_step_with_the_running_statistics(cupy, rng, shape, dtype):
    x, dy = (cupy.asarray(sample(rng, shape, dtype)) for _ in range(2))
    check_step(cupy, x, dy, rng, use_running=True)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_inference(cupy, rng, shape):
    x = sample(rng, shape)
    state, on_gpu = state_on_gpu(rng, shape[1])
    exact = reference.inference(x, state.running_mean, state.running_var, state.gamma, state.beta, state.eps, 1)
    given = cupy.asarray(x)
    y = nbnorm.batch_norm_inference(given, on_gpu)
    assert_close(y.get(), exact, 1)
    assert nbnorm.batch_norm_inference(given, on_gpu, out=given) is given
    assert given.get().tobytes() == y.get().tobytes()


@pytest.mark.parametrize("axis", [0, 1, -1, (1, 2), (2, 0)])
def test_the_channels_are_on_any_axis(cupy, rng, axis):
    x, dy = (cupy.asarray(sample(rng, (4, 5, 6), axis=axis)) for _ in range(2))
    check_step(cupy, x, dy, rng, axis)


VIEWS = {
    "channels last": lambda cupy, a: a.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2),
    "Fortran order": lambda cupy, a: a.transpose(3, 2, 1, 0).copy().transpose(3, 2, 1, 0),
    "every other": lambda cupy, a: cupy.concatenate([a, a], axis=3)[..., ::2],
    "backwards": lambda cupy, a: a[:, ::-1],
    "broadcast": lambda cupy, a: cupy.broadcast_to(a[:1], a.shape),
}


@pytest.mark.each_value
@pytest.mark.parametrize("view_of_dy", [None, "channels last"])
@pytest.mark.parametrize("view", VIEWS)
def test_any_layout(cupy, rng, view, view_of_dy):
    x, dy = (cupy.asarray(sample(rng, (3, 4, 5, 6))) for _ in range(2))
    check_step(cupy, VIEWS[view](cupy, x), VIEWS[view_of_dy](cupy, dy) if view_of_dy else dy, rng)


def test_memory_that_is_not_aligned(cupy, rng, dtype):
    room = cupy.asarray(sample(rng, (400,), dtype, axis=0))
    x, dy, out = room[1:101].reshape(20, 5), room[103:203].reshape(20, 5), room[207:307].reshape(20, 5)
    before = room[:207].get().tobytes(), room[307:].get().tobytes()
    state, _, y, saved = check_forward(cupy, x, rng, out=out)
    assert y is out
    assert (room[:207].get().tobytes(), room[307:].get().tobytes()) == before
    check_backward(cupy, dy, saved, state, out=dy)


def test_out_of_another_layout(cupy, rng):
    x = cupy.asarray(sample(rng, (3, 4, 5)))
    out = cupy.empty((3, 5, 4), np.float32).transpose(0, 2, 1)
    check_forward(cupy, x, rng, out=out)


@pytest.mark.each_value
@pytest.mark.parametrize("shape", [(2, 3, 68), (37, 3)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"use_gamma": False},
        {"use_beta": False},
        {"use_gamma": False, "use_beta": False},
        {"track_running": False},
        {"dtype": "float64"},
        {"momentum": 1.0, "eps": 0.5},
    ],
    ids=str,
)
def test_options_of_the_state(cupy, rng, shape, options):
    x, dy = (cupy.asarray(sample(rng, shape)) for _ in range(2))
    check_step(cupy, x, dy, rng, **options)


@pytest.mark.parametrize("shape", [(2, 3, 68), (37, 3)], ids=str)
def test_nothing_is_updated_when_told_so(cupy, rng, shape):
    x = cupy.asarray(sample(rng, shape))
    check_forward(cupy, x, rng, update_running=False)
    check_forward(cupy, x, rng, use_running=True, update_running=False)


@pytest.mark.parametrize("shape", [(2, 3, 68), (37, 3)], ids=str)
def test_pooled_statistics_are_those_of_everything_seen(cupy, rng, shape):
    state = nbnorm.BatchNormState(3, momentum=None, device="cuda")
    batches = [sample(rng, shape) for _ in range(3)]
    for batch in batches:
        nbnorm.batch_norm_training(cupy.asarray(batch), state)
    whole = np.concatenate(batches)
    exact = reference.training(whole)
    assert_stat_close(state.running_mean.get(), exact.mean)
    assert_stat_close(state.running_var.get(), exact.var * exact.count / (exact.count - 1))
    assert (state.num_batches, state.num_samples) == (3, exact.count)


@pytest.mark.each_value
@pytest.mark.parametrize("shape", [(2, 3, 68), (37, 3)], ids=str)
def test_statistics(cupy, rng, shape, dtype):
    x = sample(rng, shape, dtype)
    exact = reference.training(x)
    stats = nbnorm.batch_stats(cupy.asarray(x))
    assert float(stats.count) == exact.count
    assert_stat_close(stats.mean.get(), exact.mean)
    assert_stat_close(stats.m2.get(), exact.var * exact.count)
    halves = [nbnorm.batch_stats(cupy.asarray(part)) for part in (x[:1], x[1:])]
    merged = nbnorm.merge_stats(*halves)
    assert_stat_close(merged.mean.get(), exact.mean)
    assert_stat_close(merged.m2.get(), exact.var * exact.count)
    with pytest.raises(TypeError, match="some arguments are on cuda:0 and some on cpu"):
        nbnorm.merge_stats(stats, nbnorm.BatchStats(np.array(2.0), np.zeros(3), np.zeros(3)))


def test_an_m2_that_overflows_where_parts_are_merged_is_nan_and_no_other(cupy):
    parts = [nbnorm.batch_stats(cupy.asarray(np.array([[value, 1.0], [value, 3.0]]))) for value in (1e155, 2e155)]
    assert all(part.m2.get().tolist() == [0, 2] for part in parts)
    with np.errstate(all="ignore"):  # of the simulator
        m2 = nbnorm.merge_stats(*parts).m2.get()
    assert np.isnan(m2[0])
    assert m2[1] == 4


@pytest.mark.each_value
@pytest.mark.parametrize("mean", [1e4, 1e6, -1e8])
@pytest.mark.parametrize("shape", [(4, 2, 100), (200, 3)], ids=str)
def test_no_digit_is_lost_when_the_mean_is_large(cupy, rng, shape, mean):
    x = (rng.normal(size=shape) + mean).astype(np.float32)
    dy = rng.normal(size=shape).astype(np.float32)
    check_step(cupy, cupy.asarray(x), cupy.asarray(dy), rng)


@pytest.mark.parametrize("shape", [(4, 2, 100), (200, 3)], ids=str)
def test_an_outlier_in_front_changes_nothing(cupy, rng, shape):
    x = rng.normal(size=shape).astype(np.float32)
    x[0, 0] = 1e6
    check_step(cupy, cupy.asarray(x), cupy.asarray(rng.normal(size=shape).astype(np.float32)), rng)


@pytest.mark.each_value
@pytest.mark.filterwarnings("ignore:.*invalid value:RuntimeWarning")  # of the simulator: NumPy warns, a GPU does not
@pytest.mark.parametrize("shape", [(4, 3, 70), (20, 3)], ids=str)
def test_what_is_not_finite_stays_in_its_channel(cupy, rng, shape, dtype):
    x, dy = sample(rng, shape, dtype), sample(rng, shape, dtype)
    results = []
    for bad in (1, np.nan, np.inf):
        x[1, 1] = bad
        state = nbnorm.BatchNormState(3, device="cuda")
        y, saved = nbnorm.batch_norm_training(cupy.asarray(x), state)
        dx, dgamma, dbeta = nbnorm.batch_norm_backward(cupy.asarray(dy), saved)
        per_channel = dgamma, dbeta, state.running_mean, state.running_var
        results.append([reference.by_channel(a.get(), 1) for a in (y, dx)] + [a.get() for a in per_channel])
    for found in results[1:]:
        for good, other in zip(results[0], found, strict=True):
            np.testing.assert_array_equal(good[[0, 2]], other[[0, 2]])
        assert [np.isnan(other[1].astype(float)).all() for other in found] == [True] * 3 + [False] + [True] * 2


@pytest.mark.each_value
@pytest.mark.parametrize(
    ("shape", "counting"),
    [((2, 40, 70), False), ((2, 40, 72), False), ((20, 40), False), ((2, 40, 70), True), ((20, 40), True)],
    ids=["segments", "one launch", "a table", "counted segments", "a counted table"],
)
def test_a_constant_channel_gives_beta(cupy, rng, dtype, shape, counting):
    """To the bit also where gamma is so small that the root of the map is far from all x, and rounds on the way."""
    x = np.full(shape, 14.62, dtype_of(dtype))
    state, on_gpu = state_on_gpu(rng, 40, eps=1.0)
    state.gamma, on_gpu.gamma = state.gamma * 1e-3, on_gpu.gamma * 1e-3
    w = {"where": cupy.asarray(rng.random(shape) < 0.7)} if counting else {}
    y, saved = nbnorm.batch_norm_training(cupy.asarray(x), on_gpu, **w)
    assert (reference.by_channel(y.get(), 1) == state.beta.astype(dtype_of(dtype))[:, None]).all()
    assert (saved.stats.m2.get() == 0).all()


@pytest.mark.float32_by_default("test_a_constant_channel_gives_beta")
def test_a_constant_channel_gives_beta_with_renormalization(cupy, rng, dtype):
    """Where the running statistics are those of the batch: then r is 1 and d 0."""
    x = np.full((2, 40, 70), 14.62, dtype_of(dtype))
    state, on_gpu = state_on_gpu(rng, 40, eps=1.0)
    state.gamma, on_gpu.gamma = state.gamma * 1e-3, on_gpu.gamma * 1e-3
    on_gpu.running_mean, on_gpu.running_var = cupy.full(40, float(x[0, 0, 0])), cupy.zeros(40)
    y, _ = nbnorm.batch_norm_training(cupy.asarray(x), on_gpu, renorm=nbnorm.Renorm(3.0, 5.0))
    assert (reference.by_channel(y.get(), 1) == state.beta.astype(dtype_of(dtype))[:, None]).all()


def test_empty_arrays(cupy):
    state = nbnorm.BatchNormState(3, device="cuda")
    with pytest.raises(ValueError, match="got 0"):
        nbnorm.batch_norm_training(cupy.zeros((0, 3)), state)
    y, saved = nbnorm.batch_norm_training(cupy.zeros((0, 3)), state, use_running=True, update_running=False)
    dx, dgamma, dbeta = nbnorm.batch_norm_backward(cupy.zeros((0, 3)), saved)
    assert (y.shape, dx.shape, dgamma.get().tolist(), dbeta.get().tolist()) == ((0, 3), (0, 3), [0] * 3, [0] * 3)
    assert nbnorm.batch_norm_inference(cupy.zeros((0, 3, 4)), state).shape == (0, 3, 4)
    none = nbnorm.BatchNormState(0, device="cuda")
    assert nbnorm.batch_norm_training(cupy.zeros((4, 0)), none)[0].shape == (4, 0)
    assert (none.num_batches, none.num_samples) == (1, 4)
    y, saved = nbnorm.batch_norm_training(cupy.zeros((4, 0)), none, activation="relu")
    assert (y.shape, nbnorm.batch_norm_backward(y, saved).dx.shape) == ((4, 0), (4, 0))
    stats = nbnorm.batch_stats(cupy.zeros((0, 3)))
    assert (float(stats.count), stats.m2.get().tolist()) == (0.0, [0] * 3)


@pytest.mark.parametrize("shape", [(2, 3, 68), (37, 3)], ids=str)
def test_two_runs_give_the_same_bits(cupy, rng, shape):
    x, dy = (cupy.asarray(sample(rng, shape)) for _ in range(2))
    runs = []
    for _ in range(2):
        state = nbnorm.BatchNormState(3, device="cuda")
        y, saved = nbnorm.batch_norm_training(x, state)
        arrays = (y, *nbnorm.batch_norm_backward(dy, saved), state.running_mean, state.running_var)
        runs.append([a.get().tobytes() for a in arrays])
    assert runs[0] == runs[1]
