"""PyTorch for peers.py: eager, compiled, and with the kernels of oneDNN."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from peers_rows import Data
from peers_systems import EPS, MOMENTUM, System, parameter_type


def torch_system(data: Data, dtype: str) -> System:
    """Eager: the operators below torch.nn.BatchNorm, which cost less than the module."""
    torch, x, dy, gamma, beta, running, frozen = _tensors(data, dtype)
    forward, gradient = torch.native_batch_norm, torch.ops.aten.native_batch_norm_backward
    _, mean, inv_std = forward(x, gamma, beta, *frozen, True, 0.0, EPS)
    every = [True, True, True]
    y, dx, saved = torch.empty_like(x), torch.empty_like(x), (torch.empty_like(mean), torch.empty_like(mean))
    none = torch.empty_like(mean), torch.empty_like(mean)
    outs = {"out0": dx, "out1": torch.empty_like(gamma), "out2": torch.empty_like(gamma)}
    backward = (dy, x, gamma, *frozen, mean, inv_std, True, EPS, every)
    calls: dict[str, Callable[[], Any]] = {
        "training": lambda: forward(x, gamma, beta, *running, True, MOMENTUM, EPS),
        "backward": lambda: gradient(*backward),
        "inference": lambda: forward(x, gamma, beta, *frozen, False, MOMENTUM, EPS),
    }
    if data.row.dense:  # otherwise PyTorch 2.13 writes wrong values into the output
        calls |= {
            "training out": lambda: forward(x, gamma, beta, *running, True, MOMENTUM, EPS, out=(y, *saved)),
            "backward out": lambda: gradient.out(*backward, **outs),
            "inference out": lambda: forward(x, gamma, beta, *frozen, False, MOMENTUM, EPS, out=(y, *none)),
        }
    return System(torch.__version__, calls, lambda _: running, _from_torch)


def onednn_system(data: Data, dtype: str) -> System:
    """oneDNN's kernels, through PyTorch, for tensors as oneDNN's convolutions leave them: channels in blocks."""
    if dtype != "float32" or data.row.order or len(data.row.shape) != 4:
        raise NotImplementedError("PyTorch calls oneDNN for float32, 4-D and channels first only")
    torch, x, dy, gamma, beta, running, frozen = _tensors(data, dtype)
    if not torch.backends.mkldnn.is_available():
        raise NotImplementedError("this PyTorch was built without oneDNN")
    x, dy, channels = x.to_mkldnn(), dy.to_mkldnn(), x.shape[1]
    if channels >= 16:  # which is a block; fewer would be padded
        # `to_mkldnn` alone keeps the order of the values, for which oneDNN has slow kernels only.
        identity = torch.eye(channels).view(channels, channels, 1, 1).to_mkldnn()
        x, dy = (torch.mkldnn_convolution(one, identity, None, [0, 0], [1, 1], [1, 1], 1) for one in (x, dy))
    forward, gradient = torch.native_batch_norm, torch.ops.aten.native_batch_norm_backward
    _, *stats = forward(x, gamma, beta, *frozen, True, 0.0, EPS)
    calls: dict[str, Callable[[], Any]] = {
        "training": lambda: forward(x, gamma, beta, *running, True, MOMENTUM, EPS),
        "backward": lambda: gradient(dy, x, gamma, *frozen, *stats, True, EPS, [True, True, True]),
        "inference": lambda: forward(x, gamma, beta, *frozen, False, MOMENTUM, EPS),
    }
    found = re.search(r"MKL-DNN v([\d.]+)", torch.__config__.show())
    version = f"{found[1] if found else 'unknown'} in PyTorch {torch.__version__}"
    return System(version, calls, lambda _: running, _from_torch)


def compile_system(data: Data, dtype: str) -> System:
    """torch.compile of functional.batch_norm and, for the backward pass, of the formula."""
    torch, x, dy, gamma, beta, running, frozen = _tensors(data, dtype)
    torch._dynamo.reset()
    batch_norm = torch.nn.functional.batch_norm
    _, mean, inv_std = torch.native_batch_norm(x, gamma, beta, *frozen, True, 0.0, EPS)
    axes, n, shape = data.row.axes, data.row.count, (1, -1, *[1] * (x.ndim - 2))
    wide = gamma.dtype

    @torch.compile(dynamic=False)
    def training(x: Any, gamma: Any, beta: Any, mean: Any, var: Any) -> Any:
        return (batch_norm(x, mean, var, gamma, beta, True, MOMENTUM, EPS),)

    @torch.compile(dynamic=False)
    def inference(x: Any, gamma: Any, beta: Any, mean: Any, var: Any) -> Any:
        return (batch_norm(x, mean, var, gamma, beta, False, MOMENTUM, EPS),)

    @torch.compile(dynamic=False)
    def backward(dy: Any, x: Any, gamma: Any, mean: Any, inv_std: Any) -> Any:
        g = dy.to(wide)
        x_hat = (x.to(wide) - mean.view(shape)) * inv_std.view(shape)
        dbeta, dgamma = g.sum(axes), (g * x_hat).sum(axes)
        dx = (gamma * inv_std).view(shape) * (g - (dbeta / n).view(shape) - x_hat * (dgamma / n).view(shape))
        return dx.to(dy.dtype), dgamma, dbeta

    calls: dict[str, Callable[[], Any]] = {
        "training": lambda: training(x, gamma, beta, *running),
        "backward": lambda: backward(dy, x, gamma, mean, inv_std),
        "inference": lambda: inference(x, gamma, beta, *frozen),
    }
    return System(torch.__version__, calls, lambda _: running, _from_torch)


def _tensors(data: Data, dtype: str) -> tuple[Any, ...]:
    """The module torch, x, dy, gamma, beta, and two pairs of running statistics: to be updated, and to be used."""
    torch = importlib.import_module("torch")
    torch.set_grad_enabled(False)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    x, dy = (data.row.view(torch.from_numpy(values).to(getattr(torch, dtype))) for values in (data.x, data.dy))
    wide = getattr(torch, parameter_type(dtype))
    gamma, beta, mean, var = (torch.tensor(values, dtype=wide) for values in data[3:])
    return torch, x, dy, gamma, beta, (torch.zeros_like(mean), torch.ones_like(var)), (mean, var)


def _from_torch(tensor: Any) -> np.ndarray:
    return (tensor.to_dense() if tensor.is_mkldnn else tensor).double().numpy()
