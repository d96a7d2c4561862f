"""Standardization on a GPU: statistics of pieces, nbnorm.sklearn and nbnorm.xarray; and the tasks of a Dask graph."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import reference
from common import sample
from tolerance import assert_close, assert_stat_close

import nbnorm
from nbnorm import _moments
from nbnorm.parallel import _chunks


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


@pytest.mark.skipif(
    os.environ.get("SCIPY_ARRAY_API") != "1", reason="NO TEST OF scikit-learn's DISPATCH: SCIPY_ARRAY_API=1 is not set"
)
def test_with_the_dispatch_of_scikit_learn(cupy, rng):
    sklearn = pytest.importorskip("sklearn", reason="NO SCIKIT-LEARN TESTS on a GPU: it is not installed")
    x = sample(rng, (30, 2))
    plain = scaler().fit(x)
    with sklearn.config_context(array_api_dispatch=True):
        fitted = scaler().fit(cupy.asarray(x))
        y = fitted.transform(cupy.asarray(x))
        back = fitted.inverse_transform(y)
        on_cpu = scaler().fit_transform(x)
    assert all(isinstance(array, cupy.ndarray) for array in (fitted.mean_, fitted.scale_, y, back))
    assert_close(y.get(), reference.training(x, eps=0).y)
    assert (np.abs(back.get() - x) <= 2 * np.spacing(np.abs(x).max())).all()
    assert isinstance(on_cpu, np.ndarray)
    assert np.array_equal(on_cpu, plain.transform(x))


def test_named_dimensions_on_a_gpu(cupy, rng):
    reason = "NO XARRAY TESTS on a GPU: it is not installed"
    nx, xr = (pytest.importorskip(name, reason=reason, exc_type=ImportError) for name in ("nbnorm.xarray", "xarray"))
    x = (sample(rng, (12, 3, 2), "float64") + 1e6).astype(np.float32)
    x[3, 1] = np.nan
    da = xr.DataArray(cupy.asarray(x), {"place": [1, 2, 3]}, ("time", "place", "level"), "t2m", {"units": "K"})
    stats = nx.batch_stats(da, ("time", "level"))
    assert all(isinstance(part.data, cupy.ndarray) for part in stats)
    count, mean, m2 = reference.weighted_stats(x, reference.counts(x, omit=True))
    assert stats.count.data.get().tolist() == count.tolist()
    assert_stat_close(stats.mean.data.get(), mean)
    assert_stat_close(stats.m2.data.get(), m2)
    y = nx.standardize(xr.Dataset({"t2m": da, "other": 1}), ("time", "level"))["t2m"]
    assert (y.name, y.dims, y.attrs) == ("t2m", da.dims, da.attrs)
    assert isinstance(y.data, cupy.ndarray)
    exact = reference.weighted_training(x, reference.counts(x, omit=True), eps=0).y
    there = ~np.isnan(x)
    assert (np.isnan(y.data.get()) == ~there).all()
    assert_close(np.where(there, y.data.get(), 0), np.where(there, exact, 0))
    back = nx.unstandardize(nx.standardize(da, ("time", "level"), stats=stats), ("time", "level"), stats=stats)
    assert (np.abs(back.data.get() - x)[there] <= 2 * np.spacing(np.float32(1e6))).all()


@pytest.mark.parametrize("counting", [{}, {"weights": 3}, {"nan": "omit"}], ids=str)
@pytest.mark.parametrize("parameters", [True, False])
def test_the_tasks_of_a_dask_graph(cupy, rng, counting, parameters):
    """As _training.py lays them over chunks, of the samples and of the channels."""
    x, dy = sample(rng, (12, 3, 4)), sample(rng, (12, 3, 4)) + np.float32(2)
    weights, nan, eps = None, counting.get("nan", "propagate"), 1e-5
    if nan == "omit":
        x[2, 1] = np.nan
    if "weights" in counting:
        weights = rng.uniform(0, 2, (12, 1, 1))
    gamma, beta = (rng.normal(size=3).astype(np.float32) if parameters else None for _ in range(2))
    w = reference.counts(x, weights=weights, omit=nan == "omit")
    y, dx, dgamma, dbeta = np.empty_like(x), np.empty_like(x), np.empty(3), np.empty(3)
    cuts = [slice(0, 5), slice(5, 6), slice(6, 12)]
    for c in (slice(0, 2), slice(2, 3)):
        chunks = [
            tuple(
                cupy.asarray(np.ascontiguousarray(array[rows, c] if array.shape[1] > 1 else array[rows]))
                if array is not None else None
                for array in (dy, x, None, weights)
            )
            for rows in cuts
        ]  # fmt: skip
        own = [_moments.moments(chunk, (1,), *of, nan) for _, chunk, *of in chunks]
        whole = _chunks.with_counts(_moments.merged(*own))
        count = None if counting else 48.0
        found = (whole.count if count is None else count, *whole[1:])
        parts = [_chunks.gradient_sums(*chunk, one, whole, (1,), nan) for chunk, one in zip(chunks, own, strict=True)]
        sums = _chunks.whole_sums(_chunks.merged_sums(_chunks.merged_sums(*parts[:2]), parts[2]))
        of_parameters = _chunks.parameter_gradients(sums, whole, count, chunks[0][1][:0], eps, np.dtype(np.float32))
        dgamma[c], dbeta[c] = (array.get() for array in of_parameters)
        own_gamma, own_beta = (None if array is None else array[c] for array in (gamma, beta))
        for rows, chunk in zip(cuts, chunks, strict=True):
            y[rows, c] = _chunks.normalized(chunk[1], *found, own_gamma, own_beta, (1,), eps).get()
            dx[rows, c] = _chunks.gradient(*chunk, *found, own_gamma, *sums[1:4], (1,), eps, nan).get()
    there = ~np.isnan(x)
    exact = reference.weighted_training(x, w, gamma, beta, eps).y
    assert_close(np.where(there, y, 0), np.where(there, exact, 0))
    exact = reference.weighted_backward(dy, x, w, gamma, eps)
    terms = None if counting else reference.backward(dy, x, gamma, eps).terms
    assert_close(dx, exact.dx, terms=terms)
    assert_stat_close(dgamma.astype(np.float32), exact.dgamma)
    assert_stat_close(dbeta.astype(np.float32), exact.dbeta)
