"""What the batch normalizations of other libraries do by default, in the terms of `BatchNormState`.

Read in their sources and tried beside them on 2026-11-26 (Chainer: read only); tests/exchange tries
them again. Keras, Flax and ONNX call the weight of the old statistics momentum, Chainer calls it decay.
"""

from __future__ import annotations

from typing import Any

CONVENTIONS: dict[str, dict[str, Any]] = {
    "pytorch": {"eps": 1e-5, "momentum": 0.1, "unbiased": True},  # torch.nn.BatchNorm2d, 2.13
    "keras": {"eps": 1e-3, "momentum": 0.01, "unbiased": False},  # keras.layers.BatchNormalization, 3.15
    "flax": {"eps": 1e-5, "momentum": 0.01, "unbiased": False},  # flax.linen and nnx.BatchNorm, 0.12
    "onnx": {"eps": 1e-5, "momentum": 0.1, "unbiased": False},  # BatchNormalization of opset 15
    "chainer": {"eps": 2e-5, "momentum": 0.1, "unbiased": True},  # chainer.links.BatchNormalization, 7.8
}


def of(library: str) -> dict[str, Any]:
    """Arguments of the constructor.

    Raises
    ------
    ValueError
        For an unknown library.
    """
    if not isinstance(library, str) or library not in CONVENTIONS:
        raise ValueError(f"library is {library!r:.40}; expected one of {', '.join(map(repr, CONVENTIONS))}")
    return CONVENTIONS[library]
