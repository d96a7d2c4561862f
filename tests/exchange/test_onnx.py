"""Beside ONNX's reference evaluator and checker or, with EVALUATOR=onnxruntime, beside onnxruntime."""

import os

import numpy as np
import onnx
import pytest
from beside import five_steps
from common import random_state, same_bits, snapshot
from onnx import TensorProto, checker, helper, numpy_helper, reference

import nbnorm
from nbnorm import exchange

BY_ONNXRUNTIME = os.environ.get("EVALUATOR") == "onnxruntime"


def evaluator(node, initializers, shape, opset=15):
    """What evaluates a graph of this one node, checked in full; the initializers are inputs too."""
    inputs = [helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, shape)]
    inputs += [helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in initializers]
    shapes = [shape, *[tensor.dims for tensor in initializers[2:]]]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, s) for name, s in zip(node.output, shapes)]
    graph = helper.make_graph([node], "one", inputs, outputs, initializers)
    # The format of opset 21: onnxruntime may know the newest a version later.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    if BY_ONNXRUNTIME:
        import onnxruntime

        return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    checker.check_model(model, full_check=True)
    return reference.ReferenceEvaluator(onnx.load_from_string(model.SerializeToString()))


def test_onnx_training(rng):
    """The evaluator has no gradients: gamma and beta follow the state."""
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


@pytest.mark.parametrize(
    "options",
    [{}, {"use_gamma": False}, {"use_beta": False}, {"dtype": "float64"}, {"momentum": None}, {"eps": 1e-3}],
    ids=str,
)
def test_onnx_there_and_back(options, rng):
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


@pytest.mark.parametrize("opset", [9, 14, 15, 20])
def test_onnx_inference(opset, rng):
    state = random_state(rng, 5)
    node, initializers = exchange.to_onnx(state)
    x = rng.normal(size=(8, 5, 4, 3)).astype(np.float32)
    session = evaluator(node, initializers, x.shape, opset=opset)
    if opset == 9 and not BY_ONNXRUNTIME:  # which has been checked; but the evaluator trains there
        return
    (y,) = session.run(None, {"bn.x": x})
    assert (abs(nbnorm.batch_norm_inference(x, state) - y) <= 1e-5).all()


def test_what_onnx_cannot_train():
    pooled = nbnorm.BatchNormState.like("onnx", 3, momentum=None)
    with pytest.raises(ValueError, match="momentum is None"):
        exchange.to_onnx(pooled, training=True)
    with pytest.raises(ValueError, match="unbiased=False"):
        exchange.to_onnx(nbnorm.BatchNormState(3), training=True)
