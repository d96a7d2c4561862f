"""python asv_benchmarks/peers/accuracy.py: how many digits of y survive, beside NumPy and, when it is installed,
PyTorch.

16,384 float32 values a channel in 4 channels, gamma 1, beta 0. The reference is computed in long double with two passes
from the exact float32 values. Errors are in units u = 2**-24 * max|y| of the channel: 0.5 to 1 is correctly rounded,
16,777,216 means that no digit is right. A Markdown table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import numpy as np
from asv_shared import error, reference

import nbnorm

EPS = 1e-5
Run = Callable[[np.ndarray], np.ndarray]


def cases() -> Iterator[tuple[str, np.ndarray]]:
    """Name and x, shape (16, 4, 1024), float32."""
    noise = np.random.default_rng(0).standard_normal((16, 4, 1024))
    for mean in (0.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7):
        yield f"mean {mean:g}, std 1", (noise + mean).astype(np.float32)
    yield "±3e38", np.where(noise > 0, 3e38, -3e38).astype(np.float32)
    yield "denormal, 1e-40", (noise * 1e-40).astype(np.float32)
    outlier = noise.astype(np.float32)
    outlier[0, :, 0] = 1e6
    yield "one outlier of 1e6", outlier


def ours(x: np.ndarray) -> np.ndarray:
    return nbnorm.batch_norm_training(x, nbnorm.BatchNormState(x.shape[1], eps=EPS))[0]


def ours_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(nbnorm.batch_norm_training(_last(x), nbnorm.BatchNormState(4, eps=EPS), axis=-1)[0], -1, 1)


def numpy_expression(x: np.ndarray) -> np.ndarray:
    mean, var = x.mean((0, 2), keepdims=True), x.var((0, 2), keepdims=True)
    return (x - mean) / np.sqrt(var + np.float32(EPS))


def numpy_last(x: np.ndarray) -> np.ndarray:
    x = _last(x)
    y = (x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + np.float32(EPS))
    return np.moveaxis(y, -1, 1)


def torch_systems() -> dict[str, Run]:
    try:
        import torch
    except ImportError:
        print("torch is not installed: its columns are left out\n", file=sys.stderr)
        return {}

    def first(x: np.ndarray) -> np.ndarray:
        return torch.nn.functional.batch_norm(torch.from_numpy(x), None, None, training=True, eps=EPS).numpy()

    def last(x: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(x[..., None]).contiguous(memory_format=torch.channels_last)
        return torch.nn.functional.batch_norm(image, None, None, training=True, eps=EPS).numpy()[..., 0]

    return {f"torch {torch.__version__} NCHW": first, "torch NHWC": last}


def _last(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def main() -> None:
    """Print the tables."""
    systems: dict[str, Run] = {"nbnorm NCHW": ours, "nbnorm NHWC": ours_last}
    systems |= {"NumPy NCHW": numpy_expression, "NumPy NHWC": numpy_last, **torch_systems()}
    print(f"| x | {' | '.join(systems)} |\n|---|{'---|' * len(systems)}")
    with np.errstate(all="ignore"):
        for name, x in cases():
            expected, _ = reference(x, x, 1, EPS)
            errors = [error(run(x), expected, 1) for run in systems.values()]
            print(f"| {name} | {' | '.join(f'{e:.2g}' for e in errors)} |")
        print(f"\n| constant channel | {' | '.join(systems)} |\n|---|{'---|' * len(systems)}")
        for value in (0.1, 14.62, 1e4 + 0.1, 1e8):
            x = np.full((16, 4, 1024), value, np.float32)
            found = [np.abs(run(x)).max() for run in systems.values()]
            print(f"| largest abs(y) of {value:g}, exactly 0 | {' | '.join(f'{v:.2g}' for v in found)} |")


if __name__ == "__main__":
    main()
