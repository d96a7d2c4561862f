"""What only a real GPU can show: streams, graphs, two runs at once, large arrays, the memory pool, the launch path."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import reference
from common import sample
from steps import check_step
from test_counted import mostly_far
from tolerance import assert_close, assert_stat_close

import nbnorm

pytestmark = pytest.mark.real_gpu
SHAPES = [(32, 64, 28, 28), (16, 24, 35, 35), (64, 32, 7, 7), (5_000, 64), (100_003, 3)]


def whole_step(x, dy, state, **options):
    y, saved = nbnorm.batch_norm_training(x, state, **options)
    return (y, *nbnorm.batch_norm_backward(dy, saved), state.running_mean, state.running_var), saved


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_real_sizes(cupy, rng, shape, dtype):
    x, dy = (cupy.asarray(sample(rng, shape, dtype)) for _ in range(2))
    check_step(cupy, x, dy, rng)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_hundred_runs_give_the_same_bits(cupy, rng, shape):
    x, dy = (cupy.asarray(sample(rng, shape)) for _ in range(2))
    first, _ = whole_step(x, dy, nbnorm.BatchNormState(shape[1], device="cuda"))
    for _ in range(100):
        again, _ = whole_step(x, dy, nbnorm.BatchNormState(shape[1], device="cuda"))
        assert [a.get().tobytes() for a in again] == [a.get().tobytes() for a in first]


@pytest.mark.parametrize("shape", [(64, 2, 4096), (2_600, 3), (100_003, 3)], ids=str)
def test_a_hundred_runs_whose_origins_move_give_the_same_bits(cupy, rng, shape):
    x, weights = mostly_far(sample(rng, shape), 1e-30, 1e8)
    given, on_device, dy = cupy.asarray(x), cupy.asarray(weights), cupy.asarray(sample(rng, shape))
    first, saved = whole_step(given, dy, nbnorm.BatchNormState(shape[1], device="cuda"), weights=on_device)
    exact = reference.weighted_training(x, reference.counts(x, None, weights))
    assert_stat_close(saved.mean.get(), exact.mean)
    for _ in range(100):
        again, _ = whole_step(given, dy, nbnorm.BatchNormState(shape[1], device="cuda"), weights=on_device)
        assert [a.get().tobytes() for a in again] == [a.get().tobytes() for a in first]


def test_a_capture_goes_on_after_a_call_that_would_wait(cupy, rng):
    x, own = cupy.asarray(sample(rng, (12, 3))), nbnorm.BatchNormState(3, device="cuda")
    where, weights = cupy.ones((12, 1), bool), cupy.ones((12, 1), np.float32)
    _, saved = nbnorm.batch_norm_training(x, own, where=where, update_running=False)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        expected = nbnorm.batch_norm_inference(x, own).get(), nbnorm.batch_norm_backward(x, saved).dx.get()
        stream.begin_capture()
        for options in {"where": where}, {"weights": weights}, {"nan": "omit"}:
            with pytest.raises(RuntimeError, match="waits for the GPU"):
                nbnorm.batch_norm_training(x, own, **options)
        y, dx = nbnorm.batch_norm_inference(x, own), nbnorm.batch_norm_backward(x, saved).dx
        stream.end_capture().launch(stream)
        stream.synchronize()
    assert [y.get().tobytes(), dx.get().tobytes()] == [a.tobytes() for a in expected]
    assert own.num_batches == 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_calls_run_on_the_current_stream(cupy, rng, shape):
    x = cupy.asarray(sample(rng, shape))
    state = nbnorm.BatchNormState(shape[1], device="cuda")
    exact = nbnorm.batch_norm_training(x + 1, state)[0].get()
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        busy = cupy.ones((4096, 4096))
        for _ in range(200):  # keeps the stream busy: a launch on another one would read x too early
            busy = cupy.sqrt(busy)
        late = x + 1
        y, _ = nbnorm.batch_norm_training(late, nbnorm.BatchNormState(shape[1], device="cuda"))
    stream.synchronize()
    assert y.get().tobytes() == exact.tobytes()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_new_thread_that_has_done_nothing_else(cupy, rng, shape):
    x = cupy.asarray(sample(rng, shape))
    state, out = nbnorm.BatchNormState(shape[1], device="cuda"), cupy.empty_like(x)
    exact = nbnorm.batch_norm_inference(x, state).get()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(nbnorm.batch_norm_inference, x, state, out=out).result()
    cupy.cuda.Device().synchronize()
    assert out.get().tobytes() == exact.tobytes()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_graph_replays_a_step(cupy, rng, shape):
    x, dy = (cupy.asarray(sample(rng, shape)) for _ in range(2))
    batches = [cupy.asarray(sample(rng, shape)) for _ in range(3)]
    expected_state = nbnorm.BatchNormState(shape[1], device="cuda")
    expected = [[a.get() for a in whole_step(batch, dy, expected_state)[0]] for batch in batches]

    state = nbnorm.BatchNormState(shape[1], device="cuda")
    whole_step(x, dy, state.to("cpu").to("cuda"))  # compiles, and fills the pool
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        whole_step(x, dy, state.to("cpu").to("cuda"))
        stream.begin_capture()
        arrays, saved = whole_step(x, dy, state)  # what a captured call returned is kept as long as the graph
        graph = stream.end_capture()
        for batch, values in zip(batches, expected, strict=True):
            x[...] = batch
            graph.launch(stream)
            stream.synchronize()
            assert [a.get().tobytes() for a in arrays] == [a.tobytes() for a in values]
    assert state.num_batches == len(batches)
    assert saved.x is x


def test_more_than_two_to_the_31_elements(cupy):
    shape = (2**31 + 2**20) // 64, 64
    if cupy.cuda.runtime.memGetInfo()[0] < 12 << 30:
        pytest.skip("NOT ENOUGH MEMORY for more than 2**31 elements: 12 GiB")
    x = cupy.empty(shape, np.float16)
    x[...] = cupy.arange(64, dtype=np.float16)
    x[::2] += 1  # mean c + 1/2, variance 1/4, exactly
    state = nbnorm.BatchNormState(64, device="cuda", momentum=1.0, eps=2.0**-30)
    y, _ = nbnorm.batch_norm_training(x, state, out=cupy.empty_like(x))
    np.testing.assert_array_equal(state.running_mean.get(), np.arange(64) + 0.5)
    for rows in (slice(0, 2), slice(shape[0] - 2, shape[0])):
        assert y[rows].get().tolist() == [[1.0] * 64, [-1.0] * 64]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_pool_does_not_grow(cupy, rng, shape):
    x, dy = (cupy.asarray(sample(rng, shape)) for _ in range(2))
    state, pool = nbnorm.BatchNormState(shape[1], device="cuda"), cupy.get_default_memory_pool()
    for _ in range(3):
        whole_step(x, dy, state)
    used, total = pool.used_bytes(), pool.total_bytes()
    for _ in range(200):
        whole_step(x, dy, state)
    assert (pool.used_bytes(), pool.total_bytes()) == (used, total)


@pytest.mark.parametrize("counting", [False, True], ids=["all", "weights"])
@pytest.mark.parametrize("shape", [(32, 64, 28, 28), (8, 300, 14, 14)], ids=str)
def test_numbas_own_launch_gives_the_same_bits(cupy, rng, shape, counting, monkeypatch):
    """The fallback of launch.py, should the private attribute go that the fast path needs. In two launches and one."""
    from nbnorm._cuda import apply, counted, finalize, fused, launch, reduce

    x, dy = (cupy.asarray(sample(rng, shape)) for _ in range(2))
    options = {"weights": cupy.asarray(abs(sample(rng, (len(x), 1, 1, 1))))} if counting else {}
    first, _ = whole_step(x, dy, nbnorm.BatchNormState(shape[1], device="cuda"), **options)
    modules = apply, counted, finalize, fused, reduce
    kernels = [v for module in modules for v in vars(module).values() if isinstance(v, launch.Kernel)]
    for kernel in kernels:
        monkeypatch.setattr(kernel, "ready", {})
    monkeypatch.setattr(launch, "_loaded", lambda compiled: None)
    again, _ = whole_step(x, dy, nbnorm.BatchNormState(shape[1], device="cuda"), **options)
    assert [a.get().tobytes() for a in again] == [a.get().tobytes() for a in first]


@pytest.mark.parametrize("shape", [(8, 256, 14, 14), (2, 1024, 16, 16), (32, 264, 20, 20)], ids=str)
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "relu and residual"])
def test_one_launch_gives_the_bits_of_two(cupy, rng, shape, beside, dtype, monkeypatch):
    """Many times: a thread that did not wait for the others would map with sums of a part."""
    from nbnorm._cuda import plan, stages

    x, dy = (cupy.asarray(sample(rng, shape, dtype)) for _ in range(2))
    options = {"activation": "relu", "residual": cupy.asarray(sample(rng, shape, dtype))} if beside else {}
    cut = plan.cut((*shape[:2], int(np.prod(shape[2:]))), x.itemsize)
    assert plan.room_of(cut, x.itemsize, arrays=1)  # of the last shape more than a block has that does not ask

    def bits(dy):
        (*arrays,), saved = whole_step(x, dy, nbnorm.BatchNormState(shape[1], device="cuda"), **options)
        return [a.get().tobytes() for a in (*arrays, saved._stats)]

    found = [(sign, bits(sign * dy)) for sign in (1, -1) * 10]
    monkeypatch.setattr(stages, "room_of", lambda *args, **kwargs: None)
    expected = {sign: bits(sign * dy) for sign in (1, -1)}
    assert all(arrays == expected[sign] for sign, arrays in found)


def test_every_half_float_survives(cupy):
    """Conversions: inference with mean 0, variance 1 - eps, gamma 1, beta 0 is the identity."""
    values = np.arange(2**16, dtype=np.uint16).view(np.float16)
    values = values[np.isfinite(values)].reshape(-1, 8)
    state = nbnorm.BatchNormState(8, device="cuda", eps=0.5)
    state.running_var = [0.5] * 8
    y = nbnorm.batch_norm_inference(cupy.asarray(values), state)
    assert_close(y.get(), reference.wide(values), 1)
    np.testing.assert_array_equal(y.get(), values)
