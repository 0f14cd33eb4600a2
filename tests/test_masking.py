import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ddjax import masking, parallel
from ddjax.classifier import Randomized, as_pytree, expectation

COUNT = 40
FAST = {"num_steps": 10, "num_random": 50}


def keys(seed, count=COUNT):
    return jax.random.split(jax.random.key(seed), count)


def _linear(weights, images):
    return (images - 0.5).reshape(images.shape[0], -1) @ weights


def linear(seed=0, scale=1.0):
    """Two classes, so that every step of a sound gradient attack is the best one."""
    weights = scale * np.random.default_rng(seed).normal(size=(16, 2))
    return jax.tree_util.Partial(_linear, jnp.asarray(weights, jnp.float32))


@pytest.fixture(scope="module")
def problem():
    """Images near gray, the decisions of `linear()` as labels, and the Linf distances to its boundary."""
    images = jnp.asarray(0.5 + np.random.default_rng(1).uniform(-0.1, 0.1, (COUNT, 4, 4, 1)), jnp.float32)
    logits_fn = linear()
    logits = np.asarray(logits_fn(images), np.float64)
    slope = np.abs(np.diff(np.asarray(logits_fn.args[0], np.float64))).sum()
    return images, jnp.asarray(logits.argmax(1), jnp.int32), np.abs(np.diff(logits)[:, 0]) / slope


@jax.custom_vjp
def _reversed(images):
    return images


_reversed.defvjp(lambda images: (images, None), lambda _, cotangent: (-cotangent,))


def rippled(images):
    """Every value counts as it is plus a ripple: gradients are right at the gray image and get stuck next to it."""
    period = 0.1 / 3
    height = jnp.sum(images - 0.5 + 0.02 * jnp.sin(2 * math.pi / period * (images - 0.5)), axis=(1, 2, 3))
    return jnp.stack([0.07 * 16 - height, height - 0.07 * 16], axis=1)


def shaken(images):
    """Hardly another function than `linear()`, but with quite other gradients."""
    logits = linear()(images)
    return logits + 0.002 * jnp.sum(jnp.sin(5000 * images), axis=(1, 2, 3))[:, None] * jnp.array([[1.0, -1.0]])


def smooth(images):
    rng = np.random.default_rng(3)
    first, second = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((16, 12), (12, 3)))
    return jnp.tanh((images - 0.5).reshape(-1, 16) @ first) @ second


# The classifiers as arguments, so that those of one kind share a program.
_probe = jax.jit(masking.probe, static_argnames=("radii", "num_steps", "num_random"))


def run(logits_fn, images, labels, *, judge=None, substitute=None, epsilon=0.03, **settings):
    given = {"judge": judge, "substitute": substitute}
    given = {name: as_pytree(classifier) for name, classifier in given.items() if classifier is not None}
    settings = {**FAST, **given, **settings, "epsilon": jnp.float32(epsilon)}
    return jax.tree.map(np.asarray, _probe(as_pytree(logits_fn), images, labels, keys(2, len(images)), **settings))


@pytest.fixture(scope="module")
def sound(problem):
    images, labels, _ = problem
    return run(linear(), images, labels, substitute=linear(5))


def test_linear_classifier_is_broken_from_its_distance_on(problem, sound):
    _, _, distance = problem
    assert sound.correct.all()
    assert (np.abs(distance[:, None] / 0.03 - np.array(masking.RADII)) > 1e-4).all()
    expected = distance[:, None] < 0.03 * np.array(masking.RADII)
    np.testing.assert_array_equal(sound.by_radius, expected)
    assert 0 < expected[:, 2].sum() < COUNT
    np.testing.assert_array_equal(sound.many_steps, expected[:, 2])
    np.testing.assert_array_equal(sound.one_step, expected[:, 2])
    assert not (sound.random & ~expected[:, 2]).any()
    assert not (sound.transfer & ~expected[:, 2]).any()
    assert sound.whole_box.all()
    np.testing.assert_array_equal(sound.zeros, np.zeros(COUNT))


def test_shape_units_and_mask(problem, sound):
    """The same classifier of vectors in other units, each feature from another number on, is seen alike."""
    images, labels, _ = problem
    low = jnp.arange(-8.0, 8.0)
    shifted = jax.tree_util.Partial(lambda low, x: linear()((x - low[None]).reshape(-1, 4, 4, 1)), low)
    inputs, bounds = images.reshape(COUNT, 16) + low[None], (low, low + 1)
    probe = run(shifted, inputs, labels, bounds=bounds, mask=jnp.ones(16, bool))
    for name in ("correct", "one_step", "many_steps", "whole_box", "by_radius"):
        assert np.mean(getattr(probe, name) == getattr(sound, name)) > 0.97, name
    still = run(shifted, inputs, labels, bounds=bounds, mask=jnp.zeros(16, bool))
    assert still.correct.all()
    assert not (still.one_step | still.random | still.whole_box).any()


def named(name, probe):
    return next(light for light in masking.lights(probe) if light.name == name)


def colors(probe):
    return {light.name: light.color for light in masking.lights(probe)}


def test_sound_classifiers_are_green(problem, sound):
    images, _, _ = problem
    labels = jnp.argmax(smooth(images), axis=1).astype(jnp.int32)
    # One that withstands epsilon but not 4 epsilon.
    for probe in (sound, run(smooth, images, labels, epsilon=0.03), run(smooth, images, labels, epsilon=0.01)):
        assert set(colors(probe).values()) == {"green"}, colors(probe)
        assert masking.overall(masking.lights(probe)) == "green"
    assert len(colors(sound)) == 6
    assert "transfer" not in colors(probe)


@pytest.mark.parametrize(
    ("logits_fn", "red"),
    [
        (linear(scale=1e4), {"zero_gradient", "transfer", "whole_box", "random"}),
        (lambda images: linear()(jnp.round(16 * images) / 16), {"zero_gradient", "transfer", "whole_box", "random"}),
        (lambda images: linear()(_reversed(images)), {"transfer", "whole_box", "random"}),
        (shaken, {"transfer", "whole_box", "random"}),
    ],
    ids=["saturated", "rounded", "reversed", "shaken"],
)
def test_masked_gradients_are_red(problem, logits_fn, red):
    images, labels, _ = problem
    probe = run(logits_fn, images, labels, substitute=linear())
    found = colors(probe)
    assert {name for name, color in found.items() if color == "red"} == red
    assert masking.overall(masking.lights(probe)) == "red"


def test_steps_that_get_stuck_are_red():
    images, labels = jnp.full((COUNT, 4, 4, 1), 0.5), jnp.zeros(COUNT, jnp.int32)
    probe = run(rippled, images, labels, epsilon=0.1, num_steps=40)
    assert probe.one_step.all()
    assert not probe.many_steps.any()
    assert colors(probe)["one_step"] == "red"


def test_pgd_is_traced_once_for_all_radii(problem):
    images, labels, _ = problem

    def traces(radii):
        calls = []

        def counted(inputs):
            calls.append(1)
            return linear()(inputs)

        jax.eval_shape(lambda *batch: masking.probe(counted, *batch, radii=radii), images, labels, keys(2))
        return len(calls)

    assert traces((1.0, 2.0)) == traces((0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5)) > 0


def test_random_search_is_uniform_in_the_ball_and_the_box():
    threshold, count = 0.3, 600
    above = lambda images: jnp.stack([threshold - images[:, 0, 0, 0], images[:, 0, 0, 0] - threshold], axis=1)
    # From 0.1 the ball is cut off at 0: a quarter of what is left, [0, 0.4], is above the threshold.
    for value, radius, share in ((0.1, 0.3, 0.25), (0.2, 0.2, 0.25), (0.25, 0.04, 0.0)):
        images, labels = jnp.full((count, 1, 1, 1), value), jnp.zeros(count, jnp.int32)
        probe = run(above, images, labels, epsilon=radius, num_random=3)
        expected = 1 - (1 - share) ** 3
        assert stats.binomtest(int(probe.random.sum()), count, expected).pvalue > 1e-3


def test_devices_change_nothing(problem, sound):
    images, labels, _ = problem
    # Half of the batch on each device.
    fn = lambda shared, *batch: masking.probe(shared[0], *batch, substitute=shared[1], epsilon=0.03, **FAST)
    spread = jax.jit(parallel.over_examples(fn, parallel.make_mesh("data")))
    found = spread((linear(), linear(5)), images, labels, keys(2))
    jax.tree.map(np.testing.assert_array_equal, found, sound)


def test_gradients_that_tell_nothing():
    images = jnp.stack([jnp.full((2, 2, 1), value) for value in (0.2, 0.4, 0.6, 0.8)])

    def logits_fn(images):
        first, second = images[:, 0, 0, 0], images[:, 1, 1, 0]
        # The slope of the root of zero is infinite, and there is none where it is cut off.
        score = jnp.sqrt(jnp.maximum(first - 0.6, 0.0)) + jnp.maximum(second - 0.7, 0.0)
        return jnp.stack([score + 1, 0.5 * score], axis=1)

    probe = run(logits_fn, images, jnp.zeros(4, jnp.int32))
    np.testing.assert_array_equal(probe.zeros[[0, 1, 3]], [1, 1, 0.5])
    assert probe.zeros[2] == 1
    assert probe.correct.all()


def test_the_judge_decides():
    images, labels = jnp.full((4, 2, 2, 1), 0.5), jnp.array([0, 1, 0, 1], jnp.int32)
    mean = lambda images: jnp.mean(images, axis=(1, 2, 3))
    logits_fn = lambda images: jnp.stack([mean(images), 1 - mean(images)], axis=1)
    decided = lambda value, images: jnp.stack([jnp.zeros_like(labels, value.dtype) + value, 0 * mean(images)], axis=1)
    always = lambda value: jax.tree_util.Partial(decided, jnp.float32(value))
    probe = run(logits_fn, images, labels, judge=always(1.0), substitute=logits_fn)
    np.testing.assert_array_equal(probe.correct, [True, False, True, False])
    for broken in (probe.one_step, probe.many_steps, probe.transfer, probe.random, probe.whole_box, *probe.by_radius.T):
        np.testing.assert_array_equal(broken, [False, True, False, True])
    # What is not finite is neither right nor broken.
    probe = run(logits_fn, images, labels, judge=always(float("nan")))
    assert not probe.correct.any()
    assert not probe.by_radius.any()


def test_random_classifiers_are_not_broken_by_the_draws_that_were_seen():
    count = 400
    images, labels = jnp.full((count, 1, 1, 1), 0.5), jnp.zeros(count, jnp.int32)
    images = images + jnp.linspace(0, 0.1, count)[:, None, None, None]

    def noisy(images, keys):
        noise = jax.vmap(lambda key: jax.random.uniform(key, minval=-0.2, maxval=0.8))(keys)
        return jnp.stack([noise + 0 * images[:, 0, 0, 0], 0 * images[:, 0, 0, 0]], axis=1)

    seen, other = (expectation(Randomized(as_pytree(noisy)), jax.random.key(seed), num_samples=1) for seed in (0, 1))
    assert run(seen, images, labels, judge=seen).random.mean() > 0.95
    fair = run(seen, images, labels, judge=other)
    for broken in (~fair.correct, fair.random, fair.many_steps):
        assert stats.binomtest(int(broken.sum()), count, 0.2).pvalue > 1e-3


def made(count, *, by_radius=None, **broken):
    """A probe of a sound classifier, but for what is given: for each field how many of the first images are broken."""
    first = lambda number: np.arange(count) < number
    numbers = {"one_step": 0, "many_steps": count, "random": 0, "whole_box": count, "zeros": 0, **broken}
    fields = {name: first(number) for name, number in numbers.items()}
    rates = [first(number) for number in by_radius or (0, count // 2, count)]
    settings = {"correct": np.ones(count, bool), "transfer": None, "by_radius": np.stack(rates, axis=1), **fields}
    return masking.Probe(**settings)


@pytest.mark.parametrize("name", ["one_step", "transfer"])
@pytest.mark.parametrize("fewer", [0, 3, 20])
def test_two_attacks_are_compared_by_the_exact_sign_test(name, fewer):
    for more in range(40):
        # The first ones by the one, the last ones by many steps.
        probe = made(100, **{name: more, "many_steps": 0})
        many = np.arange(100) >= 100 - fewer
        both = np.arange(100) == 50
        setting = {name: getattr(probe, name) | both, "many_steps": many | both}
        light = named(name, dataclasses.replace(probe, **setting))
        p_value = stats.binomtest(more, more + fewer, 0.5, alternative="greater").pvalue if more + fewer else 1
        assert light.color == ("red" if p_value < 0.05 else "yellow" if more > fewer else "green")
        assert light.value == pytest.approx((more + 1) / 100)
        assert light.reference == pytest.approx((fewer + 1) / 100)
    assert light.color == "red"


@pytest.mark.parametrize("count", [20, 50, 1000])
@pytest.mark.parametrize("name", ["whole_box", "random", "zero_gradient"])
def test_what_should_never_happen_is_tolerated_up_to_chance(name, count):
    seen = set()
    for cases in (0, 1, 2, 3, 4, 10, 15, *([] if count == 20 else [16, 30])):
        broken = {
            "whole_box": {"whole_box": count - cases},
            "random": {"random": cases + 5, "many_steps": 5},
            "zero_gradient": {"zeros": cases},
        }[name]
        light = named(name, made(count, **broken))
        p_value = stats.binomtest(cases, count, 0.01, alternative="greater").pvalue
        assert light.color == ("red" if p_value < 0.05 else "yellow" if cases else "green")
        assert light.value == pytest.approx(1 - cases / count if name == "whole_box" else cases / count)
        seen.add(light.color)
    assert seen == {"red", "yellow", "green"}


@pytest.mark.parametrize(
    ("by_radius", "whole_box", "color", "value", "reference"),
    [
        ((5, 20, 60, 90), 100, "green", 0.9, 0.05),
        ((100, 100, 100), 100, "green", 1, 1),
        # As good as saturated from the start.
        ((97, 98, 98), 100, "green", 0.98, 0.97),
        ((10, 60, 59, 100), 100, "yellow", 0.59, 0.6),
        ((10, 60, 40, 100), 100, "red", 0.4, 0.6),
        # One fall of 20 in steps of 4.
        ((60, 56, 52, 48, 44, 40), 100, "red", 0.4, 0.6),
        ((10, 60, 90), 70, "red", 0.7, 0.9),
        # The radii may be too small.
        ((0, 0, 0), 100, "yellow", 0, 0),
        ((0, 1, 4), 100, "yellow", 0.04, 0),
        ((0, 1, 5), 100, "green", 0.05, 0),
        ((0, 0, 0), 50, "red", 0, 0),
        ((0, 1, 4), 90, "red", 0.04, 0),
    ],
)
def test_success_must_rise_with_the_radius(by_radius, whole_box, color, value, reference):
    probe = made(100, by_radius=by_radius, whole_box=whole_box)
    light = named("radius", probe)
    assert (light.color, light.value, light.reference) == (color, pytest.approx(value), pytest.approx(reference))
    assert ", ".join(f"{rate}%" for rate in (*by_radius, whole_box)) in light.explanation


def test_pairs_of_radii_share_the_level():
    for fall, color in ((6, "yellow"), (7, "red")):
        # Three radii and the box are six pairs: 2^-6 is more than 0.05 / 6, 2^-7 is not.
        probe = made(100, by_radius=(50, 50 - fall, 100))
        assert colors(probe)["radius"] == color


def test_only_images_that_are_right_count():
    right = np.arange(60) < 30
    among = made(30, one_step=12, many_steps=11, random=13, zeros=1)
    spread = lambda values: np.concatenate([values, np.ones((30, *values.shape[1:]), values.dtype)])
    probe = jax.tree.map(spread, among)
    probe_of_right = dataclasses.replace(probe, correct=right)
    found = masking.lights(probe_of_right)
    assert found == masking.lights(among)
    assert masking.lights(probe) != found
    assert (
        named("one_step", probe_of_right).explanation
        == "Of 30 images, 1 are broken only by one step and 0 only by many steps."
    )


@pytest.mark.parametrize(("count", "color"), [(0, "unknown"), (19, "unknown"), (20, "red")])
def test_few_images_tell_nothing(count, color):
    found = masking.lights(made(40, correct=count, zeros=40))
    assert [light.color for light in found if light.name == "zero_gradient"] == [color]
    assert masking.overall(found) == color
    assert (color == "unknown") == all(f"Only {count} images" in light.explanation for light in found)


def test_overall_is_the_worst():
    order = ["unknown", "green", "yellow", "red"]
    light = lambda color: masking.Light("random", color, 0.0, 0.0, "")
    assert masking.overall([]) == "unknown"
    for some in itertools.product(order, repeat=2):
        assert masking.overall([light(color) for color in some]) == order[max(map(order.index, some))]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be a finite number above 0"),
        ({"num_steps": 1}, "num_steps must be a finite number at least 2"),
        ({"num_random": 0}, "num_random must be a finite number at least 1"),
        ({"radii": (0.5, 2.0)}, "with 1 among them"),
        ({"radii": (1.0,)}, "two or more"),
        ({"radii": ()}, "two or more"),
        ({"radii": (2.0, 1.0)}, "ascending"),
        ({"radii": (0.0, 1.0)}, "radii must be a finite number above 0"),
        ({"substitute": lambda images: images[:, 0, :1, 0]}, "K at least 2"),
        ({"judge": lambda images: images[:, 0, :1, 0]}, "K at least 2"),
    ],
)
def test_refuses(problem, settings, message):
    images, labels, _ = problem

    def never(inputs):
        assert isinstance(inputs, jax.core.Tracer)
        return linear()(inputs)

    with pytest.raises(ValueError, match=message):
        masking.probe(never, images, labels, keys(0), **settings)
