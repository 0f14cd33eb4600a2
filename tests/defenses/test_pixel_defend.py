import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import defenses
from ddjax.defenses import pixel_defend
from ddjax.generative import logistic_mixture, pixelcnn

SHAPE = (4, 3, 2)
EPSILON = 0.05


@pytest.fixture(scope="module")
def density():
    """Of a network with random parameters, in which all layers matter."""
    model = pixelcnn.PixelCNN(channels=2, width=4, blocks=1, levels=1, mixtures=2)
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *SHAPE)))["params"]
    rng = np.random.default_rng(1)

    def draw(leaf):
        scale = 0.3 if leaf.ndim == 1 else 1.2 / math.sqrt(math.prod(leaf.shape[:-1]))
        return jnp.asarray(rng.normal(scale=scale, size=leaf.shape), jnp.float32)

    params = jax.tree.map(draw, like)
    # Likeliest values within the range more often than at its ends.
    params["last"]["bias"] = params["last"]["bias"].reshape(2, 6).at[:, 3:5].set(-2.0).ravel()
    return pixelcnn.density(model, params)


@pytest.fixture(scope="module")
def images():
    """Two of floats in between the 8-bit values, one near 0, one near 1."""
    rng = np.random.default_rng(2)
    made = rng.uniform(size=(4, *SHAPE)).astype(np.float32)
    made[2] *= 0.03
    made[3] = 1 - 0.03 * made[3]
    made[2, 0, 0], made[3, 0, 0] = 0, 1
    return jnp.asarray(made)


# The radius is traced nowhere, and each one is a program; the density and the images are arguments of it.
_PROGRAMS = {}


def purify(images, density, **settings):
    key = tuple(sorted(settings.items()))
    if key not in _PROGRAMS:
        _PROGRAMS[key] = jax.jit(lambda images, density: pixel_defend.purify(images, density, **settings))
    return np.asarray(_PROGRAMS[key](images, density))


def levels_of(images):
    found = 255 * np.asarray(images, np.float64)
    np.testing.assert_allclose(found, np.round(found), atol=1e-4)
    return np.round(found)


def test_each_value_is_the_likeliest_of_the_ball_given_those_before(images, density):
    found = levels_of(purify(images, density, epsilon=EPSILON))
    of_image = jax.jit(lambda density, levels: density(levels))
    log_probs_of = jax.jit(lambda *given: logistic_mixture.channel_log_probs(*given), static_argnums=2)
    parameters = of_image(density, jnp.asarray(found, jnp.float32)).reshape(-1, 12)
    pixels = jnp.asarray(found, jnp.float32).reshape(-1, 2)
    bounds = 255 * np.asarray(images, np.float64).reshape(-1, 2)
    inside = 0
    for channel in range(2):
        # Of the purified image: what its network says of a pixel follows from the purified ones before.
        log_probs = np.asarray(log_probs_of(parameters, pixels, channel))
        for place, chosen in enumerate(found.reshape(-1, 2)[:, channel].astype(int)):
            low = max(math.ceil(bounds[place, channel] - 255 * EPSILON), 0)
            high = min(math.floor(bounds[place, channel] + 255 * EPSILON), 255)
            assert low <= chosen <= high
            assert log_probs[place, chosen] >= log_probs[place, low : high + 1].max() - 1e-4
            inside += low < chosen < high
    # Not all of it is decided by the bounds.
    assert inside > 3


def test_no_value_leaves_the_ball(images, density):
    # Under half a level, a ball may hold no 8-bit value at all, or a single one.
    for epsilon in (0.0, 0.4 / 255):
        found = purify(images, density, epsilon=epsilon)
        nearest = np.round(255 * np.asarray(images))
        np.testing.assert_array_equal(levels_of(found), nearest)
    for epsilon in (1 / 255, EPSILON):
        found = purify(images, density, epsilon=epsilon)
        assert np.abs(found - images).max() <= epsilon + 1e-5
        assert found.min() >= 0
        assert found.max() <= 1
        levels_of(found)
    # On the 8-bit values themselves, a radius of whole levels reaches them at both ends.
    grid = jnp.round(255 * images) / 255
    moved = np.abs(levels_of(purify(grid, density, epsilon=1 / 255)) - np.round(255 * np.asarray(grid)))
    assert set(np.unique(moved)) == {0, 1}


def test_in_a_ball_of_everything_the_image_does_not_matter(images, density):
    found = purify(images, density, epsilon=1.0)
    np.testing.assert_array_equal(found, np.broadcast_to(found[:1], found.shape))
    assert len(np.unique(found)) > 2


def test_batch_mates_do_not_matter(images, density):
    found = purify(images, density, epsilon=EPSILON)
    np.testing.assert_array_equal(purify(images[::-1], density, epsilon=EPSILON), found[::-1])
    assert np.any(found[0] != found[1])


def test_images_that_look_typical_stay_as_they_are(images, density):
    bits = jax.jit(lambda density, images: pixelcnn.bits_per_dimension(density, jnp.round(255 * images)))
    taken = np.asarray(bits(density, images))
    limit = float(np.median(taken))
    found = purify(images, density, epsilon=EPSILON, most_bits=limit)
    is_typical = taken < limit
    assert is_typical.sum() == 2
    np.testing.assert_array_equal(levels_of(found[is_typical]), np.round(255 * np.asarray(images[is_typical])))
    purified = purify(images, density, epsilon=EPSILON)
    np.testing.assert_array_equal(found[~is_typical], purified[~is_typical])
    assert np.any(purified[is_typical] != found[is_typical])


def test_gradients_are_zero_as_deployed_and_the_classifiers_for_an_aware_attack(images, density):
    weights = jnp.asarray(np.random.default_rng(3).normal(size=(24, 3)), jnp.float32)
    network = jax.tree_util.Partial(lambda weights, x: jnp.sin(3 * x).reshape(len(x), -1) @ weights, weights)

    def value_and_gradient(logits_fn, images):
        loss = lambda images: (jnp.sum(logits_fn(images)[:, 0]), logits_fn(images))
        (_, logits), gradient = jax.value_and_grad(loss, has_aux=True)(images)
        return logits, gradient

    run = jax.jit(value_and_gradient)
    defense = defenses.defense("pixel_defend", epsilon=EPSILON).with_given(density)
    deployed, seen = defense.deployed(network), defense.aware(network, jax.random.key(0))
    expected, exact = run(network, jnp.asarray(purify(images, density, epsilon=EPSILON)))
    logits, gradient = run(deployed, images)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    np.testing.assert_array_equal(gradient, 0)
    logits, gradient = run(seen, images)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    # The classifier's where it looks.
    np.testing.assert_allclose(gradient, exact, atol=1e-5)
    assert np.abs(exact).min() > 0


def test_defended_classifier_is_a_pytree(density):
    plain = lambda x: x.reshape(len(x), -1)
    defense = lambda: defenses.defense("pixel_defend", epsilon=EPSILON).with_given(density)
    first, second = (defense().deployed(plain) for _ in range(2))
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert len(jax.tree.leaves(first)) == len(jax.tree.leaves(density))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": -0.1}, "epsilon must be a finite number at least 0"),
        ({"epsilon": math.inf}, "epsilon must be a finite number at least 0"),
        ({"epsilon": math.nan}, "epsilon must be a finite number at least 0"),
        ({"most_bits": -1.0}, "most_bits must be a finite number at least 0"),
    ],
)
def test_refuses(images, density, settings, message):
    with pytest.raises(ValueError, match=message):
        pixel_defend.purify(images, density, **settings)
