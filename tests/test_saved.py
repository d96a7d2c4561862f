"""`saved`: what is readable of a forward pass, and that copies and pickles of it give the same gradients."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import weakref
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import ranks
import reference
from common import random_state, same_bits, sample
from tolerance import assert_stat_close, dtype_of

import nbnorm
from nbnorm import batch_norm_backward as backward
from nbnorm import batch_norm_training as training

DUPLICATES = {"copy": copy.copy, "deep copy": copy.deepcopy, "pickle": lambda one: pickle.loads(pickle.dumps(one))}
every_duplicate = pytest.mark.parametrize("duplicate", DUPLICATES.values(), ids=DUPLICATES)
VIEWS = {
    "plain": lambda x: x,
    "channels last": lambda x: np.ascontiguousarray(x.transpose(0, 2, 1)).transpose(0, 2, 1),
    "Fortran order": np.asfortranarray,
    "gaps": lambda x: np.repeat(x, 2, axis=2)[..., ::2],
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
}


def alone(packed):
    """The messenger of a batch in one shard."""
    return packed[None]


def gradients_equal(dy, a, b):
    return all(same_bits(g, h) for g, h in zip(backward(dy, a), backward(dy, b), strict=True))


# ---- what is readable


def test_the_batch_is_readable(dtype, rng):
    x, state = sample(rng, (40, 3, 7), dtype), random_state(rng, 3)
    _, saved = training(x, state)
    count, mean, m2 = reference.stats(x)
    assert type(saved.stats) is nbnorm.BatchStats
    assert (float(saved.count), float(saved.stats.count), saved.count.shape) == (count, count, ())
    assert_stat_close(saved.stats.mean, mean)
    assert_stat_close(saved.stats.m2, m2)
    for var in (saved.var, saved.stats.var, nbnorm.batch_stats(x).var):
        assert (var.dtype, var.shape) == (np.float64, (3,))
        assert_stat_close(var, m2 / count)
    expected = nbnorm.batch_stats(x)
    assert all(same_bits(a, b) for a, b in zip(saved.stats, expected, strict=True))


def test_statistics_of_two_channel_axes_have_their_shape(rng):
    x = sample(rng, (5, 3, 4), axis=(1, 2))
    _, saved = training(x, random_state(rng, (3, 4)), axis=(1, 2))
    assert saved.var.shape == saved.stats.mean.shape == saved.stats.var.shape == (3, 4)
    assert_stat_close(saved.stats.var, reference.training(x, axis=(1, 2)).var)
    where = np.ones(x.shape, bool)
    where[0, 1, 2] = False
    _, saved = training(x, random_state(rng, (3, 4)), axis=(1, 2), where=where)
    exact = reference.weighted_training(x, reference.counts(x, where), axis=(1, 2))
    assert saved.count.tolist() == where.sum(0).tolist()
    for found, expected in (
        (saved.mean, exact.mean), (saved.var, exact.var), (saved.stats.mean, exact.mean), (saved.stats.var, exact.var),
        (saved.inv_std, 1 / np.sqrt(exact.var + reference.Wide(1e-5))),
    ):  # fmt: skip
        assert_stat_close(found, expected)


def test_what_is_read_is_a_copy(rng):
    x, dy, counting = sample(rng, (6, 3)), sample(rng, (6, 3)), {"where": np.arange(6)[:, None] >= np.arange(3)}

    def read(saved):
        return saved.mean, saved.var, saved.inv_std, saved.gamma, *saved.stats

    for options in ({}, {"use_running": True}, counting, {"renorm": nbnorm.Renorm(1.2, 0.3)}):
        _, saved = training(x, random_state(rng, 3), **options)
        before = *copy.deepcopy(read(saved)), *backward(dy, saved)
        for array in read(saved):
            array[...] = 7
        assert all(same_bits(a, b) for a, b in zip(before, (*read(saved), *backward(dy, saved)), strict=True))


def test_statistics_are_folded_in_later(rng):
    x = sample(rng, (6, 3))
    now, later = (nbnorm.BatchNormState(3, momentum=None) for _ in range(2))
    training(x, now)
    _, saved = training(x, later, update_running=False)
    later.update(saved.stats)
    assert_stat_close(later.running_var, now.running_var)
    assert (later.num_batches, later.num_samples) == (1, 6)


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 100), (6, 3, 5)], ids=str)
def test_with_running_statistics_var_is_theirs_and_stats_are_the_batchs(shape, rng):
    x, state = sample(rng, shape), random_state(rng, 3)
    state.running_var = [1e-30, 2.0, 3.0]  # far below eps: not to be had from inv_std
    before = state.running_var.copy()
    _, saved = training(x, state, use_running=True)
    assert saved.var.tolist() == before.tolist()
    assert same_bits(saved.stats.m2, nbnorm.batch_stats(x).m2)
    _, saved = training(x, state, use_running=True, update_running=False)
    assert saved.var.tolist() == state.running_var.tolist()
    for name in ("stats", "count"):
        with pytest.raises(ValueError, match=r"are not known .* nbnorm\.batch_stats\(saved\.x, axis=saved\.axis\)"):
            getattr(saved, name)


@pytest.mark.parametrize("use_running", [False, True])
def test_in_shards_they_are_the_whole_batchs(use_running, rng):
    x, state = sample(rng, (10, 3)), random_state(rng, 3)
    count, _, m2 = reference.stats(x)
    pieces = np.split(x, [7])

    def step(rank, everyone):
        return training(pieces[rank], copy.deepcopy(state), sync=everyone, use_running=use_running)[1]

    for saved in ranks.work_of(ranks.run(2, step)):
        assert float(saved.count) == count
        assert_stat_close(saved.stats.m2, m2)
        assert_stat_close(saved.var, state.running_var if use_running else m2 / count)


@pytest.mark.parametrize("name", ["dresidual", "_slop", "mean"])
def test_attributes_that_there_are_not_cannot_be_assigned(name, rng):
    _, saved = training(sample(rng, (6, 3)), random_state(rng, 3))
    with pytest.raises(AttributeError, match=name):
        setattr(saved, name, 0.0)
    assert weakref.ref(saved)() is saved


# ---- copies and pickles


@every_duplicate
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_copy_gives_the_same_gradients(duplicate, view, rng):
    x, dy = view(sample(rng, (8, 3, 70))), sample(rng, (8, 3, 70))
    for options in ({}, {"use_running": True}, {"use_running": True, "update_running": False}, {"sync": alone}):
        _, saved = training(x, random_state(rng, 3), **options)
        other = duplicate(saved)
        assert same_bits(other.x, x)
        assert gradients_equal(dy, saved, other)
        assert repr(other) == repr(saved)
        assert all(
            same_bits(getattr(saved, name), getattr(other, name)) for name in ("mean", "var", "inv_std", "gamma")
        )


@every_duplicate
def test_copies_of_every_dtype_and_of_permuted_axes(duplicate, dtype, rng):
    x, dy = (sample(rng, (4, 5, 6, 3), dtype).transpose(2, 0, 3, 1) for _ in range(2))
    _, saved = training(x, random_state(rng, 3), axis=2)
    other = duplicate(saved)
    assert (other.x.dtype, other.x.strides) == (dtype_of(dtype), x.strides)
    assert gradients_equal(dy, saved, other)


@pytest.mark.parametrize("duplicate", [DUPLICATES["deep copy"], DUPLICATES["pickle"]], ids=["deep copy", "pickle"])
def test_deep_copies_are_independent(duplicate, rng):
    x, dy = sample(rng, (8, 3)), sample(rng, (8, 3))
    _, saved = training(x, random_state(rng, 3))
    other, expected = duplicate(saved), backward(dy, saved)
    x[...] = 0
    assert all(same_bits(a, b) for a, b in zip(expected, backward(dy, other), strict=True))


def test_copies_share_the_messenger_and_pickles_have_what_its_own_gives(rng):
    class Messenger:
        __call__ = staticmethod(alone)

        def __reduce__(self):
            raise TypeError("belongs to its process")

    _, saved = training(sample(rng, (8, 3)), random_state(rng, 3), sync=Messenger())
    assert copy.deepcopy(saved).sync is copy.copy(saved).sync is saved.sync
    with pytest.raises(TypeError, match="belongs to its process"):
        pickle.dumps(saved)


def test_pickles_without_what_few_calls_set_are_read(rng):
    """As they were written when it was not stored."""
    x, dy = sample(rng, (8, 3, 5)), sample(rng, (8, 3, 5))
    _, saved = training(x, random_state(rng, 3))
    own = saved.__getstate__()
    for name in ("_counts", "_nan", "_own", "_parts", "_renorm", "_slope", "_weights", "_where", "_with_residual",
                 "groups", "y"):  # fmt: skip
        own.pop(name, None)
    other = nbnorm.Saved.__new__(nbnorm.Saved)
    other.__setstate__(own)
    assert gradients_equal(dy, saved, other)
    assert (other.y, other.groups) == (None, ())
    assert same_bits(other.var, saved.var)


def test_another_process_runs_the_backward_pass(rng):
    x, dy = sample(rng, (8, 3, 5)), sample(rng, (8, 3, 5))
    _, saved = training(x, random_state(rng, 3))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(backward, dy, saved).result(timeout=120)
    assert all(same_bits(a, b) for a, b in zip(found, backward(dy, saved), strict=True))
