import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax.attacks.linearized import deepfool
from ddjax.classifier import at_temperature
from tests.attacks import linear

compiled = jax.jit(deepfool, static_argnames=("norm", "num_candidates", "num_steps", "score_space"))


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("case", linear.CASES[1:3])
def test_deepfool_on_linear_classifier_takes_the_least_distance(case, norm):
    logits_fn, images, labels = linear.problem(*case)
    result = compiled(logits_fn, images, labels, norm=norm)
    assert result.success.all()
    distance = linear.size(np.asarray(result.inputs, np.float64) - np.asarray(images, np.float64), norm)
    wanted, _ = linear.least(logits_fn, images, labels, norm)
    assert (distance >= 0.999 * wanted - 1e-6).all()
    assert (distance <= (1.03 if norm == "l2" else 1.05) * wanted + 1e-6).all()
    np.testing.assert_array_equal(result.steps, 1)
    # One backward pass for each other class, at the image and at what was found.
    np.testing.assert_array_equal(result.gradients, 2 * (case[1] - 1))


def test_overshoot_is_a_share_of_the_distance_and_may_be_none():
    logits_fn, images, labels = linear.problem(*linear.CASES[2])
    wanted, _ = linear.least(logits_fn, images, labels, "l2")
    for overshoot in (0.0, 0.5):
        result = compiled(logits_fn, images, labels, overshoot=overshoot)
        assert result.success.all()
        distance = linear.size(result.inputs - images, "l2")
        np.testing.assert_allclose(distance, (1 + overshoot) * wanted, rtol=2e-2)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_deepfool_on_network_finds_close_adversarial_inputs_in_few_steps(network, batch, norm):
    images, labels, _ = batch
    result = compiled(network, images, labels, norm=norm)
    assert result.success.all()
    np.testing.assert_array_equal(jnp.argmax(network(result.inputs), axis=1) != labels, True)
    assert float(result.inputs.min()) >= 0
    assert float(result.inputs.max()) <= 1
    assert result.steps.max() < 20
    # The way back is not adversarial: the boundary is just behind.
    assert not (jnp.argmax(network(images + 0.8 * (result.inputs - images)), axis=1) != labels).all()


def test_few_candidates_are_the_classes_closest_in_the_clean_logits():
    logits_fn, images, labels = linear.problem(*linear.CASES[2])
    order = jnp.argsort(logits_fn(images), axis=1)
    decisions = {}
    for count, backward in ((None, 9), (1, 1), (2, 2)):
        result = compiled(logits_fn, images, labels, num_candidates=count)
        assert result.success.all()
        np.testing.assert_array_equal(result.gradients, (result.steps + 1) * backward)
        decisions[count] = jnp.argmax(result.logits, axis=1)
    _, nearest = linear.least(logits_fn, images, labels, "l2")
    np.testing.assert_array_equal(decisions[None], nearest)
    # Aimed at one class, some path may cross the boundary of another before.
    assert (decisions[1] == order[:, -2]).mean() > 0.7
    assert ((decisions[2] == order[:, -2]) | (decisions[2] == order[:, -3])).mean() > 0.7


def test_misclassified_input_is_returned_as_it_is(network, batch):
    images, labels, _ = batch
    wrong = labels.at[::2].set((labels[::2] + 1) % 4)
    result = compiled(network, images, wrong)
    np.testing.assert_array_equal(result.inputs[::2], images[::2])
    np.testing.assert_array_equal(result.steps[::2], 0)
    assert (result.steps[1::2] > 0).all()
    assert result.success.all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_equal_gradients_of_all_classes_fail_without_nan(batch, norm):
    images, _, _ = batch
    labels = jnp.zeros(len(images), jnp.int32)
    alike = jax.tree_util.Partial(lambda x: x.sum((1, 2, 3))[:, None] + jnp.array([[1.0, 0.0, 0.5]]))
    result = compiled(alike, images, labels, norm=norm)
    assert not result.success.any()
    np.testing.assert_array_equal(result.inputs, images)
    np.testing.assert_array_equal(result.steps, 0)


def test_probabilities_of_a_saturated_network_are_dead_until_its_temperature_is_undone(network, batch):
    images, labels, _ = batch
    hot = at_temperature(network, 1e-5)
    dead = compiled(hot, images, labels, score_space="probs")
    assert np.isfinite(dead.inputs).all()
    assert dead.success.mean() < 0.5
    np.testing.assert_array_equal(dead.inputs[~dead.success], images[~dead.success])
    assert compiled(at_temperature(hot, 1e5), images, labels, score_space="probs").success.all()
    assert compiled(hot, images, labels).success.all()


def test_bounds_by_channel_hold():
    logits_fn, _, _ = linear.problem(*linear.CASES[1])
    low, high = jnp.array([-2.0, 0.0, -1.0]), jnp.array([2.0, 1.0, 3.0])
    images = jax.random.uniform(jax.random.key(0), (5, 2, 3, 3), minval=low[None, None, None], maxval=high)
    labels = jnp.argmax(logits_fn(images), axis=1).astype(jnp.int32)
    moved = compiled(logits_fn, images, labels, overshoot=2.0, bounds=(low, high)).inputs
    assert bool(jnp.all((moved >= low[None, None, None]) & (moved <= high[None, None, None])))
    assert (moved != images).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": jnp.ones(24, jnp.int32)}, "deepfool takes no targets"),
        ({"norm": "l1"}, "unknown norm 'l1'; known: l2, linf"),
        ({"score_space": "odds"}, "unknown score space 'odds'; known: logits, probs"),
        ({"num_candidates": 0}, "num_candidates must be a whole number of at least 1, got 0"),
        ({"num_steps": 0}, "num_steps must be a whole number of at least 1, got 0"),
        ({"overshoot": float("nan")}, "overshoot must be a finite number at least 0, got nan"),
    ],
)
def test_bad_settings_are_refused(network, batch, settings, message):
    with pytest.raises(ValueError, match=message):
        deepfool(network, *batch[:2], **settings)
