"""Beside PyTorch: training steps, and dictionaries that its layers take strictly."""

import numpy as np
import pytest
import torch
from beside import five_steps
from common import random_state, same_bits, sample

import nbnorm


@pytest.mark.parametrize("ndim", [2, 4, 5])
@pytest.mark.parametrize("affine", [True, False])
def test_pytorch(ndim, affine, rng):
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


@pytest.mark.parametrize(
    "options", [{}, {"use_beta": False}, {"use_gamma": False, "use_beta": False}, {"track_running": False}], ids=str
)
@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"])
def test_a_state_dict_loads_into_pytorch_strictly(name, options, rng):
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
