"""Mixtures of discretized logistic distributions: the probability of a pixel's levels, from what a network says of it.

Reference:
  Salimans, Karpathy, Chen and Kingma, PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood
  and Other Modifications, 2017 (arXiv 1701.05517), section 2.1 and 2.2.

Departures from the authors' code:
  Log-probabilities are differences of logistic functions in a form that needs no case for small ones.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

# The least logarithm of a scale, in units in which levels are from -1 to 1; the authors' code has the same.
_LEAST_LOG_SCALE = -7.0
_LEVELS = 256


def num_parameters(channels: int) -> int:
    """How many numbers describe one logistic of a mixture: weight, means, scales, what channels add to later ones."""
    return 1 + 2 * channels + channels * (channels - 1) // 2


class _Mixture(NamedTuple):
    """Mixtures of logistics, in units in which levels are from -1 to 1.

    Attributes:
      logits: of the weights.
      means: of each channel, before what the channels before it add.
      log_scales: of each channel.
      coefficients: of the channels before, for channel 1, then for channel 2 and so on.
    """

    logits: Float[Array, "... M"]
    means: Float[Array, "... M C"]
    log_scales: Float[Array, "... M C"]
    coefficients: Float[Array, "... M L"]


def _mixture(parameters: Array, channels: int) -> _Mixture:
    table = parameters.reshape(*parameters.shape[:-1], -1, num_parameters(channels))
    logits, means, scales, coefficients = jnp.split(table, [1, 1 + channels, 1 + 2 * channels], axis=-1)
    return _Mixture(logits[..., 0], means, jnp.maximum(scales, _LEAST_LOG_SCALE), jnp.tanh(coefficients))


def _log_logistic(levels: Array, mean: Array, log_scale: Array) -> Array:
    """The logarithm of what a logistic distribution has between half a level below a level and half a level above.

    The lowest and the highest level have all beyond them, too.
    """
    centered = levels / 127.5 - 1 - mean
    upper, lower = ((centered + side / 255) * jnp.exp(-log_scale) for side in (1, -1))
    # s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)), which loses no digits.
    between = jax.nn.log1mexp(2 / 255 * jnp.exp(-log_scale))
    below, above = jax.nn.log_sigmoid(upper), jax.nn.log_sigmoid(-lower)
    inner = below + above + between
    return jnp.where(levels <= 0, below, jnp.where(levels >= _LEVELS - 1, above, inner))


def channel_log_probs(
    parameters: Float[Array, "B P"], levels: Num[Array, "B C"], channel: int
) -> Float[Array, "B 256"]:
    """The logarithms of the probabilities of all levels of a channel, given the channels before it in its pixel.

    Args:
      parameters: of a pixel.
      levels: of the channels, from 0 to 255; those from `channel` on do not matter.
      channel: which.

    Returns:
      Logarithms of probabilities that sum to 1.
    """
    values = levels.astype(jnp.float32)
    mixture = _mixture(parameters, levels.shape[1])
    # What came before says which of the logistics it was.
    weights = jax.nn.log_softmax(mixture.logits)
    for before in range(channel):
        mean = _mean(mixture, values, before)
        weights = weights + _log_logistic(values[:, None, before], mean, mixture.log_scales[..., before])
    weights = jax.nn.log_softmax(weights)
    all_levels = jnp.arange(_LEVELS, dtype=jnp.float32)[None, :, None]
    mean, log_scale = (each[:, None] for each in (_mean(mixture, values, channel), mixture.log_scales[..., channel]))
    return jax.nn.logsumexp(weights[:, None] + _log_logistic(all_levels, mean, log_scale), axis=2)


def _mean(mixture: _Mixture, levels: Array, channel: int) -> Array:
    """The means of a channel, given those before it."""
    first = channel * (channel - 1) // 2
    mean = mixture.means[..., channel]
    for before in range(channel):
        value = levels[..., None, before] / 127.5 - 1
        mean = mean + mixture.coefficients[..., first + before] * value
    return mean


def log_prob(parameters: Float[Array, "B H W P"], levels: Num[Array, "B H W C"]) -> Float[Array, " B"]:
    """The logarithm of the probability of images.

    Args:
      parameters: as the network gives them for the images.
      levels: the images, from 0 to 255.

    Returns:
      A natural logarithm for each image.
    """
    values = levels.astype(jnp.float32)
    mixture = _mixture(parameters, levels.shape[3])
    total = jax.nn.log_softmax(mixture.logits)
    for channel in range(levels.shape[3]):
        mean = _mean(mixture, values, channel)
        total = total + _log_logistic(values[..., None, channel], mean, mixture.log_scales[..., channel])
    return jnp.sum(jax.nn.logsumexp(total, axis=3), axis=(1, 2))
