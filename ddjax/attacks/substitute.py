"""A black-box attack without scores: a substitute learns the target's answers, and what fools it is shown to that.

The substitute is trained as any network is, on images with the classes that the target gave them. What this attack adds
is the choice of the images.

Reference:
  Papernot, McDaniel, Goodfellow, Jha, Celik and Swami, Practical Black-Box Attacks against Machine Learning, 2017
  (arXiv 1602.02697).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddjax.attacks import base
from ddjax.classifier import LogitsFn


def jacobian_augmentation(
    logits_fn: LogitsFn,
    images: Float[Array, "B H W C"],
    labels: Int[Array, " B"],
    *,
    step_size: float | Float[Array, ""] = 0.1,
    bounds: base.Bounds = (0.0, 1.0),
) -> Float[Array, "B H W C"]:
    """New images to ask the target about: where the substitute's opinion of the label changes fastest.

    Args:
      logits_fn: the substitute.
      images: within the bounds, that the target has classified.
      labels: the target's answers.
      step_size: lambda, by how much every value moves along the sign of the Jacobian; may be traced.
      bounds: the least and the greatest value of a pixel, or of each channel.

    Returns:
      As many images, to be added to those that are there.

    Raises:
      ValueError: for bad images or labels (see `base.check_arguments`), or a step size that is negative or not finite.

    Reference:
      Papernot et al., 2017 (arXiv 1602.02697), section 4.2.
    """
    base.check_arguments(logits_fn, images, labels, None, bounds)
    base.check_number("step_size", step_size, least=0.0)

    def likelihood(inputs: Array) -> Array:
        is_label = jax.nn.one_hot(labels, jax.eval_shape(logits_fn, inputs).shape[1], dtype=bool)
        # Of the logarithms, which have the sign of the probabilities' and a gradient where these saturate.
        return jnp.sum(jnp.where(is_label, jax.nn.log_softmax(logits_fn(inputs)), 0.0))

    low, high = base.box(bounds, images)
    return jnp.clip(images + step_size * jnp.sign(jax.grad(likelihood)(images)), low, high)
