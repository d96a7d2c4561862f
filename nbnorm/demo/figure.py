"""The figure of the demo: training curves, activations of a deep layer, accuracy by initial weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nbnorm.demo.networks import NETWORKS, Results
from nbnorm.demo.report import TARGET, Pair, Rows, initialization_rate, pair, rows_by_rate, rows_by_scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

# Without and with normalization, in this order everywhere; colours that the colour-blind can tell apart.
COLORS = ("#d55e00", "#0072b2")
NAMES = ("without batch normalization", "with batch normalization")
DEEP = "multi-layer"  # the network whose deep layer is shown
PERCENT_TICKS = (0, 25, 50, 75, 100 * TARGET)


def save_figure(results: Results, out: Path) -> None:
    """Draw `results` and write the figure to `out`."""
    # A Figure of its own instead of pyplot: no window, no backend chosen for the rest of the process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(15, 10.5), layout="constrained")
    FigureCanvasAgg(figure)
    *strips, bottom = figure.subfigures(len(NETWORKS) + 1, 1, squeeze=False, hspace=0.03)[:, 0]
    for network, strip in zip(NETWORKS, strips, strict=True):
        _headline(strip, f"{network.capitalize()} network: test accuracy (%) by epoch and learning rate")
        rows = rows_by_rate(results, network)
        for ax, (rate, runs) in zip(strip.subplots(1, len(rows), sharey=True), rows, strict=True):
            _draw_curves(ax, rate, runs)
    left, right = bottom.subfigures(1, 2, squeeze=False, wspace=0.02)[0]
    rate = initialization_rate(results)
    _headline(left, f"Activations of a deep layer ({DEEP} network, rate {rate:g})")
    _draw_activations(left.subplots(1, 2, sharex=True, sharey=True), pair(results, DEEP, rate, 1.0))
    _headline(right, f"Final test accuracy (%) by initial weights, rate {rate:g}")
    for ax, network in zip(right.subplots(1, 2, sharey=True), NETWORKS, strict=True):
        _draw_scales(ax, network, rows_by_scale(results, network))
    thick = [Line2D([], [], color=color, linewidth=3) for color in COLORS]
    thin = Line2D([], [], color="0.6", linewidth=0.8)
    figure.legend(
        [*thick, thin],
        [*NAMES, "thin: single seeds, thick: their mean"],
        loc="outside upper center",
        ncols=3,
        frameon=False,
        fontsize=13,
    )
    figure.savefig(out, dpi=100)


def _headline(subfigure: SubFigure, text: str) -> None:
    subfigure.suptitle(text, x=0.01, ha="left", fontsize=13, fontweight="bold")


def _draw_curves(ax: Axes, rate: float, runs: Pair) -> None:
    notes = []
    for arm, color, name in zip(runs, COLORS, NAMES, strict=True):
        curves = np.array([run.accuracy for run in arm])
        _draw_seeds_and_mean(ax, np.arange(1, curves.shape[1] + 1), curves, color)
        if diverged := sum(run.diverged for run in arm):
            notes.append(f"{name.split()[0]}: {diverged} of {len(arm)} diverged")
    ax.text(0.97, 0.16, "\n".join(notes), transform=ax.transAxes, ha="right", color="0.3")
    ax.set(title=f"rate {rate:g}", xlabel="epoch", xlim=(1, None))
    ax.locator_params(axis="x", integer=True)
    _percent_axis(ax)


def _draw_scales(ax: Axes, network: str, rows: Rows) -> None:
    scales = np.array([scale for scale, _ in rows])
    for arm, color in enumerate(COLORS):
        finals = np.array([[run.accuracy[-1] for run in runs[arm]] for _, runs in rows]).T
        _draw_seeds_and_mean(ax, scales, finals, color, marker="o")
    ax.set_xscale("log")
    ax.set_xticks(scales, [f"{scale:g}" for scale in scales])
    ax.set_xticks([], minor=True)
    ax.set(title=f"{network} network", xlabel="factor of the initial weights (1: He normal)")
    _percent_axis(ax)


def _draw_seeds_and_mean(ax: Axes, x: np.ndarray, curves: np.ndarray, color: str, marker: str = "") -> None:
    ax.plot(x, 100 * curves.T, color=color, linewidth=0.8, alpha=0.4)
    ax.plot(x, 100 * curves.mean(axis=0), color=color, linewidth=3, marker=marker)


def _percent_axis(ax: Axes) -> None:
    ax.set_ylim(0, 103)
    ax.set_yticks(PERCENT_TICKS)
    ax.grid(color="0.9")
    ax.spines[["top", "right"]].set_visible(False)


def _draw_activations(axes: np.ndarray, runs: Pair) -> None:
    # Diverged runs have no distribution to show. float64, because squares of large values overflow float32.
    kept = [[run for run in arm if not run.diverged] for arm in runs]
    before, after = (
        [np.array([getattr(run, name) for run in arm], np.float64).ravel() for arm in kept]
        for name in ("before", "after")
    )
    edge = max((np.percentile(np.abs(values), 99) for values in after if values.size), default=1.0)
    bins = np.linspace(-edge, edge, 81)
    for arm, (ax, color, name) in enumerate(zip(axes, COLORS, NAMES, strict=True)):
        if kept[arm]:
            label = f"before training (std {before[arm].std():.1f})"
            ax.hist(before[arm], bins, density=True, color="0.8", label=label)
            label = f"after training (std {after[arm].std():.1f})"
            ax.hist(after[arm], bins, density=True, histtype="step", color=color, linewidth=2, label=label)
            ax.legend(frameon=False, loc="upper left", borderpad=0)
        else:
            ax.text(0.5, 0.5, "every run diverged", transform=ax.transAxes, ha="center", color="0.3")
        ax.set_title(name, color=color)
        ax.set(xlabel="value that enters the last ReLU", yticks=[])
        ax.spines[["top", "right", "left"]].set_visible(False)
    axes[0].set_ylim(top=1.35 * axes[0].get_ylim()[1])  # room for the labels
