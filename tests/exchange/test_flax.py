"""Beside Flax, linen and nnx."""

import jax
import numpy as np
import pytest
from beside import five_steps
from common import same_bits
from flax import linen, nnx

import nbnorm
from nbnorm import exchange


class Linen:
    """A layer of linen: a step of gradient descent, and its variables as dictionaries, there and back."""

    def __init__(self, **options):
        self.layer = linen.BatchNorm(**options)
        self.variables = self.layer.init(jax.random.key(0), np.ones((2, 5), np.float32), use_running_average=False)

    def step(self, x, dy, rate):
        def forward(params):
            variables = {**self.variables, "params": params}
            return self.layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])

        params, _ = self.dictionaries()
        y, pullback, changed = jax.vjp(forward, params, has_aux=True)
        (gradient,) = pullback(dy)
        self.variables = {"params": jax.tree.map(lambda a, g: a - rate * g, params, gradient), **changed}
        return y

    def dictionaries(self):
        return self.variables.get("params", {}), self.variables["batch_stats"]

    def load(self, params, batch_stats):
        self.variables = {"params": params, "batch_stats": batch_stats}

    def infer(self, x):
        return self.layer.apply(self.variables, x, use_running_average=True)


class Nnx:
    """The same of nnx."""

    def __init__(self, **options):
        self.layer = nnx.BatchNorm(5, rngs=nnx.Rngs(0), **options)

    def step(self, x, dy, rate):
        y = self.layer(x, use_running_average=False)
        fixed = nnx.clone(self.layer)

        def loss(layer):
            return (layer(x, use_running_average=False) * dy).sum()

        gradient = nnx.to_pure_dict(nnx.grad(loss)(fixed))
        params, batch_stats = self.dictionaries()
        self.load({name: a - rate * gradient[name] for name, a in params.items()}, batch_stats)
        return y

    def dictionaries(self):
        return tuple(nnx.to_pure_dict(nnx.state(self.layer, kind)) for kind in (nnx.Param, nnx.BatchStat))

    def load(self, params, batch_stats):
        for name, array in {**params, **batch_stats}.items():
            getattr(self.layer, name).set_value(jax.numpy.asarray(array))

    def infer(self, x):
        return self.layer(x, use_running_average=True)


def test_flax_sorts_several_axes(rng):
    """As the docstrings of `from_flax` and `to_flax` say."""
    x = rng.normal(5, 2, (6, 4, 4)).astype(np.float32)
    layer = linen.BatchNorm(axis=(2, 1))
    variables = layer.init(jax.random.key(0), x, use_running_average=False)
    _, changed = layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    batch_stats = {name: np.asarray(a) for name, a in changed["batch_stats"].items()}
    params = {name: rng.normal(size=(4, 4)).astype(np.float32) for name in ("scale", "bias")}
    state = exchange.from_flax(params, batch_stats)
    expected = np.asarray(layer.apply({"params": params, "batch_stats": batch_stats}, x, use_running_average=True))
    y = nbnorm.batch_norm_inference(x, state, axis=(1, 2))
    assert abs(y - expected).max() <= 1e-4 * abs(expected).max()  # Flax computes in float32


@pytest.mark.parametrize("options", [{}, {"use_scale": False}, {"use_bias": False, "momentum": 0.9}], ids=str)
@pytest.mark.parametrize("kind", [Linen, Nnx])
def test_steps_and_the_way_back(kind, options, rng):
    layer = kind(**options)
    momentum = options.get("momentum", 0.99)

    def step(x, dy, rate):
        y = layer.step(x, dy, rate)
        params, batch_stats = layer.dictionaries()
        return [y, params.get("scale"), params.get("bias"), batch_stats["mean"], batch_stats["var"]]

    parameters = {"use_gamma": options.get("use_scale", True), "use_beta": options.get("use_bias", True)}
    state = nbnorm.BatchNormState.like("flax", 5, **parameters, **({"momentum": 0.1} if momentum == 0.9 else {}))
    five_steps(rng, state, step, -1, (8, 4, 3, 5))
    before = layer.dictionaries()
    state = exchange.from_flax(*before, momentum=momentum)
    for found, theirs in zip(exchange.to_flax(state), before, strict=True):
        assert found.keys() == theirs.keys()
        assert all(same_bits(found[name], np.asarray(theirs[name])) for name in found)
    five_steps(rng, state, step, -1, (8, 4, 3, 5))

    layer.load(*exchange.to_flax(state))
    x = rng.normal(size=(8, 4, 3, 5)).astype(np.float32)
    assert (abs(nbnorm.batch_norm_inference(x, state, axis=-1) - np.asarray(layer.infer(x))) <= 1e-5).all()
