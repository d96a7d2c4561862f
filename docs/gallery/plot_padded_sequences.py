"""
Padded sequences
================

Sequences of different lengths lie in one array, padded with zeros. Counted as values, the padding pulls the mean
towards 0 and makes the variance whatever its share makes it; ``where=`` leaves it out.
"""

import matplotlib.pyplot as plt
import numpy as np

import nbnorm

rng = np.random.default_rng(0)
longest = 100


def batch(share):
    """32 sequences of two channels, mean 5 and standard deviation 1, of which a share is padding."""
    lengths = rng.integers(max(1, round(longest * (1 - 2 * share))), longest + 1, 32)
    where = np.arange(longest) < lengths[:, None, None]  # (N, 1, L)
    x = rng.normal(5, 1, (32, 2, longest)).astype(np.float32) * where
    return x, where


shares = np.linspace(0, 0.45, 10)
found = {"mean": ([], []), "standard deviation": ([], [])}
for x, where in map(batch, shares):
    for place, stats in enumerate((nbnorm.batch_stats(x), nbnorm.batch_stats(x, where=where))):
        found["mean"][place].append(stats.mean[0])
        found["standard deviation"][place].append(np.sqrt(stats.var[0]))

###############################################################################
# What a layer would normalize with, and what the sequences are:

figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
for ax, (name, (counted, left_out)) in zip(axes, found.items(), strict=True):
    ax.plot(shares, counted, "o-", color="#d55e00", label="padding counted")
    ax.plot(shares, left_out, "o-", color="#0072b2", label="where=")
    ax.set(title=name, xlabel="share of padding, about", ylim=(0, None))
axes[0].legend()
plt.show()

###############################################################################
# In training it is the same argument, and the gradient is exact: what the padding's y does to the loss acts on the
# statistics, and so on the values that count. :doc:`/padding` has the rules.

state = nbnorm.BatchNormState(2)
y, saved = nbnorm.batch_norm_training(x, state, where=where)
dx, dgamma, dbeta = nbnorm.batch_norm_backward(np.where(where, y, 0), saved)
print(saved.count, x[:, 0].size)
