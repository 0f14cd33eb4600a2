import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import attacks

# A linear classifier: the gradient of the margin is the difference of two columns, whatever the image.
WEIGHTS = np.random.default_rng(3).normal(size=(12, 2)).astype(np.float32)
IMAGES = np.full((1, 3, 4, 1), 0.5, np.float32)


def linear(images):
    return images.reshape(images.shape[0], -1) @ jnp.asarray(WEIGHTS)


def label_and_margin():
    logits = IMAGES.reshape(1, -1) @ WEIGHTS
    label = int(logits.argmax())
    return label, float(abs(logits[0, 0] - logits[0, 1]))


@pytest.mark.parametrize("targeted", [False, True])
def test_on_a_linear_classifier_the_least_radius_is_the_margin_over_the_l1_norm(targeted):
    label, margin = label_and_margin()
    least = margin / float(np.abs(WEIGHTS[:, 0] - WEIGHTS[:, 1]).sum())
    assert least < 0.5
    labels = jnp.array([label], jnp.int32)
    targets = 1 - labels if targeted else None
    attack = lambda epsilon: attacks.fgsm(linear, jnp.asarray(IMAGES), labels, targets=targets, epsilon=epsilon)
    assert attack(1.001 * least).success.all()
    assert not attack(0.999 * least).success.any()


def test_step_is_epsilon_along_the_sign_and_clipped():
    label, _ = label_and_margin()
    labels = jnp.array([label], jnp.int32)
    expected = np.sign(WEIGHTS[:, 1 - label] - WEIGHTS[:, label]).reshape(IMAGES.shape)
    moved = attacks.fgsm(linear, jnp.asarray(IMAGES), labels, epsilon=0.125).images
    np.testing.assert_array_equal(moved, 0.5 + 0.125 * expected)
    clipped = attacks.fgsm(linear, jnp.asarray(IMAGES), labels, epsilon=0.25, bounds=(0.375, 0.75)).images
    np.testing.assert_array_equal(clipped, np.clip(0.5 + 0.25 * expected, 0.375, 0.75))
    np.testing.assert_array_equal(attacks.fgsm(linear, jnp.asarray(IMAGES), labels, epsilon=0.0).images, IMAGES)


def test_epsilon_is_swept_by_vmap_and_may_differ_between_examples(network, batch):
    images, labels, _ = batch
    radii = jnp.array([0.0, 0.05, 0.3])
    swept = jax.vmap(lambda e: attacks.fgsm(network, images, labels, epsilon=e).images)(radii)
    for radius, moved in zip(radii, swept, strict=True):
        np.testing.assert_allclose(moved, attacks.fgsm(network, images, labels, epsilon=radius).images, atol=1e-6)
    each = jnp.linspace(0, 0.3, len(labels))
    moved = attacks.fgsm(network, images, labels, epsilon=each).images
    assert np.all(np.abs(moved - images).max((1, 2, 3)) <= np.nextafter(np.asarray(each), 1, dtype=np.float32) + 1e-7)


def test_a_saturated_network_stops_fgsm_while_its_tempered_gradient_lives(network, batch):
    images, labels, _ = batch
    saturated = lambda x: network(x) * 1e5
    margins = jnp.sort(saturated(images), axis=1)
    certain = np.asarray(margins[:, -1] - margins[:, -2]) > 200
    assert certain.any()
    moved = attacks.fgsm(saturated, images, labels, epsilon=0.3).images
    np.testing.assert_array_equal(moved[certain], images[certain])
    revived = attacks.fgsm(lambda x: saturated(x) / 1e5, images, labels, epsilon=0.3).images
    assert (np.abs(revived - images).max((1, 2, 3)) > 0.1).all()


@pytest.mark.parametrize("epsilon", [-0.1, float("nan"), float("inf")])
def test_bad_epsilon(network, batch, epsilon):
    with pytest.raises(ValueError, match=f"epsilon must be a finite number at least 0, got {epsilon}"):
        attacks.fgsm(network, *batch[:2], epsilon=epsilon)
    # A compiled attack cannot refuse; it moves nothing rather than let NaN out.
    compiled = jax.jit(attacks.fgsm)(network, *batch[:2], epsilon=jnp.float32(epsilon))
    np.testing.assert_array_equal(compiled.images, batch[0])
    assert not compiled.success.any()
