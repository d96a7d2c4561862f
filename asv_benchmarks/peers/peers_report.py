"""peers.py's results as Markdown and as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

OURS = "nbnorm"
APART = "oneDNN"  # its arrays lie in memory as no user's do: not one of the peers
TENSORS = {"training": 2, "backward": 3, "inference": 2}  # that have to be read and written once, at least
ITEM = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
Results = dict[str, Any]


def name_of(row: dict[str, Any]) -> str:
    order = {"": "", "last": " channels last"}.get(row["order"], f" {row['order']}")
    return f"({', '.join(map(str, row['shape']))}){order}"


def ms(results: Results, system: str, row: dict[str, Any], operation: str) -> float | None:
    found = results["systems"].get(system, {}).get(row["name"], {}).get(operation)
    return median(found) if found else None


def ratio(results: Results, row: dict[str, Any], operation: str) -> float | None:
    """Time of the best peer over ours, paired in each round; None where there is no peer."""
    found = [of(results, name, row, operation) for name in results["systems"] if name not in (OURS, APART)]
    return min((one for one in found if one), default=None)


def of(results: Results, system: str, row: dict[str, Any], operation: str) -> float | None:
    """Time of this system over ours."""
    times = [results["systems"].get(name, {}).get(row["name"], {}).get(operation) for name in (system, OURS)]
    return median(theirs / ours for theirs, ours in zip(*times)) if all(times) else None


def of_copy(results: Results, row: dict[str, Any], operation: str) -> float | None:
    """Bytes per second, over those of the better copy of an array like x: paired in each round."""
    found = results["systems"].get(OURS, {}).get(row["name"])
    if not found:
        return None
    copies = zip(*(times for name, times in found.items() if name.startswith("copy")))
    tensors = TENSORS[operation.removesuffix(" out")] / 2
    return median(tensors * min(copy) / ours for copy, ours in zip(copies, found[operation]))


def markdown(results: Results) -> str:
    return "\n".join(_lines(results))


def _lines(results: Results) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    yield f"{results['date']}, {results['cpu']}, {results['threads']} threads, {results['dtype']}. {versions}."
    yield f"Milliseconds; the minimum of the calls of {results['seconds']} s, the median of {results['rounds']} rounds."
    names: dict[str, list[str]] = {}
    for name, reason in results["left_out"].items():
        names.setdefault(reason, []).append(name)
    yield from (f"Left out: {'; '.join(left)}: {reason}" for reason, left in names.items())
    for operation in TENSORS:
        yield from _table(results, operation, f"{operation}, fresh output")
    for operation in TENSORS:
        yield from _table(results, f"{operation} out", f"{operation}, output given")


def _table(results: Results, operation: str, title: str) -> Iterator[str]:
    systems = [s for s in results["systems"] if any(ms(results, s, row, operation) for row in results["rows"])]
    header = [title, "MB", *systems, "best peer / nbnorm", "× copy"]
    yield ""
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in results["rows"]:
        size = TENSORS[operation.removesuffix(" out")] * math.prod(row["shape"]) * ITEM[results["dtype"]]
        times = [_short(ms(results, system, row, operation)) for system in systems]
        figures = [_short(ratio(results, row, operation), ".2f"), _short(of_copy(results, row, operation), ".2f")]
        yield f"| {' | '.join([name_of(row), f'{1e-6 * size:.3g}', *times, *figures])} |"
    yield from _summary("Best peer", {name_of(row): ratio(results, row, operation) for row in results["rows"]})
    apart = {name_of(row): of(results, APART, row, operation) for row in results["rows"]}
    yield from _summary(f"{APART}, with its own order in memory,", apart)


def _summary(title: str, ratios: dict[str, float | None]) -> Iterator[str]:
    known = {name: r for name, r in ratios.items() if r}
    if known:
        worst = min(known, key=lambda name: known[name])
        mean, rows = geometric_mean(known.values()), f" of {len(known)} rows" if len(known) < len(ratios) else ""
        yield ""
        yield f"{title} / nbnorm: geometric mean{rows} {mean:.2f}, worst row {known[worst]:.2f}, {worst}."


def _short(value: float | None, form: str = ".3g") -> str:
    return "" if value is None else f"{value:{form}}"


def picture(results: Results, path: Path) -> None:
    """A dot for every row and operation: how many times faster than the best peer."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator

    rows = results["rows"]
    faster, slower = "#0072B2", "#D55E00"  # blue and vermilion of Okabe and Ito; the shape says it too
    figure, panels = pyplot.subplots(1, 3, sharey=True, figsize=(10, 1.6 + 0.24 * len(rows)), layout="constrained")
    found = {kind: [ratio(results, row, kind) for row in rows] for kind in TENSORS}
    known = [r for ratios in found.values() for r in ratios if r is not None] or [1.0]
    ticks = [t for t in (0.25, 0.5, 1, 2, 4, 8, 16, 32) if 0.5 * min(known) < t < 2 * max(known)]
    for panel, (kind, ratios) in zip(panels, found.items()):
        for place, value in enumerate(ratios):
            if value is not None:
                colour, marker = (faster, "o") if value >= 1 else (slower, "D")
                panel.plot([1, value], [place, place], color=colour, linewidth=1.5)
                panel.plot(value, place, marker, color=colour, markersize=5)
                side, shift = ("left", 5) if value >= 1 else ("right", -5)
                panel.annotate(
                    f"{value:.2f}", (value, place), (shift, 0), textcoords="offset points", ha=side, va="center",
                    fontsize=7,
                )  # fmt: skip
        panel.axvline(1, color="0.3", linewidth=1)
        panel.set_xscale("log")
        panel.set_xlim(0.6 * min(1, *known), 1.7 * max(1, *known))
        panel.set_xticks(ticks, [f"{t:g}×" for t in ticks], fontsize=8)
        panel.xaxis.set_minor_locator(NullLocator())
        panel.grid(axis="x", color="0.9")
        panel.set_axisbelow(True)
        mean = f": geometric mean {geometric_mean([r for r in ratios if r]):.2f}×" if any(ratios) else ""
        panel.set_title(f"{kind}{mean}", fontsize=10)
    panels[0].set_yticks(range(len(rows)), [name_of(row) for row in rows], fontsize=8)
    panels[0].invert_yaxis()
    versions = results["versions"].items()
    peers = ", ".join(f"{name} {version}" for name, version in versions if name not in (OURS, APART))
    figure.suptitle(
        f"Time of the fastest peer ÷ time of nbnorm: right of 1× nbnorm is faster\n"
        f"{results['cpu']}, {results['threads']} threads, {results['dtype']}, {results['date']}\nPeers: {peers}",
        fontsize=10,
    )
    figure.savefig(path, dpi=130)
