"""
Padded sequences
================

Sequences of different lengths lie in one array, padded with zeros. Counted as values, the padding pulls the mean
towards 0 and makes the variance whatever its share makes it; ``where=`` leaves it out. The gradient is wrong, too,
when statistics are masked and what the padding's y does is forgotten.
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
# By hand one masks the statistics, and is not done: y of the padding depends on them, too. Where what follows looks at
# it, a convolution across the end of a sequence for instance, its gradient acts on the values that count.

forgotten = []
for x, where in map(batch, shares):
    state = nbnorm.BatchNormState(2)
    y, saved = nbnorm.batch_norm_training(x, state, where=where)
    dy = rng.normal(1, 1, x.shape).astype(np.float32)  # of a loss that looks at every y
    exact, by_hand = (nbnorm.batch_norm_backward(g, saved).dx for g in (dy, np.where(where, dy, 0)))
    forgotten.append(np.linalg.norm((by_hand - exact)[np.broadcast_to(where, x.shape)]) / np.linalg.norm(exact))

###############################################################################
# What a layer would normalize with and what the sequences are, and how wrong dx of the values that count is:

figure, axes = plt.subplots(1, 3, figsize=(11, 4), layout="constrained")
for ax, (name, (counted, left_out)) in zip(axes, found.items(), strict=False):
    ax.plot(shares, counted, "o-", color="#d55e00", label="padding counted")
    ax.plot(shares, left_out, "o-", color="#0072b2", label="where=")
    ax.set(title=name, xlabel="share of padding, about", ylim=(0, None))
axes[0].legend()
axes[2].plot(shares, forgotten, "o-", color="#d55e00", label="dy of the padding forgotten")
axes[2].plot(shares, np.zeros_like(shares), "o-", color="#0072b2", label="batch_norm_backward")
axes[2].set(title="error of dx, relative", xlabel="share of padding, about")
axes[2].legend()
plt.show()

###############################################################################
# In training it is the same argument, and the gradient is exact. :doc:`/padding` has the rules.

state = nbnorm.BatchNormState(2)
y, saved = nbnorm.batch_norm_training(x, state, where=where)
dx, dgamma, dbeta = nbnorm.batch_norm_backward(np.where(where, y, 0), saved)
print(saved.count, x[:, 0].size)
