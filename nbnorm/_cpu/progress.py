"""Progress: what a first call waits for, as INFO lines of the logger `nbnorm`, which nobody sees who does not ask.

And Python's garbage collector looks less often meanwhile: of the millions of objects that Numba makes, nearly all live
until it ends, and are looked through again and again. It is a sixth of a first call.

Numba tells when it begins and ends to compile, and only then: a call whose kernel is compiled costs nothing.
"""

from __future__ import annotations

import gc
import logging
import time
import weakref
from typing import Any

from numba.core import event as events

log = logging.getLogger("nbnorm")


# New objects after which the collector looks, at least, and how many such looks come before one through older objects.
RARELY = 50_000, 20, 100


class Progress(events.Listener):
    """Of kernels; the routines in them are compiled while a kernel is."""

    def __init__(self) -> None:
        self.kernels: weakref.WeakSet[Any] = weakref.WeakSet()
        self.started = 0.0  # one at a time: Numba compiles under a lock
        self.thresholds = self.meanwhile = gc.get_threshold()

    def on_start(self, event: Any) -> None:
        kernel = event.data["dispatcher"]
        if kernel in self.kernels:
            self.started = time.perf_counter()
            self.thresholds = gc.get_threshold()
            if self.thresholds[0]:  # 0: the user wants none at all
                gc.set_threshold(*map(max, self.thresholds, RARELY))
            self.meanwhile = gc.get_threshold()
            log.info("compiling %s", kernel.__name__)

    def on_end(self, event: Any) -> None:
        kernel = event.data["dispatcher"]
        if kernel in self.kernels:
            if gc.get_threshold() == self.meanwhile:  # nobody has changed it
                gc.set_threshold(*self.thresholds)
            log.info("compiled %s in %.1f s", kernel.__name__, time.perf_counter() - self.started)


progress = Progress()
events.register("numba:compile", progress)
