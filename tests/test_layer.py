"""The layer does what the functions do."""

import copy
import inspect
import pickle

import numpy as np
import pytest
import reference
from common import random_state, same_bits, sample, snapshot
from tolerance import assert_close, assert_stat_close

import nbnorm
from nbnorm import _names


def batches(rng):
    return [rng.normal(2, 3, (20, 5, 4)).astype(np.float32) for _ in range(3)]


def test_the_layer_equals_the_functions(rng):
    bn, state = nbnorm.BatchNorm(5, momentum=0.3), nbnorm.BatchNormState(5, momentum=0.3)
    for x in batches(rng):
        y, saved = nbnorm.batch_norm_training(x, state)
        gradients = nbnorm.batch_norm_backward(x, saved)
        assert bn(x).tobytes() == y.tobytes()
        assert bn.backward(x).tobytes() == gradients.dx.tobytes()
        assert bn.dgamma.tobytes() == gradients.dgamma.tobytes()
        assert bn.dbeta.tobytes() == gradients.dbeta.tobytes()
    assert bn.eval() is bn
    assert bn(x).tobytes() == nbnorm.batch_norm_inference(x, state).tobytes()
    assert bn.state.num_batches == 3


def test_options_reach_the_state():
    bn = nbnorm.BatchNorm((2, 3), axis=(1, 2), eps=0.1, momentum=None, use_gamma=False, dtype="float64")
    assert (bn.state.eps, bn.state.momentum, bn.state.gamma, bn.state.dtype) == (0.1, None, None, np.float64)
    assert bn(np.ones((4, 2, 3))).tolist() == np.zeros((4, 2, 3)).tolist()
    assert bn.backward(np.ones((4, 2, 3))).shape == (4, 2, 3)
    assert bn.dgamma is None
    assert bn.dbeta.tolist() == [[4.0] * 3] * 2
    for name, array in {"use_gamma": "gamma", "use_beta": "beta", "track_running": "running_mean"}.items():
        assert getattr(nbnorm.BatchNorm(3, **{name: False}).state, array) is None


def test_train_and_eval_switch_the_mode(rng):
    bn = nbnorm.BatchNorm(5)
    assert bn.training
    assert not bn.eval().training
    bn(batches(rng)[0])
    assert bn.state.num_batches == 0
    assert bn.train().training
    bn(batches(rng)[0])
    assert bn.state.num_batches == 1


def calls_of(bn, x):
    """Every kind of call of a layer: training, frozen, inference."""
    yield bn.train()(x)
    bn.frozen = True
    yield bn(x)
    yield bn.eval()(x)


@pytest.mark.float32_by_default("test_gradients.py has frozen statistics of every dtype")
def test_in_evaluation_mode_backward_gives_the_gradient_of_frozen_statistics(dtype, rng):
    x, dy = (sample(rng, (20, 5, 4), dtype) for _ in range(2))
    bn = nbnorm.BatchNorm.from_state(random_state(rng, 5)).eval()
    before, state = snapshot(bn.state), bn.state
    assert same_bits(bn(x), nbnorm.batch_norm_inference(x, state))
    dx = bn.backward(dy)
    exact = reference.frozen_backward(dy, x, state.running_mean, state.running_var, state.gamma, state.eps)
    assert_stat_close(bn.dgamma, exact.dgamma)
    assert_stat_close(bn.dbeta, exact.dbeta)
    _, saved = nbnorm.batch_norm_training(x, state, use_running=True, update_running=False)
    expected = nbnorm.batch_norm_backward(dy, saved)
    assert all(same_bits(a, b) for a, b in zip((dx, bn.dgamma, bn.dbeta), expected, strict=True))
    assert snapshot(state) == before


@pytest.mark.parametrize("axis", [-1, 0, (0, 2)])
@pytest.mark.parametrize("length", [1, 3, 100])
def test_in_evaluation_mode_for_every_layout(axis, length, rng):
    x, dy = sample(rng, (2, length, 5, 70)), sample(rng, (2, length, 5, 70))
    bn = nbnorm.BatchNorm.from_state(random_state(rng, {-1: 70, 0: 2, (0, 2): (2, 5)}[axis]), axis=axis).eval()
    _, saved = nbnorm.batch_norm_training(x, bn.state, axis=axis, use_running=True, update_running=False)
    expected = nbnorm.batch_norm_backward(dy, saved)
    bn(x)
    found = bn.backward(dy), bn.dgamma, bn.dbeta
    assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True))


KEPT = {  # what makes a call in evaluation mode keep what it has used of the state
    "residual": lambda x: {"residual": np.ones_like(x)},
    "where": lambda x: {"where": np.ones(x.shape, bool)},
    "weights": lambda x: {"weights": np.ones(x.shape)},
    "nan": lambda x: {"nan": "omit"},
    "sync": lambda x: {"sync": lambda packed: packed[None]},
}


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("options", [lambda x: {}, *KEPT.values()], ids=["none", *KEPT])
def test_which_statistics_the_gradient_in_evaluation_mode_is_of(options, debug, rng):
    """A plain call keeps x alone, for speed; every other one the statistics and gamma that it has used."""
    x, dy = sample(rng, (20, 5, 4)), sample(rng, (20, 5, 4))
    bn = nbnorm.BatchNorm.from_state(random_state(rng, 5)).eval()
    then = copy.deepcopy(bn.state)
    bn.debug, options = debug, options(x)
    bn(x, **options)
    bn.state.running_mean, bn.state.running_var = rng.normal(size=5), rng.uniform(1, 2, 5)
    bn.state.gamma, bn.state.eps = rng.normal(size=5), 0.5
    if debug and not options:
        with pytest.raises(RuntimeError, match=r"^state\.gamma has changed since the call"):
            bn.backward(dy)
        return
    state = then if options else bn.state
    dx = bn.backward(dy)
    exact = reference.frozen_backward(dy, x, state.running_mean, state.running_var, state.gamma, state.eps)
    assert_stat_close(bn.dgamma, exact.dgamma)
    assert_stat_close(bn.dbeta, exact.dbeta)
    assert_close(dx, exact.dx, terms=exact.terms)


@pytest.mark.parametrize("name", ["x", "where", "weights"])
def test_debug_notices_in_evaluation_mode_what_such_a_call_keeps(name, rng):
    bn, x = nbnorm.BatchNorm.from_state(random_state(rng, 5)).eval(), sample(rng, (20, 5))
    given = {"where": np.ones(x.shape, bool), "weights": np.ones(x.shape)}
    bn.debug = True
    bn(x, **given)
    {"x": x, **given}[name][3, 2] = 0
    with pytest.raises(RuntimeError, match=f"^{name} has changed since the call"):
        bn.backward(x)


def test_an_empty_batch_in_evaluation_mode():
    bn = nbnorm.BatchNorm(2).eval()
    bn(np.ones((0, 2)))
    assert (bn.backward(np.ones((0, 2))).shape, bn.dgamma.tolist(), bn.dbeta.tolist()) == ((0, 2), [0, 0], [0, 0])


def test_frozen_training_uses_and_keeps_the_running_statistics(rng):
    x, dy = sample(rng, (20, 5, 4)), sample(rng, (20, 5, 4))
    bn = nbnorm.BatchNorm.from_state(random_state(rng, 5))
    bn.frozen = True
    before = snapshot(bn.state)
    assert bn.train().training
    assert same_bits(bn(x), nbnorm.batch_norm_inference(x, bn.state))
    dx = bn.backward(dy)
    assert snapshot(bn.state) == before
    assert "frozen=True" in repr(bn)
    bn.eval()(x)
    assert same_bits(bn.backward(dy), dx)


def test_each_call_has_one_backward(rng):
    bn = nbnorm.BatchNorm(5)
    a, b = batches(rng)[:2]
    with pytest.raises(RuntimeError, match="backward belongs to a call of the layer before it"):
        bn.backward(a)
    bn(a)
    bn(b)
    bn.backward(b)
    kept = bn.dgamma
    with pytest.raises(RuntimeError, match=r"batch_norm_backward\(dy, saved\)") as caught:
        bn.backward(a)
    assert len(str(caught.value)) < 200
    assert bn.dgamma is kept
    for _ in calls_of(bn, a):
        bn.backward(a)
        with pytest.raises(RuntimeError):
            bn.backward(a)


@pytest.mark.parametrize("options", [{}, {"nan": "omit"}])
def test_a_look_in_evaluation_mode_does_not_take_the_place_of_a_step(options, rng):
    """Its gradient would be that of other data and of constant statistics."""
    bn, (a, b) = nbnorm.BatchNorm(5), batches(rng)[:2]
    bn(a)
    bn.eval()(b, **options)
    bn.train()
    with pytest.raises(RuntimeError, match="the last call, which was in evaluation mode") as caught:
        bn.backward(a)
    assert len(str(caught.value)) < 200
    _, saved = nbnorm.batch_norm_training(b, bn.state, use_running=True, update_running=False, **options)
    assert same_bits(bn.eval().backward(a), nbnorm.batch_norm_backward(a, saved).dx)
    bn.train()(a)
    bn.eval()  # the other way round it is the gradient of the step
    _, saved = nbnorm.batch_norm_training(a, bn.state, update_running=False)
    assert same_bits(bn.backward(b), nbnorm.batch_norm_backward(b, saved).dx)


def test_a_call_that_fails_leaves_the_layer_as_it_was(rng):
    x, dy = sample(rng, (20, 5)), sample(rng, (20, 5))
    for mode in (True, False):
        bn = nbnorm.BatchNorm(5).train(mode)
        bn(x)
        for wrong in (lambda bn=bn: bn(x[:, :3]), lambda bn=bn: bn.backward(dy[:3]), lambda bn=bn: bn(x, sync=1)):
            with pytest.raises((TypeError, ValueError)):
                wrong()
        assert bn.backward(dy).shape == x.shape


def test_out_sync_and_param_grads_are_passed_on(rng):
    x, dy = sample(rng, (20, 5)), sample(rng, (20, 5))
    bn, state = nbnorm.BatchNorm(5), nbnorm.BatchNormState(5)
    messages = []

    def twice(packed):
        messages.append(packed.size)
        return np.stack([packed, packed])

    y, saved = nbnorm.batch_norm_training(x, state, sync=twice)
    expected = nbnorm.batch_norm_backward(dy, saved, param_grads="global")
    out = np.empty_like(x)
    assert bn(x, sync=twice, out=out) is out
    assert same_bits(out, y)
    assert bn.backward(dy, param_grads="global", out=out) is out
    assert all(same_bits(a, b) for a, b in zip((out, bn.dgamma, bn.dbeta), expected, strict=True))
    assert messages == messages[:3] * 2
    bn.eval()(x, sync=twice)
    bn.backward(dy, param_grads="global")
    assert_stat_close(bn.dbeta, 2 * reference.wide(dy).sum(0))


@pytest.mark.parametrize("mode", ["training", "frozen", "evaluation"])
def test_that_values_are_missing_is_passed_on(mode, rng):
    x, dy, keep = sample(rng, (20, 5, 4)), sample(rng, (20, 5, 4)), mode != "training"
    x[rng.random(x.shape) < 0.2] = np.nan
    bn = nbnorm.BatchNorm.from_state(random_state(rng, 5)).train(mode != "evaluation")
    bn.frozen = mode == "frozen"
    y, saved = nbnorm.batch_norm_training(
        x, copy.deepcopy(bn.state), nan="omit", use_running=keep, update_running=not keep
    )
    expected = nbnorm.batch_norm_backward(dy, saved)
    assert same_bits(bn(x, nan="omit"), y)
    found = bn.backward(dy), bn.dgamma, bn.dbeta
    assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True))
    assert np.isfinite(bn.dgamma).all()


def test_inference_in_place_leaves_nothing_for_backward(rng):
    x, other = sample(rng, (20, 5)), np.empty((20, 5), np.float32)
    bn = nbnorm.BatchNorm.from_state(random_state(rng, 5)).eval()
    expected = bn(x)
    assert bn(x, out=other) is other
    bn.backward(x)
    assert bn(x, out=x) is x
    assert same_bits(x, expected)
    with pytest.raises(RuntimeError, match="not with out=x"):
        bn.backward(x)


def test_debug_notices_what_changes_between_a_call_and_its_backward(rng):
    bn = nbnorm.BatchNorm(5)
    bn.debug = True
    for training, name, change in (
        (True, "x", lambda x: np.maximum(x, 0, out=x)),
        (True, "x", lambda x: x.__setitem__((3, 2), 7)),
        (False, "x", lambda x: x.__setitem__((3, 2), 7)),
        (False, r"state\.gamma", lambda x: bn.state.gamma.__imul__(2)),
        (False, r"state\.beta", lambda x: bn.state.beta.__isub__(2)),
        (False, r"state\.eps", lambda x: setattr(bn.state, "eps", 2 * bn.state.eps)),
        (False, r"state\.running_mean", lambda x: bn.state.update(nbnorm.batch_stats(x))),
        (
            False,
            r"state\.gamma",
            lambda x: setattr(bn, "state", nbnorm.BatchNormState(5, use_beta=False)),
        ),
    ):
        x = sample(rng, (20, 5))
        x[0, 0] = np.nan
        bn.train(training)(x)
        bn.backward(x)  # nothing has changed
        bn(x)
        change(x)
        with pytest.raises(RuntimeError, match=f"^{name} has changed since the call") as caught:
            bn.backward(x)
        assert len(str(caught.value)) < 200
    bn.debug = False
    bn(x)
    x[...] = 1
    bn.backward(x)


WRONG_NAMES = {
    "gamma": "state.gamma", "weight": "state.gamma", "bias": "state.beta", "running_mean": "state.running_mean",
    "moving_variance": "state.running_var", "momentum": "state.momentum", "eps": "state.eps", "epsilon": "state.eps",
    "trainning": "training", "trainable": "frozen", "num_features": "state.num_features", "foo": "'foo'",
    "forward": "bn(x)", "parameters": "state.gamma and state.beta", "reset_running_stats": "state.reset_running",
    "reset_running": "state.reset_running", "affine": "state.gamma and state.beta",
    "track_running_stats": "state.running_mean",
}  # fmt: skip
WRONG_NAMES_OF_STATE = {
    "weight": "gamma", "bias": "beta", "moving_mean": "running_mean", "epsilon": "eps", "momentun": "momentum",
    "num_batches_tracked": "num_batches", "foo": "'foo'", "forward": "batch_norm_training(x, state)",
    "parameters": "gamma and beta", "reset_running_stats": "reset_running", "affine": "gamma and beta",
    "track_running_stats": "running_mean",
}  # fmt: skip


@pytest.mark.parametrize(
    ("one", "name", "right"),
    [(nbnorm.BatchNorm(3), *pair) for pair in WRONG_NAMES.items()]
    + [(nbnorm.BatchNormState(3), *pair) for pair in WRONG_NAMES_OF_STATE.items()],
)
def test_an_unknown_attribute_names_the_right_one(one, name, right):
    before = dict(vars(one))
    with pytest.raises(AttributeError) as caught:
        setattr(one, name, 1)
    assert right in str(caught.value)
    assert len(str(caught.value)) < 200
    assert vars(one).keys() == before.keys()
    with pytest.raises(AttributeError) as caught:
        getattr(one, name)
    known = _names.OF_LAYER if isinstance(one, nbnorm.BatchNorm) else _names.OF_STATE  # of others Python knows nothing
    assert (right if name in known else repr(name)) in str(caught.value)


X, KERAS, FLAX = np.ones((4, 3)), [np.ones(3)] * 4, ({}, {"mean": np.ones(3), "var": np.ones(3)})
TAKEN = {  # what is called, and the foreign keywords with what the error says of them
    "layer": (lambda **a: nbnorm.BatchNorm(3, **a), nbnorm.BatchNorm, {
        "epsilon": "eps=", "affine": "use_gamma= and use_beta=", "track_running_stats": "track_running=",
        "scale": "use_gamma=", "center": "use_beta=", "use_scale": "use_gamma=", "use_bias": "use_beta=",
        "bias": "use_beta=", "decay": "momentum=1 - decay", "training": "eval()", "trainable": "frozen",
        "use_running_average": "eval()", "data_format": "axis=-1",
        "momentun": "there is momentum", "foo": "'foo'", "sel": "'sel'",
    }),
    "layer of": (lambda **a: nbnorm.BatchNorm(**a or {"num_features": 3}), None, {"num_channels": "num_features"}),
    "state": (lambda **a: nbnorm.BatchNormState(3, **a), nbnorm.BatchNormState, {
        "epsilon": "eps=", "affine": "use_gamma= and use_beta=", "center": "use_beta=", "f" * 300: "fff",
    }),
    "like": (lambda **a: nbnorm.BatchNormState.like("keras", 3, **a), None, {"epsilon": "eps="}),
    "call": (lambda **a: nbnorm.BatchNorm(3)(X, **a), nbnorm.BatchNorm.__call__, {
        "training": "bn.train() and bn.eval()", "mask": "where=", "use_running_average": "eval()",
        "use_running": "frozen", "wheree": "there is where",
    }),
    "Keras": (lambda **a: nbnorm.exchange.from_keras(KERAS, **a), nbnorm.exchange.from_keras, {"epsilon": "eps="}),
    "Flax": (lambda **a: nbnorm.exchange.from_flax(*FLAX, **a), nbnorm.exchange.from_flax, {"epsilon": "eps="}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("call", "name", "right"),
    [(call, *pair) for call, _, names in TAKEN.values() for pair in names.items()],
    ids=[f"{what} {name:.20}" for what, (_, _, names) in TAKEN.items() for name in names],
)
def test_an_unknown_keyword_names_the_right_one(call, name, right):
    with pytest.raises(TypeError, match=r"got an unexpected keyword argument") as caught:
        call(**{name: 1})
    assert right in str(caught.value)
    assert len(str(caught.value)) < 200
    call()


def test_a_call_with_an_unknown_keyword_leaves_the_layer_as_it_was(rng):
    bn, x = nbnorm.BatchNorm(3), rng.normal(size=(8, 3))
    bn(x)
    before = snapshot(bn.state)
    with pytest.raises(TypeError, match="training"):
        bn(x + 1, training=False)
    assert snapshot(bn.state) == before
    assert same_bits(bn.backward(x), nbnorm.BatchNorm.backward(layer_after(x), x))


def layer_after(x):
    bn = nbnorm.BatchNorm(3)
    bn(x)
    return bn


@pytest.mark.parametrize("shown", [shown for _, shown, _ in TAKEN.values() if shown is not None])
def test_signatures_show_what_is_taken(shown):
    parameters = inspect.signature(shown).parameters
    assert {"eps", "residual"} & parameters.keys()
    assert {one.kind for one in parameters.values()} <= {inspect._POSITIONAL_OR_KEYWORD, inspect._KEYWORD_ONLY}


@pytest.mark.parametrize("one", [nbnorm.BatchNorm(3), nbnorm.BatchNormState(3)], ids=lambda one: type(one).__name__)
def test_what_is_listed_is_there(one):
    listed = [name for name in dir(one) if not name.startswith("__")]
    assert {"save", "state" if isinstance(one, nbnorm.BatchNorm) else "gamma"} < set(listed)
    assert [name for name in listed if not hasattr(one, name)] == []


WRONG_VALUES = {
    "axis": ["c", [1], 1.0, (), (1, None), True], "activation": ["gelu", ("leaky_relu", 2)], "ghost": [0, 2.0, True],
    "renorm": [nbnorm.Renorm, (3, 5)], "state": [None, nbnorm.BatchNorm(3)], "training": ["no", None], "frozen": [2],
    "debug": ["yes"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, one) for name, values in WRONG_VALUES.items() for one in values])
def test_an_attribute_must_be_what_the_constructor_takes(name, value, rng):
    bn, x = nbnorm.BatchNorm(3), rng.normal(size=(8, 3))
    before, y = dict(vars(bn)), bn(x).tobytes()
    with pytest.raises((TypeError, ValueError), match=name if value != ("leaky_relu", 2) else "leaky_relu") as caught:
        setattr(bn, name, value)
    assert len(str(caught.value)) < 200
    assert {key: vars(bn)[key] for key in before} == before
    assert bn(x).tobytes() == y


def test_a_right_value_is_what_the_constructor_makes_of_it():
    bn = nbnorm.BatchNorm(3)
    bn.ghost, bn.axis, bn.renorm, bn.activation = np.int64(4), (1,), nbnorm.Renorm(3, 5), ("leaky_relu", 0.1)
    made = nbnorm.BatchNorm(3, axis=(1,), ghost=np.int64(4), renorm=nbnorm.Renorm(3, 5), activation=("leaky_relu", 0.1))
    assert repr(bn) == repr(made)
    assert type(bn.ghost) is type(made.ghost) is int
    bn.ghost = bn.renorm = bn.activation = None
    assert (bn.ghost, bn.renorm, bn.activation) == (None, None, None)


def test_subclasses_have_attributes_of_their_own_and_none_that_misleads():
    class Layer(nbnorm.BatchNorm):
        pass

    class State(nbnorm.BatchNormState):
        pass

    for one in (Layer(2), State(2)):
        one.label = "bn1"
        assert not hasattr(one, "weight")
        assert copy.deepcopy(one).label == "bn1"
        with pytest.raises(AttributeError, match="gamma"):
            one.weight = 1


def test_what_a_subclass_has_of_its_own_stands(rng, tmp_path):
    class Layer(nbnorm.BatchNorm):
        activation, ghost, renorm = "relu", 2, nbnorm.Renorm(3, 5)

    x = rng.normal(size=(8, 3))
    own = {"activation": "relu", "ghost": 2, "renorm": nbnorm.Renorm(3, 5)}
    expected, _ = nbnorm.batch_norm_training(x, nbnorm.BatchNormState(3), **own)
    nbnorm.BatchNormState(3).save(tmp_path / "state.npz")
    for bn in (Layer(3), Layer.from_state(nbnorm.BatchNormState(3)), Layer.load(tmp_path / "state.npz")):
        assert {name: getattr(bn, name) for name in own} == own
        assert same_bits(bn(x), expected)
    said = {"activation": ("leaky_relu", 0.5), "ghost": 4, "renorm": nbnorm.Renorm(2, 1)}
    bn = Layer(3, **said)
    assert same_bits(bn(x), nbnorm.batch_norm_training(x, nbnorm.BatchNormState(3), **said)[0])
    for name in own:
        setattr(bn, name, None)
    assert same_bits(bn(x), nbnorm.batch_norm_training(x, nbnorm.BatchNormState(3))[0])


def test_what_a_subclass_says_of_attributes_stands():
    class Layer(nbnorm.BatchNorm):
        renorm = nbnorm.Renorm(3, 5)

        @property
        def weight(self):
            return self.state.gamma

        @property
        def axis(self):
            return self._axis

        @axis.setter
        def axis(self, value):
            self._axis = {"last": -1}.get(value, value)

        @property
        def state(self):
            return self._state

        @state.setter
        def state(self, state):
            self._state, self.label = state, self.axis

    for bn in (Layer(3, axis="last"), Layer.from_state(nbnorm.BatchNormState(3), axis="last")):
        assert (bn.axis, bn.label, bn.renorm) == (-1, -1, nbnorm.Renorm(3, 5))
        assert bn.weight is bn.state.gamma
        assert "weight" in dir(bn)
        assert "bias" not in dir(bn)


def test_a_layer_of_a_state_and_of_a_file(rng, tmp_path):
    state = random_state(rng, 5)
    bn = nbnorm.BatchNorm.from_state(state, axis=-1)
    assert (bn.state, bn.axis, bn.training, bn.frozen, bn.dgamma) == (state, -1, True, False, None)
    assert {key: a.tobytes() for key, a in bn.state_dict().items()} == {
        key: a.tobytes() for key, a in state.state_dict().items()
    }
    bn.save(tmp_path / "layer.npz")
    again = nbnorm.BatchNorm.load(tmp_path / "layer.npz", axis=-1)
    assert (snapshot(again.state), again.axis) == (snapshot(state), -1)
    x = sample(rng, (4, 3, 5), axis=-1)
    assert same_bits(again.eval()(x), nbnorm.batch_norm_inference(x, state, axis=-1))
    beside = {"activation": "relu", "ghost": 2, "renorm": nbnorm.Renorm(2, 1)}
    for layer in nbnorm.BatchNorm.load(tmp_path / "layer.npz", **beside), nbnorm.BatchNorm.from_state(state, **beside):
        assert {name: getattr(layer, name) for name in beside} == beside
        with pytest.raises(ValueError, match="activation is 'gelu'"):
            nbnorm.BatchNorm.from_state(state, activation="gelu")
    for wrong in (state.state_dict(), bn, None):
        with pytest.raises(TypeError, match=r"state is a .* expected a nbnorm\.BatchNormState"):
            nbnorm.BatchNorm.from_state(wrong)


def assigned(momentum):
    state = nbnorm.BatchNormState(3)
    state.momentum = momentum
    return state


FOREIGN_MOMENTUM = {
    "layer": lambda momentum: nbnorm.BatchNorm(3, momentum=momentum).state,
    "state": lambda momentum: nbnorm.BatchNormState(3, momentum=momentum),
    "like": lambda momentum: nbnorm.BatchNormState.like("keras", 3, momentum=momentum),
    "dictionary": lambda momentum: nbnorm.BatchNormState.from_state_dict({"weight": [1.0]}, momentum=momentum),
    "assigned": assigned,
}


@pytest.mark.parametrize("momentum", [0.9, 0.99, 0.999])
@pytest.mark.parametrize("made", FOREIGN_MOMENTUM.values(), ids=FOREIGN_MOMENTUM)
def test_the_momentum_of_keras_is_questioned(made, momentum, tmp_path):
    with pytest.warns(UserWarning, match=rf"weight of the new batch.*mean momentum={1 - momentum:.2g} here") as caught:
        state = made(momentum)
    assert (len(caught), caught[0].filename) == (1, __file__)
    assert len(str(caught[0].message)) < 200
    copy.deepcopy(state)  # no second warning, which would be an error here
    state.save(tmp_path / "state.npz")
    assert nbnorm.BatchNorm.load(tmp_path / "state.npz").state.momentum == momentum


@pytest.mark.parametrize("momentum", [None, 0, 0.1, 0.89, 1, 1.0])
@pytest.mark.parametrize("made", FOREIGN_MOMENTUM.values(), ids=FOREIGN_MOMENTUM)
def test_every_other_momentum_is_not(made, momentum):
    assert made(momentum).momentum == momentum


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda bn: pickle.loads(pickle.dumps(bn))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies_are_independent(duplicate, rng):
    bn, x = nbnorm.BatchNorm(5), batches(rng)[0]
    bn(x)
    other = duplicate(bn)
    other(x)
    assert (bn.state.num_batches, other.state.num_batches) == (1, 2)
    assert repr(other) == repr(bn).replace("num_batches=1", "num_batches=2")
    with pytest.raises(RuntimeError):
        duplicate(bn).backward(x)


def test_the_layer_skips_batches_that_are_not_finite():
    layer = nbnorm.BatchNorm(2, skip_nonfinite=True)
    layer(np.full((4, 2), np.nan, np.float32))
    assert (layer.state.num_skipped, layer.state.num_batches, layer.state.running_mean.tolist()) == (1, 0, [0, 0])
