"""PyTorch itself, where it is installed: dictionaries both ways, and its tensors. tests/arrays.py has the stand-ins."""

import numpy as np
import pytest
from common import random_state, same_bits, sample

import nbnorm

torch = pytest.importorskip("torch", reason="NO TESTS WITH PYTORCH: it is not installed")


@pytest.mark.parametrize("options", [{}, {"use_gamma": False, "use_beta": False}, {"track_running": False}], ids=str)
def test_a_dictionary_loads_strictly_and_comes_back(options, rng):
    state = random_state(rng, 3, dtype="float32", **options)
    nbnorm.batch_norm_training(sample(rng, (6, 3, 4, 4)), state)
    layer = torch.nn.BatchNorm2d(
        3, affine=state.gamma is not None, track_running_stats=state.running_mean is not None, dtype=torch.float64
    )
    layer.load_state_dict({key: torch.as_tensor(value) for key, value in state.state_dict().items()}, strict=True)
    again = nbnorm.BatchNormState.from_state_dict(layer.state_dict())
    assert again.num_batches == state.num_batches
    for name in ("gamma", "beta", "running_mean", "running_var"):
        expected, found = getattr(state, name), getattr(again, name)
        assert same_bits(expected, found if found is None else found.astype(expected.dtype))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_its_tensors_and_parameters(kind):
    values = torch.tensor([0.5, 1.5, 3.0], dtype=kind)
    parameter = torch.nn.Parameter(values)
    state = nbnorm.BatchNormState.from_state_dict({"weight": parameter, "running_mean": values, "running_var": values})
    state.running_mean = parameter
    for name in ("gamma", "running_mean", "running_var"):
        assert getattr(state, name).tolist() == [0.5, 1.5, 3.0]


def test_its_layer_and_the_state_agree(rng):
    """What a dictionary means is the same there: within the rounding of float32."""
    layer, x = torch.nn.BatchNorm2d(3), sample(rng, (6, 3, 5, 5))
    layer(torch.from_numpy(x))
    state = nbnorm.BatchNormState.from_state_dict(layer.state_dict())
    y = layer.eval()(torch.from_numpy(x)).detach().numpy()
    # A dozen float32 roundings of terms as large as the largest x or y.
    limit = 12 * 2.0**-24 * max(np.abs(y).max(), np.abs(x).max())
    assert np.abs(nbnorm.batch_norm_inference(x, state) - y).max() <= limit
