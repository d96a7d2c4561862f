"""_cpu/plan.py: how a map is cut, which changes no bit of it."""

import numpy as np
import pytest
from common import random_state, sample

import nbnorm
from nbnorm._cpu import plan, threads


@pytest.mark.parametrize(
    ("what", "tensors", "itemsize", "shape", "by_columns", "streaming"),
    [
        ("long segments", 2, 4, (32, 64, 3136), False, True),
        ("images of 7x7 in cache", 2, 4, (64, 512, 49), False, False),
        ("the same beyond the caches", 2, 4, (512, 512, 49), True, True),
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


@pytest.mark.each_pair
@pytest.mark.parametrize(
    "shape",
    [(37, 20, 33), (301, 45, 1), (5, 7, 70), (9, 3, 3), (1200, 3, 1), (40, 50, 37), (70, 17, 65), (21, 1024, 1)],
    ids=str,
)
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("by_columns", [False, True])
def test_no_cut_of_a_map_changes_a_bit(by_columns, streaming, shape, dtype, rng, monkeypatch):
    x, dy, state = sample(rng, shape, dtype), sample(rng, shape, dtype), random_state(rng, shape[1])

    def results():
        y, saved = nbnorm.batch_norm_training(x, state, update_running=False)
        return y, nbnorm.batch_norm_backward(dy, saved).dx, nbnorm.batch_norm_inference(x, state)

    expected = results()
    K = plan.columns(*shape).map_K if by_columns else 0
    cut = plan.Map(K, min(K, plan.MAP_WIDTH) + 3 * plan.LANES, streaming)
    monkeypatch.setattr(plan, "mapping", lambda *given: cut)
    monkeypatch.setattr(plan, "blocks", lambda *given: None)  # not fused: apply is a launch
    monkeypatch.setattr(plan, "CHANNEL_BYTES", 0)
    monkeypatch.setattr(threads, "SERIAL_BELOW", 0)  # several workers, where there are several threads
    for found, right in zip(results(), expected):
        np.testing.assert_array_equal(found.view(np.uint8), right.view(np.uint8))
