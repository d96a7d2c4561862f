"""batch_stats and merge_stats."""

import numpy as np
import pytest
import reference
from tolerance import assert_stat_close, dtype_of

import nbnorm


@pytest.mark.parametrize(("shape", "axis"), [((40, 3), 1), ((5, 4, 9, 8), 1), ((6, 7, 5), -1), ((2, 70_000), 0)])
def test_stats_equal_the_definition(dtype, shape, axis, rng):
    x = (rng.normal(size=shape) * 2 + 5).astype(dtype_of(dtype))
    count, mean, m2 = reference.stats(x, axis)
    found = nbnorm.batch_stats(x, axis=axis)
    assert [part.dtype for part in found] == [np.float64] * 3
    assert (found.count.shape, float(found.count)) == ((), count)
    assert_stat_close(found.mean, mean)
    assert_stat_close(found.m2, m2)


def test_stats_of_a_tuple_of_axes_have_their_shape(rng):
    x = rng.normal(size=(6, 3, 4))
    found = nbnorm.batch_stats(x, axis=(1, 2))
    assert_stat_close(found.mean, x.mean(0))
    assert found.m2.shape == (3, 4)


def test_stats_of_an_empty_batch_are_zero():
    found = nbnorm.batch_stats(np.empty((0, 3)))
    assert [part.tolist() for part in found] == [0.0, [0.0] * 3, [0.0] * 3]


def test_merged_parts_equal_the_whole_at_a_large_mean(rng):
    x = (rng.normal(size=(1000, 4)) + 1e4).astype(np.float32)
    parts = [nbnorm.batch_stats(part) for part in (x[:700], x[:0], x[700:])]
    count, mean, m2 = reference.stats(x)
    merged = nbnorm.merge_stats(*parts)
    assert float(merged.count) == count
    # Means of 1e4 carry 1e4 * 2**-53; m2 takes the square of their difference, a thousandth of the total.
    np.testing.assert_allclose(merged.mean, mean.astype(float), rtol=1e-15)
    np.testing.assert_allclose(merged.m2, m2.astype(float), rtol=1e-12)


def test_merging_one_changes_nothing_and_copies(rng):
    one = nbnorm.batch_stats(rng.normal(size=(10, 2)))
    merged = nbnorm.merge_stats(one)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(one, merged, strict=True))
    assert not np.shares_memory(one.mean, merged.mean)


def test_an_m2_that_overflows_is_nan_and_no_other():
    parts = [nbnorm.batch_stats(np.array([[value, 1.0], [value, 3.0]])) for value in (1e155, 2e155, 3e155)]
    assert all(part.m2.tolist() == [0, 2] for part in parts)
    state = nbnorm.BatchNormState(2, momentum=None)
    with np.errstate(all="ignore"):  # of the NumPy twins of kernels
        merged = nbnorm.merge_stats(*parts)
        for part in parts:
            state.update(part)
    assert np.isnan(merged.m2[0])
    assert merged.m2[1] == 6
    assert np.isnan(state.running_var[0])
    assert state.running_var[1] == 6 / 5


def test_an_m2_that_does_not_overflow_is_right_in_either_order():
    """10**152 squared, times the harmonic half of 10**6 and 1, is below 10**304."""
    parts = [nbnorm.BatchStats(np.array(n), np.array([mean]), np.zeros(1)) for n, mean in ((1e6, 0.0), (1.0, 1e152))]
    for order in parts, parts[::-1]:
        np.testing.assert_allclose(nbnorm.merge_stats(*order).m2, 1e304 * (1e6 / (1e6 + 1)), rtol=2.0**-50)


def test_counts_may_differ_by_channel():
    a = nbnorm.BatchStats(np.array([2.0, 0.0]), np.array([1.0, 0.0]), np.array([2.0, 0.0]))
    b = nbnorm.BatchStats(np.array([2.0, 3.0]), np.array([3.0, 5.0]), np.array([0.0, 6.0]))
    merged = nbnorm.merge_stats(a, b)
    assert [part.tolist() for part in merged] == [[4, 3], [2, 5], [6, 6]]


@pytest.mark.parametrize(
    ("stats", "error", "message"),
    [
        ((), TypeError, "merge_stats got no argument"),
        (((1, 2, 3),), TypeError, r"argument 0 is a tuple; expected a BatchStats; of a list: merge_stats\(\*stats\)"),
        ((7,), TypeError, "argument 0 is a int; expected a BatchStats$"),
        (
            (nbnorm.BatchStats(*np.ones((3, 2))), nbnorm.BatchStats(*np.ones((3, 4)))),
            ValueError,
            r"argument 1 has channels of shape \(4,\), argument 0 \(2,\)",
        ),
        (
            (nbnorm.BatchStats(np.ones(1), np.ones(2), np.ones(2)),),
            ValueError,
            r"argument 0 has count \(1,\), mean \(2,\) and m2 \(2,\); expected these shapes to be the same",
        ),
        (
            (nbnorm.BatchStats(np.ones(()), np.ones(2), np.ones(3)),),
            ValueError,
            r"argument 0 has count \(\), mean \(2,\) and m2 \(3,\); expected these shapes to be the same",
        ),
        ((nbnorm.BatchStats(*np.ones(3)),), ValueError, r"argument 0 has a mean of shape \(\)"),
        ((nbnorm.BatchStats(np.array(-4.0), *np.ones((2, 2))),), ValueError, r"stats\[0\].count has negative"),
        ((nbnorm.BatchStats(np.array(np.nan), *np.ones((2, 2))),), ValueError, r"stats\[0\].count has .* or NaN"),
        ((nbnorm.BatchStats(np.array(np.inf), *np.ones((2, 2))),), ValueError, r"stats\[0\].count has .* infinite"),
        ((nbnorm.BatchStats(np.ones(()), np.ones(2), -np.ones(2)),), ValueError, r"stats\[0\].m2 has negative"),
        ((nbnorm.BatchStats(*np.ones((3, 2), complex)),), TypeError, r"stats\[0\].count has dtype complex128"),
    ],
)
def test_what_cannot_be_merged(stats, error, message):
    with pytest.raises(error, match=message):
        nbnorm.merge_stats(*stats)


@pytest.mark.parametrize("value", [1e160, -1e160, -0.0, 1.7e308, np.nan], ids=str)
@pytest.mark.parametrize("empty_mean", [0.0, 3.0, np.inf])
def test_an_empty_part_leaves_the_others_as_they_are_to_the_bit(value, empty_mean):
    """Where a part is empty its mean is nobody's; that of the other one may be too large to be squared."""
    full = nbnorm.BatchStats(np.array(2.0), np.array([value, 5.0]), np.array([3.0, 0.1]))
    empty = nbnorm.BatchStats(np.array(0.0), np.full(2, empty_mean), np.zeros(2))
    for parts in ((empty, full), (full, empty), (empty, full, empty), (empty, empty, full)):
        merged = nbnorm.merge_stats(*parts)
        assert [part.tobytes() for part in merged] == [part.tobytes() for part in full]
    assert nbnorm.merge_stats(empty, empty).count == 0


def test_an_empty_channel_beside_a_full_one():
    a = nbnorm.BatchStats(np.array([2.0, 0.0, 2.0]), np.array([1.0, 7.0, 1e160]), np.array([2.0, 0.0, 0.0]))
    b = nbnorm.BatchStats(np.array([2.0, 3.0, 0.0]), np.array([3.0, 1e160, 0.0]), np.array([0.0, 6.0, 0.0]))
    assert [part.tolist() for part in nbnorm.merge_stats(a, b)] == [[4, 3, 2], [2, 1e160, 1e160], [6, 6, 0]]
