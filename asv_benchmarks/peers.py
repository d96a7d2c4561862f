"""python asv_benchmarks/peers.py: milliseconds per call beside NumPy and, when it is installed, PyTorch.

Every system runs in a process of its own, one after the other (two OpenMP runtimes in one process disturb each other),
several rounds of them; a figure is the minimum of many calls, then the median over the rounds. Outputs are fresh in
every call, float32, 2 threads unless --threads says otherwise. Nothing else should be running: a round says when
something was. `--python NAME=PATH` runs a system with another interpreter, one that has torch installed, say.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np

ROWS = {  # shape as (N, C, ...), and whether the channels come last in memory
    "(32, 64, 56, 56)": ((32, 64, 56, 56), False),
    "(32, 256, 14, 14)": ((32, 256, 14, 14), False),
    "(8, 64, 112, 112)": ((8, 64, 112, 112), False),
    "(64, 512, 7, 7)": ((64, 512, 7, 7), False),
    "(32, 3, 224, 224)": ((32, 3, 224, 224), False),
    "(2, 32, 64, 64, 64)": ((2, 32, 64, 64, 64), False),
    "(32, 64, 56, 56) last": ((32, 64, 56, 56), True),
    "(32, 256, 14, 14) last": ((32, 256, 14, 14), True),
    "(8, 64, 112, 112) last": ((8, 64, 112, 112), True),
    "(65536, 64)": ((65536, 64), False),
    "(4096, 1024)": ((4096, 1024), False),
    "(128, 512)": ((128, 512), False),
    "(128, 64)": ((128, 64), False),
}
KINDS = ("training", "backward", "inference")
Calls = dict[str, Callable[[], object]]


def data(shape: tuple[int, ...], last: bool) -> tuple[np.ndarray, np.ndarray]:
    """x and dy, shape (N, C, ...), in the memory order asked for."""
    rng = np.random.default_rng(0)
    order = (0, *range(2, len(shape)), 1) if last else tuple(range(len(shape)))
    arrays = [rng.standard_normal([shape[i] for i in order], dtype=np.float32) for _ in range(2)]
    x, dy = (array.transpose(np.argsort(order)) for array in arrays)
    return x, dy


def nbnorm_calls(shape: tuple[int, ...], last: bool) -> Calls:
    import nbnorm

    x, dy = data(shape, last)
    state = nbnorm.BatchNormState(shape[1])
    _, saved = nbnorm.batch_norm_training(x, state)
    return {
        "training": lambda: nbnorm.batch_norm_training(x, state),
        "backward": lambda: nbnorm.batch_norm_backward(dy, saved),
        "inference": lambda: nbnorm.batch_norm_inference(x, state),
    }


def numpy_calls(shape: tuple[int, ...], last: bool) -> Calls:
    x, dy = data(shape, last)
    axes = (0, *range(2, len(shape)))
    n = x.size // shape[1]
    mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    inv_std = 1 / np.sqrt(var + np.float32(1e-5))

    def training() -> object:
        mean = x.mean(axes, keepdims=True)
        centred = x - mean
        return centred * (1 / np.sqrt(np.square(centred).mean(axes, keepdims=True) + np.float32(1e-5)))

    def backward() -> object:
        x_hat = (x - mean) * inv_std
        dbeta, dgamma = dy.sum(axes, keepdims=True), (dy * x_hat).sum(axes, keepdims=True)
        return inv_std * (dy - dbeta / n - x_hat * (dgamma / n))

    return {"training": training, "backward": backward, "inference": lambda: (x - mean) * inv_std}


def torch_calls(shape: tuple[int, ...], last: bool) -> Calls:
    import torch

    torch.set_grad_enabled(False)
    torch.set_num_threads(int(os.environ["NUMBA_NUM_THREADS"]))
    x, dy = (torch.from_numpy(array) for array in data(shape, last))
    weight, bias, mean, var = torch.ones(shape[1]), torch.zeros(shape[1]), torch.zeros(shape[1]), torch.ones(shape[1])
    forward, gradient = torch.native_batch_norm, torch.ops.aten.native_batch_norm_backward
    _, saved_mean, saved_inv_std = forward(x, weight, bias, mean, var, True, 0.1, 1e-5)
    every = [True, True, True]
    return {
        "training": lambda: forward(x, weight, bias, mean, var, True, 0.1, 1e-5),
        "backward": lambda: gradient(dy, x, weight, mean, var, saved_mean, saved_inv_std, True, 1e-5, every),
        "inference": lambda: forward(x, weight, bias, mean, var, False, 0.1, 1e-5),
    }


SYSTEMS = {"nbnorm": nbnorm_calls, "NumPy": numpy_calls, "torch": torch_calls}


def best(call: Callable[[], object], seconds: float) -> float:
    """Milliseconds: the minimum over as many calls as fit into the time, at least 5."""
    call()
    lowest, end, calls = math.inf, time.perf_counter() + seconds, 0
    while calls < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        lowest = min(lowest, time.perf_counter() - start)
        calls += 1
    return 1e3 * lowest


def busy() -> bool:
    """Whether another process computed during the last tenth of a second (Linux; elsewhere nobody knows)."""
    try:
        before, _, after = Path("/proc/stat").read_text(), time.sleep(0.1), Path("/proc/stat").read_text()
    except OSError:
        return False
    (user0, nice0, system0), (user1, nice1, system1) = (map(int, s.split()[1:4]) for s in (before, after))
    return user1 + nice1 + system1 - user0 - nice0 - system0 > 2


def worker(system: str, rows: list[str], seconds: float) -> Iterator[tuple[str, dict[str, float]]]:
    for row in rows:
        yield row, {kind: best(call, seconds) for kind, call in SYSTEMS[system](*ROWS[row]).items()}


def main() -> None:
    """Measure, print Markdown tables, and save every round as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="SHAPE")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.2, help="for one figure of one round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", choices=SYSTEMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(dict(worker(args.worker, args.rows, args.seconds))))
        return
    interpreters = dict(pair.split("=", 1) for pair in args.python)
    threads = str(args.threads)
    environment = {**os.environ, "NUMBA_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
    rounds: dict[str, list[dict[str, dict[str, float]]]] = {system: [] for system in args.systems}
    for number in range(args.rounds):
        for system in args.systems:
            if busy():
                print(f"round {number}: another process is computing; the figures of {system} suffer", file=sys.stderr)
            command = [interpreters.get(system, sys.executable), __file__, "--worker", system]
            command += ["--seconds", str(args.seconds), "--rows", *args.rows]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                print(f"{system} is left out: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                continue
            rounds[system].append(json.loads(done.stdout))
    measured = {system: found for system, found in rounds.items() if found}
    if args.json:
        args.json.write_text(json.dumps(measured, indent=1))
    peers = [system for system in measured if system != "nbnorm"]
    for kind in KINDS:
        print(f"\n| {kind}, ms | {' | '.join(measured)} | best peer / nbnorm |\n|---|{'---|' * (len(measured) + 1)}")
        for row in args.rows:
            ms = {system: median(one[row][kind] for one in found) for system, found in measured.items()}
            ratio = f"{min(ms[peer] for peer in peers) / ms['nbnorm']:.2f}" if peers and "nbnorm" in ms else ""
            print(f"| {row} | {' | '.join(f'{value:.3g}' for value in ms.values())} | {ratio} |")


if __name__ == "__main__":
    main()
