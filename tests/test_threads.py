"""The bits do not depend on the number of threads, on the twin that runs, or on the driver."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import nbnorm
from nbnorm._cpu import plan, stages

SHAPES = {
    "channels first": ((32, 8, 28, 28), 1),
    "channels first, uneven": ((5, 7, 41, 13), 1),
    "one channel": ((3, 1, 300_000), 1),
    "few channels": ((4, 3, 128, 128), 1),
    "small images": ((64, 96, 7, 7), 1),
    "channels last": ((9, 28, 28, 96), -1),
    "table": ((30_000, 17), 1),
    "tall table": ((200_000, 3), 1),
    "wide table": ((40, 5_000), 1),
}
PROGRAM = """
import hashlib, json, sys
import numba, numpy as np, nbnorm

def digests(dtype, shape, axis):
    rng = np.random.default_rng(0)
    x, dy = ((rng.standard_normal(shape) + 3).astype(dtype) for _ in range(2))
    state = nbnorm.BatchNormState(shape[axis])
    y, saved = nbnorm.batch_norm_training(x, state, axis=axis)
    arrays = [y, *nbnorm.batch_norm_backward(dy, saved), nbnorm.batch_norm_inference(x, state, axis=axis)]
    arrays += [state.running_mean, state.running_var, *nbnorm.batch_stats(x, axis=axis)]
    return [hashlib.sha256(array.tobytes()).hexdigest()[:12] for array in arrays]

for threads in (1, 2, 3, 7):
    numba.set_num_threads(threads)
    found = {f"{dtype} {name}": digests(dtype, *case) for dtype in ("float32", "float64")
             for name, case in json.loads(sys.argv[1]).items()}
    print(json.dumps([threads, numba.threading_layer() if threads > 1 else "", found]))
"""


def test_thread_counts_1_2_3_and_7_give_the_same_bits():
    environment = {**os.environ, "NUMBA_NUM_THREADS": "7"}
    command = [sys.executable, "-W", "error", "-c", PROGRAM, json.dumps(SHAPES)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [threads for threads, _, _ in lines] == [1, 2, 3, 7]
    assert all(layer for threads, layer, _ in lines if threads > 1), "no parallel region has run"
    alone = lines[0][2]
    different = {(threads, case) for threads, _, found in lines for case in alone if found[case] != alone[case]}
    assert different == set()


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize(("shape", "axis"), [((64, 8, 30, 30), 1), ((64, 512, 7, 7), 1)])
def test_fused_and_split_drivers_give_the_same_bits(shape, axis, kind, monkeypatch):
    rng = np.random.default_rng(0)
    x, dy = ((rng.standard_normal(shape) + 3).astype(kind) for _ in range(2))
    used = []

    def counted(kernel):
        return lambda *args: (used.append(kernel), kernel(*args))

    for name in ("fused_segments", "fused_columns"):
        monkeypatch.setattr(stages, name, counted(getattr(stages, name)))

    def step():
        state = nbnorm.BatchNormState(shape[axis])
        y, saved = nbnorm.batch_norm_training(x, state)
        return [a.tobytes() for a in (y, state.running_var, *nbnorm.batch_norm_backward(dy, saved))]

    fused = step()
    assert len(used) == 2
    monkeypatch.setattr(plan, "CHANNEL_BYTES", 0)
    monkeypatch.setattr(plan, "columns", lambda *shape, cut=plan.columns: cut(*shape)._replace(channels=0))
    assert step() == fused
    assert len(used) == 2
