"""nbnorm.exchange by itself: values, names and what is refused. Beside the libraries: test_exchange_libraries.py."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from common import random_state, refuse, same_bits, sample, snapshot
from tolerance import bfloat16, needs_bfloat16

import nbnorm
from nbnorm import exchange

KINDS = [(True, True), (True, False), (False, True), (False, False)]


def arrays(rng, scale=True, center=True, dtype="float32", shape=(3,)):
    """Gamma, beta, mean and variance, those that there are."""
    four = [rng.normal(size=shape), rng.normal(size=shape), rng.normal(size=shape), rng.uniform(0.5, 2, shape)]
    return [a.astype(dtype) for a, there in zip(four, (scale, center, True, True), strict=True) if there]


def dictionaries(weights, scale=True, center=True):
    """The same as Flax has them."""
    names = [name for name, there in zip(("scale", "bias"), (scale, center), strict=True) if there]
    return dict(zip(names, weights[:-2], strict=True)), dict(zip(("mean", "var"), weights[-2:], strict=True))


def node(momentum=None, epsilon=None, op_type="BatchNormalization", inputs=("x", "s", "b", "m", "v")):
    """What from_onnx reads of a NodeProto."""
    numbers = {"momentum": momentum, "epsilon": epsilon}
    attributes = [SimpleNamespace(name=name, f=float(np.float32(f))) for name, f in numbers.items() if f is not None]
    return SimpleNamespace(op_type=op_type, input=list(inputs), attribute=attributes)


def check(state, weights, scale, center, dtype):
    """The state has these arrays, copied; its running statistics are float64, and go on with the biased variance."""
    own = [a for a in (state.gamma, state.beta, state.running_mean, state.running_var) if a is not None]
    assert (state.gamma is not None, state.beta is not None) == (scale, center)
    kinds = [dtype] * (len(weights) - 2) + ["float64"] * 2
    assert all(same_bits(a, w.astype(kind)) for a, w, kind in zip(own, weights, kinds, strict=True))
    assert (state.dtype, state.device, state.num_batches, state.num_samples) == (dtype, "cpu", 0, 0)
    shape = weights[-1].shape
    assert (state.unbiased, state.num_features) == (False, shape[0] if len(shape) == 1 else shape)
    before = snapshot(state)
    for array in weights:
        array += 1
    assert snapshot(state) == before


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize(("scale", "center"), KINDS)
def test_keras(scale, center, kind, rng):
    weights = arrays(rng, scale, center, kind)
    stored = [w.copy() for w in weights]
    state = exchange.from_keras(weights, scale=scale, center=center)
    assert (state.eps, state.momentum) == (1e-3, 0.01)
    check(state, weights, scale, center, kind)
    back = exchange.to_keras(state)
    assert len(back) == len(stored)
    assert all(map(same_bits, back, stored))


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize(("scale", "center"), KINDS)
@pytest.mark.parametrize("shape", [(3,), (3, 2)])
def test_flax(scale, center, kind, shape, rng):
    weights = arrays(rng, scale, center, kind, shape)
    stored = dictionaries([w.copy() for w in weights], scale, center)
    state = exchange.from_flax(*dictionaries(weights, scale, center))
    assert (state.eps, state.momentum, state.shape) == (1e-5, 0.01, shape)
    check(state, weights, scale, center, kind)
    for back, before in zip(exchange.to_flax(state), stored, strict=True):
        assert back.keys() == before.keys()
        assert all(same_bits(back[name], before[name]) for name in before)


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_onnx(kind, rng):
    weights = arrays(rng, dtype=kind)
    stored = dict(zip("sbmv", weights, strict=True))
    state = exchange.from_onnx(node(), {**stored, "other": "ignored"})
    assert (state.eps, state.momentum) == (1e-5, 0.1)
    check(state, weights, True, True, kind)


def test_numbers_of_their_own(rng):
    """Momentum there is the weight of the old statistics; ONNX has it, and epsilon, in float32."""
    keras = exchange.from_keras(arrays(rng), eps=1e-4, momentum=0.75)
    flax = exchange.from_flax(*dictionaries(arrays(rng)), eps=2e-5, momentum=0.9)
    onnx = exchange.from_onnx(node(0.9, 1e-3), dict(zip("sbmv", arrays(rng), strict=True)))
    assert (keras.eps, keras.momentum, flax.eps, flax.momentum) == (1e-4, 0.25, 2e-5, 0.1)
    assert (onnx.eps, onnx.momentum) == (float(np.float32(1e-3)), pytest.approx(1 - float(np.float32(0.9)), abs=1e-15))
    assert [exchange.from_keras(arrays(rng), momentum=m).momentum for m in (0, 1, 0.999, 0.11)] == [1, 0, 0.001, 0.89]


def test_a_momentum_of_any_kind_of_number_is_a_float_that_a_file_takes(rng, tmp_path):
    for momentum in (0, 1, np.float32(0.75)):
        state = exchange.from_keras(arrays(rng), momentum=momentum)
        state.save(tmp_path / "state.npz")
        twin = nbnorm.BatchNormState.load(tmp_path / "state.npz")
        assert (type(state.momentum), state.momentum, twin.momentum) == (float, 1 - momentum, 1 - momentum)


FOREIGN = {
    "Keras": lambda four, momentum: exchange.from_keras(four, momentum=momentum),
    "Flax": lambda four, momentum: exchange.from_flax(*dictionaries(four), momentum=momentum),
}


@pytest.mark.parametrize("momentum", [1e-3, 0.01, 0.1])
@pytest.mark.parametrize("made", FOREIGN.values(), ids=FOREIGN)
def test_the_momentum_of_nbnorm_is_questioned_there(made, momentum, rng):
    four = arrays(rng)
    with pytest.warns(
        UserWarning, match=rf"momentum={momentum:g} is the weight of the old .*={1 - momentum:g} here"
    ) as seen:
        state = made(four, momentum)
    assert (len(seen), seen[0].filename) == (1, __file__)
    assert len(str(seen[0].message)) < 200
    assert state.momentum == pytest.approx(1 - momentum, abs=1e-15)


def test_the_momentum_of_a_node_is_not(rng):
    """A network says it, not who reads it."""
    state = exchange.from_onnx(node(0.01), dict(zip("sbmv", arrays(rng), strict=True)))
    assert state.momentum == pytest.approx(0.99)


@pytest.mark.parametrize("kind", [np.float16, pytest.param(bfloat16, marks=needs_bfloat16)])
def test_arrays_of_16_bits_become_float32(kind, rng):
    weights = arrays(rng, dtype=kind)
    check(exchange.from_keras(weights), weights, True, True, "float32")


@pytest.mark.parametrize("kind", [np.longdouble, np.int64])
def test_what_float32_does_not_hold_becomes_float64(kind):
    wide = np.array([2**24 + 1, 3], kind)
    for weights in ([wide, *[np.ones(2, np.float32)] * 3], [*[np.ones(2, np.float32)] * 3, wide]):
        state = exchange.from_keras(weights)
        assert state.dtype == np.float64
        assert 2**24 + 1 in (state.gamma[0], state.running_var[0])


def test_lists_are_arrays():
    state = exchange.from_keras([[1.0, 2.0], [0.0, 1.5]], scale=False, center=False)
    assert (state.running_mean.tolist(), state.running_var.tolist()) == ([1, 2], [0, 1.5])


def test_statistics_of_a_trained_state_are_rounded_once_to_its_dtype(rng):
    state = random_state(rng, 3)
    nbnorm.batch_norm_training(sample(rng, (8, 3)), state)
    expected = [state.gamma, state.beta, state.running_mean.astype(np.float32), state.running_var.astype(np.float32)]
    assert all(map(same_bits, exchange.to_keras(state), expected))
    params, batch_stats = exchange.to_flax(state)
    assert all(map(same_bits, [*params.values(), *batch_stats.values()], expected))
    before = snapshot(state)
    for array in (*exchange.to_keras(state), *params.values(), *batch_stats.values()):
        array += 1
    assert snapshot(state) == before


def test_what_the_dtype_of_the_parameters_does_not_hold_stays_here(rng):
    """As infinity it would leave unnoticed."""
    state = nbnorm.BatchNormState(3)
    state.running_var = [1.0, 1e60, 2.0]
    for to in (exchange.to_keras, exchange.to_flax, exchange.to_onnx):
        with pytest.raises(ValueError, match=r"state\.running_var has values that float32 .*1e\+60; .*float64"):
            to(state)
    wide = nbnorm.BatchNormState(3, dtype="float64")
    wide.running_var = [1.0, 1e60, np.inf]  # which it is already
    assert exchange.to_keras(wide)[3].tolist() == [1, 1e60, np.inf]
    for eps in (1e-60, 1e60):
        with pytest.raises(ValueError, match=r"state\.eps is 1e.?60, which ONNX's float32 does not hold"):
            exchange.to_onnx(nbnorm.BatchNormState(3, eps=eps))


def test_bad_arguments(given, rng):
    four = arrays(rng)
    params, batch_stats = dictionaries(four)
    negative, other = [*four[:3], -four[3]], [*four[:3], np.ones(4)]
    keras, flax, onnx = exchange.from_keras, exchange.from_flax, exchange.from_onnx
    constants = dict(zip("sbmv", four, strict=True))
    for call, error, *texts in (
        (lambda: keras(four[1:]), ValueError, "weights has 3 arrays", "4: gamma, beta, moving_mean, moving_variance"),
        (lambda: keras(four, scale=False), ValueError, "scale=False", "3: beta, moving_mean, moving_variance"),
        (lambda: keras(negative), ValueError, "weights has negative values in moving_variance"),
        (lambda: keras(other), ValueError, "moving_variance of shape (4,)", "moving_mean of shape (3,)"),
        (lambda: keras([1.0] * 4), ValueError, "gamma of shape ()"),
        (lambda: keras([a[None] for a in four]), ValueError, "gamma of shape (1, 3)", "one number per channel"),
        (lambda: keras(four, eps=0), ValueError, "eps is 0"),
        (lambda: keras(four, momentum=1.1), ValueError, "momentum is 1.1", "old statistics"),
        (lambda: keras(four, momentum=None), ValueError, "momentum is None"),
        (lambda: keras(four, momentum=np.nan), ValueError, "momentum is nan"),
        (lambda: keras(four, momentum=True), ValueError, "momentum is True", "old statistics"),
        (lambda: keras([a.astype(complex) for a in four]), TypeError, "weights has gamma of dtype complex128"),
        (lambda: keras([*four[:3], np.array(list("abc"))]), TypeError, "moving_variance of dtype <U1", "real numbers"),
        (lambda: keras(None), TypeError, "weights is a NoneType", "layer.get_weights()"),
        (lambda: keras(dict(zip("abcd", four, strict=True))), TypeError, "weights is a dict"),
        (lambda: flax(None, batch_stats), TypeError, "params is a NoneType", "scale and bias"),
        (lambda: flax(params, [four[2], four[3]]), TypeError, "batch_stats is a list", "mean and var"),
        (lambda: flax({"scale": four[0] * 1j}, batch_stats), TypeError, "scale of dtype complex64"),
        (lambda: onnx(node(), None), TypeError, "initializers is a NoneType", "graph.initializer"),
        (lambda: flax({"gamma": four[0]}, batch_stats), ValueError, "params has gamma", "scale and bias"),
        (lambda: flax({"mean": four[2]}, batch_stats), ValueError, "params has mean", "scale and bias"),
        (lambda: flax({"BatchNorm_0": params}, batch_stats), ValueError, "params has BatchNorm_0"),
        (lambda: flax(params, {}), ValueError, "batch_stats has nothing", "mean and var"),
        (lambda: flax(params, {"mean": four[2]}), ValueError, "batch_stats has mean;", "mean and var"),
        (lambda: flax(params, {**batch_stats, "std": four[2]}), ValueError, "batch_stats has mean, std, var"),
        (lambda: flax(*dictionaries(negative)), ValueError, "negative values in var"),
        (lambda: onnx(node(op_type="Conv"), constants), ValueError, "node is a Conv", "BatchNormalization"),
        (lambda: onnx(node(inputs=("x", "s", "b")), constants), ValueError, "5 inputs"),
        (lambda: onnx(None, constants), ValueError, "node is a NoneType"),
        (lambda: onnx(node(), {"s": four[0]}), ValueError, "initializers has no 'b'", "B"),
        (lambda: onnx(node(), {**constants, "v": -four[3]}), ValueError, "negative values in input_var"),
        (lambda: onnx(node(momentum=2), constants), ValueError, "momentum is 2.0"),
        (lambda: onnx(node(epsilon=-1), constants), ValueError, "eps is -1.0"),
    ):
        refuse(given, call, error, *texts, arrays=four)


@pytest.mark.parametrize("to", [exchange.to_keras, exchange.to_flax, exchange.to_onnx])
def test_what_cannot_leave(to, given):
    without = nbnorm.BatchNormState(3, track_running=False)
    refuse(given, lambda: to(without), ValueError, "track_running")
    refuse(given, lambda: to(given.x), TypeError, "state is a ndarray", "BatchNormState")
    if to is not exchange.to_flax:
        refuse(given, lambda: to(nbnorm.BatchNormState((3, 2))), ValueError, "(3, 2)", "one channel axis")


def test_without_onnx_a_mapping_will_do(rng, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    constants = dict(zip("sbmv", arrays(rng), strict=True))
    state = exchange.from_onnx(node(), constants)
    for call in (lambda: exchange.to_onnx(state), lambda: exchange.from_onnx(node(), [SimpleNamespace(name="s")])):
        with pytest.raises(ImportError) as caught:
            call()
        assert "pip install onnx" in caught.value.__notes__[0]


def test_nothing_of_these_libraries_is_imported():
    code = (
        "import sys; from nbnorm import exchange; print(sorted({'onnx', 'keras', 'flax', 'numba'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
