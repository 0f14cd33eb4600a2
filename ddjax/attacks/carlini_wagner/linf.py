"""The Linf attack of Carlini and Wagner."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ddjax.attacks import loops
from ddjax.attacks.carlini_wagner import search
from ddjax.attacks.contract import AttackResult, refuses_old_calls
from ddjax.attacks.examples import Criterion, PerExample, expand, is_dead, norm
from ddjax.attacks.problem import Bounds, prepare
from ddjax.checks import check_number, check_whole_number
from ddjax.classifier import LogitsFn


class _Own(NamedTuple):
    """What the others do not have; one entry for each example. A change up to `tau` costs nothing.

    `unit` is that of the constant; the first step settles it, before which it is 0.
    """

    tau: Float[Array, " B"]
    rate: Float[Array, " B"]
    unit: Float[Array, " B"]


@refuses_old_calls
def carlini_wagner_linf(
    logits_fn: LogitsFn,
    inputs: Float[Array, "B ..."],
    labels: Int[Array, " B"],
    *,
    key: Key[Array, "..."] | None = None,
    targets: Int[Array, " B"] | None = None,
    confidence: PerExample = 0.0,
    learning_rate: search.Scalar | None = None,
    initial_const: search.Scalar = 0.1,
    largest_const: search.Scalar = 20.0,
    const_factor: search.Scalar = 2.0,
    decrease_factor: search.Scalar = 0.9,
    num_steps: int = 1000,
    abort_early: bool = True,
    mask: Bool[Array, "..."] | None = None,
    criterion: Criterion | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """Finds a close adversarial input in Linf.

    Minimizes c (margin)^+ + sum_i (|x'_i - x_i| - tau)^+. When that is (almost) zero, tau becomes `decrease_factor`
    times the distance achieved, and the next problem starts from there. The search ends where no constant c solves a
    problem.

    The settings that the three attacks share are described in `ddjax.attacks.carlini_wagner`, the arguments that all
    attacks have in `ddjax.attacks.contract`.

    Args:
      initial_const: the first constant of the first problem, in units of the reciprocal of the margin's largest
        derivative at the clean input; may be traced. Later problems start with the constant of the one before.
      largest_const: a problem that needs a larger constant counts as unsolvable; may be traced.
      const_factor: the factor by which a constant that did not suffice grows, above 1; may be traced.
      decrease_factor: the factor by which tau shrinks, in (0, 1); closer to 1, the attack finds closer inputs and
        takes longer; may be traced.

    Returns:
      The closest adversarial input of all iterates, or the clean input where there was none. `steps` and `gradients`
      count steps.

    Reference:
      Carlini and Wagner, 2017 (arXiv 1608.04644), section VI-C; constants from the authors' code.

    Departures from the authors' code:
      The loss is divided by c, which changes nothing but keeps it away from Adam's epsilon. The constant has a unit, so
      that the attack does not depend on the scale of the logits, and starts at 0.1 of it instead of 1e-5: with less,
      the penalty of a pixel that once passed tau stays in Adam's second moment and stops that pixel for good. Where
      the margin is stuck before anything was found, the attack starts again at half the learning rate.
    """
    check_number("initial_const", initial_const, above=0.0)
    check_number("largest_const", largest_const, above=0.0)
    check_number("const_factor", const_factor, above=1.0)
    check_number("decrease_factor", decrease_factor, above=0.0, below=1.0)
    check_whole_number("num_steps", num_steps, least=1)
    problem = prepare("carlini_wagner_linf", logits_fn, inputs, labels, key, targets, mask, criterion, bounds)
    clean, blank, variables = problem.clean, problem.blank, search.Variables(problem)
    first_rate = problem.share_of_scale("learning_rate", learning_rate, 5e-3, power=0)
    # Without bounds the first problem has no tau, and there is no distance below which the search stops.
    width = jnp.max(problem.width) if problem.is_bounded else jnp.asarray(jnp.inf, clean.dtype)
    least_tau = width / 256 if problem.is_bounded else 0.0

    def step(state: search.State) -> search.State:
        examples, constant, (tau, rate, unit) = state.examples, state.constant, state.own
        moved, pull = variables.view(state.adam.variable)
        moved = search.iterate(state, moved)
        found = search.evaluate(problem.logits_fn, moved, state)
        change = moved - examples.clean
        distance = norm(change, jnp.inf)
        excess = jnp.maximum(jnp.abs(change) - expand(tau, change), 0.0)
        # The unit of the constant, settled in the first step, at the clean input.
        steepest = norm(found.raw_gradient, jnp.inf)
        unit = jnp.where(unit > 0, unit, 1 / jnp.where(steepest > 0, steepest, 1.0))
        penalty = 1 / (constant * unit)
        total_excess = norm(excess, 1)
        loss = found.hinge + total_excess * penalty
        # Where the decision is reached the hinge is zero, and only the excess is left.
        allowed = width if problem.is_bounded else jnp.where(jnp.isfinite(tau), tau, 0.0)
        solved = found.reached & (total_excess <= 1e-4 * constant * allowed)
        closer = found.reached & (distance < state.best)
        best, best_inputs = loops.select(closer, (distance, moved), (state.best, state.best_inputs))

        # Not solved: one step, and perhaps a larger constant.
        gradient = found.gradient + jnp.where(excess > 0, jnp.sign(change), 0.0) * expand(penalty, change)
        stepped = search.descend(state.adam, pull(gradient), expand(rate, change), variables.restrict)
        progress, exhausted, stalled = search.advance(state.progress, loss, num_steps, abort_early)
        grown = constant * jnp.where(exhausted, jnp.asarray(const_factor, constant.dtype), 1.0)
        # As long as nothing was found there is no penalty, and where the margin is stuck a larger constant changes
        # nothing. A new start with smaller steps does.
        anew = exhausted & stalled & jnp.isinf(best)
        stepped = loops.select(anew, search.begin(variables.of(examples.clean), state.steps), stepped)

        # Solved: a smaller tau, and a new problem that starts from here.
        tau = jnp.where(solved, jnp.minimum(tau, best) * decrease_factor, tau)
        return state._replace(
            adam=loops.select(solved, search.begin(state.adam.variable, state.steps), stepped),
            progress=loops.select(solved | exhausted, search.no_progress(loss, state.steps), progress),
            constant=jnp.where(solved, constant, grown),
            best=best,
            best_inputs=best_inputs,
            live=jnp.where(solved, tau > least_tau, grown <= largest_const) & (best > 0),
            steps=state.steps + 1,
            zero_gradients=state.zero_gradients + is_dead(found.raw_gradient),
            own=_Own(tau, jnp.where(anew, rate / 2, rate), unit),
        )

    own = _Own(tau=blank + width, rate=blank + first_rate, unit=blank)
    state = search.start(problem, variables.of(clean), own, confidence=confidence, constant=initial_const)
    end = search.run(problem, step, state)
    return problem.nearest(end.best_inputs, steps=end.steps, zero_gradients=end.zero_gradients)
