"""gpu.py's results as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

DRY_RUN = "**DRY RUN: no figure here is a measurement.**"
LARGE = """
## Large arrays

Time of the GPU for a call, fresh outputs, read from memory. × copy: GB/s over those of the better copy. × PyTorch,
× CuPy and × two launches (nbnorm's own, where it takes one): their time over nbnorm's; above 1, nbnorm is faster.
(h): the GPU waited for the host, whose time this is.
"""
SMALL = """
## Small arrays

Host: µs of a call that does not wait. Graph: µs of the GPU for a call in a replayed graph. The caches hold all.
"""
ERRORS = """
## Errors

Largest error of y against float64 on the host, in units of 2^-24 max|y| (float16: 2^-11, bfloat16: 2^-8); 0.5 to 1 is
correctly rounded. Training, standard deviation 1.
"""
COLUMNS = [("host", "nbnorm"), ("host", "CuPy"), ("host", "PyTorch"), ("graph", "nbnorm"), ("graph", "two launches"),
           ("graph", "CuPy")]  # fmt: skip
Entry = dict[str, Any]


def markdown(results: Entry) -> str:
    return "\n".join(_lines(results))


def _lines(results: Entry) -> Iterator[str]:
    if results["dry_run"]:
        yield from (DRY_RUN, "")
    yield from (f"- {name}: {text}" for name, text in results["versions"].items())
    before, after = results["copy"]["GB/s"]
    size = results["copy"]["bytes"] / 1e6
    yield f"- copy of {size:.3g} MB: {before:.4g} GB/s before, {after:.4g} after, read and written"
    yield from (f"- left out: {reason}" for reason in results["left_out"])
    yield LARGE
    header = ["shape", "dtype", "operation", "µs median", "µs min", "GB/s",
              "× copy", "× PyTorch", "× CuPy", "× two launches"]  # fmt: skip
    yield from _table(header, (row for entry in results["large"] for row in _large(entry, max(before, after))))
    yield SMALL
    header = ["shape", "dtype", "operation", *(f"{how}, {system}" for how, system in COLUMNS)]
    yield from _table(header, (row for entry in results["small"] for row in _small(entry)))
    yield ERRORS
    yield from _table(["shape", "dtype", "mean", "nbnorm", "CuPy", "PyTorch"], map(_errors, results["errors"]))


def _table(header: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    for row in (header, ["---"] * len(header), *rows):
        yield f"| {' | '.join(row)} |"


def _large(entry: Entry, copy: float) -> Iterator[list[str]]:
    by_system = entry["us"]
    for kind, time in by_system.get("nbnorm", {}).items():
        size = entry["bytes"][kind]
        speed = 1e-3 * size / time["median"]
        torch, cupy, one = (
            _ratio(by_system[name][kind], time) if kind in by_system.get(name, ()) else ""
            for name in ("PyTorch", "CuPy", "two launches")
        )
        yield [
            entry["shape"], entry["dtype"], kind, f"{time['median']:.1f}{_waits(time)}", f"{time['min']:.1f}",
            f"{speed:.0f}", f"{speed / copy:.2f}", f"{torch} {entry['torch_form']}" if torch else "", cupy, one,
        ]  # fmt: skip


def _ratio(theirs: Entry, ours: Entry) -> str:
    return f"{theirs['median'] / ours['median']:.2f}{_waits(theirs)}"


def _waits(time: Entry) -> str:
    return " (h)" if time["host"] > 0.8 * time["median"] else ""


def _small(entry: Entry) -> Iterator[list[str]]:
    for kind in entry["us"].get("nbnorm", ()):
        times = [entry["us"].get(system, {}).get(kind, {}).get(how) for how, system in COLUMNS]
        yield [entry["shape"], entry["dtype"], kind, *(f"{time['median']:.1f}" if time else "" for time in times)]


def _errors(entry: Entry) -> list[str]:
    units = [entry["units"].get(name) for name in ("nbnorm", "CuPy", "PyTorch")]
    return [entry["shape"], entry["dtype"], f"{entry['mean']:g}", *("" if u is None else f"{u:.2g}" for u in units)]
