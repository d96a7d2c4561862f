"""What is refused: the exception, what its message says, and that a call that fails changes nothing.

`given` (conftest.py) are arguments that fit, `refuse` (common.py) compares every byte before and after.
"""

import re
import sys

import numpy as np
import pytest
from common import random_state, refuse, same_bits, snapshot

import nbnorm
from nbnorm import batch_norm_backward as backward
from nbnorm import batch_norm_inference as inference
from nbnorm import batch_norm_training as training
from nbnorm import batch_stats

SHAPE = (8, 3, 6)

# ---- x and dy

X_CALLS = {
    "training": lambda given, x: training(x, given.state, out=given.out),
    "inference": lambda given, x: inference(x, given.state, out=given.out),
    "stats": lambda given, x: batch_stats(x),
}
every_x_call = pytest.mark.parametrize("call", X_CALLS.values(), ids=X_CALLS)


def of_package(module, **attributes):
    """An array of a package that need not be there."""
    return type("Array", (), {"__module__": module, **attributes})()


NO_ARRAYS = {
    "list": ([[1.0, 2.0], [3.0, 4.0]], "pass np.asarray({})"),
    "tuple": (((1.0, 2.0), (3.0, 4.0)), ".asarray"),
    "float": (1.5, ".asarray"),
    "NumPy scalar": (np.float32(1.5), ".asarray"),
    "None": (None, "NoneType"),
    "torch": (of_package("torch"), "pass {}.detach().numpy()"),
    "torch.bfloat16": (of_package("torch", dtype="torch.bfloat16"), "pass {}.detach().float().numpy()"),
    "jax": (of_package("jaxlib._jax"), "pass np.asarray({})"),
    "jax.jit": (of_package("jax._src.interpreters.partial_eval"), "outside of jax.jit"),
    "Dask": (of_package("dask.array.core"), "use nbnorm.parallel.dask, or pass {}.compute()"),
    "DataFrame": (of_package("pandas.core.frame"), "pass {}.to_numpy()"),
    "polars": (of_package("polars.dataframe.frame"), "pass {}.to_numpy()"),
    "xarray": (of_package("xarray.core.dataarray"), "pass .to_numpy() of a DataArray, or see nbnorm.xarray"),
    "sparse matrix": (of_package("scipy.sparse._csr"), "pass {}.toarray()"),
    "sparse matrix of a GPU": (of_package("cupyx.scipy.sparse._csr"), "pass {}.toarray()"),
    "pydata sparse": (of_package("sparse.numba_backend._coo.core"), "pass {}.todense()"),
    "masked array": (np.ma.masked_array(np.zeros(SHAPE, np.float32), False), "masked"),
    "matrix": (np.zeros((3, 3), np.float32).view(np.matrix), "asarray"),
}
BAD_DTYPES = {
    **dict.fromkeys(["bool", "int8", "uint8", "int16", "uint16", ">i2"], "float32"),
    **dict.fromkeys(["int32", "uint32", "int64", "uint64", ">i4", "longdouble"], "float64"),
    **dict.fromkeys(["datetime64[s]", "timedelta64[s]", "object"], "float64"),
    **dict.fromkeys(["complex64", "complex128", "U3", "S3", "f4,f4", "T"], None),
}


@every_x_call
@pytest.mark.parametrize(("x", "way_out"), NO_ARRAYS.values(), ids=NO_ARRAYS)
def test_x_must_be_an_array(given, call, x, way_out):
    refuse(given, lambda: call(given, x), TypeError, "x is a", way_out.format("x"))


def test_of_none_no_array_is_made(given):
    with pytest.raises(TypeError, match=r"^x is a builtins\.NoneType; expected a numpy\.ndarray$"):
        nbnorm.batch_norm_inference(None, given.state)


@pytest.mark.parametrize(("dy", "way_out"), NO_ARRAYS.values(), ids=NO_ARRAYS)
def test_dy_must_be_an_array(given, dy, way_out):
    refuse(given, lambda: backward(dy, given.saved, out=given.out), TypeError, "dy is a", way_out.format("dy"))


def dtype_message(name, dtype, wider):
    expected = "float16, bfloat16, float32 or float64"
    conversion = f" ({name}.astype(np.{wider}) converts)" if wider else ""
    return f"{name} has dtype {dtype}; expected {expected}{conversion}"


@every_x_call
@pytest.mark.parametrize(("name", "wider"), BAD_DTYPES.items())
def test_x_must_be_floating(given, call, name, wider):
    x = np.zeros(SHAPE, name)
    message = dtype_message("x", x.dtype, wider)
    refuse(given, lambda: call(given, x), TypeError, message)
    with pytest.raises(TypeError, match=re.escape(message) + "$"):  # and nothing behind it
        call(given, x)
    if wider:
        call(given, x.astype(wider).astype(np.float32))


@pytest.mark.parametrize(("name", "wider"), BAD_DTYPES.items())
def test_dy_must_be_floating(given, name, wider):
    dy = np.zeros(SHAPE, name)
    refuse(given, lambda: backward(dy, given.saved), TypeError, dtype_message("dy", dy.dtype, wider))


@pytest.mark.parametrize("name", [name for name, wider in BAD_DTYPES.items() if wider and "longdouble" not in name])
def test_the_advice_loses_nothing(name):
    """Of what is no number of more than 53 bits."""
    dtype = np.dtype(name)
    if dtype.kind in "iu" and dtype.itemsize < 8:
        ends = np.array([np.iinfo(dtype).min, np.iinfo(dtype).max], dtype)
        assert ends.astype(BAD_DTYPES[name]).astype(object).tolist() == ends.tolist()
    else:
        assert np.ones(2, dtype).astype(BAD_DTYPES[name]).tolist() == [1, 1]


@every_x_call
@pytest.mark.parametrize("shape", [(), (5,)])
def test_x_must_have_two_dimensions(given, call, shape):
    refuse(
        given,
        lambda: call(given, np.zeros(shape)),
        ValueError,
        f"x is {len(shape)}-D (x.shape={shape})",
        "at least 2-D",
    )


@pytest.mark.parametrize(
    ("x", "texts"),
    [
        (np.zeros((8, 4, 6), np.float32),
         ["x has 4 channels on axis 1 (x.shape=(8, 4, 6)), but the state has 3 features"]),
        (np.zeros((8, 0, 6), np.float32), ["x has 0 channels", "3 features"]),
        (np.zeros((2, 28, 28, 3), np.float32),
         ["x has 28 channels on axis 1 (x.shape=(2, 28, 28, 3)), but the state has 3 features; axis=-1 would fit"]),
        (np.zeros((2, 4, *[1] * 62)), ["x has 4 channels", "3 features"]),
    ],
    ids=["4 channels", "no channels", "channels last", "64 dimensions"],
)  # fmt: skip
def test_x_must_have_the_channels_of_the_state(given, x, texts):
    for call in (training, inference):
        refuse(given, lambda call=call: call(x, given.state), ValueError, *texts)


def test_another_axis_is_named_only_where_it_fits(given):
    for reduced in ((0, 2), (0, -1)):  # as NumPy would be told
        with pytest.raises(ValueError, match=r"3 features; axis=1 would fit$"):
            training(given.x, given.state, axis=reduced)
    with pytest.raises(ValueError, match=r"3 features; axis=1 would fit$"):
        inference(given.x, given.state, axis=-1)
    for x, axis in ((given.x[:, :2], 1), (given.x, (1, 2))):
        with pytest.raises(ValueError, match=r"3 features$"):
            inference(x, given.state, axis=axis)


def test_the_shape_of_several_channel_axes_must_be_that_of_the_state(given, rng):
    given.state = random_state(rng, (3, 6))
    for axis in ((2, 1), 1, (1,), (0, 1, 2)):
        refuse(given, lambda a=axis: training(given.x, given.state, axis=a), ValueError, "(3, 6) features")
        refuse(given, lambda a=axis: inference(given.x, given.state, axis=a), ValueError, "(3, 6) features")


OUT_OF_RANGE = np.exceptions.AxisError
AXES = {
    "3": (3, OUT_OF_RANGE), "-4": (-4, OUT_OF_RANGE), "huge": (10**30, OUT_OF_RANGE),
    "one of them": ((1, 7), OUT_OF_RANGE), "twice": ((1, 1), ValueError), "twice, too": ((1, -2), ValueError),
    "float": (1.0, TypeError), "str": ("1", TypeError), "None": (None, TypeError), "list": ([1], TypeError),
    "no axis": ((), TypeError), "tuple of float": ((1, 2.0), TypeError), "long": ((1.0,) * 300, TypeError),
    "long repeated": ((1,) * 300, ValueError),
}  # fmt: skip


@pytest.mark.parametrize(("axis", "error"), AXES.values(), ids=AXES)
def test_axis_must_fit_x(given, axis, error):
    for call in (
        lambda: training(given.x, given.state, axis=axis),
        lambda: inference(given.x, given.state, axis=axis),
        lambda: batch_stats(given.x, axis=axis),
    ):
        refuse(given, call, error, "axis")


def test_true_is_no_axis_beside_1(given):
    """Which is the same key of a dictionary."""
    for call in (training, inference):
        call(given.x, given.state, axis=1)
        refuse(given, lambda call=call: call(given.x, given.state, axis=True), TypeError, "axis")


def test_an_axis_out_of_range_is_a_value_error_as_well():
    assert issubclass(np.exceptions.AxisError, ValueError)


@pytest.mark.parametrize("shape", [(8, 3, 5), (8, 3), (8, 6, 3), (1, 3, 6), (0, 3, 6), (8 * 3 * 6,), ()], ids=str)
def test_dy_must_have_the_shape_of_x(given, shape):
    dy = np.zeros(shape, np.float32)
    refuse(given, lambda: backward(dy, given.saved), ValueError, "dy", str(shape), "(8, 3, 6)")


@pytest.mark.parametrize("name", ["float16", "float64"])
def test_dy_must_have_the_dtype_of_x(given, name):
    refuse(given, lambda: backward(np.zeros(SHAPE, name), given.saved), TypeError, "dy", name, "float32")


# ---- state and saved


def test_state_and_saved_must_be_ours(given):
    for state in (None, {}, given.x, nbnorm.BatchNorm(3), nbnorm.BatchNormState, given.state.state_dict()):
        refuse(given, lambda s=state: training(given.x, s), TypeError, "state is a", "BatchNormState")
        refuse(given, lambda s=state: inference(given.x, s), TypeError, "state is a", "BatchNormState")
    for saved in (None, given.x, given.state, (given.x, given.saved)):
        refuse(given, lambda s=saved: backward(given.dy, s), TypeError, "saved is a", "batch_norm_training")


def test_running_statistics_must_exist_where_they_are_needed(given, rng):
    given.state = random_state(rng, 3, track_running=False)
    refuse(given, lambda: inference(given.x, given.state), ValueError, "track_running=False")
    refuse(given, lambda: training(given.x, given.state, use_running=True), ValueError, "track_running=False")


def test_training_needs_two_values_per_channel(given):
    one = (
        "training needs at least 2 values per channel, got 1 (x.shape=(1, 3, 1, 1)); "
        "use batch_norm_inference or bn.eval(), or use_running=True with update_running=False"
    )
    x = np.zeros((1, 3, 1, 1), np.float32)
    for update in (False, True):
        refuse(given, lambda u=update: training(x, given.state, update_running=u), ValueError, one)
    for shape in ((0, 3), (0, 3, 6), (8, 3, 0)):
        empty = np.zeros(shape, np.float32)
        refuse(
            given,
            lambda e=empty: training(e, given.state),
            ValueError,
            "at least 2 values per channel, got 0",
        )
    given.state.momentum = None
    refuse(given, lambda: training(x, given.state), ValueError, one)


def test_the_way_out_for_one_value_per_channel_works(given):
    y, _ = training(np.zeros((1, 3), np.float32), given.state, use_running=True, update_running=False)
    assert same_bits(y, inference(np.zeros((1, 3), np.float32), given.state))


def test_a_running_variance_needs_two_values_per_channel_too(given):
    for shape in ((1, 3), (0, 3), (1, 3, 1)):
        x = np.zeros(shape, np.float32)
        refuse(given, lambda x=x: training(x, given.state, use_running=True), ValueError, "update_running=False")


@pytest.mark.parametrize(
    ("name", "value"),
    [("eps", v) for v in (0, -1e-5, np.nan, np.inf, -np.inf, 10**400, np.longdouble("1e-400"))]
    + [("momentum", v) for v in (-0.1, 1.5, np.nan, np.inf)],
    ids=lambda value: str(value)[:8],
)
def test_eps_and_momentum_must_be_in_range(given, name, value):
    kept, shown = getattr(given.state, name), str(value)[:8]
    refuse(given, lambda: nbnorm.BatchNormState(3, **{name: value}), ValueError, name, shown)
    refuse(given, lambda: nbnorm.BatchNorm(3, **{name: value}), ValueError, name, shown)
    refuse(given, lambda: setattr(given.state, name, value), ValueError, name, shown)
    assert getattr(given.state, name) == kept


def test_a_number_of_more_digits_than_python_writes(given):
    refuse(given, lambda: nbnorm.BatchNormState(3, eps=10**5000), ValueError, "eps is an int of thousands of digits")


@pytest.mark.parametrize("device", ["gpu", "", None, "cuda:", "cuda:x", "cuda:-1", "cpu:0"])
def test_a_device_must_be_one_that_there_can_be(given, device):
    refuse(given, lambda: nbnorm.BatchNormState(3, device=device), ValueError, "device", "cpu")
    refuse(given, lambda: nbnorm.BatchNorm(3, device=device), ValueError, "device", "cpu")
    refuse(given, lambda: given.state.to(device), ValueError, "device", "cpu")


def test_a_gpu_without_cupy_says_what_to_install(given, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    for call in (lambda: nbnorm.BatchNormState(3, device="cuda"), lambda: given.state.to("cuda:0")):
        with pytest.raises(ImportError) as caught:
            call()
        assert ["pip install" in note for note in caught.value.__notes__] == [True]


def test_options_must_be_named(given):
    for call in (training, inference):
        refuse(given, lambda c=call: c(given.x, given.state, 1), TypeError, "positional")
    refuse(given, lambda: backward(given.dy, given.saved, given.out), TypeError, "positional")
    refuse(given, lambda: batch_stats(given.x, 1), TypeError, "positional")


@pytest.mark.parametrize("value", ["no", None, 2, np.ones(2, bool), [False]], ids=repr)
def test_a_flag_is_true_or_false(given, value):
    """Text is true whatever it says."""
    for name in ("use_running", "update_running"):
        refuse(
            given, lambda name=name: training(given.x, given.state, **{name: value}), TypeError, f"{name} is ", "False"
        )
    for name in ("use_gamma", "use_beta", "track_running", "unbiased", "skip_nonfinite"):
        with pytest.raises(TypeError, match=f"{name} is .*; expected True or False"):
            nbnorm.BatchNormState(3, **{name: value})
    with pytest.raises(TypeError, match=r"after is .*; expected True or False"):
        nbnorm.fold(np.ones((3, 3)), None, given.state, after=value)
    with pytest.raises(TypeError, match="skip_nonfinite is "):
        given.state.skip_nonfinite = value
    layer = nbnorm.BatchNorm(3)
    for name in ("training", "frozen", "debug"):
        with pytest.raises(TypeError, match=f"{name} is .*; expected True or False"):
            setattr(layer, name, value)
    with pytest.raises(TypeError, match=r"mode is .*; expected True or False"):
        layer.train(value)
    assert (layer.training, layer.frozen, layer.debug) == (True, False, False)
    for name in ("scale", "center"):
        with pytest.raises(TypeError, match=f"{name} is .*; expected True or False"):
            nbnorm.exchange.from_keras([np.ones(3)] * 4, **{name: value})
    with pytest.raises(TypeError, match=r"training is .*; expected True or False"):
        nbnorm.exchange.to_onnx(given.state, training=value)


def test_flags_may_be_numpys_and_numbers(given):
    states = []
    for true, false in ((True, False), (np.True_, np.False_), (1, 0)):
        state = nbnorm.BatchNormState(3, use_beta=false, skip_nonfinite=true)
        training(given.x, state, use_running=false, update_running=true)
        states.append((state.beta, state.skip_nonfinite, snapshot(state)))
    assert states[0] == states[1] == states[2]
