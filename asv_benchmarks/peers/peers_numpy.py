"""NumPy for peers.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from peers_rows import Data
from peers_systems import EPS, MOMENTUM, System, numpy_dtype, parameter_type


def numpy_system(data: Data, dtype: str) -> System:
    """The formulas as one writes them."""
    axes, n, wide = data.row.axes, data.row.count, np.dtype(parameter_type(dtype))
    kind = numpy_dtype(dtype)
    x, dy = (data.row.view(values.astype(kind)) for values in (data.x, data.dy))
    shape = (1, -1, *[1] * (x.ndim - 2))
    gamma, beta, frozen_mean, frozen_var = (
        values.astype(wide).reshape(shape) for values in (data.gamma, data.beta, data.mean, data.var)
    )
    running_mean, running_var = np.zeros_like(gamma), np.ones_like(gamma)
    options: dict[str, Any] = {"axis": axes, "dtype": wide, "keepdims": True}
    eps, momentum, unbiased = wide.type(EPS), wide.type(MOMENTUM), wide.type(n / (n - 1))
    saved_mean = x.mean(**options)
    saved_inv_std = 1 / np.sqrt(np.square(x - saved_mean).mean(**options) + eps)

    def training(out: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        mean = x.mean(**options)
        y = np.subtract(x, mean, out=out)
        var = np.square(y).mean(**options)
        y *= gamma / np.sqrt(var + eps)
        y += beta
        running_mean[...] += momentum * (mean - running_mean)
        running_var[...] += momentum * (unbiased * var - running_var)
        return (y.astype(kind, copy=False),)

    def backward(out: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        x_hat = (x - saved_mean) * saved_inv_std
        dbeta, dgamma = dy.sum(**options), (dy * x_hat).sum(**options)
        x_hat *= dgamma / n
        dx = np.subtract(dy, dbeta / n, out=out)
        dx -= x_hat
        dx *= gamma * saved_inv_std
        return dx.astype(kind, copy=False), dgamma.reshape(-1), dbeta.reshape(-1)

    def inference(out: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        y = np.subtract(x, frozen_mean, out=out)
        y *= gamma / np.sqrt(frozen_var + eps)
        y += beta
        return (y.astype(kind, copy=False),)

    calls: dict[str, Callable[[], Any]] = {"training": training, "backward": backward, "inference": inference}
    if kind == wide:
        given = np.empty_like(x)
        calls |= {f"{name} out": lambda call=call: call(given) for name, call in list(calls.items())}
    return System(np.__version__, calls, lambda _: (running_mean.reshape(-1), running_var.reshape(-1)), np.asarray)
