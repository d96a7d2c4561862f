"""python asv_benchmarks/peers/double_backward.py: the double backward pass beside PyTorch's, and forward mode.

float32, two threads, calls in turn, fresh outputs. The least of wall and of processor time (of all threads), which
neighbours disturb less. A Markdown table.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import torch

import nbnorm

SHAPES = {"channels first": ((32, 64, 56, 56), 1), "small images": ((64, 512, 7, 7), 1), "a table": ((65536, 64), 1)}
Call = Callable[[], object]


def calls(shape: tuple[int, ...], axis: int) -> dict[str, Call]:
    """Each with ddx only, as in a gradient penalty."""
    rng = np.random.default_rng(0)
    x, dy, ddx = (rng.standard_normal(shape, dtype=np.float32) for _ in range(3))
    _, saved = nbnorm.batch_norm_training(x, nbnorm.BatchNormState(shape[axis]), axis=axis)

    of_x, of_dy, of_ddx = (torch.from_numpy(array.copy()) for array in (x, dy, ddx))
    weight, bias = torch.ones(shape[axis], requires_grad=True), torch.zeros(shape[axis], requires_grad=True)
    of_x.requires_grad_(), of_dy.requires_grad_()
    y = torch.nn.functional.batch_norm(of_x, None, None, weight, bias, training=True)
    (dx,) = torch.autograd.grad(y, (of_x,), of_dy, create_graph=True)
    return {
        "double backward": lambda: nbnorm.batch_norm_double_backward(ddx, None, None, dy, saved),
        "PyTorch": lambda: torch.autograd.grad(dx, (of_dy, of_x, weight), of_ddx, retain_graph=True),
        "forward mode": lambda: nbnorm.batch_norm_jvp(ddx, None, None, saved),
        "backward": lambda: nbnorm.batch_norm_backward(dy, saved),
    }


def timed(call: Call) -> tuple[float, float]:
    """Wall and processor time, ms."""
    wall, own = time.perf_counter(), time.process_time()
    call()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - own)


def main(rounds: int) -> None:
    nbnorm.set_num_threads(2)
    torch.set_num_threads(2)
    print(
        "| ms: wall, processor |",
        *(f" {name} |" for name in ("double backward", "PyTorch", "forward mode", "backward")),
    )
    print("|---" * 5 + "|")
    for name, (shape, axis) in SHAPES.items():
        found = calls(shape, axis)
        for call in found.values():  # compile, and agree on the memory
            call()
        least = dict.fromkeys(found, (np.inf, np.inf))
        for _ in range(rounds):
            for what, call in found.items():
                least[what] = tuple(map(min, least[what], timed(call)))
        cells = (f" {wall:.2f}, {own:.1f} |" for wall, own in least.values())
        print(f"| {name} {shape} |", *cells, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
