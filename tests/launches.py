"""For tests of the CUDA host code without a GPU: a stand-in for CuPy, and a record of the launches."""

from __future__ import annotations

import inspect
import sys
import types

import fake_cupy
import numpy as np
import pytest

import nbnorm
from nbnorm import _dispatch


@pytest.fixture
def cupy(monkeypatch):
    """The stand-in, also where the real one is installed: these tests start nothing."""
    made = fake_cupy.made()
    for name in _backend():
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("nbnorm._cuda", raising=False)
    monkeypatch.setitem(sys.modules, "cupy", made)
    _dispatch._cuda.cache_clear()
    yield made
    _dispatch._cuda.cache_clear()
    for name in _backend():
        del sys.modules[name]
    vars(nbnorm).pop("_cuda", None)


def _backend():
    return [name for name in sys.modules if name == "nbnorm._cuda" or name.startswith("nbnorm._cuda.")]


@pytest.fixture
def started(cupy, monkeypatch):
    """Every launch that would have been: (kernel, grid, block, stream, arguments as the signature has them)."""
    from nbnorm._cuda import apply, commits, finalize, fused, launch, reduce

    log = []

    class Recorder:
        def __init__(self, kernel):
            self.kernel = kernel

        def compile(self, signature):
            return self.kernel, signature

    def starter(compiled, nested):
        kernel, signature = compiled
        loaded_for = fake_cupy.Device.current

        def start(stream, grid, block, room, *values):
            assert len(values) == len(signature)
            assert getattr(fake_cupy.thread, "context", None) == fake_cupy.Device.current, "no context to launch into"
            log.append(types.SimpleNamespace(kernel=kernel, grid=grid, block=block, room=room,
                                             stream=stream, device=fake_cupy.Device.current, loaded_for=loaded_for,
                                             values=values, signature=signature))  # fmt: skip

        return start

    for module in (reduce, finalize, apply, fused, commits):
        for name, kernel in vars(module).items():
            if isinstance(kernel, launch.Kernel):
                monkeypatch.setattr(kernel, "dispatcher", Recorder(name))
                monkeypatch.setattr(kernel, "ready", {})
    monkeypatch.setattr(launch, "_starter", starter)
    return log


def arguments(one):
    """By the names of the kernel's parameters."""
    from nbnorm._cuda import apply, commits, finalize, fused, reduce

    kernel = next(vars(m)[one.kernel] for m in (reduce, finalize, apply, fused, commits) if one.kernel in vars(m))
    return dict(zip(inspect.signature(kernel.body).parameters, one.values, strict=True))


def step(cupy, shape, dtype="float32", inference=True, **options):
    x, dy = (cupy.asarray(np.ones(shape, dtype)) for _ in range(2))
    state = nbnorm.BatchNormState(shape[1], device="cuda", **options)
    y, saved = nbnorm.batch_norm_training(x, state)
    gradients = nbnorm.batch_norm_backward(dy, saved)
    if inference:
        nbnorm.batch_norm_inference(x, state)
    return x, dy, state, y, saved, gradients
