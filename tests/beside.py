"""Five training steps beside another library's layer. Also a script, for Keras: python beside.py [finetuned.npz]."""

from __future__ import annotations

import sys
from pathlib import Path

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


def keras_layers(rng):
    """The layer with its defaults, with every choice of parameters and with numbers of its own; on three axes."""
    import keras

    for options in ({}, {"scale": False}, {"center": False}, {"scale": False, "center": False}):
        check_keras(keras, rng, -1, **options)
    check_keras(keras, rng, 1, momentum=0.9, epsilon=1e-5)


def check_keras(keras, rng, axis, **options):
    from nbnorm import exchange

    def step(x, dy, rate):
        y = layer(keras.ops.convert_to_tensor(x), training=True)
        for name in ("gamma", "beta"):  # Keras differentiates with the backend; NumPy has nothing
            if getattr(layer, name) is not None:
                getattr(layer, name).assign(getattr(state, name).copy())  # JAX may take the memory itself
        parts = (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
        return [None if part is None else keras.ops.convert_to_numpy(part) for part in (y, *parts)]

    shape = (8, 5, 4, 3)
    layer = keras.layers.BatchNormalization(axis=axis, **options)
    layer.build(shape)
    if not options:
        state = nbnorm.BatchNormState.like("keras", shape[axis])
        five_steps(rng, state, step, axis, shape)
    kinds = {name: options[name] for name in ("scale", "center") if name in options}
    numbers = {"eps": layer.epsilon, "momentum": layer.momentum}
    state = exchange.from_keras(layer.get_weights(), **kinds, **numbers)
    five_steps(rng, state, step, axis, shape)

    # There and back: the weights have the same bits, and the layer works on.
    layer.set_weights(exchange.to_keras(state))
    x = rng.normal(size=shape).astype(np.float32)
    theirs = keras.ops.convert_to_numpy(layer(x, training=False))
    assert (abs(nbnorm.batch_norm_inference(x, state, axis=axis) - theirs) <= 1e-5).all()
    weights = layer.get_weights()
    back = exchange.to_keras(exchange.from_keras(weights, **kinds, **numbers))
    assert [a.tobytes() for a in back] == [a.tobytes() for a in weights]


def keras_network(rng, path):
    """What docs/examples/keras_digits sends back to Keras computes the same there."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "docs" / "examples" / "keras_digits"))
    import finetune
    import train

    arrays = dict(np.load(path))
    network, model = finetune.network(arrays), train.network()
    train.load(model, arrays)
    assert all(array.tobytes() == arrays[name].tobytes() for name, array in train.weights(model).items())
    x = rng.uniform(size=(100, 8, 8, 1)).astype(np.float32)
    y = network(x, training=False)
    # Sums of 300 products in float32 behind two others, in another order: some 2**-20 of the largest.
    assert abs(np.asarray(model(x, training=False)) - y).max() <= 1e-5 * abs(y).max()


if __name__ == "__main__":  # a process for each backend of Keras, which KERAS_BACKEND chooses
    generator = np.random.default_rng(20150211)
    keras_network(generator, sys.argv[1]) if sys.argv[1:] else keras_layers(generator)
