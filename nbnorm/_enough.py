"""Whether a batch has enough values: without two of them there is no variance."""

from __future__ import annotations

import numpy as np

from nbnorm._arguments import short


def for_what(use_running: bool) -> tuple[str, str]:
    """Why there has to be a variance, and the way out."""
    if use_running:  # the unbiased variance goes into the running variance
        return "updating the running statistics", "update_running=False"
    return "training", "batch_norm_inference or bn.eval()"


def values(count: int, use_running: bool, shape: tuple[int, ...] | None) -> None:
    """The variance of the batch, of which x with this shape is all or a shard (None), exists."""
    if count < 2:
        purpose, way_out = for_what(use_running)
        if not use_running:
            way_out += ", or use_running=True with update_running=False"
        where = "on all ranks together" if shape is None else f"x.shape={short(shape)}"
        raise ValueError(f"{purpose} needs at least 2 values per channel, got {count} ({where}); use {way_out}")


def counted(channel: int | None, least: float, use_running: bool, shape: tuple[int, ...], weighted: bool) -> None:
    """No channel is short of values that count, as often as weights say or once; `channel` is the first one, in flat
    order.
    """
    if channel is None:
        return
    index = tuple(int(i) for i in np.unravel_index(channel, shape))
    shown = short(index[0] if len(index) == 1 else index)
    purpose, way_out = for_what(use_running)
    if not weighted:
        raise ValueError(
            f"{purpose} needs {'two values that count' if least else 'a value that counts'} per channel, not masked or "
            f"missing; channel {shown} has fewer: leave it out, or use {way_out}"
        )
    raise ValueError(
        f"{purpose} needs weights (frequencies) of more than {least:g} in all per channel; channel {shown} has less: "
        f"use larger ones, or {way_out}"
    )


def in_groups(ghost: int, groups: int, count: int, shape: tuple[int, ...]) -> None:
    """The variance of the last ghost batch, which may be the smallest, exists; `count` are its values per channel."""
    if count < 2:
        raise ValueError(
            f"ghost={short(ghost)} makes {groups} ghost batches of x.shape={short(shape)}, "
            f"the last one with {count} values per channel; expected at least 2: choose another size"
        )
