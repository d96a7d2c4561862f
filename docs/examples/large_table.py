"""A table larger than memory, in pieces: python docs/examples/large_table.py [PICTURE.png]

A file of 128 MB, and a process that may take 48 MB more than it has: reading the table as an array fails. A memory map
and `partial_fit` of nbnorm's StandardScaler need a piece at a time, and so does the result. The 32 columns have means
of 1 to 300,000 standard deviations, where scikit-learn's scaler, which goes through the same pieces, loses digits of
float32. Needs the extra `sklearn` and Matplotlib; the limit is Linux's.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from sklearn import preprocessing

from nbnorm.sklearn import StandardScaler

ROWS, COLUMNS, PIECE, SPREAD, LIMIT = 1_000_000, 32, 20_000, 16, 48 << 20
MEANS = np.rint(SPREAD * np.geomspace(1, 3e5, COLUMNS))


def pieces() -> Iterator[slice]:
    return (slice(start, start + PIECE) for start in range(0, ROWS, PIECE))


def write(path: Path) -> tuple[NDArray, NDArray]:
    """The table, and its mean and standard deviation: exact, as its values are integers."""
    table = np.lib.format.open_memmap(path, "w+", np.float32, (ROWS, COLUMNS))
    total, square = np.zeros(COLUMNS), np.zeros(COLUMNS)
    for piece in pieces():
        values = np.rint(np.random.default_rng(piece.start).normal(0, SPREAD, (PIECE, COLUMNS)))
        total, square = total + values.sum(0), square + (values**2).sum(0)
        table[piece] = values + MEANS
    return MEANS + total / ROWS, np.sqrt(square / ROWS - (total / ROWS) ** 2)


def limit_memory() -> None:
    """To LIMIT bytes more than the process has; files that are mapped do not count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    has = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (has + LIMIT, has + LIMIT))


def error(y: NDArray, x: NDArray, mean: NDArray, std: NDArray) -> NDArray:
    """Largest of each column, in units in the last place of its largest value."""
    exact = (x.astype(np.float64) - mean) / std
    return (abs(y - exact) / np.spacing(abs(exact).max(0).astype(np.float32))).max(0)


def main(directory: Path, picture: str) -> None:
    mean, std = write(directory / "table.npy")
    table = np.load(directory / "table.npy", mmap_mode="r")
    for scaler in (StandardScaler(), preprocessing.StandardScaler()):  # compiles, which takes memory of its own
        scaler.partial_fit(table[:PIECE]).transform(table[:PIECE])

    if sys.platform == "linux":
        limit_memory()
        try:
            np.array(table)
        except MemoryError as no:
            print(f"as an array: {no}")
        else:
            raise AssertionError("the table fits into memory")
    tracemalloc.start()
    scaler, memory = StandardScaler(), []
    for piece in pieces():
        scaler.partial_fit(table[piece])
        memory.append(tracemalloc.get_traced_memory()[1] / 1e6)
    result = np.lib.format.open_memmap(directory / "standardized.npy", "w+", np.float32, table.shape)
    for piece in pieces():
        result[piece] = scaler.transform(table[piece])
        memory.append(tracemalloc.get_traced_memory()[1] / 1e6)
    tracemalloc.stop()
    print(f"{table.nbytes / 1e6:.0f} MB in {len(memory) // 2} pieces; peak of memory {memory[-1]:.1f} MB")
    assert memory[-1] * 1e6 < table.nbytes / 10

    other = preprocessing.StandardScaler()
    for piece in pieces():
        other.partial_fit(table[piece])
    first = slice(0, PIECE)
    errors = {
        "nbnorm": error(result[first], table[first], mean, std),
        "scikit-learn": error(other.transform(table[first]), table[first], mean, std),
    }
    for name, found in errors.items():
        print(f"{name:12} largest error {found.max():.2g} units in the last place")
    assert errors["nbnorm"].max() <= 1
    assert abs(scaler.mean_ - mean).max() <= 1e-12 * mean.max()

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    for name, found in errors.items():
        left.loglog(MEANS / SPREAD, found, "o-", markersize=3, label=name)
    left.set(xlabel="mean, in standard deviations", ylabel="largest error, units in the last place", title="y, float32")
    left.legend()
    right.plot(memory, label="peak so far")
    right.axhline(table.nbytes / 1e6, color="gray", linestyle=":", label="the table")
    right.axvline(len(memory) / 2, color="gray", linewidth=0.5)
    right.set(xlabel="pieces: statistics, then the result", ylabel="memory (MB)", title="partial_fit, transform")
    right.legend()
    figure.savefig(picture, dpi=100)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary), sys.argv[1] if len(sys.argv) > 1 else "large-table.png")
