"""One step along the sign of the gradient: FGSM."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ddjax import losses
from ddjax.attacks.contract import AttackResult, declare, refuses_old_calls
from ddjax.attacks.examples import Criterion, PerExample, is_dead
from ddjax.attacks.problem import Bounds, prepare
from ddjax.checks import check_number
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
    epsilon: PerExample | None = None,
    mask: Bool[Array, "..."] | None = None,
    criterion: Criterion | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """Takes one step of size epsilon along the sign of the gradient of the cross-entropy.

    Where the gradient is exactly zero, as on a saturated distilled network, the step is zero too. That is gradient
    masking, not robustness; `zero_gradients` of the result counts it.

    Args:
      logits_fn: a classifier.
      inputs: inside `bounds`.
      labels: the true classes.
      key: checked, but unused; the attack is deterministic.
      targets: the classes to reach, for the targeted attack; none may be the true one.
      epsilon: the step in each value, at least 0, in the units of the inputs; may be traced, and one for each example.
        None takes 0.3 of the range of each value.
      mask: which entries may change, `[B, ...]` or broadcastable; None for all.
      criterion: the goal in the place of misclassification, see `problem.prepare`; its gradient is followed.
      bounds: the least and the greatest value of an input; see `problem.prepare`.

    Returns:
      The inputs after the step, successful or not; within epsilon up to one unit in the last place.

    Raises:
      TypeError: for arguments of a wrong type (see `problem.prepare`).
      ValueError: for bad inputs, labels, targets or bounds (see `problem.prepare`), an epsilon that is negative or not
        finite, or none without finite bounds.

    Reference:
      Goodfellow et al., Explaining and Harnessing Adversarial Examples, 2015 (arXiv 1412.6572)
    """
    problem = prepare(
        "fgsm", logits_fn, inputs, labels, key=key, targets=targets, mask=mask, criterion=criterion, bounds=bounds
    )
    if epsilon is not None:
        check_number("epsilon", epsilon, least=0.0)
    radius = problem.share_of_range("epsilon", epsilon, _EPSILON)
    examples = problem.examples

    def loss(inputs: Array) -> Array:
        logits = problem.logits_fn(inputs)
        # The sum, so that the gradient of an example does not depend on the batch.
        if criterion is not None:
            return -jnp.sum(examples.objective(logits))
        if targets is None:
            return jnp.sum(losses.cross_entropy(logits, examples.labels))
        return -jnp.sum(losses.cross_entropy(logits, examples.targets))

    gradient = examples.free(jax.grad(loss)(problem.clean))
    # A traced epsilon may be anything; one that is not finite moves nothing.
    step = jnp.where(jnp.isfinite(radius) & (radius > 0), radius, 0.0) * jnp.sign(gradient)
    adversarial = problem.clip(problem.clean + step)
    one = problem.zeros + 1
    return problem.result(
        adversarial,
        problem.logits_fn(adversarial),
        steps=one,
        gradients=one,
        queries=one + 1,
        zero_gradients=is_dead(gradient),
    )


ATTACKS = (declare(fgsm, norm="linf", kind="budget", targets="optional", random=False, access="gradient"),)
