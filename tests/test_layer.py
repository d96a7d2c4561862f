"""The layer does what the functions do."""

import copy
import pickle

import numpy as np
import pytest

import nbnorm


def batches(rng):
    return [rng.normal(2, 3, (20, 5, 4)).astype(np.float32) for _ in range(3)]


def test_the_layer_equals_the_functions(rng):
    bn, state = nbnorm.BatchNorm(5, momentum=0.3), nbnorm.BatchNormState(5, momentum=0.3)
    for x in batches(rng):
        y, saved = nbnorm.batch_norm_training(x, state)
        gradients = nbnorm.batch_norm_backward(x, saved)
        assert bn(x).tobytes() == y.tobytes()
        assert bn.backward(x).tobytes() == gradients.dx.tobytes()
        assert bn.dgamma.tobytes() == gradients.dgamma.tobytes()
        assert bn.dbeta.tobytes() == gradients.dbeta.tobytes()
    assert bn.eval() is bn
    assert bn(x).tobytes() == nbnorm.batch_norm_inference(x, state).tobytes()
    assert bn.state.num_batches == 3


def test_options_reach_the_state():
    bn = nbnorm.BatchNorm((2, 3), axis=(1, 2), eps=0.1, momentum=None, use_gamma=False, dtype="float64")
    assert (bn.state.eps, bn.state.momentum, bn.state.gamma, bn.state.dtype) == (0.1, None, None, np.float64)
    assert bn(np.ones((4, 2, 3))).tolist() == np.zeros((4, 2, 3)).tolist()
    assert bn.backward(np.ones((4, 2, 3))).shape == (4, 2, 3)
    assert bn.dgamma is None
    assert bn.dbeta.tolist() == [[4.0] * 3] * 2


def test_train_and_eval_switch_the_mode(rng):
    bn = nbnorm.BatchNorm(5)
    assert bn.training
    assert not bn.eval().training
    bn(batches(rng)[0])
    assert bn.state.num_batches == 0
    assert bn.train().training
    bn(batches(rng)[0])
    assert bn.state.num_batches == 1


@pytest.mark.parametrize("before", [lambda bn, x: None, lambda bn, x: bn.eval()(x)], ids=["nothing", "inference"])
def test_backward_needs_a_call_in_training_mode(before, rng):
    bn, x = nbnorm.BatchNorm(5), batches(rng)[0]
    before(bn, x)
    with pytest.raises(RuntimeError, match="backward needs a call in training mode"):
        bn.backward(x)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda bn: pickle.loads(pickle.dumps(bn))], ids=["copy", "pickle"]
)
def test_copies_are_independent(duplicate, rng):
    bn, x = nbnorm.BatchNorm(5), batches(rng)[0]
    bn(x)
    other = duplicate(bn)
    other(x)
    assert (bn.state.num_batches, other.state.num_batches) == (1, 2)
    assert repr(other) == repr(bn).replace("num_batches=1", "num_batches=2")


def test_the_layer_skips_batches_that_are_not_finite():
    layer = nbnorm.BatchNorm(2, skip_nonfinite=True)
    layer(np.full((4, 2), np.nan, np.float32))
    assert (layer.state.num_skipped, layer.state.num_batches, layer.state.running_mean.tolist()) == (1, 0, [0, 0])
