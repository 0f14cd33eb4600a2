import jax
import jax.numpy as jnp
import numpy as np

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
