"""nbnorm.xarray beside xarray's own expressions in float64, on NumPy and on Dask."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
import weakref

import numpy as np
import pytest
import reference
from common import same_bits, sample
from tolerance import assert_close, assert_stat_close, needs_wide

import nbnorm

try:
    import dask
    import dask.array
    import xarray as xr
    from xarray.backends.common import BackendArray
    from xarray.core import indexing

    import nbnorm.xarray as nx
except ImportError as error:
    if os.environ.get("NBNORM_REQUIRE_PIPELINES") == "1":
        raise
    pytest.skip(f'NO XARRAY TESTS: {error}; pip install -e ".[xarray,dask]"', allow_module_level=True)

DIMS = ("time", "lat", "lon")
REDUCED = {
    "one": "time",
    "the last": ["lon"],
    "around the channels": ("time", "lon"),
    "all": ("lat", "time", "lon"),
}
CHUNKS = {"NumPy": None, "Dask": {"time": 7, "lat": 2, "lon": 3}}
every_dim = pytest.mark.parametrize("dim", REDUCED.values(), ids=REDUCED)
every_array = pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
LIMIT = 64 * 2.0**-53  # of the largest value: sums of twenty, a root and a quotient in float64


@pytest.fixture(autouse=True)
def one_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def temperatures(rng, chunks=None, dtype="float64", gaps=True):
    """(20, 4, 5), with coordinates of every kind."""
    x = sample(rng, (20, 4, 5), "float64")
    if gaps:
        x[rng.random(x.shape) < 0.2] = np.nan
        x[:, 0, 0], x[:, 1, 1] = np.nan, 0.1
    coords = {
        "time": (np.datetime64("2020-01-01", "D") + np.arange(20)).astype("datetime64[ns]"),
        "lat": np.linspace(-60, 60, 4),
        "height": ("lat", [1.0, 2, 3, 4]),
        "season": ("time", ["winter"] * 20),
        "cell": (("lat", "lon"), np.arange(20).reshape(4, 5)),
        "run": 3,
    }
    da = xr.DataArray(x.astype(dtype), coords, DIMS, "t2m", {"units": "K"})
    return da if chunks is None else da.chunk(chunks)


def near(found, expected):
    assert found.dims == expected.dims
    a, b = found.values, expected.values
    assert ((np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= LIMIT * np.nanmax(np.abs(b)))).all()


@every_dim
@every_array
@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")  # Dask's, of a channel without a value
@pytest.mark.filterwarnings("ignore:Degrees of freedom")  # older xarrays', of a single value
def test_statistics_of_what_is_there(dim, chunks, rng):
    da = temperatures(rng, chunks)
    stats = nx.batch_stats(da, dim)
    assert isinstance(stats, nbnorm.BatchStats)
    assert all(dask.is_dask_collection(part) == (chunks is not None) for part in stats)
    near(stats.count, da.count(dim))
    near(stats.mean, da.mean(dim))
    near(stats.var, da.var(dim).fillna(np.nan))
    expected = da.mean(dim, keep_attrs=False)
    assert set(stats.mean.coords) == set(expected.coords)
    assert stats.mean.name == "t2m"


@every_dim
@every_array
@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")  # Dask's, of a channel without a value
@pytest.mark.filterwarnings("ignore:Degrees of freedom")  # older xarrays', of a single value
def test_there_and_back(dim, chunks, rng):
    da = temperatures(rng, chunks)
    da.encoding = {"dtype": "int16", "scale_factor": 0.1}
    stats = nx.batch_stats(da, dim)
    y, with_stats = nx.standardize(da, dim), nx.standardize(da, dim, stats=stats)
    std = da.std(dim)
    near(y, (da - da.mean(dim)) / std.where(std > 1e-15, 1.0))
    for one in (y, with_stats):
        assert (one.chunks, one.dims, one.name, one.attrs, one.encoding) == (da.chunks, DIMS, "t2m", da.attrs, {})
        xr.testing.assert_identical(one.coords.to_dataset(), da.coords.to_dataset())
        near(one, y)
        near(nx.unstandardize(one, dim, stats=stats), da)
    if dim == "time":
        assert (y.values[:, 1, 1] == 0).all() or np.isnan(da.values[:, 1, 1]).any()


def of_latitude(da):
    return np.cos(np.deg2rad(da.lat))


def of_cells(da):
    """Its dimensions in another order than da's; a row that does not count."""
    return xr.DataArray(np.arange(20).reshape(5, 4) // 4, {"lat": da.lat}, ("lon", "lat"))


WEIGHTS = {
    "lat": of_latitude,
    "lat, lazy where da is": lambda da: of_latitude(da).chunk(lat=3) if da.chunks else of_latitude(da),
    "integers, turned": of_cells,
    "a number": lambda da: xr.DataArray(0.5),
    "without coordinates": lambda da: xr.DataArray([3.0, 0, 0, 1], dims="lat"),
    "all": lambda da: of_latitude(da) * xr.DataArray(np.arange(1.0, 21), {"time": da.time}, "time") * of_cells(da),
}


@pytest.mark.each_pair
@every_dim
@every_array
@pytest.mark.parametrize("weigh", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")  # Dask's, of a channel without a value
def test_weights_are_those_of_xarray(weigh, dim, chunks, rng):
    da = temperatures(rng, chunks)
    weights = weigh(da)
    weighted, stats = da.weighted(weights), nx.batch_stats(da, dim, weights=weights)
    assert all(dask.is_dask_collection(part) == (chunks is not None) for part in stats)
    near(stats.count, (da.notnull() * weights).transpose(*DIMS).sum(dim))
    near(stats.mean, weighted.mean(dim))
    near(stats.var, weighted.var(dim))
    y, std = nx.standardize(da, dim, weights=weights), weighted.std(dim)
    near(y, ((da - weighted.mean(dim)) / std.where(std > 1e-15, 1.0)).transpose(*DIMS))
    assert (y.chunks, y.name, y.attrs) == (da.chunks, "t2m", da.attrs)
    xr.testing.assert_identical(y.coords.to_dataset(), da.coords.to_dataset())
    assert same_bits(y.values, nx.standardize(da.to_dataset(), dim, weights=weights).t2m.values)
    both = nx.batch_stats(da.to_dataset(), dim, weights=weights)
    assert all(same_bits(one.t2m.values, other.values) for one, other in zip(both, stats, strict=True))


@every_array
@pytest.mark.parametrize("kind", ["float32", "float16", "int16"])
def test_weights_of_other_dtypes(kind, chunks, rng):
    x = (100 * sample(rng, (20, 4, 5), "float64")).astype(kind)
    da = xr.DataArray(x, dims=DIMS)  # without the coordinates that the weights have
    latitude = xr.DataArray(np.float32([-90, -30, 30, 90]), dims="lat")
    weights = np.cos(np.deg2rad(latitude.assign_coords(lat=latitude))).clip(0)  # of a pole it is negative in float32
    stats = nx.batch_stats(da if chunks is None else da.chunk(chunks), ("time", "lat"), weights=weights)
    weighted = da.astype(float).weighted(weights.astype(float))  # xarray sums float32 in float32
    near(stats.mean, weighted.mean(("time", "lat")))
    near(stats.var, weighted.var(("time", "lat")))


@every_array
def test_weights_of_a_dataset_are_summed_where_a_variable_is_the_same(chunks, rng):
    """As in xarray, whose weighted means of such a variable are those over all dimensions of the weights."""
    da = temperatures(rng, chunks)
    ds, weights = xr.Dataset({"t": da, "series": da.isel(lat=3, lon=2, drop=True)}), of_latitude(da)
    stats, weighted = nx.batch_stats(ds, ("time", "lat"), weights=weights), ds.weighted(weights)
    near(stats.mean.t, weighted.mean(("time", "lat")).t)
    near(stats.mean.series, ds.series.mean())
    near(stats.var.series, ds.series.var())
    near(stats.count.series, ds.series.count() * weights.sum())
    near(nx.standardize(ds, ("time", "lat"), weights=weights).series, (ds.series - ds.series.mean()) / ds.series.std())


@every_array
@pytest.mark.parametrize(("kind", "values"), [("float16", [1] * 3001), ("uint64", [2**62] * 4), ("float16", [4e4] * 2)])
def test_sums_of_weights_are_those_of_float64(kind, values, chunks):
    """float16 counts to 2,048, and 2**64 is 0 in 64 bits."""
    lazy = (lambda array: array) if chunks is None else (lambda array: array.chunk())
    weights = lazy(xr.DataArray(np.array(values, kind), dims="lat"))
    ds = xr.Dataset({"series": ("time", [0.0, 1, 5])}, {"lat": np.arange(len(values))})
    stats = nx.batch_stats(lazy(ds), ("time", "lat"), weights=weights)
    near(stats.count.series, xr.DataArray(3 * float(np.array(values, kind).astype(float).sum())))
    near(stats.mean.series, xr.DataArray(2.0))


@pytest.mark.parametrize(
    ("weights", "error", "text"),
    [
        (xr.DataArray([-1.0, 3], dims="lat"), ValueError, "weights has values such as -1"),
        (xr.DataArray([1e308, 1e308], dims="lat"), ValueError, "whose sum may be infinite; divide all by it"),
        (xr.DataArray(np.ones(7), dims="lat"), ValueError, "weights has other coordinates or sizes than da"),
        (xr.DataArray([1.0, 1], {"lat": [8, 9]}, "lat"), ValueError, "weights has other coordinates or sizes than da"),
        (xr.DataArray(["a", "b"], dims="lat"), TypeError, "weights has dtype <U1; expected real numbers"),
    ],
)
def test_a_sum_hides_no_weight_that_is_none(weights, error, text):
    """Of a dimension that the Dataset has, and the variable has not."""
    ds = xr.Dataset({"series": ("time", [0.0, 1, 2])}, {"lat": [0, 1]})
    for call in nx.batch_stats, nx.standardize:
        with pytest.raises(error) as caught:
            call(ds, ("time", "lat"), weights=weights)
        assert text in str(caught.value)


def test_a_sum_of_chunks_hides_no_negative_weight():
    ds = xr.Dataset({"series": ("time", [0.0, 1, 2])}, {"lat": [0, 1]}).chunk()
    weights = xr.DataArray([-1.0, 3], dims="lat").chunk(lat=1)
    lazy = nx.batch_stats(ds, ("time", "lat"), weights=weights)
    with pytest.raises(ValueError, match="weights has values such as -1"):
        lazy.mean.compute()


def test_a_nullable_column_is_an_array_of_floats():
    import pandas  # which xarray needs

    for kind, result in (("Int64", "float64"), ("Float64", "float64"), ("Float32", "float32")):
        da = xr.DataArray(pandas.array([1, 2, None, 6], dtype=kind), dims="time")
        y = nx.standardize(da, "time")
        expected = nx.standardize(xr.DataArray(np.array([1, 2, np.nan, 6], result), dims="time"), "time")
        assert same_bits(y.values, expected.values)
        weights = xr.DataArray(pandas.array([1, 2, 3, 0], dtype=kind), dims="time")
        mean = nx.batch_stats(da, "time", weights=weights).mean
        near(mean, xr.DataArray(5 / 3))


def test_statistics_may_be_in_other_dtypes():
    da = xr.DataArray([1.0, 2, 6], dims="time")
    stats = nx.batch_stats(da, "time")
    nullable = stats._replace(count=xr.DataArray(np.int64(3)), mean=xr.DataArray(np.float32(3)))
    assert same_bits(nx.standardize(da, "time", stats=nullable).values, nx.standardize(da, "time", stats=stats).values)


def test_chunks_of_another_library_are_not_those_of_dask():
    class Wrapped:
        chunks, data = ((1, 1),), np.ones(2)

    assert not nx.is_lazy(Wrapped)
    assert nx.is_lazy(xr.DataArray(np.ones(2), dims="time").chunk())


def test_nothing_is_computed_where_weights_do_not_fit_a_variable(rng, monkeypatch):
    da = temperatures(rng)
    ds = xr.Dataset({"t": da, "series": da.isel(lat=3, lon=2, drop=True)})
    monkeypatch.setattr(nx, "present_moments", None)
    for call in nx.batch_stats, nx.standardize:
        with pytest.raises(ValueError, match=r"which neither da .'series'. has nor dim; expected some of"):
            call(ds, "time", weights=of_latitude(da))


def test_a_negative_weight_is_found_in_a_chunk_too(rng):
    da = temperatures(rng)
    weights = xr.DataArray([1.0, 1, -2, 1], dims="lat")
    with pytest.raises(ValueError, match="weights has values such as -2"):
        nx.batch_stats(da, "lat", weights=weights)
    lazy = nx.batch_stats(da.chunk(lat=1), "lat", weights=weights.chunk(lat=1))
    with pytest.raises(ValueError, match="weights has values such as -2"):
        lazy.mean.compute()


def test_constants_become_zero():
    da = xr.DataArray(np.full((7, 2), [0.1, 1e8 + 1 / 3]), dims=("a", "b"))
    assert (nx.standardize(da, "a").values == 0).all()
    assert (nx.standardize(da.chunk(a=2), "a").values == 0).all()


@every_array
def test_float32_at_a_large_mean(chunks, rng):
    """The mean is two numbers, through the chunks too."""
    x = (sample(rng, (400, 3, 5), "float64") + 1e6).astype(np.float32)
    da = xr.DataArray(x, dims=DIMS)
    y = nx.standardize(da if chunks is None else da.chunk(time=70, lat=2), ("time", "lon"))
    assert y.dtype == np.float32
    assert_close(y.values, reference.training(x, eps=0).y)
    stats = nx.batch_stats(da, ("time", "lon"))
    assert_stat_close(stats.var.values, reference.training(x, eps=0).var)


@needs_wide
@every_array
def test_float64_at_a_mean_of_a_hundred_million(chunks, rng):
    """Where one number for the mean loses 2**-28 of each value."""
    da = xr.DataArray(sample(rng, (400, 3, 5), "float64") + 1e8, dims=DIMS)
    y = nx.standardize(da if chunks is None else da.chunk(time=70, lat=2), ("time", "lon"))
    assert_close(y.values, reference.training(da.values, eps=0).y)


@every_array
def test_a_dataset(chunks, rng):
    da = temperatures(rng, chunks)
    ds = xr.Dataset(
        {"t": da, "mask": ("lat", [True] * 4), "names": ("time", ["a"] * 20), "profile": ("time", np.arange(20))},
        attrs={"title": "x"},
    )
    stats = nx.batch_stats(ds, ["time", "lon"])
    y = nx.standardize(ds, ["time", "lon"])
    assert list(stats.mean.data_vars) == ["t", "profile"]
    assert (list(y.data_vars), y.attrs) == (list(ds.data_vars), ds.attrs)
    near(y.t, nx.standardize(ds.t, ["time", "lon"]))
    near(y.profile, (ds.profile - ds.profile.mean()) / ds.profile.std())
    xr.testing.assert_identical(y[["mask", "names"]], ds[["mask", "names"]])
    back = nx.unstandardize(nx.standardize(ds, ["time", "lon"], stats=stats), ["time", "lon"], stats=stats)
    near(back.t, ds.t)
    near(back.profile, ds.profile.astype(float))


@every_array
def test_an_ellipsis_is_all_dimensions(chunks, rng):
    da = temperatures(rng, chunks)
    ds = xr.Dataset({"t": da, "profile": ("lat", [1.0, 2, 3, 9])})
    stats = nx.batch_stats(da, ...)
    assert stats.mean.dims == ()
    near(stats.mean, da.mean(...))
    found, expected = nx.standardize(ds, ...), nx.standardize(ds, DIMS)
    for name in ds:
        assert same_bits(found[name].values, expected[name].values)
        near(found[name], (ds[name] - ds[name].mean(...)) / ds[name].std(...))
    near(nx.unstandardize(nx.standardize(da, ..., stats=stats), ..., stats=stats), da)


def test_coordinates_are_passed_on_as_xarray_does(rng):
    da = temperatures(rng)
    y, sums = nx.standardize(da, "time"), da + 1
    for one in y, sums:
        assert np.shares_memory(one.height.values, da.height.values)
    y.attrs["units"], y.coords["height"] = "1", ("lat", [0.0] * 4)
    assert (da.attrs, da.height.values.tolist()) == ({"units": "K"}, [1, 2, 3, 4])


def test_statistics_of_another_period(rng):
    da = temperatures(rng, gaps=False)
    stats = nx.batch_stats(da.isel(time=slice(10)), ("time", "lon"))
    expected = (da - da.isel(time=slice(10)).mean(("time", "lon"))) / da.isel(time=slice(10)).std(("time", "lon"))
    near(nx.standardize(da.isel(time=slice(10, 20)), ("time", "lon"), stats=stats), expected.isel(time=slice(10, 20)))
    field = nx.batch_stats(da, "time")
    turned = nbnorm.BatchStats(*(part.transpose() for part in field))
    assert same_bits(nx.standardize(da, "time", stats=field).values, nx.standardize(da, "time", stats=turned).values)


def test_each_chunk_is_read_twice_and_not_kept():
    """Nothing is kept: the second reading of any chunk comes after the first one of all."""
    reads = []

    def read(block_info=None):
        reads.append(block_info[None]["chunk-location"])
        return np.random.default_rng(reads[-1][0]).normal(size=(10, 4)).astype(np.float32)

    x = dask.array.map_blocks(read, chunks=((10,) * 12, (4,)), dtype=np.float32, meta=np.empty((0, 0), np.float32))
    da = xr.DataArray(x, dims=("time", "lat"))
    for one in (da, da[5:115, 1:] + 1):  # Dask's own `bind` leaves slices with their old inputs
        reads.clear()
        y = nx.standardize(one, "time").compute()
        assert sorted(reads[:12]) == sorted(reads[12:]) == [(i, 0) for i in range(12)]
        assert len(reads) == 24
        assert abs(y.mean()) < 1e-6


class OnDisk(BackendArray):
    """Counts how often it is read."""

    def __init__(self, values):
        self.values, self.shape, self.dtype, self.reads = values, values.shape, values.dtype, 0

    def __getitem__(self, key):
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key):
        self.reads += 1
        return self.values[key]

    def variable(self, *dims):
        """As `xarray.open_dataset` makes it with cache=False."""
        return xr.Variable(dims, indexing.LazilyIndexedArray(self))


@pytest.mark.parametrize("kind", ["float64", "int16", ">f4"])
def test_what_is_on_a_disk_is_read_once(kind, rng):
    values = (10 * rng.normal(size=(6, 4))).astype(kind)
    in_memory = xr.DataArray(values, dims=("time", "lat"))
    for call in (
        lambda da: nx.batch_stats(da, "time").mean,
        lambda da: nx.standardize(da, "time"),
        lambda da: nx.standardize(da.to_dataset(name="t"), "time").t,
        lambda da: nx.standardize(da, "time", stats=nx.batch_stats(in_memory, "time")),
    ):
        there = OnDisk(values)
        assert same_bits(call(xr.DataArray(there.variable("time", "lat"))).values, call(in_memory).values)
        assert there.reads == 1


@every_array
def test_weights_on_a_disk_are_read_once_for_all_variables(chunks, rng):
    there = OnDisk(rng.random(20))
    ds = xr.Dataset({name: temperatures(rng, chunks) for name in ("t", "u", "v")})
    expected = nx.standardize(ds, "time", weights=xr.DataArray(there.values, dims="time"))
    found = nx.standardize(ds, "time", weights=xr.DataArray(there.variable("time")))
    for name in ds:
        assert same_bits(found[name].values, expected[name].values)
    assert there.reads == 1


def test_no_chunk_waits_in_memory():
    """A chunk that could be read before the rest of the mean was known let the next ones be read: all were kept."""
    alive, most = [], [0]

    class Nowhere:
        def __setitem__(self, index, values):
            pass

    def read(block_info=None):
        chunk = np.random.default_rng(block_info[None]["chunk-location"]).normal(size=(10, 4))
        alive.append(weakref.ref(chunk))
        most[0] = max(most[0], sum(one() is not None for one in alive))
        return chunk

    x = dask.array.map_blocks(read, chunks=((10,) * 40, (4,)), dtype=np.float64, meta=np.empty((0, 0)))
    nx.standardize(xr.DataArray(x, dims=("time", "lat")), "time").data.store(Nowhere(), lock=False)
    assert most[0] <= 10


CHUNKED = """
import sys, dask.array, xarray as xr, nbnorm.xarray
da = xr.DataArray([[1.0, 5], [3, 5], [8, 8]], dims=("time", "place")).chunk(time=2)
{}
print(nbnorm.xarray.standardize(da, "time").round(2).values.tolist())
"""
MISSING = {
    "distributed": 'sys.modules["distributed"] = None',
    "a module that Dask does not promise": "del dask._task_spec.convert_legacy_graph",
}


@pytest.mark.parametrize("missing", MISSING)
def test_what_of_dask_may_be_missing(missing):
    """distributed may; without Dask's own module, which may move, there is an error with advice."""
    command = [sys.executable, "-c", CHUNKED.format(MISSING[missing])]
    done = subprocess.run(command, env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True)
    if missing == "distributed":
        assert done.stdout == "[[-1.02, -0.71], [-0.34, -0.71], [1.36, 1.41]]\n", done.stderr
    else:
        *_, error, advice = done.stderr.splitlines()
        assert error.startswith("ImportError: cannot import name 'convert_legacy_graph'")
        assert advice.startswith("nbnorm on Dask arrays needs")
        assert advice.endswith('pip install "dask[array]>=2025.1,<2026.9"')


@pytest.mark.each_value
@pytest.mark.parametrize("dim", ["time", ("time", "lon"), DIMS], ids=str)
@pytest.mark.parametrize("kind", ["int16", ">f4", "gaps", "gaps and NaN", "backwards"])
def test_what_had_to_be_copied_is_written_over(kind, dim, rng):
    """Nobody else has the copy: a second array of that size would be for nothing."""
    values = 100 * rng.normal(3, 2, (300, 20, 30))
    if kind == "gaps and NaN":
        values[values > 500] = np.nan
    native = values.astype({"int16": "int16", ">f4": "float32"}.get(kind, "float64"))
    given = {
        "int16": native, ">f4": native.astype(">f4"), "backwards": native[::-1].copy()[::-1],
    }.get(kind, np.repeat(native, 2, -1)[..., ::2])  # fmt: skip
    da, plain = xr.DataArray(given, dims=DIMS), xr.DataArray(native, dims=DIMS)
    stats, before = nx.batch_stats(plain, dim), given.tobytes()
    for call in (
        lambda da: nx.standardize(da, dim),
        lambda da: nx.standardize(da, dim, stats=stats),
        lambda da: nx.unstandardize(da, dim, stats=stats),
    ):
        expected = call(plain.astype(float) if kind == "int16" else plain)
        tracemalloc.start()
        y = call(da)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert same_bits(y.values, expected.values)
        assert y.values.flags.c_contiguous
        assert given.tobytes() == before
        assert peak < 1.3 * y.nbytes


def test_big_endian_files(rng):
    da = temperatures(rng, dtype=">f4", gaps=False)
    expected = nx.standardize(da.astype(np.float32), "time").values
    for one in (da, da.chunk(time=20)):
        y = nx.standardize(one, "time")
        assert y.dtype.isnative
        assert same_bits(y.values, expected)


class WithUnits:
    """As arrays with units are, to xarray."""

    shape, ndim, dtype = (2, 3), 2, np.dtype(float)

    def __array_function__(self, *arguments):
        return NotImplemented

    def __array_ufunc__(self, *arguments, **options):
        return NotImplemented


def sparse():
    import pandas

    return xr.DataArray(pandas.array([1.0, 0, 6], dtype=pandas.SparseDtype(float)), dims="time")


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda da, stats: nx.standardize(da.values, "time"), TypeError, "da is a numpy.ndarray; expected a DataArray"),
        (lambda da, stats: nx.standardize(da, "level"), ValueError, "dim is 'level'; expected some of the dimensions"),
        (lambda da, stats: nx.batch_stats(da, []), ValueError, "dim is []"),
        (lambda da, stats: nx.batch_stats(da[0, 0, 0], ...), ValueError, "dim is Ellipsis; expected some of"),
        (
            lambda da, stats: nx.standardize(xr.DataArray(np.zeros((1,) * 64), name="temperature_two_metres"), ...),
            ValueError,
            "da ('temperature_two_metres') has 64 dimensions, all of them to be reduced; expected at most 63",
        ),
        (
            lambda da, stats: nx.batch_stats(xr.DataArray(np.zeros((1,) * 64)).chunk(), ...),
            ValueError,
            "da has 64 dimensions, all of them to be reduced; expected at most 63, such as da.squeeze()",
        ),
        (lambda da, stats: nx.batch_stats(da, da), TypeError, "dim has a DataArray; expected names of dimensions"),
        (lambda da, stats: nx.batch_stats(da, [("time", [1])]), TypeError, "dim has a tuple; expected names of"),
        (lambda da, stats: nx.batch_stats(da > 0, "time", weights=of_latitude(da)[1:]), TypeError, "has dtype bool"),
        (lambda da, stats: nx.batch_stats(sparse(), "time"), TypeError, "da has dtype Sparse[float64, nan]; expected"),
        (lambda da, stats: nx.batch_stats(da, "time", weights=sparse()), TypeError, "weights has dtype Sparse"),
        (lambda da, stats: nx.batch_stats(sparse().to_dataset(name="s"), "time"), TypeError, "da ('s') has dtype Spar"),
        (
            lambda da, stats: nx.standardize(da, "time", stats=stats._replace(mean=stats.mean.astype(complex))),
            TypeError,
            "stats has dtype complex128; expected real numbers",
        ),
        (
            lambda da, stats: nx.unstandardize(da, "time", stats=nx.batch_stats(da.chunk(), "time")),
            TypeError,
            "stats is lazy, but da ('t2m') is in memory; (stats,) = dask.compute(stats) computes it",
        ),
        (
            lambda da, stats: nx.batch_stats(da.to_dataset()[[]].assign(p=da.season), "time", weights="junk"),
            TypeError,
            "weights is a str; expected a DataArray",
        ),
        (
            lambda da, stats: nx.batch_stats(
                da.rename("temperature_two_metres_above_the_ground_of_a_grid_cell"),
                "time",
                weights=xr.DataArray([1.0], dims="member_of_the_ensemble_of_models_and_runs"),
            ),
            ValueError,
            "weights has dimension 'member_of_the_ensemble_of_models_and..., which neither da ('temperature_two",
        ),
        (
            lambda da, stats: nx.batch_stats(xr.DataArray(WithUnits(), dims=("time", "lat")), "time"),
            TypeError,
            "da.data is a test_xarray.WithUnits; expected a numpy.ndarray: pass np.asarray(da.data)",
        ),
        (lambda da, stats: nx.batch_stats(da > 0, "time"), TypeError, "da ('t2m') has dtype bool; expected int"),
        (
            lambda da, stats: nx.standardize(da.astype("g").to_dataset(), "time"),
            TypeError,
            "('t2m') has dtype float128",
        ),
        (lambda da, stats: nx.unstandardize(da, "time", stats=None), TypeError, "stats is None"),
        (lambda da, stats: nx.standardize(da, "time", stats=3), TypeError, "stats is a int; expected what"),
        (lambda da, stats: nx.standardize(da, "lat", stats=stats), ValueError, "expected DataArrays with the dim"),
        (lambda da, stats: nx.standardize(da[:, ::-1], "time", stats=stats), ValueError, "stats has other coord"),
        (lambda da, stats: nx.standardize(da.to_dataset(), "time", stats=stats), ValueError, "no variable 't2m'"),
        (
            lambda da, stats: nx.batch_stats(da, "time", weights=np.ones(20)),
            TypeError,
            "weights is a ndarray; expected a DataArray",
        ),
        (
            lambda da, stats: nx.batch_stats(da.assign_coords(lat=da.lat + 1), "lat", weights=of_latitude(da)),
            ValueError,
            "weights has other coordinates or sizes than da ('t2m'); expected the same",
        ),
        (
            lambda da, stats: nx.batch_stats(da.to_dataset().assign(p=da.time.dt.day), "time", weights=of_latitude(da)),
            ValueError,
            "weights has dimension 'lat', which neither da ('p') has nor dim; expected some of ('time',)",
        ),
        (
            lambda da, stats: nx.batch_stats(da, "time", weights=of_latitude(da).chunk()),
            TypeError,
            "weights is lazy, but da ('t2m') is in memory; expected weights.compute(), or a lazy da",
        ),
        (
            lambda da, stats: nx.batch_stats(da, "time", weights=da.time.dt.day > 3),
            TypeError,
            "weights has dtype bool; expected numbers (da.where(weights)",
        ),
        (
            lambda da, stats: nx.standardize(da, "time", stats=stats, weights=of_latitude(da)),
            ValueError,
            "weights and stats are both given",
        ),
    ],
)
def test_what_is_refused(call, error, text, rng):
    da = temperatures(rng, gaps=False)
    with pytest.raises(error) as caught:
        call(da, nx.batch_stats(da, "time"))
    assert text in str(caught.value)
    assert len(str(caught.value)) < 200


def test_statistics_with_labels_are_not_merged_without_them(rng):
    stats = nx.batch_stats(temperatures(rng, gaps=False), "time")
    with pytest.raises(TypeError, match=r"^stats\[1\].count is a xarray.*: pass .to_numpy"):
        nbnorm.merge_stats(nbnorm.BatchStats(*(part.values for part in stats)), stats)


def test_variances_that_overflow_are_nan_in_chunks_too(rng):
    da = temperatures(rng, dtype=np.float64, gaps=False) * 1e160
    expected = nx.standardize(da, "time").values
    assert np.isnan(expected).all()
    assert same_bits(nx.standardize(da.chunk(time=20), "time").values, expected)
    stats = nx.batch_stats(da.chunk(time=20), "time")
    assert same_bits(stats.count.values, nx.batch_stats(da, "time").count.values)


@pytest.mark.parametrize("values", [[1e155, 2e155, 3e155], [1e200, 1e200, -1e200, -1e200]])
def test_variances_that_overflow_between_chunks_are_nan_too(values):
    """Each chunk is a constant; 0 would be their standardized value by an infinite variance."""
    da = xr.DataArray(np.array(values), dims="time")
    assert np.isnan(nx.standardize(da, "time").values).all()
    assert np.isnan(nx.standardize(da.chunk(time=1), "time").values).all()
    (stats,) = dask.compute(nx.batch_stats(da.chunk(time=1), "time"))
    assert np.isnan(stats.m2.values)
    assert np.isnan(nx.standardize(da, "time", stats=stats).values).all()
    infinite = stats._replace(m2=stats.m2.copy(data=np.inf))
    assert np.isnan(nx.standardize(da, "time", stats=infinite).values).all()


def test_an_empty_chunk_of_an_axis_of_length_1(rng):
    x = rng.random((1, 5))
    lazy = xr.DataArray(dask.array.from_array(x, chunks=((0, 1), 5)), dims=("time", "place"))
    assert same_bits(nx.standardize(lazy, "place").values, nx.standardize(lazy.compute(), "place").values)


def test_chunks_of_unknown_size_are_refused(rng):
    x = dask.array.from_array(rng.random((20, 3)), chunks=(5, 3))
    da = xr.DataArray(x[x[:, 0] > 0.5], dims=("time", "place"))
    for call in nx.standardize, nx.batch_stats:
        with pytest.raises(ValueError, match=r"^da.data has chunks of unknown size; call da.data.compute"):
            call(da, "time")
