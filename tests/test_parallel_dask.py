"""nbnorm.parallel.dask: on a cluster of processes, and in threads where processes make no difference."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import reference
from common import random_state, same_bits, sample
from test_faults import assert_waits_for_its_turn
from tolerance import assert_close, assert_stat_close, dtype_of

import nbnorm

try:
    import dask
    import dask.array as da
    import zarr
    from distributed import Client, LocalCluster

    from nbnorm.parallel import dask as nd
except ImportError as error:
    if os.environ.get("NBNORM_REQUIRE_PARALLEL") == "1":
        raise
    pytest.skip(f'NO DASK TESTS: {error}; pip install -e ".[dask]" zarr', allow_module_level=True)

# Tornado and asyncio close their sockets when they see fit.
pytestmark = pytest.mark.filterwarnings("default")

CHUNKS = {
    "over samples": ((700, 300), 6, 40),
    "over channels": (1000, (1, 2, 3), 40),
    "over everything": ((1, 499, 500), (4, 2), (7, 33)),
    "twenty": (50, 6, 40),
}
every_chunks = pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)


@pytest.fixture(scope="module")
def client():
    """Two processes of one thread."""
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0")
    with cluster, Client(cluster) as client:
        client.register_plugin(nd.NumbaThreads(1))
        yield client


@pytest.fixture
def threads():
    with dask.config.set(scheduler="threads"):
        yield


def data(rng, mean=1e4):
    return (sample(rng, (1000, 6, 40), "float64") + mean).astype(np.float32)


def assert_relative(found, exact):
    assert (abs(found - exact) <= 1e-12 * abs(exact)).all()


@every_chunks
def test_statistics_on_a_cluster(client, chunks, rng):
    x = data(rng)
    lazy = nd.batch_stats(da.from_array(x, chunks=chunks))
    assert isinstance(lazy.mean, da.Array)
    (stats,) = dask.compute(lazy)
    count, mean, m2 = reference.stats(x)
    assert type(stats) is nbnorm.BatchStats
    assert float(stats.count) == count
    assert_relative(stats.mean, mean)
    assert_relative(stats.m2, m2)
    with dask.config.set(scheduler="synchronous"):
        (again,) = dask.compute(lazy)
    assert all(same_bits(a, b) for a, b in zip(stats, again, strict=True))


LAZY = {
    "where, a NumPy array": lambda rng: {"where": rng.random((1000, 1, 40)) < 0.5},
    "where, in chunks of its own": lambda rng: {
        "where": da.from_array(rng.random((1000, 6, 40)) < 0.5, chunks=(300, 4, 9))
    },
    "where, fewer axes": lambda rng: {"where": rng.random(40) < 0.5},
    "missing": lambda rng: {"nan": "omit"},
    "weights": lambda rng: {"weights": da.from_array(rng.integers(0, 3, (1000, 1, 1)), chunks=(70, 1, 1))},
    "all": lambda rng: {
        "where": rng.random((1000, 6, 1)) < 0.5, "weights": rng.uniform(0, 2, (1000, 1, 1)), "nan": "omit",
    },
}  # fmt: skip


@pytest.mark.each_value
@every_chunks
@pytest.mark.parametrize("counting", LAZY.values(), ids=LAZY)
def test_statistics_of_values_that_count(threads, chunks, counting, rng):
    x, counting = sample(rng, (1000, 6, 40)), counting(rng)
    if counting.get("nan") == "omit":
        x[rng.random(x.shape) < 0.2] = np.nan
    lazy = nd.batch_stats(da.from_array(x, chunks=chunks), **counting)
    assert all(isinstance(part, da.Array) and part.shape == (6,) for part in lazy)
    (stats,) = dask.compute(lazy)
    where, weights = (
        None if counting.get(name) is None else np.asarray(counting[name]) for name in ("where", "weights")
    )
    count, mean, m2 = reference.weighted_stats(x, reference.counts(x, where, weights, counting.get("nan") == "omit"))
    # The same products in another order, in float64.
    assert (np.abs(stats.count - count) <= 1e-13 * count).all()
    assert_stat_close(stats.mean, mean)
    assert_stat_close(stats.m2, m2)
    state = nbnorm.BatchNormState(6, momentum=None)
    state.update(stats)
    assert_stat_close(state.running_mean, mean)


@pytest.mark.parametrize("name", ["where", "weights"])
def test_a_task_gets_its_part_of_what_is_in_memory(threads, name, rng):
    """Not the whole array, which a cluster would have to send to each worker."""
    x, counts = sample(rng, (1000, 6, 40)), rng.random((1000, 1, 40)) < 0.5
    lazy = nd.batch_stats(da.from_array(x, chunks=(50, 6, 40)), **{name: counts if name == "where" else counts + 0.0})
    sizes = [
        getattr(node, "value", node).shape
        for node in dict(lazy.mean.__dask_graph__()).values()
        if getattr(getattr(node, "value", node), "shape", (0, 0))[1:] == (1, 40)
    ]
    assert sizes == [(50, 1, 40)] * 20
    (stats,) = dask.compute(lazy)
    assert_stat_close(stats.mean, reference.weighted_stats(x, reference.counts(x, counts, None, False))[1])


@pytest.mark.parametrize(("counting", "error", "text"), [
    ({"where": np.ones((7, 1), bool)}, ValueError, "where has shape (7, 1)"),
    ({"where": da.ones((8, 1))}, TypeError, "where has dtype float64"),
    ({"where": [True] * 8}, TypeError, "where is a builtins.list"),
    ({"weights": da.ones((8, 1), dtype=bool)}, TypeError, "weights has dtype bool"),
    ({"weights": np.ones((8, 2))}, ValueError, "weights has shape (8, 2)"),
    ({"nan": "ignore"}, ValueError, "nan is 'ignore'"),
])  # fmt: skip
def test_what_counts_is_checked_when_the_graph_is_built(counting, error, text):
    with pytest.raises(error) as caught:
        nd.batch_stats(da.ones((8, 3), chunks=4), **counting)
    assert text in str(caught.value)


def test_a_negative_weight_is_found_by_the_task_that_reads_it(threads):
    stats = nd.batch_stats(da.ones((8, 3), chunks=4), weights=da.from_array(np.array([[1.0]] * 7 + [[-1.0]]), chunks=2))
    with pytest.raises(ValueError, match="weights has values such as -1"):
        dask.compute(stats)


@every_chunks
def test_training_and_inference_on_a_cluster(client, chunks, rng):
    x, state = data(rng, 10), random_state(rng, 6)
    lazy = da.from_array(x, chunks=chunks)
    y, saved = nd.batch_norm_training(lazy, state)
    assert y.chunks == lazy.chunks
    y, stats = dask.compute(y, saved.stats)
    assert_close(y, reference.training(x, state.gamma, state.beta, state.eps).y)
    before = state.running_mean.copy(), state.running_var.copy()
    state.update(stats)
    count, mean, m2 = reference.stats(x)
    expected = reference.moving_average(*before, mean, m2, count, state.momentum)
    assert_relative(state.running_mean, expected[0])
    assert_relative(state.running_var, expected[1])
    y = nd.batch_norm_inference(lazy, state).compute()
    assert same_bits(y, nbnorm.batch_norm_inference(x, state))


def test_channels_on_several_axes(threads, rng):
    x = sample(rng, (30, 4, 6), axis=(2, 0))
    state = random_state(rng, (6, 30))
    lazy = da.from_array(x, chunks=((11, 19), 2, (1, 5)))
    y, saved = nd.batch_norm_training(lazy, state, axis=(2, 0))
    y, stats = dask.compute(y, saved.stats)
    assert_close(y, reference.training(x, state.gamma, state.beta, state.eps, (2, 0)).y, (2, 0))
    assert_stat_close(stats.mean, reference.stats(x, (2, 0))[1])
    for axis in ((2, 0), -1):
        (stats,) = dask.compute(nd.batch_stats(lazy, axis=axis))
        for found, exact in zip(stats, reference.stats(x, axis), strict=True):
            assert_stat_close(found, exact)
    for parameters in ({}, {"use_gamma": False}, {"use_beta": False}, {"use_gamma": False, "use_beta": False}):
        state = random_state(rng, (6, 30), dtype="float64", eps=0.3, **parameters)
        y = nd.batch_norm_inference(lazy, state, axis=(2, 0)).compute()
        assert same_bits(y, nbnorm.batch_norm_inference(x, state, axis=(2, 0)))


def test_a_channel_that_overflows_between_chunks_is_nan(threads):
    x = np.array([[1e155, 1], [2e155, 2], [3e155, 6]])
    y = nd.batch_norm_training(da.from_array(x, chunks=(1, 2)), nbnorm.BatchNormState(2))[0].compute()
    assert np.isnan(y[:, 0]).all()
    assert_close(y[:, 1:], reference.training(x[:, 1:]).y)


def test_every_dtype_and_no_parameters(threads, dtype, rng):
    x = sample(rng, (60, 3, 8), "float64").astype(dtype_of(dtype))
    state = nbnorm.BatchNormState(3, use_gamma=False, use_beta=False)
    y = nd.batch_norm_training(da.from_array(x, chunks=(25, 2, 8)), state)[0].compute()
    assert y.dtype == x.dtype
    assert_close(y, reference.training(x).y)


def test_big_endian_input_gives_native_chunks_and_says_so(threads, rng):
    x, state = sample(rng, (20, 3)), random_state(rng, 3)
    lazy = da.from_array(x.astype(">f4"), chunks=7)
    for y, expected in (
        (nd.batch_norm_inference(lazy, state), nbnorm.batch_norm_inference(x, state)),
        (nd.batch_norm_training(lazy, state)[0], None),
    ):
        found = y.compute()
        assert y.dtype.isnative
        assert y._meta.dtype == y.dtype == found.dtype
        assert (y._meta.dtype.str, found.dtype.str) == (x.dtype.str,) * 2  # == does not see the byte order
        assert expected is None or same_bits(found, expected)


def test_the_graph_keeps_the_state_of_its_making(threads, rng):
    x, state = sample(rng, (20, 3)), random_state(rng, 3)
    expected = nbnorm.batch_norm_inference(x, state)
    y = nd.batch_norm_inference(da.from_array(x, chunks=7), state)
    state.gamma *= 2
    state.running_mean += 1
    assert same_bits(y.compute(), expected)


def test_a_graph_of_inference_waits_for_its_turn_with_the_state():
    x = da.ones((6, 3), chunks=2)
    assert_waits_for_its_turn(lambda state: nd.batch_norm_inference(x, state))


def test_workers_use_the_threads_they_are_given(client):
    assert set(client.run(nbnorm.get_num_threads).values()) == {1}


@pytest.mark.parametrize(("x", "error", "text"), [
    (np.ones((4, 3)), TypeError, "x is a numpy.ndarray; expected a dask.array.Array"),
    ("int", TypeError, "x has dtype int64; expected float16"),
    ("unknown", ValueError, "x has chunks of unknown size"),
    ("channels", ValueError, "x has 5 channels on axis 1"),
    ("one", ValueError, "training needs at least 2 values per channel, got 1"),
])  # fmt: skip
def test_errors_come_when_the_graph_is_built(x, error, text):
    if isinstance(x, str):
        x = {
            "int": lambda: da.ones((4, 3), dtype=int),
            "unknown": lambda: da.ones((4, 3))[da.ones(4) > 0],
            "channels": lambda: da.ones((4, 5)),
            "one": lambda: da.ones((1, 3)),
        }[x]()
    with pytest.raises(error) as caught:
        nd.batch_norm_training(x, nbnorm.BatchNormState(3))
    assert text in str(caught.value)


LIMIT, ROWS = 400 << 20, 4096  # bytes of the worker; of a block


def peak():
    """Process, and the most memory it has had; None where there is no /proc. (ru_maxrss counts the parent's.)"""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return os.getpid(), next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), None)


def block_of(reads, block_info=None):
    """float32, 8 MiB; the rows of block i have the mean i % 5. The file i gets a byte longer: another read."""
    (i, *_) = block_info[None]["chunk-location"]
    with open(reads / str(i), "ab") as file:
        file.write(b".")
    return rows_of(i)


@functools.cache
def integers():
    return np.random.default_rng(5).integers(-8, 8, (ROWS, 512)).astype(np.float32)


def rows_of(i):
    """Drawing each would take longer than all else."""
    return np.roll(integers(), i, 0) + np.float32(i % 5)


@pytest.mark.exhaustive("test_no_chunk_waits_in_memory of the other files of Dask")
def test_an_array_five_times_the_memory_of_its_worker(tmp_path):
    """Statistics and y, into a Zarr store: each chunk is read twice, and the worker stays below its limit."""
    blocks = -(-5 * LIMIT // (8 << 20))
    reads = tmp_path / "reads"
    reads.mkdir()
    state = nbnorm.BatchNormState(512, momentum=None)
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, memory_limit=LIMIT, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(nd.NumbaThreads(1))
        (before,) = client.run(peak).values()
        x = da.map_blocks(
            block_of, reads, chunks=((ROWS,) * blocks, (512,)), dtype=np.float32, meta=np.empty((0, 0), "f4")
        )
        assert x.nbytes >= 5 * LIMIT
        y, saved = nd.batch_norm_training(x, state)
        # Compressing takes twice the time of all else.
        written = y.to_zarr(str(tmp_path / "y.zarr"), compute=False, compressors=None)
        _, stats = dask.compute(written, saved.stats)
        (after,) = client.run(peak).values()
    assert before[0] == after[0]
    assert after[1] is None or after[1] < LIMIT
    assert {file.name: file.stat().st_size for file in reads.iterdir()} == {str(i): 2 for i in range(blocks)}
    # Integers: sums in float64 are exact here.
    count, total, square = 0, np.zeros(512), np.zeros(512)
    for i in range(blocks):
        block = rows_of(i)
        # float32 takes the sums of so few integers exactly.
        count, total, square = count + len(block), total + block.sum(0), square + (block**2).sum(0)
    assert float(stats.count) == count
    assert_relative(stats.mean, total / count)
    assert_relative(stats.m2, square - total**2 / count)
    state.update(stats)
    found = zarr.open(str(tmp_path / "y.zarr"), mode="r")
    for i in (0, blocks - 1):
        exact = (rows_of(i) - total / count) / np.sqrt(stats.m2 / count + state.eps)
        assert_close(np.asarray(found[ROWS * i : ROWS * (i + 1)]), exact)
    shutil.rmtree(tmp_path / "y.zarr")  # 2 GB, which pytest would keep for a while


@every_chunks
@pytest.mark.usefixtures("threads")
def test_inference_with_a_residual_and_an_activation(chunks, rng):
    x, residual, state = data(rng, 10), sample(rng, (1000, 6, 40)), random_state(rng, 6)
    for activation, added in (("relu", None), ("relu", residual), (("leaky_relu", 0.1), residual), (None, residual)):
        lazy = None if added is None else da.from_array(added, chunks=(300, 2, 40))
        y = nd.batch_norm_inference(da.from_array(x, chunks=chunks), state, residual=lazy, activation=activation)
        assert y.numblocks == da.from_array(x, chunks=chunks).numblocks
        assert same_bits(y.compute(), nbnorm.batch_norm_inference(x, state, residual=added, activation=activation))


def test_the_byte_order_of_a_residual_is_its_own_affair(rng):
    x, residual, state = sample(rng, (10, 3)), sample(rng, (10, 3)), random_state(rng, 3)
    exact = nbnorm.batch_norm_inference(x, state, residual=residual)
    for one, other in ((x.astype(">f4"), residual), (x, residual.astype(">f4"))):
        lazy = nd.batch_norm_inference(da.from_array(one), state, residual=da.from_array(other))
        assert same_bits(lazy.compute(), exact)


def test_lazy_statistics_are_not_computed_to_be_merged():
    stats = nd.batch_stats(da.ones((8, 2), chunks=2))
    with pytest.raises(TypeError, match=r"stats\[0\].mean is a dask.array.core.Array; .* use nbnorm.parallel.dask"):
        nbnorm.merge_stats(stats, stats)


def test_what_does_not_fit_is_refused_with_the_graph(rng):
    x, state = da.zeros((10, 3), dtype=np.float32), random_state(rng, 3)
    chosen = x[x[:, 0] > 0]
    for call in nd.batch_norm_inference, nd.batch_norm_training:
        with pytest.raises(TypeError, match=r"state is a NoneType; expected a nbnorm\.BatchNormState"):
            call(x, None)
    for options, text in (
        ({"weights": -np.ones((10, 1))}, "weights has values such as -1"),
        ({"weights": chosen}, "weights has chunks of unknown size; call weights.compute_chunk_sizes"),
        ({"where": chosen > 0}, "where has chunks of unknown size"),
    ):
        for call in (nd.batch_stats, lambda x, **options: nd.batch_norm_training(x, state, **options)):
            with pytest.raises(ValueError, match=text):
                call(x, **options)
    for options, error, text in (
        ({"activation": "tanh"}, ValueError, "activation is 'tanh'"),
        ({"residual": np.zeros((10, 3), np.float32)}, TypeError, "residual is a ndarray; expected a dask"),
        ({"residual": x[:5]}, ValueError, r"residual has shape \(5, 3\)"),
        ({"residual": chosen}, ValueError, "residual has chunks of unknown size"),
        ({"residual": x.astype(np.float64)}, TypeError, "residual has dtype float64"),
    ):
        with pytest.raises(error, match=text):
            nd.batch_norm_inference(x, state, **options)
