"""Losses of training and of attacks, per example. Where optax has one, it is used.

A logit of minus infinity is a class that is switched off. It takes part in no loss, and no loss or gradient is NaN
because of it. A loss is infinite only where the label or the target itself, or every rival of it, is switched off.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from ddjax.registry import Registry


def cross_entropy_at_temperature(
    logits: Float[Array, "B K"], probabilities: Float[Array, "B K"], temperature: float | Float[Array, ""] = 1.0
) -> Float[Array, " B"]:
    """Cross-entropy of `softmax(logits / temperature)` against soft or one-hot labels.

    There is no factor of the squared temperature: that belongs to Hinton's compression setting, not to defensive
    distillation. Each row of the probabilities is a distribution over the classes, 0 for those that are switched off;
    the temperature T > 0 may be traced.

    Reference:
      Papernot et al., Distillation as a Defense, 2016 (arXiv 1511.04508).
    """
    return optax.losses.safe_softmax_cross_entropy(logits / temperature, probabilities)


def cross_entropy(logits: Float[Array, "B K"], labels: Int[Array, " B"]) -> Float[Array, " B"]:
    """Cross-entropy of `softmax(logits)` against class indices."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def logit(logits: Float[Array, "B K"], classes: Int[Array, " B"]) -> Float[Array, " B"]:
    """The logit of one class of each example."""
    return jnp.sum(jnp.where(_is_class(logits, classes), logits, 0.0), axis=1)


def margin(logits: Float[Array, "B K"], classes: Int[Array, " B"]) -> Float[Array, " B"]:
    """The logit of a class minus the largest of the others: positive where the class is the decision.

    It is minus infinity where the class is switched off, plus infinity where all others are, and 0 where all are.
    """
    largest = jnp.max(jnp.where(_is_class(logits, classes), -jnp.inf, logits), axis=1)
    return _difference(logit(logits, classes), largest)


def dlr(logits: Float[Array, "B K"], labels: Int[Array, " B"]) -> Float[Array, " B"]:
    """Difference of logits ratio: minus the margin of the label, over the first logit minus the third.

    It does not change when the logits are shifted or scaled, so its gradient survives where the softmax saturates. It
    is positive where the decision is not the label. Where the ratio does not exist, it is minus the margin: if the
    three largest logits are equal, if fewer than 3 classes are not switched off, or if the label is switched off.

    Raises:
      ValueError: with fewer than 3 classes.

    Reference:
      Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks,
      2020 (arXiv 2003.01690).
    """
    largest = _largest("dlr", logits, 3)
    return _ratio(-margin(logits, labels), largest[:, 0], largest[:, 2])


def targeted_dlr(
    logits: Float[Array, "B K"], labels: Int[Array, " B"], targets: Int[Array, " B"]
) -> Float[Array, " B"]:
    """Difference of logits ratio of the label and a target: larger, the closer the decision is to the target.

    The target's logit minus the label's, over the first logit minus the mean of the third and the fourth. Where the
    ratio does not exist, it is the target's logit minus the label's: if the four largest logits are equal, if fewer
    than 4 classes are not switched off, or if the label or the target is switched off.

    Raises:
      ValueError: with fewer than 4 classes.

    Reference:
      Croce and Hein, 2020 (arXiv 2003.01690).
    """
    largest = _largest("targeted_dlr", logits, 4)
    difference = _difference(logit(logits, targets), logit(logits, labels))
    return _ratio(difference, largest[:, 0], (largest[:, 2] + largest[:, 3]) / 2)


def _is_class(logits: Array, classes: Array) -> Array:
    return jnp.arange(logits.shape[1], dtype=jnp.int32)[None, :] == classes.astype(jnp.int32)[:, None]


def _difference(one: Array, other: Array) -> Array:
    """The difference of two logits; 0 where both classes are switched off."""
    both_off = jnp.isneginf(one) & jnp.isneginf(other)
    return jnp.where(both_off, 0.0, one) - jnp.where(both_off, 0.0, other)


def _largest(name: str, logits: Array, count: int) -> Array:
    if logits.shape[1] < count:
        raise ValueError(f"{name} needs at least {count} classes, got {logits.shape[1]}")
    return lax.top_k(logits, count)[0]


def _ratio(difference: Array, first: Array, lower: Array) -> Array:
    """The difference over `first - lower`, or over 1 where one of the two is infinite or the ratio has no value."""
    exists = jnp.isfinite(difference) & jnp.isfinite(lower) & (first > lower)
    # The choice comes before the subtraction and the division, so that NaN stays out of the gradient, too.
    spread = jnp.where(exists, first, 1.0) - jnp.where(exists, lower, 0.0)
    return difference / spread


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss that attacks raise, as it is declared.

    Attributes:
      name: in the registry.
      function: from logits `[B, K]` and labels `[B]` to a value `[B]` that grows as the decision leaves the label.
      targeted: from logits, labels and targets to a value that grows as the decision approaches the target; None for a
        loss without a targeted form.
    """

    name: str
    function: Callable[[Array, Array], Array]
    targeted: Callable[[Array, Array, Array], Array] | None = None

    def __call__(
        self, logits: Float[Array, "B K"], labels: Int[Array, " B"], targets: Int[Array, " B"] | None = None
    ) -> Float[Array, " B"]:
        """The value that an attack raises, for each example.

        Raises:
          ValueError: with targets, for a loss without a targeted form; with too few classes, as the functions do.
        """
        if targets is None:
            return self.function(logits, labels)
        if self.targeted is None:
            raise ValueError(f"the loss {self.name} has no targeted form")
        return self.targeted(logits, labels, targets)


def _away(function: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda logits, labels: -function(logits, labels)


def _towards(function: Callable[[Array, Array], Array]) -> Callable[[Array, Array, Array], Array]:
    return lambda logits, labels, targets: function(logits, targets)


LOSSES = (
    Loss("cross_entropy", cross_entropy, _towards(_away(cross_entropy))),
    Loss("margin", _away(margin), _towards(margin)),
    Loss("dlr", dlr, targeted_dlr),
    Loss("logit", _away(logit), _towards(logit)),
)

# The losses of attacks, by name or import path.
REGISTRY: Registry[Loss] = Registry("loss", "LOSSES", LOSSES)
