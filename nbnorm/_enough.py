"""Whether a batch has enough values: without two of them there is no variance."""

from __future__ import annotations

import numpy as np

from nbnorm._arguments import short


def values(count: int, use_running: bool, shape: tuple[int, ...] | None) -> None:
    """The variance of the batch, of which x with this shape is all or a shard (None), exists."""
    if count < 2:
        purpose = "training"
        way_out = "batch_norm_inference or bn.eval(), or use_running=True with update_running=False"
        if use_running:  # the unbiased variance goes into the running variance
            purpose, way_out = "updating running_var", "update_running=False"
        where = "on all ranks together" if shape is None else f"x.shape={short(shape)}"
        raise ValueError(f"{purpose} needs at least 2 values per channel, got {count} ({where}); use {way_out}")


def counted(channel: int | None, least: float, use_running: bool, shape: tuple[int, ...]) -> None:
    """No channel is short of values that count; `channel` is the first one, in flat order."""
    if channel is None:
        return
    index = tuple(int(i) for i in np.unravel_index(channel, shape))
    shown = index[0] if len(index) == 1 else index
    purpose, way_out = "training", "use batch_norm_inference"
    if use_running:
        purpose, way_out = "updating the running statistics", "use update_running=False"
    if least > 0:
        way_out = f"larger weights, which are frequencies, or {way_out}"
    raise ValueError(
        f"{purpose} needs values that count more than {least:g} times in all; those of channel {shown} do not: "
        f"{way_out}"
    )


def in_groups(ghost: int, groups: int, count: int, shape: tuple[int, ...]) -> None:
    """The variance of the last ghost batch, which may be the smallest, exists; `count` are its values per channel."""
    if count < 2:
        raise ValueError(
            f"ghost={short(ghost)} makes {groups} ghost batches of x.shape={short(shape)}, "
            f"the last one with {count} values per channel; expected at least 2: choose another size"
        )
