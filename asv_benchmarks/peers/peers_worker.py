"""What a process of peers.py does: check what one system computes, or time it. A line of JSON for each row."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from peers_rows import Data, data, row
from peers_systems import EPS, MOMENTUM, System, WrongResult, make, parameter_type

BITS = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}  # of the significand
CHECKED = 2_000_000  # values of a row that are compared: whole channels, spread over all of them


def work(name: str, lines: Iterable[str], dtype: str, seconds: float | None, threads: int) -> Iterator[str]:
    """Say "ready", then check the rows that these lines name where `seconds` is None, time them otherwise."""
    if hasattr(os, "sched_setaffinity"):  # also for those who count processors and cannot be told
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    make_system = make(name)
    yield json.dumps("ready")
    for line in lines:
        try:
            answer = _answer(make_system, data(row(line.strip())), dtype, seconds)
        except (NotImplementedError, WrongResult) as error:
            answer = {"left out": str(error)}
        yield json.dumps(answer)


def _answer(
    make_system: Callable[[Data, str], System], given: Data, dtype: str, seconds: float | None
) -> dict[str, Any]:
    system = make_system(given, dtype)
    if seconds is None:
        check(system, given, dtype)
        return {"version": system.version, "ms": {}}
    return {"version": system.version, "ms": {kind: best(call, seconds) for kind, call in system.calls.items()}}


def best(call: Callable[[], Any], seconds: float) -> float:
    """Milliseconds: the minimum over as many calls as fit into the time, at least 5."""
    call()  # it may compile, and that must not use up the time
    lowest, end, calls = math.inf, time.perf_counter() + seconds, 0
    while calls < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        lowest = min(lowest, time.perf_counter() - start)
        calls += 1
    return 1e3 * lowest


def check(system: System, data: Data, dtype: str) -> None:
    """Compare the first results of every operation with float64: what computes something else is not timed.

    Raises
    ------
    WrongResult
        With the row and what is wrong there.
    """
    row = data.row
    C = row.shape[1]
    some = np.unique(np.linspace(0, C - 1, min(C, max(3, CHECKED // row.count)), dtype=np.intp))
    expected = _expected(data, some)
    # Sums of n terms in the parameters' type, added one after the other, lose 4 sqrt(n) roundings at most (Higham and
    # Mary, 2019, with lambda = 4), and a result depends on two of them; one more rounding to the type of x.
    sums = 8 * math.sqrt(row.count) * 2.0 ** -BITS[parameter_type(dtype)]
    rounded = sums + 2.0 ** -BITS[dtype]
    for kind, call in system.calls.items():
        if kind.startswith("copy"):
            continue
        result = call()
        found = {kind: (system.numpy(result[0] if isinstance(result, tuple | list) else result)[:, some], rounded)}
        if kind == "training":
            mean, var = system.running(result)
            found |= {"running mean": (system.numpy(mean)[some], sums), "running var": (system.numpy(var)[some], sums)}
        if kind.startswith("backward"):
            found |= {name: (system.numpy(result[i])[some], sums) for i, name in ((1, "dgamma"), (2, "dbeta"))}
        for name, (values, tolerance) in found.items():
            exact = expected[name.removesuffix(" out")]
            error = np.abs(values.astype(np.float64) - exact).max() / np.abs(exact).max()
            if not error <= tolerance:
                raise WrongResult(f"{name} of {row.name}: error {error:.2g}, at most {tolerance:.2g} expected")


def _expected(data: Data, some: np.ndarray) -> dict[str, np.ndarray]:
    """In float64, of these channels; the running statistics after one batch."""
    row = data.row
    x, dy = (row.view(values)[:, some].astype(np.float64) for values in (data.x, data.dy))
    shape = (1, -1, *[1] * (x.ndim - 2))
    gamma, beta, frozen_mean, frozen_var = (values[some].astype(np.float64).reshape(shape) for values in data[3:])
    centred = x - x.mean(row.axes, keepdims=True)
    var = np.square(centred).mean(row.axes, keepdims=True)
    inv_std = 1 / np.sqrt(var + EPS)
    x_hat = centred * inv_std
    dbeta, dgamma = dy.sum(row.axes, keepdims=True), (dy * x_hat).sum(row.axes, keepdims=True)
    n = row.count
    return {
        "training": gamma * x_hat + beta,
        "inference": gamma * (x - frozen_mean) / np.sqrt(frozen_var + EPS) + beta,
        "backward": gamma * inv_std * (dy - dbeta / n - x_hat * dgamma / n),
        "dgamma": dgamma.reshape(-1),
        "dbeta": dbeta.reshape(-1),
        "running mean": MOMENTUM * x.mean(row.axes),
        "running var": 1 - MOMENTUM + MOMENTUM * n / (n - 1) * var.reshape(-1),
    }
