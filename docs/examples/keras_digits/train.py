"""Train a small convolutional network in Keras and keep its weights: KERAS_BACKEND=jax python train.py digits.npz

This made the digits.npz beside it, with Keras 3.15 and JAX; finetune.py goes on from there without Keras.
"""

import sys

import keras
import numpy as np
from sklearn.datasets import load_digits


def network() -> keras.Model:
    """8 x 8 x 1 to 6 x 6 x 8 to 4 x 4 x 16, and a dense layer. Batch normalization with Keras's defaults."""
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(8, 3, use_bias=False, name="conv1"),
            layers.BatchNormalization(name="bn1"),
            layers.ReLU(),
            layers.Conv2D(16, 3, use_bias=False, name="conv2"),
            layers.BatchNormalization(name="bn2"),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(10, name="dense"),
        ]
    )


def weights(model: keras.Model) -> dict[str, np.ndarray]:
    """The arrays of every layer, by layer and place: "bn1.0" is the gamma of bn1."""
    return {f"{layer.name}.{i}": array for layer in model.layers for i, array in enumerate(layer.get_weights())}


def load(model: keras.Model, arrays: dict[str, np.ndarray]) -> None:
    """The inverse of `weights`."""
    for layer in model.layers:
        layer.set_weights([arrays[f"{layer.name}.{i}"] for i in range(len(layer.weights))])


if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype(np.float32) / 16
    model = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    # Keras's running statistics forget 1 % a batch: they need some hundred batches.
    model.fit(images[:1200], labels[:1200], batch_size=32, epochs=15, verbose=0)
    print("accuracy on the other images:", round(model.evaluate(images[1200:], labels[1200:], verbose=0)[1], 3))
    np.savez(sys.argv[1], **weights(model))
