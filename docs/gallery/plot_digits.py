"""
The digits
==========

Handwritten digits of scikit-learn, 8 × 8 pixels, and a network of three layers in NumPy. Batch normalization changes at
which rates it learns in ten epochs: at larger ones, and no longer at the smallest.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import nbnorm

x, labels = load_digits(return_X_y=True)
x = x.astype(np.float32)  # 0 to 16, as they are
x, x_test, labels, labels_test = train_test_split(x, labels, test_size=0.25, random_state=0, stratify=labels)


class Network:
    """64 pixels, two hidden layers of 64, ten digits."""

    def __init__(self, normalize):
        rng = np.random.default_rng(0)
        self.weights = [(rng.normal(size=(64, n)) * np.sqrt(2 / 64)).astype(np.float32) for n in (64, 64, 10)]
        self.bns = [nbnorm.BatchNorm(64) if normalize else None for _ in range(2)]

    def __call__(self, x):
        """Logits. Each layer's input and what its ReLU has let through is kept for the gradient."""
        self.inputs, self.through = [x], []
        for weight, bn in zip(self.weights, self.bns, strict=False):
            z = x @ weight
            z = bn(z) if bn else z
            self.through.append(z > 0)
            x = np.maximum(z, 0)
            self.inputs.append(x)
        return x @ self.weights[-1]

    def step(self, x, labels, rate):
        logits = self(x)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        dz = p / p.sum(axis=1, keepdims=True)
        dz[np.arange(len(x)), labels] -= 1  # of the cross-entropy
        dz /= len(x)
        for layer in (2, 1, 0):
            below, dweight = dz @ self.weights[layer].T, self.inputs[layer].T @ dz
            self.weights[layer] -= rate * dweight
            if layer:
                dz = below * self.through[layer - 1]
                if bn := self.bns[layer - 1]:
                    dz = bn.backward(dz)
                    bn.state.gamma -= rate * bn.dgamma
                    bn.state.beta -= rate * bn.dbeta

    def accuracy(self, x, labels):
        for bn in filter(None, self.bns):
            bn.eval()  # the running statistics: one image is judged as a thousand are
        right = float(np.mean(self(x).argmax(axis=1) == labels))
        for bn in filter(None, self.bns):
            bn.train()
        return right


###############################################################################
# The same weights, the same batches, six rates.

rates, epochs, batch = (0.001, 0.01, 0.1, 1, 3, 10), 10, 64
found = {}
for normalize in (False, True):
    for rate in rates:
        network, rng = Network(normalize), np.random.default_rng(1)
        curve = found[normalize, rate] = []
        with np.errstate(over="ignore", invalid="ignore"):  # without it large rates end in NaN
            for _ in range(epochs):
                for rows in np.array_split(rng.permutation(len(x)), len(x) // batch):
                    network.step(x[rows], labels[rows], rate)
                curve.append(network.accuracy(x_test, labels_test))

figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for normalize, label, colour in ((False, "without", "#d55e00"), (True, "with nbnorm.BatchNorm", "#0072b2")):
    best = max(rates, key=lambda rate: found[normalize, rate][-1])
    axes[0].plot(range(1, epochs + 1), found[normalize, best], "o-", color=colour, label=f"{label}, rate {best:g}")
    axes[1].semilogx(rates, [found[normalize, rate][-1] for rate in rates], "o-", color=colour)
axes[0].set(xlabel="epoch", ylabel="accuracy on the test images", title="each at its best rate")
axes[1].set(xlabel="learning rate", title=f"after {epochs} epochs")
for ax in axes:
    ax.set_ylim(0, 1.02)
axes[0].legend(loc="lower center")
plt.show()

###############################################################################
# The demo judges seven claims on the same images, with several seeds: :doc:`/start`.
for normalize, label in ((False, "without"), (True, "with")):
    print(label, *(f"{found[normalize, rate][-1]:.1%}" for rate in rates))
