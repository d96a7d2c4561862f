"""nbnorm.sklearn beside scikit-learn's own scaler, and beside the oracle where that one loses its digits."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import reference
from common import same_bits, sample
from tolerance import DTYPES, assert_close, assert_stat_close, dtype_of, needs_bfloat16

import nbnorm

try:
    import sklearn
    from sklearn import preprocessing
    from sklearn.base import clone
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline

    from nbnorm.sklearn import StandardScaler
except ImportError as error:
    if os.environ.get("NBNORM_REQUIRE_PIPELINES") == "1":
        raise
    pytest.skip(f'NO SCIKIT-LEARN TESTS: {error}; pip install -e ".[sklearn]"', allow_module_level=True)

OPTIONS = [{}, {"with_mean": False}, {"with_std": False}, {"with_mean": False, "with_std": False}]
MORE = pytest.mark.exhaustive("the other precision: values that count are chosen by the same code")
OF_16_BITS = [
    pytest.param("float16", marks=pytest.mark.exhaustive("float32: only the map differs, which has its own tests")),
    pytest.param("bfloat16", marks=[needs_bfloat16, pytest.mark.exhaustive("float32, as for float16")]),
]
TABLES = [
    ("plain", "float32"),
    ("plain", "float64"),
    ("pieces", "float32"),
    ("constant", "float64"),
    ("gaps", "float32"),
    ("weights", "float64"),
    ("weights and gaps", "float64"),
    pytest.param("gaps", "float64", marks=MORE),
    pytest.param("weights", "float32", marks=MORE),
    pytest.param("weights and gaps", "float32", marks=MORE),
]


def table(rng, kind, dtype="float64"):
    """Arguments of the calls that fit it, and all of X."""
    x = sample(rng, (60, 5), "float64")
    weights = rng.integers(0, 4, 60).astype(float)
    if "gaps" in kind:
        x[rng.random(x.shape) < 0.2] = np.nan
        x[:, 3] = np.nan
    if kind == "constant":
        x[:, 1], x[:, 2] = 0.1, 0
    x = x.astype(dtype)
    if "weights" in kind:
        return [(x[:20], None, weights[:20]), (x[20:], None, weights[20:])], x
    return ([(x[:1],), (x[1:30],), (x[30:],)] if kind == "pieces" else [(x,)]), x


def fitted(scaler, calls):
    for arguments in calls:
        scaler.partial_fit(*arguments)
    return scaler


def near(found, expected, dtype="float64"):
    """The same to a few roundings, of sums in float64 and of a result in dtype: 16 units of the largest value."""
    if expected is None:
        return found is None
    unit = 16 * (2.0**-53 if dtype == "float64" else 2.0**-24)
    found, expected = np.asarray(found), np.asarray(expected)
    limit = unit * np.nanmax(np.abs(expected), initial=0)
    same = (np.isnan(found) & np.isnan(expected)) | (np.abs(found - expected) <= limit)
    return found.shape == expected.shape and bool(same.all())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("kind", "precision"), TABLES)
@pytest.mark.filterwarnings("ignore:invalid value")  # scikit-learn's, of a column without a value
def test_attributes_and_results_are_those_of_scikit_learn(options, kind, precision, rng):
    calls, x = table(rng, kind, precision)
    own, other = (fitted(kind(**options), calls) for kind in (StandardScaler, preprocessing.StandardScaler))
    for name in ("mean_", "var_", "scale_"):
        assert near(getattr(own, name), getattr(other, name)), name
    if not ("weights" in kind and options == OPTIONS[3]):  # where scikit-learn counts rows, not weights
        np.testing.assert_array_equal(own.n_samples_seen_, other.n_samples_seen_)
    assert own.n_features_in_ == other.n_features_in_ == 5
    assert own.get_feature_names_out().tolist() == other.get_feature_names_out().tolist()
    before = x.tobytes()
    y, expected = own.transform(x), other.transform(x)
    assert x.tobytes() == before
    assert (y.dtype, y.flags.c_contiguous) == (expected.dtype, True)
    assert near(y, expected, precision)
    assert near(own.inverse_transform(y), other.inverse_transform(expected), precision)
    assert near(own.inverse_transform(y), x, precision)
    assert pickle.loads(pickle.dumps(own)).transform(x).tobytes() == y.tobytes()


def test_check_estimator_with_no_check_excused():
    """In a process of its own: array API dispatch is decided when SciPy is imported. Small data: no compiler."""
    code = (
        "from sklearn.utils.estimator_checks import check_estimator\n"
        "from nbnorm.sklearn import StandardScaler\n"
        "for scaler in (StandardScaler(), StandardScaler(ddof=1, with_mean=False)):\n"
        "    results = check_estimator(scaler, on_skip=None)\n"
        "    print(len(results), {r['check_name']: r['status'] for r in results if r['status'] != 'passed'})\n"
    )
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "SCIPY_ARRAY_API": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    print(done.stderr[-4000:])
    assert done.returncode == 0
    numbers, exceptions = zip(*(line.split(" ", 1) for line in done.stdout.splitlines()))
    assert exceptions == ("{}", "{}")
    assert all(int(number) >= 40 for number in numbers)  # 53 in scikit-learn 1.9


@pytest.mark.parametrize("precision", [*DTYPES[2:], *OF_16_BITS])
def test_any_mean_and_any_axis_within_the_contract(precision, rng):
    """The mean is two numbers from the data to y: one would be off by 2**-34 deviations, which is seen near 0."""
    mean = {"float32": 1e6, "float64": 1e8}.get(precision, 10.0)
    for shape, axis in (((4000, 3), -1), ((40, 3, 50), 1), ((5, 4, 30, 3), (3, 1))):
        x = (sample(rng, shape, "float64", axis) + mean).astype(dtype_of(precision))
        pieces = StandardScaler(axis=axis).partial_fit(x[:2]).partial_fit(x[2:])
        exact = reference.training(x, eps=0, axis=axis)
        for scaler in (StandardScaler(axis=axis).fit(x), pieces):
            assert scaler.mean_.shape == scaler.scale_.shape == exact.mean.shape
            assert scaler.n_features_in_ == exact.mean.size
            assert_stat_close(scaler.mean_, exact.mean)
            assert_stat_close(scaler.var_, exact.var)
            y = scaler.transform(x)
            assert (y.dtype, y.shape) == (x.dtype, x.shape)
            assert_close(y, exact.y, axis)
        if precision in ("float32", "float64"):
            # Of y*scale + mean two roundings, and y's own, which the scale multiplies.
            assert np.abs(scaler.inverse_transform(y) - x).max() <= 4 * np.spacing(np.abs(x).max())


@pytest.mark.parametrize("value", [0.1, 1e8 + 1 / 3, -3e-40, 0.0])
def test_constant_channels_stay_constant_through_weighted_pieces(value, rng):
    x = np.full((90, 2), value)
    x[:, 1] = rng.normal(size=90)
    weights = rng.uniform(size=90)
    scaler = StandardScaler()
    for rows in (slice(0, 7), slice(7, 50), slice(50, 90)):
        scaler.partial_fit(x[rows], sample_weight=weights[rows])
    assert (scaler.mean_[0], scaler.var_[0], scaler.scale_[0]) == (value, 0, 1)
    assert (scaler.transform(x)[:, 0] == 0).all()
    assert (scaler.inverse_transform(scaler.transform(x))[:, 0] == value).all()


def test_what_only_the_mean_rounds_is_constant():
    x = np.array([[0.3], [0.1 + 0.2], [0.3]])
    scaler = StandardScaler().fit(x)
    assert scaler.scale_ == 1
    assert np.abs(scaler.transform(x)).max() <= np.spacing(0.3)  # the mean lies between values a step apart
    # A deviation of 10**-9 of the mean is one, however many rows there are.
    x = 1e9 + np.random.default_rng(0).normal(size=(20_000, 1))
    assert_stat_close(StandardScaler().fit(x).scale_, np.sqrt(reference.stats(x)[2] / len(x)))


@pytest.mark.parametrize("ddof", [0, 1])
def test_the_way_to_a_state_and_back(ddof, rng):
    x, more = sample(rng, (50, 4), "float64"), sample(rng, (30, 4), "float64")
    scaler = StandardScaler(ddof=ddof).fit(x)
    state = scaler.to_state()
    assert (state.momentum, state.gamma, state.beta, state.num_samples) == (None, None, None, 50)
    assert near(state.running_mean, x.mean(0))
    assert near(state.running_var, x.var(0, ddof=ddof))
    # 1/sqrt(var + eps) is eps/(2*var) of itself less than 1/sqrt(var); both results round as docs/numerics.md says.
    found, expected = nbnorm.batch_norm_inference(x, state), scaler.transform(x)
    limit = state.eps / (2 * state.running_var) * np.abs(expected) + 2 * 16 * 2.0**-53 * np.abs(expected).max(0)
    assert (np.abs(found - expected) <= limit).all()
    again = StandardScaler.from_state(state)
    assert (again.ddof, again.axis, again.n_samples_seen_) == (ddof, -1, 50)
    wide = scaler.to_state(eps=0.5)
    exact = reference.inference(x, state.running_mean, state.running_var, eps=0.5)
    assert_close(nbnorm.batch_norm_inference(x, wide), exact)
    assert wide.eps == 0.5
    both = np.concatenate([x, more])
    state.update(nbnorm.batch_stats(more))
    for pooled in (again.partial_fit(more), StandardScaler.from_state(state)):
        assert near(pooled.mean_, both.mean(0))
        assert near(pooled.var_, both.var(0, ddof=ddof))
        assert pooled.n_samples_seen_ == 80


@pytest.mark.parametrize(("axis", "others"), [(-1, (0, 1)), ((1, 2), 0)])
def test_pieces_with_a_gap_and_without(axis, others, rng):
    """Which have a count of each channel, and one of all."""
    x = rng.normal(size=(9, 3, 4))
    x[4, 1, 2] = np.nan
    scaler = StandardScaler(axis=axis)
    for piece in np.split(x, 3):
        scaler.partial_fit(piece)
    assert scaler.n_samples_seen_.tolist() == np.isfinite(x).sum(others).tolist()
    assert near(scaler.mean_, np.nanmean(x, others))
    assert near(scaler.var_, np.nanvar(x, others))


def test_a_state_of_gaps_and_of_several_axes(rng):
    x = rng.normal(size=(6, 3, 4))
    x[0, 0, 0] = np.nan
    state = StandardScaler(axis=(1, 2)).fit(x).to_state()
    assert state.num_features == (3, 4)
    scaler = StandardScaler.from_state(state)
    assert scaler.axis == (-2, -1)
    assert scaler.n_samples_seen_.tolist() == [[5.0, 6, 6, 6], [6] * 4, [6] * 4]
    assert near(scaler.var_, np.nanvar(x, 0))


def test_a_variance_that_overflows_is_nan_in_pieces_too():
    x, scaler = np.array([[1e155, 1], [2e155, 2], [3e155, 6]]), StandardScaler()
    for row in x:
        scaler.partial_fit(row[None])
    for fitted in scaler, StandardScaler().fit(x):
        assert np.isnan(fitted.var_[0])
        y = fitted.transform(x)
        assert np.isnan(y[:, 0]).all()
        assert near(y[:, 1], (x[:, 1] - 3) / x[:, 1].std())


def test_the_divisor_and_one_row(rng):
    x = rng.normal(size=(9, 2))
    scaler = StandardScaler(ddof=1).partial_fit(x[:1])
    assert np.isnan(scaler.var_).all()
    scaler.partial_fit(x[1:])
    assert near(scaler.var_, x.var(0, ddof=1))
    assert StandardScaler().fit(x[:1]).scale_.tolist() == [1, 1]


def test_weights_are_repeated_rows_in_any_number_of_dimensions(rng):
    x, weights = sample(rng, (8, 5, 3), axis=2), rng.integers(0, 4, 8)
    own, repeated = StandardScaler().fit(x, sample_weight=weights), StandardScaler().fit(np.repeat(x, weights, 0))
    assert own.n_samples_seen_ == repeated.n_samples_seen_ == 5 * weights.sum()
    assert near(own.mean_, repeated.mean_)
    assert near(own.var_, repeated.var_)


def test_weights_whose_sum_no_integer_has_are_counted_all_the_same():
    x = np.arange(12.0).reshape(4, 3)
    x[0, 0] = np.nan
    for weight in (2.0**52, 2.0**62, 1e300):
        found = StandardScaler().fit(x, sample_weight=np.full(4, weight)).n_samples_seen_
        assert np.array_equal(found, weight * np.array([3.0, 4, 4]))


def test_in_place_where_it_can_be(rng):
    x = sample(rng, (20, 3))
    expected = StandardScaler().fit_transform(x)
    scaler = StandardScaler(copy=False).fit(x)
    mine, locked = x.copy(), x.copy()
    locked.flags.writeable = False
    assert scaler.transform(mine) is mine
    assert mine.tobytes() == expected.tobytes()
    assert scaler.transform(locked).tobytes() == expected.tobytes()
    assert locked.tobytes() == x.tobytes()
    assert scaler.inverse_transform(mine) is mine
    assert near(mine, x, "float32")
    assert scaler.transform(mine, copy=True) is not mine
    assert scaler.transform(x.tolist()).dtype == np.float64


def test_clones_pipelines_parameters_and_assigned_attributes(rng):
    x, y = rng.normal(5, 3, (50, 3)), rng.normal(size=50)
    scaler = StandardScaler(ddof=1, with_mean=False)
    assert clone(scaler.fit(x)).get_params() == scaler.get_params()
    assert not hasattr(clone(scaler), "mean_")
    pipelines = [make_pipeline(s(), LinearRegression()) for s in (StandardScaler, preprocessing.StandardScaler)]
    for pipeline in pipelines:
        pipeline.fit(x, y, standardscaler__sample_weight=np.arange(50.0))
    # Least squares multiplies roundings by the condition of x.
    np.testing.assert_allclose(*(pipeline.predict(x) for pipeline in pipelines), rtol=1e-12, atol=1e-14)
    assigned = StandardScaler()
    assigned.mean_, assigned.scale_ = np.array([1.0, 2, 3]), np.array([2.0, 4, 8])
    assert assigned.transform(np.array([[3.0, 6, 11]])).tolist() == [[1, 1, 1]]
    scaler = StandardScaler().fit(x + 1e12)
    scaler.mean_ = np.zeros(3)
    assert near(scaler.transform(x), x / scaler.scale_)


ASSIGNED = {
    "lists": ([1, 2, 3], [2, 4, 8]),
    "a list": ([1, 2, 3], None),
    "one for all": (1.0, np.array([2.0])),
    "numbers of no dimension": (np.array(3), 2),
    "float32": (np.float32([1, 2, 3]), np.float32([2, 4, 8])),
}


@pytest.mark.parametrize(("mean", "scale"), ASSIGNED.values(), ids=ASSIGNED)
def test_attributes_that_were_assigned_are_what_numpy_makes_of_them(mean, scale, rng):
    x = rng.normal(1e6, 3, (50, 3))
    scaler = StandardScaler().fit(x)
    scaler.mean_ = mean
    if scale is not None:
        scaler.scale_ = scale
    y = scaler.transform(x)
    assert near(y, (x - np.asarray(mean)) / np.asarray(scaler.scale_))
    assert near(scaler.inverse_transform(y), x)
    assert near(scaler.partial_fit(x).mean_, x.mean(0))  # of what was seen, as before


def test_columns_that_are_left_of_a_fit(rng):
    x = rng.normal(3, 3, (50, 3))
    scaler = StandardScaler().fit(x)
    expected = scaler.transform(x)[:, 1:]
    scaler.mean_, scaler.scale_ = scaler.mean_[1:], scaler.scale_[1:]
    assert near(scaler.transform(x[:, 1:]), expected)


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_big_endian_floats_stay_as_wide_as_they_are(kind, rng):
    x = rng.normal(3, 2, (50, 3)).astype(kind)
    other = x.astype(x.dtype.newbyteorder(">"))
    own, native = StandardScaler().fit(other), StandardScaler().fit(x)
    assert same_bits(own.mean_, native.mean_)
    for found, expected in (
        (own.transform(other), native.transform(x)),
        (own.inverse_transform(other), native.inverse_transform(x)),
    ):
        assert found.dtype.isnative
        assert same_bits(found, expected)


@pytest.mark.parametrize("frames", ["pandas", "polars"])
def test_data_frames_in_and_out(frames, rng):
    library = pytest.importorskip(frames, reason=f"NO TESTS WITH {frames}: it is not installed")
    x = rng.normal(size=(10, 2))
    frame = library.DataFrame({"a": x[:, 0], "b": x[:, 1]})
    scaler = StandardScaler().set_output(transform=frames).fit(frame)
    y = scaler.transform(frame)
    assert isinstance(y, library.DataFrame)
    assert list(y.columns) == scaler.feature_names_in_.tolist() == scaler.get_feature_names_out().tolist() == ["a", "b"]
    expected = preprocessing.StandardScaler().fit_transform(x)
    assert near(y.to_numpy(), expected)
    with pytest.raises(ValueError, match="feature names should match"):
        scaler.transform(library.DataFrame({"b": x[:, 0], "a": x[:, 1]}))
    assert not hasattr(scaler.fit(x), "feature_names_in_")


def test_what_is_no_table_of_columns_becomes_no_frame(rng):
    """pandas has no frame of images, and names columns, not rows."""
    pytest.importorskip("pandas", reason="NO TESTS WITH pandas: it is not installed")
    table = rng.normal(3, 2, (6, 4))
    for x, axis in ((rng.normal(3, 2, (6, 4, 4, 3)), -1), (table, 0), (rng.normal(3, 2, (6, 3, 4)), 1)):
        scaler = StandardScaler(axis=axis).set_output(transform="pandas")
        y = scaler.fit_transform(x)
        assert isinstance(y, np.ndarray)
        assert same_bits(y, StandardScaler(axis=axis).fit(x).transform(x))
        assert not hasattr(scaler, "get_feature_names_out")
        with pytest.raises(AttributeError, match="has no attribute 'get_feature_names_out'") as caught:
            scaler.get_feature_names_out()
        assert "had no columns for channels; a clone()" in str(caught.value.__cause__)
        names = scaler.set_params(axis=-1).fit(table).get_feature_names_out()
        assert names.tolist() == ["x0", "x1", "x2", "x3"]
        later = StandardScaler.from_state(StandardScaler(axis=axis).fit(x).to_state(), axis=axis)
        assert hasattr(later, "set_output") == (axis == -1)  # of images or of tables, which it cannot know
    scaler = StandardScaler().set_output(transform="pandas").fit(table).partial_fit(rng.normal(3, 2, (6, 2, 4)))
    assert isinstance(scaler.transform(rng.normal(3, 2, (6, 2, 4))), np.ndarray)


@pytest.mark.parametrize("kind", ["int32", ">f4", "gaps", "backwards"])
def test_what_had_to_be_copied_is_written_over(kind, rng):
    """Nobody else has it: a second array of that size would be for nothing."""
    x = rng.normal(3, 2, (60_000, 5)) * 100
    x = {"gaps": np.repeat(x, 2, 0)[::2], "backwards": x[::-1]}[kind] if kind.isalpha() else x.astype(kind)
    scaler, before = StandardScaler().fit(x), x.copy()
    expected = scaler.transform(x.astype(scaler.transform(x[:1]).dtype))
    tracemalloc.start()
    y = scaler.transform(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert same_bits(y, expected)
    assert same_bits(x, before)
    assert peak < 1.2 * y.nbytes


@pytest.mark.parametrize("axis", [1, (0, 2)], ids=str)
def test_what_has_gaps_is_copied_once(axis, rng, monkeypatch):
    """Where there is a NaN the copy serves the second pass too; channels that lie apart need one as gaps do."""
    x = rng.normal(3, 2, (20, 30, 40)).astype(np.float32)
    x[x > 6] = np.nan
    expected, copies, contiguous = StandardScaler(axis=axis).fit(x.copy()), [], np.ascontiguousarray
    given = np.repeat(x, 2, -1)[..., ::2]
    monkeypatch.setattr(np, "ascontiguousarray", lambda array: copies.append(array.size) or contiguous(array))
    found = StandardScaler(axis=axis).fit(given)
    assert copies.count(x.size) == 1
    assert same_bits(found.mean_, expected.mean_)
    assert same_bits(found.var_, expected.var_)


def test_what_another_library_has_is_not_written_over(rng):
    """NumPy reads its memory without a copy, and its dtype is none of NumPy's."""

    class Tensor:
        dtype = "theirs.float64"

        def __init__(self, values):
            self.values = values

        def __array__(self, dtype=None, copy=None):
            return self.values if dtype is None else self.values.astype(dtype, copy=bool(copy))

    x = rng.normal(3, 2, (20, 3))
    scaler, before = StandardScaler().fit(x), x.copy()
    for call in scaler.transform, scaler.inverse_transform:
        assert same_bits(call(Tensor(x)), call(before))
        assert same_bits(x, before)


X = np.arange(12.0).reshape(4, 3)
BLANK = nbnorm.BatchNormState(3)


def assign(scaler, **attributes):
    """A copy with these attributes."""
    scaler = pickle.loads(pickle.dumps(scaler))
    vars(scaler).update(attributes)
    return scaler


class Lazy:
    """As an array of Dask, whose values nobody may ask for."""

    dtype, shape, ndim = X.dtype, X.shape, X.ndim

    def __dask_graph__(self):
        return {}

    def __len__(self):
        return len(X)

    def __array__(self, dtype=None, copy=None):
        raise AssertionError


REFUSED = {
    "infinity": (ValueError, "X contains infinity", {}, lambda s: s.fit(np.where(X == 5, np.inf, X))),
    "in pieces": (ValueError, "X contains infinity", {}, lambda s: s.partial_fit(np.where(X == 5, -np.inf, X))),
    "one dimension": (ValueError, "Expected 2D array, got 1D", {}, lambda s: s.fit(X[0])),
    "channels": (ValueError, "X has 2 features, but Standard", {}, lambda s: s.transform(X[:, :2])),
    "channels of a piece": (ValueError, "X has 4 features", {}, lambda s: s.partial_fit(X.T)),
    "channels back": (ValueError, "X has 2 features", {}, lambda s: s.inverse_transform(X[:, :2])),
    "axis": (ValueError, "axis 2 is out of range for X with 2 dim", {"axis": 2}, lambda s: s.fit(X)),
    "with_mean": (ValueError, "with_mean is 'no'; expected True or False", {"with_mean": "no"}, lambda s: s.fit(X)),
    "with_std": (ValueError, "with_std is None; expected True or False", {"with_std": None}, lambda s: s.fit(X)),
    "copy": (ValueError, "copy is 1; expected True or False", {"copy": 1}, lambda s: s.fit(X)),
    "ddof": (ValueError, "ddof is -1; expected a number, 0 or more", {"ddof": -1}, lambda s: s.fit(X)),
    "weights there": (ValueError, "is a channel axis", {"axis": 0}, lambda s: s.fit(X, sample_weight=[1] * 4)),
    "their number": (ValueError, "shape (3,); expected (4,)", {}, lambda s: s.fit(X, None, [1, 1, 1])),
    "negative": (ValueError, "sample_weight has values such as -1", {}, lambda s: s.fit(X, None, [1, 1, -1, 1])),
    "huge": (ValueError, "sample_weight has values such as 1e+308", {}, lambda s: s.fit(X, None, [1e308] * 4)),
    "masked": (TypeError, "X is a masked array", {}, lambda s: s.fit(np.ma.masked_array(X, X > 5))),
    "over itself": (
        ValueError, "X has values that may share memory, which copy=False would write over; pass copy=True", {},
        lambda s: s.transform(np.lib.stride_tricks.as_strided(np.arange(5.0), (3, 3), (8, 8)), copy=False),
    ),
    "lazy": (TypeError, "X is lazy, a test_sklearn.Lazy; expected partial_fit of each", {}, lambda s: s.fit(Lazy())),
    "a lazy piece": (TypeError, "nbnorm.xarray, or X.compute()", {}, lambda s: s.partial_fit(Lazy())),
    "lazy, later": (TypeError, "X is lazy", {}, lambda s: s.transform(Lazy())),
    "lazy weights": (
        TypeError, "sample_weight is lazy, a test_sklearn.Lazy; expected sample_weight.compute()", {},
        lambda s: s.fit(X, sample_weight=Lazy()),
    ),
    "a mean of others": (
        ValueError, "mean_ has shape (2,); expected (3,), a number for each channel", {},
        lambda s: assign(s, mean_=[1, 2]).transform(X),
    ),
    "a scale of others": (
        ValueError, "scale_ has shape (1, 3); expected (3,), a number for each channel", {},
        lambda s: assign(s, scale_=[[1, 2, 3]]).inverse_transform(X),
    ),
    "text": (
        ValueError, "mean_ is 'abc'; expected a real number for each channel", {},
        lambda s: assign(s, mean_="abc").transform(X),
    ),
    "ragged": (
        ValueError, "mean_ is [1, [2, 3]]; expected a real", {}, lambda s: assign(s, mean_=[1, [2, 3]]).transform(X),
    ),
    "complex": (
        ValueError, "scale_ is array([1.+0.j", {}, lambda s: assign(s, scale_=np.ones(3, complex)).transform(X),
    ),
    "no scale": (
        ValueError, "scale_ is None; expected a number for each channel, which fit() finds with with_std=True", {},
        lambda s: assign(s, scale_=None).transform(X),
    ),
    "no flag": (ValueError, "copy is 'no'; expected True or False", {}, lambda s: s.transform(X, copy="no")),
    "a number": (ValueError, "copy is 0; expected True or False", {}, lambda s: s.transform(X, copy=0)),
    "a long number": (ValueError, "expected True or False", {}, lambda s: s.transform(X, copy=10**5000)),
    "no state": (TypeError, "state is a int", {}, lambda s: s.from_state(3)),
    "no counts": (ValueError, "are of 0 values; set state.num_samples", {}, lambda s: s.from_state(BLANK)),
}  # fmt: skip


@pytest.mark.parametrize(("error", "text", "options", "call"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_changes_nothing(error, text, options, call):
    scaler = StandardScaler().fit(X).set_params(**options)
    before = pickle.dumps(vars(scaler))
    with pytest.raises(error) as caught:
        call(scaler)
    assert text in str(caught.value)
    assert error is not TypeError or len(str(caught.value)) < 200  # some others are scikit-learn's
    assert pickle.dumps(vars(scaler)) == before


@pytest.mark.parametrize("options", [{"with_mean": False}, {"with_std": False}, {"ddof": 2}], ids=str)
def test_what_no_state_can_say(options):
    with pytest.raises(ValueError, match="a state takes the mean and the standard deviation, with ddof 0 or 1"):
        StandardScaler(**options).fit(X).to_state()


@pytest.mark.parametrize("of", [np.float32, np.float64])
def test_infinity_in_what_is_transformed_stays_infinity(of):
    y = StandardScaler().fit(X).transform(of([[np.inf, -np.inf, np.nan]]))
    assert y.tolist()[0][:2] == [np.inf, -np.inf]
    assert np.isnan(y[0, 2])


def test_without_a_fit():
    with pytest.raises(sklearn.exceptions.NotFittedError):
        StandardScaler().transform(X)


def test_what_was_assigned_to_a_scaler_of_one_channel_is_of_one_channel():
    """Its other statistics are not those of all."""
    scaler = StandardScaler().fit(X[:, :1])
    scaler.mean_ = [1, 2, 3]
    with pytest.raises(ValueError, match=r"mean_ has shape \(3,\); expected \(1,\)"):
        scaler.transform(X)


@pytest.mark.parametrize("of", [np.float16, np.dtype(">f4"), np.longdouble])
def test_an_assigned_scale_has_its_digits_and_those_of_float64(of):
    scaler = StandardScaler().fit(X)
    scaler.mean_, scaler.scale_ = 0, np.array([3, 7, 11], of)
    np.testing.assert_allclose(scaler.transform(X), X / [3, 7, 11], rtol=2.0**-51, atol=0)
    np.testing.assert_allclose(scaler.inverse_transform(scaler.transform(X)), X, rtol=2.0**-51, atol=0)


@pytest.mark.parametrize(
    ("mean", "scale", "text"),
    [
        ([1, 2], 2, "mean_ has shape (2,); expected (3,)"),
        ([[1, 2, 3]], [[1, 2, 3]], "mean_ has shape (1, 3); expected (3,)"),
        (0, [], "scale_ has shape (0,); expected (3,)"),
    ],
)
def test_what_was_assigned_and_does_not_fit_is_named(mean, scale, text):
    scaler = StandardScaler().fit(X)
    scaler.mean_, scaler.scale_ = mean, scale
    with pytest.raises(ValueError, match=re.escape(text)):
        scaler.transform(X)


def test_nothing_lazy_is_assigned():
    scaler = StandardScaler().fit(X)
    scaler.mean_ = Lazy()
    with pytest.raises(TypeError, match=r"mean_ is lazy.*expected mean_.compute\(\)"):
        scaler.transform(X)


def test_a_masked_array_is_not_assigned_without_its_mask():
    scaler = StandardScaler().fit(X)
    scaler.mean_ = np.ma.masked_array([1.0, 2.0, 3.0], [False, True, False])
    with pytest.raises(TypeError, match="mean_ is a masked array"):
        scaler.transform(X)


def test_attributes_without_a_fit_say_how_many_channels_there_are_or_nothing_does():
    scaler = StandardScaler(with_std=False)
    scaler.mean_, scaler.scale_ = [1.0, 2.0, 3.0], None
    np.testing.assert_array_equal(scaler.transform(X), X - [1.0, 2.0, 3.0])
    scaler.set_params(with_mean=False)
    with pytest.raises(sklearn.exceptions.NotFittedError, match="nothing says how many channels"):
        scaler.transform(X)


def test_no_channels_beside_weights():
    x = np.zeros((5, 4, 0))
    scaler = StandardScaler().fit(x, sample_weight=np.ones(5))
    assert scaler.mean_.shape == (0,)
    assert scaler.transform(x) is not x
