"""Threads of a block of the simulator that take turns, in a drawn order: greenlets of the thread that launches.

The simulator's own are threads of Python which all run at once, beside a loop that never sleeps: nearly all of the time
goes into switching between them. Here it is a function call. A thread goes on until a barrier or, if a number drawn
says so, until an access of memory that threads share, where it sleeps until no other one can go on: a barrier that is
missing shows, and so does a sum that two threads write.
"""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
from greenlet import getcurrent, greenlet
from numba.cuda.simulator import kernel, kernelapi
from numba.cuda.simulator.cudadrv.devicearray import FakeWithinKernelCUDAArray
from numba.cuda.simulator.kernelapi import Dim3

from nbnorm._cuda import plan, simulator

drawn = random.Random()  # which conftest.py seeds for every test

OFTEN = 1 / 4  # a thread that sleeps now and then falls asleep before an access


class Thread(greenlet):
    """With what a kernel asks the simulator's own thread for."""

    def __init__(self, block, block_index, thread_index):
        super().__init__(block.work)
        self._manager, self.blockIdx, self.threadIdx = block, block_index, Dim3(*thread_index)
        self.sleeps = self.asleep = self.at_barrier = False
        self.met = 0  # at barriers of its warp

    def goes_on(self):
        return not (self.asleep or self.at_barrier) and all(mate.met >= self.met for mate in self.warp)

    def syncthreads(self):
        self.at_barrier = True
        self.parent.switch()

    def syncwarp(self):
        self.met += 1
        self.parent.switch()

    syncthreads_or = kernel.BlockThread.syncthreads_or


class Block:
    """In the place of the simulator's BlockManager."""

    def __init__(self, function, grid, shape, debug):
        self.function, self.places = function, list(np.ndindex(*shape))
        self.block_state = np.zeros(shape, bool)  # for BlockThread

    def run(self, index, *args):
        self.work = lambda: self.function(*args)
        running = [Thread(self, Dim3(*index), place) for place in self.places]
        for number, thread in enumerate(running):
            first = number - number % plan.WARP
            thread.warp = running[first : first + plan.WARP]
        # All, so that some meet at one place; or one, so that the others are far ahead of it.
        for thread in running if drawn.random() < 0.5 else [drawn.choice(running)]:
            thread.sleeps = True
        try:
            while running:
                drawn.shuffle(running)
                turns = 0
                for thread in running:
                    if thread.goes_on():
                        thread.switch()
                        turns += 1
                if turns:
                    running = [thread for thread in running if not thread.dead]
                elif asleep := [thread for thread in running if thread.asleep]:
                    for thread in asleep:
                        thread.asleep = False
                else:
                    assert all(thread.at_barrier for thread in running), "one waits for threads that do not come"
                    for thread in running:
                        thread.at_barrier = False
        finally:  # where one has failed, the others leave the kernel
            for thread in filter(None, running):
                thread.throw()


def _or_another_first(access):
    """Before it other threads may go on."""

    def in_turn(*args):
        thread = getcurrent()
        if isinstance(thread, Thread) and thread.sleeps and drawn.random() < OFTEN:
            thread.asleep = True
            thread.parent.switch()
        return access(*args)

    return in_turn


class Shared(np.ndarray):
    """Memory of a block."""

    __getitem__, __setitem__ = map(_or_another_first, (np.ndarray.__getitem__, np.ndarray.__setitem__))


def take_turns():
    kernel.BlockManager = Block
    simulator.wait_for_warp = lambda: getcurrent().syncwarp()
    kernelapi.threading = SimpleNamespace(current_thread=getcurrent)
    for name in ("__getitem__", "__setitem__"):
        access = getattr(FakeWithinKernelCUDAArray, name)
        setattr(FakeWithinKernelCUDAArray, name, _or_another_first(access))
