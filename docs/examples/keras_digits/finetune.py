"""A network from Keras, run, adapted, fine-tuned and sent back with NumPy and nbnorm: python finetune.py OUT_DIRECTORY

digits.npz was trained by train.py on scikit-learn's digits. The images to be read here come from a worse camera: less
contrast, a brighter background, noise.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import nbnorm
from nbnorm import exchange
from nbnorm.demo.networks import Conv, Dense, Network, ReLU, Reshape

HERE = Path(__file__).parent
BATCH, RATE = 32, 0.05


def network(arrays: dict[str, np.ndarray]) -> Network:
    """The layers of train.py in NumPy, with the weights of Keras. Kernels are (3, 3, inputs, outputs) in both."""
    rng = np.random.default_rng(0)
    layers = [Reshape(8, 8, 1)]
    for i, (c_in, c_out) in enumerate(((1, 8), (8, 16)), 1):
        conv = Conv(rng, c_in, c_out)
        conv.weight = arrays[f"conv{i}.0"].reshape(-1, c_out)
        # eps and momentum are not among the weights: the defaults of from_keras are those of Keras.
        state = exchange.from_keras([arrays[f"bn{i}.{k}"] for k in range(4)])
        layers += [conv, nbnorm.BatchNorm.from_state(state, axis=-1), ReLU()]
    dense = Dense(rng, 4 * 4 * 16, 10)
    dense.weight, dense.bias = arrays["dense.0"], arrays["dense.1"]
    return Network(*layers, Reshape(4 * 4 * 16), dense)


def weights(net: Network) -> dict[str, np.ndarray]:
    """The inverse: what train.py's `load` gives back to Keras."""
    _, conv1, bn1, _, conv2, bn2, _, _, dense = net.layers
    arrays = {"conv1.0": conv1.weight.reshape(3, 3, 1, 8), "conv2.0": conv2.weight.reshape(3, 3, 8, 16)}
    arrays |= {f"bn1.{k}": array for k, array in enumerate(exchange.to_keras(bn1.state))}
    arrays |= {f"bn2.{k}": array for k, array in enumerate(exchange.to_keras(bn2.state))}
    return arrays | {"dense.0": dense.weight, "dense.1": dense.bias}


def folded(net: Network) -> Network:
    """For inference: each convolution and its batch normalization as one."""
    layers = []
    for layer in net.layers:
        if isinstance(layer, nbnorm.BatchNorm):
            conv = Conv(np.random.default_rng(0), 1, 1)
            conv.weight, conv.bias = nbnorm.fold(layers[-1].weight, None, layer.state, axis=-1)
            layers[-1] = conv
        else:
            layers.append(layer)
    return Network(*layers)


def accuracy(net: Network, x: np.ndarray, labels: np.ndarray) -> float:
    return float((net(x, training=False).argmax(1) == labels).mean())


def adapt(net: Network, x: np.ndarray) -> None:
    """Replace the running statistics by those of x, in one pass; nothing else changes, and no label is needed."""
    states = [layer.state for layer in net.layers if isinstance(layer, nbnorm.BatchNorm)]
    momenta = [state.momentum for state in states]
    for state in states:
        state.reset_running()
        state.momentum = None  # exact statistics of every value to come
    for start in range(0, len(x), 100):
        net(x[start : start + 100], training=True)
    for state, momentum in zip(states, momenta):
        state.momentum = momentum


def train(net: Network, x: np.ndarray, labels: np.ndarray, epochs: int) -> None:
    """Stochastic gradient descent on the cross-entropy; the running statistics go on as Keras keeps them."""
    rng = np.random.default_rng(1)
    for _ in range(epochs):
        for batch in rng.permutation(len(x))[: len(x) // BATCH * BATCH].reshape(-1, BATCH):
            logits = net(x[batch], training=True)
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            p[np.arange(BATCH), labels[batch]] -= 1
            net.backward(p / BATCH)
            for parameter, gradient in net.parameters():
                parameter -= RATE * gradient


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    images, labels = load_digits(return_X_y=True)
    good = images.astype(np.float32) / 16
    bad = 0.4 + 0.3 * good + np.random.default_rng(0).normal(0, 0.08, good.shape).astype(np.float32)
    known, new = slice(0, 1200), slice(1200, None)

    stored = dict(np.load(HERE / "digits.npz"))
    net = network(stored)
    assert all(array.tobytes() == stored[name].tobytes() for name, array in weights(net).items())  # there and back
    print(f"accuracy as Keras trained it:  {accuracy(net, good[new], labels[new]):.3f} of good images,", end=" ")
    print(f"{accuracy(net, bad[new], labels[new]):.3f} of bad ones")
    adapt(net, bad[known])
    print(f"with statistics of bad images: {accuracy(net, bad[new], labels[new]):.3f}")
    train(net, bad[known], labels[known], epochs=20)
    print(f"fine-tuned:                    {accuracy(net, bad[new], labels[new]):.3f}")

    # Sent back: Keras's weights, and a network without batch normalization.
    np.savez(out / "finetuned.npz", **weights(net))
    small = folded(net)
    y, exact = small(bad[new], training=False), net(bad[new], training=False)
    error = abs(y - exact).max() / abs(exact).max()
    print(f"folded into the convolutions:  {accuracy(small, bad[new], labels[new]):.3f}, outputs within {error:.0e}")
    assert error <= 1e-5


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT_DIRECTORY", help="where finetuned.npz goes")
    main(parser.parse_args().out)
