"""The forward derivative: Jacobians of logits and of probabilities, and how large adversarial gradients are.

Networks trained at a high temperature saturate the softmax of temperature 1. Its gradients then leave the range of
float32 and read as exactly zero, although they are not. Amplitudes are therefore measured in log space as well.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ddjax.checks import check_choice
from ddjax.classifier import LogitsFn
from ddjax.platforms import by_platform

SPACES = ("logits", "probs")
# More backward passes than this cost more to compile, written out, than they save. For more images than this, all
# passes together, one pass after the other is faster by a tenth to a quarter; for fewer, slower by up to a fifth.
_MAX_UNROLLED = 16
_MAX_IMAGES_UNROLLED = 128


def pull_back(vjp_fn: Callable[[Array], tuple[Array]], cotangents: Float[Array, "N B K"]) -> Float[Array, "N B ..."]:
    """Pulls a stack of cotangents back through one forward pass.

    On CPU the backward passes are unrolled, or mapped where they are many or large: each already keeps every core busy,
    and `vmap` would turn convolutions into slower grouped ones. Other platforms run them as one batch.

    Args:
      vjp_fn: what `jax.vjp(logits_fn, inputs)` returned.
      cotangents: N cotangents of the logits.

    Returns:
      The N gradients with respect to the inputs.
    """
    count, batch = cotangents.shape[:2]
    pull = lambda cotangent: vjp_fn(cotangent)[0]

    def one_after_the_other(cotangents: Array) -> Array:
        if count <= _MAX_UNROLLED and count * batch <= _MAX_IMAGES_UNROLLED:
            return jnp.stack([pull(cotangent) for cotangent in cotangents])
        return lax.map(pull, cotangents)

    return by_platform(cotangents, cpu=one_after_the_other, default=jax.vmap(pull))


def jacobian(logits_fn: LogitsFn, inputs: Float[Array, "B ..."], *, space: str = "logits") -> Float[Array, "B K ..."]:
    """Computes the forward derivative: each output with respect to each input value, by reverse mode.

    Args:
      logits_fn: a classifier.
      inputs: where to differentiate.
      space: `"logits"`, or `"probs"` for the softmax at temperature 1 in the precision of the logits, underflow
        included.

    Returns:
      For each example the derivative of each of the K outputs.

    Raises:
      ValueError: for an unknown space.

    Reference:
      Papernot et al., The Limitations of Deep Learning in Adversarial Settings, 2016 (arXiv 1511.07528).
    """
    check_choice("space", space, SPACES)
    outputs_fn = logits_fn if space == "logits" else lambda x: jax.nn.softmax(logits_fn(x))
    outputs, vjp_fn = jax.vjp(outputs_fn, inputs)
    return jnp.moveaxis(pull_back(vjp_fn, _units(outputs)), 0, 1)


def _units(outputs: Float[Array, "B K"]) -> Float[Array, "K B K"]:
    """A cotangent for each output: 1 for it, 0 for the others."""
    units = jnp.eye(outputs.shape[1], dtype=outputs.dtype)
    return jnp.broadcast_to(units[:, None, :], (outputs.shape[1], *outputs.shape))


class Amplitude(NamedTuple):
    """How large the adversarial gradients of each example are.

    Attributes:
      mean_absolute: the mean absolute entry of the Jacobian of the probabilities, as float32 computes it.
      is_zero: whether that whole Jacobian is exactly zero.
      log10: the decimal logarithm of the mean absolute entry, computed in log space; minus infinity only where the
        logits do not depend on the input at all.
      logits: the logits at the inputs.
    """

    mean_absolute: Float[Array, " B"]
    is_zero: Array
    log10: Float[Array, " B"]
    logits: Float[Array, "B K"]


def amplitude(logits_fn: LogitsFn, inputs: Float[Array, "B ..."]) -> Amplitude:
    """Measures the adversarial gradients of the probabilities at temperature 1.

    With p the softmax of the logits z, dp_i = p_i sum_(l != i) p_l (dz_i - dz_l). Written so, nothing cancels when one
    probability is 1 to rounding. The largest p_l of each row is divided out and added back as a logarithm. A class that
    is switched off, with a logit of minus infinity, has probability 0 and takes no part.

    Args:
      logits_fn: a classifier.
      inputs: where to differentiate.

    Returns:
      One `Amplitude` with an entry for each example.

    Reference:
      Papernot et al., Distillation as a Defense, 2016 (arXiv 1511.04508), Fig. 9.
    """
    logits, vjp_fn = jax.vjp(logits_fn, inputs)
    batch, num_classes = logits.shape
    units = _units(logits)
    _, softmax_vjp = jax.vjp(jax.nn.softmax, logits)
    of_probs = jax.vmap(lambda unit: softmax_vjp(unit)[0])(units)
    # At least float32, whatever the classifier takes and returns.
    dtype = jnp.float64 if jnp.float64 in (inputs.dtype, logits.dtype) else jnp.float32
    slopes = jnp.moveaxis(pull_back(vjp_fn, jnp.concatenate([of_probs, units])), 0, 1).astype(dtype)
    plain, of_logits = jnp.split(slopes.reshape(batch, 2 * num_classes, -1), 2, axis=1)

    log_probs = jax.nn.log_softmax(logits.astype(dtype))
    others = jnp.where(jnp.eye(num_classes, dtype=bool)[None], -jnp.inf, log_probs[:, None, :])
    largest = jnp.max(others, axis=2)
    # Where all other classes are switched off by logits of minus infinity, all weights are 0.
    largest = jnp.where(jnp.isneginf(largest), 0.0, largest)
    weights = jnp.exp(others - largest[:, :, None])
    differences = weights.sum(2)[:, :, None] * of_logits - jnp.einsum("bil,bld->bid", weights, of_logits)
    # The largest entry goes to the logarithm too, so that neither huge nor tiny logit gradients leave the range.
    scale = jnp.max(jnp.abs(differences), axis=2)
    relative = jnp.abs(differences) / jnp.where(scale > 0, scale, 1.0)[:, :, None]
    log_sums = log_probs + largest + jnp.log(scale) + jnp.log(jnp.maximum(relative.sum(2), 1.0))
    log_mean = jax.nn.logsumexp(log_sums, axis=1) - math.log(plain.shape[1] * plain.shape[2])
    return Amplitude(
        mean_absolute=jnp.mean(jnp.abs(plain), axis=(1, 2)),
        is_zero=jnp.all(plain == 0, axis=(1, 2)),
        log10=log_mean / math.log(10),
        logits=logits,
    )
