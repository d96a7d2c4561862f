"""Compiling a CUDA kernel without a GPU: what test_cuda_offline.py does on every core, a process each."""

from __future__ import annotations

import gc
import importlib
import sys
import types

import fake_cupy

FRONT = (9, 0)  # of what Numba itself looks at an architecture for, tanh and atomic additions, the kernels have nothing


def compiled(module, function, kinds, numbers, architectures):
    """PTX of a kernel and what the linker says of it, for each architecture: to PTX all go through Numba once."""
    gc.disable()  # a tenth of the time, even where it collects rarely; what is lost is 10 MB a kernel
    if "cupy" not in sys.modules:
        fake_cupy.install()
    from cuda.core import Linker, LinkerOptions, ObjectCode
    from numba.cuda import compiler, dispatcher

    kernel = getattr(importlib.import_module(f"nbnorm._cuda.{module}"), function)
    # Numba asks the driver for the current device when it compiles what a kernel calls.
    dispatcher.get_current_device = lambda: types.SimpleNamespace(compute_capability=FRONT)
    library, _ = compiler._compile_pyfunc_with_fixup(  # compile_ptx begins anew for each architecture
        kernel.body,
        kernel.signature(kinds, (*kinds, *numbers)),
        device=False,
        abi="numba",
        cc=FRONT,
        launch_bounds=(256, 2),
    )
    found = []
    for cc in architectures:
        ptx, options = library.get_asm_str(cc=cc), LinkerOptions(arch=f"sm_{cc[0]}{cc[1]}", verbose=True)
        linker = Linker(ObjectCode.from_ptx(ptx.encode()), options=options)
        linker.link("cubin")
        found.append((ptx, linker.get_info_log()))
    return found
