import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ddjax.classifier import expectation, randomized, transform
from ddjax.defenses.randomization import METHODS, resize_and_pad


def keys(seed, count):
    return jax.random.split(jax.random.key(seed), count)


def matrix(new, old, method):
    """What resizing a side does, as a matrix."""
    found = np.zeros((new, old))
    for row in range(new):
        place = (row + 0.5) * old / new - 0.5
        if method == "nearest":
            found[row, int(np.clip(np.floor(place + 0.5), 0, old - 1))] = 1
        else:
            low = int(np.floor(place))
            for at, weight in ((low, low + 1 - place), (low + 1, place - low)):
                found[row, np.clip(at, 0, old - 1)] += weight
    return found


def oracle(image, sizes, offsets, whole, pad_value, method):
    """One image by matrices."""
    image = np.asarray(image, np.float64)
    rows, columns = (matrix(new, old, method) for new, old in zip(sizes, image.shape[:2], strict=True))
    padded = np.full((*whole, image.shape[2]), float(pad_value))
    part = tuple(slice(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True))
    padded[part] = np.einsum("ai,bj,ijc->abc", rows, columns, image)
    return padded


def all_places(image, sizes, whole, pad_value, method):
    """Every size and offset, and the image there."""
    for size in sizes:
        spare = [total - length for total, length in zip(whole, size, strict=True)]
        for offsets in itertools.product(*(range(most + 1) for most in spare)):
            yield (size, offsets), oracle(image, size, offsets, whole, pad_value, method)


@pytest.mark.parametrize("method", METHODS)
def test_is_one_of_all_sizes_and_places_and_takes_each(method):
    image = jax.random.uniform(jax.random.key(0), (6, 6, 2))
    count = 3000
    draw = jax.jit(
        lambda keys: resize_and_pad(
            jnp.broadcast_to(image, (count, *image.shape)),
            keys,
            smallest=6,
            largest=9,
            pad_value=0.25,
            restore=False,
            method=method,
        )
    )
    found = np.asarray(draw(keys(1, count))).reshape(count, -1)
    places, expected = zip(*all_places(image, [(s, s) for s in (6, 7, 8)], (9, 9), 0.25, method), strict=True)
    assert len(places) == 16 + 9 + 4
    away = np.abs(found[:, None] - np.stack(expected).reshape(1, len(places), -1)).max(2)
    assert away.min(1).max() < 1e-5
    seen = collections.Counter(places[at] for at in away.argmin(1))
    # The size is uniform, and of one size, the place.
    for size, offsets in ((6, 16), (7, 9), (8, 4)):
        counts = [seen[place] for place in places if place[0] == (size, size)]
        assert len(counts) == offsets
        assert scipy.stats.binomtest(sum(counts), count, 1 / 3).pvalue > 1e-3
        assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(
    ("method", "shape", "smallest", "largest", "sizes", "whole"),
    [
        ("bilinear", (8, 5, 1), 9, 10, (9, 6), (10, 6)),
        ("nearest", (5, 8, 3), 11, 12, (7, 11), (8, 12)),
        ("bilinear", (6, 6, 1), 4, 5, (4, 4), (5, 5)),
        ("nearest", (6, 6, 1), 4, 5, (4, 4), (5, 5)),
        ("nearest", (7, 7, 2), None, None, (7, 7), (8, 8)),
        ("bilinear", (1, 1, 1), 3, 4, (3, 3), (4, 4)),
    ],
)
def test_one_size_of_images_that_need_not_be_square(method, shape, smallest, largest, sizes, whole):
    images = jax.random.uniform(jax.random.key(2), (5, *shape))
    settings = {"smallest": smallest, "largest": largest, "method": method}
    found, restored = jax.jit(
        lambda x, k: tuple(resize_and_pad(x, k, restore=restore, **settings) for restore in (False, True))
    )(images, keys(3, 5))
    assert found.shape == (5, *whole, shape[2])
    assert restored.shape == images.shape
    for image, padded, back in zip(images, found, restored, strict=True):
        places = list(all_places(image, [sizes], whole, 0.5, method))
        assert min(np.abs(padded - expected).max() for _, expected in places) < 1e-5
        np.testing.assert_allclose(back, oracle(padded, shape[:2], (0, 0), shape[:2], 0.0, method), atol=1e-5)


def test_default_sides_are_the_papers():
    shapes = lambda side: (
        jax.eval_shape(
            lambda x, k: resize_and_pad(x, k, restore=False), jnp.zeros((1, side, side, 3)), keys(0, 1)
        ).shape
    )
    assert [shapes(side)[1] for side in (299, 32, 28, 8, 1)] == [331, 35, 31, 9, 2]


@pytest.mark.parametrize(("method", "restore"), [("bilinear", True), ("nearest", False)])
def test_gradient_is_that_of_finite_differences(method, restore):
    images = jax.random.uniform(jax.random.key(4), (2, 4, 4, 1))
    weights = jax.random.normal(jax.random.key(5), (4, 4, 1) if restore else (7, 7, 1))[None]
    defended = lambda x: resize_and_pad(x, keys(6, 2), smallest=5, largest=7, method=method, restore=restore)
    value = jax.jit(lambda x: jnp.sum(weights * defended(x)))
    gradient = jax.grad(value)(images)
    # Exactly affine in the image, so that a difference needs not be small.
    units = jnp.eye(images.size).reshape(-1, *images.shape)
    differences = np.asarray([value(images + unit) - value(images) for unit in units])
    np.testing.assert_allclose(gradient, differences.reshape(images.shape), atol=1e-4)
    assert float(jnp.abs(gradient).max()) > 0.1


def test_an_image_has_its_own_draw_whatever_its_batch():
    images = jnp.tile(jax.random.uniform(jax.random.key(7), (1, 9, 9, 3)), (6, 1, 1, 1))
    eager = lambda x, k: resize_and_pad(x, k, largest=14)
    defend = jax.jit(eager)
    together = defend(images, keys(8, 6))
    np.testing.assert_allclose(eager(images, keys(8, 6)), together, atol=1e-5)
    alone = jnp.concatenate([defend(images[at : at + 1], keys(8, 6)[at : at + 1]) for at in range(6)])
    np.testing.assert_allclose(alone, together, atol=1e-5)
    assert float(jnp.abs(together[:-1] - together[1:]).max(axis=(1, 2, 3)).min()) > 0.05
    assert float(together.min()) >= -1e-6
    assert float(together.max()) <= 1 + 1e-6


def test_gradient_of_its_expectation_is_that_of_the_mean_transform():
    image = jax.random.uniform(jax.random.key(9), (4, 4, 1))
    weights = jax.random.normal(jax.random.key(10), (36, 1))
    logits_fn = jax.tree_util.Partial(lambda w, x: x.reshape(x.shape[0], -1) @ w, weights)
    classifier = randomized(logits_fn, transform(resize_and_pad, largest=6, restore=False, method="nearest"))
    seen = expectation(classifier, jax.random.key(11), num_samples=20000)
    found = np.asarray(jax.jit(jax.grad(lambda x: seen(x).sum()))(image[None])).ravel()
    means = []
    for size in (4, 5):
        place = (np.asarray(image), [(size, size)], (6, 6), 0.5, "nearest")
        zero = np.stack([padded for _, padded in all_places(np.zeros((4, 4, 1)), *place[1:])])
        units = (
            np.stack([[p for _, p in all_places(unit.reshape(4, 4, 1), *place[1:])] for unit in np.eye(16)])
            - zero[None]
        )
        means.append(units.mean(1).reshape(16, 36) @ np.asarray(weights, np.float64)[:, 0])
    mean = np.mean(means, axis=0)
    np.testing.assert_allclose(found, mean, atol=0.1)
    assert np.abs(mean).max() > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "bicubic"}, "unknown method 'bicubic'; known: bilinear, nearest"),
        ({"largest": 6}, "smallest below largest, got 6 and 6"),
        ({"smallest": 0}, "at least 1"),
        ({"smallest": 9, "largest": 9}, "got 9 and 9"),
        ({"pad_value": float("nan")}, "pad_value must be a finite number"),
    ],
)
def test_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        resize_and_pad(jnp.zeros((1, 6, 6, 1)), keys(0, 1), **settings)


def test_refuses_a_size_that_leaves_no_shorter_side():
    with pytest.raises(ValueError, match="at least 1"):
        resize_and_pad(jnp.zeros((1, 1, 10, 1)), keys(0, 1), smallest=4)
