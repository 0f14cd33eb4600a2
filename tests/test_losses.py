import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import losses

LOGITS = jnp.array([[2.0, -1.0, 0.5], [0.0, 0.0, 3.0]])


def test_cross_entropy_at_temperature_is_the_definition_without_t_squared():
    soft = jnp.array([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]])
    for temperature in (1.0, 7.0):
        expected = -np.sum(np.asarray(soft) * np.log(np.asarray(jax.nn.softmax(LOGITS / temperature))), axis=1)
        np.testing.assert_allclose(losses.cross_entropy_at_temperature(LOGITS, soft, temperature), expected, rtol=1e-5)


def test_cross_entropy_of_one_hot_labels_is_the_integer_one():
    labels = jnp.array([1, 2])
    one_hot = jax.nn.one_hot(labels, 3)
    soft = losses.cross_entropy_at_temperature(LOGITS, one_hot, 1.0)
    np.testing.assert_allclose(losses.cross_entropy(LOGITS, labels), soft, rtol=1e-5)
    huge = losses.cross_entropy(jnp.array([[1e4, -1e4]]), jnp.array([1]))
    np.testing.assert_allclose(huge, 2e4)


def test_margin_is_the_logit_less_the_largest_of_the_others():
    np.testing.assert_allclose(losses.margin(LOGITS, jnp.array([0, 1])), [1.5, -3.0])
    np.testing.assert_allclose(losses.margin(jnp.array([[1e4, -1e4]]), jnp.array([1])), -2e4)


def test_dlr_is_the_margin_over_the_spread_and_does_not_feel_scale_or_shift():
    labels = jnp.array([0, 1])
    np.testing.assert_allclose(losses.dlr(LOGITS, labels), [-1.5 / 3.0, 3.0 / 3.0])
    np.testing.assert_allclose(losses.dlr(1e4 * LOGITS + 3.0, labels), losses.dlr(LOGITS, labels), rtol=1e-5)


def test_targeted_dlr_compares_the_target_with_the_label():
    logits = jnp.array([[2.0, -1.0, 0.5, 0.0, -2.0]])
    wanted = (0.5 - 2.0) / (2.0 - (0.0 - 1.0) / 2)
    np.testing.assert_allclose(losses.targeted_dlr(logits, jnp.array([0]), jnp.array([2])), [wanted])


def test_dlr_of_equal_logits_and_its_gradient_are_finite():
    labels, targets = jnp.array([0, 1]), jnp.array([2, 2])
    for logits in (jnp.zeros((2, 4)), jnp.array([[0.0, 1, 1, 1], [1.0, 0, 1, 1]])):
        for loss in (lambda z: losses.dlr(z, labels), lambda z: losses.targeted_dlr(z, labels, targets)):
            assert jnp.all(jnp.isfinite(loss(logits)))
            assert jnp.all(jnp.isfinite(jax.grad(lambda z, loss=loss: loss(z).sum())(logits)))


def test_dlr_with_too_few_classes():
    with pytest.raises(ValueError, match="dlr needs at least 3 classes, got 2"):
        losses.dlr(LOGITS[:, :2], jnp.array([0, 1]))
    with pytest.raises(ValueError, match="targeted_dlr needs at least 4 classes, got 3"):
        losses.targeted_dlr(LOGITS, jnp.array([0, 1]), jnp.array([1, 2]))
