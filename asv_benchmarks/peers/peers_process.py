"""The process of a system in peers.py, which times a row when it is asked to."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

# What glibc's allocator settles to in a process that lives long: arrays below 32 MiB are kept for the next one, larger
# ones go back to the system. Otherwise a hole that the data left decides whether a system pays for fresh pages.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}
PATIENCE = 30  # seconds for a process to end
SCRIPT = Path(__file__).parent / "peers.py"


class Process:
    """`peers.py --worker`: when it is ready, it answers the name of a row with a line of JSON.

    Raises
    ------
    RuntimeError
        With the last line of the error, when it ends before it has answered.
    """

    def __init__(self, system: str, python: str, threads: int, options: list[str]) -> None:
        few = {"NUMBA_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
        command = [python, str(SCRIPT), "--worker", system, "--threads", str(threads), *options]
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  it is open as long as the process lives
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
                env={**os.environ, **ALLOCATOR, **few},
            )  # fmt: skip
        except OSError as error:
            self._errors.close()
            raise RuntimeError(str(error)) from error
        try:
            self._line()  # "ready": it has loaded what it needs and computes nothing
        except BaseException:
            self.close()
            raise

    def answer(self, row: str) -> dict[str, Any]:
        assert self._process.stdin
        with suppress(BrokenPipeError):  # it has ended; the next line tells why
            print(row, file=self._process.stdin, flush=True)
        return json.loads(self._line())

    def close(self) -> None:
        try:
            self._process.communicate(timeout=PATIENCE)  # the end of its input is the end of its work
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._errors.close()

    def _line(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if line:
            return line
        code = self._process.wait()
        self._errors.seek(0)
        errors = [line for line in self._errors.read().splitlines() if line and not line[0].isspace()]
        raise RuntimeError(next((line for line in errors[::-1] if "error" in line.lower()), f"exit code {code}"))
