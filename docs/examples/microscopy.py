"""The channels of microscopy images, with masked pixels: python docs/examples/microscopy.py [PICTURE.png]

A stained section of colon, which scikit-image ships, as a microscope takes it that puts 4 by 4 fields together: each
under another brightness of the lamp, which optical density turns into another mean. Standardized field by field and
channel by channel the brightness is gone. But a field with much empty glass has other statistics than one full of
tissue, so that the same tissue gets other values on either side of a seam; with `where=` the glass does not count.
Needs scikit-image and Matplotlib.
"""

from __future__ import annotations

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from skimage.data import immunohistochemistry

import nbnorm

FIELDS = 4  # along each side
COLOURED = 0.1  # glass and the lamp are grey: channels of a pixel that differ by more are tissue


def fields(image: NDArray) -> NDArray:
    """(H, W, channels) as (field, row, field, column, channels): a view."""
    height, width, channels = image.shape
    return image.reshape(FIELDS, height // FIELDS, FIELDS, width // FIELDS, channels)


def standardized(image: NDArray, where: NDArray | None) -> NDArray:
    """Each channel of each field by its own mean and variance, of the pixels that count."""
    state = nbnorm.BatchNormState((FIELDS, FIELDS, image.shape[-1]), use_gamma=False, use_beta=False)
    y, _ = nbnorm.batch_norm_training(fields(image), state, axis=(0, 2, 4), where=where)
    return y.reshape(image.shape)


def seams(image: NDArray, tissue: NDArray) -> float:
    """How much neighbouring pixels of tissue differ across a seam, compared with elsewhere; 1 shows no seam."""
    steps, both = np.abs(np.diff(image, axis=1)).mean(-1), tissue[:, 1:] & tissue[:, :-1]
    width = image.shape[1] // FIELDS
    across = np.arange(1, image.shape[1]) % width == 0
    return float(steps[:, across][both[:, across]].mean() / steps[:, ~across][both[:, ~across]].mean())


def main(picture: str) -> None:
    light = immunohistochemistry().astype(np.float32) / 255
    density = -np.log(np.maximum(light, 1 / 255))
    lamp = np.random.default_rng(0).uniform(0.4, 1, (FIELDS, 1, FIELDS, 1, 1)).astype(np.float32)
    taken = (fields(density) - np.log(lamp)).reshape(density.shape)
    tissue = np.ptp(taken, axis=-1) > COLOURED

    where = fields(tissue[..., None])  # (4, 128, 4, 128, 1): broadcasts over the channels
    images = {
        "one lamp": density,
        "as taken": taken,
        "standardized, glass counts": standardized(taken, None),
        "standardized, glass masked": standardized(taken, where),
    }
    share = where.mean((1, 3))
    print(f"{tissue.mean():.0%} tissue, {share.min():.0%} to {share.max():.0%} of a field")
    found = {name: seams(image, tissue) for name, image in images.items()}
    for name, step in found.items():
        print(f"{name:27} step across seams {step:.2f}")
    assert found["standardized, glass masked"] < 0.7 * min(found["as taken"], found["standardized, glass counts"])
    kept = fields(images["standardized, glass masked"])
    assert abs(kept.mean((1, 3), dtype=np.float64, where=where)).max() < 1e-5
    assert abs(kept.std((1, 3), dtype=np.float64, where=where) - 1).max() < 1e-3  # eps

    figure, axes = plt.subplots(1, 4, figsize=(13, 4), layout="constrained")
    for ax, (name, image) in zip(axes, images.items(), strict=True):
        low, high = np.percentile(image[tissue], (1, 99), axis=0)
        ax.imshow(np.clip(1 - (image - low) / (high - low), 0, 1))
        ax.set(title=f"{name}\nstep across seams {found[name]:.2f}", xticks=[], yticks=[])
    figure.savefig(picture, dpi=100)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "microscopy.png")
