import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from ddjax import defenses
from ddjax.classifier import bpda, transform
from ddjax.defenses import jpeg
from ddjax.defenses.feature_distillation import cosine_matrix

# Settings together in one program where there are many, since operation by operation takes longer to compile.
jitted = jax.jit(jpeg.jpeg, static_argnames=("quality", "subsampling"))
without_rounding = jax.jit(jpeg.without_rounding, static_argnames="subsampling")


def fields(shape, smoothness=1.5):
    """Smooth random images of 8 bits whose channels go together about as those of photographs do."""
    noise = np.random.default_rng(0).normal(size=shape)
    smooth = scipy.ndimage.gaussian_filter(noise, (0, smoothness, smoothness, 0), mode="nearest")
    smooth += smooth.mean(axis=3, keepdims=True)
    return np.clip(np.rint(128 + 60 * smooth / smooth.std()), 0, 255).astype(np.uint8)


def pillow(images, quality, subsampling):
    """Through a file, by libjpeg."""
    decoded = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(
            file, "JPEG", quality=quality, subsampling=2 if subsampling else 0
        )
        decoded.append(np.asarray(Image.open(file)).reshape(image.shape))
    return np.stack(decoded)


def unit(images):
    return jnp.asarray(images / np.float32(255))


def levels(images):
    return np.rint(255 * np.asarray(images)).astype(int)


# Whole blocks, odd sides, an even one that is not a multiple of a block, and less than a block.
@pytest.mark.parametrize("sides", [(32, 32), (37, 45), (20, 44), (9, 3), (1, 1)])
@pytest.mark.parametrize(("channels", "subsampling"), [(1, True), (3, False), (3, True)])
def test_is_libjpegs_to_the_bit(sides, channels, subsampling):
    images = fields((3, *sides, channels))
    qualities = (1, 20, 50, 75, 95, 100)
    compress = jax.jit(lambda x: [jpeg.jpeg(x, quality=quality, subsampling=subsampling) for quality in qualities])
    for quality, found in zip(qualities, compress(unit(images)), strict=True):
        np.testing.assert_array_equal(levels(found), pillow(images, quality, subsampling), err_msg=str(quality))


def test_noise_is_libjpegs_and_needs_its_integers(monkeypatch):
    images = fields((3, 37, 45, 3), smoothness=0.3)
    expected = pillow(images, 75, True)
    np.testing.assert_array_equal(levels(jitted(unit(images))), expected)
    # The nearest integers instead of those of the fast algorithm: coefficients on the border of two steps change.
    nearest = np.rint(np.sqrt(8) * 2**13 * cosine_matrix(8)).astype(np.int32)
    assert np.abs(jpeg._COSINES - nearest).max() == 1
    monkeypatch.setattr(jpeg, "_COSINES", nearest)
    # A function of its own, since the program above has the integers that were there.
    error = np.abs(levels(jax.jit(lambda x: jpeg.jpeg(x))(unit(images))) - expected)
    assert error.max() > 0
    assert error.mean() < 0.1


def test_a_constant_block_is_its_rounded_mean():
    values = np.arange(256)
    images = np.broadcast_to(values[:, None, None, None], (256, 8, 8, 1))
    # The first coefficient is 8 times the mean, and its step 16 at quality 50; a half is rounded away from zero.
    scaled = (values - 128) / 2
    expected = np.clip(128 + 2 * np.sign(scaled) * np.floor(np.abs(scaled) + 0.5), 0, 255)
    found = levels(jitted(unit(images), quality=50))
    np.testing.assert_array_equal(found, np.broadcast_to(expected[:, None, None, None], images.shape))


def test_tables_of_qualities():
    for table in (jpeg.LUMINANCE, jpeg.CHROMINANCE):
        np.testing.assert_array_equal(jpeg.quantization_table(table, 50), table)
        np.testing.assert_array_equal(jpeg.quantization_table(table, 100), 1)
        np.testing.assert_array_equal(jpeg.quantization_table(table, 1), 255)
        np.testing.assert_array_equal(jpeg.quantization_table(table, 25), np.minimum(2 * np.asarray(table), 255))
    assert jpeg.quantization_table(jpeg.LUMINANCE, 75)[0].tolist() == [8, 6, 5, 8, 12, 20, 26, 31]


def test_values_are_of_8_bits_before_and_after():
    images = unit(fields((2, 16, 16, 3)))
    found = jpeg.jpeg(images)
    np.testing.assert_array_equal(found, levels(found).astype(np.float32) / np.float32(255))
    # Less than half a level is rounded away, and nothing lies outside of the range.
    np.testing.assert_array_equal(jpeg.jpeg(images + 0.4 / 255), found)
    assert np.abs(np.asarray(found) - np.asarray(images)).max() > 2 / 255
    wild = np.asarray(jpeg.jpeg(jnp.asarray(np.random.default_rng(0).integers(2, size=(2, 16, 16, 3)), jnp.float32)))
    assert float(wild.min()) == 0
    assert float(wild.max()) == 1


def test_better_qualities_lose_less_and_subsampling_more():
    images = unit(fields((2, 16, 16, 3)))
    loss = lambda **settings: np.mean((np.asarray(jpeg.jpeg(images, **settings)) - np.asarray(images)) ** 2)
    losses = [loss(quality=quality) for quality in (5, 25, 50, 75, 95)]
    assert losses == sorted(losses, reverse=True)
    assert loss(quality=95, subsampling=False) < losses[-1]


def test_same_in_a_program_and_in_any_batch():
    images = unit(fields((2, 16, 16, 3)))
    compress = jax.jit(lambda x: jpeg.jpeg(x, quality=60))
    found = jpeg.jpeg(images, quality=60)
    np.testing.assert_array_equal(compress(images), found)
    np.testing.assert_array_equal(compress(images[1:])[0], found[1])


def test_gradient_is_zero_and_the_identitys_by_bpda():
    images = unit(fields((2, 16, 16, 3)))
    weights = jnp.asarray(np.random.default_rng(1).normal(size=images.shape), jnp.float32)
    compress = transform(jpeg.jpeg, quality=30)
    gradient = lambda function: jax.jit(jax.grad(lambda x: jnp.sum(weights * function(x))))(images)
    np.testing.assert_array_equal(gradient(compress), 0)
    np.testing.assert_array_equal(gradient(bpda(compress)), weights)
    np.testing.assert_array_equal(bpda(compress)(images), compress(images))


@pytest.mark.parametrize("quality", [0, 101])
def test_qualities_that_are_none(quality):
    with pytest.raises(ValueError, match="from 1 to 100"):
        jpeg.jpeg(jnp.zeros((1, 8, 8, 3)), quality=quality)


@pytest.mark.parametrize("channels", [2, 4])
def test_channels_that_it_does_not_know(channels):
    with pytest.raises(ValueError, match=f"one or three channels, got {channels}"):
        jpeg.jpeg(jnp.zeros((1, 8, 8, channels)))


@pytest.mark.parametrize("sides", [(32, 32), (21, 13)])
def test_without_rounding_is_what_the_best_quality_does(sides):
    images = unit(fields((3, *sides, 3)))
    exact = jitted(images, quality=100)
    np.testing.assert_allclose(np.clip(without_rounding(images), 0, 1), exact, atol=4 / 255)
    # Most of what it does to colors that change from pixel to pixel, which the identity leaves.
    noise = unit(fields((3, *sides, 3), smoothness=0.3))
    exact = np.asarray(jitted(noise, quality=100))
    kept, lost = (np.abs(exact - np.asarray(seen)).mean() for seen in (without_rounding(noise), noise))
    assert kept < lost / 3


def test_without_rounding_is_linear_and_leaves_gray_images_and_full_colors():
    images = fields((2, 16, 16, 3)) / np.float32(255)
    halves = sum(np.asarray(without_rounding(part / 2)) for part in (images[:1], images[1:]))
    np.testing.assert_allclose(without_rounding(images.mean(0, keepdims=True)), halves, atol=1e-6)
    np.testing.assert_array_equal(without_rounding(images[..., :1]), images[..., :1])
    np.testing.assert_array_equal(without_rounding(images, subsampling=False), images)


def test_who_knows_it_sees_its_values_and_the_gradient_of_what_rounding_leaves():
    images = unit(fields((2, 16, 16, 3)))
    weights = unit(fields((2, 16, 16, 3), smoothness=0.3))
    seen = defenses.aware(transform(jpeg.jpeg, quality=50))
    np.testing.assert_array_equal(jax.jit(seen)(images), jpeg.jpeg(images, quality=50))
    found = jax.jit(jax.grad(lambda x: jnp.sum(weights * seen(x))))(images)
    expected = jax.jit(jax.grad(lambda x: jnp.sum(weights * jpeg.without_rounding(x))))(images)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(np.asarray(found) - np.asarray(weights)).max() > 0.1
