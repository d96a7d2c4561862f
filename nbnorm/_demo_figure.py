"""The figure of the demo: training curves, activations of a deep layer, accuracy by initial weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nbnorm._demo_networks import NETWORKS, Results, Run
from nbnorm._demo_report import TARGET, Row, both, initialization_rate, rows_by_rate, rows_by_scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Without and with normalization, in this order everywhere; colours that the colour-blind can tell apart.
COLOURS = ("#d55e00", "#0072b2")
NAMES = ("without batch normalization", "with batch normalization")
DEEP = "multi-layer"  # the network whose deep layer is shown


def save_figure(results: Results, out: Path) -> None:
    """Draws `results` and writes the figure to `out`."""
    # A Figure of its own instead of pyplot: no window, no backend chosen for the rest of the process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(15, 10), layout="constrained")
    FigureCanvasAgg(figure)
    *strips, bottom = figure.subfigures(len(NETWORKS) + 1, 1, hspace=0.04)
    for network, strip in zip(NETWORKS, strips, strict=True):
        _headline(strip, f"{network.capitalize()} network: test accuracy (%) in the course of training, by learning rate")
        rows = rows_by_rate(results, network)
        for ax, row in zip(strip.subplots(1, len(rows), sharey=True), rows, strict=True):
            _draw_curves(ax, row)
    left, right = bottom.subfigures(1, 2, wspace=0.03)
    rate = initialization_rate(results)
    _headline(left, f"What enters the last ReLU of the {DEEP} network (rate {rate:g})")
    _draw_activations(left.subplots(1, 2, sharex=True, sharey=True), both(results, DEEP, rate, 1.0))
    _headline(right, f"Test accuracy (%) at the end, by initial weights (rate {rate:g})")
    for ax, network in zip(right.subplots(1, 2, sharey=True), NETWORKS, strict=True):
        _draw_scales(ax, network, rows_by_scale(results, network))
    handles = [
        Line2D([], [], color=color, linewidth=3, label=name) for color, name in zip(COLOURS, NAMES, strict=True)
    ]
    handles.append(Line2D([], [], color="0.6", linewidth=0.8, label="thin: single seeds, thick: their mean"))
    figure.legend(handles=handles[::-1], loc="outside upper center", ncols=3, frameon=False, fontsize=13)
    figure.savefig(out, dpi=100)


def _headline(subfigure, text):
    subfigure.suptitle(text, x=0.01, ha="left", fontsize=13, fontweight="bold")


def _clean(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="0.92")
    ax.set_axisbelow(True)


def _draw_curves(ax: Axes, row: Row) -> None:
    for runs, color in zip((row.without, row.normalized), COLOURS, strict=True):
        curves = 100 * np.array([run.accuracy for run in runs])
        epochs = np.arange(1, curves.shape[1] + 1)
        ax.plot(epochs, curves.T, color=color, linewidth=0.8, alpha=0.4)
        ax.plot(epochs, curves.mean(axis=0), color=color, linewidth=3)
    ax.axhline(100 * TARGET, color="0.4", linewidth=0.8, linestyle=":")
    ax.set(title=f"rate {row.value:g}", xlabel="epoch", ylim=(0, 102), xlim=(1, None))
    _clean(ax)


def _draw_activations(axes: np.ndarray, pair: list[list[Run]]) -> None:
    samples = [[np.concatenate([getattr(run, when).ravel() for run in runs]) for when in ("before", "after")] for runs in pair]
    edge = np.percentile(np.abs(samples[0][1]), 99)
    bins = np.linspace(-edge, edge, 81)
    for ax, (before, after), color, name in zip(axes, samples, COLOURS, NAMES, strict=True):
        ax.hist(before, bins, density=True, color="0.8", label=f"before training, s.d. {before.std():.1f}")
        ax.hist(after, bins, density=True, histtype="step", color=color, linewidth=2, label=f"after, s.d. {after.std():.1f}")
        ax.set(title=name, xlabel="activation", yticks=[])
        ax.legend(frameon=False, loc="upper left")
        _clean(ax)


def _draw_scales(ax: Axes, network: str, rows: list[Row]) -> None:
    scales = [row.value for row in rows]
    for runs_by_scale, color in zip(([r.without for r in rows], [r.normalized for r in rows]), COLOURS, strict=True):
        finals = 100 * np.array([[run.accuracy[-1] for run in runs] for runs in runs_by_scale])
        ax.plot(scales, finals, color=color, linewidth=0.8, alpha=0.4)
        ax.plot(scales, finals.mean(axis=1), color=color, linewidth=3, marker="o")
    ax.set_xscale("log")
    ax.set_xticks(scales, [f"{scale:g}" for scale in scales])
    ax.set_xticks([], minor=True)
    ax.set(title=f"{network} network", xlabel="initial weights: He normal, times", ylim=(0, 102))
    _clean(ax)
