"""Compile the usual kernels into the cache, so that no first call has to wait, and say what each took."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

DTYPES = ("float16", "bfloat16", "float32", "float64")
# A shape for every way through the kernels; how large arrays are, and so on how many threads, is no way of its own.
SHAPES = {
    "channels first, small images": (4, 4, 100),
    "channels first, one channel of 5 million": (1, 1, 5_000_000),
    "channels last, tables": (64, 32),
    "long tables": (20_000, 32),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The dtypes to compile for."""
    parser.add_argument(
        "dtypes", nargs="*", metavar="DTYPE", default=["float32"], help=f"of {', '.join(DTYPES)}; default float32"
    )


def run(args: argparse.Namespace) -> int:
    """Call the usual kernels once; 2 when a dtype is unknown."""
    unknown = set(args.dtypes) - set(DTYPES)
    if unknown:
        return _wrong(f"unknown dtype {', '.join(sorted(unknown))}; expected some of {', '.join(DTYPES)}")
    if "bfloat16" in args.dtypes:
        try:
            import ml_dtypes  # noqa: F401  NumPy knows it then
        except ImportError as error:
            return _wrong(f"{error}; bfloat16 needs: pip install ml_dtypes")
    start = time.perf_counter()
    import nbnorm

    for dtype in args.dtypes:
        for what, shape in SHAPES.items():
            x, state = np.ones(shape, dtype), nbnorm.BatchNormState(shape[1])
            print(f"{dtype:<9}{what:<44}", end="", flush=True)
            with _timed("training"):
                _, saved = nbnorm.batch_norm_training(x, state)
            with _timed("backward"):
                nbnorm.batch_norm_backward(x, saved)
            with _timed("inference"):
                nbnorm.batch_norm_inference(x, state)
            with _timed("statistics"):
                state.update(nbnorm.batch_stats(x))
            print()
    print(f"{time.perf_counter() - start:.1f} s in all; another run takes what loading them takes")
    return 0


def _wrong(text: str) -> int:
    """The exit code of a command that cannot do what it is asked for."""
    print(text, file=sys.stderr)
    return 2


@contextmanager
def _timed(what: str) -> Iterator[None]:
    """Says at once what is being compiled, and afterwards how long it took."""
    start = time.perf_counter()
    print(f"{what} ", end="", flush=True)
    yield
    print(f"{time.perf_counter() - start:5.1f} s   ", end="", flush=True)
