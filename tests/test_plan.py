"""_cpu/plan.py: how a map is cut, which changes no bit of it."""

import numpy as np
import pytest
import reference
from common import check_backward, check_forward, check_inference, check_step, random_state, sample
from test_activation import check as check_beside
from test_counted import check_counted

import nbnorm
from nbnorm._cpu import plan, stages, threads


@pytest.mark.parametrize(
    ("what", "tensors", "itemsize", "shape", "by_columns", "streaming"),
    [
        ("long segments", 2, 4, (32, 64, 3136), False, True),
        ("images of 7x7 in cache", 2, 4, (64, 512, 49), False, False),
        ("the same beyond the caches", 2, 4, (512, 512, 49), False, True),
        ("images of 4x4", 2, 4, (64, 512, 16), True, False),
        ("a table in cache", 2, 4, (6272, 250, 1), True, False),
        ("a larger one", 3, 4, (9000, 250, 1), True, False),
        ("one that does not stay there", 3, 4, (11000, 250, 1), True, True),
        ("a table beyond the caches", 3, 4, (65536, 250, 1), True, True),
        ("nothing", 2, 4, (0, 5, 1), False, False),
    ],
)
def test_a_map_is_cut_by_its_shape_and_its_bytes(what, tensors, itemsize, shape, by_columns, streaming):
    cut = plan.mapping(tensors, itemsize, *shape)
    assert (cut.K > 0, cut.streaming) == (by_columns, streaming)
    if by_columns:
        assert cut.K % (shape[1] * shape[2]) == 0
        assert cut.width >= min(cut.K, plan.MAP_WIDTH) + 2 * plan.LANES


@pytest.mark.parametrize(
    ("what", "shape", "streaming", "in_blocks"),
    [
        ("images of 7x7 in cache", (64, 512, 49), False, True),
        ("the same beyond the caches", (64, 2048, 49), True, False),
        ("and as if they were not", (64, 2048, 49), False, True),
        ("a wide table", (64, 8192, 1), False, True),
        ("one beyond the caches", (250, 30000, 1), True, True),
        ("one with more rows", (256, 16384, 1), True, False),
        ("a table of many rows", (65536, 256, 1), False, False),
    ],
)
def test_blocks_of_channels_are_for_what_stays_in_cache_or_has_few_rows(what, shape, streaming, in_blocks):
    assert (plan.blocks(*shape, True, 1, streaming) is not None) == in_blocks


@pytest.mark.parametrize(
    ("what", "shape", "workers", "one_by_one", "channels"),
    [
        ("a run of values", (32, 4096, 64), 2, False, 64),
        ("as much as reduce and apply share", (1024, 64, 196), 1, False, 3),
        ("blocks enough for each worker", (64, 512, 64), 2, False, 16),
        ("and for more", (64, 512, 64), 8, False, 4),
        ("what stays in a second-level cache", (64, 1024, 64), 2, True, 16),
        ("less", (256, 256, 196), 2, True, 1),
        ("long segments", (32, 64, 3136), 2, False, 1),
        ("longer ones", (2, 64, 50_000), 1, False, 1),
        ("some shorter than a vector", (4, 64, 31), 1, False, 1),
        ("few channels", (64, 15, 64), 1, False, 1),
        ("few values", (1, 3, 70), 3, False, 1),
    ],
)
def test_blocks_of_segments_hold_what_their_limits_allow(what, shape, workers, one_by_one, channels):
    assert plan.segments(*shape, workers, one_by_one).channels == channels


@pytest.fixture
def uncut():
    """No cut is left that a test has made with other numbers."""
    yield
    plan.mapping.cache_clear()


cut_of_segments = plan.segments


def blocks_of(channels, monkeypatch):
    monkeypatch.setattr(
        plan, "segments", lambda *given, **how: cut_of_segments(*given, **how)._replace(channels=channels)
    )


@pytest.mark.each_value
@pytest.mark.pairs_at_most("each of them alone decides a loop of its own")
@pytest.mark.parametrize("shape", [(9, 7, 65), (17, 7, 96), (70, 5, 200), (600, 4, 70)], ids=str)
@pytest.mark.parametrize("channels", [2, 3, 7])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("how", ["plain", "relu", "mask"])
def test_no_block_of_segments_changes_a_bit(shape, channels, fused, streaming, how, dtype, rng, monkeypatch):
    """Of the sums in rows, of what is left of them, and in chunks."""
    x, dy, residual, state = *(sample(rng, shape, dtype) for _ in range(3)), random_state(rng, shape[1])
    options = {
        "plain": {},
        "relu": {"activation": "relu", "residual": residual},
        "mask": {"where": rng.random(shape) < 0.8},
    }[how]

    def results():
        y, saved = nbnorm.batch_norm_training(x, state, update_running=False, **options)
        found = [y, *nbnorm.batch_norm_backward(dy, saved)]
        if how == "plain":
            found += nbnorm.batch_norm_double_backward(residual, None, None, dy, saved)
            found += [nbnorm.batch_stats(x).mean, nbnorm.batch_stats(x).m2]
        return found

    plan.mapping.cache_clear()
    monkeypatch.setattr(plan, "streams", lambda nbytes: streaming)
    monkeypatch.setattr(threads, "SERIAL_BELOW", 0)  # several workers, where there are several threads
    monkeypatch.setattr(plan, "fits_cache", lambda *given: fused)
    blocks_of(1, monkeypatch)
    expected = results()
    blocks_of(channels, monkeypatch)
    for found, right in zip(results(), expected, strict=True):
        np.testing.assert_array_equal(found.view(np.uint8), right.view(np.uint8))
    plan.mapping.cache_clear()


@pytest.mark.parametrize(
    ("share", "residual", "fused"),  # of a cache that holds so many times x
    [(4.1, False, True), (4, False, False), (2.3, False, False), (2.2, False, True), (5.9, True, False)],
)
def test_a_forward_pass_is_split_where_it_fills_half_of_a_cache(share, residual, fused, rng, monkeypatch, uncut):
    x, dy = (sample(rng, (6, 8, 100), "float32") for _ in range(2))
    state, options = random_state(rng, 8), {"residual": dy} if residual else {}
    whole = nbnorm.batch_norm_training(x, state, update_running=False, **options)
    plan.mapping.cache_clear()
    ran = []

    def spied(*given):
        ran.append("forwards" if given[1] is None else "backwards")
        fused_segments(*given)

    fused_segments = stages.fused_segments
    monkeypatch.setattr(stages, "fused_segments", spied)
    monkeypatch.setattr(plan, "CACHE_BYTES", share * x.nbytes)
    y, saved = nbnorm.batch_norm_training(x, state, update_running=False, **options)
    dx = nbnorm.batch_norm_backward(dy, saved).dx
    assert ran == (["forwards", "backwards"] if fused else ["backwards"])
    np.testing.assert_array_equal(y, whole[0])
    np.testing.assert_array_equal(dx, nbnorm.batch_norm_backward(dy, whole[1]).dx)


SEGMENTS = [(37, 20, 33), (5, 7, 70), (40, 50, 37), (70, 17, 65), (9, 3, 96), (2, 3, 1100)]  # a vector long at least
COLUMNS = [*SEGMENTS, (301, 45, 1), (9, 3, 3), (1200, 3, 1), (21, 1024, 1)]


@pytest.mark.each_pair
@pytest.mark.parametrize(
    ("by_columns", "shape"), [*((False, shape) for shape in SEGMENTS), *((True, shape) for shape in COLUMNS)], ids=str
)
@pytest.mark.parametrize("streaming", [False, True])
def test_no_cut_of_a_map_changes_a_bit(by_columns, shape, streaming, dtype, rng, monkeypatch):
    x, dy, state = sample(rng, shape, dtype), sample(rng, shape, dtype), random_state(rng, shape[1])

    def results():
        y, saved = nbnorm.batch_norm_training(x, state, update_running=False)
        of_one = nbnorm.batch_norm_inference(x, state)
        beside = of_one  # of a residual and an activation in one dtype, since each kernel takes seconds to compile
        if x.dtype == np.float32:
            beside = nbnorm.batch_norm_inference(x, state, residual=dy, activation="relu")
        return y, nbnorm.batch_norm_backward(dy, saved).dx, of_one, beside

    expected = results()
    K = plan.columns(*shape).map_K if by_columns else 0
    cut = plan.Map(K, min(K, plan.MAP_WIDTH) + 3 * plan.LANES, streaming)
    monkeypatch.setattr(plan, "mapping", lambda *given: cut)
    monkeypatch.setattr(plan, "blocks", lambda *given: None)  # not fused: apply is a launch
    monkeypatch.setattr(plan, "CHANNEL_BYTES", 0)
    monkeypatch.setattr(threads, "SERIAL_BELOW", 0)  # several workers, where there are several threads
    for found, right in zip(results(), expected):
        np.testing.assert_array_equal(found.view(np.uint8), right.view(np.uint8))


@pytest.mark.parametrize("shape", [(5, 10_000), (3, 1_300, 7)], ids=str)
@pytest.mark.parametrize("streaming", [False, True])
def test_coefficients_of_wide_rows_are_spread_part_by_part(shape, streaming, rng, monkeypatch, uncut):
    """More columns than tables have; each channel has numbers of its own."""
    monkeypatch.setattr(plan, "streams", lambda nbytes: streaming)
    plan.mapping.cache_clear()
    assert plan.mapping(2, 4, *shape, *(1,) * (3 - len(shape))).K > plan.MAP_WIDTH
    x, dy, residual = (sample(rng, shape) for _ in range(3))
    state = random_state(rng, shape[1])
    running = state.running_mean.copy(), state.running_var.copy()
    check_inference(x, state)
    _, saved = check_forward(x, state, use_running=True)
    check_backward(dy, saved, state, running)
    for beside in (None, residual):
        check_beside(x, dy, beside, "relu", state, 1, use_running=True)


@pytest.mark.parametrize(
    ("shape", "streaming"), [((200, 96, 3, 3), False), ((300, 1_024), False), ((300, 2_500), True)], ids=str
)  # two blocks of rows in cache; rows that are mapped one by one, in several panels
@pytest.mark.parametrize(
    "weighted", [False, pytest.param(True, marks=pytest.mark.exhaustive("kernels of their own; a mask"))]
)
def test_a_mask_of_all_values_is_read_where_the_values_are(shape, streaming, weighted, rng, monkeypatch, uncut):
    monkeypatch.setattr(plan, "streams", lambda nbytes: streaming)
    plan.mapping.cache_clear()
    x, dy, counting = sample(rng, shape), sample(rng, shape), {"where": rng.random(shape) < 0.7}
    if weighted:
        counting["weights"] = rng.uniform(0.5, 3, shape)
    check_counted(x, dy, reference.counts(x, **counting), random_state(rng, shape[1]), counting, 1)


@pytest.mark.parametrize("S", [33, 49, 1100])
def test_maps_of_segments_begin_anywhere_in_a_line(S, dtype, rng, monkeypatch):
    """Whole lines are mapped at once, wherever segments end and y begins, and nothing else is written."""
    monkeypatch.setattr(threads, "SERIAL_BELOW", 0)
    x, state = sample(rng, (3, 5, S), dtype), random_state(rng, 5)
    expected = nbnorm.batch_norm_inference(x, state)
    for row in range(15):  # channels with numbers of their own, segment by segment
        n, c = divmod(row, 5)
        alone = nbnorm.BatchNormState(1)
        alone.gamma, alone.beta = state.gamma[c : c + 1], state.beta[c : c + 1]
        alone.running_mean, alone.running_var = state.running_mean[c : c + 1], state.running_var[c : c + 1]
        found = nbnorm.batch_norm_inference(x[n : n + 1, c : c + 1].copy(), alone)
        np.testing.assert_array_equal(found[0, 0], expected[n, c])
    line = 64 // x.itemsize
    for offset in range(line):
        room = np.full(x.size + 3 * line, 7, x.dtype)
        begin = -room.ctypes.data % 64 // x.itemsize + offset
        y = room[begin : begin + x.size].reshape(x.shape)
        for source in (x, y):  # in its own place, too
            y[...] = x
            nbnorm.batch_norm_inference(source, state, out=y)
            np.testing.assert_array_equal(y, expected)
        beside = np.concatenate([room[:begin], room[begin + x.size :]])
        np.testing.assert_array_equal(beside, np.full_like(beside, 7))


@pytest.mark.parametrize("streaming", [False, True])
def test_blocks_of_segments_begin_anywhere_in_a_line(streaming, dtype, rng, monkeypatch):
    monkeypatch.setattr(plan, "streams", lambda nbytes: streaming)
    x, dy, state = sample(rng, (3, 5, 65), dtype), sample(rng, (3, 5, 65), dtype), random_state(rng, 5)
    y, saved = nbnorm.batch_norm_training(x, state, update_running=False)
    dx = nbnorm.batch_norm_backward(dy, saved).dx
    blocks_of(2, monkeypatch)  # and one that is alone
    line = 64 // x.itemsize
    for offset in range(line):
        room = np.full(x.size + 3 * line, 7, x.dtype)
        begin = -room.ctypes.data % 64 // x.itemsize + offset
        out = room[begin : begin + x.size].reshape(x.shape)
        nbnorm.batch_norm_training(x, state, update_running=False, out=out)
        np.testing.assert_array_equal(out, y)
        for source in (dy, out):  # in its own place, too
            out[...] = dy
            nbnorm.batch_norm_backward(source, saved, out=out)
            np.testing.assert_array_equal(out, dx)
        beside = np.concatenate([room[:begin], room[begin + x.size :]])
        np.testing.assert_array_equal(beside, np.full_like(beside, 7))


@pytest.mark.parametrize("columns", [1000, 1024])  # rows abreast, and one by one
def test_maps_of_tables_that_no_cache_of_a_core_holds(columns, rng):
    """Where the rows that come next are asked for."""
    shape = (1100, columns)
    assert shape[0] * shape[1] > plan.FAR
    assert not plan.mapping(3, 4, *shape, 1).streaming
    x, dy, state = sample(rng, shape), sample(rng, shape), random_state(rng, columns)
    check_step(x, dy, state)
    y = check_inference(x, state)
    for i in range(0, len(x), 100):
        np.testing.assert_array_equal(nbnorm.batch_norm_inference(x[i : i + 100], state), y[i : i + 100])
