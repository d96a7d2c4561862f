"""The figure of the demo: training curves, activations, accuracy by initial weights, gradients, and other images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nbnorm.demo.networks import DROPOUT, NETWORKS
from nbnorm.demo.report import (
    TARGET,
    Pair,
    Rows,
    dropout,
    initialization_rate,
    pair,
    rows_by_rate,
    rows_by_scale,
    variant,
)
from nbnorm.demo.training import FEW, Results, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

# Without and with normalization, in this order everywhere; colours that the colour-blind can tell apart.
COLORS = ("#d55e00", "#0072b2")
OF_DROPOUT = "#009e73"
NAMES = ("without batch normalization", "with batch normalization")
DEEP = "multi-layer"  # the network whose deep layer is shown
PERCENT_TICKS = (0, 25, 50, 75, 100 * TARGET)


def save_figure(results: Results, out: Path) -> None:
    """Draw `results` and write the figure to `out`."""
    # A Figure of its own instead of pyplot: no window, no backend chosen for the rest of the process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(15, 14), layout="constrained")
    FigureCanvasAgg(figure)
    *strips, middle, bottom = figure.subfigures(len(NETWORKS) + 2, 1, squeeze=False, hspace=0.03)[:, 0]
    for network, strip in zip(NETWORKS, strips, strict=True):
        _headline(strip, f"{network.capitalize()} network: test accuracy (%) by epoch and learning rate")
        rows = rows_by_rate(results, network)
        for ax, (rate, runs) in zip(strip.subplots(1, len(rows), sharey=True), rows, strict=True):
            _draw_curves(ax, rate, runs)
    left, right = middle.subfigures(1, 2, squeeze=False, wspace=0.02)[0]
    rate = initialization_rate(results)
    _headline(left, f"Activations of a deep layer ({DEEP} network, rate {rate:g})")
    _draw_activations(left.subplots(1, 2, sharex=True, sharey=True), pair(results, DEEP, rate, 1.0))
    _headline(right, f"Final test accuracy (%) by initial weights, rate {rate:g}")
    for ax, network in zip(right.subplots(1, 2, sharey=True), NETWORKS, strict=True):
        _draw_scales(ax, network, rows_by_scale(results, network))
    left, right = bottom.subfigures(1, 2, squeeze=False, wspace=0.02)[0]
    _headline(left, f"Norm of the gradient by layer, before training ({DEEP} network)")
    rows = rows_by_scale(results, DEEP)
    for ax, (scale, runs) in zip(left.subplots(1, len(rows), sharey=True), rows, strict=True):
        _draw_gradients(ax, scale, runs)
    _headline(right, "Accuracy (%) on other images")
    few, shifting = right.subplots(1, 2, sharey=True)
    _draw_few(few, results)
    _draw_shifting(shifting, results)
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


def _draw_gradients(ax: Axes, scale: float, runs: Pair) -> None:
    for arm, color in zip(runs, COLORS, strict=True):
        norms = np.array([run.gradients_before for run in arm])
        layers = np.arange(1, norms.shape[1] + 1)
        ax.plot(layers, norms.T, color=color, linewidth=0.8, alpha=0.4)
        with np.errstate(divide="ignore"):  # a gradient may have vanished in every digit
            ax.plot(layers, np.exp(np.log(norms).mean(axis=0)), color=color, linewidth=3)
    ax.set(title=f"weights x {scale:g}", xlabel="layer", yscale="log", xticks=layers)
    ax.grid(color="0.9")
    ax.spines[["top", "right"]].set_visible(False)


def _draw_few(ax: Axes, results: Results) -> None:
    """An open mark is the accuracy on the training images, a full one that on the test images."""
    for place, network in enumerate(NETWORKS):
        arms = [*variant(results, network, few=True), dropout(results, network)]
        for shift, runs, color in zip((-0.2, 0, 0.2), arms, (*COLORS, OF_DROPOUT), strict=True):
            ends = 100 * np.array([_mean_accuracy(runs), np.mean([run.train_accuracy for run in runs])])
            ax.plot([place + shift] * 2, ends, color=color, linewidth=3)
            ax.plot(place + shift, ends[0], "o", color=color, markersize=8)
            ax.plot(place + shift, ends[1], "o", color=color, markersize=8, markerfacecolor="white")
    _networks_axis(ax, f"trained on {FEW} images", f"open: training, full: test; green: dropout {DROPOUT:g}")


def _draw_shifting(ax: Axes, results: Results) -> None:
    for place, network in enumerate(NETWORKS):
        runs = variant(results, network, shifting=True)
        for shift, arm, color in zip((-0.15, 0.15), runs, COLORS, strict=True):
            ax.bar(place + shift, 100 * _mean_accuracy(arm), 0.28, color=color)
        by_batch = 100 * np.mean([run.batch_accuracy for run in runs.normalized])
        ax.plot([place + 0.01, place + 0.29], [by_batch] * 2, color=COLORS[1], linestyle=":", linewidth=2)
    _networks_axis(ax, "brightness and contrast differ by batch", "dotted: by the statistics of the batch")


def _mean_accuracy(runs: list[Run]) -> float:
    return float(np.mean([run.accuracy[-1] for run in runs]))


def _networks_axis(ax: Axes, title: str, note: str) -> None:
    ax.set_xticks(range(len(NETWORKS)), list(NETWORKS))
    ax.set(title=title, xlabel=note, xlim=(-0.5, len(NETWORKS) - 0.5))
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
