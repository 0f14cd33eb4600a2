"""Losses of training and of attacks, per example. Where optax has one, it is used."""

import jax.numpy as jnp
import optax
from jax import lax
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


def dlr(logits: Float[Array, "B K"], labels: Int[Array, " B"]) -> Float[Array, " B"]:
    """Difference of logits ratio: minus the margin of the label, over how far the first logit is above the third.

    Neither shifting nor scaling the logits changes it, so a network whose softmax saturates leaves its gradient alive.
    It is positive where the decision is not the label.

    Args:
      logits: of at least 3 classes.
      labels: the true classes.

    Returns:
      The ratio of each example; where the three largest logits are equal, minus the margin.

    Raises:
      ValueError: with fewer than 3 classes.

    Reference:
      Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks,
      2020 (arXiv 2003.01690).
    """
    largest = _largest("dlr", logits, 3)
    return -margin(logits, labels) / _safe(largest[:, 0] - largest[:, 2])


def targeted_dlr(
    logits: Float[Array, "B K"], labels: Int[Array, " B"], targets: Int[Array, " B"]
) -> Float[Array, " B"]:
    """Difference of logits ratio of the label and a target: larger, the closer the decision is to the target.

    Args:
      logits: of at least 4 classes.
      labels: the true classes.
      targets: the classes to reach.

    Returns:
      The target's logit minus the label's, over how far the first logit is above the mean of the third and the fourth;
      where these are all equal, the difference alone.

    Raises:
      ValueError: with fewer than 4 classes.

    Reference:
      Croce and Hein, 2020 (arXiv 2003.01690).
    """
    largest = _largest("targeted_dlr", logits, 4)
    label, target = (
        jnp.sum(jnp.where(jnp.arange(logits.shape[1])[None, :] == classes[:, None], logits, 0.0), axis=1)
        for classes in (labels, targets)
    )
    return (target - label) / _safe(largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2)


def _largest(name: str, logits: Array, count: int) -> Array:
    if logits.shape[1] < count:
        raise ValueError(f"{name} needs at least {count} classes, got {logits.shape[1]}")
    return lax.top_k(logits, count)[0]


def _safe(denominator: Array) -> Array:
    """One in place of zero, by a choice that keeps NaN out of the gradient too."""
    return jnp.where(denominator > 0, denominator, 1.0)
