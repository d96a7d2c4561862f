"""``python -m nbnorm demo``: what batch normalization does, measured on scikit-learn's handwritten digits.

Trains a multi-layer and a convolutional network with and without `nbnorm.BatchNorm`, prints tables, says
which of the usual claims the numbers bear out, and saves one figure.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

import nbnorm
from nbnorm.demo.figure import save_figure
from nbnorm.demo.networks import NETWORKS, Setting
from nbnorm.demo.report import print_report
from nbnorm.demo.training import BATCH, Digits, Results, epoch_seconds, train

INIT_RATE = 0.3  # where the initialization is varied: a rate that suits the networks without normalization


class Plan(NamedTuple):
    """How much is trained."""

    seeds: int
    rates: tuple[float, ...]
    scales: tuple[float, ...]  # factors of the initial weights
    epochs: dict[str, int]
    seconds: float  # no further seed is begun that would end later than this

    def settings(self) -> list[Setting]:
        """Every rate with the usual weights, every factor of these at one rate; few images, shifting images."""
        pairs = [(rate, 1.0) for rate in self.rates]
        pairs += [(INIT_RATE, scale) for scale in self.scales if scale != 1.0]
        settings = [Setting(name, *pair, bn) for name in NETWORKS for pair in pairs for bn in (False, True)]
        for name in NETWORKS:
            plain, normalized = (Setting(name, INIT_RATE, 1.0, bn) for bn in (False, True))
            settings += [
                plain._replace(few=True),
                normalized._replace(few=True),
                plain._replace(few=True, dropout=True),
            ]
            settings += [plain._replace(shifting=True), normalized._replace(shifting=True)]
        return settings


FULL = Plan(
    seeds=4,
    rates=(0.03, 0.1, 0.3, 1.0, 3.0),
    scales=(0.1, 0.3, 1.0, 3.0, 10.0),
    epochs={"multi-layer": 20, "convolutional": 12},
    seconds=75,
)
QUICK = Plan(
    seeds=2,
    rates=(0.1, 0.3, 1.0),
    scales=(0.1, 1.0),
    epochs={"multi-layer": 8, "convolutional": 4},
    seconds=35,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the demo to `parser`."""
    parser.add_argument(
        "--quick", action="store_true", help="fewer seeds, rates and epochs: about 15 s once kernels are compiled"
    )
    parser.add_argument("--seed", type=_seed, default=0, metavar="INT", help="the first seed (default 0)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("nbnorm-demo.png"),
        metavar="PATH",
        help="where the figure goes (default nbnorm-demo.png)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo; return the exit code."""
    start = time.perf_counter()
    try:
        for package in ("matplotlib", "sklearn", "tqdm"):
            importlib.import_module(package)
        out = _check_out(args.out)
    except ImportError as error:
        return _fail(f"{error}; the demo needs: pip install scikit-learn matplotlib tqdm")
    except OSError as error:
        return _fail(f"cannot write {args.out}: {error.strerror}")
    except ValueError as error:
        return _fail(f"--out: {error}")

    plan = QUICK if args.quick else FULL
    digits = load_digits_split()
    print(
        f"nbnorm {nbnorm.__version__} demo: {len(digits.x_train)} handwritten digits to train, "
        f"{len(digits.x_test)} to test\n"
        f"Plain SGD, batches of {BATCH}; the same initial weights and batches with and without "
        "batch normalization (BN).\n"
        "Figures are mean ± standard deviation over seeds; (2 of 5): so many seeds reach it; -: none does.\n"
        "Diverged: no longer finite. Weights x: factor of the usual (He-normal) initial weights."
    )
    with _one_thread():
        _compile_kernels()
        print_epoch_times(digits)
        results = train_all(plan, digits, args.seed, start)
    print_report(results)
    save_figure(results, out)
    print(f"\nFigure: {out.resolve()}\nTotal time: {time.perf_counter() - start:.0f} s")
    return 0


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer, 0 or more, got {text!r}")
    return int(text)


def _fail(message: str) -> int:
    print(f"nbnorm demo: {message}", file=sys.stderr)
    return 2


def _check_out(out: Path) -> Path:
    """Try `out` now, so that a mistake costs no training; return it with a suffix."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if out.is_dir():
        raise ValueError(f"{out} is a folder, expected a file name")
    out = out if out.suffix else out.with_suffix(".png")
    kinds = FigureCanvasAgg.get_supported_filetypes()
    if out.suffix[1:].lower() not in kinds:
        raise ValueError(f"{out} ends in {out.suffix}; expected one of {', '.join(sorted(kinds))}")
    is_new = not out.exists()
    with out.open("ab"):
        pass
    if is_new:
        out.unlink()
    return out


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep BLAS and Numba to one thread.

    Arrays this small gain nothing from a second one; on a busy machine waiting for it takes most of the time.
    """
    import numba
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        numba.set_num_threads(threads)


def load_digits_split() -> Digits:
    """Load the handwritten digits, pixels in [-1, 1]; a fixed, stratified quarter is the test data."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, t = load_digits(return_X_y=True)
    x = (x / 8 - 1).astype(np.float32)
    return Digits(*train_test_split(x, t, test_size=0.25, stratify=t, random_state=0))


def _compile_kernels() -> None:
    start = time.perf_counter()
    x = np.zeros((BATCH, 4), np.float32)
    for activation in (None, "relu"):
        bn = nbnorm.BatchNorm(4, axis=-1, activation=activation)
        bn(x)
        bn.backward(x)
    bn.eval()
    bn(x)
    print(f"Kernels compiled, or loaded from the cache, in {time.perf_counter() - start:.1f} s", flush=True)


def print_epoch_times(digits: Digits) -> None:
    """Print what an epoch takes with the ReLU in the batch norm and behind it."""
    print('An epoch of training with BN, ms, the least of 3: with activation="relu", with np.maximum behind it')
    for name in NETWORKS:
        fused = Setting(name, 0.1, 1.0, normalized=True)
        within, behind = (1000 * s for s in epoch_seconds([fused, fused._replace(fused=False)], digits))
        print(f"  {name:20}{within:<8.1f}{behind:.1f}")
    print(flush=True)


def train_all(plan: Plan, digits: Digits, first_seed: int, start: float) -> Results:
    """Train every setting once per seed, as many seeds as the time allows."""
    from tqdm import tqdm

    settings = plan.settings()
    results: Results = {setting: [] for setting in settings}
    for count in range(plan.seeds):
        seed = first_seed + count
        seed_start = time.perf_counter()
        layout = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
        # disable=None: no bar where it would only fill a log
        with tqdm(total=len(settings), desc=f"seed {seed}", bar_format=layout, disable=None) as bar:
            for setting in settings:
                with_or_without = "with" if setting.normalized else "without"
                bar.set_postfix_str(f"{setting.network}, rate {setting.rate:g}, {with_or_without} BN")
                epochs = plan.epochs[setting.network]
                results[setting].append(train(setting, digits, epochs=epochs, seed=seed))
                bar.update()
        now = time.perf_counter()
        if count + 1 < plan.seeds and now - start + (now - seed_start) > plan.seconds:
            print(f"{count + 1} of {plan.seeds} seeds must do: compiling took some of the time, or the machine is busy")
            break
    return results
