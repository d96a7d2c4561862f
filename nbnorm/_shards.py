"""What the ranks of a batch in shards say to each other, and the errors that all of them raise together.

Forward, two messages: (channels, values per channel, whether some do not count), of fixed length so that also a rank
whose arguments are wrong can send it, then k, d and m2 of each channel, and the count if it is not that of the first
message on some rank. Backward, one: s, p, h and e of each channel and a mark of success. So in
forward mode, with t, Σ w(x − mean) and o for the first three; the double backward pass sends both and Σ vw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbnorm import _device
from nbnorm._channel_rows import COUNT, M2
from nbnorm.parallel import Sync

WELL, FAILED = 0.0, -1.0  # marks; FAILED may also stand in the place of the number of channels


def announce(peers: Sync | None, failure: Callable[[], Any]) -> None:
    """Send the other ranks, which wait for a message, the one of a rank that is about to raise an error."""
    if peers is not None:
        peers(failure())


def failed_forward() -> NDArray[np.float64]:
    """The first message of a rank that cannot go on."""
    return np.array([FAILED, 0.0, 0.0])


def gather_statistics(
    xp: Any, sync: Sync, batch: NDArray, values: int, is_counted: bool
) -> tuple[NDArray, NDArray[np.float64], float | None]:  # fmt: skip
    """Every rank's statistics, its values per channel, and their sum: (ranks, 1), or (ranks, channels) and None.

    `batch` has those of this rank, whose channels have `values` each, or with `is_counted` what its last row says.

    Raises
    ------
    RuntimeError
        When a rank has failed.
    ValueError
        When not all ranks have the same channels.
    """
    channels = batch.shape[1]
    said = exchange(sync, np.array([channels, values, is_counted], np.float64), None)
    _refuse_failed(said[:, 0] == FAILED)
    if np.any(said[:, 0] != said[0, 0]):
        other = int(np.argmax(said[:, 0] != said[0, 0]))
        raise ValueError(
            f"rank 0 has {said[0, 0]:.0f} channels and rank {other} has {said[other, 0]:.0f}; "
            "expected the same on all ranks"
        )
    message = batch[: M2 + 1]
    if said[:, 2].any():
        if not is_counted:
            batch[COUNT] = values
        message = xp.concatenate([message, batch[COUNT : COUNT + 1]])
    gathered = exchange(sync, message.reshape(-1), len(said))
    if said[:, 2].any():
        return gathered, np.ascontiguousarray(_device.host(gathered[:, 3 * channels :])), None
    return gathered, np.ascontiguousarray(said[:, 1:2]), float(said[:, 1].sum())


def exchange(sync: Sync, packed: Any, ranks: int | None) -> Any:
    """Everyone's; ranks is their number, where it is known."""
    gathered = sync(packed)
    shape, dtype = getattr(gathered, "shape", ()), getattr(gathered, "dtype", None)
    expected = (*(shape[:1] if ranks is None else (ranks,)), packed.size)
    if len(shape) != 2 or shape != expected or dtype != np.float64 or not gathered.flags.c_contiguous:
        found = f"a {type(gathered).__qualname__}" if dtype is None else f"{dtype} of shape {shape!s:.40}"
        raise ValueError(
            f"sync returned {found}; expected C-contiguous float64, "
            f"({'ranks' if ranks is None else ranks}, {packed.size})"
        )
    return gathered


def exchange_sums(sync: Sync, packed: Any, counts: NDArray[np.float64] | None) -> tuple[Any, NDArray[np.float64]]:
    """Everyone's sums, whose last number is a mark of success, and of how many values they are: 0 where nobody has
    said so, as with running statistics.

    Raises
    ------
    RuntimeError
        When a rank has failed.
    """
    gathered = exchange(sync, packed, None if counts is None else len(counts))
    _refuse_failed(_device.host(gathered[:, -1]) == FAILED)
    return gathered, np.zeros((len(gathered), 1)) if counts is None else counts


def _refuse_failed(failed: NDArray[np.bool_]) -> None:
    if failed.any():
        ranks = np.flatnonzero(failed)
        named = ", ".join(map(str, ranks[:5])) + (", ..." if ranks.size > 5 else "")
        raise RuntimeError(
            f"rank{'s' * (ranks.size > 1)} {named} of {failed.size} failed before this exchange and raised the cause; "
            "nothing has changed on this rank"
        )
