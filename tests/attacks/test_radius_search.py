import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax.attacks.gradient_sign import fgsm
from ddjax.attacks.projected_gradient import pgd
from ddjax.attacks.radius_search import smallest_epsilon
from tests.attacks import linear


def pairwise(case):
    """Each image's label against its nearest other class: between two, cross-entropy has the slope of the margin."""
    logits_fn, images, labels = linear.problem(*case)
    radius, nearest = linear.least(logits_fn, images, labels, "linf")
    pair = jnp.stack([labels, nearest], axis=1)
    return lambda x: jnp.take_along_axis(logits_fn(x), pair, axis=1), images, jnp.zeros_like(labels), radius


@pytest.mark.parametrize("case", linear.CASES[1:3])
@pytest.mark.parametrize("highest", [0.25, 1.0])
def test_smallest_epsilon_of_fgsm_on_linear_classifier_is_the_margin_over_the_l1_norm(case, highest):
    logits_fn, images, labels, radius = pairwise(case)
    search = jax.jit(functools.partial(smallest_epsilon, fgsm, logits_fn, grid=10, bisections=10))
    result = search(images, labels, highest=highest)
    assert result.success.all()
    distance = linear.size(result.inputs - images, "linf")
    assert (distance >= radius - 1e-6).all()
    # The margin must exceed rounding, by a share of the logits.
    assert (distance <= radius + highest / 10 / 2**10 + 1e-4 * radius + 1e-5).all()
    np.testing.assert_array_equal(result.gradients, np.ceil(radius / highest * 10) + 10)


def stripe(images):
    """Class 1 only while the value lies between 0.6 and 0.7, or above 0.95; always with a slope upwards."""
    value = images[:, 0, 0, 0]
    inside = ((value > 0.6) & (value < 0.7)) | (value > 0.95)
    slope = value - jax.lax.stop_gradient(value)
    return jnp.stack([-slope, slope + jnp.where(inside, 1.0, -1.0)], axis=1)


def test_success_in_a_middle_interval_is_found_at_its_lower_end():
    images, labels = jnp.array([0.2, 0.5, 0.65, 0.1]).reshape(4, 1, 1, 1), jnp.zeros(4, jnp.int32)
    assert not fgsm(stripe, images[:2], labels[:2], epsilon=jnp.array([0.55, 0.3])).success.any()
    search = jax.jit(functools.partial(smallest_epsilon, fgsm, stripe), static_argnames=("grid", "bisections"))
    result = search(images, labels, highest=1.0)
    assert result.success.all()
    np.testing.assert_allclose(result.inputs[:, 0, 0, 0], [0.6, 0.6, 0.65, 0.6], atol=1 / 20 / 2**8 + 1e-6)
    # The third was wrong from the beginning and cost nothing.
    np.testing.assert_array_equal(result.inputs[2], images[2])
    np.testing.assert_array_equal(result.gradients[2], 0)
    none = search(images, labels, highest=0.09)
    np.testing.assert_array_equal(none.success, [False, False, True, False])
    np.testing.assert_array_equal(none.inputs, images)
    np.testing.assert_array_equal(none.gradients, [20, 20, 0, 20])
    # A grid coarser than the interval steps over it.
    coarse = search(images, labels, highest=1.0, grid=2, bisections=0)
    np.testing.assert_allclose(coarse.inputs[:2, 0, 0, 0], 1.0)


def test_each_image_has_its_own_highest_radius_and_its_own_end():
    images, labels = jnp.full((200, 1, 1, 1), 0.2), jnp.zeros(200, jnp.int32)
    highest = jnp.where(jnp.arange(200) % 50 == 0, 0.5, 0.3)
    # Large enough a batch that examples go on in smaller ones.
    result = jax.jit(lambda h: smallest_epsilon(fgsm, stripe, images, labels, highest=h, grid=10))(highest)
    np.testing.assert_array_equal(result.success, highest == 0.5)
    np.testing.assert_array_equal(result.gradients, np.where(highest == 0.5, 9 + 8, 10))


def test_random_attack_gets_each_examples_key():
    logits_fn, images, labels = linear.problem(*linear.CASES[2])
    attack = functools.partial(pgd, num_steps=10, norm="l2", loss="margin")
    search = functools.partial(smallest_epsilon, attack, logits_fn, highest=0.5, grid=8, bisections=6)
    keys = jax.random.split(jax.random.key(0), len(labels))
    whole = search(images, labels, key=keys)
    assert whole.success.all()
    radius, _ = linear.least(logits_fn, images, labels, "l2")
    distance = linear.size(whole.inputs - images, "l2")
    assert (distance >= 0.999 * radius).all()
    assert (distance <= 1.5 * radius + 0.5 / 8 / 2**6).all()
    assert (whole.gradients % 10 == 0).all()
    part = search(images[2:5], labels[2:5], key=keys[2:5])
    np.testing.assert_allclose(part.inputs, whole.inputs[2:5], atol=2e-3)
    with pytest.raises(TypeError, match="pgd with a random start needs a key"):
        search(images, labels)


def test_targets_are_passed_on():
    logits_fn, images, labels = linear.problem(*linear.CASES[2])
    targets = (labels + 3) % 10
    attack = functools.partial(pgd, num_steps=5, random_start=False, loss="margin")
    result = smallest_epsilon(attack, logits_fn, images, labels, targets=targets, highest=0.4)
    assert result.success.all()
    np.testing.assert_array_equal(jnp.argmax(logits_fn(result.inputs), axis=1), targets)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"highest": 0.0}, "highest must be a finite number above 0, got 0"),
        ({"highest": float("nan")}, "highest must be a finite number above 0, got nan"),
        ({"grid": 0}, "grid must be a whole number of at least 1, got 0"),
        ({"bisections": -1}, "bisections must be a whole number of at least 0, got -1"),
    ],
)
def test_bad_settings_are_refused(network, batch, settings, message):
    with pytest.raises(ValueError, match=message):
        smallest_epsilon(fgsm, network, *batch[:2], **settings)
