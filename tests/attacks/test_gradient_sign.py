import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import attacks

# A linear classifier: the gradient of the margin is the difference of two columns, whatever the image.
WEIGHTS = np.random.default_rng(3).normal(size=(12, 2)).astype(np.float32)
IMAGES = np.full((1, 3, 4, 1), 0.5, np.float32)
# Compiled, because that takes less time than operation by operation.
fgsm = jax.jit(attacks.fgsm, static_argnames="bounds")


@jax.tree_util.Partial
def linear(images):
    return images.reshape(images.shape[0], -1) @ jnp.asarray(WEIGHTS)


def label_and_margin():
    logits = IMAGES.reshape(1, -1) @ WEIGHTS
    label = int(logits.argmax())
    return label, float(abs(logits[0, 0] - logits[0, 1]))


@pytest.mark.parametrize("targeted", [False, True])
def test_fgsm_on_linear_classifier_takes_optimal_step(targeted):
    label, margin = label_and_margin()
    least = margin / float(np.abs(WEIGHTS[:, 0] - WEIGHTS[:, 1]).sum())
    assert least < 0.5
    labels = np.array([label], np.int32)
    targets = 1 - labels if targeted else None
    success = lambda epsilon: np.asarray(fgsm(linear, IMAGES, labels, targets=targets, epsilon=epsilon).success)
    assert success(1.001 * least).all()
    assert not success(0.999 * least).any()


def test_step_is_epsilon_along_the_sign_and_clipped():
    label, _ = label_and_margin()
    labels = np.array([label], np.int32)
    expected = np.sign(WEIGHTS[:, 1 - label] - WEIGHTS[:, label]).reshape(IMAGES.shape)
    moved = fgsm(linear, IMAGES, labels, epsilon=0.125).inputs
    np.testing.assert_array_equal(moved, 0.5 + 0.125 * expected)
    clipped = fgsm(linear, IMAGES, labels, epsilon=0.25, bounds=(0.375, 0.75)).inputs
    np.testing.assert_array_equal(clipped, np.clip(0.5 + 0.25 * expected, 0.375, 0.75))
    np.testing.assert_array_equal(fgsm(linear, IMAGES, labels, epsilon=0.0).inputs, IMAGES)


def test_epsilon_is_swept_by_vmap_and_may_differ_between_examples(network, batch):
    images, labels, _ = batch
    radii = np.array([0.0, 0.05, 0.3], np.float32)
    sweep = jax.jit(jax.vmap(lambda e: attacks.fgsm(network, images, labels, epsilon=e).inputs))
    for radius, moved in zip(radii, np.asarray(sweep(radii)), strict=True):
        np.testing.assert_allclose(moved, fgsm(network, images, labels, epsilon=radius).inputs, atol=1e-6)
    each = np.linspace(0, 0.3, len(labels), dtype=np.float32)
    moved = fgsm(network, images, labels, epsilon=each).inputs
    change = np.abs(np.subtract(moved, images)).max((1, 2, 3))
    assert np.all(change <= np.nextafter(each, 1, dtype=np.float32) + 1e-7)


def scaled(network, factor, temperature, images):
    return network(images) * factor / temperature


def test_saturated_network_stops_fgsm_while_its_tempered_gradient_lives(network, batch):
    images, labels, _ = batch
    # Both are arguments of the program, which could cancel constants.
    saturated, tempered = (jax.tree_util.Partial(scaled, network, np.float32(1e5), np.float32(t)) for t in (1, 1e5))
    images = np.asarray(images)
    margins = np.sort(np.asarray(jax.jit(scaled)(network, 1e5, 1.0, images)), axis=1)
    certain = margins[:, -1] - margins[:, -2] > 200
    assert certain.any()
    moved, revived = (np.asarray(fgsm(each, images, labels, epsilon=0.3).inputs) for each in (saturated, tempered))
    np.testing.assert_array_equal(moved[certain], images[certain])
    assert (np.abs(revived - images).max((1, 2, 3)) > 0.1).all()


@pytest.mark.parametrize("epsilon", [-0.1, float("nan"), float("inf")])
def test_bad_epsilon_is_refused(network, batch, epsilon):
    with pytest.raises(ValueError, match=f"epsilon must be a finite number at least 0, got {epsilon}"):
        attacks.fgsm(network, *batch[:2], epsilon=epsilon)
    # A compiled attack cannot refuse; it moves nothing rather than let NaN out.
    compiled = fgsm(network, *batch[:2], epsilon=np.float32(epsilon))
    np.testing.assert_array_equal(compiled.inputs, batch[0])
    assert not np.asarray(compiled.success).any()
