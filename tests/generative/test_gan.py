import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax.generative import gan, resolution

# The lowering that compiles in the least time.
SMALL = {"width": 4, "latent": 6, "lowering": "plain"}
pytestmark = pytest.mark.usefixtures("optax_promotion")


def create(shape, seed, **settings):
    """Compiled, because that takes less time than operation by operation."""
    return jax.jit(lambda key: gan.create_state(shape, key, **settings))(jax.random.key(seed))


@pytest.fixture(scope="module")
def images():
    """Bytes of 8 x 8 pixels: a bright or a dark square in the middle of grey."""
    rng = np.random.default_rng(0)
    made = np.full((96, 8, 8, 1), 128, np.uint8)
    made[:, 2:6, 2:6] = np.where(rng.random((96, 1, 1, 1)) < 0.5, 255, 0)
    return jnp.asarray(made)


@pytest.fixture(scope="module")
def state():
    return create((8, 8, 1), 0, **SMALL)


@pytest.fixture(scope="module")
def train_step():
    return jax.jit(gan.train_step)


def test_rearrangements_are_inverse_and_move_blocks_to_channels():
    images = np.random.default_rng(1).normal(size=(2, 6, 4, 3)).astype(np.float32)
    deep = jax.jit(resolution.space_to_depth)(images)
    assert deep.shape == (2, 3, 2, 12)
    np.testing.assert_array_equal(jax.jit(resolution.depth_to_space)(deep), images)
    np.testing.assert_array_equal(np.asarray(deep)[1, 2, 1], np.ravel(images[1, 4:6, 2:4]))


@pytest.mark.parametrize("shape", [(28, 28, 1), (9, 5, 2)])
def test_shapes_and_range(shape):
    made = create(shape, 2, width=3, latent=5, lowering="plain")
    fn = gan.generator_fn(made.network, made.params)
    images = jax.jit(lambda fn: fn(gan.draw_codes(jax.random.key(3), 4, 5)))(fn)
    assert images.shape == (4, *shape)
    assert np.asarray(images).min() >= 0
    assert np.asarray(images).max() <= 1
    scores = jax.jit(made.network.critic.apply)({"params": made.params["critic"]}, images)
    assert scores.shape == (4,)
    assert np.isfinite(scores).all()


def test_networks_for_digits_have_the_papers_sizes():
    made = jax.eval_shape(lambda: gan.create_state((28, 28, 1), jax.random.key(0)).params)
    kernels = lambda params: {name: layer["kernel"].shape for name, layer in params.items()}
    assert kernels(made["generator"]) == {
        "dense": (128, 4 * 4 * 256),
        "up_0": (3, 3, 256, 4 * 128),
        "up_1": (3, 3, 128, 4 * 64),
        "up_2": (3, 3, 64, 4),
    }
    assert kernels(made["critic"]) == {
        "down_0": (3, 3, 4, 64),
        "down_1": (3, 3, 256, 128),
        "down_2": (3, 3, 512, 256),
        "dense": (4 * 4 * 256, 1),
    }


class Linear(gan.nn.Module):
    """A critic whose gradient is its weights, the same for every image."""

    @gan.nn.compact
    def __call__(self, images):
        weights = self.param("weights", gan.nn.initializers.normal(0.5), images.shape[1:])
        return jnp.sum(images * weights[None], axis=(1, 2, 3))


def test_penalty_of_a_linear_critic_and_its_gradient():
    critic, images = Linear(), np.random.default_rng(4).random((5, 3, 4, 2), np.float32)
    params = jax.jit(critic.init)(jax.random.key(5), images)["params"]
    penalty = jax.jit(jax.value_and_grad(lambda params, images: gan.gradient_penalty(critic, params, images)))
    value, gradient = penalty(params, images)
    weights = np.asarray(params["weights"], np.float64)
    # Over all values of an image, not by its rows.
    norm = np.linalg.norm(weights)
    assert float(value) == pytest.approx((norm - 1) ** 2, rel=1e-5)
    np.testing.assert_allclose(gradient["weights"], 2 * (norm - 1) * weights / norm, rtol=1e-4)
    value, gradient = penalty(jax.tree.map(np.zeros_like, params), images)
    assert float(value) == pytest.approx(1, abs=1e-5)
    assert np.isfinite(gradient["weights"]).all()


def test_a_step_moves_both_networks_and_repeats(state, images, train_step):
    batches = images.reshape(3, 32, 8, 8, 1)
    new, metrics = train_step(state, batches)
    again, _ = train_step(state, batches)
    jax.tree.map(np.testing.assert_array_equal, new.params, again.params)
    assert int(new.step) == 1
    assert {name: leaf.shape for name, leaf in metrics.items()} == {
        "wasserstein": (),
        "penalty": (),
        "generator_loss": (),
    }
    for name in ("generator", "critic"):
        moved = jax.tree.map(lambda a, b: float(np.abs(np.subtract(a, b)).max()), new.params[name], state.params[name])
        # At most about the learning rate with each step of Adam.
        most = 1.5e-4 * (3 if name == "critic" else 1)
        # But for the number that all scores have in common.
        assert moved["dense"].pop("bias") > 0 or name == "critic"
        assert all(0 < leaf <= most for leaf in jax.tree.leaves(moved)), moved
    counts = {name: int(opt_state[0].count) for name, opt_state in new.opt_state.items()}
    assert counts == {"generator": 1, "critic": 3}
    as_floats, _ = train_step(state, np.asarray(batches, np.float32) / 255)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.params, as_floats.params)


def test_other_keys_and_other_steps_draw_otherwise(state, images, train_step):
    batches = images.reshape(3, 32, 8, 8, 1)
    losses = [
        float(train_step(each, batches)[1]["generator_loss"])
        for each in (state, state.replace(key=jax.random.key(8)), state.replace(step=jnp.int32(1)))
    ]
    assert len(set(losses)) == 3


def test_epochs_resume(state, images):
    epoch = jax.jit(lambda state: gan.train_epoch(state, images, batch_size=16, critic_steps=2))
    once, metrics = epoch(state)
    assert int(once.step) == 3
    assert all(np.isfinite(leaf) for leaf in metrics.values())
    twice, _ = epoch(once)
    # As from a checkpoint: arrays alone.
    restored = state.replace(
        **{
            name: jax.device_put(jax.tree.map(np.asarray, getattr(once, name)))
            for name in ("params", "opt_state", "step")
        }
    )
    resumed, _ = epoch(restored)
    jax.tree.map(np.testing.assert_array_equal, twice.params, resumed.params)


def test_states_of_equal_settings_share_a_program(state, images, train_step):
    train_step(state, images.reshape(3, 32, 8, 8, 1))
    before = train_step._cache_size()
    train_step(create((8, 8, 1), 11, **SMALL), images.reshape(3, 32, 8, 8, 1))
    assert train_step._cache_size() == before


def test_critic_learns_what_is_real_and_generator_what_the_critic_knows(images):
    state = create((8, 8, 1), 12, width=6, latent=4, learning_rate=5e-3, lowering="plain")
    train = jax.jit(lambda state: gan.train_epoch(state, images, batch_size=16, critic_steps=3))
    first, early = train(state)
    _, later = train(first)
    assert float(later["wasserstein"]) > float(early["wasserstein"])
    for _ in range(40):
        state, _ = train(state)
    draw = jax.jit(lambda fn: fn(gan.draw_codes(jax.random.key(13), 200, 4)))
    made = np.asarray(draw(gan.generator_fn(state.network, state.params)))[..., 0]
    middle, rim = made[:, 2:6, 2:6], np.delete(made.reshape(200, 64), np.arange(64).reshape(8, 8)[2:6, 2:6], axis=1)
    np.testing.assert_allclose(rim.mean(), 0.5, atol=0.1)
    bright = middle.mean((1, 2)) > 0.5
    assert 0.15 < bright.mean() < 0.85
    assert middle[bright].mean() > 0.8
    assert middle[~bright].mean() < 0.2


def test_the_generator_is_a_pytree(state):
    fn = gan.generator_fn(state.network, state.params)
    assert len(jax.tree.leaves(fn)) == len(jax.tree.leaves(state.params["generator"]))
    traces = []

    @jax.jit
    def run(fn, codes):
        traces.append(1)
        return fn(codes)

    codes = gan.draw_codes(jax.random.key(14), 3, 6)
    found = [run(jax.tree.map(lambda leaf, s=scale: s * np.asarray(leaf), fn), codes) for scale in (1.0, 2.0)]
    assert len(traces) == 1
    assert np.abs(np.subtract(*found)).max() > 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, x: gan.create_state((8, 8, 1), jax.random.key(0), width=0), "width must be at least 1, got 0"),
        (lambda s, x: gan.create_state((8, 0, 1), jax.random.key(0)), "W must be at least 1, got 0"),
        (lambda s, x: gan.create_state((8, 8, 1), jax.random.key(0), learning_rate=0.0), "learning_rate must be"),
        (lambda s, x: gan.train_step(s, x[None], penalty=-1.0), "penalty must be a finite number at least 0"),
        (lambda s, x: gan.train_step(s, x[None, :0]), "images for each step of the critic"),
        (lambda s, x: gan.train_epoch(s, x, critic_steps=0), "critic_steps must be at least 1, got 0"),
        (lambda s, x: gan.train_epoch(s, x, batch_size=50), "batches of 250 cannot be drawn from 96"),
    ],
)
def test_refuses(state, images, call, message):
    with pytest.raises(ValueError, match=message):
        call(state, images)
