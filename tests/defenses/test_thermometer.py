import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import defenses
from ddjax.binding import bind
from ddjax.defenses import thermometer
from ddjax.defenses.thermometer import Encoded, decode, dga, encode, ls_pga, ramp
from ddjax.models import build

LEVELS = (2, 7, 10, 16)
# One program each, which the tests share.
jitted_encode, jitted_decode = (jax.jit(function, static_argnames="levels") for function in (encode, decode))


def some(shape, levels, seed=0):
    """Images of which a third are on the borders of bins, and some at both ends, and the bin of each pixel."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(size=shape).astype(np.float32)
    border = rng.integers(levels + 1, size=shape)
    on_border = rng.uniform(size=shape) < 1 / 3
    bins = np.where(on_border, np.minimum(border, levels - 1), np.floor(images.astype(np.float64) * levels))
    return jnp.asarray(np.where(on_border, np.float32(border / levels), images)), bins.astype(int)


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_are_the_description(levels):
    images, bins = some((3, 5, 4, 2), levels)
    codes = np.asarray(jitted_encode(images, levels=levels))
    assert codes.shape == (3, 5, 4, 2 * levels)
    assert (codes.reshape(3, 5, 4, 2, levels)[..., 0] == 1).all()
    for channel in range(2):
        for bit in range(levels):
            np.testing.assert_array_equal(codes[..., channel * levels + bit], bit <= bins[..., channel])


@pytest.mark.parametrize("levels", LEVELS)
def test_decodes_to_the_center_of_the_bin(levels):
    images, bins = some((3, 5, 4, 2), levels)
    codes = jitted_encode(images, levels=levels)
    images_again = jitted_decode(codes, levels=levels)
    np.testing.assert_allclose(images_again, (bins + 0.5) / levels, atol=1e-6)
    assert np.abs(np.asarray(images_again) - np.asarray(images)).max() <= 0.5 / levels + 1e-6
    np.testing.assert_array_equal(jitted_encode(images_again, levels=levels), codes)


@pytest.mark.parametrize("levels", LEVELS)
def test_floor_of_the_ramp_is_the_code_and_one_ramp_is_active(levels):
    images, bins = some((3, 5, 4, 2), levels)
    own = lambda x: ramp(x, levels=levels)
    with_slope = jax.jit(lambda x: (own(x), jax.jvp(own, (x,), (jnp.ones_like(x),))[1]))
    found, slope = (np.asarray(part).reshape(3, 5, 4, 2, levels) for part in with_slope(images))
    wanted = np.clip(levels * np.asarray(images)[..., None] - np.arange(levels) + 1, 0, 1)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    if levels in (2, 16):
        # Products with other numbers are rounded, which may bring a pixel just below a border to it.
        np.testing.assert_array_equal(np.floor(found), np.reshape(jitted_encode(images, levels=levels), found.shape))
    np.testing.assert_array_equal(slope, levels * (np.arange(levels) == bins[..., None] + 1))
    assert (slope[bins == levels - 1] == 0).all()
    # In units of 0 to 255, levels / 256 up to what 256 stands for.
    assert (slope.sum(-1) == np.where(bins < levels - 1, levels, 0)).all()


def test_the_ramp_of_a_pixel_is_its_own_and_the_code_has_none():
    images, _ = some((1, 2, 2, 2), 4)
    jacobian = lambda function: np.asarray(jax.jit(jax.jacobian(lambda x: function(x, levels=4)))(images))
    of_ramp = jacobian(ramp).reshape(8, 4, 8)
    assert (of_ramp != 0).any()
    assert (of_ramp[~np.eye(8, dtype=bool)[:, None, :].repeat(4, axis=1)] == 0).all()
    assert (jacobian(encode) == 0).all()


def test_black_that_was_rounded_below_zero_is_black():
    below = jnp.full((1, 1, 1, 1), -1e-8)
    np.testing.assert_array_equal(encode(below), encode(jnp.zeros_like(below)))


def _linear(weights, codes):
    return codes.reshape(codes.shape[0], -1) @ weights


def linear(shape, levels, classes, seed=0, scale=0.02):
    """A classifier that is linear in the codes, far from where its softmax saturates."""
    size = int(np.prod(shape[1:])) * levels
    weights = np.random.default_rng(seed).normal(size=(size, classes)) * scale
    return jax.tree_util.Partial(_linear, jnp.asarray(weights, jnp.float32))


def test_aware_has_the_values_of_the_codes_and_the_gradient_of_the_ramp():
    images, bins = some((2, 3, 3, 2), 5)
    logits_fn = linear(images.shape, 5, 3)
    seen = defenses.defense("thermometer", levels=5).aware(logits_fn, jax.random.key(0))

    @jax.jit
    def look(images):
        gradient = jax.grad(lambda x: seen(x)[:, 1].sum())(images)
        return seen(images), logits_fn(encode(images, levels=5)), gradient

    logits, expected, gradient = look(images)
    np.testing.assert_array_equal(logits, expected)
    weights = np.asarray(logits_fn.args[0])[:, 1].reshape(3, 3, 2, 5)
    weights = np.concatenate([weights, np.zeros((3, 3, 2, 1))], axis=3)
    wanted = 5 * np.take_along_axis(np.broadcast_to(weights, (2, *weights.shape)), bins[..., None] + 1, axis=4)[..., 0]
    np.testing.assert_allclose(gradient, wanted, atol=1e-6)


class Recorder(nn.Module):
    """Gives back what it was given."""

    @nn.compact
    def __call__(self, codes, train=False):
        return codes.reshape(codes.shape[0], -1) * (2.0 if train else 1.0)


def test_encoded_takes_images_and_codes():
    images, _ = some((2, 3, 3, 2), 5)
    module = Encoded(Recorder(), levels=5, channels=2)
    codes = encode(images, levels=5)
    for given in (images, codes):
        np.testing.assert_array_equal(module.apply({}, given), codes.reshape(2, -1))
        np.testing.assert_array_equal(module.apply({}, given, train=True), 2 * codes.reshape(2, -1))
    with pytest.raises(ValueError, match="images of 2 channels or codes of 10, got 3 channels"):
        module.apply({}, jnp.zeros((1, 3, 3, 3)))


def test_encoded_network_binds_by_value_and_is_attacked_through_the_ramp():
    images, _ = some((2, 8, 8, 1), 16)
    make = lambda: bind(Encoded(build("digits", num_classes=10), channels=1), variables)
    variables = jax.jit(Encoded(build("digits", num_classes=10), channels=1).init)(jax.random.key(0), images)
    traces = []

    @jax.jit
    def logits_and_gradient(logits_fn, images):
        traces.append(None)
        return logits_fn(images), jax.grad(lambda x: logits_fn(x)[:, 0].sum())(images)

    logits, gradient = logits_and_gradient(make(), images)
    np.testing.assert_array_equal(logits_and_gradient(make(), images)[0], logits)
    assert len(traces) == 1
    assert logits.shape == (2, 10)
    assert float(jnp.abs(gradient).max()) == 0
    seen, gradient = logits_and_gradient(defenses.defense("thermometer").aware(make(), jax.random.key(0)), images)
    np.testing.assert_allclose(seen, logits, atol=1e-5)
    assert float(jnp.abs(gradient).max()) > 0


def reachable(low, high, levels):
    """Whether each bin has a float between the two, from those where anything can change."""
    edges = np.float32(np.arange(1, levels) / levels)
    below = np.nextafter(edges, np.float32(0))
    points = np.concatenate([edges, below])
    allowed = np.zeros((*low.shape, levels), bool)
    for place in np.ndindex(low.shape):
        here = points[(points >= low[place]) & (points <= high[place])]
        for point in (*here, low[place], high[place]):
            allowed[(*place, int(np.sum(point >= edges)))] = True
    return allowed


def ball(images, epsilon):
    images = np.asarray(images)
    return np.maximum(images - np.float32(epsilon), 0), np.minimum(images + np.float32(epsilon), 1)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("epsilon", [0.0, 1 / 16, 0.031, 0.4, 2.0])
def test_allowed_bins_are_those_that_the_ball_reaches(levels, epsilon):
    images, bins = some((2, 4, 4, 2), levels)
    low, high = ball(images, epsilon)
    found = np.asarray(thermometer._allowed(jnp.asarray(low), jnp.asarray(high), levels))
    np.testing.assert_array_equal(found, reachable(low, high, levels))
    assert np.take_along_axis(found, bins[..., None], axis=4).all()


def attack(function, **settings):
    """The two attacks in the same form."""
    known = {"ls_pga": ls_pga, "dga": dga}
    return lambda *arguments, **others: known[function](*arguments, **settings, **others)


STRONG = {
    "ls_pga": {"num_steps": 60, "step_size": 1.0},
    "ls_pga noisy": {"num_steps": 60, "step_size": 1.0, "noisy_start": True},
    "ls_pga raw": {"num_steps": 60, "step_size": 300.0, "use_sign": False},
    "dga": {"num_steps": 2},
}


@pytest.mark.parametrize(("name", "targeted"), [*((name, False) for name in STRONG), ("ls_pga", True), ("dga", True)])
def test_finds_the_optimum_of_each_pixel_of_a_linear_classifier(name, targeted):
    levels, epsilon = 8, 0.3
    images, bins = some((6, 4, 3, 2), levels, seed=3)
    logits_fn = linear(images.shape, levels, 2)
    labels = jnp.asarray([0, 1, 0, 1, 1, 0], jnp.int32)
    run = attack(name.split()[0], levels=levels, epsilon=epsilon, **STRONG[name])
    result = jax.jit(lambda x, y, k: run(logits_fn, x, y, key=k, targets=1 - y if targeted else None))(
        images, labels, jax.random.key(4)
    )
    weights = np.asarray(logits_fn.args[0], np.float64).reshape(4, 3, 2, levels, 2)
    towards = np.where(np.asarray(labels)[:, None, None, None, None] == 0, 1, -1) * (weights[..., 1] - weights[..., 0])
    promise = np.where(reachable(*ball(images, epsilon), levels), np.cumsum(towards, axis=4), -np.inf)
    expected = np.arange(levels) <= promise.argmax(4)[..., None]
    codes = jitted_encode(result.inputs, levels=levels)
    np.testing.assert_array_equal(np.reshape(codes, expected.shape), expected)
    assert (expected.sum(4) - 1 != bins).mean() > 0.5


@pytest.fixture(scope="module")
def network():
    """A small random network of codes of 8 levels."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, codes, train=False):
            return nn.Dense(4)(nn.relu(nn.Dense(8)(codes.reshape(codes.shape[0], -1))))

    module = Encoded(Net(), levels=8, channels=2)
    return bind(module, jax.jit(module.init)(jax.random.key(1), jnp.zeros((1, 4, 4, 2))))


@pytest.fixture(scope="module")
def batch(network):
    images, _ = some((12, 4, 4, 2), 8, seed=5)
    return images, jax.jit(lambda f, x: jnp.argmax(f(x), axis=1).astype(jnp.int32))(network, images)


SETTINGS = {
    "ls_pga": {},
    "ls_pga noisy": {"noisy_start": True},
    "ls_pga raw": {"use_sign": False, "step_size": 30.0},
    "dga": {"random_start": False},
    "dga random": {},
}


def of_name(name, **settings):
    return attack(name.split()[0], levels=8, num_steps=5, **SETTINGS[name], **settings)


@pytest.mark.parametrize("name", SETTINGS)
def test_contract(network, batch, name):
    images, labels = batch
    keys = jax.random.split(jax.random.key(6), 12)
    epsilon = np.linspace(0.0, 0.4, 12, dtype=np.float32)
    run = jax.jit(lambda x, y, k, e, t: of_name(name)(network, x, y, key=k, epsilon=e, targets=t))
    logits = jax.jit(network)
    result = run(images, labels, keys, epsilon, None)
    adversarial = np.asarray(result.inputs)
    low, high = ball(images, epsilon[:, None, None, None])
    assert (adversarial >= low).all()
    assert (adversarial <= high).all()
    # Each pixel is the point of its bin that is closest to where it was.
    codes = np.asarray(jitted_encode(result.inputs, levels=8)).reshape(*images.shape, 8)
    before = np.asarray(jitted_encode(images, levels=8)).reshape(codes.shape)
    bins = codes.sum(4).astype(int) - 1
    lower, upper = np.float32(bins / 8), np.nextafter(np.float32((bins + 1) / 8), np.float32(0))
    up, down = codes.sum(4) > before.sum(4), codes.sum(4) < before.sum(4)
    np.testing.assert_array_equal(adversarial, np.where(up, lower, np.where(down, upper, images)))
    assert up.any()
    assert down.any()
    np.testing.assert_array_equal(adversarial[0], images[0])
    # What the classifier of images says of them.
    np.testing.assert_allclose(result.logits, logits(result.inputs), atol=1e-4)
    np.testing.assert_array_equal(result.success, np.argmax(result.logits, axis=1) != labels)
    assert 0 < result.success.sum() < 12
    assert (np.asarray(result.steps) == 5).all()
    assert (np.asarray(result.gradients) == 5).all()
    # Neither the batch nor the compiler matters, and a target is another attack.
    few = run(images[3:5], labels[3:5], keys[3:5], epsilon[3:5], None)
    np.testing.assert_array_equal(few.inputs, adversarial[3:5])
    targets = (np.asarray(labels) + 1) % 4
    aimed = run(images, labels, keys, epsilon, targets)
    np.testing.assert_array_equal(aimed.success, np.argmax(logits(aimed.inputs), axis=1) == targets)
    assert (np.asarray(aimed.inputs) != adversarial).any()


@pytest.mark.parametrize("name", ["ls_pga noisy", "dga random"])
def test_eager_is_jit_is_vmap_and_keys_matter(network, batch, name):
    images, labels = batch
    run = lambda x, key, epsilon: of_name(name)(network, x, labels, key=key, epsilon=epsilon).inputs
    compiled = jax.jit(run)
    found = compiled(images, jax.random.key(7), 0.2)
    np.testing.assert_array_equal(run(images, jax.random.key(7), 0.2), found)
    each = jax.jit(jax.vmap(run, in_axes=(None, None, 0)))(images, jax.random.key(7), jnp.asarray([0.1, 0.2]))
    np.testing.assert_array_equal(each[1], found)
    assert (np.asarray(each[0]) != np.asarray(found)).any()
    assert (np.asarray(compiled(images, jax.random.key(8), 0.2)) != np.asarray(found)).any()
    for epsilon in (jnp.nan, jnp.inf, -1.0):
        np.testing.assert_array_equal(compiled(images, jax.random.key(7), epsilon), images)


@pytest.mark.parametrize("name", ["ls_pga", "dga"])
def test_a_pixel_without_a_gradient_stays(name):
    images, _ = some((2, 3, 3, 1), 8)
    flat = jax.tree_util.Partial(lambda codes: jnp.sum(codes, axis=(1, 2, 3))[:, None] * jnp.zeros((1, 3)))
    settings = {"levels": 8, "epsilon": 0.5, "num_steps": 2} | ({"random_start": False} if name == "dga" else {})
    result = jax.jit(lambda x: attack(name, **settings)(flat, x, jnp.zeros(2, jnp.int32)))(images)
    np.testing.assert_array_equal(result.inputs, images)
    assert not result.success.any()


@pytest.mark.parametrize("name", ["ls_pga", "dga"])
def test_a_network_without_finite_logits_breaks_nothing(name):
    images, _ = some((2, 3, 3, 1), 8)
    broken = jax.tree_util.Partial(lambda codes: jnp.sum(codes, axis=(1, 2, 3))[:, None] * jnp.full((1, 3), jnp.nan))
    run = attack(name, levels=8, epsilon=0.5, num_steps=2)
    result = jax.jit(lambda x: run(broken, x, jnp.zeros(2, jnp.int32), key=jax.random.key(0)))(images)
    assert np.isfinite(result.inputs).all()
    assert not result.success.any()


def test_a_long_annealing_stays_finite(network, batch):
    images, labels = batch
    run = lambda steps: jax.jit(
        lambda x: ls_pga(network, x, labels, levels=8, epsilon=0.3, num_steps=steps, anneal=2.0)
    )(images)
    short, long = run(6), run(400)
    assert np.isfinite(long.inputs).all()
    # Infinite inverse temperatures undo nothing.
    assert int(long.success.sum()) >= int(short.success.sum()) > 0


def test_dga_keeps_the_best_of_what_it_has_visited(network, batch):
    images, labels = batch
    # The first codes without a start of its own are the clean ones, and no visit is forgotten.
    distances = []
    for steps in (1, 2, 6):
        run = attack("dga", levels=8, epsilon=0.1, num_steps=steps, random_start=False)
        result = jax.jit(lambda x, run=run: run(network, x, labels))(images)
        logits, is_own = np.asarray(result.logits), np.arange(4) == np.asarray(labels)[:, None]
        distances.append(logits[is_own] - np.where(is_own, -np.inf, logits).max(axis=1))
    assert (np.diff(distances, axis=0) <= 1e-5).all()


@pytest.mark.parametrize(
    ("function", "settings", "message"),
    [
        (ls_pga, {"epsilon": -0.1}, "epsilon must be a finite number at least 0"),
        (ls_pga, {"step_size": -1.0}, "step_size must be"),
        (ls_pga, {"inverse_temperature": 0.0}, "inverse_temperature must be a finite number above 0"),
        (ls_pga, {"anneal": 0.0}, "anneal must be a finite number above 0"),
        (ls_pga, {"num_steps": 0}, "num_steps must be a finite number at least 1"),
        (ls_pga, {"levels": 1}, "levels must be a finite number at least 2"),
        (ls_pga, {"noisy_start": True}, "ls_pga with a noisy start .*needs a key"),
        (ls_pga, {"targets": jnp.zeros(1, jnp.int32)}, "a target must differ"),
        (dga, {}, "dga with a random start .*needs a key"),
        (dga, {"random_start": False, "num_steps": 0}, "num_steps must be"),
        (dga, {"random_start": False, "epsilon": float("nan")}, "epsilon must be"),
    ],
)
def test_attacks_refuse(function, settings, message):
    images = jnp.full((1, 2, 2, 1), 0.5)
    logits_fn = linear(images.shape, settings.get("levels", 16), 2)
    with pytest.raises((ValueError, TypeError), match=message):
        function(logits_fn, images, jnp.zeros(1, jnp.int32), **settings)


def test_attacks_refuse_images_out_of_the_box():
    images = jnp.full((1, 2, 2, 1), 1.5)
    with pytest.raises(ValueError, match="must be finite and inside"):
        ls_pga(linear(images.shape, 16, 2), images, jnp.zeros(1, jnp.int32))


@pytest.mark.parametrize("function", [encode, ramp, decode])
def test_less_than_two_levels_are_refused(function):
    with pytest.raises(ValueError, match="levels must be a finite number at least 2, got 1"):
        function(jnp.zeros((1, 2, 2, 1)), levels=1)


def test_codes_that_are_not_whole_channels_are_refused():
    with pytest.raises(ValueError, match="codes of 16 levels need a multiple of 16 bits, got 17"):
        decode(jnp.zeros((1, 2, 2, 17)))
