"""The examples of an attack: what must be reached, and how far a classifier's logits are from it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from ddjax import losses
from ddjax.classifier import LogitsFn

# A user's goal: from logits, labels and targets (or None) to a value that is negative where the attack has succeeded.
Criterion = Callable[[Array, Array, Array | None], Array]
PerExample = float | Float[Array, ""] | Float[Array, " B"]
# Or one for each value: of as many axes as the inputs, against which it broadcasts, as `[1, D]`.
PerValue = PerExample | Float[Array, "..."]


def expand(values: Shaped[Array, " B"], like: Shaped[Array, "B ..."]) -> Shaped[Array, "B ..."]:
    """One value for each example, such that it broadcasts against a batch."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def per_example(values: PerExample, inputs: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """A number, or one for each example, such that it broadcasts against the batch of inputs."""
    return expand(jnp.broadcast_to(jnp.asarray(values, inputs.dtype), inputs.shape[:1]), inputs)


def positive(values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The values, with 0 in the place of those that are not positive and finite."""
    return jnp.where(jnp.isfinite(values) & (values > 0), values, 0.0)


def norm(values: Float[Array, "B ..."], order: int | float = 2) -> Float[Array, " B"]:
    """The L1, L2 or Linf norm (`order` 1, 2 or infinity) of each example."""
    size = jnp.abs(values)
    axes = tuple(range(1, values.ndim))
    if order == 1:
        return jnp.sum(size, axis=axes)
    if order == 2:
        return jnp.sqrt(jnp.sum(size**2, axis=axes))
    return jnp.max(size, axis=axes)


def unit(values: Float[Array, "B ..."], order: int | float = 2) -> Float[Array, "B ..."]:
    """Scales each example to norm 1; zero stays zero."""
    # By the largest entry first: squares and sums of what a saturated network returns leave the range of float32.
    for size in (jnp.inf, order):
        scale = expand(norm(values, size), values)
        values = values / jnp.where(scale > 0, scale, 1.0)
    return values


def all_of(conditions: Bool[Array, "B ..."]) -> Bool[Array, " B"]:
    """Whether all entries of each example are true."""
    return jnp.all(conditions, axis=tuple(range(1, conditions.ndim)))


def is_dead(gradient: Float[Array, "B ..."]) -> Int[Array, " B"]:
    """1 where the gradient of an example is zero in every feature, else 0; for the count of zero gradients."""
    return all_of(gradient == 0).astype(jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples of an attack: a pytree of arrays with the batch as first axis, which may be part of a loop's state.

    Attributes:
      clean: the inputs before the attack, in the precision of the search.
      labels: the true classes, int32.
      targets: the classes to reach, int32, or None.
      mask: which entries may change, of the shape of the inputs, or None for all.
      criterion: the user's goal, or None for misclassification (or, with targets, for the target).
      guard: by how much, relative to the logits that are compared, a search's margin must exceed zero.
    """

    clean: Any
    labels: Any
    targets: Any
    mask: Any
    criterion: Criterion | None = dataclasses.field(metadata={"static": True})
    guard: float = dataclasses.field(metadata={"static": True})

    def is_adversarial(self, logits: Float[Array, "B K"]) -> Bool[Array, " B"]:
        """Whether the goal is reached; see `is_adversarial` and `criterion`."""
        if self.criterion is not None:
            return (self.criterion(logits, self.labels, self.targets) < 0) & is_decision(logits)
        return is_adversarial(logits, self.labels, self.targets)

    def objective(self, logits: Float[Array, "B K"], loss: str = "margin") -> Float[Array, " B"]:
        """What attacks minimize: the user's criterion or, without one, the negative of a loss of `ddjax.losses`.

        That of the margin is how far the logits are from the goal; it is negative where the goal is reached.
        """
        if self.criterion is not None:
            return self.criterion(logits, self.labels, self.targets)
        return -losses.REGISTRY[loss](logits, self.labels, self.targets)

    def required_margin(self, logits: Float[Array, "B K"], confidence: PerExample = 0.0) -> Float[Array, " B"]:
        """How far below zero a search must bring the objective: by the confidence, and by more than rounding."""
        confidence = jnp.asarray(confidence, logits.dtype)
        if self.criterion is not None:
            return jnp.broadcast_to(confidence, logits.shape[:1])
        classes = self.labels if self.targets is None else self.targets
        is_class = jnp.arange(logits.shape[1], dtype=jnp.int32)[None, :] == classes[:, None]
        others = jnp.max(jnp.where(is_class, -jnp.inf, logits), axis=1)
        return jnp.maximum(confidence, self.rounding(losses.logit(logits, classes), others))

    def rounding(self, one: Float[Array, "..."], other: Float[Array, "..."]) -> Float[Array, "..."]:
        """A difference of two logits that is no more than this may be due to rounding."""
        size = lambda values: jnp.where(jnp.isfinite(values), jnp.abs(values), 0.0)
        return self.guard * jnp.maximum(size(one), size(other))

    def reached(self, logits: Float[Array, "B K"], confidence: PerExample = 0.0) -> Bool[Array, " B"]:
        """`is_adversarial`, by the `required_margin`."""
        distance = self.objective(logits)
        # Where the compared logits are zero, so is the required margin.
        enough = (distance <= -self.required_margin(logits, confidence)) & (distance < 0)
        return enough & is_decision(logits)

    def objective_and_gradient(
        self, logits_fn: LogitsFn, inputs: Float[Array, "B ..."], loss: str = "margin"
    ) -> tuple[Float[Array, "B K"], Float[Array, " B"], Float[Array, "B ..."]]:
        """The logits, the `objective`, and the objective's gradient; see `free`."""

        def total(inputs: Array) -> tuple[Array, tuple[Array, Array]]:
            logits = logits_fn(inputs)
            distance = self.objective(logits, loss)
            # The sum, so that the gradient of an example does not depend on the batch.
            return jnp.sum(distance), (logits, distance)

        gradient, (logits, distance) = jax.grad(total, has_aux=True)(inputs)
        return logits, distance, self.free(gradient)

    def unmasked(self, inputs: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
        """The inputs, with masked entries as they were."""
        return inputs if self.mask is None else jnp.where(self.mask, inputs, self.clean)

    def free(self, gradient: Float[Array, "..."]) -> Float[Array, "..."]:
        """A gradient `[B, ...]`, or a stack of them, with zero in the place of what is masked or not finite."""
        usable = jnp.isfinite(gradient)
        if self.mask is not None:
            usable = usable & self.mask.reshape((1,) * (gradient.ndim - self.mask.ndim) + self.mask.shape)
        return jnp.where(usable, gradient, 0.0)


def is_adversarial(
    logits: Float[Array, "B K"], labels: Int[Array, " B"], targets: Int[Array, " B"] | None = None
) -> Bool[Array, " B"]:
    """Whether the decision is the target or, without targets, any class but the label.

    A class whose logit is minus infinity is switched off. NaN or plus infinity among the logits is no decision.
    """
    decision = jnp.argmax(logits, axis=1).astype(labels.dtype)
    reached = decision != labels if targets is None else decision == targets.astype(labels.dtype)
    return reached & is_decision(logits)


def is_decision(logits: Float[Array, "B K"]) -> Bool[Array, " B"]:
    """Whether the logits decide for a class: none is NaN or plus infinity, and not all are minus infinity."""
    return jnp.all(logits < jnp.inf, axis=1) & jnp.any(logits > -jnp.inf, axis=1)
