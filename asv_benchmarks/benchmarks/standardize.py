"""A table standardized, beside scikit-learn's scaler of the same name; in chunks, beside xarray and dask-ml.

Time, memory, and what float32 loses at a large mean.
"""

from __future__ import annotations

import tracemalloc
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from asv_runner.benchmarks.mark import SkipNotImplemented

from .common import data

SHAPE = (1_000_000, 64)
MEAN = 1e6  # standard deviations


@lru_cache
def fitted(system: str) -> tuple[Any, np.ndarray]:
    """A scaler, fitted and called once, which compiles it, and the table. Cached: asv runs `setup` again and again."""
    scaler = scaler_of(system)
    x, _ = data(SHAPE, "float32")
    scaler.fit_transform(x)
    return scaler, x


def scaler_of(system: str) -> Any:
    try:
        from sklearn import preprocessing

        from nbnorm.sklearn import StandardScaler
    except ImportError as error:
        raise SkipNotImplemented(str(error)) from error
    return StandardScaler() if system == "nbnorm" else preprocessing.StandardScaler()


class Table:
    params: ClassVar = ("nbnorm", "scikit-learn")
    param_names = ("system",)
    repeat = (3, 20, 5.0)  # calls: at least, at most, seconds
    number = 1

    def setup(self, system: str) -> None:
        self.scaler, self.x = fitted(system)

    def time_fit(self, _: str) -> None:
        self.scaler.fit(self.x)

    def time_transform(self, _: str) -> None:
        self.scaler.transform(self.x)


class Store:
    """A table that is read in copies, as a file is, and counts its reads."""

    def __init__(self, x: np.ndarray) -> None:
        self.x, self.shape, self.dtype, self.ndim, self.reads = x, x.shape, x.dtype, x.ndim, 0

    def __getitem__(self, index: Any) -> np.ndarray:
        values = self.x[index].copy()
        self.reads += values.size > 0  # Dask asks for nothing too, to see what kind it is
        return values


class Nowhere:
    """Where results go that are written and forgotten."""

    def __setitem__(self, index: Any, values: np.ndarray) -> None:
        pass


def in_chunks(system: str, store: Any, rows: int) -> Any:
    """The table standardized, a lazy array in chunks of so many rows."""
    try:
        import dask.array
        import xarray as xr

        import nbnorm.xarray

        x = dask.array.from_array(store, chunks=(rows, -1), asarray=False, name=False)
        if system == "dask-ml":
            from dask_ml.preprocessing import StandardScaler

            return StandardScaler().fit(x).transform(x)
    except ImportError as error:
        raise SkipNotImplemented(str(error)) from error
    table = xr.DataArray(x, dims=("row", "column"))
    if system == "nbnorm":
        return nbnorm.xarray.standardize(table, "row").data
    return ((table - table.mean("row")) / table.std("row")).data


class Chunks:
    """From a store of twenty chunks to nowhere, by Dask's threads."""

    params: ClassVar = ("nbnorm", "xarray", "dask-ml")
    param_names = ("system",)
    repeat = (3, 10, 10.0)
    number = 1

    def setup(self, system: str) -> None:
        self.store = Store(data((400_000, 64), "float32")[0])
        self.run(system)  # compiles

    def run(self, system: str) -> None:
        in_chunks(system, self.store, 20_000).store(Nowhere(), lock=False)

    def time_all(self, system: str) -> None:
        self.run(system)

    def track_reads(self, system: str) -> float:
        """Of each chunk."""
        self.store.reads = 0
        self.run(system)
        return self.store.reads / 20

    def track_peak(self, system: str) -> float:
        """Bytes at the peak, in those of the table."""
        tracemalloc.start()
        self.run(system)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak / self.store.x.nbytes


def error_of(y: np.ndarray, x: np.ndarray) -> float:
    """The largest, in units of 2**-24 * max|y|."""
    exact = x.astype(np.longdouble)  # whose sums of so few 24-bit numbers are exact
    exact -= exact.mean(0)
    exact /= np.sqrt((exact**2).mean(0))
    return float((abs(y - exact) / abs(exact).max(0)).max() * 2**24)


class LargeMean:
    """Largest error of y where the mean is 1e6 times the standard deviation."""

    params: ClassVar = ("nbnorm", "scikit-learn", "nbnorm, chunks", "xarray, chunks", "dask-ml, chunks")
    param_names = ("system",)
    unit = "u"

    def setup(self, system: str) -> None:
        self.x = data((100_000, 8), "float32", MEAN)[0]
        library, _, chunks = system.partition(", ")
        if chunks:
            self.y = in_chunks(library, self.x, 20_000).compute()
        else:
            self.y = scaler_of(library).fit_transform(self.x)

    def track_y(self, _: str) -> float:
        return error_of(self.y, self.x)
