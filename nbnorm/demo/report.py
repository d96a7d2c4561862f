"""What the demo prints: tables, and which of the claims the numbers bear out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nbnorm.demo.networks import NETWORKS, Results, Run, Setting

TARGET = 0.95


class Pair(NamedTuple):
    """The runs without and with normalization, in the same order of seeds."""

    without: list[Run]
    normalized: list[Run]


Rows = list[tuple[float, Pair]]  # by learning rate, or by factor of the initial weights


def rows_by_rate(results: Results, network: str) -> Rows:
    """A row per learning rate, at the usual initial weights."""
    return [(rate, pair(results, network, rate, 1.0)) for rate in sorted({setting.rate for setting in results})]


def rows_by_scale(results: Results, network: str) -> Rows:
    """A row per factor of the initial weights, at the one rate where it was varied."""
    rate = initialization_rate(results)
    return [(scale, pair(results, network, rate, scale)) for scale in sorted({s.scale for s in results})]


def pair(results: Results, network: str, rate: float, scale: float) -> Pair:
    """The runs at one learning rate and factor of the initial weights."""
    return Pair(*[results[Setting(network, rate, scale, normalized)] for normalized in (False, True)])


def initialization_rate(results: Results) -> float:
    """The learning rate at which the initial weights were varied."""
    return next(setting.rate for setting in results if setting.scale != 1)


def print_report(results: Results) -> None:
    """Print the tables of both networks, then a verdict per claim and network."""
    scale_column = f"weights x, rate {initialization_rate(results):g}"
    for network in NETWORKS:
        rows = rows_by_rate(results, network)
        runs = rows[0][1].without
        print(f"{network.upper()} NETWORK, epochs: {len(runs[0].accuracy)}, seeds: {len(runs)}")
        _print_comparison("learning rate", rows)
        _print_comparison(scale_column, rows_by_scale(results, network))
        _print_inference(rows)
    print("DO THE CLAIMS HOLD ON THIS DATA?")
    for judge, claim in CLAIMS.items():
        print(f"{claim}:")
        for network in NETWORKS:
            holds, evidence = judge(results, network)
            print(f"  {network:15}{'holds' if holds else 'DOES NOT HOLD':15}{evidence}")


def _print_comparison(varied: str, rows: Rows) -> None:
    print(f"  {'':20}{'test accuracy in %':40}epochs to {100 * TARGET:g} %")
    print(f"  {varied:20}{'without BN':24}{'with BN':16}{'without BN':20}with BN")
    for value, (without, normalized) in rows:
        accuracy = f"{_accuracy_cell(without):24}{_accuracy_cell(normalized):16}"
        print(f"  {value:<20g}{accuracy}{_epochs_cell(without):20}{_epochs_cell(normalized)}")
    print()


def _print_inference(rows: Rows) -> None:
    print(f"  {'with BN':20}test accuracy in %, by statistics       same digit")
    print(f"  {'learning rate':20}{'running (inference)':24}{'of the batch':16}predicted, %")
    for rate, (_, runs) in rows:
        same = _spread([100 * run.agreement for run in runs])
        print(f"  {rate:<20g}{_spread(_final(runs)):24}{_spread(_final_by_batch(runs)):16}{same}")
    print()


def _accuracy_cell(runs: list[Run]) -> str:
    diverged = sum(run.diverged for run in runs)
    return _spread(_final(runs)) + (f" ({diverged} diverged)" if diverged else "")


def _epochs_cell(runs: list[Run]) -> str:
    reached = [epochs for epochs in map(_epochs_to_target, runs) if np.isfinite(epochs)]
    if not reached:
        return "   -"
    return _spread(reached) + (f" ({len(reached)} of {len(runs)})" if len(reached) < len(runs) else "")


def _spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation; a single value has no spread."""
    mean = f"{np.mean(values):4.1f}"
    return f"{mean} ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else mean


def _final(runs: list[Run]) -> list[float]:
    return [100 * run.accuracy[-1] for run in runs]


def _final_by_batch(runs: list[Run]) -> list[float]:
    return [100 * run.batch_accuracy for run in runs]


def _epochs_to_target(run: Run) -> float:
    """Epochs until the test accuracy reaches the target, infinity when it never does."""
    return next((epoch for epoch, accuracy in enumerate(run.accuracy, 1) if accuracy >= TARGET), np.inf)


def _faster(results: Results, network: str) -> tuple[bool, str]:
    """Compare epochs to the target, each at its best rate, seed by seed."""
    rows = rows_by_rate(results, network)
    without, said_without = _fastest([(rate, runs.without) for rate, runs in rows])
    normalized, said_normalized = _fastest([(rate, runs.normalized) for rate, runs in rows])
    gain = without - normalized  # seed by seed
    error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else 0.0
    return bool(gain.mean() > 2 * error), f"{said_normalized} with BN, {said_without} without"


def _fastest(runs_by_rate: list[tuple[float, list[Run]]]) -> tuple[np.ndarray, str]:
    """Epochs to the target per seed at the rate where their mean is least, and that in words.

    A run that never gets there counts as one epoch more than were trained.
    """
    limit = len(runs_by_rate[0][1][0].accuracy) + 1
    epochs = [[min(_epochs_to_target(run), limit) for run in runs] for _, runs in runs_by_rate]
    best = int(np.argmin(np.mean(epochs, axis=1)))
    rate, runs = runs_by_rate[best]
    return np.array(epochs[best]), f"{_epochs_cell(runs).strip()} at rate {rate:g}"


def _larger_rates(results: Results, network: str) -> tuple[bool, str]:
    """Compare the largest rates at which every seed reaches the target."""
    rows = rows_by_rate(results, network)
    without = max((rate for rate, runs in rows if _all_reach_target(runs.without)), default=0)
    normalized = max((rate for rate, runs in rows if _all_reach_target(runs.normalized)), default=0)
    said = [f"{rate:g}" if rate else "none" for rate in (normalized, without)]
    return normalized > without, f"{said[0]} with BN, {said[1]} without"


def _all_reach_target(runs: list[Run]) -> bool:
    return all(np.isfinite(_epochs_to_target(run)) for run in runs)


def _initialization(results: Results, network: str) -> tuple[bool, str]:
    """Compare how far apart the worst and the best factor of the initial weights end."""
    rows = rows_by_scale(results, network)
    without = [float(np.mean(_final(runs.without))) for _, runs in rows]
    normalized = [float(np.mean(_final(runs.normalized))) for _, runs in rows]
    evidence = " to ".join(f"{end(normalized):.1f}" for end in (min, max)) + " % with BN, "
    evidence += " to ".join(f"{end(without):.1f}" for end in (min, max)) + " % without"
    return bool(np.ptp(normalized) < np.ptp(without)), evidence


def _inference(results: Results, network: str) -> tuple[bool, str]:
    """Compare inference mode with training mode, after training, on the test data."""
    rows = rows_by_rate(results, network)
    gaps = [np.mean(_final(runs)) - np.mean(_final_by_batch(runs)) for _, (_, runs) in rows]
    worst = int(np.argmax(np.abs(gaps)))
    same = 100 * np.mean([run.agreement for _, runs in rows for run in runs.normalized])
    evidence = f"largest gap {gaps[worst]:+.1f} points, at rate {rows[worst][0]:g}; same digit for {same:.1f} %"
    return bool(abs(gaps[worst]) < 1), evidence


CLAIMS = {
    _faster: "Faster convergence (epochs to 95 %, each at its best rate, by more than two standard errors)",
    _larger_rates: "Larger usable learning rates (the largest at which every seed reaches 95 %)",
    _initialization: "Less dependence on initialization (range of mean accuracy over factors of the weights)",
    _inference: "Inference by running statistics agrees with training (mean accuracy within 1 point)",
}
