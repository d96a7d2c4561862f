"""Invariants, on arrays drawn by Hypothesis: NBNORM_EXAMPLES of them for each, 300 if it is not set."""

import os
from typing import NamedTuple

import numpy as np
import pytest
import reference
from common import exact_backward, random_state, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_close, assert_stat_close, ulp

import nbnorm

settings.register_profile(
    "nbnorm", derandomize=True, deadline=None, max_examples=int(os.environ.get("NBNORM_EXAMPLES", "300"))
)
settings.load_profile("nbnorm")
pytestmark = pytest.mark.longer
FLOATS = ["float32", "float64"] if reference.WIDER_THAN_FLOAT64 else ["float32"]

SHAPES = st.one_of(  # (N, C, S): segments, small images, tables
    st.tuples(st.integers(2, 12), st.integers(1, 5), st.integers(64, 150)),
    st.tuples(st.integers(2, 40), st.integers(1, 7), st.integers(2, 50)),
    st.tuples(st.integers(2, 300), st.integers(1, 40), st.just(1)),
)
SEEDS = st.integers(0, 2**32 - 1)
POWERS = st.integers(-20, 20)


class Batch(NamedTuple):
    x: np.ndarray
    dy: np.ndarray
    axis: int
    state: nbnorm.BatchNormState
    rng: np.random.Generator

    def __repr__(self):
        return f"Batch({self.x.dtype}, {self.x.shape}, axis={self.axis})"

    def like(self, x):
        """The same with other values."""
        return self._replace(x=x, state=nbnorm.BatchNormState.from_state_dict(self.state.state_dict()))

    def step(self):
        y, saved = nbnorm.batch_norm_training(self.x, self.state, axis=self.axis)
        return y, saved, nbnorm.batch_norm_backward(self.dy, saved)


@st.composite
def batches(draw, make=None, shapes=SHAPES, axes=(1, 2)):
    """float32 or float64, channels first or last; values from `make(rng, shape)`, else normal ones."""
    n, c, s = draw(shapes)
    axis = draw(st.sampled_from(axes))
    shape = (n, c, s) if axis == 1 else (n, s, c)
    rng = np.random.default_rng(draw(SEEDS))
    mean = rng.choice([-1, 1], shape[axis]) * 10.0 ** rng.uniform(-3, 6, shape[axis])
    mean = mean[:, None] if axis == 1 else mean
    x = rng.normal(size=shape) + mean if make is None else make(rng, shape)
    dtype = draw(st.sampled_from(FLOATS))
    dy = rng.normal(size=shape).astype(dtype)
    return Batch(x.astype(dtype), dy, axis, random_state(rng, c), rng)


def eighths(rng, shape):
    """Numbers to which multiples of 1/8 can be added exactly, in float32 as well."""
    return rng.integers(-8_000, 8_000, shape) / 8


def channels(batch, keep):
    """The same batch with only these channels."""
    arrays = {key: a[keep] if a.ndim else a for key, a in batch.state.state_dict().items()}
    return batch._replace(
        x=batch.x.take(keep, batch.axis),
        dy=batch.dy.take(keep, batch.axis),
        state=nbnorm.BatchNormState.from_state_dict(arrays),
    )


@given(batches(eighths), st.integers(-8_000, 8_000))
def test_adding_a_number_to_x_changes_no_bit_where_the_sum_is_exact(batch, eighth):
    """But of a y and a dx of float32 (docs/math.md, Eq. 19 and 42), whose roots are somewhere else: y is within 1.5 ulp
    both times, dx within 2**-22 of its terms.
    """
    moved = batch.like(batch.x + batch.x.dtype.type(eighth / 8))
    (y, saved, gradients), (y2, saved2, gradients2) = batch.step(), moved.step()
    if y.dtype == np.float64:
        assert same_bits(y, y2)
    else:
        a, b = (np.moveaxis(one, batch.axis, 0).astype(np.float64) for one in (y, y2))
        largest = abs(a).reshape(len(a), -1).max(1)[:, None, None]
        assert (abs(a - b) <= 3 * ulp(np.maximum(abs(a), abs(b)), 24) + 2 * 2.0**-44 * largest).all()
        terms = reference.backward(batch.dy, batch.x, batch.state.gamma, batch.state.eps, batch.axis).terms
        assert (abs(gradients.dx - gradients2.dx) <= 2 * 2.0**-22 * terms).all()
    assert same_bits(saved.inv_std, saved2.inv_std)
    first = 1 if y.dtype == np.float32 else 0
    assert all(same_bits(a, b) for a, b in zip(gradients[first:], gradients2[first:], strict=True))


@given(batches(), POWERS)
def test_scaling_x_by_a_power_of_two_changes_no_bit_when_eps_is_scaled_with_it(batch, power):
    scaled = batch.like(np.ldexp(batch.x, power))
    scaled.state.eps = batch.state.eps * 4.0**power
    (y, saved, gradients), (y2, saved2, gradients2) = batch.step(), scaled.step()
    assert same_bits(y, y2)
    assert same_bits(np.ldexp(saved.mean, power), saved2.mean)
    assert same_bits(gradients.dx, np.ldexp(gradients2.dx, power))
    assert same_bits(gradients.dgamma, gradients2.dgamma)


@given(batches(), POWERS)
def test_gradients_scale_exactly_with_powers_of_two_of_dy(batch, power):
    first = batch.step()[2]
    second = batch.like(batch.x)._replace(dy=np.ldexp(batch.dy, power)).step()[2]
    assert all(same_bits(np.ldexp(a, power), b) for a, b in zip(first, second, strict=True))


@given(batches())
def test_the_order_of_the_samples_does_not_matter(batch):
    exact = reference.training(batch.x, batch.state.gamma, batch.state.beta, axis=batch.axis)
    order = batch.rng.permutation(len(batch.x))
    shuffled = batch.like(batch.x[order])
    y, saved = nbnorm.batch_norm_training(shuffled.x, shuffled.state, axis=batch.axis)
    assert_close(y, exact.y[order], batch.axis)
    assert_stat_close(saved.mean, exact.mean)


@given(batches())
def test_other_channels_do_not_change_a_bit(batch):
    y, saved, gradients = batch.step()
    other = batch.like(batch.x.copy())
    np.moveaxis(other.x, batch.axis, 0)[::2] *= 3
    np.moveaxis(other.x, batch.axis, 0)[::2, 0] += 1e30
    y2, saved2, gradients2 = other.step()
    odd = slice(1, None, 2)
    for a, b in ((y, y2), (gradients.dx, gradients2.dx)):
        assert same_bits(np.moveaxis(a, batch.axis, 0)[odd], np.moveaxis(b, batch.axis, 0)[odd])
    for a, b in (
        (saved.mean, saved2.mean),
        (saved.inv_std, saved2.inv_std),
        (gradients.dgamma, gradients2.dgamma),
    ):
        assert same_bits(a[odd], b[odd])


# Short segments and channels last share vectors with other channels, so their number decides how sums are cut there.
SEGMENTS = st.tuples(st.integers(1, 12), st.integers(3, 9), st.integers(64, 300))


@given(batches(shapes=SEGMENTS, axes=[1]))
def test_a_subset_of_the_channels_gives_the_same_bits(batch):
    keep = np.sort(batch.rng.permutation(batch.state.num_features)[: batch.rng.integers(2, batch.state.num_features)])
    part = channels(batch, keep)
    (y, saved, gradients), (y2, saved2, gradients2) = batch.step(), part.step()
    assert same_bits(y.take(keep, batch.axis), y2)
    assert same_bits(saved.mean[keep], saved2.mean)
    assert same_bits(saved.inv_std[keep], saved2.inv_std)
    assert same_bits(gradients.dx.take(keep, batch.axis), gradients2.dx)
    assert same_bits(gradients.dgamma[keep], gradients2.dgamma)
    assert same_bits(batch.state.running_var[keep], part.state.running_var)


@given(batches(), st.integers(1, 4))
def test_merged_parts_equal_the_whole(batch, parts):
    cuts = np.sort(batch.rng.integers(0, len(batch.x) + 1, parts))  # parts may be empty
    stats = [nbnorm.batch_stats(part, axis=batch.axis) for part in np.split(batch.x, cuts)]
    merged = nbnorm.merge_stats(*stats)
    for found in (merged, nbnorm.batch_stats(batch.x, axis=batch.axis)):
        count, mean, m2 = reference.stats(batch.x, batch.axis)
        assert found.count == count
        assert_stat_close(found.mean, mean)
        assert_stat_close(found.m2, m2)


@given(batches())
def test_layouts_agree(batch):
    exact = reference.training(batch.x, batch.state.gamma, batch.state.beta, axis=batch.axis).y
    for order in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [2, 1, 0]):
        x = np.ascontiguousarray(batch.x.transpose(order)).transpose(np.argsort(order))
        assert_close(nbnorm.batch_norm_training(x, batch.state, axis=batch.axis)[0], exact, batch.axis)


@given(batches(), st.integers(1, 40))
def test_the_place_in_memory_does_not_matter(batch, offset):
    memory = np.empty(batch.x.size + offset, batch.x.dtype)
    moved = memory[offset:].reshape(batch.x.shape)
    moved[...] = batch.x
    (y, _, gradients), (y2, _, gradients2) = batch.step(), batch.like(moved).step()
    assert same_bits(y, y2)
    assert all(same_bits(a, b) for a, b in zip(gradients, gradients2, strict=True))


def dx_and_its_error(batch):
    """dx by channel, and what each of its values may be off by."""
    dtype = batch.x.dtype.name
    dx = reference.by_channel(batch.step()[2].dx, batch.axis)
    if dtype == "float64":
        _, terms = exact_backward(batch.dy, batch.x, batch.state, batch.axis)
        return dx, np.broadcast_to(1e-12 * terms[:, None], dx.shape)
    terms = reference.backward(batch.dy, batch.x, batch.state.gamma, batch.state.eps, batch.axis).terms
    return dx, 2.0**-22 * reference.by_channel(terms, batch.axis)


@given(batches())
def test_dx_sums_to_zero(batch):
    dx, error = dx_and_its_error(batch)
    assert np.all(np.abs(dx.sum(-1)) <= error.sum(-1))


@given(batches(), st.sampled_from([1e-5, 0.1, 10.0]))
def test_dx_is_orthogonal_to_x_hat_but_for_eps(batch, eps):
    """sum(dx * x_hat) = gamma * inv_std * sum(dy * x_hat) * eps / (var + eps)."""
    batch.state.eps = eps
    dx, error = dx_and_its_error(batch)
    forward = reference.training(batch.x, eps=eps, axis=batch.axis)
    x_hat, var_eps = reference.by_channel(forward.y, batch.axis), forward.var + reference.Wide(eps)
    g_x_hat = (reference.by_channel(batch.dy, batch.axis) * x_hat).sum(-1)
    expected = batch.state.gamma / np.sqrt(var_eps) * g_x_hat * reference.Wide(eps) / var_eps
    assert np.all(np.abs((dx * x_hat).sum(-1) - expected) <= (error * np.abs(x_hat)).sum(-1))
