"""
Accuracy at large means
=======================

Standard deviation 1, and a mean that grows: a temperature in kelvin, a time stamp, a detector with an offset. How
far is y from the exact result, in units of float32's last place? From 2²⁴ on no digit is right.
"""

import matplotlib.pyplot as plt
import numpy as np

import nbnorm

rng = np.random.default_rng(0)
noise = rng.standard_normal((16_384, 4))
means = 10.0 ** np.arange(8)


def exact(x):
    x = x.astype(np.longdouble)
    return (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)


def by_nbnorm(x):
    return nbnorm.batch_norm_training(x, nbnorm.BatchNormState(4))[0]


def two_passes(x):
    return (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + np.float32(1e-5))


def fast_variance(x):
    """E[x²] − E[x]²: what several libraries do by default."""
    variance = (x**2).mean(axis=0) - x.mean(axis=0) ** 2
    return (x - x.mean(axis=0)) / np.sqrt(np.maximum(variance, 0) + np.float32(1e-5))


def error(y, x):
    return float((abs(y - exact(x)) / abs(exact(x)).max(axis=0)).max() * 2**24)


###############################################################################
# The three read the same float32 numbers; so what is lost is lost by them.

batches = [(noise + mean).astype(np.float32) for mean in means]
for label, normalize in {
    "nbnorm": by_nbnorm,
    "NumPy, x.mean() and x.var()": two_passes,
    "NumPy, E[x²] − E[x]²": fast_variance,
}.items():
    plt.loglog(means, [error(normalize(x), x) for x in batches], "o-", linewidth=2, label=label)
plt.axhline(2**24, color="0.7", linestyle=":")
plt.text(1, 2**24 * 1.3, "no digit is right", color="0.4")
plt.xlabel("mean, in standard deviations")
plt.ylabel("error of y, in units in the last place")
plt.ylim(0.1, 1e9)
plt.legend(loc="lower right", bbox_to_anchor=(1, 0.1))
plt.show()

###############################################################################
# PyTorch's columns, and other kinds of data: :doc:`/numerics`. How it is done: :doc:`/math`.
