"""One step along the sign of the gradient: FGSM."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ddjax import losses
from ddjax.attacks import base
from ddjax.classifier import LogitsFn


def fgsm(
    logits_fn: LogitsFn,
    images: Float[Array, "B H W C"],
    labels: Int[Array, " B"],
    key: Key[Array, "..."] | None = None,
    *,
    targets: Int[Array, " B"] | None = None,
    epsilon: float | Float[Array, ""] | Float[Array, " B"] = 0.3,
    bounds: base.Bounds = (0.0, 1.0),
) -> base.AttackResult:
    """Takes one step of size epsilon along the sign of the gradient of the cross-entropy.

    Where the gradient is exactly zero, as on a saturated distilled network, the step is zero too: that is gradient
    masking, not robustness.

    Args:
      logits_fn: a classifier.
      images: within `bounds`.
      labels: the true classes.
      key: unused; the attack is deterministic.
      targets: the classes to reach, for the targeted attack; none may be the true one.
      epsilon: the step in each value, at least 0, in the units of the images; may be traced, and one for each example.
      bounds: the least and the greatest value of a pixel, or of each channel.

    Returns:
      The images after the step, successful or not; within epsilon up to one unit in the last place.

    Raises:
      ValueError: for bad images, labels, targets or bounds (see `base.check_arguments`), or an epsilon that is negative
        or not finite.

    Reference:
      Goodfellow et al., Explaining and Harnessing Adversarial Examples, 2015 (arXiv 1412.6572)
    """
    del key
    base.check_arguments(logits_fn, images, labels, targets, bounds)
    base.check_number("epsilon", epsilon, least=0.0)
    radius = base.per_image(epsilon, images)

    def loss(inputs: Array) -> Array:
        # The sum, so that each example's gradient is its own whatever the batch.
        if targets is None:
            return jnp.sum(losses.cross_entropy(logits_fn(inputs), labels))
        return -jnp.sum(losses.cross_entropy(logits_fn(inputs), targets))

    gradient = jax.grad(loss)(images)
    direction = jnp.where(jnp.isfinite(gradient), jnp.sign(gradient), 0.0)
    # A traced epsilon may be anything; what is not finite moves nothing.
    step = jnp.where(jnp.isfinite(radius) & (radius > 0), radius, 0.0) * direction
    adversarial = jnp.clip(images + step, *base.box(bounds, images))
    logits = logits_fn(adversarial)
    return base.AttackResult(
        images=adversarial,
        success=base.is_adversarial(logits, labels, targets),
        logits=logits,
        steps=jnp.ones_like(labels),
        gradients=jnp.ones_like(labels),
    )
