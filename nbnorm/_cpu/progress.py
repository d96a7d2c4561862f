"""Progress: what a first call waits for, as INFO lines of the logger `nbnorm`, which nobody sees who does not ask.

Numba tells when it begins and ends to compile, and only then: a call whose kernel is compiled costs nothing.
"""

from __future__ import annotations

import logging
import time
import weakref
from typing import Any

from numba.core import event as events

log = logging.getLogger("nbnorm")


class Progress(events.Listener):
    """Of kernels; the routines in them are compiled while a kernel is."""

    def __init__(self) -> None:
        self.kernels: weakref.WeakSet[Any] = weakref.WeakSet()
        self.started = 0.0  # one at a time: Numba compiles under a lock

    def on_start(self, event: Any) -> None:
        kernel = event.data["dispatcher"]
        if kernel in self.kernels:
            self.started = time.perf_counter()
            log.info("compiling %s", kernel.__name__)

    def on_end(self, event: Any) -> None:
        kernel = event.data["dispatcher"]
        if kernel in self.kernels:
            log.info("compiled %s in %.1f s", kernel.__name__, time.perf_counter() - self.started)


progress = Progress()
events.register("numba:compile", progress)
