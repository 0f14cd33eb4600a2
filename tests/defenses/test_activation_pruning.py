import itertools
from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import layers, models
from ddjax.binding import bind
from ddjax.classifier import Randomized, at_temperature, expectation
from ddjax.defenses import activation_pruning as ap


def keys(seed, count):
    return jax.random.split(jax.random.key(seed), count)


class Block(nn.Module):
    """A dense layer and a rectifier in a module of their own."""

    @nn.compact
    def __call__(self, inputs):
        return layers.ReLU()(nn.Dense(6)(inputs))


class Network(nn.Module):
    @nn.compact
    def __call__(self, images):
        hidden = Block()(images.reshape(images.shape[0], -1))
        hidden = layers.ReLU()(nn.Dense(5)(hidden))
        return nn.Dense(3)(hidden)


IMAGES = jax.random.uniform(jax.random.key(0), (4, 3, 3, 1))
PROBABILITIES = jax.jit(ap.keep_probabilities, static_argnames="samples")
PRUNE = jax.jit(ap.prune, static_argnames=("share", "draws"))


@pytest.fixture(scope="module")
def network():
    module = Network()
    return bind(module, jax.jit(module.init)(jax.random.key(4), IMAGES))


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_probabilities_count_all_sequences_of_draws(samples):
    sizes = [5, -1, 3, 0]
    found = ap.keep_probabilities(jnp.array([sizes], jnp.float32), samples=samples)[0]
    shares = [Fraction(abs(size), 9) for size in sizes]
    expected = [Fraction(0)] * 4
    for sequence in itertools.product(range(4), repeat=samples):
        for unit in set(sequence):
            expected[unit] += np.prod([shares[draw] for draw in sequence])
    np.testing.assert_allclose(found, [float(value) for value in expected], rtol=1e-5)


def test_probabilities_are_accurate_where_they_are_small_and_take_any_number_of_samples():
    sizes = np.array([1.0, 1e-4, 1e-9])
    shares = sizes / sizes.sum()
    found = jax.jit(lambda r: ap.keep_probabilities(jnp.asarray(sizes[None], jnp.float32), samples=r))(jnp.float32(2.5))
    np.testing.assert_allclose(found[0], -np.expm1(2.5 * np.log1p(-shares)), rtol=1e-5)


@pytest.mark.parametrize("draws", ap.DRAWS)
@pytest.mark.parametrize("share", [0.3, 1.0, 2.0])
def test_units_are_kept_that_often_and_the_mean_is_what_was_there(draws, share):
    count = 4000
    units = np.random.default_rng(4).normal(size=10).astype(np.float32)
    units[[3, 5]] = 0.0, 0.02
    layer = np.broadcast_to(units, (count, 10)).reshape(count, 5, 2)
    found = np.asarray(PRUNE(layer, keys(5, count), share=share, draws=draws)).reshape(count, 10)
    keep = np.asarray(PROBABILITIES(units[None], samples=10 * share))[0]
    # Three standard deviations of a mean over the draws, for each unit.
    noise = np.sqrt(keep * (1 - keep) / count)
    assert (np.abs((found != 0).mean(0) - keep) <= 3 * noise + 1e-6).all()
    scale = np.abs(units) / np.where(keep > 0, keep, 1)
    assert (np.abs(found.mean(0) - units) <= 3 * scale * noise + 1e-5).all()
    # What is kept is divided by the probability.
    np.testing.assert_allclose(found, np.where(found != 0, units / np.where(keep > 0, keep, 1), 0), rtol=1e-5)


def test_draws_of_one_image_depend_on_each_other_only_if_multinomial():
    layer, own = np.ones((2000, 4), np.float32), keys(6, 2000)
    count = {d: (np.asarray(PRUNE(layer, own, share=0.5, draws=d)) > 0).sum(1) for d in ap.DRAWS}
    # Two draws from four alike: one unit with probability 1/4, else two.
    assert set(count["multinomial"]) == {1, 2}
    assert (count["multinomial"] == 1).mean() == pytest.approx(0.25, abs=3 * np.sqrt(0.25 * 0.75 / 2000))
    none, keep = (count["bernoulli"] == 0).mean(), 7 / 16
    assert none == pytest.approx((1 - keep) ** 4, abs=3 * np.sqrt(0.1 * 0.9 / 2000))


def test_small_units_of_a_large_layer_are_not_rounded_away():
    # Behind half a million ones, in float32 the running sum has steps larger than the last units.
    large = np.concatenate([np.ones(2**19), np.full(2**9, 0.02)])[None].astype(np.float32)
    kept = np.asarray(PRUNE(large, keys(7, 1)))[0] != 0
    keep = np.asarray(PROBABILITIES(large, samples=large.size))[0]
    for part in (slice(0, 2**19), slice(2**19, None)):
        mean = keep[part].mean()
        noise = np.sqrt(mean * (1 - mean) / len(keep[part]))
        assert abs(kept[part].mean() - mean) <= 3 * noise


@pytest.mark.parametrize("draws", ap.DRAWS)
def test_layers_that_are_zero_or_nearly_so_or_of_one_unit(draws):
    layer = np.array([[0.0, 0, 0, 0], [1e-30, 0, 0, 0], [0, 7, 0, 0], [1, 1e-22, -2, 1e-38]], np.float32)

    @jax.jit
    def value_and_gradient(layer):
        found, back = jax.vjp(lambda x: ap.prune(x, keys(8, 4), draws=draws), layer)
        return found, *back(jnp.ones_like(found))

    found, gradient = map(np.asarray, value_and_gradient(layer))
    np.testing.assert_array_equal(found[:2], 0)
    # Kept always, and divided by one.
    np.testing.assert_allclose(found[2], layer[2], rtol=1e-6)
    assert np.isfinite(gradient).all()
    assert float(gradient[2, 1]) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("draws", ap.DRAWS)
def test_gradients_pass_the_probabilities_and_not_the_draw(draws):
    layer, key = np.random.default_rng(9).normal(size=(1, 6)).astype(np.float32), keys(10, 1)
    kept = np.asarray(PRUNE(layer, key, draws=draws)) != 0
    assert kept.any()
    assert not kept.all()

    def by_hand(units):
        shares = jnp.abs(units) / jnp.abs(units).sum()
        return jnp.where(kept, units / (1 - (1 - shares) ** 6), 0.0)

    found = jax.jit(jax.jacobian(lambda x: ap.prune(x, key, draws=draws)))(layer)
    np.testing.assert_allclose(found, jax.jit(jax.jacobian(by_hand))(layer), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("draws", ap.DRAWS)
def test_a_draw_is_the_images_own_whatever_its_batch(network, draws):
    random = jax.jit(ap.pruned(network, draws=draws))
    together = np.asarray(random(IMAGES, keys(11, 4)))
    np.testing.assert_allclose(random(IMAGES[2:3], keys(11, 4)[2:3])[0], together[2], rtol=1e-5, atol=1e-6)
    same = random(np.broadcast_to(IMAGES[:1], IMAGES.shape), keys(11, 4))
    assert len(np.unique(np.asarray(same).round(4), axis=0)) > 1
    np.testing.assert_array_equal(random(IMAGES, keys(11, 4)), together)


def test_prunes_each_rectifier_once_with_keys_of_its_own(network, monkeypatch):
    seen = []
    own = ap.prune
    monkeypatch.setattr(ap, "prune", lambda h, k, **s: seen.append(h) or own(h, k, **s))
    found, seen_by_it = jax.jit(lambda *arguments: (ap.pruned(network, share=0.7)(*arguments), list(seen)))(
        IMAGES, keys(12, 4)
    )
    # By hand, from the parameters.
    params = network.args[0]["params"]
    dense = lambda layer, x: x @ layer["kernel"] + layer["bias"][None]

    @jax.jit
    def by_hand(images, keys):
        hidden, rectified = images.reshape(4, -1), []
        for index, layer in enumerate((params["Block_0"]["Dense_0"], params["Dense_0"])):
            rectified.append(nn.relu(dense(layer, hidden)))
            hidden = own(rectified[-1], jnp.stack([jax.random.fold_in(key, index) for key in keys]), share=0.7)
        return dense(params["Dense_1"], hidden), rectified

    expected, rectified = by_hand(IMAGES, keys(12, 4))
    for layer, values in zip(seen_by_it, rectified, strict=True):
        np.testing.assert_allclose(layer, values, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert len(seen) == 2


def test_the_place_is_a_setting_and_outer_modules_win(network, monkeypatch):
    calls = []
    own = ap.prune
    monkeypatch.setattr(ap, "prune", lambda h, k, **s: calls.append(h.shape) or own(h, k, **s))
    # The rectifier in the block is a part of it; the one behind it is not.
    jax.eval_shape(ap.pruned(network, after=(Block, layers.ReLU)), IMAGES, keys(0, 4))
    assert calls == [(4, 6), (4, 5)]
    calls.clear()
    jax.eval_shape(ap.pruned(network, after=(nn.Dense,)), IMAGES, keys(0, 4))
    assert calls == [(4, 6), (4, 5), (4, 3)]

    class Clipped(layers.ReLU):
        def __call__(self, inputs):
            return jnp.minimum(super().__call__(inputs), 1.0)

    calls.clear()
    module = nn.Sequential([nn.Dense(5), Clipped()])
    clipped = bind(module, jax.jit(module.init)(jax.random.key(0), IMAGES[:, 0, 0]))
    jax.eval_shape(ap.pruned(lambda x: clipped(x[:, 0, 0])), IMAGES, keys(0, 4))
    assert calls == [(4, 5)]


def test_every_way_to_run_it_is_the_same(network):
    random, own = ap.pruned(at_temperature(network, 2.0), draws="bernoulli"), keys(13, 4)
    eager = random(IMAGES, own)
    assert isinstance(random, Randomized)
    assert len(jax.tree.leaves(random)) == len(jax.tree.leaves(network)) + 1
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(jax.jit(lambda f, x, k: f(x, k))(random, IMAGES, own), eager, **close)
    alone = lambda image, key: random(image[None], key[None])[0]
    np.testing.assert_allclose(jax.jit(jax.vmap(alone))(IMAGES, own), eager, **close)
    np.testing.assert_allclose(jax.lax.map(lambda pair: alone(*pair), (IMAGES, own)), eager, **close)


def test_prunes_the_papers_networks():
    module, images = models.build("digits", 10), jax.random.uniform(jax.random.key(2), (2, 8, 8, 1))
    network = bind(module, jax.jit(module.init)(jax.random.key(3), images))
    random = ap.pruned(network, after=(layers.Conv, nn.Conv), draws="bernoulli")

    def total(images):
        logits = random(images, keys(18, 2))
        return logits.sum(), (logits, network(images))

    gradient, (logits, plain) = jax.jit(jax.grad(total, has_aux=True))(images)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0
    assert np.abs(np.asarray(logits) - np.asarray(plain)).max() > 0.01


def test_expectation_comes_near_a_network_whose_rest_is_linear():
    module = nn.Sequential([nn.Dense(8), layers.ReLU(), nn.Dense(3)])
    flat = IMAGES.reshape(4, -1)
    inner = bind(module, jax.jit(module.init)(jax.random.key(14), flat))
    network = lambda images: inner(images.reshape(images.shape[0], -1))
    random = ap.pruned(network, draws="bernoulli")
    draw = jax.jit(lambda key: random(IMAGES, jax.random.split(key, 4)))
    draws = np.asarray(jax.lax.map(draw, keys(15, 500)))
    mean = expectation(random, jax.random.key(16), num_samples=500)
    found, plain = map(np.asarray, jax.jit(lambda x: (mean(x), network(x)))(IMAGES))
    # Twelve numbers: rather four standard deviations than three.
    noise = draws.std(0) / np.sqrt(500)
    assert (np.abs(found - plain) <= 4 * noise).all()
    assert (noise > 0).all()


def test_nothing_stays_behind(network):
    plain = network(IMAGES)
    ap.pruned(network, draws="bernoulli")(IMAGES, keys(17, 4))
    np.testing.assert_array_equal(network(IMAGES), plain)

    def broken(images):
        network(images)
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        ap.pruned(broken, draws="bernoulli")(IMAGES, keys(17, 4))
    np.testing.assert_array_equal(network(IMAGES), plain)


def test_refuses(network):
    layer = jnp.ones((2, 3))
    for share in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="share must be a finite number above 0"):
            ap.prune(layer, keys(0, 2), share=share)
        with pytest.raises(ValueError, match="share must be a finite number above 0"):
            ap.pruned(network, share=share)
    for function in (lambda **s: ap.prune(layer, keys(0, 2), **s), lambda **s: ap.pruned(network, **s)):
        with pytest.raises(ValueError, match="unknown draws 'poisson'; known: multinomial, bernoulli"):
            function(draws="poisson")
    with pytest.raises(ValueError, match="samples must be a finite number above 0, got 0"):
        ap.keep_probabilities(layer, samples=0)
    with pytest.raises(ValueError, match="calls no module of the types ddjax.layers.Conv"):
        jax.jit(ap.pruned(network, after=(layers.Conv,)))(IMAGES, keys(0, 4))
    with pytest.raises(ValueError, match="nothing to prune"):
        ap.pruned(lambda x: x[:, 0, 0], after=())(IMAGES, keys(0, 4))
    with pytest.raises(ValueError, match="not compiled"):
        ap.pruned(jax.jit(network))
