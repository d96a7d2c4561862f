"""Compiling a CUDA kernel without a GPU: what test_cuda_offline.py does on every core, a process each."""

from __future__ import annotations

import gc
import importlib
import sys
import types

import fake_cupy

gc.set_threshold(
    50_000, 20, 100
)  # a compiler's objects live until it ends: looking through them is a tenth of the time


def compiled(module, function, kinds, numbers, cc):
    """PTX of a kernel for an architecture, and what the linker says of it."""
    if "cupy" not in sys.modules:
        fake_cupy.install()
    from cuda.core import Linker, LinkerOptions, ObjectCode
    from numba.cuda import dispatcher

    from nbnorm._cuda.launch import cuda

    kernel = getattr(importlib.import_module(f"nbnorm._cuda.{module}"), function)
    # Numba asks the driver for the current device when it compiles what a kernel calls.
    dispatcher.get_current_device = lambda: types.SimpleNamespace(compute_capability=cc)
    ptx, _ = cuda.compile_ptx(kernel.body, kernel.signature(kinds, (*kinds, *numbers)), cc=cc, launch_bounds=(256, 2))
    linker = Linker(ObjectCode.from_ptx(ptx.encode()), options=LinkerOptions(arch=f"sm_{cc[0]}{cc[1]}", verbose=True))
    linker.link("cubin")
    return ptx, linker.get_info_log()
