"""`out`: what may be passed gets the result, what may not is refused before anything changes."""

import numpy as np
import pytest
from common import check_backward, check_forward, check_inference, random_state, refuse, same_bits, sample

import nbnorm
from nbnorm import batch_norm_backward as backward
from nbnorm import batch_norm_inference as inference
from nbnorm import batch_norm_training as training

SHAPE = (8, 3, 6)


def test_out_may_have_any_dense_or_strided_layout(dtype, rng):
    x, dy = sample(rng, SHAPE, dtype), sample(rng, SHAPE, dtype)
    state = random_state(rng, 3)
    for out in (
        np.zeros_like(x, order="F"),
        np.zeros((16, 4, 6), x.dtype)[::-2, 1:],
        np.zeros((3, 6, 8), x.dtype).transpose(2, 0, 1),
    ):
        _, saved = check_forward(x, state, out=out)
        check_backward(dy, saved, state, out=out)
        check_inference(x, state, out=out)


@pytest.mark.each_pair
@pytest.mark.parametrize("shape", [SHAPE, (64, 3, 6), (32, 16, 100), (600, 96)], ids=str)
@pytest.mark.parametrize("step", [1, 2])
def test_out_may_be_the_input_itself_in_inference_and_backward(dtype, shape, step, rng):
    memory = sample(rng, (shape[0] * step, *shape[1:]), dtype)
    x, state = memory[::step], random_state(rng, shape[1])
    y = memory.copy()[::step]
    assert inference(y, state, out=y) is y
    assert same_bits(y, inference(x, state))
    dy = sample(rng, shape, dtype)
    _, saved = training(x, state)
    expected = backward(dy, saved)
    for given, out in ((plain := dy.copy(), plain), (turned := np.asfortranarray(dy), turned), (dy, x)):
        found = backward(given, saved, out=out)  # with x as the last: `saved` is used up
        assert found.dx is out
        assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True))


def place(like, start):
    """An array like it that begins `start` values behind a cache line, and all memory around."""
    memory = np.zeros(like.size + 192, like.dtype)
    line = -memory.ctypes.data % 64 // memory.itemsize + 64
    return memory[line + start : line + start + like.size].reshape(like.shape), memory


@pytest.mark.each_pair
@pytest.mark.parametrize("shape", [(40, 64), (9, 512), (7, 96), (40, 4, 32), (6, 1024), (30, 33)], ids=str)
@pytest.mark.parametrize("start", [0, 1, 3, -1])
def test_results_have_the_same_bits_wherever_out_begins(dtype, shape, start, rng):
    x, dy, state = sample(rng, shape, dtype), sample(rng, shape, dtype), random_state(rng, shape[1])
    y, saved = training(x, state)
    dx, normal = backward(dy, saved).dx, inference(x, state)
    out, memory = place(x, start)
    for call, expected in (
        (lambda: training(x, state, update_running=False, out=out), y),
        (lambda: backward(dy, saved, out=out), dx),
        (lambda: inference(x, state, out=out), normal),
    ):
        call()
        assert same_bits(out, expected)
    out[...] = x
    assert same_bits(inference(out, state, out=out), normal)
    out[...] = dy
    assert same_bits(backward(out, saved, out=out).dx, dx)
    out[...] = 0
    assert not memory.any()  # nothing beside was written


@pytest.mark.parametrize("shape", [(40, 64), (9, 512)], ids=str)
def test_an_activation_asks_for_signs_wherever_out_begins(shape, rng):
    x, dy, state = sample(rng, shape), sample(rng, shape), random_state(rng, shape[1])
    _, saved = training(x, state, activation="relu")
    out, _ = place(x, 3)
    expected = backward(dy, saved).dx
    assert same_bits(backward(dy, saved, out=out).dx, expected)


def unaligned():
    return np.ndarray(SHAPE, np.float32, np.zeros(8 * 3 * 6 * 4 + 1, np.uint8), offset=1)


def read_only():
    out = np.zeros(SHAPE, np.float32)
    out.flags.writeable = False
    return out


def windows():
    return np.lib.stride_tricks.as_strided(np.zeros(20, np.float32), SHAPE, (4, 8, 4))


def repeated():
    return np.lib.stride_tricks.as_strided(np.zeros(6, np.float32), SHAPE, (0, 0, 4))


OUTS = {
    "shape": (lambda: np.zeros((8, 3, 7), np.float32), ValueError, "shape"),
    "more dimensions": (lambda: np.zeros((8, 3, 6, 1), np.float32), ValueError, "shape"),
    "same size": (lambda: np.zeros((8, 6, 3), np.float32), ValueError, "shape"),
    "would broadcast": (lambda: np.zeros((2, 8, 3, 6), np.float32), ValueError, "shape"),
    "float64": (lambda: np.zeros(SHAPE), ValueError, "dtype"),
    "int32": (lambda: np.zeros(SHAPE, np.int32), ValueError, "dtype"),
    "byte order": (lambda: np.zeros(SHAPE, np.dtype(np.float32).newbyteorder()), ValueError, "byte order"),
    "read-only": (read_only, ValueError, "read-only"),
    "unaligned": (unaligned, ValueError, "aligned"),
    "zero stride": (lambda: np.broadcast_to(np.zeros(6, np.float32), SHAPE), ValueError, "out"),
    "zero stride, writable": (repeated, ValueError, "overlap"),
    "windows": (windows, ValueError, "overlap"),
    "list": (lambda: [[0.0]], TypeError, "out is a"),
    "masked array": (lambda: np.ma.zeros(SHAPE, np.float32), TypeError, "out is a"),
    "a type": (lambda: np.float32, TypeError, "out"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "error", "text"), OUTS.values(), ids=OUTS)
def test_out_must_be_able_to_take_the_result(given, make, error, text):
    out = make()
    for call in (
        lambda: training(given.x, given.state, out=out),
        lambda: inference(given.x, given.state, out=out),
        lambda: backward(given.dy, given.saved, out=out),
    ):
        refuse(given, call, error, "out", text, arrays=[out])


def test_out_must_not_be_x_in_training(given):
    for out in (given.x, given.memory[:8], given.x[...]):
        refuse(
            given,
            lambda o=out: training(given.x, given.state, out=o),
            ValueError,
            "out is x itself",
            "backward",
        )


OVERLAPS = {
    "shifted": lambda a: a[1:9],
    "reversed": lambda a: a[7::-1],
    "other rows": lambda a: a[2:],
    "transposed": lambda a: a[:8].reshape(8, 6, 3).transpose(0, 2, 1),
}


@pytest.mark.parametrize("view", OVERLAPS.values(), ids=OVERLAPS)
def test_out_must_not_overlap_an_input_in_part(given, view):
    out = view(given.memory)
    dy = given.x.copy()
    for call in (
        lambda: training(given.x, given.state, out=out),
        lambda: inference(given.x, given.state, out=out),
        lambda: backward(dy, given.saved, out=out),
        lambda: backward(given.x, training(dy, random_state(np.random.default_rng(), 3))[1], out=out),
    ):
        refuse(given, call, ValueError, "out overlaps")


def test_out_must_not_be_what_says_which_values_count(rng):
    """What is written over the weights spoils every later pass; jvp once did."""
    x, dy, weights = (sample(rng, SHAPE) for _ in range(3))
    weights = np.abs(weights)
    _, saved = training(x, random_state(rng, 3), weights=weights)
    before = weights.copy()
    for call in (
        lambda out: training(x, random_state(rng, 3), weights=weights, out=out),
        lambda out: backward(dy, saved, out=out),
        lambda out: nbnorm.batch_norm_jvp(dy, None, None, saved, out=out),
    ):
        with pytest.raises(ValueError, match="out is weights itself, which the backward pass needs"):
            call(weights)
        with pytest.raises(ValueError, match="out overlaps weights in memory"):
            call(weights[::-1])
    assert same_bits(weights, before)


def test_out_that_is_one_input_must_not_overlap_another(given):
    """Once it gave wrong numbers: what is written over the one spoils what is still to be read of the other."""
    other = given.memory[1:9]
    _, saved = training(given.x, random_state(np.random.default_rng(), 3))
    for call in (
        lambda: training(given.x, given.state, residual=other, out=other),
        lambda: inference(given.x, given.state, residual=other, out=other),
        lambda: inference(other, given.state, residual=given.x, out=given.x),
        lambda: backward(other, saved, out=other),
    ):
        refuse(given, call, ValueError, "out overlaps")
