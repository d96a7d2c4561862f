"""The training of the demo: plain stochastic gradient descent, and what is measured on the way."""

from __future__ import annotations

import copy
import time
from typing import NamedTuple

import numpy as np

import nbnorm
from nbnorm.demo.networks import NETWORKS, Network, Setting

BATCH = 64
FEW = 3 * BATCH  # training images where overfitting is looked at
FEW_EPOCHS = 3  # times as many epochs then: still fewer steps


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
