"""The two networks of the demo, in NumPy and nbnorm only: no framework, no autograd. training.py trains them.

A layer is a callable with a ``backward(dy)`` that returns dx and leaves the gradients of its parameters on
itself. `nbnorm.BatchNorm` is such a layer, so it goes into the list like any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

import nbnorm

CLASSES = 10
DROPOUT = 0.3


class Dense:
    """``y = x @ weight + bias``, with He-normal weights multiplied by `scale`."""

    def __init__(self, rng: np.random.Generator, n_in: int, n_out: int, scale: float = 1.0) -> None:
        he = scale * np.sqrt(2.0 / n_in)
        self.weight = (he * rng.standard_normal((n_in, n_out))).astype(np.float32)
        self.bias = np.zeros(n_out, np.float32)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.x = x
        return x @ self.weight + self.bias

    def backward(self, dy: np.ndarray) -> np.ndarray:
        self.dweight = self.x.T @ dy
        self.dbias = dy.sum(axis=0)
        return dy @ self.weight.T


class Conv(Dense):
    """A 3 x 3 convolution, channels last, no padding: the dense layer applied to every 3 x 3 patch."""

    def __init__(self, rng: np.random.Generator, c_in: int, c_out: int, scale: float = 1.0) -> None:
        super().__init__(rng, 3 * 3 * c_in, c_out, scale)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        patches = np.moveaxis(sliding_window_view(x, (3, 3), axis=(1, 2)), 3, -1)
        n, height, width = patches.shape[:3]  # patches: (n, height, width, 3, 3, c_in)
        y = super().__call__(patches.reshape(n * height * width, -1))
        return y.reshape(n, height, width, -1)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        n, height, width, c_out = dy.shape
        dpatches = super().backward(dy.reshape(-1, c_out)).reshape(n, height, width, 3, 3, -1)
        dx = np.zeros((n, height + 2, width + 2, dpatches.shape[-1]), np.float32)
        for i, j in np.ndindex(3, 3):
            dx[:, i : i + height, j : j + width] += dpatches[:, :, :, i, j]
        return dx


class ReLU:
    """``y = max(x, 0)``."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.x = x
        return np.maximum(x, 0)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        return dy * (self.x > 0)


class Dropout:
    """In training, sets a share of the values to 0 and multiplies the others, so that their mean stays."""

    training = True

    def __init__(self, rng: np.random.Generator, share: float = DROPOUT) -> None:
        self.rng, self.share = rng, share

    def __call__(self, x: np.ndarray) -> np.ndarray:
        kept = self.rng.random(x.shape, np.float32) >= self.share
        self.factor = kept / np.float32(1 - self.share) if self.training else np.float32(1)
        return x * self.factor

    def backward(self, dy: np.ndarray) -> np.ndarray:
        return dy * self.factor


class Reshape:
    """Give every sample another shape."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.x_shape = x.shape
        return x.reshape(len(x), *self.shape)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        return dy.reshape(self.x_shape)


class Network:
    """A list of layers, with the two modes that batch normalization has."""

    def __init__(self, *layers: Any) -> None:
        self.layers = layers
        self.last_relu = [layer for layer in layers if isinstance(layer, ReLU | nbnorm.BatchNorm)][-1]

    def __call__(self, x: np.ndarray, *, training: bool) -> np.ndarray:
        for layer in self.layers:
            if isinstance(layer, nbnorm.BatchNorm | Dropout):
                layer.training = training
            if layer is self.last_relu:
                self.enters_last_relu = x
            x = layer(x)
        return x

    def backward(self, dy: np.ndarray) -> list[float]:
        """Leave the gradients of the parameters in the layers; the norms of those of what enters each linear map."""
        norms = []
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
            if isinstance(layer, Dense):
                norms.append(float(np.linalg.norm(dy.astype(np.float64))))
        return norms[::-1]

    def parameters(self) -> Iterator[tuple[Any, Any]]:
        """Every parameter with its gradient."""
        for layer in self.layers:
            if isinstance(layer, Dense):
                yield layer.weight, layer.dweight
                yield layer.bias, layer.dbias
            elif isinstance(layer, nbnorm.BatchNorm):
                yield layer.state.gamma, layer.dgamma
                yield layer.state.beta, layer.dbeta


class Setting(NamedTuple):
    """What the demo varies, apart from the seed."""

    network: str
    rate: float
    scale: float  # factor of the initial weights
    normalized: bool
    dropout: bool = False
    few: bool = False  # trained on FEW images
    shifting: bool = False  # brightness and contrast differ from batch to batch, in the test data too
    fused: bool = True  # the ReLU behind a normalization is part of it


def _block(linear: Dense, channels: int, setting: Setting, rng: np.random.Generator) -> list[Any]:
    # The bias of `linear` is idle in front of batch normalization. It stays, so that the two networks
    # compared differ in nothing but the normalization.
    # axis=-1: the features of a dense layer and the channels of a channels-last image.
    if not setting.normalized:
        hidden: list[Any] = [ReLU()]
    elif setting.fused:
        hidden = [nbnorm.BatchNorm(channels, axis=-1, activation="relu")]
    else:
        hidden = [nbnorm.BatchNorm(channels, axis=-1), ReLU()]
    return [linear, *hidden, *([Dropout(rng)] if setting.dropout else [])]


def _multilayer(rng: np.random.Generator, setting: Setting) -> Network:
    """Five hidden layers of 64 units."""
    layers: list[Any] = []
    for _ in range(5):
        layers += _block(Dense(rng, 64, 64, setting.scale), 64, setting, rng)
    return Network(*layers, Dense(rng, 64, CLASSES, setting.scale))


def _convolutional(rng: np.random.Generator, setting: Setting) -> Network:
    """Three convolutions, 8 x 8 x 1 to 6 x 6 x 8 to 4 x 4 x 16 to 2 x 2 x 32, and a dense layer."""
    layers: list[Any] = [Reshape(8, 8, 1)]
    for c_in, c_out in ((1, 8), (8, 16), (16, 32)):
        layers += _block(Conv(rng, c_in, c_out, setting.scale), c_out, setting, rng)
    return Network(*layers, Reshape(2 * 2 * 32), Dense(rng, 2 * 2 * 32, CLASSES, setting.scale))


NETWORKS = {"multi-layer": _multilayer, "convolutional": _convolutional}
