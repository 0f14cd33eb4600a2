import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import jacobian

# Compiled, because that takes less time than operation by operation.
amplitude = jax.jit(jacobian.amplitude, static_argnums=0)
jacobian_of = jax.jit(jacobian.jacobian, static_argnums=0, static_argnames="space")

WEIGHTS = np.random.default_rng(0).normal(size=(12, 4))
IMAGES = np.random.default_rng(1).uniform(size=(3, 2, 3, 2))


@functools.cache
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
    got = jacobian_of(linear(1.0), images, space=space)
    assert got.shape == (3, 4, 2, 3, 2)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_many_classes_are_mapped():
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(12, 40)), jnp.float32)
    network = lambda images: images.reshape(images.shape[0], -1) @ weights
    got = jacobian_of(network, jnp.asarray(IMAGES, jnp.float32))
    np.testing.assert_allclose(got.reshape(3, 40, 12), jnp.broadcast_to(weights.T, (3, 40, 12)), rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 10.0, 50.0, 1000.0])
def test_log_amplitude_follows_far_below_float32(scale):
    measured = amplitude(linear(scale), jnp.asarray(IMAGES, jnp.float32))
    expected = exact_log10(scale)
    np.testing.assert_allclose(measured.log10, expected, rtol=1e-4, atol=1e-3)
    if scale == 1.0:
        np.testing.assert_allclose(np.log10(measured.mean_absolute), expected, atol=1e-3)
        assert not measured.is_zero.any()
    far_below = expected < -60
    assert measured.is_zero[far_below].all()
    assert far_below.any() == (scale >= 1000.0)
    np.testing.assert_allclose(measured.logits, linear(scale)(jnp.asarray(IMAGES, jnp.float32)), rtol=1e-5)


@pytest.mark.parametrize("shape", [(12,), (3, 4), (2, 3, 2), (1, 2, 3, 2)])
@pytest.mark.parametrize("space", ["logits", "probs"])
def test_inputs_of_any_shape_have_the_same_derivatives(shape, space):
    inputs, images = (jnp.asarray(IMAGES.reshape(3, *to), jnp.float32) for to in (shape, (2, 3, 2)))
    got, wanted = (jacobian_of(linear(1.0), x, space=space) for x in (inputs, images))
    assert got.shape == (3, 4, *shape)
    np.testing.assert_allclose(got.reshape(wanted.shape), wanted, rtol=1e-6)
    np.testing.assert_allclose(amplitude(linear(1.0), inputs).log10, amplitude(linear(1.0), images).log10, rtol=1e-6)


@pytest.mark.parametrize(("off", "classes"), [(-jnp.inf, (3,)), (-1e9, (3,)), (-jnp.inf, (1, 2, 3))])
def test_amplitude_of_a_network_with_classes_switched_off_is_that_of_the_others(off, classes):
    images = jnp.asarray(IMAGES, jnp.float32)
    masked = amplitude(lambda x: linear(1.0)(x).at[:, jnp.array(classes)].set(off), images)
    rest = amplitude(lambda x: linear(1.0)(x)[:, : 4 - len(classes)], images)
    # The mean is over all classes, also those without gradients.
    log_share = np.log10((4 - len(classes)) / 4)
    np.testing.assert_allclose(masked.log10, rest.log10 + log_share, rtol=1e-5)
    np.testing.assert_allclose(masked.mean_absolute, rest.mean_absolute * (4 - len(classes)) / 4, rtol=1e-5)
    np.testing.assert_array_equal(masked.is_zero, rest.is_zero)


def test_amplitude_takes_inputs_and_logits_of_other_dtypes():
    images, weights = jnp.asarray(IMAGES, jnp.float32), jnp.asarray(WEIGHTS, jnp.float32)
    exact = amplitude(linear(1.0), images).log10
    narrow = lambda x: (x.reshape(3, -1) @ weights.astype(jnp.bfloat16)).astype(jnp.float32)
    np.testing.assert_allclose(amplitude(narrow, images.astype(jnp.bfloat16)).log10, exact, atol=0.02)
    with jax.enable_x64(True):
        wide = jnp.asarray(IMAGES, jnp.float64), jnp.asarray(WEIGHTS, jnp.float64)
        measured = amplitude(lambda x: x.reshape(3, -1) @ wide[1], wide[0])
        assert measured.log10.dtype == jnp.float64
        np.testing.assert_allclose(measured.log10, exact, rtol=1e-5)


@pytest.mark.parametrize(("batch", "loop"), [(3, False), (40, True)])
def test_backward_passes_follow_the_platform_of_the_lowering(batch, loop):
    images = jnp.zeros((batch, 12))
    texts = {
        platform: jax.jit(lambda x: jacobian.jacobian(lambda y: jnp.sin(y @ jnp.ones((12, 4))), x))
        .trace(images)
        .lower(lowering_platforms=(platform,))
        .as_text()
        for platform in ("cpu", "cuda")
    }
    # One backward pass for each class, or a loop over them, on CPU; one for all elsewhere.
    assert ("stablehlo.while" in texts["cpu"]) == loop
    assert texts["cpu"].count("stablehlo.dot_general") == (2 if loop else 5)
    assert "stablehlo.while" not in texts["cuda"]
    assert texts["cuda"].count("stablehlo.dot_general") == 2


def test_a_constant_classifier_has_no_gradient_at_all():
    constant = lambda images: jnp.ones((images.shape[0], 3)) + 0 * images.sum((1, 2, 3))[:, None]
    measured = amplitude(constant, jnp.asarray(IMAGES, jnp.float32))
    assert np.all(np.isneginf(measured.log10))
    assert measured.is_zero.all()


def test_unknown_space():
    with pytest.raises(ValueError, match="unknown space 'softmax'; known: logits, probs"):
        jacobian.jacobian(linear(1.0), jnp.asarray(IMAGES, jnp.float32), space="softmax")
