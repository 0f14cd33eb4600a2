import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.optimize

from ddjax import defenses
from ddjax.classifier import bpda, expectation, randomized, transform
from ddjax.defenses import input_transformations as it

# One program for each shape and setting, which the tests share.
truncate_bit_depth = jax.jit(it.truncate_bit_depth, static_argnames="bits")
total_variation = jax.jit(it.total_variation, static_argnames="num_iterations")
quilt = jax.jit(it.quilt, static_argnames=("overlap", "neighbors"))


def keys(seed, count=2):
    return jax.random.split(jax.random.key(seed), count)


def uniform(seed, *shape):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(uniform(0, 2, 9, 11, 3))


def linear(images):
    """Logits of four classes."""
    flat = images.reshape(images.shape[0], -1)
    weights = np.sin(np.arange(4 * flat.shape[1], dtype=np.float32)).reshape(-1, 4)
    return jnp.dot(flat, weights, precision="highest")


# Bit depth


@pytest.mark.parametrize("bits", range(1, 9))
def test_all_8_bit_values_lose_their_last_bits(bits):
    values = np.arange(256)
    images = (values.astype(np.float32) / np.float32(255)).reshape(1, 16, 16, 1)
    found = truncate_bit_depth(images, bits=bits)
    expected = (values // 2 ** (8 - bits) * 2 ** (8 - bits)).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(found, expected.reshape(1, 16, 16, 1))
    np.testing.assert_array_equal(truncate_bit_depth(found, bits=bits), found)


def test_truncation_has_no_gradient_but_by_bpda(images):
    truncate = transform(it.truncate_bit_depth)
    gradient = lambda defense: jax.jit(jax.grad(lambda x: defense(x).sum()))(images)
    np.testing.assert_array_equal(gradient(truncate), 0)
    np.testing.assert_array_equal(gradient(bpda(truncate)), 1)


@pytest.mark.parametrize("bits", [0, 9])
def test_bits_that_are_none(images, bits):
    with pytest.raises(ValueError, match="from 1 to 8"):
        it.truncate_bit_depth(images, bits=bits)


# Total variation


def masks(keys, keep, shape):
    return np.stack([jax.random.bernoulli(key, keep, (*shape[1:3], 1)) for key in keys])


def objective(found, images, kept, weight):
    """Of each image."""
    found = np.asarray(found, np.float64)
    variation = sum(np.abs(np.diff(found, axis=axis)).sum((1, 2, 3)) for axis in (1, 2))
    return (kept * (found - np.asarray(images)) ** 2).sum((1, 2, 3)) + weight * variation


def least(image, kept, weight):
    """The minimum and where it is, for one channel, as a quadratic program with bounds on the differences."""
    rows, columns = image.shape
    number = np.arange(image.size).reshape(image.shape)
    pairs = np.concatenate(
        [
            np.stack([number[:-1], number[1:]], -1).reshape(-1, 2),
            np.stack([number[:, :-1], number[:, 1:]], -1).reshape(-1, 2),
        ]
    )
    size, count = image.size, len(pairs)
    differences = np.zeros((count, size))
    differences[np.arange(count), pairs[:, 0]], differences[np.arange(count), pairs[:, 1]] = -1, 1
    bounds = np.block([[-differences, np.eye(count)], [differences, np.eye(count)]])
    flat, mask = image.ravel(), kept.ravel()

    def value(z):
        return (mask * (z[:size] - flat) ** 2).sum() + weight * z[size:].sum()

    def slope(z):
        return np.concatenate([2 * mask * (z[:size] - flat), np.full(count, weight)])

    start = np.concatenate([flat, np.abs(differences @ flat)])
    solved = scipy.optimize.minimize(
        value,
        start,
        jac=slope,
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda z: bounds @ z, "jac": lambda z: bounds},
        options={"maxiter": 500, "ftol": 1e-12},
    )
    assert solved.success
    return solved.fun, solved.x[:size].reshape(rows, columns)


@pytest.mark.parametrize("keep", [1.0, 0.6])
@pytest.mark.parametrize("weight", [0.05, 0.4])
def test_solution_is_that_of_the_quadratic_program(keep, weight):
    images = uniform(1, 2, 4, 4, 1)
    found = np.asarray(total_variation(images, keys(2), weight=weight, keep=keep, num_iterations=2000))
    kept = masks(keys(2), keep, images.shape)
    values = objective(found, images, kept, weight)
    for image, mask, one, value in zip(np.asarray(images, np.float64), kept, found, values, strict=True):
        minimum, place = least(image[..., 0], mask[..., 0], weight)
        assert value == pytest.approx(minimum, rel=1e-4)
        # With all pixels kept there is one solution only.
        if keep == 1:
            np.testing.assert_allclose(one[..., 0], place, atol=2e-4)


def test_two_pixels_come_together_by_the_weight():
    images = np.array([[0.2, 0.9], [0.4, 0.45]], np.float32).reshape(2, 1, 2, 1)
    found = total_variation(images, keys(0), weight=0.1, keep=1.0, num_iterations=300)
    np.testing.assert_allclose(np.reshape(found, (2, 2)), [[0.25, 0.85], [0.425, 0.425]], atol=1e-5)


def test_objective_falls(images):
    kept = masks(keys(3), 0.5, images.shape)
    solve = lambda number: it.total_variation(images, keys(3), weight=0.1, num_iterations=number)
    solutions = jax.jit(lambda: [solve(number) for number in (1, 3, 10, 30, 100)])()
    values = [objective(found, images, kept, 0.1) for found in solutions]
    assert (np.diff(values, axis=0) < 0).all()
    # Almost all of the way has been gone by then.
    assert (values[2] - values[4] < 0.1 * (values[0] - values[4])).all()
    assert (values[4] < 0.5 * objective(images, images, kept, 0.1)).all()


def test_no_weight_gives_back_what_is_observed(images):
    np.testing.assert_allclose(total_variation(images, keys(4), weight=0.0, keep=1.0), images, atol=1e-6)
    found = np.asarray(total_variation(images, keys(4), weight=1e-4, keep=0.7))
    kept = masks(keys(4), 0.7, images.shape)
    np.testing.assert_allclose(kept * found, kept * np.asarray(images), atol=1e-3)
    assert (np.abs(found - np.asarray(images)).max(axis=(1, 2, 3)) > 0.1).all()


def test_a_great_weight_leaves_the_mean():
    images = uniform(5, 1, 4, 4, 2)
    found = total_variation(images, keys(5, 1), weight=5.0, keep=1.0, num_iterations=1000)
    np.testing.assert_allclose(found, np.broadcast_to(images.mean((1, 2), keepdims=True), images.shape), atol=1e-3)


def test_nothing_of_dropped_pixels_shows(images):
    kept = masks(keys(6), 0.5, images.shape)
    for number in (1, 20):
        solve = lambda inputs, number=number: total_variation(inputs, keys(6), num_iterations=number)
        np.testing.assert_array_equal(solve(np.where(kept, images, np.float32(0.77))), solve(images))
    assert 0.3 < kept.mean() < 0.7


def test_solver_in_programs_and_for_odd_shapes(images):
    found = it.total_variation(images, keys(7), weight=0.2, keep=0.8)
    solve = jax.jit(lambda *settings: it.total_variation(images, keys(7), weight=settings[0], keep=settings[1]))
    np.testing.assert_allclose(solve(0.2, 0.8), found, atol=1e-6)
    many = jax.vmap(lambda weight: solve(weight, 0.8))(jnp.asarray([0.2, 0.0]))
    np.testing.assert_allclose(many[0], found, atol=1e-6)
    assert np.abs(np.asarray(many[1]) - np.asarray(found)).max() > 0.01
    single = total_variation(images[:, :1, :1], keys(8), keep=1e-6)
    np.testing.assert_array_equal(single, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -0.1}, "weight must be"),
        ({"keep": 0.0}, "keep must be"),
        ({"keep": 1.1}, "keep must be"),
        ({"num_iterations": 0}, "num_iterations must be"),
    ],
)
def test_settings_of_the_solver_that_are_none(images, settings, message):
    with pytest.raises(ValueError, match=message):
        it.total_variation(images, keys(0), **settings)


# Quilting


def test_patches_are_from_the_images_and_from_anywhere():
    # Each pixel says where it is from.
    images = np.arange(3 * 5 * 6 * 2, dtype=np.float32).reshape(3, 5, 6, 2)
    database = jax.jit(lambda *arrays: it.patch_database(*arrays, num_patches=400, patch=3))
    patches = np.asarray(database(images, jax.random.key(0)))
    windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), axis=(1, 2))
    windows = {float(window[0, 0, 0]): window for window in np.moveaxis(windows, 3, 5).reshape(-1, 3, 3, 2)}
    assert patches.shape == (400, 3, 3, 2)
    for patch in patches:
        np.testing.assert_array_equal(patch, windows[float(patch[0, 0, 0])])
    # All 36 of them, about equally often.
    counts = np.unique(patches[:, 0, 0, 0], return_counts=True)[1]
    assert len(counts) == len(windows) == 36
    assert counts.max() < 30
    assert not np.array_equal(database(images, jax.random.key(1)), patches)


@pytest.mark.parametrize(
    "settings", [{"num_patches": 0}, {"num_patches": 5, "patch": 0}, {"num_patches": 5, "patch": 10}]
)
def test_databases_that_are_none(images, settings):
    with pytest.raises(ValueError, match="a side from 1 to 9"):
        it.patch_database(images, jax.random.key(0), **settings)


def brute_force_seam(errors):
    length, places = errors.shape
    seams = [
        seam
        for seam in itertools.product(range(places), repeat=length)
        if all(abs(one - other) <= 1 for one, other in itertools.pairwise(seam))
    ]
    return min(seams, key=lambda seam: sum(errors[step, place] for step, place in enumerate(seam)))


@pytest.mark.parametrize("shape", [(5, 1), (5, 2), (5, 4), (1, 3)])
def test_seam_is_the_best_of_all(shape):
    errors = uniform(0, 20, *shape)
    found = np.asarray(jax.jit(it.minimum_error_seam)(errors))
    expected = [brute_force_seam(np.asarray(one, np.float64)) for one in errors]
    np.testing.assert_array_equal(found, expected)
    # The first place is one like the others.
    assert 0 in found[:, -1]


@pytest.mark.parametrize("entries", [2**20, 13 * 7, 1])
def test_nearest_patches_are_numpys(monkeypatch, entries):
    monkeypatch.setattr(it, "_ENTRIES", entries)
    tiles, patches = uniform(0, 20, 12), uniform(1, 13, 12)
    distances = ((tiles[:, None] - patches[None]) ** 2).sum(2)
    found = jax.jit(lambda *arrays: it._nearest(*arrays, 4))(tiles, patches)
    np.testing.assert_array_equal(found, np.argsort(distances, axis=1)[:, :4])


def naive_quilt(image, key, patches, overlap, neighbors):
    """Tile by tile, by the description; the draws are those of the function."""
    image, patches = np.asarray(image, np.float64), np.asarray(patches, np.float64)
    rows, columns = image.shape[:2]
    side = patches.shape[1]
    stride = side - overlap
    down, across = (max(int(np.ceil((length - side) / stride)), 0) + 1 for length in (rows, columns))
    pads = ((0, (down - 1) * stride + side - rows), (0, (across - 1) * stride + side - columns), (0, 0))
    padded = np.pad(image, pads, mode="symmetric")
    canvas = np.zeros_like(padded)
    draws = np.asarray(jax.random.randint(key, (down * across,), 0, neighbors)).reshape(down, across)
    for i, j in itertools.product(range(down), range(across)):
        at = np.s_[i * stride : i * stride + side, j * stride : j * stride + side]
        order = np.argsort(((patches - padded[at]) ** 2).sum((1, 2, 3)))
        patch, there = patches[order[draws[i, j]]], canvas[at]
        errors = ((patch - there) ** 2).sum(2)
        new = np.ones((side, side), bool)
        if j:
            for row, place in enumerate(brute_force_seam(errors[:, :overlap])):
                new[row, :place] = False
        if i:
            for column, place in enumerate(brute_force_seam(errors[:overlap].T)):
                new[:place, column] = False
        canvas[at] = np.where(new[..., None], patch, there)
    return canvas[:rows, :columns]


@pytest.mark.parametrize(("side", "overlap", "neighbors"), [(5, 2, 3), (4, 3, 1), (3, 1, 5)])
def test_quilting_is_the_description(images, side, overlap, neighbors):
    patches = uniform(1, 40, side, side, 3)
    found = quilt(images, keys(2), patches, overlap=overlap, neighbors=neighbors)
    for image, key, one in zip(images, keys(2), found, strict=True):
        np.testing.assert_allclose(one, naive_quilt(image, key, patches, overlap, neighbors), atol=1e-6)


@pytest.mark.parametrize("sides", [(11, 8), (9, 10), (3, 2)])
def test_an_image_is_rebuilt_from_its_own_tiles(sides):
    image = uniform(3, 1, *sides, 2)
    pads = [(0, max(-(-(side - 5) // 3), 0) * 3 + 5 - side) for side in sides]
    padded = np.pad(image[0], (*pads, (0, 0)), mode="symmetric")
    tiles = [
        padded[i : i + 5, j : j + 5] for i in range(0, padded.shape[0] - 4, 3) for j in range(0, padded.shape[1] - 4, 3)
    ]
    patches = np.concatenate([uniform(4, 10, 5, 5, 2), tiles])
    np.testing.assert_array_equal(quilt(image, keys(0, 1), patches, neighbors=1), image)


@pytest.fixture(scope="module")
def patches():
    return jnp.asarray(uniform(9, 30, 5, 5, 3))


RANDOM = {
    "total_variation": lambda images, keys, patches: it.total_variation(images, keys),
    "quilt": it.quilt,
    "random_crop": lambda images, keys, patches: it.random_crop(images, keys, size=6),
    "crop_ensemble": lambda images, keys, patches: it.crop_ensemble(linear, size=6, num_crops=2)(images, keys),
}


@pytest.mark.parametrize("name", RANDOM)
def test_an_image_has_its_own_draw_whatever_its_batch(images, patches, name):
    defend = jax.jit(RANDOM[name])
    images = np.asarray(images)
    together = np.asarray(defend(images, keys(5), patches))
    np.testing.assert_allclose(defend(images[::-1], keys(5)[::-1], patches)[0], together[1], atol=1e-5)
    np.testing.assert_allclose(defend(images[1:], keys(5)[1:], patches)[0], together[1], atol=1e-5)
    same = np.asarray(defend(np.stack([images[0], images[0]]), keys(5), patches))
    assert np.abs(same[0] - same[1]).max() > 0.05


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((9, 5, 4, 3), {}, "squares of 3 channels"),
        ((9, 5, 5, 1), {}, "squares of 3 channels"),
        ((9, 5, 5, 3), {"overlap": 0}, "an overlap from 1 to 4"),
        ((9, 5, 5, 3), {"overlap": 5}, "an overlap from 1 to 4"),
        ((9, 5, 5, 3), {"neighbors": 0}, "from 1 to 9 neighbors"),
        ((9, 5, 5, 3), {}, "from 1 to 9 neighbors"),
    ],
)
def test_patches_that_do_not_fit(images, shape, settings, message):
    with pytest.raises(ValueError, match=message):
        it.quilt(images, keys(0), jnp.zeros(shape), **settings)


def test_bpda_passes_keys_and_patches_on(images, patches):
    defense = transform(it.quilt, neighbors=4)
    weights = np.random.default_rng(0).normal(size=images.shape).astype(np.float32)

    def look(defense):
        defend = lambda x: (jnp.sum(weights * defense(x, keys(6), patches)), defense(x, keys(6), patches))
        return jax.jit(jax.grad(defend, has_aux=True))(images)

    (exact, found), (through, seen) = look(defense), look(bpda(defense))
    np.testing.assert_array_equal(seen, found)
    np.testing.assert_array_equal(through, weights)
    np.testing.assert_array_equal(exact, 0)


@pytest.mark.parametrize("aware", [False, True])
def test_quilted_classifier(images, patches, aware):
    weights = jnp.asarray(np.cos(np.arange(4, dtype=np.float32)))
    # Not linear in the images, so that it matters where the gradient is taken.
    logits_fn = jax.tree_util.Partial(lambda scale, x: scale[None] * linear(x**2), weights)
    quilting = transform(it.quilt, neighbors=3)
    classifier = randomized(logits_fn, defenses.aware(quilting) if aware else quilting, patches)
    assert [leaf.shape for leaf in jax.tree.leaves(classifier)] == [(4,), patches.shape]

    @jax.jit
    def look(classifier, images):
        return jax.value_and_grad(lambda x: jnp.sum(classifier(x, keys(7)) ** 2))(images)

    value, gradient = map(np.asarray, look(classifier, images))
    shown = quilt(images, keys(7), patches, neighbors=3)
    total, expected = map(np.asarray, jax.jit(jax.value_and_grad(lambda x: jnp.sum(logits_fn(x) ** 2)))(shown))
    assert float(value) == pytest.approx(float(total), rel=1e-5)
    if not aware:
        np.testing.assert_array_equal(gradient, 0)
        return
    # Of local means: but for the border, where more than one neighbor stands on the same pixel, each takes of nine.
    means = scipy.ndimage.uniform_filter(expected, (1, 3, 3, 1))
    np.testing.assert_allclose(gradient[:, 2:-2, 2:-2], means[:, 2:-2, 2:-2], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(gradient.sum((1, 2)), expected.sum((1, 2)), rtol=1e-3)


def test_total_variation_has_no_gradient_but_by_bpda(images):
    smooth = transform(it.total_variation, num_iterations=3)
    gradient = lambda defense: jax.jit(jax.grad(lambda x: jnp.sum(defense(x, keys(8)))))(images)
    np.testing.assert_array_equal(gradient(smooth), 0)
    np.testing.assert_array_equal(gradient(bpda(smooth)), 1)


# Crops


def bilinear(image, size, key):
    """Pixel by pixel, from the places that the key draws."""
    image = np.asarray(image, np.float64)
    rows, columns = image.shape[:2]
    starts = np.asarray(jax.random.uniform(key, (2,))) * (rows - size, columns - size)
    found = np.zeros_like(image)
    for i, j in np.ndindex(rows, columns):
        y, x = (
            start + (at + 0.5) * size / side - 0.5
            for start, at, side in zip(starts, (i, j), (rows, columns), strict=True)
        )
        for row, column in itertools.product(
            (int(np.floor(y)), int(np.floor(y)) + 1), (int(np.floor(x)), int(np.floor(x)) + 1)
        ):
            share = (1 - abs(y - row)) * (1 - abs(x - column))
            found[i, j] += share * image[np.clip(row, 0, rows - 1), np.clip(column, 0, columns - 1)]
    return found


@pytest.mark.parametrize("size", [1, 4, 9])
def test_crops_are_bilinear(images, size):
    found = jax.jit(lambda *arrays: it.random_crop(*arrays, size=size))(images, keys(1))
    for image, key, one in zip(images, keys(1), found, strict=True):
        np.testing.assert_allclose(one, bilinear(image, size, key), atol=1e-5)


def test_a_crop_of_all_is_the_image_and_gradients_pass():
    images = uniform(2, 2, 8, 8, 1)
    np.testing.assert_allclose(jax.jit(lambda x: it.random_crop(x, keys(2), size=8))(images), images, atol=1e-6)
    value_and_gradient = jax.jit(jax.value_and_grad(lambda x: it.random_crop(x, keys(2), size=5).sum()))
    value, gradient = map(np.asarray, value_and_gradient(images))
    # It is linear, and its shares sum to one in each pixel that is shown.
    assert np.vdot(gradient, images) == pytest.approx(float(value), rel=1e-5)
    assert gradient.sum() == pytest.approx(images.size, rel=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_ensemble_is_the_mean_of_probabilities(images, monkeypatch, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    found = jax.jit(it.crop_ensemble(linear, size=5, num_crops=3))(images, keys(3))
    draws = jnp.concatenate([jax.random.split(key, 3) for key in keys(3)])
    probs = jax.jit(lambda x, k: jax.nn.softmax(linear(it.random_crop(x, k, size=5))))
    probs = np.asarray(probs(np.repeat(images, 3, axis=0), draws), np.float64).reshape(2, 3, 4)
    np.testing.assert_allclose(np.exp(found), probs.mean(axis=1), rtol=1e-4, atol=1e-7)


def test_ensemble_is_a_pytree_with_a_gradient_and_can_be_expected(images):
    logits_fn = jax.tree_util.Partial(lambda scale, x: scale * linear(x), jnp.float32(0.1))
    classifier = it.crop_ensemble(logits_fn, size=5, num_crops=2)
    assert jax.tree.leaves(classifier) == [jnp.float32(0.1)]

    @jax.jit
    def look(classifier, images):
        mean = expectation(classifier, jax.random.key(0), num_samples=2)
        return jax.grad(lambda x: mean(x)[:, 0].sum())(images)

    assert np.abs(look(classifier, images)).max() > 0.01


def test_crops_and_ensembles_that_are_none(images):
    for size in (0, 10):
        with pytest.raises(ValueError, match="from 1 to 9"):
            it.random_crop(images, keys(0), size=size)
    for settings in ({"size": 0}, {"size": 5, "num_crops": 0}):
        with pytest.raises(ValueError, match="at least one crop"):
            it.crop_ensemble(linear, **settings)


def test_one_crop_is_a_transform(images):
    classifier = randomized(linear, transform(it.random_crop, size=5))
    found, expected = jax.jit(lambda x, k: (classifier(x, k), linear(it.random_crop(x, k, size=5))))(images, keys(5))
    np.testing.assert_array_equal(found, expected)
