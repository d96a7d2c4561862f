"""A layer in training mode writes large results where its last ones were, when nobody could see it."""

import copy
import pickle
import sys
import weakref

import numpy as np
import pytest
from common import same_bits, sample

import nbnorm
from nbnorm import _reuse, layer


@pytest.fixture(autouse=True)
def large(monkeypatch):
    """What is large is small here."""
    monkeypatch.setattr(_reuse, "LARGE", 400)


SHAPE = (5, 3, 7)  # 420 bytes of float32


def address(array):
    return array.__array_interface__["data"][0]


def steps(rng, number=3, shape=SHAPE):
    return [(sample(rng, shape), sample(rng, shape)) for _ in range(number)]


def expected(given, **options):
    """y and dx of each step, of functions."""
    state = nbnorm.BatchNormState(3)
    for x, dy in given:
        y, saved = nbnorm.batch_norm_training(x, state, **options)
        yield y, nbnorm.batch_norm_backward(dy, saved).dx


def test_results_that_nobody_holds_are_written_over(rng, monkeypatch):
    places = []

    def noticing(function):
        def call(*args, out=None, **options):
            places.append(None if out is None else address(out))
            return function(*args, out=out, **options)

        return call

    for name in ("batch_norm_training", "batch_norm_backward"):
        monkeypatch.setattr(layer, name, noticing(getattr(layer, name)))
    given, bn, addresses = steps(rng), nbnorm.BatchNorm(3), []
    for (x, dy), (y_exact, dx_exact) in zip(given, expected(given), strict=True):
        y = bn(x)
        dx = bn.backward(dy)
        assert same_bits(y, y_exact)
        assert same_bits(dx, dx_exact)
        addresses += [address(y), address(dx)]
        del y, dx
    assert places == [None, None, *addresses[:4]]
    assert addresses == 3 * addresses[:2]


class Held:
    """Ways to hold an array."""

    array = staticmethod(lambda y: y)
    view = staticmethod(lambda y: y[2:, :, ::2])
    view_of_a_view = staticmethod(lambda y: y[2:].T[0])
    buffer = staticmethod(memoryview)
    dlpack = staticmethod(lambda y: y.__dlpack__())
    interface = staticmethod(lambda y: np.asarray(y).reshape(-1).view(np.int32))
    container = staticmethod(lambda y: {"key": [y]})


@pytest.mark.parametrize("way", [name for name in vars(Held) if not name.startswith("_")])
def test_what_somebody_holds_stays(rng, way):
    (x, dy), (other, _) = steps(rng, 2)
    bn = nbnorm.BatchNorm(3)
    y = bn(x)
    held, before, where = getattr(Held, way)(y), y.tobytes(), address(y)
    own = np.frombuffer(before, np.float32).reshape(SHAPE)
    del y
    after = bn(other)
    assert address(after) != where
    if way == "array":
        assert same_bits(held, own)
    elif way == "view":
        assert same_bits(held, own[2:, :, ::2])
    bn.backward(dy)


def test_a_weak_reference_sees_the_result_go(rng):
    (x, _), (other, _) = steps(rng, 2)
    bn = nbnorm.BatchNorm(3)
    held = weakref.ref(bn(x))
    assert held() is not None
    bn(other)
    assert held() is None


def test_a_debugger_that_reads_names_changes_no_count():
    """It holds what they stand for, in Python 3.12 and before."""
    sys.setprofile(lambda frame, event, argument: frame.f_locals and None)
    try:
        holders = _reuse._holders([np.empty(0)])
    finally:
        sys.setprofile(None)
    assert holders == _reuse.ALONE > 0
    kept = [np.empty(0)]
    view = kept[0][:]
    assert _reuse._holders(kept) == _reuse.ALONE + 1
    assert view.size == 0


def test_a_result_that_was_made_read_only_stays(rng):
    given, bn = steps(rng, 2), nbnorm.BatchNorm(3)
    for (x, dy), (y_exact, dx_exact) in zip(given, expected(given), strict=True):
        y = bn(x)
        dx = bn.backward(dy)
        assert same_bits(y, y_exact)
        assert same_bits(dx, dx_exact)
        y.flags.writeable = dx.flags.writeable = False
        del y, dx


def test_what_is_no_array_is_refused_as_on_a_fresh_layer(rng):
    bn, x = nbnorm.BatchNorm(3), steps(rng)[0][0]
    bn(x)
    for wrong in (memoryview(x), x.tolist()):
        with pytest.raises(TypeError, match="x is a"):
            bn(wrong)


def test_only_memory_of_its_own_is_kept(rng):
    result, reuse = sample(rng, (5, 3, 14)), _reuse.Reuse()
    reuse.keep(result[:, :, :7])
    assert reuse.place(result[:, :, :7]) is None
    reuse.keep(result.copy())
    assert reuse.place(result).shape == result.shape


def test_a_result_that_is_the_next_x_stays(rng):
    (x, dy), _ = steps(rng, 2)
    bn = nbnorm.BatchNorm(3)
    x = bn(bn(x))
    before = x.tobytes()
    exact, _ = nbnorm.batch_norm_training(x, nbnorm.BatchNormState(3))
    y = bn(x)
    assert address(y) != address(x)
    assert same_bits(y, exact)
    assert x.tobytes() == before
    bn.backward(dy)


@pytest.mark.parametrize("other", [np.zeros((7, 3, 5), np.float32), np.zeros(SHAPE), np.zeros((7, 3, 5), np.float32).T])
def test_of_another_shape_dtype_or_order_is_new(rng, other):
    bn = nbnorm.BatchNorm(3)
    where = address(bn(steps(rng)[0][0]))
    y = bn(other)
    assert (y.shape, y.dtype, y.strides) == (other.shape, other.dtype, np.empty_like(other).strides)
    assert np.array_equal(y, np.zeros(other.shape))
    assert where  # was an array of the first call; it may be the allocator's choice again


def test_nothing_is_kept_that_is_small_or_the_users(rng):
    bn, (x, dy) = nbnorm.BatchNorm(3), steps(rng)[0]
    bn(x[:4])
    assert bn._results is None
    out = np.empty_like(x)
    assert bn(x, out=out) is out
    assert bn.backward(dy, out=dy) is dy
    assert bn._results is None


def test_evaluation_lets_go_and_keeps_nothing(rng):
    bn, (x, dy) = nbnorm.BatchNorm(3), steps(rng)[0]
    gone = [weakref.ref(bn(x)), weakref.ref(bn.backward(dy))]
    assert all(one() is not None for one in gone)
    bn.eval()
    bn(x)
    bn.backward(dy)
    assert [one() for one in gone] == [None, None]
    assert bn._results is None


def test_copies_have_results_of_their_own(rng):
    bn, (x, _) = nbnorm.BatchNorm(3), steps(rng)[0]
    bn(x)
    for twin in (copy.copy(bn), copy.deepcopy(bn), pickle.loads(pickle.dumps(bn))):
        assert twin._results is None
        y, own = bn(x), twin(x)
        assert address(y) != address(own)
        assert same_bits(y, own)


def test_a_call_that_fails_keeps_nothing_wrong(rng):
    bn, (x, dy), (exact, _) = nbnorm.BatchNorm(3), *(given := steps(rng, 1)), *expected(given)
    bn(x)
    with pytest.raises(ValueError, match="channels"):
        bn(np.zeros((5, 4, 7), np.float32))
    assert same_bits(bn(x), exact)
    with pytest.raises(ValueError, match="dy has shape"):
        bn.backward(dy[:4])
    bn.backward(dy)
