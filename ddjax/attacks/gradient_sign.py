"""One step along the sign of the gradient: FGSM."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ddjax.attacks.contract import AttackResult, declare, refuses_old_calls
from ddjax.attacks.examples import Criterion, PerValue, is_dead
from ddjax.attacks.problem import Bounds, prepare
from ddjax.classifier import LogitsFn

# Of the range: the radius of Goodfellow et al. for MNIST is 0.25, that of later work 0.3.
_EPSILON = 0.3


@refuses_old_calls
def fgsm(
    logits_fn: LogitsFn,
    inputs: Float[Array, "B ..."],
    labels: Int[Array, " B"],
    *,
    key: Key[Array, "..."] | None = None,
    targets: Int[Array, " B"] | None = None,
    epsilon: PerValue | None = None,
    mask: Bool[Array, "..."] | None = None,
    criterion: Criterion | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """Takes one step of size epsilon along the sign of the gradient of the cross-entropy.

    Where the gradient is exactly zero, as on a saturated distilled network, the step is zero too. That is gradient
    masking, not robustness; `zero_gradients` of the result counts it.

    The arguments that all attacks have are described in `ddjax.attacks.contract`.

    Args:
      epsilon: the step in each value, at least 0, in the units of the inputs; may be traced, and one for each example
        or, as an array that broadcasts against the inputs, for each value. None takes 0.3 of the range of each value.

    Returns:
      The inputs after the step, successful or not; within epsilon up to one unit in the last place.

    Reference:
      Goodfellow et al., Explaining and Harnessing Adversarial Examples, 2015 (arXiv 1412.6572)
    """
    problem = prepare("fgsm", logits_fn, inputs, labels, key, targets, mask, criterion, bounds)
    radius = problem.share_of_range("epsilon", epsilon, _EPSILON)
    _, _, slope = problem.examples.objective_and_gradient(problem.logits_fn, problem.clean, "cross_entropy")
    adversarial = problem.clip(problem.clean - radius * jnp.sign(slope))
    one = problem.zeros + 1
    logits = problem.logits_fn(adversarial)
    return problem.result(adversarial, logits, steps=one, queries=one + 1, zero_gradients=is_dead(slope))


ATTACKS = (declare(fgsm, norm="linf", kind="budget", targets="optional", random=False, access="gradient"),)
