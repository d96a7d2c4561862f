"""What stands beside a batch norm on the GPU: `activation=` and `residual=`, in every way of cutting the work."""

import numpy as np
import pytest
import reference
from common import same_bits, sample
from ranks import run, work_of
from steps import state_on_gpu
from test_activation import assert_dx_close, assert_y_close, let_through
from test_counted import FORMS, cut, spoiled
from test_cuda_counted import SHAPES, on_gpu
from tolerance import assert_close, assert_stat_close, dtype_of, ulp

import nbnorm

every_shape = pytest.mark.parametrize("shape", [*SHAPES, (33, 4, 13)], ids=str)
every_activation = pytest.mark.parametrize("activation", [None, "relu", ("leaky_relu", 0.3)], ids=str)
with_or_without = pytest.mark.parametrize("with_residual", [False, True], ids=["alone", "residual"])
every_mode = pytest.mark.parametrize("use_running", [False, True], ids=["training", "frozen"])


def arrays(rng, shape, dtype, with_residual):
    dy, residual = (rng.normal(size=shape).astype(dtype_of(dtype)) for _ in range(2))
    return sample(rng, shape, dtype), dy, residual if with_residual else None


def check(found, plain, x, dy, w, residual, activation, state, running):
    """Gradients of the GPU; w is how often values count, `running` the constant statistics, if so."""
    gone = reference.absent(x, w)
    g = np.where(gone, 0, let_through(np.where(gone, 0, dy), np.where(gone, 1, plain), residual, activation))
    g = g.astype(np.float64)
    if residual is not None:
        assert_close(found.dresidual.get(), g)
        g = found.dresidual.get()
    if running is None:
        exact = reference.weighted_backward(g, x, w, state.gamma, state.eps)
        var = reference.weighted_training(x, w).var
    else:
        exact = reference.frozen_backward(g, np.where(gone, 0, x), *running, state.gamma, state.eps)
        var = reference.wide(running[1])
    terms = None
    if running is None and (residual is not None or activation is None) and (w == 1).all():  # computed in float32
        terms = reference.backward(g, x, state.gamma, state.eps).terms
    dx = found.dx.get()
    assert np.array_equal(dx[gone], np.zeros(gone.sum()))
    assert_dx_close(dx, np.where(gone, 0, exact.dx), g, state, var, 1, terms)
    limit = 2.0**-40 * np.abs(reference.by_channel(g, 1)).sum(-1) * max(1, np.abs(np.where(gone, 0, plain)).max())
    for name in ("dgamma", "dbeta"):
        error = np.abs(reference.wide(getattr(found, name).get()) - getattr(exact, name))
        assert (error <= ulp(getattr(exact, name), 24, -149) + limit).all()


def moved(cupy, *given):
    return [None if array is None else cupy.asarray(array) for array in given]


@pytest.mark.pairs_at_most("what loads knows the dtype, what walks the shape; a gate and a residual act on packs")
@every_shape
@every_activation
@with_or_without
@every_mode
def test_a_step_equals_the_definition(cupy, dtype, shape, activation, with_residual, use_running, rng):
    x, dy, residual = arrays(rng, shape, dtype, with_residual)
    state, own = state_on_gpu(rng, shape[1], momentum=0.25)
    running = (state.running_mean, state.running_var) if use_running else None
    if use_running:
        plain = reference.inference(x, *running, state.gamma, state.beta, state.eps)
    else:
        plain = reference.training(x, state.gamma, state.beta, state.eps).y
    on_device, given, added = moved(cupy, x, dy, residual)
    options = {"residual": added, "activation": activation}
    if use_running:
        assert_y_close(nbnorm.batch_norm_inference(on_device, own, **options).get(), plain, residual, activation, 1)
    y, saved = nbnorm.batch_norm_training(on_device, own, use_running=use_running, **options)
    assert_y_close(y.get(), plain, residual, activation, 1)
    found = nbnorm.batch_norm_backward(given, saved)
    check(found, plain, x, dy, reference.counts(x), residual, activation, state, running)
    place = cupy.asarray(dy)
    again = nbnorm.batch_norm_backward(place, saved, **{"dresidual_out" if with_residual else "out": place})
    assert place is (again.dresidual if with_residual else again.dx)
    assert all(same_bits(a.get(), b.get()) for a, b in zip(again, found, strict=True))


@pytest.mark.each_value
@pytest.mark.pairs_at_most("forms of masks and shapes: test_cuda_counted.py")
@every_shape
@pytest.mark.parametrize("form", ["where, padding", "weights, all of x", "all"])
@pytest.mark.parametrize("activation", ["relu", ("leaky_relu", 0.3)], ids=str)
@with_or_without
@every_mode
def test_with_masks(cupy, shape, form, activation, with_residual, use_running, rng):
    x, dy, residual = arrays(rng, shape, "float32", with_residual)
    counting = FORMS[form](rng, x, 1)
    x, w = spoiled(rng, x, counting, 1)
    gone, (state, own) = reference.absent(x, w), state_on_gpu(rng, shape[1])
    dy = np.where(gone, np.float32(np.inf), dy)
    running = (state.running_mean, state.running_var) if use_running else None
    if use_running:
        plain = reference.inference(x, *running, state.gamma, state.beta, state.eps)
    else:
        plain = reference.weighted_training(x, w, state.gamma, state.beta, state.eps).y
    on_device, given, added = moved(cupy, x, dy, residual)
    y, saved = nbnorm.batch_norm_training(
        on_device, own, use_running=use_running, residual=added, activation=activation, **on_gpu(cupy, counting)
    )
    there = np.where(gone, 0, plain)
    kept = None if residual is None else np.where(gone, np.float32(0), residual)
    assert_y_close(np.where(gone, np.float32(0), y.get()), there, kept, activation, 1)
    check(nbnorm.batch_norm_backward(given, saved), plain, x, dy, w, residual, activation, state, running)


@pytest.mark.each_value
@pytest.mark.parametrize("shape", [(9, 3, 70), (9, 5)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
@with_or_without
@every_mode
def test_shards_equal_the_whole(cupy, shape, masked, with_residual, use_running, rng):
    x, dy, residual = arrays(rng, shape, "float32", with_residual)
    counting, bounds = {"where": rng.random(shape) < 0.7} if masked else {}, [0, 2, 2, 9]
    state, own = state_on_gpu(rng, shape[1])
    states = [own, *(state.to("cuda") for _ in range(2))]
    options = {"use_running": use_running, "activation": "relu"}

    def work(rank, sync):
        part = slice(bounds[rank], bounds[rank + 1])
        on_device, given, added = moved(cupy, x[part], dy[part], None if residual is None else residual[part])
        masks = on_gpu(cupy, cut(counting, part.start, part.stop))
        y, saved = nbnorm.batch_norm_training(on_device, states[rank], residual=added, sync=sync, **options, **masks)
        return y.get(), nbnorm.batch_norm_backward(given, saved, param_grads="global")

    ranks = work_of(run(3, work))
    w, running = reference.counts(x, **counting), (state.running_mean, state.running_var) if use_running else None
    if use_running:
        plain = reference.inference(x, *running, state.gamma, state.beta, state.eps)
    else:
        plain = reference.weighted_training(x, w, state.gamma, state.beta, state.eps).y
    assert_y_close(np.concatenate([y for y, _ in ranks]), plain, residual, "relu", 1)
    parts = [
        cupy.asarray(np.concatenate([getattr(found, name).get() for _, found in ranks]))
        for name in ("dx", "dresidual")[: 1 + with_residual]
    ]
    for _, found in ranks:
        whole = found._replace(**dict(zip(("dx", "dresidual"), parts, strict=False)))
        check(whole, plain, x, dy, w, residual, "relu", state, running)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the simulator
@pytest.mark.parametrize("shape", [(6, 3, 70), (40, 3)], ids=str)
def test_what_is_not_let_through_does_no_harm(cupy, shape, rng):
    """Also where it is in all of the nine places at which an origin of dy is looked for."""
    x, dy = sample(rng, shape), sample(rng, shape)
    _, own = state_on_gpu(rng, shape[1])
    y, saved = nbnorm.batch_norm_training(cupy.asarray(x), own, activation="relu")
    spoilt = np.where(y.get() > 0, dy, np.float32(np.inf))
    dx, dgamma, dbeta = (a.get() for a in nbnorm.batch_norm_backward(cupy.asarray(spoilt), saved))
    g = np.where(y.get() > 0, dy, 0)
    exact = reference.backward(g, x, own.gamma.get(), own.eps)
    assert_close(dx, exact.dx)
    assert_stat_close(dbeta, exact.dbeta)
    assert_stat_close(dgamma, exact.dgamma)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the simulator
@every_shape
def test_values_that_are_not_finite(cupy, shape, rng):
    x, dy = sample(rng, shape), sample(rng, shape)
    state, own = state_on_gpu(rng, shape[1], use_gamma=False)
    x[0, 0], x[1, 1], x[2, -1] = np.nan, np.inf, -np.inf
    y, saved = nbnorm.batch_norm_training(
        cupy.asarray(x), own, use_running=True, update_running=False, activation="relu"
    )
    dx, y = nbnorm.batch_norm_backward(cupy.asarray(dy), saved).dx.get(), y.get()
    assert np.isnan(y[0, 0]).all()
    assert (y[1, 1] == np.inf).all()
    assert (y[2, -1] == 0).all()
    assert (dx[0, 0] == 0).all()
    assert (dx[2, -1] == 0).all()
    a = dy.astype(np.float64) / np.sqrt(state.running_var + state.eps).reshape(1, -1, *[1] * (len(shape) - 2))
    assert_close(dx[1:2, 1:2], a[1:2, 1:2])
