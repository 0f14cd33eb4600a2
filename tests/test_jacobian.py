import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import jacobian

WEIGHTS = np.random.default_rng(0).normal(size=(12, 4))
IMAGES = np.random.default_rng(1).uniform(size=(3, 2, 3, 2))


def linear(scale):
    weights = jnp.asarray(scale * WEIGHTS, jnp.float32)
    return lambda images: images.reshape(images.shape[0], -1) @ weights


def exact_log10(scale):
    """log10 of the mean absolute Jacobian entry of the probabilities, from float64 logits in log space."""
    weights = scale * WEIGHTS.astype(np.float32).astype(np.float64)
    logits = IMAGES.astype(np.float32).astype(np.float64).reshape(3, -1) @ weights
    result = []
    for row in logits:
        log_probs = row - row.max() - np.log(np.exp(row - row.max()).sum())
        terms = []
        for i in range(4):
            others = [j for j in range(4) if j != i]
            top = max(log_probs[j] for j in others)
            inner = sum(np.exp(log_probs[j] - top) * (weights[:, i] - weights[:, j]) for j in others)
            terms.append(log_probs[i] + top + np.log(np.abs(inner).sum()))
        top = max(terms)
        result.append((top + np.log(np.exp(np.array(terms) - top).sum()) - np.log(48)) / np.log(10))
    return np.array(result)


@pytest.mark.parametrize("space", ["logits", "probs"])
def test_jacobian_matches_forward_mode(space):
    outputs = linear(1.0) if space == "logits" else lambda x: jax.nn.softmax(linear(1.0)(x))
    images = jnp.asarray(IMAGES, jnp.float32)
    expected = jax.vmap(lambda image: jax.jacfwd(lambda x: outputs(x[None])[0])(image))(images)
    got = jax.jit(lambda x: jacobian.jacobian(linear(1.0), x, space=space))(images)
    assert got.shape == (3, 4, 2, 3, 2)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_many_classes_are_mapped():
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(12, 40)), jnp.float32)
    network = lambda images: images.reshape(images.shape[0], -1) @ weights
    got = jacobian.jacobian(network, jnp.asarray(IMAGES, jnp.float32))
    np.testing.assert_allclose(got.reshape(3, 40, 12), jnp.broadcast_to(weights.T, (3, 40, 12)), rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 10.0, 50.0, 1000.0])
def test_log_amplitude_follows_far_below_float32(scale):
    measured = jax.jit(lambda x: jacobian.amplitude(linear(scale), x))(jnp.asarray(IMAGES, jnp.float32))
    expected = exact_log10(scale)
    np.testing.assert_allclose(measured.log10, expected, rtol=1e-4, atol=1e-3)
    if scale == 1.0:
        np.testing.assert_allclose(np.log10(measured.mean_absolute), expected, atol=1e-3)
        assert not measured.is_zero.any()
    far_below = expected < -60
    assert measured.is_zero[far_below].all()
    assert far_below.any() == (scale >= 1000.0)
    np.testing.assert_allclose(measured.logits, linear(scale)(jnp.asarray(IMAGES, jnp.float32)), rtol=1e-5)


def test_a_constant_classifier_has_no_gradient_at_all():
    constant = lambda images: jnp.ones((images.shape[0], 3)) + 0 * images.sum((1, 2, 3))[:, None]
    measured = jacobian.amplitude(constant, jnp.asarray(IMAGES, jnp.float32))
    assert np.all(np.isneginf(measured.log10))
    assert measured.is_zero.all()


def test_unknown_space():
    with pytest.raises(ValueError, match="unknown space 'softmax'; known: logits, probs"):
        jacobian.jacobian(linear(1.0), jnp.asarray(IMAGES, jnp.float32), space="softmax")
