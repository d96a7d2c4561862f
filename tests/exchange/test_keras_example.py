"""What docs/examples/keras_digits sends back to Keras computes the same there."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "keras_digits"


def test_what_the_example_sends_back_computes_the_same(rng, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE)
    import finetune
    import train

    subprocess.run([sys.executable, EXAMPLE / "finetune.py", tmp_path], check=True)
    arrays = dict(np.load(tmp_path / "finetuned.npz"))
    network, model = finetune.network(arrays), train.network()
    train.load(model, arrays)
    assert all(array.tobytes() == arrays[name].tobytes() for name, array in train.weights(model).items())
    x = rng.uniform(size=(100, 8, 8, 1)).astype(np.float32)
    y = network(x, training=False)
    # Sums of 300 products in float32 behind two others, in another order: some 2**-20 of the largest.
    assert abs(keras.ops.convert_to_numpy(model(x, training=False)) - y).max() <= 1e-5 * abs(y).max()
