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
    """Mixtures of logistics, in units in which levels are from -1 to 1."""

    logits: Float[Array, "... M"]  # of the weights
    means: Float[Array, "... M C"]  # before what the channels before add
    log_scales: Float[Array, "... M C"]
    coefficients: Float[Array, "... M L"]  # of the channels before, for channel 1, then for channel 2 and so on


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

    Levels are from 0 to 255; those of the channel itself, and of later ones, do not matter.
    """
    values = levels.astype(jnp.float32)
    mixture = _mixture(parameters, levels.shape[1])
    # What came before says which of the logistics it was.
    weights = jax.nn.log_softmax(_joint(mixture, values, channel))
    all_levels = jnp.arange(_LEVELS, dtype=jnp.float32)[None, :, None]
    mean, log_scale = (each[:, None] for each in (_mean(mixture, values, channel), mixture.log_scales[..., channel]))
    return jax.nn.logsumexp(weights[:, None] + _log_logistic(all_levels, mean, log_scale), axis=2)


def _joint(mixture: _Mixture, levels: Array, count: int) -> Array:
    """The logarithm of the probability of each logistic together with the levels of the first so many channels."""
    total = jax.nn.log_softmax(mixture.logits)
    for channel in range(count):
        mean, log_scale = _mean(mixture, levels, channel), mixture.log_scales[..., channel]
        total = total + _log_logistic(levels[..., None, channel], mean, log_scale)
    return total


def _mean(mixture: _Mixture, levels: Array, channel: int) -> Array:
    """The means of a channel, given those before it."""
    first, before = channel * (channel - 1) // 2, levels[..., None, :channel] / 127.5 - 1
    return mixture.means[..., channel] + jnp.sum(mixture.coefficients[..., first : first + channel] * before, axis=-1)


def log_prob(parameters: Float[Array, "B H W P"], levels: Num[Array, "B H W C"]) -> Float[Array, " B"]:
    """The natural logarithm of the probability of images of levels from 0 to 255."""
    mixture = _mixture(parameters, levels.shape[3])
    total = _joint(mixture, levels.astype(jnp.float32), levels.shape[3])
    return jnp.sum(jax.nn.logsumexp(total, axis=3), axis=(1, 2))
