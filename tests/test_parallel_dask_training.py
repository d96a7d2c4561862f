"""nbnorm.parallel.dask, forward and backward: exact, and how often it reads what."""

from __future__ import annotations

import os
import weakref

import numpy as np
import pytest
import reference
from common import random_state, same_bits, sample
from tolerance import assert_close, assert_gradient_close, assert_stat_close, dtype_of

import nbnorm

try:
    import dask
    import dask.array as da
    from distributed import Client, LocalCluster

    from nbnorm.parallel import dask as nd
except ImportError as error:
    if os.environ.get("NBNORM_REQUIRE_PARALLEL") == "1":
        raise
    pytest.skip(f'NO DASK TESTS: {error}; pip install -e ".[dask]" zarr', allow_module_level=True)

# Tornado and asyncio close their sockets when they see fit.
pytestmark = pytest.mark.filterwarnings("default")

CHUNKS = {
    "one": (120, 6, 10),
    "over samples": ((50, 1, 69), 6, 10),
    "over channels": (120, (1, 2, 3), 10),
    "over everything": ((1, 59, 60), (4, 2), (7, 3)),
    "more than a task merges": (10, 6, 5),
}
every_chunks = pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)


@pytest.fixture(autouse=True)
def synchronous():
    with dask.config.set(scheduler="synchronous"):
        yield


def lazily(x, dy, state, chunks, axis=1, **counting):
    """y, statistics and gradients of one graph; dy comes in chunks of its own."""
    y, saved = nd.batch_norm_training(da.from_array(x, chunks=chunks), state, axis=axis, **counting)
    gradients = nd.batch_norm_backward(da.from_array(dy, chunks=-1), saved)
    assert all(part is None or isinstance(part, da.Array) for part in gradients)
    assert gradients.dx.chunks == y.chunks == saved.x.chunks
    return dask.compute(y, saved.stats, gradients)


@every_chunks
@pytest.mark.parametrize("mean", [0, 1e6])
def test_gradients_are_those_of_the_whole_batch(chunks, mean, rng):
    shape = (120, 6, 10)
    x, dy = (sample(rng, shape, "float64") + mean).astype(np.float32), sample(rng, shape) + np.float32(3)
    state = random_state(rng, 6)
    y, stats, (dx, dgamma, dbeta) = lazily(x, dy, state, chunks)
    assert_close(y, reference.training(x, state.gamma, state.beta, state.eps).y)
    exact = reference.backward(dy, x, state.gamma, state.eps)
    assert_close(dx, exact.dx, terms=exact.terms)
    assert_stat_close(dgamma, exact.dgamma)
    assert_stat_close(dbeta, exact.dbeta)
    assert dgamma.dtype == dbeta.dtype == state.dtype
    assert stats.count == 1200


def test_as_the_ranks_of_one_process_to_the_bit(rng):
    """One chunk is the whole batch as one rank has it."""
    x, dy, state = sample(rng, (50, 3, 8)), sample(rng, (50, 3, 8)), random_state(rng, 3)
    y, _, gradients = lazily(x, dy, state, -1)
    expected, saved = nbnorm.batch_norm_training(x, state, sync=lambda packed: packed[None].copy())
    assert same_bits(y, expected)
    assert all(map(same_bits, gradients, nbnorm.batch_norm_backward(dy, saved)))


@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads_gives_the_same_bits(threads, rng):
    x, dy, state = sample(rng, (60, 3, 8)), sample(rng, (60, 3, 8)), random_state(rng, 3)
    expected = lazily(x, dy, state, (7, 2, 8))
    with dask.config.set(scheduler="threads", num_workers=threads):
        found = lazily(x, dy, state, (7, 2, 8))
    assert same_bits(found[0], expected[0])
    assert all(map(same_bits, found[2], expected[2]))


def test_gradients_of_every_dtype_and_without_parameters(dtype, rng):
    x, dy = (sample(rng, (60, 3, 8), "float64").astype(dtype_of(dtype)) for _ in range(2))
    state = nbnorm.BatchNormState(3, use_gamma=False, use_beta=False)
    y, _, (dx, dgamma, dbeta) = lazily(x, dy, state, (25, 2, 8))
    assert y.dtype == dx.dtype == x.dtype
    assert_close(y, reference.training(x).y)
    exact = reference.backward(dy, x)
    assert_close(dx, exact.dx, terms=exact.terms)
    assert dgamma is None
    assert dbeta is None


def test_channels_on_several_axes(rng):
    x, dy = (sample(rng, (30, 4, 6), axis=(2, 0)) for _ in range(2))
    state = random_state(rng, (6, 30))
    y, _, (dx, dgamma, dbeta) = lazily(x, dy, state, ((11, 19), 2, (1, 5)), (2, 0))
    assert_close(y, reference.training(x, state.gamma, state.beta, state.eps, (2, 0)).y, (2, 0))
    exact = reference.backward(dy, x, state.gamma, state.eps, (2, 0))
    assert_close(dx, exact.dx, (2, 0), exact.terms)
    assert_stat_close(dgamma, exact.dgamma)
    assert_stat_close(dbeta, exact.dbeta)


def test_parameters_in_chunks_of_one(rng):
    """A part of an array of channels has gaps then; of float64, what is no view of its halves."""
    x, dy = sample(rng, (4, 6, 5)), sample(rng, (4, 6, 5))
    for dtype in ("float32", "float64"):
        state = random_state(rng, (6, 5), dtype=dtype, eps=0.3)
        y, _, (dx, dgamma, dbeta) = lazily(x, dy, state, (2, (2, 3, 1), 1), (1, 2))
        assert_close(y, reference.training(x, state.gamma, state.beta, state.eps, (1, 2)).y, (1, 2))
        exact = reference.backward(dy, x, state.gamma, state.eps, (1, 2))
        assert_close(dx, exact.dx, (1, 2), exact.terms)
        assert_stat_close(dgamma, exact.dgamma)
        assert dgamma.dtype == dbeta.dtype == dtype


@pytest.mark.parametrize("absent", ["gamma", "beta"])
def test_a_parameter_that_there_is_not_has_no_gradient(absent, rng):
    x, dy, state = sample(rng, (60, 3, 8)), sample(rng, (60, 3, 8)), random_state(rng, 3, **{f"use_{absent}": False})
    _, _, found = lazily(x, dy, state, (25, 2, 8))
    exact = reference.backward(dy, x, state.gamma, state.eps)
    for name in ("gamma", "beta"):
        if name == absent:
            assert getattr(found, f"d{name}") is None
        else:
            assert_stat_close(getattr(found, f"d{name}"), getattr(exact, f"d{name}"))


@pytest.mark.parametrize("kind", [">f2", ">f4", ">f8"])
def test_values_of_the_other_byte_order(kind, rng):
    x, dy = sample(rng, (30, 3), "float64").astype(kind), sample(rng, (30, 3), "float64").astype(kind)
    y, _, (dx, dgamma, dbeta) = lazily(x, dy, nbnorm.BatchNormState(3), 8)
    exact = reference.backward(dy, x)
    assert y.dtype == dx.dtype == np.dtype(kind).newbyteorder("=")
    assert_close(y, reference.training(x).y)
    assert_close(dx, exact.dx, terms=exact.terms)
    assert_stat_close(dgamma, exact.dgamma)
    assert_stat_close(dbeta, exact.dbeta)


def test_an_empty_chunk_of_an_axis_of_length_1(rng):
    """Of whose two chunks Dask's own arithmetic takes the second one twice."""
    x, dy, state = sample(rng, (1, 3, 8)), sample(rng, (1, 3, 8)), random_state(rng, 3)
    y, _, (dx, _, _) = lazily(x, dy, state, ((0, 1), 3, 8))
    exact = reference.backward(dy, x, state.gamma, state.eps)
    assert_close(y, reference.training(x, state.gamma, state.beta, state.eps).y)
    assert_close(dx, exact.dx, terms=exact.terms)
    lazy = nd.batch_norm_inference(da.from_array(x, chunks=((0, 1), 3, 8)), state)
    assert same_bits(lazy.compute(), nbnorm.batch_norm_inference(x, state))


COUNTING = {
    "where, rows": lambda rng: {"where": rng.random((120, 1, 1)) < 0.5},
    "where, of x": lambda rng: {"where": da.from_array(rng.random((120, 6, 10)) < 0.5, chunks=(31, 4, 3))},
    "weights, fewer axes": lambda rng: {"weights": rng.integers(0, 3, 10)},
    "missing": lambda rng: {"nan": "omit"},
    "all": lambda rng: {
        "where": rng.random((120, 6, 1)) < 0.5, "weights": rng.uniform(0, 2, (120, 1, 1)), "nan": "omit",
    },
}  # fmt: skip


@every_chunks
@pytest.mark.parametrize("counting", COUNTING.values(), ids=COUNTING)
def test_values_that_do_not_count(chunks, counting, rng):
    x, dy, counting = sample(rng, (120, 6, 10)), sample(rng, (120, 6, 10)), counting(rng)
    omit = counting.get("nan") == "omit"
    if omit:
        x[rng.random(x.shape) < 0.2] = np.nan
    state = random_state(rng, 6)
    y, stats, (dx, dgamma, dbeta) = lazily(x, dy, state, chunks, **counting)
    w = reference.counts(
        x, *(None if counting.get(name) is None else np.asarray(counting[name]) for name in ("where", "weights")), omit
    )
    there = ~np.isnan(x)
    assert_close(
        np.where(there, y, 0).astype(y.dtype),
        np.where(there, reference.weighted_training(x, w, state.gamma, state.beta, state.eps).y, 0),
    )
    assert (np.isnan(y) == ~there).all()
    exact = reference.weighted_backward(dy, x, w, state.gamma, state.eps)
    assert_close(dx, exact.dx)
    assert_stat_close(dgamma, exact.dgamma)
    assert_stat_close(dbeta, exact.dbeta)
    assert_stat_close(stats.count, reference.weighted_stats(x, w)[0])


def test_a_channel_in_which_nothing_counts_is_named(rng):
    where = np.ones((1, 6, 1), bool)
    where[0, 4] = False
    y, saved = nd.batch_norm_training(
        da.from_array(sample(rng, (120, 6, 10)), chunks=(50, 2, 10)), random_state(rng, 6), where=where
    )
    for lazy in (y, saved.stats.m2, nd.batch_norm_backward(y, saved).dbeta):
        with pytest.raises(ValueError, match=r"needs a value that counts per channel, .*; channel 4 has fewer"):
            dask.compute(lazy)
    where = np.ones((4, 6), bool)
    where[1, 5] = False
    y, _ = nd.batch_norm_training(
        da.from_array(sample(rng, (30, 4, 6)), chunks=(11, (1, 3), 4)), random_state(rng, (6, 4)), axis=(2, 1),
        where=where,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"; channel \(5, 1\) has fewer"):
        y.compute()


class Source:
    """A Dask array whose chunks are made when they are read, which is counted."""

    def __init__(self, seed, blocks=12):
        self.reads = []
        self.array = da.map_blocks(
            self.read, seed, chunks=((10,) * blocks, (4,)), dtype=np.float32, meta=np.empty((0, 0), np.float32)
        )

    def read(self, seed, block_info=None):
        place = block_info[None]["chunk-location"]
        self.reads.append(place)
        return np.random.default_rng((seed, *place)).normal(size=(10, 4)).astype(np.float32)

    def once(self, x):
        """x, and the sorted reads it takes."""
        self.reads.clear()
        (values,) = dask.compute(x)
        once = sorted(self.reads)
        self.reads.clear()
        return values, once


DERIVED = {
    "as they come": lambda x: x,
    "sliced": lambda x: x[5:100, ::2],
    "in other chunks": lambda x: x.rechunk((25, 3)),
    "rows that were chosen": lambda x: x[[2, 40, 41, 77]],
    "less their own mean": lambda x: x - x.mean(0),
    "beside each other": lambda x: da.concatenate([x, 2 * x]),
}
every_derivation = pytest.mark.parametrize("derive", DERIVED.values(), ids=DERIVED)


@every_derivation
def test_training_reads_twice_and_keeps_nothing(derive):
    """Dask's own `bind` reads slices and other chunks once: their tasks keep the inputs they had."""
    source = Source(1)
    x = derive(source.array)
    expected, once = source.once(x)
    y = nd.batch_norm_training(x, nbnorm.BatchNormState(x.shape[1]))[0].compute()
    assert sorted(source.reads) == sorted(2 * once)
    assert sorted(source.reads[: len(once)]) == once  # the second reading begins when the statistics are known
    assert_close(y, reference.training(expected).y)


@every_derivation
def test_gradients_read_x_three_times_and_dy_twice(derive):
    of_x, of_dy = Source(1), Source(2)
    x, dy = derive(of_x.array), derive(of_dy.array)
    (x_values, once), (dy_values, once_dy) = of_x.once(x), of_dy.once(dy)
    y, saved = nd.batch_norm_training(x, nbnorm.BatchNormState(x.shape[1]))
    _, stats, (dx, _, dbeta) = dask.compute(y, saved.stats, nd.batch_norm_backward(dy, saved))
    assert sorted(of_x.reads) == sorted(3 * once)
    assert sorted(of_x.reads[: len(once)]) == once
    assert sorted(of_x.reads[len(once) : 2 * len(once)]) == once  # the third begins when the sums are known
    assert sorted(of_dy.reads) == sorted(2 * once_dy)
    assert sorted(of_dy.reads[: len(once_dy)]) == once_dy
    exact = reference.backward(dy_values, x_values)
    assert_close(dx, exact.dx, terms=exact.terms)
    assert_stat_close(dbeta, exact.dbeta)
    assert_stat_close(stats.mean, reference.stats(x_values)[1])


class Nowhere:
    def __setitem__(self, index, values):
        pass


PASSES = {
    "y": lambda y, saved, dy: [y],
    "dx": lambda y, saved, dy: [nd.batch_norm_backward(dy, saved).dx],
    "dx, dy of y": lambda y, saved, dy: [nd.batch_norm_backward(y**3, saved).dx],
    "y and dx, dy of y": lambda y, saved, dy: [y, nd.batch_norm_backward(y**3, saved).dx],
}


@pytest.mark.parametrize("results", PASSES.values(), ids=PASSES)
@pytest.mark.parametrize("counting", [{}, {"where": "x"}], ids=["all", "where"])
def test_no_chunk_waits_in_memory(results, counting):
    """A chunk that could be read before all that its task needs was known let the next ones be read: all were kept."""
    blocks, alive, most = 40, [], [0]

    def read(block_info=None):
        chunk = np.random.default_rng(block_info[None]["chunk-location"]).normal(size=(10, 2))
        alive.append(weakref.ref(chunk))
        most[0] = max(most[0], sum(one() is not None for one in alive))
        return chunk

    x, dy = (
        da.map_blocks(read, chunks=((10,) * blocks, (2,)), dtype=np.float64, meta=np.empty((0, 0)), name=name)
        for name in ("x", "dy")
    )
    y, saved = nd.batch_norm_training(x, nbnorm.BatchNormState(2), **({"where": x > -1} if counting else {}))
    lazy = results(y, saved, dy)
    da.store(lazy, [Nowhere() for _ in lazy], lock=False)
    assert most[0] <= blocks / 4


@pytest.mark.parametrize("inline", [False, True])
def test_an_array_that_is_read_from_waits_as_tasks_do(inline, rng):
    """In Dask's graph it is a node of its own, unless it is `inline`, and no task: what reads it has to wait."""

    class File:
        shape, dtype, ndim = (64, 6), np.dtype(np.float64), 2
        values, reads = rng.normal(size=shape), []

        def __getitem__(self, index):
            self.reads.append(index[0].start)
            return self.values[index]

    x = da.from_array(File(), chunks=(8, 6), name=False, meta=np.empty((0, 0)), inline_array=inline)
    y, saved = nd.batch_norm_training(x, nbnorm.BatchNormState(6, eps=1e-3))
    y, (dx, _, _) = dask.compute(y, nd.batch_norm_backward(y**3, saved))
    assert sorted(File.reads) == sorted(3 * list(range(0, 64, 8)))
    exact = reference.backward(y**3, File.values, eps=1e-3)
    assert_gradient_close(dx, exact.dx, np.abs(y**3).max(0) / np.sqrt(reference.training(File.values).var + 1e-3))


def test_where_dy_and_the_mask_are_made_of_x_it_is_read_three_times_all_the_same():
    source = Source(3)
    x, once = source.array, source.once(source.array)[1]
    where = x > -1
    y, saved = nd.batch_norm_training(x, nbnorm.BatchNormState(4, eps=1e-3), where=where)
    y, dy, (dx, dgamma, _) = dask.compute(y, y**3, nd.batch_norm_backward(y**3, saved))
    assert sorted(source.reads) == sorted(3 * once)
    values = x.compute()
    exact = reference.weighted_backward(dy, values, reference.counts(values, values > -1), eps=1e-3)
    assert_close(dx, exact.dx)
    assert_stat_close(dgamma, exact.dgamma)


def test_a_second_layer_reads_x_once_more():
    """It computes again what comes before it, but for the statistics: with them it would read four times."""
    source = Source(4)
    once, first, second = source.once(source.array)[1], nbnorm.BatchNormState(4), nbnorm.BatchNormState(4, eps=1e-2)
    y1, saved1 = nd.batch_norm_training(source.array, first)
    z = y1 * abs(y1)
    y2, saved2 = nd.batch_norm_training(z, second)
    y2.compute()
    assert sorted(source.reads) == sorted(3 * once)
    dz, _, _ = nd.batch_norm_backward(y2**2, saved2)
    dx, _, _ = nd.batch_norm_backward(dz * 2 * abs(y1), saved1)
    y1_values, z_values, y2_values, dz_values, dx = dask.compute(y1, z, y2, dz, dx)
    x = source.array.compute()
    assert_close(y1_values, reference.training(x).y)
    assert_close(y2_values, reference.training(z_values, eps=1e-2).y)
    exact = reference.backward(y2_values**2, z_values, eps=1e-2)
    assert_close(dz_values, exact.dx, terms=exact.terms)
    exact = reference.backward(dz_values * 2 * abs(y1_values), x)
    assert_close(dx, exact.dx, terms=exact.terms)


def test_on_a_cluster_which_keeps_x(rng):
    x, dy, state = sample(rng, (120, 6, 10)), sample(rng, (120, 6, 10)), random_state(rng, 6)
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0")
    with cluster, Client(cluster) as client, dask.config.set(scheduler=client):
        kept, of_dy = (da.from_array(array, chunks=(50, 4, 10)).persist() for array in (x, dy))
        for cut in (np.s_[:], np.s_[30:, 1:4]):
            part = nbnorm.BatchNormState(x[cut].shape[1])
            y, saved = nd.batch_norm_training(kept[cut], part)
            y, gradients = dask.compute(y, nd.batch_norm_backward(of_dy[cut], saved))
            assert_close(y, reference.training(x[cut]).y)
            exact = reference.backward(dy[cut], x[cut])
            assert_close(gradients.dx, exact.dx, terms=exact.terms)
        found = lazily(x, dy, state, (50, 4, 10))
    with dask.config.set(scheduler="synchronous"):
        assert all(map(same_bits, found[2], lazily(x, dy, state, (50, 4, 10))[2]))


@pytest.mark.parametrize(("dy", "error", "text"), [
    (np.ones((8, 3)), TypeError, "dy is a ndarray; expected a dask.array.Array"),
    (da.ones((8, 2)), ValueError, "dy has shape (8, 2); expected that of the forward pass's x, (8, 3)"),
    (da.ones((8, 3), dtype=np.float32), TypeError, "dy has dtype float32; expected float64"),
])  # fmt: skip
def test_a_dy_that_does_not_fit_is_refused_with_the_graph(dy, error, text):
    _, saved = nd.batch_norm_training(da.ones((8, 3), chunks=4), nbnorm.BatchNormState(3))
    with pytest.raises(error) as caught:
        nd.batch_norm_backward(dy, saved)
    assert text in str(caught.value)


def test_what_numpy_has_saved_is_refused():
    x = np.ones((8, 3))
    saved = nbnorm.batch_norm_training(x, nbnorm.BatchNormState(3))[1]
    with pytest.raises(TypeError, match=r"saved is a Saved; expected what nbnorm\.parallel\.dask"):
        nd.batch_norm_backward(da.from_array(x), saved)


def test_the_graph_keeps_the_parameters_of_its_making(rng):
    x, dy, state = sample(rng, (20, 3)), sample(rng, (20, 3)), random_state(rng, 3)
    expected = lazily(x, dy, state, 7)
    y, saved = nd.batch_norm_training(da.from_array(x, chunks=7), state)
    lazy = nd.batch_norm_backward(da.from_array(dy), saved)
    state.gamma *= 2
    state.beta += 1
    y, gradients = dask.compute(y, lazy)
    assert same_bits(y, expected[0])
    assert all(map(same_bits, gradients, expected[2]))
