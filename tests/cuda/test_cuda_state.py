"""The state on a GPU: moving, copying, what goes together with what."""

from __future__ import annotations

import copy
import pickle
import types

import numpy as np
import pytest
import reference
from common import random_state, same_bits, sample, snapshot
from conftest import SIMULATED
from tolerance import assert_stat_close

import nbnorm
from nbnorm import exchange


def bits(state):
    """Every byte of a state, wherever it is."""
    return snapshot(state.to("cpu"))


def test_a_state_goes_to_the_gpu_and_back(cupy, rng):
    state = random_state(rng, 3)
    on_gpu = state.to("cuda")
    assert (state.device, on_gpu.device, on_gpu.to("cuda:0") is on_gpu) == ("cpu", "cuda:0", True)
    assert all(isinstance(a, cupy.ndarray) for a in (on_gpu.gamma, on_gpu.beta, on_gpu.running_mean))
    assert "device='cuda:0'" in repr(on_gpu)
    back = on_gpu.to("cpu")
    assert snapshot(back) == snapshot(state)
    assert isinstance(back.gamma, np.ndarray)
    assert not isinstance(back.gamma, cupy.ndarray)
    on_gpu.gamma *= 0
    assert snapshot(back) == snapshot(state)


def test_a_subclass_stays_one_on_the_way(cupy, rng):
    class State(nbnorm.BatchNormState):
        label = "bn1"

    state = State(3)
    state.beta, state.label = rng.normal(size=3), "bn2"
    for there in (state.to("cuda"), state.to("cuda").to("cpu")):
        assert (type(there), there.label, bits(there)) == (State, "bn2", snapshot(state))


def test_a_fresh_state(cupy):
    state = nbnorm.BatchNormState(2, device="cuda:0", dtype="float64")
    assert (state.gamma.get().tolist(), state.beta.get().tolist()) == ([1, 1], [0, 0])
    assert (state.running_mean.get().tolist(), state.running_var.get().tolist()) == ([0, 0], [1, 1])
    assert (state.gamma.dtype, state.num_batches, state.num_samples) == (np.float64, 0, 0)


def test_copies_and_pickles_are_independent(cupy, rng):
    state = random_state(rng, 3).to("cuda")
    x = cupy.asarray(sample(rng, (5, 3)))
    nbnorm.batch_norm_training(x, state)
    before = bits(state)
    for other in (copy.copy(state), copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        assert other.device == "cuda:0"
        assert bits(other) == before
        nbnorm.batch_norm_training(x, other)
        assert bits(state) == before != bits(other)


@pytest.mark.parametrize("use_running", [False, True])
def test_saved_is_copied_and_readable(cupy, rng, use_running):
    x, state = cupy.asarray(sample(rng, (5, 3, 4)).transpose(1, 2, 0)), random_state(rng, 4).to("cuda")
    before = state.running_var.get()
    _, saved = nbnorm.batch_norm_training(x, state, use_running=use_running)
    count, mean, m2 = reference.stats(x.get())
    assert all(isinstance(a, cupy.ndarray) for a in (saved.var, saved.stats.var, saved.count))
    assert float(saved.count.get()) == count
    assert_stat_close(saved.stats.mean.get(), mean)
    assert_stat_close(saved.stats.var.get(), m2 / count)
    assert_stat_close(saved.var.get(), before if use_running else m2 / count)
    expected = nbnorm.batch_norm_backward(x, saved)
    for other in (copy.copy(saved), copy.deepcopy(saved), pickle.loads(pickle.dumps(saved))):
        found = nbnorm.batch_norm_backward(x, other)
        assert other.x.strides == x.strides
        assert [a.get().tobytes() for a in found] == [a.get().tobytes() for a in expected]


def test_dictionaries(cupy, rng):
    state = random_state(rng, 3).to("cuda")
    nbnorm.batch_norm_training(cupy.asarray(sample(rng, (5, 3))), state)
    arrays = state.state_dict()
    assert all(isinstance(a, cupy.ndarray) for a in arrays.values())
    again = nbnorm.BatchNormState.from_state_dict(arrays, num_samples=5)
    assert again.device == "cuda:0"
    assert bits(again) == bits(state)


def test_assignment_copies_into_the_arrays(cupy, rng):
    state = nbnorm.BatchNormState(2, device="cuda")
    gamma = state.gamma
    state.gamma = cupy.asarray([2.0, 3.0])
    state.running_mean = [4.0, 5.0]
    assert (state.gamma is gamma, gamma.get().tolist()) == (True, [2, 3])
    assert state.running_mean.get().tolist() == [4, 5]
    with pytest.raises(ValueError, match="shape"):
        state.gamma = cupy.asarray([1.0])


def test_reset_and_affine(cupy, rng):
    host = random_state(rng, 3)
    state = host.to("cuda")
    for found, expected in zip(state.as_affine(), host.as_affine(), strict=True):
        np.testing.assert_allclose(found.get(), expected, rtol=1e-15)
    nbnorm.batch_norm_training(cupy.asarray(sample(rng, (5, 3))), state)
    state.reset_running()
    assert (state.running_mean.get().tolist(), state.running_var.get().tolist()) == ([0] * 3, [1] * 3)
    assert (state.num_batches, state.num_samples) == (0, 0)


def test_arrays_and_state_must_be_on_one_device(cupy, rng):
    host, gpu = nbnorm.BatchNormState(3), nbnorm.BatchNormState(3, device="cuda")
    x = sample(rng, (5, 3))
    y, saved = nbnorm.batch_norm_training(cupy.asarray(x), gpu)
    calls = {
        'x is a numpy.ndarray but the state is on cuda:0; use state.to("cpu")': (
            lambda: nbnorm.batch_norm_training(x, gpu),
            lambda: nbnorm.batch_norm_inference(x, gpu),
        ),
        'x is a cupy.ndarray on cuda:0 but the state is on cpu; use state.to("cuda:0")': (
            lambda: nbnorm.batch_norm_training(cupy.asarray(x), host),
            lambda: nbnorm.batch_norm_inference(cupy.asarray(x), host),
        ),
        "dy is a numpy.ndarray but x of the forward pass is on cuda:0": (lambda: nbnorm.batch_norm_backward(x, saved),),
        "out is a numpy.ndarray; expected a cupy.ndarray": (
            lambda: nbnorm.batch_norm_backward(y, saved, out=x),
            lambda: nbnorm.batch_norm_training(cupy.asarray(x), gpu, out=x),
        ),
    }
    before = snapshot(host), bits(gpu), x.tobytes()
    for message, refused in calls.items():
        for call in refused:
            with pytest.raises(TypeError) as caught:
                call()
            assert message in str(caught.value)
            assert len(str(caught.value)) < 200
    assert (snapshot(host), bits(gpu), x.tobytes()) == before


def test_out_is_checked_as_on_the_cpu(cupy, rng):
    state = nbnorm.BatchNormState(3, device="cuda")
    room = cupy.asarray(sample(rng, (10, 3)))
    x = room[:8]
    for out, text in (
        (x, "x itself"),
        (room[2:], "overlaps x"),
        (cupy.empty((8, 4), np.float32), "shape"),
        (cupy.empty((8, 3)), "dtype"),
        (cupy.broadcast_to(room[9:], (8, 3)), "overlaps itself"),
    ):
        with pytest.raises(ValueError, match=text):
            nbnorm.batch_norm_training(x, state, out=out)
    assert state.num_batches == 0
    both = cupy.asarray(sample(rng, (8, 6)))
    evens, odds = both[:, ::2], both[:, 1::2]
    y, _ = nbnorm.batch_norm_training(evens, state, out=odds)  # they share bounds, and no byte
    assert (y is odds, state.num_batches) == (True, 1)


def test_other_arrays_of_a_gpu_are_named(cupy):
    foreign = types.SimpleNamespace(__cuda_array_interface__={})
    with pytest.raises(TypeError, match=r"pass cupy\.asarray\(x\)"):
        nbnorm.batch_norm_inference(foreign, nbnorm.BatchNormState(3))


def test_a_layer(cupy, rng):
    layer = nbnorm.BatchNorm(3, device="cuda")
    x = cupy.asarray(sample(rng, (6, 3, 4)))
    y = layer(x)
    dx = layer.backward(cupy.ones((6, 3, 4), np.float32))
    # The gradient of a sum over a normalized batch is 0, up to eps and the rounding of float32.
    assert abs(dx.get()).max() < 1e-5
    assert layer.dbeta.get().tolist() == [24] * 3
    assert layer.eval()(x).shape == y.shape
    _, saved = nbnorm.batch_norm_training(x, layer.state, use_running=True, update_running=False)
    expected = nbnorm.batch_norm_backward(y, saved)
    layer.debug = True
    layer(x)
    found = layer.backward(y), layer.dgamma, layer.dbeta
    assert [a.get().tobytes() for a in found] == [a.get().tobytes() for a in expected]
    layer(x)
    x[0] = cupy.zeros((3, 4), np.float32)
    with pytest.raises(RuntimeError, match="has changed since the call"):
        layer.backward(y)
    assert layer(x, out=x) is x
    with pytest.raises(RuntimeError, match="not with out=x"):
        layer.backward(y)


def test_a_state_is_saved_from_the_gpu_and_loaded_on_the_cpu(cupy, rng, tmp_path):
    state = random_state(rng, 3).to("cuda")
    nbnorm.batch_norm_training(cupy.asarray(sample(rng, (5, 3))), state)
    state.save(tmp_path / "state.npz")
    loaded = nbnorm.BatchNormState.load(tmp_path / "state.npz")
    assert loaded.device == "cpu"
    assert snapshot(loaded) == bits(state)


@pytest.mark.each_value
@pytest.mark.filterwarnings("ignore:.*invalid value:RuntimeWarning")  # of the simulator: NumPy warns, a GPU does not
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("channel", [0, 10, 19])
def test_a_batch_that_is_not_finite_is_skipped(cupy, momentum, channel, rng):
    """Whichever thread meets it: no other one folds its channels in."""
    good = sample(rng, (6, 20))
    bad = good.copy()
    bad[3, channel] = np.inf
    guarded, plain = (
        nbnorm.BatchNormState(20, momentum=momentum, skip_nonfinite=skip, device="cuda") for skip in (True, False)
    )
    for frozen in (False, True):
        nbnorm.batch_norm_training(cupy.asarray(bad), guarded, use_running=frozen)
        for state in (guarded, plain):
            nbnorm.batch_norm_training(cupy.asarray(good), state, use_running=frozen)
        guarded.update(nbnorm.batch_stats(cupy.asarray(bad)))
        assert bits(guarded)[:-1] == bits(plain)[:-1]  # but how many were skipped
    assert (guarded.num_batches, guarded.num_samples, guarded.num_skipped, plain.num_skipped) == (2, 12, 4, 0)
    for twin in (copy.copy(guarded), pickle.loads(pickle.dumps(guarded)), guarded.to("cpu")):
        assert (twin.skip_nonfinite, twin.num_skipped, bits(twin)) == (True, 4, bits(guarded))
    nbnorm.batch_norm_training(cupy.asarray(bad), plain)
    assert not np.isfinite(plain.running_mean.get()[channel])
    guarded.reset_running()
    assert (guarded.num_skipped, guarded.num_batches) == (0, 0)


def test_counts_and_empty_parts(cupy):
    state = nbnorm.BatchNormState(1, momentum=None, device="cuda")
    state.running_mean = [1e160]
    full, empty = (nbnorm.batch_stats(cupy.asarray(np.full((n, 1), 1e160))) for n in (4, 0))
    with pytest.raises(ValueError, match=r"set state\.num_samples"):
        state.update(full)
    with pytest.raises(ValueError, match=r"set state\.num_samples"):
        nbnorm.batch_norm_training(cupy.asarray(np.ones((4, 1))), state)
    state.num_samples, state.num_batches = 0, 0
    for piece in (empty, full, empty):
        state.update(piece)
    assert (state.running_mean.get().tolist(), state.running_var.get().tolist()) == ([1e160], [0])
    assert (state.num_batches, state.num_samples) == (3, 4)
    before = bits(state)
    with pytest.raises(TypeError, match=r"stats\.count is a numpy\.ndarray but the state is on cuda:0"):
        state.update(full._replace(count=np.full(1, 4.0)))
    assert bits(state) == before
    for parts in ((empty, full), (full, empty), (empty, full, empty)):
        assert [part.get().tobytes() for part in nbnorm.merge_stats(*parts)] == [p.get().tobytes() for p in full]


def test_what_is_assigned_is_checked_first(cupy):
    state = nbnorm.BatchNormState(2, device="cuda")
    before = bits(state)
    for value in ([1.0, -1.0], cupy.asarray([1.0, -1.0]), cupy.asarray([-np.inf, 1.0])):
        with pytest.raises(ValueError, match="running_var has negative"):
            state.running_var = value
    with pytest.raises(TypeError, match="running_var is on cuda:0 but the state is on cpu"):
        nbnorm.BatchNormState(2).running_var = cupy.asarray([1.0, 1.0])
    assert bits(state) == before
    state.running_var = cupy.asarray([np.nan, np.inf])
    assert state.running_var.get().tobytes() == np.array([np.nan, np.inf]).tobytes()


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("unbiased", [True, False])
def test_which_variance_the_running_one_is(cupy, momentum, unbiased, rng):
    here, there = (
        nbnorm.BatchNormState(20, momentum=momentum, unbiased=unbiased, device=device) for device in ("cpu", "cuda")
    )
    for rows in (2, 6):
        x = sample(rng, (rows, 20))
        nbnorm.batch_norm_training(x, here)
        nbnorm.batch_norm_training(cupy.asarray(x), there)
    for twin in (there, copy.copy(there), pickle.loads(pickle.dumps(there)), there.to("cpu")):
        assert twin.unbiased is unbiased
    assert_stat_close(there.running_var.get(), here.running_var)
    if momentum is None:
        one = nbnorm.BatchNormState(20, momentum=None, unbiased=unbiased, device="cuda")
        one.update(nbnorm.batch_stats(cupy.asarray(x[:1])))
        assert (one.running_var.get() == unbiased).all()  # 0, or as it was


def test_arrays_for_other_libraries_come_from_the_gpu(cupy, rng):
    state = random_state(rng, 3)
    there = state.to("cuda")
    assert all(map(same_bits, exchange.to_keras(there), exchange.to_keras(state)))


@pytest.mark.parametrize("after", [True, False])
def test_fold_on_the_gpu(cupy, after, rng):
    state = random_state(rng, 3)
    weight, bias = sample(rng, (3, 3, 2)), sample(rng, (3, 1))[:, 0]
    expected = nbnorm.fold(weight, bias, state, after=after)
    found = nbnorm.fold(cupy.asarray(weight), cupy.asarray(bias), state.to("cuda"), after=after)
    assert all(type(a) is cupy.ndarray for a in found)
    for a, b in zip(found, expected, strict=True):  # a ulp: sums in another order, other instructions
        assert (abs(a.get() - b) <= np.spacing(abs(b))).all()
    with pytest.raises(TypeError, match="state is on cuda"):
        nbnorm.fold(weight, bias, state.to("cuda"))
    with pytest.raises(TypeError, match="bias is a numpy"):
        nbnorm.fold(cupy.asarray(weight), bias, state.to("cuda"))


@pytest.mark.skipif(not SIMULATED, reason="ONLY THE SIMULATOR takes a stream that is none (test_gpu_only.py has one)")
def test_what_waits_is_refused_in_a_capture(cupy, rng, monkeypatch):
    """Before any kernel of ours, so that the capture can go on."""
    x, own = cupy.asarray(sample(rng, (12, 3))), random_state(rng, 3).to("cuda")
    where, weights = cupy.asarray(rng.random((12, 1)) < 0.7), cupy.asarray(rng.random((12, 1)))
    _, saved = nbnorm.batch_norm_training(x, own, where=where)
    before, expected = snapshot(own.to("cpu")), nbnorm.batch_norm_backward(x, saved).dx.get()
    captured = types.SimpleNamespace(ptr=7, is_capturing=lambda: True)
    with monkeypatch.context() as patched:
        patched.setattr(cupy.cuda, "get_current_stream", lambda: captured)
        for call in (
            lambda: nbnorm.batch_norm_training(x, own, where=where),
            lambda: nbnorm.batch_norm_training(x, own, nan="omit"),
            lambda: nbnorm.batch_norm_training(x, own, weights=weights),
            lambda: nbnorm.batch_stats(x, weights=weights),
        ):
            with pytest.raises(RuntimeError, match="waits for the GPU, which a stream that is being captured cannot"):
                call()
        dx = nbnorm.batch_norm_backward(x, saved).dx  # does not wait
    assert same_bits(dx.get(), expected)
    assert snapshot(own.to("cpu")) == before
