"""Forward mode and the double backward pass on GPU arrays: every way through the kernels, and shards."""

from __future__ import annotations

import numpy as np
import pytest
import ranks
import reference
from common import sample
from derivatives import assert_derivatives
from steps import state_on_gpu, strides_of_output
from test_counted import FORMS, every_form, spoiled
from test_cuda_counted import every_shape as every_shape_of_masks
from test_cuda_counted import on_gpu as gpu_arrays
from test_cuda_shards import SHAPES as OF_SHARDS
from test_cuda_shards import joined
from test_cuda_values import SHAPES as EVERY_SHAPE
from test_cuda_values import VIEWS

import nbnorm

SHAPES = {name: shape for name, shape in EVERY_SHAPE.items() if name != "two values"}  # where dx is eps of its terms
NONE = {"ddx": (True, False, False), "parameters": (False, True, True), "nothing": (False, False, False)}


def on_cpu(array):
    return None if array is None else array.get()


def check(
    cupy, rng, arrays, present=(True, True, True), use_running=False, axis=1, counting=None, w=None, **options
):  # fmt: skip
    """x, dy and ddx are GPU arrays."""
    x, dy, ddx = arrays
    axes = axis if isinstance(axis, tuple) else (axis,)
    features = tuple(x.shape[i] for i in axes)
    state, on_gpu = state_on_gpu(rng, features if len(axes) > 1 else features[0], **options)
    cotangents = ddx, *(cupy.asarray(rng.normal(size=features).astype(state.dtype)) for _ in range(2))
    cotangents = [array if given else None for array, given in zip(cotangents, present, strict=True)]
    _, saved = nbnorm.batch_norm_training(
        x, on_gpu, axis=axis, use_running=use_running, update_running=False, **(counting or {})
    )
    found = nbnorm.batch_norm_double_backward(*cotangents, dy, saved)
    tangent = nbnorm.batch_norm_jvp(*cotangents, saved)
    for array in (found.ddy, found.dx, tangent):
        assert array.strides == strides_of_output(x)
    running = (state.running_mean, state.running_var) if use_running else None
    on_host = [on_cpu(array) for array in (*found, tangent, *cotangents, dy, x)]
    assert_derivatives(on_host[:3], *on_host[3:], state, axis, running, w, on_gpu=True)


@pytest.mark.each_value
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_both_equal_the_oracle(cupy, rng, shape, dtype):
    check(cupy, rng, [cupy.asarray(sample(rng, shape, dtype)) for _ in range(3)])


@pytest.mark.each_value
@pytest.mark.parametrize("present", NONE.values(), ids=NONE)
@pytest.mark.parametrize("shape", [(2, 3, 68), (37, 5)], ids=str)
def test_what_is_not_there_is_zero(cupy, rng, shape, present):
    check(cupy, rng, [cupy.asarray(sample(rng, shape)) for _ in range(3)], present)


@pytest.mark.each_value
@pytest.mark.parametrize("shape", [(2, 3, 68), (37, 5)], ids=str)
@pytest.mark.parametrize("options", [{}, {"dtype": "float64"}], ids=str)
def test_frozen_statistics(cupy, rng, shape, options):
    check(cupy, rng, [cupy.asarray(sample(rng, shape)) for _ in range(3)], use_running=True, **options)


@pytest.mark.pairs_at_most
@pytest.mark.each_value
@every_shape_of_masks
@every_form
@pytest.mark.parametrize("use_running", [False, True], ids=["batch", "running"])
@pytest.mark.parametrize("present", [(True, True, True), (False, True, True)], ids=["all", "parameters"])
def test_values_that_count_by_a_mask_or_by_weights(cupy, rng, shape, form, use_running, present, dtype):
    arrays = [sample(rng, shape, dtype) for _ in range(3)]
    counting = FORMS[form](rng, arrays[0], 1)
    x, w = spoiled(rng, arrays[0], counting, 1)
    nowhere = np.full((), np.nan, x.dtype)
    dy, ddx = (np.where(reference.absent(x, w), nowhere, array) for array in arrays[1:])
    arrays, options = [cupy.asarray(array) for array in (x, dy, ddx)], {"dtype": "float64", "eps": 1e-3}
    check(cupy, rng, arrays, present, use_running, 1, gpu_arrays(cupy, counting), w, **options)


def test_without_gamma(cupy, rng):
    for use_running in (False, True):
        arrays = [cupy.asarray(sample(rng, (4, 3, 68))) for _ in range(3)]
        check(cupy, rng, arrays, (True, False, True), use_running, use_gamma=False)


@pytest.mark.parametrize("view", ["channels last", "backwards"])
def test_any_layout(cupy, rng, view):
    x, dy, ddx = (cupy.asarray(sample(rng, (3, 4, 5, 6))) for _ in range(3))
    check(cupy, rng, [VIEWS[view](cupy, x), dy, ddx])
    check(cupy, rng, [x, dy, VIEWS[view](cupy, ddx)], axis=(1, 3))


def test_a_tangent_on_the_cpu_is_refused(cupy, rng):
    x, dy = (cupy.asarray(sample(rng, (4, 3, 5))) for _ in range(2))
    _, saved = nbnorm.batch_norm_training(x, state_on_gpu(rng, 3)[1])
    with pytest.raises(TypeError, match=r"dgamma is a numpy\.ndarray but x of the forward pass is on cuda:0"):
        nbnorm.batch_norm_jvp(None, np.ones(3, np.float32), None, saved)
    with pytest.raises(TypeError, match=r"ddx is a numpy\.ndarray but x of the forward pass is on cuda:0"):
        nbnorm.batch_norm_double_backward(dy.get(), None, None, dy, saved)


@pytest.mark.each_value
@pytest.mark.parametrize("use_running", [False, True], ids=["batch", "running"])
@pytest.mark.parametrize("shape", [OF_SHARDS["segments"], OF_SHARDS["a table"]], ids=str)
@pytest.mark.parametrize("counting", [False, True], ids=["", "counting"])
def test_shards_equal_the_whole(cupy, rng, shape, use_running, counting):
    x, dy, ddx = (sample(rng, shape) + np.float32(mean) for mean in (100, 3, -2))
    where = rng.random(shape) < 0.7
    state, on_gpu = state_on_gpu(rng, shape[1], dtype="float64")
    of_parameters = rng.normal(size=(2, shape[1]))
    n = shape[0] // 10
    sizes = 7 * n, 3 * n, 0
    parts = list(zip(*(ranks.shards(array, sizes) for array in (x, dy, ddx)), strict=True))
    where[sizes[0] : sizes[0] + sizes[1]] = True
    w, masks = reference.counts(x, where) if counting else None, ranks.shards(where, sizes)
    states = [on_gpu.to("cpu").to("cuda") for _ in sizes]

    def work(rank, sync):
        own_x, own_dy, own_ddx = map(cupy.asarray, parts[rank])
        own = {"where": cupy.asarray(masks[rank])} if counting and rank != 1 else {}  # one has no mask
        _, saved = nbnorm.batch_norm_training(own_x, states[rank], sync=sync, use_running=use_running, **own)
        cotangents = own_ddx, *map(cupy.asarray, of_parameters)
        whole = nbnorm.batch_norm_double_backward(*cotangents, own_dy, saved, param_grads="global")
        local = nbnorm.batch_norm_double_backward(*cotangents, own_dy, saved)
        return *whole, local.dgamma, nbnorm.batch_norm_jvp(*cotangents, saved)

    ddy, dx, dgamma, local, tangent = zip(*ranks.work_of(ranks.run(len(sizes), work)), strict=True)
    running = (state.running_mean, state.running_var) if use_running else None
    for one in (dgamma[2].get(), sum(part.get() for part in local)):
        found = joined(ddy), joined(dx), one
        assert_derivatives(
            found, joined(tangent), ddx, *of_parameters, dy, x, state, 1, running, w, in_single=True
        )  # fmt: skip
