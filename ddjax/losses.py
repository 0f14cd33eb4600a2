"""Losses of training and of attacks, per example. Where optax has one, it is used."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def cross_entropy_at_temperature(
    logits: Float[Array, "B K"], probabilities: Float[Array, "B K"], temperature: float | Float[Array, ""] = 1.0
) -> Float[Array, " B"]:
    """Cross-entropy of `softmax(logits / temperature)` against soft or one-hot labels.

    There is no factor of the squared temperature: that belongs to Hinton's compression setting, not to defensive
    distillation.

    Args:
      logits: before softmax.
      probabilities: each row a distribution over the classes.
      temperature: T > 0; may be traced.

    Returns:
      The loss of each example.

    Reference:
      Papernot et al., Distillation as a Defense, 2016 (arXiv 1511.04508).
    """
    return optax.losses.softmax_cross_entropy(logits / temperature, probabilities)


def cross_entropy(logits: Float[Array, "B K"], labels: Int[Array, " B"]) -> Float[Array, " B"]:
    """Cross-entropy of `softmax(logits)` against class indices."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def margin(logits: Float[Array, "B K"], classes: Int[Array, " B"]) -> Float[Array, " B"]:
    """The logit of a class minus the largest of the others: positive where the class is the decision."""
    is_class = jnp.arange(logits.shape[1])[None, :] == classes[:, None]
    own = jnp.sum(jnp.where(is_class, logits, 0.0), axis=1)
    return own - jnp.max(jnp.where(is_class, -jnp.inf, logits), axis=1)
