"""python asv_benchmarks/parallel/parallel_model.py: what the messages of a step cost by Hockney's model, to
thousands of ranks.

With --latency and --bandwidth the table is that of docs/parallel.md for your figures; --picture draws it. Under mpiexec
it measures:
mpiexec -n 3 python asv_benchmarks/parallel/parallel_model.py --measure prints the latency and the bandwidth that
follow from an
allgather of few and of many bytes, and the model's time of a step beside the measured one.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time

import numpy as np

MESSAGES = (lambda C: 3, lambda C: 3 * C, lambda C: 4 * C + 1)  # numbers of a rank: docs/parallel.md


def model(ranks: int, channels: int, latency: float, per_byte: float) -> float:
    """Seconds of the three exchanges of a step."""
    numbers = sum(message(channels) for message in MESSAGES)
    rounds = math.ceil(math.log2(ranks)) if ranks > 1 else 0
    return len(MESSAGES) * rounds * latency + 8 * numbers * (ranks - 1) * per_byte


def median_of_gathers(comm, sizes: list[int], rounds: int) -> float:
    """Seconds of allgathers of so many numbers, one behind the other."""
    pairs = [(np.zeros(n), np.empty((comm.size, n))) for n in sizes]
    taken = []
    for _ in range(rounds):
        comm.Barrier()
        start = time.perf_counter()
        for own, everyone in pairs:
            comm.Allgather(own, everyone)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def measure(channels: list[int], rounds: int) -> None:
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    few, many = (median_of_gathers(comm, [n], rounds) for n in (2, 1 << 17))
    latency = few / math.ceil(math.log2(comm.size))
    per_byte = (many - few) / (8 * (1 << 17) * (comm.size - 1))
    if comm.rank == 0:
        print(f"{comm.size} ranks: latency {1e6 * latency:.1f} µs, {1e-9 / per_byte:.1f} GB/s")
    for C in channels:
        found = median_of_gathers(comm, [message(C) for message in MESSAGES], rounds)
        if comm.rank == 0:
            predicted = model(comm.size, C, latency, per_byte)
            print(f"C = {C}: measured {1e6 * found:.0f} µs a step, the model says {1e6 * predicted:.0f}")


def draw(channels: list[int], latency: float, bandwidth: float, path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    ranks = [2**power for power in range(1, 13)]
    for C, marker in zip(channels, "osD^v", strict=False):
        axes.plot(ranks, [1e6 * model(n, C, latency, 1 / bandwidth) for n in ranks], marker=marker, label=f"C = {C}")
    rounds = [1e6 * len(MESSAGES) * math.log2(n) * latency for n in ranks]
    axes.plot(ranks, rounds, color="grey", linestyle="--", label="latency alone")
    axes.set(xscale="log", yscale="log", xlabel="ranks", ylabel="µs of messages a step")
    axes.set_title(f"Model, not a measurement: {1e6 * latency:g} µs, {bandwidth / 1e9:g} GB/s", fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 256, 2048])
    parser.add_argument("--latency", type=float, default=2e-6, help="seconds")
    parser.add_argument("--bandwidth", type=float, default=10e9, help="bytes a second")
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--picture", help="where to save it; needs matplotlib")
    options = parser.parse_args()
    if options.measure:
        measure(options.channels, options.rounds)
        return
    print("Microseconds a step, " + f"{1e6 * options.latency:g} µs, {options.bandwidth / 1e9:g} GB/s\n")
    print("| ranks | " + " | ".join(f"C = {C}" for C in options.channels) + " |")
    print("|---|" + "---|" * len(options.channels))
    for power in range(1, 13):
        times = (1e6 * model(2**power, C, options.latency, 1 / options.bandwidth) for C in options.channels)
        print(f"| {2**power} | " + " | ".join(f"{t:.0f}" for t in times) + " |")
    if options.picture:
        draw(options.channels, options.latency, options.bandwidth, options.picture)


if __name__ == "__main__":
    main()
