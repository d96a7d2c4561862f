"""The two networks of the demo and their training, in NumPy and nbnorm only: no framework, no autograd.

A layer is a callable with a ``backward(dy)`` that returns dx and leaves the gradients of its parameters on
itself. `nbnorm.BatchNorm` is such a layer, so it goes into the list like any other.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

import nbnorm

BATCH = 64
CLASSES = 10
FEW = 3 * BATCH  # training images where overfitting is looked at
FEW_EPOCHS = 3  # times as many epochs then: still fewer steps
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


class Digits(NamedTuple):
    """The data, split: images (n, 64) in float32, labels (n,)."""

    x_train: np.ndarray
    x_test: np.ndarray
    t_train: np.ndarray
    t_test: np.ndarray


class Run(NamedTuple):
    """What one training run leaves behind."""

    accuracy: list[float]  # on the test data after every epoch, in inference mode (running statistics)
    diverged: bool
    before: np.ndarray  # what enters the last ReLU, before the training
    after: np.ndarray  # and after it, for the same images
    batch_accuracy: float  # on the test data at the end, in training mode (statistics of the batch)
    agreement: float  # share of the test data for which the two modes predict the same digit
    train_accuracy: float  # on the training data at the end, in inference mode
    gradients_before: list[float]  # norms of the gradients of what enters each linear map, the first one first
    gradients_after: list[float]  # and after the training, for the same images


Results = dict[Setting, list[Run]]  # one run per seed


def train(setting: Setting, digits: Digits, *, epochs: int, seed: int) -> Run:
    """Train one network by plain stochastic gradient descent.

    The initial weights and the order of the batches depend on `seed`, not on normalization or rate, so that
    runs can be compared pair by pair. A run whose outputs are no longer finite stops early.
    """
    network = NETWORKS[setting.network](np.random.default_rng(seed), setting)
    rng = np.random.default_rng((seed, 1))  # the order of the batches: another stream than the weights
    if setting.few:
        chosen = rng.permutation(len(digits.x_train))[:FEW]
        digits = digits._replace(x_train=digits.x_train[chosen], t_train=digits.t_train[chosen])
        epochs *= FEW_EPOCHS
    if setting.shifting:
        digits = digits._replace(x_test=np.concatenate([_shifted(batch, rng) for batch in _batches(digits.x_test)]))
    accuracy: list[float] = []
    with np.errstate(all="ignore"):  # overflow at a large rate is a result of the demo, not an accident
        before, gradients_before = _probe(network, digits)
        for _ in range(epochs):
            _train_epoch(network, digits, setting, rng)
            logits = network(digits.x_test, training=False)
            accuracy.append(_share(logits.argmax(axis=1) == digits.t_test))
            diverged = not np.isfinite(logits).all()
            if diverged:  # and stays so: NaN predicts the first digit for every image
                accuracy += accuracy[-1:] * (epochs - len(accuracy))
                break
        after, gradients_after = _probe(network, digits)
        by_running = network(digits.x_train, training=False).argmax(axis=1)
        # Training mode updates the running statistics, which nobody needs from here on.
        by_batch = np.concatenate([network(batch, training=True) for batch in _batches(digits.x_test)]).argmax(axis=1)
    return Run(
        accuracy,
        diverged,
        before,
        after,
        batch_accuracy=_share(by_batch == digits.t_test),
        agreement=_share(by_batch == logits.argmax(axis=1)),
        train_accuracy=_share(by_running == digits.t_train),
        gradients_before=gradients_before,
        gradients_after=gradients_after,
    )


def epoch_seconds(settings: list[Setting], digits: Digits, rounds: int = 3) -> list[float]:
    """What an epoch of training takes: the least of some, in turn, behind one that is not timed."""
    rng = np.random.default_rng(0)
    networks = [NETWORKS[setting.network](rng, setting) for setting in settings]
    seconds: list[list[float]] = [[] for _ in settings]
    for _ in range(1 + rounds):
        for network, setting, its in zip(networks, settings, seconds, strict=True):
            start = time.perf_counter()
            _train_epoch(network, digits, setting, rng)
            its.append(time.perf_counter() - start)
    return [min(its[1:]) for its in seconds]


def _train_epoch(network: Network, digits: Digits, setting: Setting, rng: np.random.Generator) -> None:
    count = len(digits.x_train) // BATCH * BATCH
    for batch in rng.permutation(len(digits.x_train))[:count].reshape(-1, BATCH):
        x = digits.x_train[batch]
        logits = network(_shifted(x, rng) if setting.shifting else x, training=True)
        network.backward(_loss_gradient(logits, digits.t_train[batch]))
        for parameter, gradient in network.parameters():
            parameter -= setting.rate * gradient


def _batches(x: np.ndarray) -> list[np.ndarray]:
    return np.array_split(x, len(x) // BATCH)


def _shifted(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another contrast, by a factor of 1/2 to 2, and another brightness, by up to half the range of pixels."""
    return np.float32(2 ** rng.uniform(-1, 1)) * x + np.float32(rng.uniform(-1, 1))


def _loss_gradient(logits: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Gradient of the mean cross-entropy of softmax(logits) with the labels `t`."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(t)), t] -= 1
    return p / len(t)


def _probe(network: Network, digits: Digits) -> tuple[np.ndarray, list[float]]:
    """What enters the last ReLU for some training images, and the norms of the gradients of what enters each layer."""
    probe = copy.deepcopy(network)  # training mode would move the running statistics of the original
    logits = probe(digits.x_train[: 4 * BATCH], training=True)
    gradients = probe.backward(_loss_gradient(logits, digits.t_train[: 4 * BATCH]))
    before = probe.enters_last_relu
    if isinstance(probe.last_relu, nbnorm.BatchNorm):
        before, _ = nbnorm.batch_norm_training(before, probe.last_relu.state, axis=-1, update_running=False)
    return before, gradients


def _share(condition: np.ndarray) -> float:
    return float(condition.mean())
