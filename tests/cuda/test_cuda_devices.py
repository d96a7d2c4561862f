"""Several GPUs: during a call the device of its arrays is current, and nothing moves by itself."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import reference
from common import random_state, sample, snapshot
from tolerance import assert_stat_close

import nbnorm

SHAPES = [(2, 3, 68), (37, 3)]


@pytest.fixture(autouse=True)
def devices(cupy, monkeypatch):
    """Two of them, the first one current before and after every test."""
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("ONLY ONE GPU")
    from nbnorm._cuda import launch, passes, running, stages

    def pointer(array, real=launch.pointer):
        assert array is None or array.device.id == cupy.cuda.runtime.getDevice(), "a kernel of another device"
        return real(array)

    for module in (stages, running, passes):
        monkeypatch.setattr(module, "pointer", pointer)
    assert cupy.cuda.runtime.getDevice() == 0
    yield
    assert cupy.cuda.runtime.getDevice() == 0


def on(cupy, number, array):
    with cupy.cuda.Device(number):
        return cupy.asarray(array)


def whole_step(cupy, number, x, dy, state):
    """Every result of the public functions with all arrays on a device, in a fixed order."""
    x, dy, state = on(cupy, number, x), on(cupy, number, dy), state.to(f"cuda:{number}")
    y, saved = nbnorm.batch_norm_training(x, state)
    strided, frozen = nbnorm.batch_norm_training(x[::-1], state, use_running=True)
    stats = nbnorm.batch_stats(x)
    state.update(stats)
    forms = (
        {"nan": "omit"}, {"where": on(cupy, number, x.get() > 0)}, {"weights": on(cupy, number, abs(x.get()))},
        {"weights": on(cupy, number, (abs(x.get()) * 8).astype(np.int16)), "ghost": len(x) // 2},
    )  # fmt: skip
    counted = []
    for form in forms:
        z, its = nbnorm.batch_norm_training(x, state, **form)
        counted += [z, *nbnorm.batch_norm_backward(dy, its), its.count]
        counted += nbnorm.batch_stats(x, **{name: array for name, array in form.items() if name != "ghost"})
    pooled = nbnorm.BatchNormState(x.shape[1], momentum=None, device=f"cuda:{number}")
    for form in forms[:3]:
        pooled.update(nbnorm.batch_stats(x, **form))
    return [
        *counted, pooled.running_mean, pooled.running_var, on(cupy, number, np.asarray(state.num_samples)),
        y, *nbnorm.batch_norm_backward(dy, saved), saved.mean, saved.inv_std, saved.gamma,
        strided, *nbnorm.batch_norm_backward(dy, frozen),
        nbnorm.batch_norm_inference(x, state), nbnorm.batch_norm_inference(x, state, out=dy), *stats,
        *nbnorm.merge_stats(stats, stats), state.running_mean, state.running_var, *state.as_affine(),
        *state.state_dict().values(),
    ]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_call_runs_on_the_device_of_its_array(cupy, rng, shape):
    x, dy, state = sample(rng, shape), sample(rng, shape), random_state(rng, 3)
    on_second = whole_step(cupy, 1, x, dy, state)  # while the first is current
    assert {a.device.id for a in on_second} == {1}
    with cupy.cuda.Device(1):
        on_first = whole_step(cupy, 0, x, dy, state)
        assert cupy.cuda.runtime.getDevice() == 1
    assert {a.device.id for a in on_first} == {0}
    assert [a.get().tobytes() for a in on_first] == [a.get().tobytes() for a in on_second]


def test_a_call_that_fails_leaves_the_current_device(cupy, rng, monkeypatch):
    from nbnorm import _cuda

    def fails(*args):
        assert cupy.cuda.runtime.getDevice() == 1
        raise MemoryError

    x, state = on(cupy, 1, sample(rng, (5, 3))), nbnorm.BatchNormState(3, device="cuda:1")
    _, saved = nbnorm.batch_norm_training(x, state)
    for name in ("training_forward", "backward", "running_forward", "batch_statistics"):
        monkeypatch.setattr(_cuda, name, fails)
    for call in (
        lambda: nbnorm.batch_norm_training(x, state),
        lambda: nbnorm.batch_norm_backward(x, saved),
        lambda: nbnorm.batch_norm_inference(x, state),
        lambda: nbnorm.batch_stats(x),
    ):
        with pytest.raises(MemoryError):
            call()
        assert cupy.cuda.runtime.getDevice() == 0


def test_a_state_goes_to_the_other_device_and_stays_behind(cupy, rng):
    host = random_state(rng, 3)
    first, second = host.to("cuda:0"), host.to("cuda:1")
    moved = first.to("cuda:1")
    for state in (second, moved):
        arrays = (state.gamma, state.beta, state.running_mean, state.running_var)
        assert (state.device, {a.device.id for a in arrays}) == ("cuda:1", {1})
        assert snapshot(state.to("cpu")) == snapshot(host)
    with cupy.cuda.Device(1):
        assert first.to("cuda").device == "cuda:1"
        assert nbnorm.BatchNormState(3, device="cuda").gamma.device.id == 1
        assert first.to("cuda:0") is first
        moved.gamma *= 0
    assert snapshot(first.to("cpu")) == snapshot(host)


def test_a_state_is_used_from_the_other_device(cupy, rng, tmp_path):
    host = random_state(rng, 3)
    state = host.to("cuda:1")
    others = (copy.copy(state), pickle.loads(pickle.dumps(state)), copy.deepcopy(state))
    again = nbnorm.BatchNormState.from_state_dict(state.state_dict(), eps=host.eps, momentum=host.momentum)
    for other in (*others, again):
        assert (other.device, other.gamma.device.id, other.running_var.device.id) == ("cuda:1", 1, 1)
        assert snapshot(other.to("cpu")) == snapshot(host)
    state.save(tmp_path / "state.npz")
    assert snapshot(nbnorm.BatchNormState.load(tmp_path / "state.npz")) == snapshot(host)
    gamma = state.gamma
    state.gamma, state.beta = [1.0, 2.0, 3.0], on(cupy, 1, np.float32([4, 5, 6]))
    with pytest.raises(TypeError, match=r"^beta is on cuda:0 but the state is on cuda:1; copy it there first$"):
        state.beta = on(cupy, 0, np.float32([7, 8, 9]))
    assert state.gamma is gamma
    assert (state.gamma.get().tolist(), state.beta.get().tolist()) == ([1, 2, 3], [4, 5, 6])
    for name in ("gamma", "running_var"):
        with pytest.raises(TypeError, match=f"{name} is on cuda:1 but the state is on cpu"):
            setattr(host, name, getattr(state, name))
    state.reset_running()
    assert (state.running_var.get().tolist(), state.num_batches) == ([1] * 3, 0)


def test_two_devices_in_one_call_are_refused(cupy, rng):
    x = [on(cupy, number, sample(rng, (5, 3))) for number in range(2)]
    states = [nbnorm.BatchNormState(3, device=f"cuda:{number}") for number in range(2)]
    _, saved = nbnorm.batch_norm_training(x[1], states[1])
    stats = [nbnorm.batch_stats(one) for one in x]
    before = [snapshot(state.to("cpu")) for state in states], [one.get().tobytes() for one in x]
    of_x = 'x is a cupy.ndarray on cuda:0 but the state is on cuda:1; use state.to("cuda:0")'
    of_out = "out is on cuda:0; expected cuda:1, where x is"
    for call, kind, message in (
        (lambda: nbnorm.batch_norm_training(x[0], states[1]), TypeError, of_x),
        (lambda: nbnorm.batch_norm_inference(x[0], states[1]), TypeError, of_x),
        (lambda: nbnorm.batch_norm_backward(x[0], saved), TypeError,
         "dy is a cupy.ndarray on cuda:0 but x of the forward pass is on cuda:1"),
        (lambda: nbnorm.merge_stats(*stats), TypeError, "some arguments are on cuda:0 and some on cuda:1"),
        (lambda: nbnorm.batch_norm_training(x[1], states[1], out=x[0]), ValueError, of_out),
        (lambda: nbnorm.batch_norm_inference(x[1], states[1], out=x[0]), ValueError, of_out),
        (lambda: nbnorm.batch_norm_backward(x[1], saved, out=x[0]), ValueError, of_out),
    ):  # fmt: skip
        with pytest.raises(kind) as caught:
            call()
        assert message in str(caught.value)
        assert len(str(caught.value)) < 200
    assert ([snapshot(state.to("cpu")) for state in states], [one.get().tobytes() for one in x]) == before


def test_a_number_without_a_device_is_refused(cupy):
    count = cupy.cuda.runtime.getDeviceCount()
    with pytest.raises(ValueError, match=f"this machine has {count} GPUs"):
        nbnorm.BatchNormState(3).to(f"cuda:{count}")


def test_a_scaler(cupy, rng):
    sklearn = pytest.importorskip("nbnorm.sklearn", reason="scikit-learn is not installed")
    x = sample(rng, (12, 3)).astype(np.float64)
    x[2, 1] = np.nan
    second, host = on(cupy, 1, x), sklearn.StandardScaler().fit(x)
    scaler = sklearn.StandardScaler().fit(second)
    there = scaler.transform(second)
    back = scaler.inverse_transform(there)
    assert {a.device.id for a in (scaler.mean_, scaler.var_, there, back)} == {1}
    sizes = (np.abs(x) + np.abs(host.mean_)) / host.scale_  # of terms that are rounded twice at most on the way
    for found, right, size in (there, host.transform(x), sizes), (back, x, sizes * host.scale_):
        assert (np.isnan(x) | (np.abs(found.get() - right) <= 4 * 2.0**-53 * size)).all()
    for assigned in [1, 2, 3], np.zeros(3):
        scaler.mean_ = assigned
        with pytest.raises(
            TypeError, match=r"mean_ is a numpy.ndarray but the scaler is on cuda:1; use an array there"
        ):
            scaler.transform(second)
    whole = on(cupy, 1, np.arange(36, dtype=np.int16).reshape(12, 3))
    of_whole = sklearn.StandardScaler().fit(whole)
    assert {a.device.id for a in (of_whole.mean_, of_whole.transform(whole))} == {1}
    assert of_whole.mean_.get().tolist() == [16.5, 17.5, 18.5]
    scaler.mean_ = on(cupy, 1, np.array(0.0, np.float32))
    assert (np.isnan(x) | (np.abs(scaler.transform(second).get() - x / host.scale_) <= 2.0**-52 * sizes)).all()
    weighted = sklearn.StandardScaler().fit(second, sample_weight=on(cupy, 1, np.arange(12.0)))
    w = np.where(np.isnan(x), 0, np.arange(12.0)[:, None])
    assert_stat_close(weighted.mean_.get(), reference.weighted_stats(x, w)[1])


def test_what_goes_to_the_host_goes_by_the_stream_of_its_device(cupy, rng, monkeypatch, tmp_path):
    """CuPy takes that of the device that is current, which does not wait for what another one still writes."""
    x, own, read = on(cupy, 1, sample(rng, (12, 3))), random_state(rng, 3), []

    def get(array, real=cupy.ndarray.get):
        assert array.device.id == cupy.cuda.runtime.getDevice(), "read on the stream of another device"
        read.append(array.size)
        return real(array)

    monkeypatch.setattr(cupy.ndarray, "get", get)
    state = own.to("cuda:1")
    nbnorm.batch_norm_training(x, state)
    assert (state.num_batches, state.num_samples, state.num_skipped) == (own.num_batches + 1, own.num_samples + 12, 0)
    assert snapshot(state.to("cpu")) == snapshot(pickle.loads(pickle.dumps(state)).to("cpu"))
    state.save(tmp_path / "state.npz")
    assert snapshot(nbnorm.BatchNormState.load(tmp_path / "state.npz")) == snapshot(state.to("cpu"))
    assert len(read) > 4


def test_an_array_with_names(cupy, rng):
    xarray = pytest.importorskip("xarray", reason="xarray is not installed")
    names = pytest.importorskip("nbnorm.xarray")
    x = sample(rng, (12, 3)).astype(np.float64)
    da = xarray.DataArray(on(cupy, 1, x), dims=("time", "place"))
    z, stats = names.standardize(da, "time"), names.batch_stats(da, "time")
    found = z, names.standardize(da, "time", stats=stats), names.unstandardize(z, "time", stats=stats)
    assert {a.data.device.id for a in found} == {1}
    mean, std = x.mean(0), x.std(0)
    sizes = (np.abs(x) + np.abs(mean)) / std  # of terms that are rounded a few times on the way
    for one, right, size in zip(found, ((x - mean) / std,) * 2 + (x,), (sizes, sizes, sizes * std), strict=True):
        assert (np.abs(one.data.get() - right) <= 8 * 2.0**-53 * size).all()
    integers = np.arange(36).reshape(12, 3) ** 2
    twice = on(cupy, 1, np.repeat(integers, 2, -1).astype(float))
    for given in on(cupy, 1, integers), twice[:, ::2]:  # which are converted, or have gaps
        one, before = xarray.DataArray(given, dims=("time", "place")), given.get()
        found, right = names.standardize(one, "time"), (integers - integers.mean(0)) / integers.std(0)
        assert found.data.device.id == 1
        assert (np.abs(found.data.get() - right) <= 8 * 2.0**-53 * (integers.max() / integers.std(0))).all()
        assert one.data.get().tobytes() == before.tobytes()
    w = np.arange(12.0)
    weights = xarray.DataArray(on(cupy, 1, w), dims="time")
    weighted = names.batch_stats(da, "time", weights=weights)
    assert {a.data.device.id for a in weighted} == {1}
    count, mean, m2 = reference.weighted_stats(x, np.broadcast_to(w[:, None], x.shape))
    for one, right in zip(weighted, (count, mean, m2), strict=True):
        assert_stat_close(one.data.get(), right)
    z, std = names.standardize(da, "time", weights=weights), np.sqrt(m2 / count)
    size = (np.abs(x) + np.abs(mean) + std) / std  # the sum that the mean is has terms of the size of the std
    assert (np.abs(z.data.get() - (x - mean) / std) <= 8 * 2.0**-53 * size).all()
    with pytest.raises(TypeError, match=r"weights is a numpy.ndarray but x is on cuda:1"):
        names.batch_stats(da, "time", weights=xarray.DataArray(w, dims="time"))


def test_a_layer(cupy, rng):
    layer = nbnorm.BatchNorm(3, device="cuda:1")
    y = layer(on(cupy, 1, sample(rng, (6, 3, 4))))
    found = y, layer.backward(y), layer.dgamma, layer.dbeta, layer.eval()(y)
    assert {a.device.id for a in found} == {1}
