"""Ghost batches: each is a batch and a step of its own, to the bit."""

import copy
import pickle

import numba
import numpy as np
import pytest
import reference
from common import arguments_that_fit, random_state, refuse, same_bits, sample, snapshot
from test_counted import FORMS, every_form
from test_training import LAYOUTS, every_layout, features
from tolerance import assert_stat_close, dtype_of

import nbnorm
from nbnorm import batch_norm_backward as backward
from nbnorm import batch_norm_training as training

SHAPE = (7, 4, 5, 14)  # three ghost batches, the last one of a single image
# By default those for which test_activation.py compiles the kernels.
segments_or_columns = pytest.mark.parametrize(
    "S", [70, pytest.param(6, marks=pytest.mark.exhaustive("kernels of their own"))]
)


def case(rng, layout, dtype, shape=SHAPE):
    x, axis = LAYOUTS[layout](sample(rng, shape, dtype))
    dy, _ = LAYOUTS[layout](rng.normal(size=shape).astype(dtype_of(dtype)))
    return x, dy, axis


def step_by_step(x, dy, state, axis, n, masks=None, **options):
    """The same as steps of their own: y, dx and what each saved."""
    y, dx = np.empty_like(x), np.empty_like(x)
    steps = []
    for part in reference.groups(x, axis, n):
        of_part = {name: np.broadcast_to(mask, x.shape)[part] for name, mask in (masks or {}).items()}
        y[part], saved = training(x[part], state, axis=axis, **of_part, **options)
        gradients = backward(dy[part], saved)
        dx[part] = gradients.dx
        steps.append((saved, gradients))
    return y, dx, steps


@pytest.mark.pairs_at_most("each ghost batch is a step, which test_training.py has in every case")
@pytest.mark.float32_by_default("test_training.py: a step")
@every_layout
@pytest.mark.parametrize("parameters", [{}, {"dtype": "float64"}, {"use_gamma": False}, {"use_beta": False}], ids=str)
@pytest.mark.parametrize("momentum", [0.25, None])
@pytest.mark.parametrize("update_running", [True, False])
@pytest.mark.parametrize("renorm", [None, nbnorm.Renorm(1.2, 0.5)], ids=["plain", "renorm"])
def test_ghost_batches_are_batches(dtype, layout, parameters, momentum, update_running, renorm, rng):
    x, dy, axis = case(rng, layout, dtype)
    state = random_state(rng, features(x, axis), momentum=momentum, **parameters)
    other = copy.deepcopy(state)
    options, n = {"update_running": update_running, "renorm": renorm}, 4 if layout == "rows" else 3
    y, saved = training(x, state, axis=axis, ghost=n, **options)
    found = backward(dy, saved)
    expected_y, expected_dx, steps = step_by_step(x, dy, other, axis, n, **options)
    assert (y.strides, found.dx.strides) == (np.empty_like(x).strides,) * 2
    assert same_bits(y, expected_y.astype(y.dtype))
    assert same_bits(found.dx, expected_dx.astype(y.dtype))
    assert snapshot(state) == snapshot(other)
    assert state.num_batches == (len(steps) if update_running else 0)
    for name in ("dgamma", "dbeta"):
        parts = [getattr(gradients, name) for _, gradients in steps]
        assert (getattr(found, name) is None) == (parts[0] is None)
        if parts[0] is not None:
            # Each step has rounded its part to the dtype of the parameters.
            limit = 2.0**-24 * sum(np.abs(reference.wide(part)) for part in parts) * 2 + 2.0**-149
            assert (np.abs(reference.wide(getattr(found, name)) - sum(map(reference.wide, parts))) <= limit).all()
            assert getattr(found, name).dtype == state.dtype


@pytest.mark.parametrize(("form", "shape"), [("where, padding", (9, 3, 70)), ("all", (9, 3, 70))], ids=str)
def test_masks_are_cut_as_x_is(form, shape, rng):
    check_masks(form, shape, rng)


@pytest.mark.exhaustive("test_masks_are_cut_as_x_is has the kernels that test_counted has")
@every_form
@pytest.mark.parametrize("shape", [(9, 3, 70), (9, 4, 5), (9, 5)], ids=str)
def test_masks_of_every_kind_are_cut(form, shape, rng):
    check_masks(form, shape, rng)


def check_masks(form, shape, rng):
    x, dy = sample(rng, shape), sample(rng, shape)
    counting = FORMS[form](rng, x, 1)
    nan = {"nan": counting.pop("nan")} if "nan" in counting else {}
    x[0, 0] = np.nan if nan else x[0, 0]
    for mask in counting.values():
        if mask.shape[0] == x.shape[0]:
            for part in reference.groups(x, 1, 3):  # each ghost batch has values enough
                mask[part][-2:] = 1
    state = random_state(rng, shape[1])
    other = copy.deepcopy(state)
    expected_y, expected_dx, steps = step_by_step(x, dy, other, 1, 3, counting, **nan)
    y, saved = training(x, state, ghost=3, **counting, **nan)
    assert same_bits(y, expected_y)
    assert same_bits(backward(dy, saved).dx, expected_dx)
    assert snapshot(state) == snapshot(other)
    assert_stat_close(saved.count, sum(step.count for step, _ in steps))


def test_gradients_equal_the_complex_step(rng):
    """Of the definition, each ghost batch by itself."""
    x, dy = sample(rng, (5, 3, 4), "float64"), sample(rng, (5, 3, 4), "float64")
    state = random_state(rng, 3, dtype="float64")
    _, saved = training(x, state, ghost=2)
    found = backward(dy, saved)
    expected = [
        reference.complex_step(x[part], dy[part], state.gamma, state.beta, state.eps)
        for part in reference.groups(x, 1, 2)
    ]
    scale = np.abs(dy).sum() * np.abs(state.gamma).max() * saved.inv_std.max()  # of all terms together
    for name in ("dx", "dgamma", "dbeta"):
        parts = [getattr(one, name) for one in expected]
        whole = np.concatenate(parts) if name == "dx" else sum(parts)
        assert np.abs(getattr(found, name) - whole).max() <= 1e-12 * scale


def test_what_is_saved_is_of_each_and_of_all(rng):
    x = sample(rng, (7, 3, 6))
    _, saved = training(x, nbnorm.BatchNormState(3), ghost=3)
    parts = reference.groups(x, 1, 3)
    assert [group.x.shape[0] for group in saved.groups] == [3, 3, 1]
    for row, part in enumerate(parts):
        exact = reference.training(x[part])
        assert_stat_close(saved.mean[row], exact.mean)
        assert_stat_close(saved.var[row], exact.var)
        assert_stat_close(saved.inv_std[row], 1 / np.sqrt(exact.var + reference.Wide(1e-5)))
    count, mean, m2 = reference.stats(x)
    assert saved.count == count
    assert_stat_close(saved.stats.mean, mean)
    assert_stat_close(saved.stats.m2, m2)
    assert same_bits(saved.gamma, np.ones(3))


@segments_or_columns
def test_what_is_saved_of_all_is_so_beside_other_options(S, rng):
    x, state = sample(rng, (7, 3, S)), random_state(rng, 3)
    y, saved = training(x, state, ghost=3, renorm=nbnorm.Renorm(3, 5), residual=x, activation="relu")
    for one in (saved, *saved.groups, copy.deepcopy(saved)):
        assert same_bits(one.gamma, state.gamma.astype(np.float64))
    assert saved.y is y


@segments_or_columns
def test_no_ghost_batch_writes_over_what_another_one_reads(S, rng):
    """A shifted place for a result may overlap no y of its own ghost batch, but the next one's: wrong numbers, once."""
    given, memory = arguments_that_fit(rng, (8, 3, S)), np.zeros((12, 3, S), np.float32)
    y, saved = training(
        given.x, given.state, ghost=4, residual=np.ones_like(given.x), activation="relu", out=memory[:8]
    )
    exact = backward(given.dy, saved)
    refuse_places(given, saved, memory, "y")
    found = backward(given.dy, saved, out=y)  # which `saved` has no use for any more
    assert found.dx is y
    assert all(same_bits(a, b) for a, b in zip(found, exact, strict=True))


@pytest.mark.exhaustive("kernels of their own; y, which is refused in the same place")
def test_no_ghost_batch_writes_over_weights_of_another_one(given):
    memory = np.ones((12, 3, 6), np.float32)
    _, saved = training(given.x, given.state, ghost=4, residual=np.ones_like(given.x), weights=memory[:8])
    refuse_places(given, saved, memory, "weights")


def refuse_places(given, saved, memory, what):
    """For either gradient, half of what the ghost batches have there."""
    for name in ("out", "dresidual_out"):
        refuse(given, lambda n=name: backward(given.dy, saved, **{n: memory[4:]}), ValueError,
               f"{name} overlaps {what}", arrays=[memory])  # fmt: skip


def test_copies_of_saved_give_the_same_gradients(rng):
    x, dy = np.asfortranarray(sample(rng, (7, 3, 6))), sample(rng, (7, 3, 6))
    _, saved = training(x, nbnorm.BatchNormState(3), ghost=3, renorm=nbnorm.Renorm(1.1, 0.1), where=x < 2)
    exact = backward(dy, saved)
    for other in (copy.deepcopy(saved), pickle.loads(pickle.dumps(saved))):
        assert all(same_bits(a, b) for a, b in zip(backward(dy, other), exact, strict=True))


def test_copies_of_saved_keep_the_memory_order_of_x(rng):
    x, dy = np.asfortranarray(sample(rng, (4, 3, 6))), sample(rng, (4, 3, 6))
    _, saved = training(x, nbnorm.BatchNormState(3), ghost=1)
    other = pickle.loads(pickle.dumps(saved))
    assert other.x.strides == backward(dy, other).dx.strides == x.strides


def test_out_may_be_what_it_may_be_without(rng):
    x, dy = sample(rng, (7, 3, 6)), sample(rng, (7, 3, 6))
    out = np.zeros_like(x, order="F")
    y, saved = training(x, nbnorm.BatchNormState(3), ghost=3, out=out)
    assert y is out
    assert same_bits(np.array(y), training(x, nbnorm.BatchNormState(3), ghost=3)[0])
    exact = backward(dy, saved)
    given = dy.copy()
    assert backward(given, saved, out=given).dx is given
    assert same_bits(given, exact.dx)
    assert backward(dy, saved, out=x).dx is x
    assert same_bits(x, exact.dx)


@pytest.mark.parametrize("size", [1e-39, 1e38])
def test_gradients_beyond_their_dtype_are_no_warnings(size, rng):
    """As those of a whole batch; dgamma is subnormal, or infinite."""
    x = sample(rng, (8, 3))
    dy = (x * size).astype(x.dtype)
    _, saved = training(x, nbnorm.BatchNormState(3), ghost=4)
    with np.errstate(all="ignore" if numba.config.DISABLE_JIT else "raise"):  # there NumPy computes what a kernel does
        found = backward(dy, saved)
    exact = sum(reference.backward(dy[part], x[part], np.ones(3)).dgamma for part in (slice(4), slice(4, None)))
    if size > 1:
        assert (found.dgamma == np.sign(exact) * np.inf).all()
    else:
        assert (np.abs(found.dgamma.astype(reference.Wide) - exact) <= 2.0**-149).all()


def test_a_size_larger_than_the_batch_is_the_batch(rng):
    x = sample(rng, (7, 3, 6))
    assert same_bits(training(x, nbnorm.BatchNormState(3), ghost=100)[0], training(x, nbnorm.BatchNormState(3))[0])


def test_a_batch_of_no_channels_has_ghost_batches(rng):
    x, state = np.zeros((8, 0, 5), np.float32), nbnorm.BatchNormState(0)
    y, saved = training(x, state, ghost=3)
    assert (y.shape, len(saved.groups), state.num_batches) == ((8, 0, 5), 3, 3)
    assert backward(x, saved).dx.shape == x.shape


REFUSED = {
    "no int": ({"ghost": 2.0}, TypeError, "ghost is 2.0", "an int"),
    "a bool": ({"ghost": True}, TypeError, "ghost is True"),
    "0": ({"ghost": 0}, ValueError, "ghost is 0", "at least 1"),
    "running statistics": ({"ghost": 4, "use_running": True}, ValueError, "ghost is about", "use_running=True"),
    "shards": ({"ghost": 4, "sync": lambda packed: packed[None]}, ValueError, "ghost cuts", "sync"),
    "x as out": ({"ghost": 4, "out": "x"}, ValueError, "out is x itself"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_changes_nothing(given, case):
    options, error, *texts = case
    options = {name: given.x if value == "x" else value for name, value in options.items()}
    refuse(given, lambda: training(given.x, given.state, **options), error, *texts)


def test_the_last_one_needs_a_variance_before_the_first_is_counted(given, rng):
    table = sample(rng, (7, 3))
    refuse(
        given, lambda: training(table, given.state, ghost=3), ValueError, "ghost=3 makes 3", "last one with 1 values"
    )
    empty = np.zeros((0, 3), np.float32)
    refuse(given, lambda: training(empty, given.state, ghost=3), ValueError, "with 0 values")
    refuse(given, lambda: training(table[:1], given.state, ghost=10**300), ValueError, "makes 1", "with 1 values")
    where = np.ones((8, 1, 1), bool)
    where[4:] = False
    refuse(given, lambda: training(given.x, given.state, ghost=4, where=where), ValueError, "channel 0 has fewer")
    refuse(given, lambda: training(given.x, given.state, ghost=4, where=where[:7]), ValueError, "where has shape")


def test_gradients_of_parameters_are_added_before_they_are_rounded(rng):
    """Two ghost batches of the same x, whose gradients leave a millionth of either."""
    x, dy = sample(rng, (8, 3, 6)), sample(rng, (8, 3, 6))
    x[4:], dy[4:] = x[:4], -dy[:4] * np.float32(1 + 2.0**-20)
    state = random_state(rng, 3)
    _, saved = training(x, state, ghost=4)
    found = backward(dy, saved)
    halves = [reference.backward(dy[part], x[part], state.gamma, state.eps) for part in reference.groups(x, 1, 4)]
    terms = np.abs(reference.by_channel(dy, 1)).sum(-1)
    for name in ("dgamma", "dbeta"):
        exact = sum(getattr(one, name) for one in halves)
        # Rounded once, beside what sums in float64 lose of their terms.
        limit = 2.0**-24 * np.abs(exact) + 2.0**-40 * terms
        assert (np.abs(reference.wide(getattr(found, name)) - exact) <= limit).all()
        assert getattr(backward(dy[:4], saved.groups[0]), name).dtype == np.float64


def test_param_grads_are_checked_though_there_is_one_rank(given):
    _, saved = training(given.x, given.state, ghost=4)
    refuse(
        given,
        lambda: nbnorm.batch_norm_backward(given.dy, saved, param_grads="all"),
        ValueError,
        "param_grads is 'all'",
    )


def test_the_layer_has_them_in_training_only(rng):
    x, dy = sample(rng, (8, 3, 6)), sample(rng, (8, 3, 6))
    layer, state = nbnorm.BatchNorm(3, ghost=2), nbnorm.BatchNormState(3)
    y, saved = training(x, state, ghost=2)
    assert same_bits(layer(x), y)
    assert same_bits(layer.backward(dy), backward(dy, saved).dx)
    layer.frozen = True
    assert same_bits(layer(x), nbnorm.batch_norm_inference(x, state))
    assert same_bits(layer.eval()(x), nbnorm.batch_norm_inference(x, state))
    layer.train().frozen, layer.debug = False, True
    layer(x)
    x[7, 2, 5] += 1
    with pytest.raises(RuntimeError, match="changed"):
        layer.backward(dy)
    with pytest.raises(TypeError, match=r"ghost is 2\.5"):
        nbnorm.BatchNorm(3, ghost=2.5)


@pytest.mark.parametrize("options", [{"ghost": 2}, {"renorm": nbnorm.Renorm(2, 1)}], ids=["ghost", "renorm"])
def test_further_derivatives_are_refused(given, options):
    _, saved = training(given.x, given.state, **options)
    name = next(iter(options))
    refuse(given, lambda: nbnorm.batch_norm_jvp(given.dy, None, None, saved), ValueError, f"had {name}=", "not built")
    call = lambda: nbnorm.batch_norm_double_backward(given.dy, None, None, given.dy, saved)  # noqa: E731
    refuse(given, call, ValueError, f"had {name}=", "not built")
