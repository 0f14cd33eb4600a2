"""Random variations of training images. A training names one of them, or the import path of another.

Each takes images `[B, H, W, C]` in [0, 1] and a key for each, and returns images of the same shape in [0, 1].
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy import ndimage
from jaxtyping import Array, Float, Key

_CROPPED = 0.75
# The largest logarithm of the ratio of a crop's sides.
_LOG_RATIO = math.log(4 / 3)


def photographs(images: Float[Array, "B H W C"], keys: Key[Array, " B"]) -> Float[Array, "B H W C"]:
    """A flip with probability 1/2, a rotation by up to 45 degrees, color jitter, and a random crop of the same size.

    Brightness, contrast and saturation change by factors from 0.7 to 1.3, the hue by up to a fifth of its circle, in
    this order. The crop has from 0.7 to 1.2 times the image's area and a ratio of sides from 3/4 to 4/3, and no side
    longer than the image's. Flip, rotation and crop are one bilinear resampling; what comes from beyond the border is
    black.

    Raises:
      ValueError: for images without three channels.

    Departures from the public project whose settings these are:
      There, the order of the color changes is drawn, too, every step resamples, and all of it is overwritten before it
      runs.
    """
    if images.shape[-1] != 3:
        raise ValueError(f"color jitter needs images with three channels, got {images.shape[-1]}")
    return jax.vmap(_vary)(images, keys)


def shifts_and_flips(images: Float[Array, "B H W C"], keys: Key[Array, " B"]) -> Float[Array, "B H W C"]:
    """A shift by up to an eighth of each side, and a flip with probability 1/2; what comes from beyond is black.

    Reference:
      Lee et al., Deeply-Supervised Nets, 2015 (arXiv 1409.5185): four pixels of 32.
    """
    reach = [side // 8 for side in images.shape[1:3]]

    def vary(image: Array, key: Array) -> Array:
        place, flip = jax.random.split(key)
        start = jax.random.randint(place, (2,), 0, 2 * jnp.asarray(reach) + 1)
        padded = jnp.pad(image, (*((pad, pad) for pad in reach), (0, 0)))
        shifted = lax.dynamic_slice(padded, (start[0], start[1], 0), image.shape)
        return jnp.where(jax.random.bernoulli(flip), shifted[:, ::-1], shifted)

    return jax.vmap(vary)(images, keys)


def crops(images: Float[Array, "B H W C"], keys: Key[Array, " B"]) -> Float[Array, "B H W C"]:
    """`shifts_and_flips`, and of that a random crop of three quarters of the side, enlarged to the whole.

    Reference:
      Guo et al., Countering Adversarial Images Using Input Transformations, 2018 (arXiv 1711.00117).
    """
    before, after = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    sides = np.array(images.shape[1:3], np.float32)
    size = round(_CROPPED * min(images.shape[1:3]))
    scale = sides / size

    def crop(image: Array, key: Array) -> Array:
        start = (sides - size) * jax.random.uniform(key, (2,))
        return jax.image.scale_and_translate(
            image, image.shape, (0, 1), jnp.asarray(scale), -scale * start, "linear", antialias=False
        )

    return jax.vmap(crop)(shifts_and_flips(images, before), after)


def _vary(image: Array, key: Array) -> Array:
    color, geometry = jax.random.split(key)
    height, width, _ = image.shape
    sources = _sources(height, width, geometry)
    resample = lambda channel: ndimage.map_coordinates(channel, sources, order=1, mode="constant")
    return jax.vmap(resample, -1, -1)(_jitter(image, jax.random.uniform(color, (4,))))


def _jitter(image: Any, draws: Array) -> Array:
    import dm_pix  # lazily, because few trainings need it

    bright, contrast, saturation = 0.7 + (1.3 - 0.7) * draws[:3]
    # The library was written for jax's default promotion.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        image = jnp.clip(image * bright, 0, 1)
        image = jnp.clip(dm_pix.adjust_contrast(image, contrast), 0, 1)
        image = dm_pix.adjust_saturation(image, saturation)
        image = dm_pix.adjust_hue(image, 0.2 * (2 * draws[3] - 1))
    return jnp.clip(image, 0, 1)


def _sources(height: int, width: int, key: Array) -> list[Array]:
    """Row and column of the image for each place of the result, as if it were flipped, rotated and then cropped."""
    flip, turn, extent, ratio, place = jax.random.split(key, 5)
    area = jax.random.uniform(extent, minval=0.7, maxval=1.2)
    log_ratio = jax.random.uniform(ratio, minval=-_LOG_RATIO, maxval=_LOG_RATIO)
    # The crop's height and width in those of the image, and its center, from the image's center.
    sides = jnp.minimum(jnp.sqrt(area) * jnp.exp(jnp.array([-0.5, 0.5]) * log_ratio), 1.0)
    shift = jax.random.uniform(place, (2,), minval=-0.5, maxval=0.5)
    middle = shift * (1 - sides) * jnp.array([height, width], jnp.float32)
    centers = (height - 1) / 2, (width - 1) / 2
    places = [jnp.arange(count, dtype=jnp.float32) - (count - 1) / 2 for count in (height, width)]
    rows, columns = jnp.meshgrid(*places, indexing="ij")
    rows, columns = rows * sides[0] + middle[0], columns * sides[1] + middle[1]
    angle = jax.random.uniform(turn, minval=-math.pi / 4, maxval=math.pi / 4)
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    rows, columns = cosine * rows - sine * columns, sine * rows + cosine * columns
    columns = jnp.where(jax.random.bernoulli(flip), -columns, columns)
    return [rows + centers[0], columns + centers[1]]


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The declaration of an augmentation; see `declare`."""

    function: Callable[[Array, Array], Array]
    name: str


def declare(function: Callable[[Array, Array], Array], *, name: str | None = None) -> Augmentation:
    """Declares an augmentation, in the tuple `AUGMENTATIONS` at the end of its file.

    Args:
      function: of images [B, H, W, C] in [0, 1] and a key for each, to images of the same shape in [0, 1].
      name: in the registry; by default the name of the function.
    """
    return Augmentation(function, name or function.__name__)


AUGMENTATIONS = (declare(photographs), declare(shifts_and_flips), declare(crops))
