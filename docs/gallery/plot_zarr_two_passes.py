"""
A Zarr store in two passes
==========================

Images of a microscope in three stains, in a Zarr store that need not fit into memory: one pass pools the statistics
of its chunks, a second one standardizes chunk by chunk into a new store. Each chunk is read twice, and a few of them
are in memory at a time.
"""

import tempfile
import tracemalloc

import matplotlib.pyplot as plt
import numpy as np
import zarr

import nbnorm

directory = tempfile.TemporaryDirectory()
shape, chunk = (320, 3, 96, 96), (16, 3, 96, 96)  # (N, C, H, W)
images = zarr.create_array(f"{directory.name}/images", shape=shape, chunks=chunk, dtype="float32")
starts = range(0, shape[0], chunk[0])

rng = np.random.default_rng(0)
offset, spread = np.array([[100, 1000, 20_000], [20, 5, 50]])[:, :, None, None]
row, column = np.mgrid[: shape[2], : shape[3]]
for start in starts:
    cells = np.cos(row / 9 + rng.uniform(0, 6, (chunk[0], 3, 1, 1))) * np.cos(column / 9) > 0.5
    images[start : start + chunk[0]] = rng.normal(offset + 4 * spread * cells, spread)


class Counted:
    """Reads of a store, a chunk each."""

    reads = 0

    def __getitem__(self, start):
        Counted.reads += 1
        return images[start : start + chunk[0]]


###############################################################################
# The first pass. ``momentum=None`` pools: the chunks' statistics become those of the whole, whatever their sizes.

chunks = Counted()
nbnorm.batch_norm_inference(chunks[0], nbnorm.BatchNormState(3))  # compiles, which takes memory of its own
nbnorm.batch_stats(chunks[0])
Counted.reads = 0
tracemalloc.start()

state = nbnorm.BatchNormState(3, momentum=None, use_gamma=False, use_beta=False, eps=1e-12)
for start in starts:
    state.update(nbnorm.batch_stats(chunks[start]))

###############################################################################
# The second pass is one map.

standardized = zarr.create_array(f"{directory.name}/standardized", shape=shape, chunks=chunk, dtype="float32")
for start in starts:
    standardized[start : start + chunk[0]] = nbnorm.batch_norm_inference(chunks[start], state)

peak = tracemalloc.get_traced_memory()[1]
tracemalloc.stop()
print(f"{images.nbytes / 1e6:.0f} MB in {len(starts)} chunks, each read {Counted.reads / len(starts):g} times")
print(f"peak of memory: {peak / 1e6:.1f} MB, {peak / (images.nbytes / len(starts)):.1f} chunks")

###############################################################################
# What was in different places at different widths is in one. The cells are the second hill.

figure, axes = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
for ax, store, title in zip(axes, (images, standardized), ("as measured", "standardized"), strict=True):
    for channel, colour in enumerate(("#0072b2", "#d55e00", "#009e73")):
        values = store[::40, channel].ravel()
        ax.hist(values, 200, density=True, histtype="step", color=colour, label=f"stain {channel}")
    ax.set(title=title, xlabel="value", yticks=[])
axes[0].set_xscale("log")
axes[1].legend()
plt.show()

###############################################################################
# Channel by channel, of everything that was written, in float64:

y = standardized[:].astype(np.float64)
print(abs(y.mean(axis=(0, 2, 3))).max(), abs(y.std(axis=(0, 2, 3)) - 1).max())

###############################################################################
# Gaps: ``nan="omit"`` in :func:`nbnorm.batch_stats`. Names of dimensions, and Dask: :doc:`/howto/standardize`.
directory.cleanup()
