"""The forward derivative: Jacobians of logits and of probabilities, and how large adversarial gradients are.

Networks trained at a high temperature saturate the softmax of temperature 1. Its gradients then leave the range of
float32 and read as exactly zero, although they are not; so amplitudes are measured in log space as well.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ddjax.classifier import LogitsFn

SPACES = ("logits", "probs")
# Written out, more backward passes than this cost more to compile than they save; and of more images than this, all
# passes together, they take a tenth to a quarter longer than one after the other: of fewer, up to a fifth less.
_MAX_UNROLLED = 16
_MAX_IMAGES_UNROLLED = 128


def pull_back(vjp_fn: Callable[[Array], tuple[Array]], cotangents: Float[Array, "N B K"]) -> Float[Array, "N B ..."]:
    """Pulls a stack of cotangents back through one forward pass.

    On CPU the backward passes are unrolled (or mapped, when many or large): each already keeps every core busy, and
    `vmap` would turn convolutions into slower grouped ones. Accelerators run them as one batch.

    Args:
      vjp_fn: what `jax.vjp(logits_fn, images)` returned.
      cotangents: N cotangents of the logits.

    Returns:
      The N gradients with respect to the images.
    """
    if jax.default_backend() != "cpu":
        return jax.vmap(lambda cotangent: vjp_fn(cotangent)[0])(cotangents)
    count, batch = cotangents.shape[:2]
    if count <= _MAX_UNROLLED and count * batch <= _MAX_IMAGES_UNROLLED:
        return jnp.stack([vjp_fn(cotangent)[0] for cotangent in cotangents])
    return lax.map(lambda cotangent: vjp_fn(cotangent)[0], cotangents)


def jacobian(
    logits_fn: LogitsFn, images: Float[Array, "B H W C"], *, space: str = "logits"
) -> Float[Array, "B K H W C"]:
    """Computes the forward derivative: each output with respect to each input value, by reverse mode.

    Args:
      logits_fn: a classifier.
      images: where to differentiate.
      space: `"logits"`, or `"probs"` for the softmax at temperature 1 in the precision of the logits, underflow
        included.

    Returns:
      For each example the derivative of each of the K outputs.

    Raises:
      ValueError: for an unknown space.

    Reference:
      Papernot et al., The Limitations of Deep Learning in Adversarial Settings, 2016 (arXiv 1511.07528).
    """
    if space not in SPACES:
        raise ValueError(f"unknown space {space!r}; known: {', '.join(SPACES)}")
    outputs_fn = logits_fn if space == "logits" else lambda x: jax.nn.softmax(logits_fn(x))
    outputs, vjp_fn = jax.vjp(outputs_fn, images)
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
        logits do not depend on the image at all.
      logits: the logits, since they are at hand.
    """

    mean_absolute: Float[Array, " B"]
    is_zero: Array
    log10: Float[Array, " B"]
    logits: Float[Array, "B K"]


def amplitude(logits_fn: LogitsFn, images: Float[Array, "B H W C"]) -> Amplitude:
    """Measures the adversarial gradients of the probabilities at temperature 1.

    With p the softmax of the logits z, dp_i = p_i sum_(l != i) p_l (dz_i - dz_l). Written so, nothing cancels when one
    probability is 1 to rounding: the largest p_l of each row is divided out and added back as a logarithm.

    Args:
      logits_fn: a classifier.
      images: where to differentiate.

    Returns:
      One `Amplitude` with an entry for each example.

    Reference:
      Papernot et al., Distillation as a Defense, 2016 (arXiv 1511.04508), Fig. 9.
    """
    logits, vjp_fn = jax.vjp(logits_fn, images)
    batch, num_classes = logits.shape
    units = _units(logits)
    _, softmax_vjp = jax.vjp(jax.nn.softmax, logits)
    of_probs = jax.vmap(lambda unit: softmax_vjp(unit)[0])(units)
    slopes = jnp.moveaxis(pull_back(vjp_fn, jnp.concatenate([of_probs, units])), 0, 1)
    plain, of_logits = jnp.split(slopes.reshape(batch, 2 * num_classes, -1), 2, axis=1)

    log_probs = jax.nn.log_softmax(logits)
    others = jnp.where(jnp.eye(num_classes, dtype=bool)[None], -jnp.inf, log_probs[:, None, :])
    largest = jnp.max(others, axis=2)
    weights = jnp.exp(others - largest[:, :, None])
    differences = weights.sum(2)[:, :, None] * of_logits - jnp.einsum("bil,bld->bid", weights, of_logits)
    # The largest entry goes to the logarithm too, so that neither huge nor tiny logit gradients leave the range.
    scale = jnp.max(jnp.abs(differences), axis=2)
    relative = jnp.abs(differences) / jnp.where(scale > 0, scale, 1.0)[:, :, None]
    log_sums = log_probs + largest + jnp.log(scale) + jnp.log(jnp.maximum(relative.sum(2), 1.0))
    log_mean = jax.nn.logsumexp(log_sums, axis=1) - jnp.log(jnp.float32(plain.shape[1] * plain.shape[2]))
    return Amplitude(
        mean_absolute=jnp.mean(jnp.abs(plain), axis=(1, 2)),
        is_zero=jnp.all(plain == 0, axis=(1, 2)),
        log10=log_mean / jnp.log(jnp.float32(10)),
        logits=logits,
    )
