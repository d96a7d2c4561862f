"""Beside the real libraries: PyTorch, Keras (each backend in a process), Flax, and ONNX's reference evaluator."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from beside import five_steps
from common import random_state, same_bits, sample, snapshot

import nbnorm
from nbnorm import exchange

HERE = Path(__file__).parent
MISSING = [name for name in ("torch", "keras", "flax", "onnx", "sklearn") if importlib.util.find_spec(name) is None]
if MISSING and os.environ.get("NBNORM_REQUIRE_EXCHANGE") == "1":
    raise RuntimeError(f"the tests beside other libraries are required: {', '.join(MISSING)} not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # theirs, not ours


def needs(name):
    reason = f'NO {name.upper()} TESTS: it is not installed; pip install -e ".[exchange-test]"'
    return pytest.mark.skipif(name in MISSING, reason=reason)


# ---- PyTorch


@needs("torch")
@pytest.mark.parametrize("ndim", [2, 4, 5])
@pytest.mark.parametrize("affine", [True, False])
def test_pytorch(ndim, affine, rng):
    import torch

    shape = (8, 5, 4, 3, 2)[:ndim] if ndim > 2 else (96, 5)
    kinds = {2: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d, 5: torch.nn.BatchNorm3d}
    layer = kinds[ndim](5, affine=affine)
    parameters = [layer.weight, layer.bias] if affine else [None, None]

    def step(x, dy, rate):
        y = layer(torch.from_numpy(x).requires_grad_())
        y.backward(torch.from_numpy(dy))
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter -= rate * parameter.grad
                parameter.grad = None
        four = (*parameters, layer.running_mean, layer.running_var)
        return [y.detach().numpy(), *(None if part is None else part.detach().numpy() for part in four)]

    state = nbnorm.BatchNormState.like("pytorch", 5, use_gamma=affine, use_beta=affine)
    five_steps(rng, state, step, 1, shape)
    state = nbnorm.BatchNormState.from_state_dict(layer.state_dict())
    assert state.num_batches == 5
    five_steps(rng, state, step, 1, shape)


@needs("torch")
@pytest.mark.parametrize(
    "options", [{}, {"use_beta": False}, {"use_gamma": False, "use_beta": False}, {"track_running": False}], ids=str
)
@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"])
def test_a_state_dict_loads_into_pytorch_strictly(name, options, rng):
    import torch

    state = random_state(rng, 3, **options)
    nbnorm.batch_norm_training(sample(rng, (8, 3)), state)
    kinds = {"affine": state.gamma is not None, "track_running_stats": state.running_mean is not None}
    layer = getattr(torch.nn, name)(3, bias=state.beta is not None, **kinds)
    layer.load_state_dict({key: torch.from_numpy(a) for key, a in state.state_dict().items()}, strict=True)

    back = nbnorm.BatchNormState.from_state_dict(layer.state_dict())
    assert all(same_bits(getattr(back, key), getattr(state, key)) for key in ("gamma", "beta"))
    assert back.num_batches == state.num_batches
    if state.running_mean is not None:  # PyTorch's are float32
        for key in ("running_mean", "running_var"):
            assert same_bits(getattr(back, key), getattr(state, key).astype(np.float32).astype(np.float64))


# ---- Keras


@needs("keras")
@pytest.mark.parametrize(
    "backend", ["numpy", pytest.param("jax", marks=needs("flax")), pytest.param("torch", marks=needs("torch"))]
)
def test_keras(backend):
    run_with_keras(backend, HERE / "beside.py")


@needs("keras")
@needs("sklearn")
def test_the_example(tmp_path):
    run_with_keras("numpy", HERE.parent / "docs" / "examples" / "keras_digits" / "finetune.py", tmp_path)
    run_with_keras("numpy", HERE / "beside.py", tmp_path / "finetuned.npz")


def run_with_keras(backend, *command):
    """tests/beside.py says what."""
    paths = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


# ---- Flax


def flax_layers():
    """The layer of linen and of nnx with one interface: a step, and its variables as dictionaries, there and back."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    from flax import linen, nnx

    class Linen:
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

    return {"linen": Linen, "nnx": Nnx}


@needs("flax")
@pytest.mark.parametrize("options", [{}, {"use_scale": False}, {"use_bias": False, "momentum": 0.9}], ids=str)
@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_flax(api, options, rng):
    layer = flax_layers()[api](**options)
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


# ---- ONNX


def evaluator(node, initializers, shape, opset=15):
    """ONNX's reference evaluator of a graph of this one node, checked in full; the initializers are inputs too."""
    import onnx
    from onnx import TensorProto, checker, helper, reference

    inputs = [helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, shape)]
    inputs += [helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in initializers]
    shapes = [shape, *[tensor.dims for tensor in initializers[2:]]]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, s) for name, s in zip(node.output, shapes)]
    graph = helper.make_graph([node], "one", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    checker.check_model(model, full_check=True)
    return reference.ReferenceEvaluator(onnx.load_from_string(model.SerializeToString()))


@needs("onnx")
def test_onnx_training(rng):
    """The evaluator has no gradients: gamma and beta follow the state."""
    from onnx import numpy_helper

    state = nbnorm.BatchNormState.like("onnx", 5)
    node, initializers = exchange.to_onnx(state, "layer", training=True)
    session = evaluator(node, initializers, (8, 5, 4, 3))
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in initializers}

    def step(x, dy, rate):
        y, mean, var = session.run(None, {"layer.x": x, **arrays})
        arrays.update({"layer.weight": state.gamma.copy(), "layer.bias": state.beta.copy()})
        arrays.update({"layer.running_mean": mean, "layer.running_var": var})
        return y, *arrays.values()

    five_steps(rng, state, step, 1)
    state = exchange.from_onnx(node, arrays)
    five_steps(rng, state, step, 1)


@needs("onnx")
@pytest.mark.parametrize(
    "options",
    [{}, {"use_gamma": False}, {"use_beta": False}, {"dtype": "float64"}, {"momentum": None}, {"eps": 1e-3}],
    ids=str,
)
def test_onnx_there_and_back(options, rng):
    from onnx import numpy_helper

    state = random_state(rng, 5, **options)
    node, initializers = exchange.to_onnx(state, "layer")
    back = exchange.from_onnx(node, initializers)
    ones, zeros = np.ones(5, state.dtype), np.zeros(5, state.dtype)
    assert same_bits(back.gamma, ones if state.gamma is None else state.gamma)
    assert same_bits(back.beta, zeros if state.beta is None else state.beta)
    for name in ("running_mean", "running_var"):
        assert same_bits(getattr(back, name), getattr(state, name).astype(state.dtype).astype(np.float64))
    assert (back.eps, back.unbiased) == (float(np.float32(state.eps)), False)
    assert back.momentum == (0.1 if state.momentum is None else pytest.approx(state.momentum, abs=2.0**-24))

    again, constants = exchange.to_onnx(back, "layer")
    if state.momentum is not None:
        assert again.SerializeToString() == node.SerializeToString()
    arrays = [numpy_helper.to_array(tensor) for tensor in constants]
    assert all(map(same_bits, arrays, (numpy_helper.to_array(tensor) for tensor in initializers)))
    assert snapshot(exchange.from_onnx(again, constants)) == snapshot(back)


@needs("onnx")
@pytest.mark.parametrize("opset", [9, 14, 15, 20])
def test_onnx_inference(opset, rng):
    state = random_state(rng, 5)
    node, initializers = exchange.to_onnx(state)
    x = rng.normal(size=(8, 5, 4, 3)).astype(np.float32)
    session = evaluator(node, initializers, x.shape, opset=opset)
    if opset == 9:  # which has been checked; but the evaluator trains there
        return
    (y,) = session.run(None, {"bn.x": x})
    assert (abs(nbnorm.batch_norm_inference(x, state) - y) <= 1e-5).all()


@needs("onnx")
def test_what_onnx_cannot_train():
    pooled = nbnorm.BatchNormState.like("onnx", 3, momentum=None)
    with pytest.raises(ValueError, match="momentum is None"):
        exchange.to_onnx(pooled, training=True)
    with pytest.raises(ValueError, match="unbiased=False"):
        exchange.to_onnx(nbnorm.BatchNormState(3), training=True)


@needs("onnx")
@needs("torch")
@pytest.mark.filterwarnings("ignore")  # of the exporter's past and future
def test_what_pytorch_exports_can_be_read(rng):
    """PyTorch's own names of the initializers, its float32 momentum, a graph with other nodes."""
    import onnx
    import torch

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4, eps=1e-3), torch.nn.ReLU())
    network(torch.randn(8, 1, 6, 6))
    file = io.BytesIO()
    options = {"training": torch.onnx.TrainingMode.TRAINING, "do_constant_folding": False}  # or it folds
    torch.onnx.export(network.train(), (torch.zeros(2, 1, 6, 6),), file, dynamo=False, **options)
    graph = onnx.load_from_string(file.getvalue()).graph
    (node,) = (node for node in graph.node if node.op_type == "BatchNormalization")
    state = exchange.from_onnx(node, graph.initializer)
    layer = network[1]
    assert (state.eps, state.momentum) == (float(np.float32(1e-3)), pytest.approx(0.1, abs=2.0**-24))
    for own, theirs in (("gamma", "weight"), ("beta", "bias"), ("running_mean",) * 2, ("running_var",) * 2):
        assert np.array_equal(getattr(state, own), getattr(layer, theirs).detach().numpy())
