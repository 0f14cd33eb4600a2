"""The Linf attack of Carlini and Wagner."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ddjax.attacks import loops
from ddjax.attacks.carlini_wagner import search
from ddjax.attacks.contract import AttackResult, refuses_old_calls
from ddjax.attacks.examples import Criterion, PerExample, norm
from ddjax.attacks.problem import Bounds, prepare
from ddjax.checks import check_number
from ddjax.classifier import LogitsFn


class _LinfState(NamedTuple):
    """One entry for each example. `progress` belongs to the current constant."""

    task: search.Task
    adam: search.Adam
    progress: search.Progress
    tau: Float[Array, " B"]
    rate: Float[Array, " B"]
    unit: Float[Array, " B"]
    constant: Float[Array, " B"]
    best: Float[Array, " B"]
    best_inputs: Float[Array, "B ..."]
    live: Bool[Array, " B"]
    steps: Int[Array, " B"]
    zero_gradients: Int[Array, " B"]


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

    Args:
      logits_fn: a classifier.
      inputs: inside `bounds`.
      labels: the true classes.
      key: checked, but unused; the attack is deterministic.
      targets: the classes to reach, for the targeted attack; none may be the true one.
      confidence: the margin between the logits, at least 0; may be traced, and one for each example.
      learning_rate: of Adam, on the tanh variables, or on the inputs where the bounds are not finite; may be traced.
        None takes 5e-3 on tanh variables.
      initial_const: the first constant of the first problem, in units of the reciprocal of the margin's largest
        derivative at the clean input; may be traced. Later problems
        start with the constant of the one before.
      largest_const: a problem that needs a larger constant counts as unsolvable; may be traced.
      const_factor: the factor by which a constant that did not suffice grows, above 1; may be traced.
      decrease_factor: the factor by which tau shrinks, in (0, 1); closer to 1, the attack finds closer inputs and
        takes longer; may be traced.
      num_steps: the steps for each constant.
      abort_early: whether the next constant is taken when a tenth of the steps brought less than 0.01 percent.
      mask: which entries may change, `[B, ...]` or broadcastable; None for all.
      criterion: the goal in the place of misclassification, see `problem.prepare`; it takes the place of the margin.
      bounds: the least and the greatest value of an input; see `problem.prepare`.

    Returns:
      The closest adversarial input of all iterates, or the clean input where there was none. `steps` and `gradients`
      count steps.

    Raises:
      TypeError: for arguments of a wrong type (see `problem.prepare`).
      ValueError: for bad inputs, labels, targets or bounds (see `problem.prepare`), a setting that is not
        positive, a factor out of its range, a confidence below 0, or no `learning_rate` without finite bounds.

    Reference:
      Carlini and Wagner, 2017 (arXiv 1608.04644), section VI-C; constants from the authors' code.

    Departures from the authors' code:
      The loss is divided by c, which changes nothing but keeps it away from Adam's epsilon. The constant has a unit, so
      that the attack does not depend on the scale of the logits, and starts at 0.1 of it instead of 1e-5: with less,
      the penalty of a pixel that once passed tau stays in Adam's second moment and stops that pixel for good. Where
      the margin is stuck before anything was found, the attack starts again at half the learning rate.
    """
    positive = {"learning_rate": learning_rate, "initial_const": initial_const, "largest_const": largest_const}
    search.check_search(num_steps, confidence, positive)
    check_number("const_factor", const_factor, above=1.0)
    check_number("decrease_factor", decrease_factor, above=0.0, below=1.0)
    problem = prepare(
        "carlini_wagner_linf",
        logits_fn,
        inputs,
        labels,
        key=key,
        targets=targets,
        mask=mask,
        criterion=criterion,
        bounds=bounds,
    )
    clean, variables = problem.clean, search.variables_of(problem)
    axes = tuple(range(1, clean.ndim))
    expand = lambda values: values.reshape(-1, *(1,) * len(axes))
    # Without bounds the first problem has no tau, and there is no distance below which the search stops.
    width = jnp.max(problem.width) if problem.is_bounded else jnp.asarray(jnp.inf, clean.dtype)
    least_tau = width / 256 if problem.is_bounded else 0.0

    def step(state: _LinfState) -> _LinfState:
        examples, adam, constant = state.task.examples, state.adam, state.constant
        moved = variables.inputs(adam.variable)
        if examples.mask is not None:
            moved = jnp.where(examples.mask, moved, examples.clean)
        # First the clean input itself, which the tanh gives back but for the last bit.
        moved = jnp.where(expand(state.steps == 0), examples.clean, moved)
        found = search.evaluate(problem.logits_fn, moved, state.task)
        change = moved - examples.clean
        distance = jnp.max(jnp.abs(change), axis=axes)
        excess = jnp.maximum(jnp.abs(change) - expand(state.tau), 0.0)
        # The unit of the constant, settled in the first step, at the clean input.
        steepest = norm(found.raw_gradient, jnp.inf)
        unit = jnp.where(state.unit > 0, state.unit, 1 / jnp.where(steepest > 0, steepest, 1.0))
        penalty = 1 / (constant * unit)
        total_excess = jnp.sum(excess, axis=axes)
        loss = found.hinge + total_excess * penalty
        # Where the decision is reached the hinge is zero, and only the excess is left.
        allowed = width if problem.is_bounded else jnp.where(jnp.isfinite(state.tau), state.tau, 0.0)
        solved = found.reached & (total_excess <= 1e-4 * constant * allowed)
        closer = found.reached & (distance < state.best)
        best = jnp.where(closer, distance, state.best)

        # Not solved: one step, and perhaps a larger constant.
        gradient = found.gradient + jnp.where(excess > 0, jnp.sign(change), 0.0) * expand(penalty)
        stepped = search.descend(adam, gradient * variables.slope(adam.variable), expand(state.rate))
        stepped = stepped._replace(variable=variables.restrict(stepped.variable))
        progress, exhausted, stalled = search.advance(state.progress, loss, num_steps, abort_early)
        grown = constant * jnp.where(exhausted, jnp.asarray(const_factor, constant.dtype), 1.0)
        # As long as nothing was found there is no penalty, and where the margin is stuck a larger constant changes
        # nothing. A new start with smaller steps does.
        anew = exhausted & stalled & jnp.isinf(best)
        stepped = loops.select(anew, search.begin(variables.of(examples.clean), state.steps), stepped)

        # Solved: a smaller tau, and a new problem that starts from here.
        tau = jnp.where(solved, jnp.minimum(state.tau, best) * decrease_factor, state.tau)
        new = _LinfState(
            task=state.task,
            adam=loops.select(solved, search.begin(adam.variable, state.steps), stepped),
            progress=loops.select(solved | exhausted, search.no_progress(loss, state.steps), progress),
            tau=tau,
            rate=jnp.where(anew, state.rate / 2, state.rate),
            unit=unit,
            constant=jnp.where(solved, constant, grown),
            best=best,
            best_inputs=loops.select(closer, moved, state.best_inputs),
            live=jnp.where(solved, tau > least_tau, grown <= largest_const) & (best > 0),
            steps=state.steps + 1,
            zero_gradients=state.zero_gradients + found.is_dead,
        )
        return loops.select(state.live, new, state)

    zeros, blank = problem.zeros, problem.blank
    state = _LinfState(
        task=search.task_of(problem, confidence),
        adam=search.begin(variables.of(clean), zeros),
        progress=search.no_progress(blank, zeros),
        tau=blank + width,
        rate=blank + search.rate_of(problem, learning_rate, 5e-3),
        unit=blank,
        constant=blank + jnp.asarray(initial_const, clean.dtype),
        best=blank + jnp.inf,
        best_inputs=clean,
        live=zeros == 0,
        steps=zeros,
        zero_gradients=zeros,
    )
    end = loops.while_live(step, lambda state: state.live, state, lanes=loops.lanes(clean))
    return problem.nearest(
        end.best_inputs,
        steps=end.steps,
        gradients=end.steps,
        queries=end.steps,
        zero_gradients=end.zero_gradients,
    )
