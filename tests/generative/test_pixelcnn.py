import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy import special

from ddjax.generative import logistic_mixture, pixelcnn

pytestmark = pytest.mark.usefixtures("optax_promotion")


def network(channels, **settings):
    small = pixelcnn.PixelCNN(channels, width=4, blocks=1, levels=1, mixtures=2)
    return small.clone(**settings)


def random_density(model, shape, seed):
    """A network in which all layers matter, as they do not when training starts."""
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    like = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    rng = np.random.default_rng(seed)

    def draw(leaf):
        scale = 0.3 if leaf.ndim == 1 else 1.2 / math.sqrt(math.prod(leaf.shape[:-1]))
        return rng.normal(scale=scale, size=leaf.shape).astype(np.float32)

    return pixelcnn.density(model, jax.tree.map(draw, like))


def random_levels(seed, shape):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.float32)


def random_parameters(seed, count, channels, mixtures=3, least=-4.5):
    """Parameters of mixtures `[count, P]` that have something to tell about all levels."""
    rng = np.random.default_rng(seed)
    shape = (count, mixtures)
    parts = [
        rng.normal(size=(*shape, 1)),
        rng.uniform(-1.1, 1.1, (*shape, channels)),
        rng.uniform(least, -1.0, (*shape, channels)),
        rng.normal(size=(*shape, channels * (channels - 1) // 2)),
    ]
    return np.concatenate(parts, -1).reshape(count, -1).astype(np.float32)


# What a pixel depends on


@pytest.mark.parametrize(("channels", "levels"), [(3, 1), (1, 3)])
def test_parameters_follow_from_the_pixels_before_and_from_nothing_else(channels, levels):
    shape = (7, 6, channels)
    density = random_density(network(channels, levels=levels), shape, 0)
    images = random_levels(1, (1, *shape))
    count = jax.eval_shape(lambda density, images: density(images), density, images).shape[-1]
    weights = np.random.default_rng(2).normal(size=count).astype(np.float32)

    @jax.jit
    def jacobian(density, images):
        # All parameters of a pixel at once, by a mean that nothing cancels in.
        told = lambda images: jnp.ravel(jnp.tanh(density(images)) @ weights)
        return jax.jacrev(told)(images)

    found = np.asarray(jacobian(density, images)).reshape(42, 42, channels)
    # Rows are the pixels whose parameters they are, columns those that they depend on.
    before = np.tri(42, k=-1, dtype=bool)
    assert np.all(found[~before] == 0)
    depends = np.abs(found) > 0
    rows, columns = np.divmod(np.arange(42), 6)
    down, along = rows[:, None] - rows[None], columns[:, None] - columns[None]
    # With one level it sees no further than its few convolutions go; with more, the whole image.
    near = (down <= 2) & (np.abs(along) <= 2) if levels == 1 else np.ones_like(before)
    assert np.all(depends[before & near])


def test_all_pixels_of_a_full_network_are_those_that_are_set_one_by_one():
    # Odd sizes at all resolutions.
    shape = (7, 5, 3)
    density = random_density(network(3, blocks=2, levels=3), shape, 3)
    start = random_levels(4, (2, *shape))
    evaluate = jax.jit(lambda density, images: density(images))
    count = evaluate(density, start).shape[-1]
    projection = np.random.default_rng(5).normal(scale=1 / math.sqrt(count), size=(count, 3)).astype(np.float32)

    def choose(parameters, pixel, row, column):
        # Smooth, so that rounding stays rounding; of all parameters, of the pixel as it was, and of the place.
        angles = parameters @ projection + pixel / 100 + (row + 0.1 * column)
        return 127.5 + 100 * jnp.sin(angles)

    found = jax.jit(lambda density, images: pixelcnn.autoregress(density, images, choose))(density, start)
    images = np.array(start)
    for row in range(7):
        for column in range(5):
            parameters = np.asarray(evaluate(density, images))[:, row, column]
            angles = parameters @ projection + images[:, row, column] / 100 + (row + 0.1 * column)
            images[:, row, column] = 127.5 + 100 * np.sin(angles)
    np.testing.assert_allclose(found, images, atol=0.02)
    # The choices differ by image and by pixel, or else nothing would be seen of mistakes.
    assert np.std(images, axis=(1, 2)).min() > 30


# The mixture


def oracle(parameters, levels):
    """The logarithm of a pixel's probability in float64, as the definition has it, from the parameters `[P]`."""
    channels = len(levels)
    table = np.asarray(parameters, np.float64).reshape(-1, 1 + 2 * channels + channels * (channels - 1) // 2)
    x = np.asarray(levels, np.float64) / 127.5 - 1
    total = 0.0
    for weight, row in zip(special.softmax(table[:, 0]), table, strict=True):
        means, scales = row[1 : 1 + channels], np.exp(np.maximum(row[1 + channels : 1 + 2 * channels], -7))
        coefficients = np.tanh(row[1 + 2 * channels :])
        given = 1.0
        for channel in range(channels):
            first = channel * (channel - 1) // 2
            mean = means[channel] + coefficients[first : first + channel] @ x[:channel]
            upper = 1.0 if levels[channel] == 255 else special.expit((x[channel] + 1 / 255 - mean) / scales[channel])
            lower = 0.0 if levels[channel] == 0 else special.expit((x[channel] - 1 / 255 - mean) / scales[channel])
            given *= upper - lower
        total += weight * given
    with np.errstate(divide="ignore"):
        return np.log(total)


# Compiled, because that takes less time than operation by operation.
channel_log_probs = jax.jit(lambda *given: logistic_mixture.channel_log_probs(*given), static_argnums=2)
bits_per_dimension = jax.jit(lambda density, levels: pixelcnn.bits_per_dimension(density, levels))


@jax.jit
def log_prob_of_pixels(parameters, levels):
    return logistic_mixture.log_prob(parameters[:, None, None], levels[:, None, None])


@pytest.mark.parametrize("channels", [1, 3])
def test_log_probs_are_those_of_the_definition(channels):
    parameters = random_parameters(6, 60, channels, least=-3.0)
    levels = np.random.default_rng(7).integers(0, 256, (60, channels))
    # The ends of the range have all beyond them.
    levels[:4], levels[4:8] = 0, 255
    found = log_prob_of_pixels(parameters, levels.astype(np.uint8))
    expected = [oracle(*each) for each in zip(parameters, levels, strict=True)]
    # Where the plain difference of two numbers next to 1 is still worth something.
    known = np.array(expected) > math.log(1e-9)
    assert known.sum() >= 20
    np.testing.assert_allclose(np.asarray(found)[known], np.array(expected)[known], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_follow_from_those_before_by_the_chain_rule(channels):
    parameters = random_parameters(8, 6, channels)
    levels = random_levels(9, (6, channels))
    total = np.zeros(6)
    for channel in range(channels):
        found = channel_log_probs(parameters, levels, channel)
        np.testing.assert_allclose(np.exp(np.asarray(found, np.float64)).sum(1), 1, atol=1e-5)
        total += np.asarray(found)[np.arange(6), np.asarray(levels[:, channel], int)]
        # What comes after does not matter.
        later = levels.copy()
        later[:, channel:] = random_levels(10, (6, channels - channel))
        np.testing.assert_array_equal(channel_log_probs(parameters, later, channel), found)
    np.testing.assert_allclose(log_prob_of_pixels(parameters, levels), total, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("log_scale", [-7.0, -5.0])
def test_far_away_levels_lose_no_digits(log_scale):
    # One logistic around the level 20, with a scale of a ninth of a level or of a whole one.
    mean, scale = 20 / 127.5 - 1, math.exp(log_scale)
    parameters = np.array([[0.0, mean, log_scale]], np.float32)
    found = np.asarray(channel_log_probs(parameters, np.zeros((1, 1), np.float32), 0))[0]
    away = (np.arange(256) / 127.5 - 1 - mean) / scale
    half = 1 / 255 / scale
    # log(s(a + h) - s(a - h)) = log((1 - exp(-2 h)) s(a + h) s(h - a)), where s is the logistic function.
    expected = np.log(-np.expm1(-2 * half)) + special.log_expit(away + half) + special.log_expit(half - away)
    expected[0], expected[255] = special.log_expit(away[0] + half), special.log_expit(half - away[255])
    assert np.isfinite(found).all()
    assert found[255] < -200
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    # Scales are no smaller than that.
    smaller, least = (np.array([[0.0, mean, end]], np.float32) for end in (-50.0, -7.0))
    level = np.full((1, 1), 200, np.float32)
    value, gradient = jax.jit(jax.value_and_grad(lambda p: log_prob_of_pixels(p, level).sum()))(smaller)
    assert float(value) == pytest.approx(np.asarray(log_prob_of_pixels(least, level)).item(), rel=1e-6)
    assert np.isfinite(gradient).all()


def constant(parameters, images):
    """The same parameters for all pixels of all images."""
    return jnp.broadcast_to(parameters[None, None, None], (*images.shape[:3], *parameters.shape))


def test_bits_of_a_distribution_that_is_as_good_as_uniform():
    # Logistics side by side whose sum is flat; the ends of the range have more than their share.
    centers = np.linspace(-1.2, 1.2, 241)
    table = np.stack([np.zeros(241), centers, np.full(241, math.log(0.03))], 1)
    density = Partial(constant, table.ravel().astype(np.float32))
    levels = np.random.default_rng(11).integers(1, 255, (3, 4, 2, 1)).astype(np.uint8)
    # 2.4 wide, of which a level takes 2 / 255.
    bits = math.log2(2.41 / (2 / 255))
    np.testing.assert_allclose(bits_per_dimension(density, levels), bits, atol=0.02)
    # The mean over all values of an image, not over pixels.
    parameters = random_parameters(12, 1, 3)[0]
    levels = random_levels(13, (2, 3, 2, 3))
    nats = log_prob_of_pixels(np.broadcast_to(parameters, (12, len(parameters))), levels.reshape(12, 3))
    found = bits_per_dimension(Partial(constant, parameters), levels)
    np.testing.assert_allclose(found, -np.asarray(nats).reshape(2, 6).sum(1) / (18 * math.log(2)), rtol=1e-5)


# Samples


def of_constants(density, parameters):
    """The same network with parameters that do not depend on the image."""
    variables = jax.tree.map(np.zeros_like, density.args[0])
    variables["params"]["last"]["bias"] = parameters
    return Partial(density.func, variables)


@pytest.mark.parametrize("shape", [(1, 2, 1), (1, 1, 2)])
def test_frequencies_of_samples_are_their_probabilities(shape):
    """By pixels and by channels: of each pair of values the second one depends on the first."""
    density = random_density(network(shape[2]), shape, 14)
    if shape[2] == 2:
        # Of two logistics, each with a weight, two means, two logarithms of scales and a coefficient.
        table = [[0.0, -0.5, -0.3, -2.0, -2.0, 0.5], [0.3, 0.5, 0.3, -2.0, -1.5, -0.5]]
        density = of_constants(density, np.ravel(np.array(table, np.float32)))
    # Every image that there is.
    levels = np.stack(np.meshgrid(np.arange(256), np.arange(256), indexing="ij"), -1).reshape(-1, *shape)
    probability = jax.jit(lambda density, x: jnp.exp(logistic_mixture.log_prob(density(x), x)))
    expected = np.asarray(probability(density, levels.astype(np.float32)), np.float64)
    assert expected.sum() == pytest.approx(1, abs=1e-4)
    count = 5_000
    keys = jax.random.split(jax.random.key(15), count)
    drawn = np.asarray(jax.jit(lambda density, keys: pixelcnn.sample(density, keys, shape))(density, keys))
    np.testing.assert_array_equal(drawn, drawn.astype(np.uint8))
    # Quarters by the first value and by the second.
    table = expected.reshape(256, 256)
    edges = [np.searchsorted(np.cumsum(table.sum(axis)), [0.25, 0.5, 0.75]) for axis in (1, 0)]
    place = lambda pairs: 4 * np.digitize(pairs[:, 0], edges[0]) + np.digitize(pairs[:, 1], edges[1])
    bins = np.bincount(place(levels.reshape(-1, 2)), weights=expected, minlength=16)
    observed = np.bincount(place(drawn.reshape(-1, 2)), minlength=16) / count
    np.testing.assert_array_less(np.abs(observed - bins), 4.5 * np.sqrt(bins / count) + 1e-4)
    # Independent values would be seen to be wrong.
    independent = np.outer(bins.reshape(4, 4).sum(1), bins.reshape(4, 4).sum(0)).ravel()
    assert np.any(np.abs(independent - bins) > 5 * np.sqrt(bins / count))


def test_keys_decide_and_batch_mates_do_not_matter():
    shape = (3, 2, 3)
    density = random_density(network(3), shape, 16)
    draw = jax.jit(lambda density, keys: pixelcnn.sample(density, keys, shape))
    keys = jax.random.split(jax.random.key(17), 3)
    drawn = np.asarray(draw(density, keys))
    assert drawn.shape == (3, *shape)
    others = jax.jit(lambda keys: keys[np.array([2, 2, 1])])(keys)
    np.testing.assert_array_equal(draw(density, others), drawn[[2, 2, 1]])
    assert np.any(drawn[0] != drawn[1])
    # No two pixels or channels share a draw, which would show where all have the same distribution.
    parameters = np.zeros((2, 10), np.float32)
    parameters[:, 4:7] = -2
    same = np.asarray(draw(of_constants(density, np.ravel(parameters)), keys))[0]
    assert len(np.unique(same)) > 12


# Training


@pytest.fixture(scope="module")
def images():
    """Bytes of 5 x 4 pixels in two columns of grey, which are easy to learn."""
    rng = np.random.default_rng(18)
    made = np.where(np.arange(4)[None, None] < 2, 40, 200) + rng.integers(-3, 4, (24, 5, 4))
    return jnp.asarray(made[..., None].astype(np.uint8))


@pytest.fixture(scope="module")
def floats(images):
    return np.asarray(images, np.float32) / 255


def optimizer():
    return pixelcnn.make_optimizer(2e-2, 0.99)


@pytest.fixture(scope="module")
def state():
    create = lambda key: pixelcnn.create_state(network(1, dropout=0.2), optimizer(), (5, 4, 1), key)
    return jax.jit(create)(jax.random.key(0))


@pytest.fixture(scope="module")
def train_step():
    return jax.jit(functools.partial(pixelcnn.train_step, ema_decay=0.25))


@pytest.fixture(scope="module")
def train_epoch(images):
    return jax.jit(lambda state: pixelcnn.train_epoch(state, images, batch_size=8))


def bits(state, images):
    return np.asarray(bits_per_dimension(pixelcnn.density(state.network, state.trained), images))


def test_training_makes_images_likelier(state, images, train_epoch):
    # The running mean is what is used.
    before, told = bits(state, images), []
    for _ in range(15):
        state, metrics = train_epoch(state)
        told.append(float(metrics["bits_per_dimension"]))
    assert int(state.step) == 45
    assert told[-1] < told[0] - 1
    assert float(bits(state, images).mean()) < float(before.mean()) - 1


def test_a_step_repeats_and_rounds_to_bytes(state, floats, train_step):
    jax.tree.map(np.testing.assert_array_equal, state.params, state.ema_params)
    new, metrics = train_step(state, floats)
    # Noise of less than half a level is none.
    noise = np.random.default_rng(19).uniform(-0.4, 0.4, floats.shape).astype(np.float32)
    again, _ = train_step(state, floats + noise / 255)
    jax.tree.map(np.testing.assert_array_equal, new.params, again.params)
    moved = jax.tree.map(lambda a, b: float(np.abs(np.subtract(a, b)).max()), new.params, state.params)
    # Adam's first step is the learning rate.
    assert max(jax.tree.leaves(moved)) == pytest.approx(2e-2, rel=1e-3)
    # Another key and another step drop other units.
    for other in (state.replace(key=jax.random.key(20)), state.replace(step=jnp.int32(1))):
        _, told = train_step(other, floats)
        assert float(told["bits_per_dimension"]) != float(metrics["bits_per_dimension"])


def test_loss_is_the_mean_of_bits_where_nothing_is_dropped(state, images, floats, train_step):
    # Of units whose last layer gives zeros nothing is left to drop.
    without = {
        name: leaf if "first" in name or name == "last" else jax.tree.map(np.zeros_like, leaf)
        for name, leaf in state.params.items()
    }
    state = state.replace(params=without, ema_params=without)
    _, metrics = train_step(state, floats)
    assert float(metrics["bits_per_dimension"]) == pytest.approx(float(bits(state, images).mean()), rel=1e-5)


def test_the_running_mean_starts_with_a_short_memory(state, floats, train_step):
    expected, kept = jax.tree.map(np.asarray, state.ema_params), []
    for step in range(4):
        # From the third of these steps on it is the memory that was asked for.
        kept.append(min(0.25, (1 + step) / (10 + step)))
        state, _ = train_step(state, floats)
        mean = lambda old, new, part=kept[-1]: part * old + (1 - part) * np.asarray(new)
        expected = jax.tree.map(mean, expected, state.params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.ema_params, expected)
    assert kept[1] < kept[2] == kept[3]


def test_epochs_resume(state, train_epoch):
    once, _ = train_epoch(state)
    twice, _ = train_epoch(once)
    # As from a checkpoint: arrays alone.
    restored = {
        name: jax.device_put(jax.tree.map(np.asarray, getattr(once, name)))
        for name in ("params", "ema_params", "opt_state", "step")
    }
    resumed, _ = train_epoch(state.replace(**restored))
    for name in ("params", "ema_params"):
        jax.tree.map(np.testing.assert_array_equal, getattr(twice, name), getattr(resumed, name))


def test_states_of_equal_settings_share_a_program(state, floats, train_step):
    train_step(state, floats)
    before = train_step._cache_size()
    train_step(state.replace(network=network(1, dropout=0.2), optimizer=optimizer()), floats)
    assert train_step._cache_size() == before
    # Networks that are equal are one density to a program.
    densities = [random_density(network(1), (2, 2, 1), seed) for seed in (20, 21)]
    assert jax.tree.structure(densities[0]) == jax.tree.structure(densities[1])


@pytest.mark.parametrize("batch_size", [0, 25])
def test_refuses_batches_that_there_are_not(state, images, batch_size):
    with pytest.raises(ValueError, match=f"{batch_size}"):
        pixelcnn.train_epoch(state, images, batch_size=batch_size)
