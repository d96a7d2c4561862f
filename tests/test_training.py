"""Every layout, dtype, shape and option: values, layout and dtype of each result against the oracle."""

import numpy as np
import pytest
from common import (
    check_backward,
    check_forward,
    check_inference,
    check_step,
    random_state,
    same_bits,
    sample,
    snapshot,
)
from tolerance import dtype_of

import nbnorm
from nbnorm._cpu import threads


def last(v):
    return np.ascontiguousarray(np.moveaxis(v, 1, -1))


def inside(v):
    """v as every other row and column of something larger."""
    n, c, h, w = v.shape
    big = np.full((2 * n, c + 1, h, 2 * w), 99, v.dtype)
    big[::2, 1:, :, ::2] = v
    return big[::2, 1:, :, ::2]


def unaligned(v):
    memory = np.zeros(v.nbytes + 1, np.uint8)
    array = np.ndarray(v.shape, v.dtype, memory, offset=1)
    array[...] = v
    return array


def read_only(v):
    v.flags.writeable = False
    return v


# Values (N, C, H, W) in C order -> x and its channel axis.
LAYOUTS = {
    "NCHW": lambda v: (v, 1),
    "NHWC": lambda v: (last(v), -1),
    "NHWC memory, axis 1": lambda v: (np.moveaxis(last(v), -1, 1), 1),
    "CNHW": lambda v: (np.ascontiguousarray(np.moveaxis(v, 1, 0)), 0),
    "Fortran": lambda v: (np.asfortranarray(v), 1),
    "CWNH memory": lambda v: (np.ascontiguousarray(v.transpose(1, 3, 0, 2)).transpose(2, 0, 3, 1), 1),
    "rows": lambda v: (last(v).reshape(-1, v.shape[1]), 1),
    "3-D": lambda v: (v.reshape(*v.shape[:2], -1), -2),
    "5-D": lambda v: (v.reshape(*v.shape, 1), 1),
    "sliced": lambda v: (inside(v), 1),
    "negative strides": lambda v: (v[::-1, ::-1, :, ::-1], 1),
    "broadcast rows": lambda v: (np.broadcast_to(v[:1], v.shape), 1),
    "broadcast channels": lambda v: (np.broadcast_to(v[:, :1], v.shape), 1),
    "read-only": lambda v: (read_only(v), 1),
    "big-endian": lambda v: (v.astype(v.dtype.newbyteorder(">")), 1),
    "unaligned": lambda v: (unaligned(v), 1),
    "per activation": lambda v: (v, (1, 3)),
    "per activation, axes swapped": lambda v: (v, (3, 1)),
    "per activation, axes together": lambda v: (v, (1, 2)),
    "per activation, last axes": lambda v: (last(v), (-1, 2)),
}
SHAPE = (3, 4, 5, 14)  # 70 values a segment: two whole vectors and a part
every_affine = pytest.mark.parametrize(
    ("use_gamma", "use_beta"), [(True, True), (True, False), (False, True), (False, False)]
)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
PARAMETERS = ["float32", "float64"]


def features(x, axis):
    return tuple(x.shape[i] for i in axis) if isinstance(axis, tuple) else x.shape[axis]


def case(rng, layout, dtype, shape=SHAPE):
    """x and dy in this layout, and the axis."""
    x, axis = LAYOUTS[layout](sample(rng, shape, dtype))
    dy, _ = LAYOUTS[layout](rng.normal(size=shape).astype(dtype_of(dtype)))
    return x, dy, axis


def every_option(test):
    """In pairs: none of them has a kernel of its own, but for `update_running`."""
    for name, values in (("with_out", [False, True]), ("parameters", PARAMETERS), ("update_running", [False, True])):
        test = pytest.mark.parametrize(name, values)(test)
    return pytest.mark.each_pair(every_layout(every_affine(test)))


def check_every_option(
    rng, dtype, layout, use_running, with_out, parameters, update_running, use_gamma, use_beta
):  # fmt: skip
    x, dy, axis = case(rng, layout, dtype)
    options = {"dtype": parameters, "use_gamma": use_gamma, "use_beta": use_beta}
    state = random_state(rng, features(x, axis), eps=1e-3, momentum=0.25, **options)
    running = (state.running_mean.copy(), state.running_var.copy()) if use_running else None
    out = np.full(x.shape, 7, x.dtype.newbyteorder("=")) if with_out else None  # C order, whatever x has
    _, saved = check_forward(x, state, axis, use_running, update_running, out)
    if with_out:
        dy, out = np.ascontiguousarray(dy), np.full(x.shape, 7, out.dtype)
    check_backward(dy, saved, state, running, out)


@every_option
def test_a_step_equals_the_definition(
    dtype, layout, with_out, parameters, update_running, use_gamma, use_beta, rng
):  # fmt: skip
    check_every_option(rng, dtype, layout, False, with_out, parameters, update_running, use_gamma, use_beta)


@every_option
@pytest.mark.float32_by_default("test_the_contract_holds_with_the_running_statistics in test_numerics.py")
def test_a_step_with_the_running_statistics_equals_the_definition(
    dtype, layout, with_out, parameters, update_running, use_gamma, use_beta, rng
):
    check_every_option(rng, dtype, layout, True, with_out, parameters, update_running, use_gamma, use_beta)


@pytest.mark.each_pair
@every_layout
@pytest.mark.parametrize("with_out", [False, True])
@pytest.mark.parametrize("parameters", ["float32", "float64"])
@every_affine
def test_inference_equals_the_definition(dtype, layout, with_out, parameters, use_gamma, use_beta, rng):
    x, _, axis = case(rng, layout, dtype)
    state = random_state(rng, features(x, axis), dtype=parameters, use_gamma=use_gamma, use_beta=use_beta)
    check_inference(x, state, axis, np.full(x.shape, 7, x.dtype.newbyteorder("=")) if with_out else None)


@pytest.mark.each_pair
@pytest.mark.float32_by_default("test_a_step_equals_the_definition, small")
@every_layout
def test_large_arrays_of_every_layout(dtype, layout, rng):
    x, dy, axis = case(rng, layout, dtype, (22, 12, 13, 31))
    assert 2 * x.size >= threads.SERIAL_BELOW  # what inference reads and writes, which is least
    state = random_state(rng, features(x, axis))
    check_step(x, dy, state, axis)
    check_inference(x, state, axis)


SHAPES = [  # (N, C, spatial...)
    (2, 3), (2, 1), (5, 17), (33, 64), (700, 3), (40, 96), (9_000, 2), (3_001, 17), (700, 96),
    (20_001, 1), (65, 2_500), (8, 64, 7, 7), (128, 17, 7, 7), (70, 3, 5, 5), (70, 96, 5, 5),
    (200, 96, 3, 3), (8, 300, 7, 7), (2, 5, 1, 1), (2, 1, 13, 13), (8, 3, 13, 13), (33, 17, 13, 13),
    (4, 2, 31, 17), (19, 17, 31, 17), (1, 2, 2), (1, 1, 63), (3, 2, 63), (3, 2, 64), (3, 2, 65),
    (300, 2, 63), (300, 2, 64), (300, 3, 65), (9, 3, 96), (17, 1, 95), (1, 2, 32_767), (1, 1, 32_769),
    (1, 2, 65_536), (5, 1, 32_768), (3, 2, 40_000), (1, 2, 100_003), (1, 1, 300_000), (600, 1, 200),
    (2, 3, 4, 5, 6), (3, 2, 4, 5, 6, 7),
]  # fmt: skip


@pytest.mark.each_pair
@pytest.mark.float32_by_default("test_a_step_equals_the_definition, of one shape")
@pytest.mark.parametrize("order", ["channels first", "channels last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape(dtype, shape, order, rng):
    x, dy = sample(rng, shape, dtype), rng.normal(size=shape).astype(dtype_of(dtype))
    if order == "channels last":
        x, dy = last(x), last(dy)
    axis = 1 if order == "channels first" else -1
    state = random_state(rng, shape[1])
    check_step(x, dy, state, axis)
    check_inference(x, state, axis)


@pytest.mark.parametrize("momentum", [0, 0.1, 1])
@pytest.mark.parametrize("eps", [1e-12, 1e-5, 10.0])
def test_eps_and_momentum_are_those_of_the_state(dtype, momentum, eps, rng):
    state = random_state(rng, 3, eps=eps, momentum=momentum)
    for _ in range(3):
        x = sample(rng, (6, 3, 5), dtype)
        check_step(x, sample(rng, x.shape, dtype), state)


def test_dy_may_lie_in_memory_in_another_order_than_x(dtype, rng):
    x = sample(rng, SHAPE, dtype)
    _, saved = nbnorm.batch_norm_training(x, state := random_state(rng, 4))
    plain = rng.normal(size=SHAPE).astype(x.dtype)
    others = np.asfortranarray(plain), np.moveaxis(last(plain), -1, 1), np.broadcast_to(plain[:1], SHAPE)
    for dy in (plain, *others):
        check_backward(dy, saved, state)


def test_saved_keeps_gamma_and_statistics_as_they_were_and_serves_more_than_once(rng):
    x, dy = sample(rng, SHAPE), sample(rng, SHAPE)
    state = random_state(rng, 4)
    _, saved = nbnorm.batch_norm_training(x, state, use_running=True)
    first = nbnorm.batch_norm_backward(dy, saved)
    kept = saved.gamma, saved.mean, saved.inv_std
    state.gamma *= 3
    state.eps = 0.5
    nbnorm.batch_norm_training(x + 1, state)
    state.reset_running()
    assert all(same_bits(a, b) for a, b in zip(nbnorm.batch_norm_backward(dy, saved), first, strict=True))
    assert all(same_bits(a, b) for a, b in zip((saved.gamma, saved.mean, saved.inv_std), kept, strict=True))
    assert saved.x is x
    assert (saved.axis, saved.use_running) == (1, True)


def test_saved_has_a_readable_repr(rng):
    _, saved = nbnorm.batch_norm_training(sample(rng, SHAPE), random_state(rng, 4))
    assert "(3, 4, 5, 14)" in repr(saved)
    assert "float32" in repr(saved)
    assert len(repr(saved)) < 200


def test_gradients_are_a_named_tuple():
    assert nbnorm.Gradients._fields == ("dx", "dgamma", "dbeta")
    assert issubclass(nbnorm.Gradients, tuple)


def test_other_ndarray_subclasses_are_treated_as_plain_arrays(rng):
    class Tagged(np.ndarray):
        pass

    x, dy = sample(rng, SHAPE), sample(rng, SHAPE)
    state = random_state(rng, 4)
    twin = nbnorm.BatchNormState.from_state_dict(state.state_dict())
    y, saved = nbnorm.batch_norm_training(x.view(Tagged), state)
    expected, saved_plain = nbnorm.batch_norm_training(x, twin)
    dx = nbnorm.batch_norm_backward(dy.view(Tagged), saved).dx
    assert (type(y), type(dx)) == (np.ndarray, np.ndarray)
    assert same_bits(y, expected)
    assert same_bits(dx, nbnorm.batch_norm_backward(dy, saved_plain).dx)
    assert snapshot(state) == snapshot(twin)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 5), (4, 3, 0), (4, 0, 5), (0, 0)])
def test_empty_arrays_give_empty_results(dtype, shape):
    x, state = np.empty(shape, dtype_of(dtype)), nbnorm.BatchNormState(shape[1], momentum=None)
    before = snapshot(state)
    y = nbnorm.batch_norm_inference(x, state)
    assert (y.shape, y.dtype) == (shape, x.dtype)
    use_running = 0 in (shape[0], *shape[2:])  # without channels but with values, training is possible
    y, saved = nbnorm.batch_norm_training(x, state, use_running=use_running, update_running=False)
    dx, dgamma, dbeta = nbnorm.batch_norm_backward(y, saved)
    assert (y.shape, dx.shape, dx.dtype) == (shape, shape, x.dtype)
    assert np.array_equal(dgamma, np.zeros(shape[1]))
    assert np.array_equal(dbeta, np.zeros(shape[1]))
    assert snapshot(state) == before


@pytest.mark.float32_by_default("test_the_contract_holds_with_the_running_statistics in test_numerics.py")
def test_one_value_per_channel_works_with_the_running_statistics(dtype, rng):
    x, state = sample(rng, (1, 4, 1, 1), dtype), random_state(rng, 4)
    running = state.running_mean.copy(), state.running_var.copy()
    y, saved = nbnorm.batch_norm_training(x, state, use_running=True, update_running=False)
    assert same_bits(y, check_inference(x, state))
    check_backward(x, saved, state, running)


def test_a_state_without_running_statistics_trains_and_is_not_updated(dtype, rng):
    x, state = sample(rng, SHAPE, dtype), random_state(rng, 4, track_running=False)
    check_step(x, sample(rng, SHAPE, dtype), state)
    assert (state.running_mean, state.num_batches, state.num_samples) == (None, 0, 0)
