"""Threads of a block of the simulator that take turns: each runs from one barrier to the next, in a drawn order.

The simulator's own all run at once beside a loop that never sleeps, and two thirds of the time go into switching
between them. A barrier that is missing shows here too, since of two orders one is the wrong one. What needs a switch in
the midst of a turn to go wrong, such as a sum that two threads write, shows with --exhaustive, which runs a part of the
tests with the others too (tests/test_cuda_simulator.py).
"""

from __future__ import annotations

import random
import threading
from typing import ClassVar

import numpy as np
from numba.cuda.simulator import kernel
from numba.cuda.simulator.kernelapi import Dim3


class Thread(kernel.BlockThread):
    """Of one block after the other: a thread takes as long to begin as the work of one."""

    def __init__(self):
        threading.Thread.__init__(self, daemon=True)
        self.turn = threading.Lock()
        self.turn.acquire()
        self.start()

    def begin(self, block, block_index, thread_index):
        self._manager, self.at_barrier = block, False
        self.blockIdx, self.threadIdx = Dim3(*block_index), Dim3(*thread_index)

    def run(self):
        while True:
            self.turn.acquire()
            try:
                self._manager.work()
            except Exception as error:
                self._manager.error = self._manager.error or error
            self.at_barrier = False
            self._manager.back.release()

    def syncthreads(self):
        self.at_barrier = True
        self._manager.back.release()
        self.turn.acquire()
        if self._manager.error:
            raise RuntimeError("another thread of the block has failed")


class Block:
    """In the place of the simulator's BlockManager."""

    threads: ClassVar[list[Thread]] = []  # of all blocks, since one runs at a time

    def __init__(self, function, grid, shape, debug):
        self.function, self.shape, self.error = function, shape, None
        self.block_state = np.zeros(shape, bool)  # for BlockThread
        self.back = threading.Lock()
        self.back.acquire()

    def run(self, index, *args):
        self.work = lambda: self.function(*args)
        places = list(np.ndindex(*self.shape))
        self.threads += [Thread() for _ in range(len(places) - len(self.threads))]
        running = self.threads[: len(places)]
        for thread, place in zip(running, places, strict=True):
            thread.begin(self, index, place)
        order = random.Random(0)
        while running:
            order.shuffle(running)
            for thread in running:
                thread.turn.release()
                self.back.acquire()
            running = [thread for thread in running if thread.at_barrier]
        if self.error:
            raise self.error
