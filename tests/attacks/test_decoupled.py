import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax.attacks.decoupled import ddn
from tests.attacks import linear

GRID = np.arange(256, dtype=np.float32) / np.float32(255)
compiled = jax.jit(ddn, static_argnames=("num_steps", "levels"))


def on_grid(shape, seed=0):
    return jnp.asarray(GRID[np.random.default_rng(seed).integers(0, 256, shape)])


def smooth(parameters, images):
    hidden = jnp.tanh((images - 0.5).reshape(images.shape[0], -1) @ parameters["first"])
    return hidden @ parameters["second"]


@pytest.fixture(scope="module")
def problem():
    """A smooth network, images on the grid, their decisions, and targets; some values are at the ends."""
    rng = np.random.default_rng(5)
    parameters = {
        "first": jnp.asarray(0.6 * rng.normal(size=(16, 12)), jnp.float32),
        "second": jnp.asarray(2 * rng.normal(size=(12, 4)), jnp.float32),
    }
    images = on_grid((12, 4, 4, 1), 6)
    images = images.at[:, 0].set(jnp.round(images[:, 0]))
    logits_fn = jax.tree_util.Partial(smooth, parameters)
    labels = jnp.argmax(logits_fn(images), axis=1).astype(jnp.int32)
    return logits_fn, images, labels, (labels + 1 + jnp.arange(12) % 3) % 4


@pytest.mark.parametrize("case", [((3, 4, 1), 2, 1), ((4, 4, 1), 10, 8)])
def test_ddn_on_linear_classifier_takes_the_least_distance(far_linear, case):
    logits_fn, images, labels, distances = far_linear(*case, order=2)
    nearest = jnp.asarray(distances.argmin(1), jnp.int32)
    attack = functools.partial(compiled, logits_fn, images, labels, num_steps=300, levels=0)
    for result in (attack(), attack(targets=nearest)):
        assert result.success.all()
        distance = linear.size(np.asarray(result.inputs, np.float64) - np.asarray(images, np.float64), "l2")
        assert (distance >= 0.999 * distances.min(1)).all()
        assert (distance <= 1.03 * distances.min(1)).all()
        np.testing.assert_array_equal(result.gradients, 300)


def in_numpy(parameters, images, labels, targets, num_steps, levels, gamma=0.05, norm=1.0):
    """The algorithm, one image at a time, in float64: the least distances."""
    first, second = (np.asarray(parameters[name], np.float64) for name in ("first", "second"))
    sign, classes = (-1, labels) if targets is None else (1, targets)
    found = []
    for x, label, wanted in zip(np.asarray(images, np.float64).reshape(len(images), -1), labels, classes, strict=True):
        farthest = np.linalg.norm(np.maximum(x, 1 - x))
        change, radius, best = np.zeros_like(x), norm, np.inf
        for i in range(num_steps + 1):
            hidden = np.tanh((x + change - 0.5) @ first)
            logits = hidden @ second
            adversarial = logits.argmax() != label if targets is None else logits.argmax() == wanted
            if adversarial:
                best = min(best, np.linalg.norm(change))
            probabilities = np.exp(logits - logits.max())
            probabilities /= probabilities.sum()
            slope = probabilities - np.eye(len(logits))[wanted]
            gradient = sign * (first @ ((1 - hidden**2) * (second @ slope)))
            rate = 0.01 + 0.99 * (1 + np.cos(np.pi * i / num_steps)) / 2
            change = change - rate * gradient / np.linalg.norm(gradient)
            radius = min(radius * (1 - gamma if adversarial else 1 + gamma), farthest)
            moved = x + change * radius / np.linalg.norm(change)
            if levels:
                moved = np.round(moved * (levels - 1)) / (levels - 1)
            change = np.clip(moved, 0, 1) - x
        found.append(best)
    return np.array(found)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("levels", [0, 256])
def test_steps_are_those_of_the_algorithm(problem, targeted, levels):
    logits_fn, images, labels, targets = problem
    targets = targets if targeted else None
    in_plain = None if targets is None else np.asarray(targets)
    # After any number of steps, for the schedule depends on it.
    for num_steps in (4, 40):
        result = compiled(logits_fn, images, labels, targets=targets, num_steps=num_steps, levels=levels)
        expected = in_numpy(logits_fn.args[0], images, np.asarray(labels), in_plain, num_steps, levels)
        np.testing.assert_array_equal(result.success, np.isfinite(expected))
        distance = linear.size(np.asarray(result.inputs, np.float64) - np.asarray(images, np.float64), "l2")
        found = np.asarray(result.success)
        # A value just between two levels may go to the other one.
        np.testing.assert_allclose(distance[found], expected[found], rtol=1e-2 if levels else 1e-3)
        if found.any():
            np.testing.assert_allclose(np.median(distance[found]), np.median(expected[found]), rtol=1e-3)
    assert found.all()


@pytest.mark.parametrize("levels", [256, 16])
def test_images_are_on_the_grid_to_the_bit(problem, levels):
    logits_fn, images, labels, _ = problem
    grid = np.arange(levels, dtype=np.float32) / np.float32(levels - 1)
    images = jnp.asarray(grid[np.round(np.asarray(images) * (levels - 1)).astype(int)])
    labels = jnp.argmax(logits_fn(images), axis=1).astype(jnp.int32)
    result = compiled(logits_fn, images, labels, num_steps=60, levels=levels)
    assert result.success.all()
    moved = np.asarray(result.inputs)
    np.testing.assert_array_equal(moved, grid[np.round(moved * (levels - 1)).astype(int)])
    # Something moves, and what does not is the clean value.
    same = np.abs(moved - images) < 0.5 / (levels - 1)
    np.testing.assert_array_equal(moved[same], np.asarray(images)[same])
    assert same.any()
    assert not same.all(axis=(1, 2, 3)).any()


def test_every_level_is_a_fixed_point():
    # An image of all levels, and a classifier that sees one more pixel only: the others have no gradient and stay.
    images = jnp.concatenate([jnp.asarray(GRID), jnp.full((4,), GRID[128])]).reshape(1, 26, 10, 1)
    logits_fn = jax.tree_util.Partial(lambda x: jnp.stack([0.6 - x[:, -1, -1, 0], x[:, -1, -1, 0] - 0.6], axis=1))
    result = compiled(logits_fn, images, jnp.zeros(1, jnp.int32), num_steps=50)
    assert result.success.all()
    np.testing.assert_array_equal(result.inputs.reshape(-1)[:-1], images.reshape(-1)[:-1])
    assert 0.6 <= float(result.inputs[0, -1, -1, 0]) < 0.62


def plateau(images):
    """Constant near the images, decided otherwise far from them."""
    size = jnp.sum(jnp.maximum(jnp.abs(images - 0.5) - 0.15, 0.0), axis=(1, 2, 3))
    return jnp.stack([0.2 + 0 * size, size], axis=1)


def test_direction_where_the_gradient_is_zero_comes_from_the_key_of_the_example():
    images, labels = jnp.full((6, 4, 4, 1), GRID[128]), jnp.zeros(6, jnp.int32)
    attack = lambda rows, keys: compiled(plateau_fn, images[rows], labels[rows], key=keys, num_steps=60)
    plateau_fn = jax.tree_util.Partial(plateau)
    rows = jnp.arange(6)
    keys = jax.random.split(jax.random.key(1), 6)
    result = attack(rows, keys)
    assert result.success.all()
    # The same image and six keys: six directions.
    assert len(np.unique(np.asarray(result.inputs).reshape(6, -1), axis=0)) == 6
    np.testing.assert_allclose(attack(rows[2:5], keys[2:5]).inputs, result.inputs[2:5], atol=1e-6)
    np.testing.assert_array_equal(attack(rows, keys).inputs, result.inputs)
    other = attack(rows, jax.random.split(jax.random.key(2), 6))
    assert (np.asarray(other.inputs) != result.inputs).any(axis=(1, 2, 3)).all()
    # A single key makes as many.
    assert len(np.unique(np.asarray(attack(rows, jax.random.key(3)).inputs).reshape(6, -1), axis=0)) == 6


def test_ddn_without_key_fails_where_the_gradient_is_zero():
    images, labels = jnp.full((3, 4, 4, 1), GRID[128]), jnp.zeros(3, jnp.int32)
    for levels in (0, 256):
        result = compiled(jax.tree_util.Partial(plateau), images, labels, num_steps=20, levels=levels)
        assert not result.success.any()
        np.testing.assert_array_equal(result.inputs, images)


def test_misclassified_input_is_returned_as_it_is(problem):
    logits_fn, images, labels, _ = problem
    result = compiled(logits_fn, images, (labels + 1) % 4, num_steps=10)
    assert result.success.all()
    np.testing.assert_array_equal(result.inputs, images)


def test_more_steps_are_not_worse_and_settings_are_swept(problem):
    logits_fn, images, labels, _ = problem
    of = lambda **settings: compiled(logits_fn, images, labels, levels=0, **settings)
    medians = [np.median(linear.size(of(num_steps=count).inputs - images, "l2")) for count in (10, 40, 200)]
    assert medians[0] > medians[1] > 0.999 * medians[2]
    gammas = jnp.array([0.05, 0.2])
    swept = jax.vmap(lambda gamma: compiled(logits_fn, images, labels, levels=0, num_steps=10, gamma=gamma))(gammas)
    for row, gamma in enumerate(gammas):
        np.testing.assert_allclose(swept.inputs[row], of(num_steps=10, gamma=gamma).inputs, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 0.0}, "gamma must be a finite number above 0 and below 1, got 0.0"),
        ({"gamma": 1.0}, "gamma must be a finite number above 0"),
        ({"initial_norm": 0.0}, "initial_norm must be a finite number above 0, got 0.0"),
        ({"initial_norm": float("nan")}, "initial_norm must be a finite number above 0, got nan"),
        ({"num_steps": 0}, "num_steps must be a whole number of at least 1, got 0"),
        ({"levels": 1}, "levels must be a whole number of at least 2, got 1"),
        ({"levels": -3}, "levels must be a whole number of at least 2"),
        ({"key": jax.random.split(jax.random.key(0), 5)}, "ddn needs one key or 12, one for each input, got \\(5,\\)"),
    ],
)
def test_bad_settings_are_refused(problem, settings, message):
    with pytest.raises(ValueError, match=message):
        ddn(*problem[:3], **settings)
