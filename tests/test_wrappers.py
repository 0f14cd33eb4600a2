import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddjax
from ddjax import attacks, classifier
from ddjax.defenses import feature_distillation, squeezers

ROUND = squeezers.squeezer("bit_depth_2")


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(0), (6, 8, 8, 1))


@pytest.fixture(scope="module")
def network():
    """A smooth classifier in three classes."""
    weights = jax.random.normal(jax.random.key(1), (64, 3))
    return jax.tree_util.Partial(lambda weights, x: jnp.tanh(x.reshape(len(x), -1) - 0.5) @ weights, weights)


def noisy(images, keys, *, scale=0.1):
    draw = lambda key: scale * jax.random.normal(key, images.shape[1:])
    return images + jax.vmap(draw)(keys)


NOISE = classifier.transform(noisy)


class TestBpda:
    @pytest.mark.parametrize("name", ["bit_depth_1", "median_3_3", "non_local_means_5_3_9"])
    @pytest.mark.parametrize("compiled", [False, True])
    def test_forward_is_the_defense_to_the_bit(self, images, name, compiled):
        exact = squeezers.squeezer(name)
        wrap = jax.jit if compiled else lambda function: function
        np.testing.assert_array_equal(wrap(classifier.bpda(exact))(images), wrap(exact)(images))
        value, _ = jax.value_and_grad(lambda x: classifier.bpda(exact)(x).sum())(images)
        assert float(value) == pytest.approx(float(exact(images).sum()))

    def test_backward_is_the_identity_at_the_defended_image(self, images, network):
        aware = ddjax.transformed(network, classifier.bpda(ROUND))
        found = jax.grad(lambda x: aware(x)[:, 0].sum())(images)
        expected = jax.grad(lambda x: network(x)[:, 0].sum())(ROUND(images))
        np.testing.assert_array_equal(found, expected)
        blind = jax.grad(lambda x: ddjax.transformed(network, ROUND)(x)[:, 0].sum())(images)
        assert not blind.any()

    def test_a_substitute_is_differentiated_where_the_image_is(self, images):
        substitute = lambda x: x**3
        cotangent = jax.random.normal(jax.random.key(2), images.shape)
        found = jax.vjp(classifier.bpda(ROUND, substitute), images)[1](cotangent)[0]
        np.testing.assert_allclose(found, 3 * images**2 * cotangent, rtol=1e-6)

    def test_random_transforms(self, images):
        keys = jax.random.split(jax.random.key(3), len(images))
        exact = classifier.transform(feature_distillation.distill_and_distort)
        blind = lambda transform: jax.grad(lambda x: transform(x, keys).sum())(images)
        np.testing.assert_array_equal(classifier.bpda(exact)(images, keys), exact(images, keys))
        assert not blind(exact).any()
        np.testing.assert_array_equal(blind(classifier.bpda(exact)), jnp.ones_like(images))

    def test_a_substitute_of_another_shape(self, images):
        with pytest.raises(ValueError, match="substitute whose outputs have the shape"):
            jax.grad(lambda x: classifier.bpda(ROUND, lambda x: x[:, :4])(x).sum())(images)

    def test_equal_ones_are_compiled_once(self, images, network):
        traces = []

        @jax.jit
        def run(logits_fn, images):
            traces.append(1)
            return logits_fn(images)

        for scale in (1.0, 2.0):
            scaled = jax.tree.map(lambda leaf, scale=scale: scale * leaf, network)
            run(ddjax.transformed(scaled, classifier.bpda(squeezers.squeezer("median_2_2"))), images)
        assert len(traces) == 1


class TestExpectation:
    @pytest.mark.parametrize("average", classifier.AVERAGES)
    def test_one_sample_is_the_draw_with_its_plain_gradient(self, images, network, average):
        key = jax.random.key(4)
        random = ddjax.randomized(network, NOISE)
        once = classifier.expectation(random, key, num_samples=1, average=average)
        keys = classifier._keys_of(key, images, 1)[0]
        np.testing.assert_array_equal(once(images), random(images, keys))
        gradient = lambda f: jax.grad(lambda x: f(x)[:, 1].sum())(images)
        np.testing.assert_array_equal(gradient(once), gradient(lambda x: random(x, keys)))

    def test_averages_of_logits_and_of_probabilities(self, images, network):
        key = jax.random.key(5)
        random = ddjax.randomized(network, NOISE)
        draws = np.stack([random(images, keys) for keys in classifier._keys_of(key, images, 7)])
        make = functools.partial(classifier.expectation, random, key, num_samples=7)
        np.testing.assert_allclose(make()(images), draws.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            jax.nn.softmax(make(average="probs")(images)), np.asarray(jax.nn.softmax(draws)).mean(0), rtol=1e-5
        )

    def test_gradient_is_that_of_the_expectation(self, images):
        # E |x + n|^2 has the gradient 2 x whatever the noise.
        random = ddjax.randomized(lambda x: jnp.sum(x**2, axis=(1, 2))[:, :1] * jnp.ones((1, 2)), NOISE)
        many = classifier.expectation(random, jax.random.key(6), num_samples=2000)
        found = jax.grad(lambda x: many(x)[:, 0].sum())(images)
        np.testing.assert_allclose(found, 2 * images, atol=5 * 2 * 0.1 / np.sqrt(2000))

    def test_draws_depend_on_the_image_alone_and_are_fresh_when_it_moves(self, images, network):
        random = ddjax.randomized(jax.tree_util.Partial(lambda x: x.reshape(len(x), -1)), NOISE)
        once = classifier.expectation(random, jax.random.key(7), num_samples=1)
        noise = lambda x: once(x) - x.reshape(len(x), -1)
        turned = jnp.concatenate([images[3:], images[:3]])
        np.testing.assert_array_equal(once(turned), np.roll(once(images), -3, axis=0))
        np.testing.assert_array_equal(once(images[2:3]), once(images)[2:3])
        moved = images.at[:, 5, 5, 0].add(1e-4)
        correlation = np.corrcoef(np.ravel(noise(images)), np.ravel(noise(moved)))[0, 1]
        assert abs(correlation) < 0.2
        other = classifier.expectation(random, jax.random.key(8), num_samples=1)
        assert abs(np.corrcoef(np.ravel(noise(images)), np.ravel(other(images) - images.reshape(6, -1)))[0, 1]) < 0.2

    def test_digests_differ_for_any_pixel(self):
        images = (
            jnp.zeros((257, 16, 16, 1)).at[jnp.arange(256), jnp.arange(256) // 16, jnp.arange(256) % 16, 0].set(1.0)
        )
        assert len(set(np.asarray(classifier._digest(images)).tolist())) == 257

    def test_draws_differ_where_the_last_bit_of_any_dtype_differs(self):
        for dtype in ("bfloat16", "float32", "float64"):
            with jax.enable_x64(dtype == "float64"):
                one = jnp.full((1, 3), 0.7, dtype)
                other = one.at[0, 1].set(jnp.nextafter(one[0, 1], jnp.asarray(1, dtype)))
                assert classifier._digest(one)[0] != classifier._digest(other)[0]

    def test_form_follows_the_platform_of_the_lowering(self, images, network):
        """One draw after the other on a CPU, all at once elsewhere, whatever the process runs on."""
        many = classifier.expectation(ddjax.randomized(network, NOISE), jax.random.key(4), num_samples=7)
        traced = jax.jit(lambda x: many(x)).trace(images)
        all_at_once = "tensor<7x6x64xf32>"
        on = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda")}
        assert all_at_once in on["cuda"]
        assert all_at_once not in on["cpu"]
        by_hand = jnp.stack([many.args[0](images, keys) for keys in classifier._keys_of(many.args[1], images, 7)])
        np.testing.assert_allclose(many(images), by_hand.mean(0), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"num_samples": 0}, "num_samples must be a whole number of at least 1, got 0"),
            ({"average": "losses"}, "unknown average 'losses'; known: logits, probs"),
        ],
    )
    def test_refuses(self, network, settings, message):
        random = ddjax.randomized(network, NOISE)
        with pytest.raises(ValueError, match=message):
            classifier.expectation(random, jax.random.key(0), **settings)


SETTINGS = {
    "jsma": {"gamma": 0.3},
    "carlini_wagner_l2": {"search_steps": 3, "num_steps": 40, "learning_rate": 0.1, "initial_const": 0.5},
    "carlini_wagner_l0": {"num_steps": 20, "learning_rate": 0.1, "initial_const": 0.5, "largest_const": 50.0},
    "carlini_wagner_linf": {"num_steps": 30, "learning_rate": 0.1},
}


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_every_attack_passes_what_stops_the_blind_one(images, network, name):
    """Rounding leaves no gradient; BPDA and draws of noise bring it back, for whatever attack."""
    labels = jnp.argmax(network(ROUND(images)), axis=1)
    targets = (labels + 1) % 3
    settings = SETTINGS.get(name, {})

    def successes(logits_fn):
        named = {"targets": targets} if name in ("jsma", "carlini_wagner_linf") else {}
        attack = lambda x: attacks.ATTACKS[name].function(
            logits_fn, x, labels, key=jax.random.key(9), **named, **settings
        )
        return int(jax.jit(attack)(images).success.sum())

    aware = classifier.bpda(ROUND)
    assert successes(ddjax.transformed(network, aware)) >= 3
    both = classifier.expectation(
        ddjax.randomized(network, classifier.transform(_rounded_noise)), jax.random.key(10), num_samples=3
    )
    assert successes(both) >= 3


def _rounded_noise(images, keys):
    return classifier.bpda(ROUND)(noisy(images, keys, scale=0.02))


class TestSingleDraw:
    def test_is_the_same_for_all_images_and_at_all_times(self, images, network):
        random = classifier.randomized(network, NOISE)
        key = jax.random.key(5)
        fixed = classifier.single_draw(random, key)
        for x in (images, images[::-1], images[2:3]):
            keys = jnp.stack([key] * len(x))
            np.testing.assert_allclose(fixed(x), random(x, keys), rtol=1e-6)
        np.testing.assert_allclose(fixed(images)[2:3], fixed(images[2:3]), rtol=1e-5)
        assert np.abs(fixed(images) - classifier.single_draw(random, jax.random.key(6))(images)).max() > 1e-3


def _stretched(parameters, codes):
    """An affine map from codes `[B, h, w, c]` to images of another shape."""
    return 0.5 + (codes.reshape(len(codes), -1) @ parameters).reshape(-1, 4, 4, 1)


@pytest.fixture(scope="module")
def decode():
    return jax.tree_util.Partial(_stretched, 0.1 * jax.random.normal(jax.random.key(11), (6, 16)))


@pytest.fixture(scope="module")
def linear():
    weights = jax.random.normal(jax.random.key(12), (16, 3))
    return jax.tree_util.Partial(lambda weights, x: (x - 0.5).reshape(len(x), -1) @ weights, weights)


@pytest.fixture(scope="module")
def codes():
    return jax.random.uniform(jax.random.key(13), (5, 1, 3, 2), minval=-1.0, maxval=1.0)


class TestReparameterized:
    def test_is_the_classifier_of_what_is_decoded(self, linear, decode, codes):
        seen = classifier.reparameterized(linear, decode)
        np.testing.assert_array_equal(seen(codes), linear(decode(codes)))
        np.testing.assert_allclose(jax.jit(seen)(codes), linear(decode(codes)), rtol=1e-5, atol=1e-6)
        gradient = jax.grad(lambda z: seen(z)[:, 0].sum())(codes)
        along = (decode.args[0] @ linear.args[0][:, 0]).reshape(1, 1, 3, 2)
        np.testing.assert_allclose(gradient, jnp.broadcast_to(along, codes.shape), rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("name", ["fgsm", "pgd", "ddn", "carlini_wagner_l2"])
    def test_an_attack_is_that_on_the_composed_classifier(self, linear, decode, codes, name):
        composed = jax.tree_util.Partial(
            lambda weights, z: z.reshape(len(z), -1) @ weights, decode.args[0] @ linear.args[0]
        )
        labels = jnp.argmax(composed(codes), axis=1)
        budget = {"epsilon": 0.2} if name in ("fgsm", "pgd") else {"num_steps": 150}
        budget |= {"learning_rate": 0.05, "initial_const": 1.0} if name == "carlini_wagner_l2" else {}
        attack = lambda fn: jax.jit(
            lambda fn, z: attacks.ATTACKS[name].function(
                fn, z, labels, key=jax.random.key(14), bounds=(-3.0, 3.0), **budget
            )
        )(fn, codes)
        found, wanted = attack(classifier.reparameterized(linear, decode)), attack(composed)
        np.testing.assert_array_equal(found.success, wanted.success)
        moved = [np.asarray(jnp.abs(result.inputs - codes), np.float64).reshape(5, -1) for result in (found, wanted)]
        if name in ("fgsm", "pgd"):
            # On a linear classifier both end in a corner of the ball, but where two classes tie.
            assert np.isclose(moved[0].max(1), 0.2, atol=1e-5).all()
            np.testing.assert_allclose(found.logits, wanted.logits, rtol=1e-3, atol=1e-3)
            return
        assert bool(found.success.all())
        size, like = (np.linalg.norm(change, axis=1) for change in moved)
        np.testing.assert_allclose(size, like, rtol=0.03)
        if name == "ddn":
            return
        slopes = np.asarray(composed.args[0], np.float64)
        least = []
        for point, label in zip(np.asarray(codes, np.float64).reshape(5, -1), np.asarray(labels), strict=True):
            gaps = slopes[:, label : label + 1] - np.delete(slopes, label, axis=1)
            least.append((point @ gaps / np.linalg.norm(gaps, axis=0)).min())
        assert (size >= 0.999 * np.asarray(least)).all()
        assert (size <= 1.03 * np.asarray(least)).all()

    def test_is_a_pytree_of_both(self, linear, decode, codes):
        traces = []

        @jax.jit
        def run(seen, codes):
            traces.append(1)
            return seen(codes)

        seen = classifier.reparameterized(linear, decode)
        assert len(jax.tree.leaves(seen)) == 2
        for scale in (1.0, 2.0):
            run(jax.tree.map(lambda leaf, scale=scale: scale * leaf, seen), codes)
        assert len(traces) == 1
        scales = jnp.asarray([1.0, 3.0])
        many = jax.vmap(lambda scale: jax.tree.map(lambda leaf: scale * leaf, seen)(codes))(scales)
        np.testing.assert_allclose(many[1], 9 * many[0], rtol=1e-4, atol=1e-5)

    def test_a_transform_may_decode(self, linear):
        images = jax.random.uniform(jax.random.key(15), (3, 4, 4, 1))
        seen = classifier.reparameterized(linear, ROUND)
        np.testing.assert_array_equal(seen(images), linear(ROUND(images)))
        again = classifier.reparameterized(linear, squeezers.squeezer("bit_depth_2"))
        assert jax.tree.structure(seen) == jax.tree.structure(again)
