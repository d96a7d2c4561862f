"""Five training steps of a state beside another library's layer."""

from __future__ import annotations

import numpy as np

import nbnorm

STEPS, RATE = 5, 0.1


def five_steps(rng, state, step, axis, shape=(8, 5, 4, 3)):
    """Train both and compare after every step.

    `step(x, dy, rate)` takes a step of gradient descent there and returns y, gamma, beta, mean and variance after it,
    None where there is none. The libraries compute in float32: y has some 2**-20 of its size, at most 8 here, which is
    below 1e-5; each of their running statistics is a sum of a few float32 roundings, below 1e-6 of its size.
    """
    for _ in range(STEPS):
        # Means below a deviation: some of the libraries compute the variance as E[x^2] - E[x]^2.
        x = rng.normal(rng.uniform(0.5, 1, shape[axis]), 1, size=np.moveaxis(np.empty(shape), axis, -1).shape)
        x = np.moveaxis(x, -1, axis).astype(np.float32)
        dy = rng.normal(size=shape).astype(np.float32) / x.size
        y, saved = nbnorm.batch_norm_training(x, state, axis=axis)
        _, dgamma, dbeta = nbnorm.batch_norm_backward(dy, saved)
        if state.gamma is not None:
            state.gamma -= RATE * dgamma
        if state.beta is not None:
            state.beta -= RATE * dbeta

        theirs, *arrays = step(x, dy, RATE)
        assert (abs(y - np.asarray(theirs)) <= 1e-5).all()
        for name, other in zip(("gamma", "beta", "running_mean", "running_var"), arrays, strict=True):
            own = getattr(state, name)
            assert (own is None) == (other is None), name
            if own is not None:
                size = abs(own) if name.startswith("running") else 1  # gamma stays near 1 and beta near 0
                assert (abs(own - np.asarray(other)) <= 1e-6 * size).all(), name
