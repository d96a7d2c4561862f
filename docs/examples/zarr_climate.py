"""A Zarr store of a field with gaps, standardized in pieces: python docs/examples/zarr_climate.py [PICTURE.png]

What a satellite has seen of the temperature at each place, but for the fifth that clouds have hidden and the land, of
which there is nothing: float32, in kelvin, in a store that is read in twenty chunks, two at a time. nbnorm.xarray
takes each place's mean over time away and divides by its standard deviation; a warm spell of 1.5 K that the difference
between tropics and poles has hidden is seen then. Needs the extras `xarray` and `dask`, zarr and Matplotlib.
"""

from __future__ import annotations

import sys
import tempfile
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import dask
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
import zarr

import nbnorm.xarray

TIMES, STEP, LATITUDES, LONGITUDES = 1920, 96, 45, 90
SPELL = {"time": slice(1200, 1240), "lat": slice(25, 31), "lon": slice(30, 55)}


class CountedStore(zarr.storage.LocalStore):
    """A directory that counts how often each chunk is read."""

    reads: ClassVar[Counter[str]] = Counter()

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        if "/c/" in key:
            self.reads[key] += 1
        return await super().get(key, *args, **kwargs)


def write(path: Path) -> None:
    """The field, a chunk of the time axis at a time."""
    lat, lon = np.linspace(-89, 89, LATITUDES), np.linspace(1, 359, LONGITUDES)
    land = np.sin(np.radians(2 * lon)) * np.cos(np.radians(3 * lat))[:, None] > 0.6
    climate = (273 + 28 * np.cos(np.radians(lat)))[:, None] - 3 * np.cos(np.radians(lon))
    for start in range(0, TIMES, STEP):
        rng, time = np.random.default_rng(start), np.arange(start, start + STEP)
        field = climate + rng.normal(0, 0.5, (STEP, LATITUDES, LONGITUDES))
        field[max(SPELL["time"].start - start, 0) : max(SPELL["time"].stop - start, 0), SPELL["lat"], SPELL["lon"]] += (
            1.5
        )
        field[(rng.random(field.shape) < 0.2) | land] = np.nan
        data = xr.DataArray(
            field.astype(np.float32), dims=("time", "lat", "lon"), coords={"time": time, "lat": lat, "lon": lon},
            attrs={"units": "K"}, name="temperature",
        ).chunk(time=STEP)  # fmt: skip
        data.to_dataset().to_zarr(path, consolidated=False, **({"append_dim": "time"} if start else {"mode": "w"}))


def main(directory: Path, picture: Path) -> None:
    write(directory / "field")
    store = CountedStore(directory / "field")
    field = xr.open_zarr(store, chunks={}, consolidated=False)["temperature"]

    nbnorm.xarray.standardize(field[: 2 * STEP], "time").compute()  # compiles, which takes memory of its own
    store.reads.clear()
    tracemalloc.start()
    with dask.config.set(scheduler="threads", num_workers=2):
        y = nbnorm.xarray.standardize(field, "time")
        y.to_dataset().to_zarr(directory / "standardized", consolidated=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    reads = [n for key, n in store.reads.items() if key.startswith("temperature/")]
    print(f"{field.nbytes / 1e6:.0f} MB in {len(reads)} chunks, {float(field.isnull().mean()):.0%} missing")
    print(f"each chunk read {min(reads)} to {max(reads)} times; peak of memory {peak / 1e6:.1f} MB")
    assert (len(reads), min(reads), max(reads)) == (TIMES // STEP, 2, 2)
    assert peak < field.nbytes

    y = xr.open_zarr(directory / "standardized", consolidated=False)["temperature"]
    seen = y.notnull().any("time")
    mean, std = (found.where(seen) for found in (y.mean("time", dtype=np.float64), y.std("time", dtype=np.float64)))
    off_mean, off_std = float(abs(mean).max()), float(abs(std - 1).max())
    print(f"standardized: means within {off_mean:.0e} of 0, deviations within {off_std:.0e} of 1")
    assert max(off_mean, off_std) < 1e-6

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    spell = slice(SPELL["time"].start, SPELL["time"].stop)
    for ax, data, title in zip(axes, (field, y), ("as measured (K)", "standardized"), strict=True):
        data.isel(time=spell).mean("time").plot(ax=ax, cbar_kwargs={"label": ""})
        ax.set(title=f"mean of forty days, {title}", xlabel="longitude", ylabel="latitude")
    figure.savefig(picture, dpi=100)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary), Path(sys.argv[1] if len(sys.argv) > 1 else "zarr-climate.png"))
