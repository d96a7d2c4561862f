"""Beside Keras, on the backend that KERAS_BACKEND names."""

import keras
import numpy as np
import pytest
from beside import five_steps

import nbnorm
from nbnorm import exchange


@pytest.mark.parametrize(
    ("axis", "options"),
    [
        (-1, {}),
        (-1, {"scale": False}),
        (-1, {"center": False}),
        (-1, {"scale": False, "center": False}),
        (1, {"momentum": 0.9, "epsilon": 1e-5}),
    ],
    ids=str,
)
def test_steps_and_the_way_back(axis, options, rng):
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
