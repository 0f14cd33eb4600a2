import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import attacks
from tests.attacks import linear


def test_moves_along_the_sign_of_the_jacobian_and_stays_in_the_box():
    logits_fn, images, labels = linear.problem((4, 4, 1), 10, 8)
    found = attacks.jacobian_augmentation(logits_fn, images, labels, step_size=0.1)
    # Of a linear classifier the label's probability rises along w_y minus the mean of all w by their probabilities.
    weights, probs = (
        np.asarray(logits_fn.args[0], np.float64),
        np.asarray(jax.nn.softmax(logits_fn(images)), np.float64),
    )
    slope = (weights.T[np.asarray(labels)] - probs @ weights.T).reshape(images.shape)
    np.testing.assert_allclose(found, images + 0.1 * np.sign(slope), atol=1e-6)
    far = attacks.jacobian_augmentation(logits_fn, images, labels, step_size=9.0)
    assert set(np.unique(far)) == {0.0, 1.0}
    mask = jnp.arange(4)[:, None, None] > 0
    kept = attacks.jacobian_augmentation(logits_fn, images, labels, step_size=0.1, mask=mask)
    np.testing.assert_array_equal(kept, jnp.where(mask[None], found, images))


def test_an_image_goes_its_own_way(network, batch):
    images, labels, _ = batch
    move = jax.jit(attacks.jacobian_augmentation)
    whole = move(network, images, labels)
    parts = [move(network, images[i : i + 3], labels[i : i + 3]) for i in range(0, 24, 3)]
    np.testing.assert_allclose(whole, jnp.concatenate(parts), atol=1e-6)


def test_bad_arguments_are_refused(network, batch):
    images, labels, _ = batch
    with pytest.raises(ValueError, match="step_size must be a finite number at least 0"):
        attacks.jacobian_augmentation(network, images, labels, step_size=-0.1)
    with pytest.raises(ValueError, match="labels must be classes from 0 to 3"):
        attacks.jacobian_augmentation(network, images, labels + 4)
