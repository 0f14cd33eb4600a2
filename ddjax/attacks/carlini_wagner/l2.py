"""The L2 attack of Carlini and Wagner."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ddjax.attacks import loops
from ddjax.attacks.carlini_wagner import search
from ddjax.attacks.contract import AttackResult, refuses_old_calls
from ddjax.attacks.examples import Criterion, PerExample, expand, is_dead
from ddjax.attacks.problem import Bounds, Problem, prepare
from ddjax.checks import check_whole_number
from ddjax.classifier import LogitsFn


class _Bisection(NamedTuple):
    """The search for the constant; one entry for each example.

    Each constant starts from the same variables. The bounds are the largest constant that did not succeed and the least
    that did; `succeeded` is about the current one, whose number is `number`.
    """

    start: Float[Array, "B ..."]
    lower: Float[Array, " B"]
    upper: Float[Array, " B"]
    number: Int[Array, " B"]
    succeeded: Bool[Array, " B"]


@refuses_old_calls
def carlini_wagner_l2(
    logits_fn: LogitsFn,
    inputs: Float[Array, "B ..."],
    labels: Int[Array, " B"],
    *,
    key: Key[Array, "..."] | None = None,
    targets: Int[Array, " B"] | None = None,
    confidence: PerExample = 0.0,
    learning_rate: search.Scalar | None = None,
    initial_const: search.Scalar | None = None,
    search_steps: int = 9,
    num_steps: int = 1000,
    abort_early: bool = True,
    constraint: search.Constraint | None = None,
    mask: Bool[Array, "..."] | None = None,
    criterion: Criterion | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """Finds the closest adversarial input in L2 that is decided by a margin of at least `confidence`.

    Minimizes ||x' - x||^2 + c (max(Z_other - Z_target) + confidence)^+ over tanh variables for a sequence of constants
    c: ten times larger until one succeeds, then bisected. Returns the closest of all iterates that had the margin.

    The settings that the three attacks share are described in `ddjax.attacks.carlini_wagner`, the arguments that all
    attacks have in `ddjax.attacks.contract`.

    Args:
      initial_const: the first c, in squared units of the inputs for a unit of the logits; may be traced. None takes
        1e-3 times the squared range.
      search_steps: how many constants are tried.
      num_steps: the authors' code takes up to 10,000.
      constraint: by how much inputs, of a batch of any size, violate something else that must hold, such as that a
        detector stays silent; zero where it holds. It is added to what is missed of the margin. Only inputs where it is
        zero count. None for no constraint.

    Returns:
      The closest adversarial inputs, or the clean input where there was none. `steps` and `gradients` count steps.

    Reference:
      Carlini and Wagner, 2017 (arXiv 1608.04644), section VI-A; constants and their search from the authors' code.
    """
    problem = prepare("carlini_wagner_l2", logits_fn, inputs, labels, key, targets, mask, criterion, bounds)
    variables = search.Variables(problem)
    return search_l2(
        problem,
        variables.view,
        variables.of(problem.clean),
        restrict=variables.restrict,
        confidence=confidence,
        learning_rate=learning_rate,
        initial_const=initial_const,
        search_steps=search_steps,
        num_steps=num_steps,
        abort_early=abort_early,
        constraint=constraint,
    )


def search_l2(
    problem: Problem,
    view: Callable[[Float[Array, "N ..."]], tuple[Float[Array, "N ..."], search.Pull]],
    start: Float[Array, "B ..."],
    *,
    restrict: Callable[[Float[Array, "N ..."]], Float[Array, "N ..."]] | None,
    confidence: PerExample,
    learning_rate: search.Scalar | None,
    initial_const: search.Scalar | None,
    search_steps: int,
    num_steps: int,
    abort_early: bool,
    constraint: search.Constraint | None = None,
) -> AttackResult:
    """The search of `carlini_wagner_l2`, over any variable from which inputs are computed.

    Args:
      problem: the checked call.
      view: from the variables of a batch of any size to their inputs, and to a function that takes a gradient with
        respect to the inputs to that with respect to the variables.
      start: the variables that the search for each constant starts from.
      restrict: keeps variables of the clean inputs where these are inside the box; the clean input itself is then the
        first iterate. None for variables of another kind.
      confidence: this and all that follow are as in `carlini_wagner_l2`.

    Returns:
      As `carlini_wagner_l2`.
    """
    check_whole_number("search_steps", search_steps, least=1)
    check_whole_number("num_steps", num_steps, least=1)
    rate = problem.share_of_scale("learning_rate", learning_rate, 0.01, power=0)
    first_const = problem.share_of_scale("initial_const", initial_const, 1e-3, power=2)

    def step(state: search.State) -> search.State:
        examples, constant, own = state.examples, state.constant, state.own
        moved, pull = view(state.adam.variable)
        if restrict is not None:
            moved = search.iterate(state, moved)
        found = search.evaluate(problem.logits_fn, moved, state)
        if constraint is not None:
            found = search.constrained(found, constraint, moved)
        change = moved - examples.clean
        squared = jnp.sum(change**2, axis=tuple(range(1, change.ndim)))
        closer = found.reached & (squared < state.best)
        best, best_inputs = loops.select(closer, (squared, moved), (state.best, state.best_inputs))
        gradient = 2 * change + expand(constant, change) * examples.free(found.gradient)
        stepped = search.descend(state.adam, pull(gradient), rate, restrict)

        loss = squared + constant * found.hinge
        progress, ends, _ = search.advance(state.progress, loss, num_steps, abort_early)
        succeeded = own.succeeded | found.reached
        upper = jnp.where(ends & succeeded, jnp.minimum(own.upper, constant), own.upper)
        lower = jnp.where(ends & ~succeeded, jnp.maximum(own.lower, constant), own.lower)
        next_constant = jnp.where(jnp.isfinite(upper), (lower + upper) / 2, 10 * constant)
        if search_steps >= 10:
            # As in the authors' code, the last search is with the least constant that is known to succeed.
            is_last = (own.number + 2 == search_steps) & jnp.isfinite(upper)
            next_constant = jnp.where(is_last, upper, next_constant)
        number = own.number + ends.astype(jnp.int32)
        return state._replace(
            adam=loops.select(ends, search.begin(own.start, state.steps), stepped),
            progress=loops.select(ends, search.no_progress(loss, state.steps), progress),
            constant=jnp.where(ends, next_constant, constant),
            best=best,
            best_inputs=best_inputs,
            # A distance of zero cannot be improved: the clean input reaches the goal itself.
            live=(number < search_steps) & (best > 0),
            steps=state.steps + 1,
            zero_gradients=state.zero_gradients + is_dead(found.raw_gradient),
            own=_Bisection(own.start, lower, upper, number, succeeded & ~ends),
        )

    own = _Bisection(start, problem.blank, problem.blank + jnp.inf, problem.zeros, problem.zeros > 0)
    end = search.run(problem, step, search.start(problem, start, own, confidence=confidence, constant=first_const))
    # A misclassified clean input need not satisfy the constraint, and a variable need not have it as its input.
    is_found = None if constraint is None and restrict is not None else jnp.isfinite(end.best)
    return problem.nearest(end.best_inputs, steps=end.steps, zero_gradients=end.zero_gradients, is_found=is_found)
