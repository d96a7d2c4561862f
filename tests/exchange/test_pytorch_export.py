"""From PyTorch through ONNX."""

import io

import numpy as np
import onnx
import pytest
import torch

from nbnorm import exchange


@pytest.mark.filterwarnings("ignore")  # of the exporter's past and future
def test_what_pytorch_exports_can_be_read(rng):
    """PyTorch's own names of the initializers, its float32 momentum, a graph with other nodes."""
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
