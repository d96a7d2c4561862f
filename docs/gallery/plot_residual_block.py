"""
What fusion saves
=================

A residual block ends in batch norm, an addition and a ReLU. Each is a pass over memory; ``residual=`` and
``activation=`` make them one. What must be read and written can be counted, and what it takes be measured: in copies
of the array, each of which reads and writes it once.
"""

import time

import matplotlib.pyplot as plt
import numpy as np

import nbnorm

rng = np.random.default_rng(0)
x, residual, dy = rng.standard_normal((3, 32, 64, 56, 56)).astype(np.float32)
y, dx = np.empty_like(x), np.empty_like(x)
state = nbnorm.BatchNormState(64)


def training_apart():
    nbnorm.batch_norm_training(x, state, out=y)
    np.add(y, residual, out=y)
    np.maximum(y, 0, out=y)


def training_fused():
    nbnorm.batch_norm_training(x, state, residual=residual, activation="relu", out=y)


def inference_apart():
    nbnorm.batch_norm_inference(x, state, out=y)
    np.add(y, residual, out=y)
    np.maximum(y, 0, out=y)


def inference_fused():
    nbnorm.batch_norm_inference(x, state, residual=residual, activation="relu", out=y)


###############################################################################
# Backwards without a residual: the sign of y comes from x, so the ReLU costs no byte.

plain = nbnorm.batch_norm_training(x, state)[1]
with_relu = nbnorm.batch_norm_training(x, state, activation="relu", out=y)[1]


def backward_apart():
    np.multiply(dy, y > 0, out=dx)
    nbnorm.batch_norm_backward(dx, plain, out=dx)


def backward_fused():
    nbnorm.batch_norm_backward(dy, with_relu, out=dx)


###############################################################################
# In turn, and the least of some rounds, since other work on the machine only ever adds.

calls = {  # and how many times an array of this size is read or written, in caches that hold none
    "inference\nresidual, ReLU": ((inference_apart, 2 + 3 + 2), (inference_fused, 3)),
    "training\nresidual, ReLU": ((training_apart, 3 + 3 + 2), (training_fused, 4)),
    "backward\nReLU": ((backward_apart, 1.25 + 2.25 + 5), (backward_fused, 5)),  # y > 0 is of a quarter of the size
}
timed = [call for both in calls.values() for call, _ in both] + [lambda: np.copyto(y, x)]
seconds = [[] for _ in timed]
for _ in range(8):
    for call, its in zip(timed, seconds, strict=True):
        start = time.perf_counter()
        call()
        its.append(time.perf_counter() - start)
*taken, of_copy = (min(its[1:]) for its in seconds)

###############################################################################
# The lines are what bytes say, at the pace of NumPy's copy, which has one thread. A bar below its line has more,
# or found data in a cache.

figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
at = np.arange(len(calls))
for place, (label, colour) in enumerate({"apart, with NumPy": "#d55e00", "fused": "#0072b2"}.items()):
    middle = at + 0.4 * (place - 0.5)
    ax.bar(middle, np.array(taken[place::2]) / of_copy, 0.36, color=colour, label=label)
    counted = [both[place][1] / 2 for both in calls.values()]
    ax.hlines(counted, middle - 0.18, middle + 0.18, color="0.5", linewidth=3)
ax.set(xticks=at, xticklabels=calls, ylabel="time, in copies of x", title="float32 (32, 64, 56, 56)")
ax.legend()
plt.show()

###############################################################################
# :doc:`/howto/residual` has the block and its gradient.
for (name, both), apart, fused in zip(calls.items(), taken[::2], taken[1::2], strict=True):
    counts = " against ".join(f"{count:g}" for _, count in both)
    print(f"{name.replace(chr(10), ', ')}: {apart / fused:.1f} times as fast fused; by count {counts} arrays")
