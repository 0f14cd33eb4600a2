"""PixelDefend: moves each image, within a ball, to where a density model finds it likely.

Reference:
  Song, Kim, Nowozin, Ermon and Kushman, PixelDefend: Leveraging Generative Models to Understand and Defend against
  Adversarial Examples, 2018 (arXiv 1710.10766), algorithm 1.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ddjax import generative, rounding
from ddjax.checks import check_number
from ddjax.defenses import models
from ddjax.defenses.declaration import declare
from ddjax.defenses.images import Images, check_images, widened
from ddjax.generative import logistic_mixture, pixelcnn

# In levels: what rounding may have added to a distance.
_SLACK = 1e-3


def purify(
    images: Images, density: jax.tree_util.Partial, *, epsilon: float = 16 / 255, most_bits: float = 0.0
) -> Images:
    """Sets each pixel, in raster order, to the likeliest value within a ball, given those that have been set before it.

    A greedy search for the likeliest image of the ball: each choice is the best one by itself. Pixels get 8-bit values:
    those within the ball, or the nearest one where it holds none. The result carries no gradient.

    Args:
      images: within [0, 1].
      density: of levels from 0 to 255, as `ddjax.generative.pixelcnn.density` makes it.
      epsilon: the radius of the ball in Linf, at least 0.
      most_bits: images of fewer bits per dimension than this look like those that the density was trained on, and stay
        as they are; 0 for none. The paper's adaptive defense.

    Departures from the authors' code:
      The ball is that of the image as it is, not as it is rounded. The weights of the mixture follow for each channel
      from the channels before it in its pixel, as the density has it.
    """
    check_number("epsilon", epsilon, least=0.0)
    check_number("most_bits", most_bits, least=0.0)
    check_images("PixelDefend", images)
    wide, density = lax.stop_gradient((widened(images).astype(jnp.float32), density))
    nearest, choose = greedy(wide, epsilon)
    purified = pixelcnn.autoregress(density, nearest, choose)
    if most_bits > 0:
        is_typical = pixelcnn.bits_per_dimension(density, nearest) < most_bits
        purified = jnp.where(is_typical[:, None, None, None], nearest, purified)
    # The density is in float32; the levels are exact in the dtype of the images.
    return rounding.round_to_levels(purified.astype(widened(images).dtype) / 255, 256).astype(images.dtype)


def greedy(images: Images, epsilon: float) -> tuple[Images, pixelcnn.Choose]:
    """The start of `purify`, and its choice of each pixel for `ddjax.generative.pixelcnn.autoregress`.

    It starts from the nearest levels, from 0 to 255, and chooses the likeliest ones within the ball.
    """
    levels = 255 * images
    nearest = jnp.clip(jnp.round(levels), 0, 255)
    least = jnp.clip(jnp.ceil(levels - 255 * epsilon - _SLACK), 0, 255)
    most = jnp.clip(jnp.floor(levels + 255 * epsilon + _SLACK), 0, 255)
    # A ball between two levels.
    least, most = (jnp.where(least > most, nearest, bound) for bound in (least, most))
    candidates = jnp.arange(256, dtype=jnp.float32)[None]

    def choose(parameters: Array, pixel: Array, row: Array, column: Array) -> Array:
        low, high = least[:, row, column], most[:, row, column]
        for channel in range(pixel.shape[1]):
            log_probs = logistic_mixture.channel_log_probs(parameters, pixel, channel)
            allowed = (candidates >= low[:, channel, None]) & (candidates <= high[:, channel, None])
            best = jnp.argmax(jnp.where(allowed, log_probs, -jnp.inf), axis=1)
            is_channel = jnp.arange(pixel.shape[1]) == channel
            pixel = jnp.where(is_channel[None], best.astype(pixel.dtype)[:, None], pixel)
        return pixel

    return nearest, choose


def load_density(
    images: Any, key: Any, *, model: str = "runs/train_pixelcnn_mnist/checkpoints/seed0_none/density"
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Loads the density that `purify` takes, for images of this shape; see `ddjax.defenses.models.load`."""
    del key
    return (generative.model_fn(models.load(model, "density", images.shape[1:])),), {}


DEFENSES = (declare(purify, name="pixel_defend", images=True, prepare=load_density, gradient="straight-through"),)
