"""What the demo prints: tables, and which of the claims the numbers bear out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nbnorm.demo.networks import DROPOUT, NETWORKS, Setting
from nbnorm.demo.training import FEW, Results, Run

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


def variant(results: Results, network: str, **changes: bool) -> Pair:
    """The runs with few or shifting images, at the usual initial weights."""
    usual = Setting(network, initialization_rate(results), 1.0, normalized=False, **changes)
    return Pair(results[usual], results[usual._replace(normalized=True)])


def dropout(results: Results, network: str) -> list[Run]:
    """The runs on few images without normalization, with dropout."""
    return results[Setting(network, initialization_rate(results), 1.0, normalized=False, dropout=True, few=True)]


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
        _print_gradients(scale_column, rows_by_scale(results, network))
        _print_variants(results, network)
    print("WHICH CLAIMS ABOUT BATCH NORMALIZATION HOLD ON THIS DATA? (Results about the method; each was measured.)")
    for judge, claim in CLAIMS.items():
        print(f"{claim}:")
        for network in NETWORKS:
            holds, evidence = judge(results, network)
            print(f"  {network:15}{'holds' if holds else 'not here':11}{evidence}")


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


def _print_gradients(varied: str, rows: Rows) -> None:
    print(f"  {'gradient norm,':20}{'before the training':40}after it")
    print(f"  {'first layer / last':20}" + f"{'without BN':24}{'with BN':16}" + f"{'without BN':20}with BN")
    print(f"  {varied}")
    for value, runs in rows:
        cells = [_ratio(arm, moment) for moment in ("gradients_before", "gradients_after") for arm in runs]
        print(f"  {value:<20g}{cells[0]:<24.2g}{cells[1]:<16.2g}{cells[2]:<20.2g}{cells[3]:.2g}")
    print()


def _print_variants(results: Results, network: str) -> None:
    few, shifting = (variant(results, network, **{name: True}) for name in ("few", "shifting"))
    arms = {"without BN": few.without, "with BN": few.normalized, f"dropout {DROPOUT:g}": dropout(results, network)}
    print(f"  {f'{FEW} images':20}{'training accuracy in %':24}{'test accuracy':16}gap")
    for name, runs in arms.items():
        print(f"  {name:20}{_spread(_final_of_training(runs)):24}{_spread(_final(runs)):16}{_spread(_gaps(runs))}")
    running, batch = _spread(_final(shifting.normalized)), _spread(_final_by_batch(shifting.normalized))
    print(f"\n  {'shifting images':20}{'without BN':24}{'with BN, running':16}    of the batch")
    print(f"  {'test accuracy in %':20}{_spread(_final(shifting.without)):24}{running:20}{batch}\n")


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


def _final_of_training(runs: list[Run]) -> list[float]:
    return [100 * run.train_accuracy for run in runs]


def _gaps(runs: list[Run]) -> list[float]:
    return [training - test for training, test in zip(_final_of_training(runs), _final(runs), strict=True)]


def _ratio(runs: list[Run], moment: str) -> float:
    """How much larger the gradient of the first layer is than that of the last: the geometric mean over seeds.

    0 where a gradient has vanished in every digit, infinity where it is no longer finite.
    """
    with np.errstate(all="ignore"):
        norms = np.array([getattr(run, moment) for run in runs])
        ratio = np.exp(np.mean(np.log(norms[:, 0]) - np.log(norms[:, -1])))
    return float(ratio) if np.isfinite(norms).all() and norms[:, -1].all() else np.inf


def _epochs_to_target(run: Run) -> float:
    """Epochs until the test accuracy reaches the target, infinity when it never does."""
    return next((epoch for epoch, accuracy in enumerate(run.accuracy, 1) if accuracy >= TARGET), np.inf)


def _faster(results: Results, network: str) -> tuple[bool, str]:
    """Compare epochs to the target, each at its best rate, seed by seed."""
    rows = rows_by_rate(results, network)
    without, said_without = _fastest([(rate, runs.without) for rate, runs in rows])
    normalized, said_normalized = _fastest([(rate, runs.normalized) for rate, runs in rows])
    return _is_more(without - normalized), f"{said_normalized} with BN, {said_without} without"


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
    rate, (_, runs) = rows[worst]
    same = 100 * np.mean([run.agreement for run in runs])
    evidence = f"largest gap {gaps[worst]:+.1f} points, at rate {rate:g}, where {same:.1f} % get the same digit"
    return bool(abs(gaps[worst]) < 1), evidence


def _gradients(results: Results, network: str) -> tuple[bool, str]:
    """Compare how far the gradient norms of the first and the last layer are apart, over all initial weights."""
    ratios = [[_ratio(arm, "gradients_before") for arm in runs] for _, runs in rows_by_scale(results, network)]
    without, normalized = zip(*ratios, strict=True)
    with np.errstate(divide="ignore"):
        holds = np.abs(np.log(normalized)).max() < np.abs(np.log(without)).max()
    said = [f"{min(arm):.2g} to {max(arm):.2g}" for arm in (normalized, without)]
    return bool(holds), f"{said[0]} with BN, {said[1]} without"


def _regularization(results: Results, network: str) -> tuple[bool, str]:
    """Compare the gap between training and test accuracy on few images, seed by seed."""
    few = variant(results, network, few=True)
    without, normalized, dropped = (np.array(_gaps(runs)) for runs in (*few, dropout(results, network)))
    said = (
        f"gap {normalized.mean():.1f} points with BN, {without.mean():.1f} without, {dropped.mean():.1f} with dropout"
    )
    return _is_more(without - normalized), said


def _shifting(results: Results, network: str) -> tuple[bool, str]:
    """Compare the accuracy on images whose brightness and contrast differ from batch to batch, seed by seed."""
    without, normalized = variant(results, network, shifting=True)
    gain = np.array(_final(normalized)) - _final(without)
    by_batch = np.mean(_final_by_batch(normalized))
    said = f"{np.mean(_final(normalized)):.1f} % with BN ({by_batch:.1f} by statistics of the batch), "
    return _is_more(gain), said + f"{np.mean(_final(without)):.1f} without"


def _is_more(gain: np.ndarray) -> bool:
    """Whether a gain, seed by seed, is one by more than two standard errors."""
    error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else 0.0
    return bool(gain.mean() > 2 * error)


CLAIMS = {
    _faster: "Faster convergence (epochs to 95 %, each at its best rate, by more than two standard errors)",
    _larger_rates: "Larger usable learning rates (the largest at which every seed reaches 95 %)",
    _initialization: "Less dependence on initialization (range of mean accuracy over factors of the weights)",
    _inference: "Inference by running statistics agrees with training (mean accuracy within 1 point)",
    _gradients: "Steadier gradients (norm in the first layer over that in the last, over factors of the weights)",
    _regularization: f"Regularization (gap of training and test accuracy, {FEW} images, by over two standard errors)",
    _shifting: "Robustness to shifting inputs (accuracy where brightness and contrast differ from batch to batch)",
}
