"""python asv_benchmarks/peers/peers.py: milliseconds per call beside NumPy, PyTorch, torch.compile, oneDNN and JAX.

Every system has a process of its own (two OpenMP runtimes in one process disturb each other). Row by row they are timed
one after the other, so that all of them meet the machine in the same state; several rounds of that, in new processes.
A figure is the minimum of many calls, then the median over the rounds. Outputs are fresh in every call, and given in a
second table for those that can. Before anything is timed, every operation of every row is compared with float64. A
system that is not installed is left out, and said so; `--python NAME=PATH` runs one with another interpreter. Nothing
else should be running: a round says when something was. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from contextlib import ExitStack, closing
from datetime import date
from pathlib import Path
from typing import Any

from peers_process import Process
from peers_report import markdown, picture
from peers_rows import DTYPES, GROUPS, Row, rows
from peers_systems import SYSTEMS
from peers_worker import work


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
        answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what a system or its compiler prints is no answer
        for line in work(args.worker, sys.stdin, args.dtype, None if args.check else args.seconds, args.threads):
            print(line, file=answers, flush=True)
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

    def leave_out(name: str, error: RuntimeError) -> None:
        del systems[name]
        versions.pop(name, None)
        left_out[name] = str(error)
        say(f"{name} is left out: {error}")

    for number in range(-1, args.rounds):  # the first one checks, in processes of its own: it leaves holes in the heap
        options = ["--dtype", args.dtype, "--seconds", str(args.seconds), *["--check"] * (number < 0)]
        with ExitStack() as stack:
            processes = {}
            for name in list(systems):
                try:
                    process = Process(name, interpreters.get(name, sys.executable), args.threads, options)
                    processes[name] = stack.enter_context(closing(process))
                except RuntimeError as error:
                    leave_out(name, error)
            # The largest row first: otherwise a fresh output may find room in the holes that smaller rows leave.
            for row in sorted(args.shapes, key=lambda row: -math.prod(row.shape)):
                touch(4 * 8 * math.prod(row.shape))  # x, dy, y and dx; the first system would wait for it, and no other
                for name, process in processes.items():
                    if name not in systems or f"{name}, {row.name}" in left_out:
                        continue
                    if number >= 0 and not quiet():
                        say(f"round {number}: another process is computing; {row.name} of {name} suffers")
                    try:
                        answer = process.answer(row.name)
                    except RuntimeError as error:
                        leave_out(name, error)
                        continue
                    if "left out" in answer:
                        left_out[f"{name}, {row.name}"] = answer["left out"]
                        continue
                    versions[name] = answer["version"]
                    for operation, ms in answer["ms"].items():
                        systems[name].setdefault(row.name, {}).setdefault(operation, []).append(ms)
    return {
        "date": date.today().isoformat(),
        "cpu": machine(),
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


def machine() -> str:
    """The processor and the caches of one core, the last of which may be shared (Linux; elsewhere nobody knows)."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level, size = ((index / name).read_text().strip() for name in ("type", "level", "size"))
        if kind != "Instruction":
            found[level] = f"L{level} {size.removesuffix('K')} KiB"
    return ", ".join((cpu(), *found.values()))


def touch(nbytes: int) -> None:
    """Have so much memory given to this system: the host of a virtual machine takes back what has been idle."""
    _ = b"\1" * nbytes


def cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def quiet() -> bool:
    """Wait until nobody computes for a tenth of a second, but not for long (Linux; elsewhere nobody knows)."""
    for _ in range(10):
        try:
            before, _, after = Path("/proc/stat").read_text(), time.sleep(0.1), Path("/proc/stat").read_text()
        except OSError:
            return True
        (user0, nice0, system0), (user1, nice1, system1) = (map(int, s.split()[1:4]) for s in (before, after))
        if user1 + nice1 + system1 - user0 - nice0 - system0 <= 2:
            return True
    return False


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
