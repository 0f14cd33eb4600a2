import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import attacks, classifier, defenses, losses
from ddjax.classifier import randomized, transform
from ddjax.defenses import defense_gan

SHAPE, LATENT = (3, 4, 1), 5


def keys(seed, count):
    return jax.random.split(jax.random.key(seed), count)


def _affine(weights, codes):
    return 0.5 + (codes @ weights).reshape(-1, *SHAPE)


def _clipped(weights, codes):
    return jnp.clip(_affine(weights, codes), 0, 1)


def _waves(weights, codes):
    return 0.5 + 0.5 * jnp.sin(_affine(weights, codes))


def generator(function, scale):
    """Codes times orthogonal rows of this norm."""
    rows = np.linalg.qr(np.random.default_rng(0).normal(size=(12, LATENT)))[0].T
    return jax.tree_util.Partial(function, jnp.asarray(scale * rows, jnp.float32))


@pytest.fixture(scope="module")
def linear():
    return generator(_affine, 0.1)


@pytest.fixture(scope="module")
def waves():
    """A generator with many nearest images that are not the nearest of all."""
    return generator(_waves, 3.0)


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(1), (4, *SHAPE))


@pytest.fixture(scope="module")
def network():
    weights = jax.random.normal(jax.random.key(2), (12, 3))
    return jax.tree_util.Partial(lambda weights, x: (x - 0.5).reshape(len(x), -1) @ weights, weights)


class TestReconstruct:
    def test_gives_back_what_an_invertible_generator_made(self):
        fn = generator(_clipped, 0.2)
        made = fn(jax.random.normal(jax.random.key(3), (6, LATENT)))
        run = jax.jit(lambda fn, x, k: defense_gan.reconstruct(x, k, fn, latent=LATENT, restarts=3, learning_rate=30.0))
        again = run(fn, made, keys(4, 6))
        assert float(jnp.mean((again - made) ** 2, axis=(1, 2, 3)).max()) < 1e-3

    def test_is_the_projection_on_the_range_of_a_linear_generator(self, linear, images):
        codes, errors = defense_gan.invert(
            images, keys(5, 4), linear, latent=LATENT, restarts=1, num_steps=300, learning_rate=100.0
        )
        rows = np.asarray(linear.args[0], np.float64)
        expected = (np.asarray(images, np.float64) - 0.5).reshape(4, 12) @ np.linalg.pinv(rows)
        np.testing.assert_allclose(codes, expected, atol=1e-3)
        np.testing.assert_allclose(errors, np.mean((linear(codes) - images) ** 2, axis=(1, 2, 3)), rtol=1e-5)

    def test_steps_are_those_of_momentum_with_a_late_decay(self, linear, images):
        settings = {"latent": LATENT, "restarts": 1, "learning_rate": 20.0, "momentum": 0.6}
        codes, errors = defense_gan.invert(images, keys(6, 4), linear, num_steps=7, **settings)
        rows = np.asarray(linear.args[0], np.float64)
        start = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), (LATENT,)))(keys(6, 4))
        wanted, velocity = np.asarray(start, np.float64), 0
        for step in range(7):
            lack = 0.5 + wanted @ rows - np.asarray(images, np.float64).reshape(4, 12)
            velocity = 0.6 * velocity + 2 / 12 * lack @ rows.T
            # ceil(0.8 * 7) = 6 long ones.
            wanted = wanted - (20 if step < 6 else 2) * velocity
        np.testing.assert_allclose(codes, wanted, atol=1e-5)
        # Of the codes after the last step.
        lack = 0.5 + wanted @ rows - np.asarray(images, np.float64).reshape(4, 12)
        np.testing.assert_allclose(errors, np.mean(lack**2, axis=1), rtol=1e-4)

    def test_more_restarts_never_do_worse_and_more_steps_rarely(self, waves, images):
        many = jnp.tile(images, (8, 1, 1, 1))
        run = lambda steps, restarts: jax.jit(
            lambda x: defense_gan.invert(
                x, keys(7, 32), waves, latent=LATENT, num_steps=steps, restarts=restarts, learning_rate=1.0
            )[1]
        )(many)
        errors = [np.asarray(run(20, restarts)) for restarts in (2, 3, 8)]
        # Programs of different numbers of starts round differently in each of the steps.
        assert (np.diff(errors, axis=0) <= 20 * np.finfo(np.float32).eps * errors[0][None]).all()
        assert errors[2].mean() < 0.9 * errors[0].mean()
        assert np.mean(run(60, 3) <= errors[1] + 1e-6) > 0.8

    def test_an_image_has_its_own_starts_whatever_its_batch(self, waves, images):
        same = jnp.tile(images[:1], (4, 1, 1, 1))
        run = jax.jit(
            lambda x, k: defense_gan.reconstruct(
                x, k, waves, latent=LATENT, num_steps=30, restarts=2, learning_rate=0.3
            )
        )
        together = run(same, keys(8, 4))
        assert float(jnp.abs(together[:-1] - together[1:]).max()) > 1e-3
        mixed = run(images.at[2].set(same[0]), keys(8, 4))
        np.testing.assert_allclose(mixed[2], together[2], atol=1e-5)
        alone = run(same[:1], keys(8, 4)[2:3])
        np.testing.assert_allclose(alone[0], together[2], atol=1e-4)

    def test_has_no_gradient(self, linear, images):
        run = lambda x, fn: defense_gan.reconstruct(x, keys(9, 4), fn, latent=LATENT, num_steps=3, restarts=2).sum()
        gradients = jax.grad(run, argnums=(0, 1))(images, linear)
        assert not any(leaf.any() for leaf in jax.tree.leaves(gradients))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"num_steps": 0}, "num_steps must be a whole number of at least 1, got 0"),
            ({"restarts": 0}, "restarts must be a whole number of at least 1, got 0"),
            ({"latent": 0}, "latent must be a whole number of at least 1, got 0"),
            ({"learning_rate": 0.0}, "learning_rate must be a finite number above 0"),
            ({"momentum": -0.1}, "momentum must be a finite number at least 0"),
            ({"momentum": 1.0}, "momentum must be a finite number at least 0 and below 1"),
        ],
    )
    def test_refuses(self, linear, images, settings, message):
        with pytest.raises(ValueError, match=message):
            defense_gan.reconstruct(images, keys(0, 4), linear, **{"latent": LATENT} | settings)

    def test_refuses_other_shapes(self, linear, images):
        with pytest.raises(ValueError, match=r"makes images of the shape \(3, 4, 1\), not \(4, 3, 1\)"):
            defense_gan.reconstruct(jnp.swapaxes(images, 1, 2), keys(0, 4), linear, latent=LATENT)


DEFENSE = {"latent": LATENT, "num_steps": 20, "restarts": 2, "learning_rate": 30.0}


class TestDefended:
    def test_sees_the_reconstruction_and_passes_gradients_straight_through(self, network, linear, images):
        seen = defense_gan.reconstruct(images, keys(10, 4), linear, **DEFENSE)
        exact = transform(defense_gan.reconstruct, **DEFENSE)
        blind, aware = (randomized(network, through, linear) for through in (exact, defenses.aware(exact)))
        for each in (blind, aware):
            np.testing.assert_allclose(each(images, keys(10, 4)), network(seen), atol=1e-5)
        gradient = lambda fn, *rest: jax.grad(lambda x: jnp.sum(fn(x, *rest)[:, 1] ** 2))(images)
        assert not gradient(blind, keys(10, 4)).any()
        expected = jax.grad(lambda x: jnp.sum(network(x)[:, 1] ** 2))(seen)
        np.testing.assert_allclose(gradient(aware, keys(10, 4)), expected, atol=1e-4)

    def test_is_a_pytree_that_attacks_take(self, network, linear, images):
        defended = randomized(network, defenses.aware(transform(defense_gan.reconstruct, **DEFENSE)), linear)
        assert len(jax.tree.leaves(defended)) == 2
        traces = []

        @jax.jit
        def run(defended, images, labels):
            traces.append(1)
            seen = classifier.expectation(defended, jax.random.key(11), num_samples=2)
            return attacks.pgd(seen, images, labels, key=jax.random.key(12), epsilon=0.5, num_steps=5)

        labels = jnp.argmax(network(defense_gan.reconstruct(images, keys(0, 4), linear, **DEFENSE)), axis=1)
        for scale in (1.0, 2.0):
            fooled = run(jax.tree.map(lambda leaf, s=scale: s * leaf, defended), images, labels)
        assert len(traces) == 1
        assert bool(fooled.success.any())


ATTACK = {"latent": LATENT, "inversion": {"restarts": 1, "learning_rate": 100.0}, "learning_rate": 0.1}


class TestManifoldAttack:
    @pytest.mark.parametrize("targeted", [False, True])
    def test_lands_on_the_closest_point_of_the_range_beyond_the_boundary(self, network, linear, images, targeted):
        """Through an affine generator the search is one among points of a plane, with half-spaces to reach."""
        # Of a margin that stays far from the edge of the box.
        images = 0.5 + 0.2 * (images - 0.5)
        rows, weights = (np.asarray(fn.args[0], np.float64) for fn in (linear, network))
        flat = np.asarray(images, np.float64).reshape(4, 12) - 0.5
        projected = flat @ np.linalg.pinv(rows) @ rows
        labels = np.argmax(projected @ weights, axis=1)
        targets = np.argmin(projected @ weights, axis=1) if targeted else None
        distances = np.full((4, 3), np.inf)
        for row, other in np.ndindex(4, 3):
            if other == labels[row] or (targeted and other != targets[row]):
                continue
            slope = weights[:, labels[row]] - weights[:, other]
            along = slope @ np.linalg.pinv(rows) @ rows
            needed = projected[row] @ slope / np.linalg.norm(along)
            distances[row, other] = np.hypot(needed, np.linalg.norm(flat[row] - projected[row]))
        wanted = None if targets is None else jnp.asarray(targets, jnp.int32)
        result = jax.jit(
            lambda fn, x, labels: defense_gan.manifold_attack(
                network,
                x,
                labels,
                key=jax.random.key(13),
                generator_fn=fn,
                targets=wanted,
                search_steps=9,
                num_steps=200,
                **ATTACK,
            )
        )(linear, images, jnp.asarray(labels, jnp.int32))
        assert bool(result.success.all())
        size = np.sqrt(np.sum((np.asarray(result.inputs, np.float64) - images) ** 2, axis=(1, 2, 3)))
        least = distances.min(1)
        assert (size >= least * (1 - 1e-4)).all()
        # With three classes the target's half-space may be met by another class's first.
        close = size <= 1.03 * least
        assert close.all() if not targeted else close.any()
        np.testing.assert_allclose(result.logits, network(result.inputs), atol=1e-5)
        np.testing.assert_array_equal(
            result.success, attacks.examples.is_adversarial(result.logits, jnp.asarray(labels, jnp.int32), wanted)
        )
        # They are the generator's.
        flat = np.asarray(result.inputs, np.float64).reshape(4, 12) - 0.5
        np.testing.assert_allclose(flat @ np.linalg.pinv(rows) @ rows, flat, atol=1e-5)

    def test_gives_the_clean_image_back_as_no_success(self, network, images):
        """A generator of one image only, of the label's class, while the clean images are of others."""
        point = jax.tree_util.Partial(lambda one, codes: one + 0 * codes.sum(1)[:, None, None, None], images[:1])
        labels = jnp.full(4, jnp.argmax(network(images[:1])), jnp.int32)
        clean = images.at[1].set(1 - images[0])
        assert int(jnp.argmax(network(clean), axis=1)[1]) != int(labels[0])
        result = defense_gan.manifold_attack(
            network,
            clean,
            labels,
            key=jax.random.key(14),
            generator_fn=point,
            search_steps=2,
            num_steps=5,
            **ATTACK,
        )
        assert not result.success.any()
        np.testing.assert_array_equal(result.inputs, clean)

    def test_is_not_stopped_by_the_defense_it_breaks(self, network, linear, images):
        """What lies in the range is reconstructed as it is."""
        images = 0.5 + 0.2 * (images - 0.5)
        through = {"latent": LATENT, "num_steps": 300, "restarts": 1, "learning_rate": 100.0}
        defended = defenses.defense("defense_gan").with_given(linear, **through).deployed(network)
        labels = jnp.argmax(defended(images, keys(15, 4)), axis=1).astype(jnp.int32)
        result = defense_gan.manifold_attack(
            network, images, labels, key=jax.random.key(16), generator_fn=linear, confidence=0.01, **ATTACK
        )
        assert bool(result.success.all())
        assert bool((jnp.argmax(defended(result.inputs, keys(17, 4)), axis=1) != labels).all())

    def test_refuses(self, network, linear, images):
        labels = jnp.zeros(4, jnp.int32)
        attack = lambda key, **settings: defense_gan.manifold_attack(
            network, images, labels, key=key, generator_fn=linear, latent=LATENT, **settings
        )
        with pytest.raises(TypeError, match="manifold_attack .*needs a key"):
            attack(None)
        with pytest.raises(ValueError, match="num_steps must be a whole number of at least 1"):
            attack(jax.random.key(0), num_steps=0)
        with pytest.raises(ValueError, match="restarts must be a whole number of at least 1"):
            attack(jax.random.key(0), inversion={"restarts": 0})
        with pytest.raises(ValueError, match="initial_const must be a finite number above 0"):
            attack(jax.random.key(0), initial_const=0.0)
        with pytest.raises(ValueError, match=r"codes must be of the shape \(4, 5\), got \(4, 3\)"):
            attack(None, codes=jnp.zeros((4, 3)))


class TestCarriedAttack:
    def test_carries_the_change_of_the_reconstruction_over_to_the_image(self, network, linear, images):
        """The change lies along the range, has the length of the radius, and moves the reconstruction by itself."""
        images = 0.5 + 0.2 * (images - 0.5)
        through = {"latent": LATENT, "num_steps": 300, "restarts": 1, "learning_rate": 100.0}
        defended = defenses.defense("defense_gan").with_given(linear, **through).deployed(network)
        labels = jnp.argmax(defended(images, keys(15, 4)), axis=1).astype(jnp.int32)
        radius = jnp.asarray([0.3, 0.25, 0.2, 0.15])
        attack = lambda key: defense_gan.carried_attack(
            network, images, labels, key=key, generator_fn=linear, epsilon=radius, confidence=0.01, **ATTACK
        )
        result = attack(jax.random.key(16))
        assert bool(result.success.all())
        change = np.asarray(result.inputs - images, np.float64)
        np.testing.assert_allclose(np.sqrt((change**2).sum((1, 2, 3))), radius, rtol=1e-4)
        rows, flat = np.asarray(linear.args[0], np.float64), change.reshape(4, 12)
        np.testing.assert_allclose(flat @ np.linalg.pinv(rows) @ rows, flat, atol=1e-5)
        before, after = (defense_gan.reconstruct(x, keys(17, 4), linear, **through) for x in (images, result.inputs))
        np.testing.assert_allclose(after - before, change, atol=1e-3)
        # The radius goes further than the nearest boundary.
        assert bool((losses.margin(network(before), labels) > 0).all())
        assert bool((losses.margin(network(after), labels) < 0).all())

    def test_gives_the_clean_image_back_where_nothing_is_found(self, network, images):
        point = jax.tree_util.Partial(lambda one, codes: one + 0 * codes.sum(1)[:, None, None, None], images[:1])
        labels = jnp.full(4, jnp.argmax(network(images[:1])), jnp.int32)
        result = defense_gan.carried_attack(
            network,
            images,
            labels,
            key=jax.random.key(14),
            generator_fn=point,
            epsilon=1.0,
            search_steps=2,
            num_steps=5,
            **ATTACK,
        )
        assert not result.success.any()
        np.testing.assert_array_equal(result.inputs, images)

    def test_refuses(self, network, linear, images):
        labels = jnp.zeros(4, jnp.int32)
        attack = lambda key, epsilon: defense_gan.carried_attack(
            network, images, labels, key=key, generator_fn=linear, epsilon=epsilon, **ATTACK
        )
        with pytest.raises(TypeError, match="carried_attack .*needs a key"):
            attack(None, 1.0)
        with pytest.raises(ValueError, match="epsilon must be a finite number above 0"):
            attack(jax.random.key(0), 0.0)
