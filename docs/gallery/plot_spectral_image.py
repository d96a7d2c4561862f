"""
A spectral image
================

A camera with 64 bands, the brightest a thousand times as bright as the faintest. Two materials differ by two per cent
in the faint ones: lost beside the noise of the others, until each band is standardized. The statistics may come from
tiles, in any order and of any size.
"""

import matplotlib.pyplot as plt
import numpy as np

import nbnorm

rng = np.random.default_rng(0)
rows, columns, bands = 200, 300, 64
y, x = np.mgrid[:rows, :columns]
material = np.sin(x / 25) * np.cos(y / 30) > 0.2
brightness = np.geomspace(10_000, 10, bands)
difference = np.where(np.arange(bands) < 40, 0, 0.02)
noise = rng.normal(0, 0.02, (rows, columns, bands))
cube = brightness * (1 + material[:, :, None] * difference + noise)
cube = cube.astype(np.float32)  # (row, column, band): the channels are the last axis

###############################################################################
# Tile by tile, as it would be read from a file larger than memory. ``momentum=None`` pools exactly.

state = nbnorm.BatchNormState(bands, momentum=None, use_gamma=False, use_beta=False, eps=1e-12)
for first in range(0, rows, 64):
    state.update(nbnorm.batch_stats(cube[first : first + 64], axis=-1))
standardized = nbnorm.batch_norm_inference(cube, state, axis=-1)

figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
axes[0].imshow(cube.mean(axis=-1), cmap="gray")
axes[0].set_title("mean of all bands, as measured")
axes[1].imshow(standardized.mean(axis=-1), cmap="gray")
axes[1].set_title("mean of all bands, standardized")
for ax in axes:
    ax.set_axis_off()
plt.show()

###############################################################################
# The tiles' statistics are those of the whole:

whole = nbnorm.batch_stats(cube, axis=-1)
print(abs(state.running_mean / whole.mean - 1).max(), abs(standardized.std(axis=(0, 1)) - 1).max())
