import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from ddjax.classifier import transformed
from ddjax.defenses import squeezers


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(0), (3, 9, 7, 2))


@pytest.mark.parametrize("bits", [1, 2, 4, 5, 8])
@pytest.mark.parametrize("compiled", [False, True])
def test_bit_depth_is_numpys_to_the_bit(images, bits, compiled):
    function = functools.partial(squeezers.reduce_bit_depth, bits=bits)
    found = (jax.jit(function) if compiled else function)(images)
    levels = np.float32(2**bits - 1)
    np.testing.assert_array_equal(found, np.rint(np.asarray(images) * levels) / levels)
    np.testing.assert_array_equal(function(found), found)


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_median_is_scipys_to_the_bit(images, height, width):
    found = squeezers.median_filter(images, height=height, width=width)
    expected = scipy.ndimage.median_filter(np.asarray(images), size=(1, height, width, 1), mode="reflect")
    np.testing.assert_array_equal(found, expected)


def test_binary(images):
    found = squeezers.binarize(images, threshold=0.3)
    np.testing.assert_array_equal(found, (np.asarray(images) > 0.3).astype(np.float32))


def brute_force_means(image, search, block, strength):
    """One pixel after the other."""
    half, around = search // 2, block // 2
    reach = half + around
    wide = np.pad(image, ((half, half), (half, half), (0, 0)), mode="symmetric").astype(np.float64)
    rows, columns, channels = image.shape
    result = np.zeros(image.shape)
    # Differences of an offset exist inside the image alone, and are mirrored at its edges like the pixels.
    for i in range(rows):
        for j in range(columns):
            total, weights = np.zeros(channels), 0.0
            for a in range(search):
                for b in range(search):
                    squared = (255 * (image - wide[a : a + rows, b : b + columns])) ** 2
                    mirrored = np.pad(squared, ((around, around), (around, around), (0, 0)), mode="symmetric")
                    weight = np.exp(-mirrored[i : i + block, j : j + block].mean() / strength**2)
                    total += weight * wide[i + a, j + b]
                    weights += weight
            result[i, j] = total / weights
    assert reach < min(rows, columns)
    return result


def test_non_local_means_is_the_formula(images):
    found = squeezers.non_local_means(images[:1], search=5, block=3, strength=60.0)
    np.testing.assert_allclose(found[0], brute_force_means(np.asarray(images[0]), 5, 3, 60.0), rtol=1e-5)


def test_non_local_means_leaves_flat_images_and_can_be_differentiated(images):
    flat = jnp.full((1, 8, 8, 1), 0.25, jnp.float32)
    np.testing.assert_allclose(squeezers.non_local_means(flat), flat, rtol=1e-6)
    smooth = lambda strength: np.std(squeezers.non_local_means(images, search=5, strength=strength) - images)
    assert smooth(200.0) > smooth(5.0)
    gradient = jax.grad(lambda x: squeezers.non_local_means(x, search=3, strength=50.0).sum())(images)
    assert np.isfinite(gradient).all()
    # Averages: brighter by a tenth everywhere, brighter by a tenth.
    brighter = squeezers.non_local_means(0.9 * images + 0.1, search=3, strength=45.0)
    np.testing.assert_allclose(
        brighter, 0.9 * squeezers.non_local_means(images, search=3, strength=50.0) + 0.1, atol=1e-6
    )


def test_resampling_keeps_ramps_and_loses_checkerboards():
    ramp = jnp.broadcast_to(jnp.arange(16.0)[None, None, :, None], (1, 16, 16, 1))
    np.testing.assert_allclose(squeezers.resample(ramp)[:, :, 4:-4], ramp[:, :, 4:-4], atol=1e-5)
    board = (jnp.indices((8, 8)).sum(0) % 2).astype(jnp.float32)[None, :, :, None]
    np.testing.assert_allclose(squeezers.resample(board), jnp.full_like(board, 0.5), atol=0.2)


@pytest.mark.parametrize(
    ("name", "function", "settings"),
    [
        ("bit_depth_4", squeezers.reduce_bit_depth, {"bits": 4}),
        ("median_2_3", squeezers.median_filter, {"height": 2, "width": 3}),
        ("non_local_means_11_3_4", squeezers.non_local_means, {"search": 11, "block": 3, "strength": 4.0}),
        ("binary_0.25", squeezers.binarize, {"threshold": 0.25}),
        ("resample", squeezers.resample, {}),
    ],
)
def test_squeezers_by_name(images, name, function, settings):
    squeeze = squeezers.squeezer(name)
    assert squeeze == squeezers.squeezer(name)
    assert hash(squeeze) == hash(squeezers.squeezer(name))
    np.testing.assert_array_equal(squeeze(images), function(images, **settings))


@pytest.mark.parametrize("name", ["blur", "median_2", "median_a_b", "bit_depth_1_2", "bit_depthx", ""])
def test_squeezer_refuses_unknown_names(name):
    with pytest.raises(ValueError, match=r"unknown squeezer .*; known: bit_depth_BITS"):
        squeezers.squeezer(name)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: squeezers.reduce_bit_depth(x, bits=0), "bits must be from 1 to 16, got 0"),
        (lambda x: squeezers.median_filter(x, height=0), "sides of at least 1, got 0 x 2"),
        (lambda x: squeezers.non_local_means(x, search=4), "search and block must be odd, got 4 and 3"),
        (lambda x: squeezers.non_local_means(x, strength=0.0), "strength must be a finite number above 0"),
        (lambda x: squeezers.resample(x, factor=8), "images of 9 x 7 cannot be scaled down by 8"),
    ],
)
def test_squeezers_refuse_bad_settings(images, call, message):
    with pytest.raises(ValueError, match=message):
        call(images)


def test_squeezed_classifier_is_a_classifier(images):
    logits_fn = transformed(lambda x: x.mean((1, 2)), squeezers.squeezer("bit_depth_1"))
    np.testing.assert_allclose(logits_fn(images), np.rint(np.asarray(images)).mean((1, 2)), rtol=1e-6)
