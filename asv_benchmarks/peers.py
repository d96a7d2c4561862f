"""python asv_benchmarks/peers.py: milliseconds per call beside NumPy, PyTorch, torch.compile and JAX.

Every system runs in a process of its own, one after the other (two OpenMP runtimes in one process disturb each other),
several rounds of them; a figure is the minimum of many calls, then the median over the rounds. Outputs are fresh in
every call, and given in a second table for those that can. Before anything is timed, every operation of every row is
compared with float64. A system that is not installed is left out, and said so; `--python NAME=PATH` runs one with
another interpreter. Nothing else should be running: a round says when something was. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from peers_report import markdown, picture
from peers_rows import DTYPES, GROUPS, Row, rows
from peers_systems import SYSTEMS
from peers_worker import work

# What glibc's allocator settles to in a process that lives long: arrays below 32 MiB are kept for the next one, larger
# ones go back to the system. Otherwise a hole that the data left decides whether a system pays for fresh pages.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shapes", nargs="+", type=rows, default=[rows("usual")], metavar="SHAPE",
        help=f"of {', '.join(GROUPS)}; or 32x64x56x56, 32x64x56x56:last, :sliced, :transposed",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.2, help="for one figure of one round")
    parser.add_argument("--quick", action="store_true", help="one round, 0.02 seconds a figure")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="interpreter of a system")
    parser.add_argument("--json", type=Path, help="save every round")
    parser.add_argument("--picture", type=Path, help="save a chart of the ratios; needs matplotlib")
    parser.add_argument("--worker", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.shapes = [row for group in args.shapes for row in group]
    if args.quick:
        args.rounds, args.seconds = 1, 0.02
    if args.worker:
        for line in work(args.worker, args.shapes, args.dtype, None if args.check else args.seconds, args.threads):
            print(line, flush=True)
        return 0
    results = measure(args)
    print(markdown(results))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    if args.picture:
        picture(results, args.picture)
    ours = [name for name in results["left_out"] if name.startswith("nbnorm")]
    return 1 if ours or not results["systems"].get("nbnorm") else 0


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All rounds, ready for JSON: systems -> row -> operation -> milliseconds in each round."""
    interpreters = dict(pair.split("=", 1) for pair in args.python)
    systems: dict[str, dict[str, dict[str, list[float]]]] = {name: {} for name in args.systems}
    versions: dict[str, str] = {}
    left_out: dict[str, str] = {}
    shapes = {name: list(args.shapes) for name in args.systems}
    for number in range(-1, args.rounds):  # the first one checks, in processes of its own: it leaves holes in the heap
        for name in args.systems:
            if number >= 0 and busy():
                say(f"round {number}: another process is computing; the figures of {name} suffer")
            try:
                for found in answers(name, interpreters.get(name, sys.executable), args, shapes[name], number < 0):
                    if "left out" in found:
                        left_out[f"{name}, {found['row']}"] = found["left out"]
                        shapes[name] = [row for row in shapes[name] if row.name != found["row"]]
                        continue
                    versions[name] = found["version"]
                    for operation, ms in found["ms"].items():
                        systems[name].setdefault(found["row"], {}).setdefault(operation, []).append(ms)
            except RuntimeError as error:
                systems[name], shapes[name], left_out[name] = {}, [], str(error)
                versions.pop(name, None)
                say(f"{name} is left out: {error}")
    return {
        "date": date.today().isoformat(),
        "cpu": cpu(),
        "threads": args.threads,
        "dtype": args.dtype,
        "rounds": args.rounds,
        "seconds": args.seconds,
        "versions": versions,
        "rows": [_described(row) for row in args.shapes],
        "systems": {name: found for name, found in systems.items() if found},
        "left_out": left_out,
    }


def _described(row: Row) -> dict[str, Any]:
    return {"name": row.name, "shape": row.shape, "order": row.order}


def answers(
    name: str, python: str, args: argparse.Namespace, shapes: list[Row], check: bool
) -> Iterator[dict[str, Any]]:
    """What the process of a system says about these rows.

    Raises
    ------
    RuntimeError
        With the last line of the error, when it fails.
    """
    if not shapes:
        return
    threads = str(args.threads)
    environment = {**os.environ, **ALLOCATOR, "NUMBA_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
    command = [python, __file__, "--worker", name, "--dtype", args.dtype, "--threads", threads]
    command += ["--seconds", str(args.seconds), "--shapes", *(row.name for row in shapes)]
    command += ["--check"] * check
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    except OSError as error:
        raise RuntimeError(str(error)) from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line and not line[0].isspace()]
        raise RuntimeError(next((s for s in lines[::-1] if "Error" in s), f"exit code {done.returncode}"))
    yield from map(json.loads, done.stdout.splitlines())


def cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def busy() -> bool:
    """Whether another process computed during the last tenth of a second (Linux; elsewhere nobody knows)."""
    try:
        before, _, after = Path("/proc/stat").read_text(), time.sleep(0.1), Path("/proc/stat").read_text()
    except OSError:
        return False
    (user0, nice0, system0), (user1, nice1, system1) = (map(int, s.split()[1:4]) for s in (before, after))
    return user1 + nice1 + system1 - user0 - nice0 - system0 > 2


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
