"""JAX for peers.py."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from peers_rows import Data
from peers_systems import EPS, MOMENTUM, System, numpy_dtype, parameter_type


def jax_system(data: Data, dtype: str) -> System:
    """jit of the two-pass formulas, each call waited for."""
    if not data.row.dense:
        raise NotImplementedError("JAX has no strided arrays")
    jax = importlib.import_module("jax")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", dtype == "float64")
    jnp = jax.numpy
    n, axis = data.row.count, len(data.row.shape) - 1 if data.row.order == "last" else 1
    axes = tuple(i for i in range(len(data.row.shape)) if i != axis)
    shape = tuple(-1 if i == axis else 1 for i in range(len(data.row.shape)))
    x, dy = (jnp.asarray(values.astype(numpy_dtype(dtype))) for values in data[1:3])
    kind, wide = x.dtype, parameter_type(dtype)
    gamma, beta, frozen_mean, frozen_var = (jnp.asarray(values.astype(wide)) for values in data[3:])

    def normalized(x: Any, gamma: Any, beta: Any, mean: Any, var: Any) -> Any:
        scale = gamma * jax.lax.rsqrt(var + EPS)
        return ((x - mean.reshape(shape)) * scale.reshape(shape) + beta.reshape(shape)).astype(kind)

    @jax.jit
    def training(x: Any, gamma: Any, beta: Any, running_mean: Any, running_var: Any) -> Any:
        x = x.astype(wide)
        mean = x.mean(axes)
        var = jnp.square(x - mean.reshape(shape)).mean(axes)
        running_mean = (1 - MOMENTUM) * running_mean + MOMENTUM * mean
        running_var = (1 - MOMENTUM) * running_var + MOMENTUM * n / (n - 1) * var
        return normalized(x, gamma, beta, mean, var), running_mean, running_var, mean, jax.lax.rsqrt(var + EPS)

    @jax.jit
    def backward(dy: Any, x: Any, gamma: Any, mean: Any, inv_std: Any) -> Any:
        g = dy.astype(wide)
        x_hat = (x.astype(wide) - mean.reshape(shape)) * inv_std.reshape(shape)
        dbeta, dgamma = g.sum(axes), (g * x_hat).sum(axes)
        dx = (gamma * inv_std).reshape(shape) * (g - (dbeta / n).reshape(shape) - x_hat * (dgamma / n).reshape(shape))
        return dx.astype(kind), dgamma, dbeta

    @jax.jit
    def inference(x: Any, gamma: Any, beta: Any, mean: Any, var: Any) -> Any:
        return (normalized(x.astype(wide), gamma, beta, mean, var),)

    running = jnp.zeros_like(frozen_mean), jnp.ones_like(frozen_var)
    *_, mean, inv_std = training(x, gamma, beta, *running)
    wait = jax.block_until_ready
    calls: dict[str, Callable[[], Any]] = {
        "training": lambda: wait(training(x, gamma, beta, *running)),
        "backward": lambda: wait(backward(dy, x, gamma, mean, inv_std)),
        "inference": lambda: wait(inference(x, gamma, beta, frozen_mean, frozen_var)),
    }

    def from_jax(array: Any) -> np.ndarray:
        values = np.asarray(array).astype(np.float64)
        return data.row.view(values) if values.ndim > 1 else values

    return System(jax.__version__, calls, lambda result: result[1:3], from_jax)
