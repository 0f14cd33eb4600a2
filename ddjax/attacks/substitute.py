"""The choice of queries of a label-only black-box attack, which trains a substitute on the target's answers.

The substitute is trained as any network is, on inputs with the classes that the target gave them. Inputs that fool the
substitute are then tried on the target.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ddjax import losses
from ddjax.attacks.problem import Bounds, prepare
from ddjax.classifier import LogitsFn


def jacobian_augmentation(
    logits_fn: LogitsFn,
    inputs: Float[Array, "B ..."],
    labels: Int[Array, " B"],
    *,
    step_size: float | Float[Array, ""] | None = None,
    mask: Bool[Array, "..."] | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> Float[Array, "B ..."]:
    """New queries for the target, in the direction in which the substitute's probability of the label changes fastest.

    Args:
      logits_fn: the substitute; this and the others are as in the contract of attacks (`ddjax.attacks.contract`).
      inputs: the target has classified them.
      labels: the target's answers.
      step_size: lambda, by how much every value moves along the sign of the Jacobian, in the units of the inputs; may
        be traced. None takes a tenth of the range.

    Returns:
      One new input for each of the inputs, to be added to them.

    Raises:
      TypeError: as in the contract.
      ValueError: as in the contract.

    Reference:
      Papernot et al., Practical Black-Box Attacks against Machine Learning, 2017 (arXiv 1602.02697), section 4.2.
    """
    problem = prepare("jacobian_augmentation", logits_fn, inputs, labels, mask=mask, bounds=bounds)
    step = problem.share_of_range("step_size", step_size, 0.1)

    def likelihood(inputs: Array) -> Array:
        # Log-probabilities have gradients of the same sign as probabilities, also where these saturate.
        return -jnp.sum(losses.cross_entropy(problem.logits_fn(inputs), problem.examples.labels))

    return problem.clip(problem.clean + step * jnp.sign(jax.grad(likelihood)(problem.clean))).astype(inputs.dtype)
