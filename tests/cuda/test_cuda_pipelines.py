"""Standardization on a GPU: statistics of pieces, and nbnorm.sklearn."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import reference
from common import sample
from tolerance import assert_close, assert_stat_close

import nbnorm
from nbnorm import _moments


def scaler(**options):
    pytest.importorskip("sklearn", reason="NO SCIKIT-LEARN TESTS on a GPU: it is not installed")
    from nbnorm.sklearn import StandardScaler

    return StandardScaler(**options)


@pytest.mark.parametrize("gaps", [False, True])
def test_pieces_at_a_large_mean(cupy, rng, gaps):
    x = (sample(rng, (40, 3), "float64") + 1e6).astype(np.float32)
    x[::7, 1] = np.nan if gaps else 1e6
    parts = [
        _moments.moments(cupy.asarray(rows), 1, nan="omit" if gaps else "propagate")
        for rows in (x[:9], x[9:10], x[10:])
    ]
    found = _moments.merged(*parts)
    assert all(isinstance(array, cupy.ndarray) for array in found[1:])
    w = reference.counts(x, omit=gaps)
    count, mean, m2 = reference.weighted_stats(x, w)
    assert (found.count.get() == count).all()
    two = found.origin.get().astype(reference.Wide) + found.deviation.get()
    # A thousandth of what one float64 could say of a mean of 10**6.
    assert np.abs(two - mean).max() <= 1e6 * 2.0**-63
    assert_stat_close(found.m2.get(), m2)


@pytest.mark.parametrize(("shape", "axis"), [((60, 3), -1), ((6, 3, 4), 1)])
def test_the_scaler_on_a_gpu(cupy, rng, shape, axis):
    x = (sample(rng, shape, "float64", axis) + 1e6).astype(np.float32)
    exact = reference.training(x, eps=0, axis=axis)
    on_gpu = cupy.asarray(x)
    whole, pieces = scaler(axis=axis).fit(on_gpu), scaler(axis=axis).partial_fit(on_gpu[:2]).partial_fit(on_gpu[2:])
    for fitted in (whole, pieces, pickle.loads(pickle.dumps(whole))):
        assert all(isinstance(a, cupy.ndarray) for a in (fitted.mean_, fitted.var_, fitted.scale_))
        assert fitted.n_samples_seen_ == x.size // 3
        assert_stat_close(fitted.var_.get(), exact.var)
        y = fitted.transform(on_gpu)
        assert isinstance(y, cupy.ndarray)
        assert_close(y.get(), exact.y, axis)
        assert np.abs(fitted.inverse_transform(y).get() - x).max() <= 2 * np.spacing(np.float32(1e6))
    state = whole.to_state()
    assert state.device == "cuda:0"
    assert type(whole).from_state(state).n_samples_seen_ == x.size // 3


def test_gaps_weights_and_integers_on_a_gpu(cupy, rng):
    x, weights = sample(rng, (30, 2), "float64"), rng.integers(0, 3, 30).astype(np.float64)
    x[3, 0] = np.nan
    fitted = scaler().fit(cupy.asarray(x), sample_weight=cupy.asarray(weights))
    count, mean, m2 = reference.weighted_stats(x, reference.counts(x, weights=weights[:, None], omit=True))
    assert (fitted.n_samples_seen_.get() == count).all()
    assert_stat_close(fitted.mean_.get(), mean)
    assert_stat_close(fitted.var_.get(), m2 / count)
    assert scaler().fit(cupy.asarray(np.arange(6).reshape(3, 2))).mean_.get().tolist() == [2, 3]


@pytest.mark.filterwarnings("ignore:.*invalid value")  # the simulator's, of infinity
def test_nothing_moves_by_itself(cupy, rng):
    x = sample(rng, (8, 2))
    on_gpu, on_cpu = scaler().fit(cupy.asarray(x)), scaler().fit(x)
    for fitted, other in ((on_gpu, x), (on_cpu, cupy.asarray(x))):
        for call in (fitted.transform, fitted.inverse_transform, fitted.partial_fit):
            with pytest.raises(TypeError, match=r"X is a .* but the scaler is on"):
                call(other)
    with pytest.raises(TypeError, match=r"weights is a numpy\.ndarray but x is on cuda:0"):
        scaler().fit(cupy.asarray(x), sample_weight=np.ones(8))
    with pytest.raises(ValueError, match="X contains infinity"):
        on_gpu.fit(cupy.asarray(np.where(x == x[3, 1], np.inf, x)))
    assert nbnorm.batch_stats(x).count == on_gpu.n_samples_seen_ == 8
