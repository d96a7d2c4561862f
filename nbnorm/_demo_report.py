"""What the demo prints: tables, and which of the claims the numbers bear out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nbnorm._demo_networks import NETWORKS, Results, Run, Setting

TARGET = 0.95


class Row(NamedTuple):
    """The runs at one rate, or at one factor of the initial weights."""

    value: float
    without: list[Run]
    normalized: list[Run]


def rows_by_rate(results: Results, network: str) -> list[Row]:
    """A row per learning rate, at the usual initial weights."""
    rates = sorted({setting.rate for setting in results})
    return [Row(rate, *both(results, network, rate, 1.0)) for rate in rates]


def rows_by_scale(results: Results, network: str) -> list[Row]:
    """A row per factor of the initial weights, at the one rate where it was varied."""
    scales, rate = sorted({setting.scale for setting in results}), initialization_rate(results)
    return [Row(scale, *both(results, network, rate, scale)) for scale in scales]


def initialization_rate(results: Results) -> float:
    """The learning rate at which the initial weights were varied."""
    return next(setting.rate for setting in results if setting.scale != 1)


def both(results: Results, network: str, rate: float, scale: float) -> list[list[Run]]:
    """The runs without, and the runs with normalization."""
    return [results[Setting(network, rate, scale, normalized)] for normalized in (False, True)]


def epochs_to_target(run: Run) -> float:
    """Epochs until the test accuracy reaches the target, infinity when it never does."""
    return next((epoch for epoch, accuracy in enumerate(run.accuracy, 1) if accuracy >= TARGET), np.inf)


def _final(runs: list[Run]) -> list[float]:
    return [100 * run.accuracy[-1] for run in runs]


def print_report(results: Results) -> None:
    """Prints the tables of both networks, then a verdict per claim and network."""
    for network in NETWORKS:
        rows = rows_by_rate(results, network)
        seeds, epochs = len(rows[0].without), len(rows[0].without[0].accuracy)
        print(f"{network.upper()} NETWORK, {epochs} epochs, {seeds} seeds")
        _print_comparison("learning rate", rows)
        _print_comparison(f"weights times (rate {initialization_rate(results):g})", rows_by_scale(results, network))
        _print_inference(rows)
    print("DO THE CLAIMS HOLD ON THIS DATA?")
    for claim in (_faster, _larger_rates, _initialization, _inference):
        print(f"{claim.__doc__}:")
        for network in NETWORKS:
            holds, evidence = claim(results, network)
            print(f"  {network:14} {'holds' if holds else 'DOES NOT HOLD':14} {evidence}")


def _print_comparison(varied: str, rows: list[Row]) -> None:
    print(f"  {varied:24}{'test accuracy in %':44}epochs to {TARGET:.0%}")
    print(f"  {'':24}{'without BN':26}{'with BN':18}{'without BN':20}with BN")
    for value, *pair in rows:
        accuracy, epochs = zip(*[(_accuracy_cell(runs), _epochs_cell(runs)) for runs in pair], strict=True)
        print(f"  {value:<24g}{accuracy[0]:26}{accuracy[1]:18}{epochs[0]:20}{epochs[1]}")
    print()


def _print_inference(rows: list[Row]) -> None:
    print(f"  {'with BN, by':24}test accuracy in % by statistics      same digit")
    print(f"  {'learning rate':24}{'running (inference)':22}{'of the batch':16}predicted, %")
    for rate, _, runs in rows:
        batch, same = [100 * run.batch_accuracy for run in runs], [100 * run.agreement for run in runs]
        print(f"  {rate:<24g}{_spread(_final(runs)):22}{_spread(batch):16}{_spread(same)}")
    print()


def _accuracy_cell(runs: list[Run]) -> str:
    diverged = sum(run.diverged for run in runs)
    return _spread(_final(runs)) + (f" ({diverged} diverged)" if diverged else "")


def _epochs_cell(runs: list[Run]) -> str:
    reached = [epochs for run in runs if np.isfinite(epochs := epochs_to_target(run))]
    if not reached:
        return "   -"
    return _spread(reached) + (f" ({len(reached)} of {len(runs)})" if len(reached) < len(runs) else "")


def _spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation; a single value has no spread."""
    mean = f"{np.mean(values):4.1f}"
    return f"{mean} ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else mean


def _faster(results: Results, network: str) -> tuple[bool, str]:
    """Faster convergence (epochs to 95 %, each at its best rate, by more than two standard errors)"""
    rows = rows_by_rate(results, network)
    limit = len(rows[0].without[0].accuracy) + 1  # counts for a run that never gets there
    best = []
    for runs_by_rate in ([row.without for row in rows], [row.normalized for row in rows]):
        epochs = [[min(epochs_to_target(run), limit) for run in runs] for runs in runs_by_rate]
        at = int(np.argmin(np.mean(epochs, axis=1)))
        best.append((np.array(epochs[at]), f"{_epochs_cell(runs_by_rate[at]).strip()} at rate {rows[at].value:g}"))
    (without, said_without), (normalized, said_normalized) = best
    gain = without - normalized  # seed by seed
    error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else 0.0
    return bool(gain.mean() > 2 * error), f"{said_normalized} with BN, {said_without} without"


def _larger_rates(results: Results, network: str) -> tuple[bool, str]:
    """Larger usable learning rates (the largest at which every seed reaches 95 %)"""
    without, normalized = 0.0, 0.0
    for row in rows_by_rate(results, network):
        without = row.value if _all_reach(row.without) else without
        normalized = row.value if _all_reach(row.normalized) else normalized
    return normalized > without, f"{normalized or 'none'} with BN, {without or 'none'} without"


def _all_reach(runs: list[Run]) -> bool:
    return all(np.isfinite(epochs_to_target(run)) for run in runs)


def _initialization(results: Results, network: str) -> tuple[bool, str]:
    """Less dependence on initialization (range of the accuracy over the factors of the weights)"""
    ranges = []
    for runs_by_scale in list(zip(*rows_by_scale(results, network), strict=True))[1:]:
        means = [np.mean(_final(runs)) for runs in runs_by_scale]
        ranges.append((min(means), max(means)))
    (low, high), (low_bn, high_bn) = ranges
    said = f"{low_bn:.1f} to {high_bn:.1f} % with BN, {low:.1f} to {high:.1f} % without"
    return bool(high_bn - low_bn < high - low), said


def _inference(results: Results, network: str) -> tuple[bool, str]:
    """Inference with running statistics agrees with training (accuracy within 1 point at every rate)"""
    gaps = {}
    for rate, _, runs in rows_by_rate(results, network):
        gaps[rate] = np.mean(_final(runs)) - 100 * np.mean([run.batch_accuracy for run in runs])
    rate = max(gaps, key=lambda rate: abs(gaps[rate]))
    same = 100 * np.mean([run.agreement for row in rows_by_rate(results, network) for run in row.normalized])
    return bool(abs(gaps[rate]) < 1), f"largest gap {gaps[rate]:+.1f} points, at rate {rate:g}; same digit {same:.1f} %"
