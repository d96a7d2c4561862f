"""The demo's parts: layers, gradients by layer, images that shift, and the verdicts on made-up runs."""

import numpy as np
import pytest

from nbnorm.demo import networks, report, training
from nbnorm.demo.networks import CLASSES, Dense, Dropout, Network, ReLU, Setting
from nbnorm.demo.training import BATCH, FEW, Digits, Run

RUN = Run([0.5, 0.9], False, np.zeros(1), np.zeros(1), 0.9, 1.0, 1.0, [1.0, 1.0], [1.0, 1.0])


def digits(rng, count=4 * BATCH):
    x = rng.normal(size=(2, count, 64)).astype(np.float32)
    return Digits(*x, *rng.integers(CLASSES, size=(2, count)))


def test_dropout_keeps_the_mean_and_its_gradient_is_that_of_what_it_did(rng):
    dropout = Dropout(rng)
    x = np.ones((1000, 100), np.float32)
    y = dropout(x)
    assert set(np.unique(y)) == {0, np.float32(1 / 0.7)}
    assert abs((y == 0).mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / x.size)
    np.testing.assert_array_equal(dropout.backward(x), y)
    dropout.training = False
    np.testing.assert_array_equal(dropout(x), x)
    np.testing.assert_array_equal(dropout.backward(x), x)


def test_the_norms_are_those_of_the_gradients_by_layer(rng):
    network = Network(Dense(rng, 5, 4), ReLU(), Dense(rng, 4, 3))
    first, relu, last = network.layers
    network(rng.normal(size=(7, 5)).astype(np.float32), training=True)
    dy = rng.normal(size=(7, 3)).astype(np.float32)
    of_last = dy @ last.weight.T
    of_first = (of_last * (relu.x > 0)) @ first.weight.T
    expected = [np.linalg.norm(of_first), np.linalg.norm(of_last)]
    np.testing.assert_allclose(network.backward(dy), expected, rtol=1e-6)  # float32 products in the same order


def test_shifted_images_have_another_contrast_and_brightness(rng):
    x = rng.normal(size=(BATCH, 64)).astype(np.float32)
    (factor, offset), *rest = [np.polyfit(x.ravel(), training._shifted(x, rng).ravel(), 1) for _ in range(50)]
    assert all(0.5 <= f <= 2 and -1 <= o <= 1 for f, o in [(factor, offset), *rest])
    assert np.ptp([f for f, _ in rest]) > 1
    assert np.ptp([o for _, o in rest]) > 1


@pytest.mark.parametrize(
    "setting",
    [
        Setting("multi-layer", 0.1, 1.0, normalized=True),
        Setting("multi-layer", 0.1, 1.0, normalized=False, dropout=True, few=True),
        pytest.param(
            Setting("convolutional", 0.1, 1.0, normalized=True, shifting=True),
            marks=pytest.mark.exhaustive("kernels of its own; the network of layers"),
        ),
    ],
)
def test_a_run_is_reproduced_and_has_what_the_report_needs(setting, rng):
    data = digits(rng, FEW + BATCH)
    run, again = (training.train(setting, data, epochs=1, seed=3) for _ in range(2))
    assert len(run.accuracy) == (training.FEW_EPOCHS if setting.few else 1)
    assert len(run.gradients_before) == len(run.gradients_after) == (6 if setting.network == "multi-layer" else 4)
    assert min(run.gradients_before) > 0
    assert run._replace(before=0, after=0) == again._replace(before=0, after=0)


@pytest.mark.exhaustive("the same of one step: test_activation.py")
@pytest.mark.parametrize("network", networks.NETWORKS)
def test_a_relu_in_the_normalization_and_one_behind_it_are_the_same_network(network, rng):
    data, setting = digits(rng), Setting(network, 0.1, 1.0, normalized=True)
    within, behind = (training.train(s, data, epochs=1, seed=3) for s in (setting, setting._replace(fused=False)))
    assert (within.before < 0).any()
    np.testing.assert_array_equal(within.before, behind.before)
    np.testing.assert_allclose(within.gradients_before, behind.gradients_before, rtol=1e-5)
    np.testing.assert_allclose(within.after, behind.after, rtol=1e-3, atol=1e-3)  # five steps, each rounded anew


# ---- verdicts


def results(few=RUN, few_bn=RUN, dropout=RUN, shifting=RUN, shifting_bn=RUN, small=RUN, small_bn=RUN):
    """Two seeds of everything that the last three claims look at, for one network."""
    plain = Setting("multi-layer", 0.3, 1.0, normalized=False)
    made = {plain: RUN, plain._replace(normalized=True): RUN}
    made |= {plain._replace(scale=0.1): small, plain._replace(scale=0.1, normalized=True): small_bn}
    made |= {plain._replace(few=True): few, plain._replace(few=True, normalized=True): few_bn}
    made |= {plain._replace(few=True, dropout=True): dropout}
    made |= {plain._replace(shifting=True): shifting, plain._replace(shifting=True, normalized=True): shifting_bn}
    return {setting: [run, run] for setting, run in made.items()}


def test_gradients_that_vanish_without_normalization(rng):
    vanishing, steady = (RUN._replace(gradients_before=[first, 1.0]) for first in (1e-6, 2.0))
    holds, said = report._gradients(results(small=vanishing, small_bn=steady), "multi-layer")
    assert holds
    assert said == "1 to 2 with BN, 1e-06 to 1 without"
    assert not report._gradients(results(small=steady, small_bn=vanishing), "multi-layer")[0]
    gone = RUN._replace(gradients_before=[0.0, 1.0])
    assert report._gradients(results(small=gone, small_bn=steady), "multi-layer")[0]


def test_a_gap_is_training_less_test_accuracy():
    worse = RUN._replace(accuracy=[0.5, 0.8])
    holds, said = report._regularization(results(few=worse), "multi-layer")
    assert holds
    assert said == "gap 10.0 points with BN, 20.0 without, 10.0 with dropout"
    assert not report._regularization(results(few_bn=worse), "multi-layer")[0]
    assert not report._regularization(results(), "multi-layer")[0]


def test_shifting_images_are_judged_by_inference():
    worse = RUN._replace(accuracy=[0.5, 0.4])
    assert report._shifting(results(shifting=worse), "multi-layer") == (
        True,
        "90.0 % with BN (90.0 by statistics of the batch), 40.0 without",
    )
    assert not report._shifting(results(shifting_bn=worse), "multi-layer")[0]
