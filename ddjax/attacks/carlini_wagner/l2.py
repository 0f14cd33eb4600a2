"""The L2 attack of Carlini and Wagner."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ddjax.attacks import loops
from ddjax.attacks.carlini_wagner import search
from ddjax.attacks.contract import AttackResult, refuses_old_calls
from ddjax.attacks.examples import Criterion, PerExample
from ddjax.attacks.problem import Bounds, Problem, prepare
from ddjax.checks import check_whole_number
from ddjax.classifier import LogitsFn


class _L2State(NamedTuple):
    """One entry for each example. `progress` and `succeeded` belong to the current constant."""

    task: search.Task
    start: Float[Array, "B ..."]
    adam: search.Adam
    progress: search.Progress
    constant: Float[Array, " B"]
    lower: Float[Array, " B"]
    upper: Float[Array, " B"]
    number: Int[Array, " B"]
    succeeded: Bool[Array, " B"]
    best: Float[Array, " B"]
    best_inputs: Float[Array, "B ..."]
    steps: Int[Array, " B"]
    zero_gradients: Int[Array, " B"]


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

    Args:
      logits_fn: a classifier.
      inputs: inside `bounds`.
      labels: the true classes.
      key: checked, but unused; the attack is deterministic.
      targets: the classes to reach, for the targeted attack; none may be the true one.
      confidence: kappa, the margin between the logits, at least 0; may be traced, and one for each example.
      learning_rate: of Adam, on the tanh variables, or on the inputs where the bounds are not finite; may be traced.
        None takes 0.01 on tanh variables.
      initial_const: the first c, in squared units of the inputs for a unit of the logits; may be traced. None takes
        1e-3 times the squared range.
      search_steps: how many constants are tried.
      num_steps: the steps for each; the authors' code takes up to 10,000.
      abort_early: whether the search for one constant ends when a tenth of its steps brought less than 0.01 percent.
      constraint: by how much inputs, of a batch of any size, violate something else that must hold, such as that a
        detector stays silent; zero where it holds. It is added to what is missed of the margin. Only inputs where it is
        zero count. None for no constraint.
      mask: which entries may change, `[B, ...]` or broadcastable; None for all.
      criterion: the goal in the place of misclassification, see `problem.prepare`; it takes the place of the margin.
      bounds: the least and the greatest value of an input; see `problem.prepare`.

    Returns:
      The closest adversarial inputs, or the clean input where there was none. `steps` and `gradients` count steps.

    Raises:
      TypeError: for arguments of a wrong type (see `problem.prepare`).
      ValueError: for bad inputs, labels, targets or bounds (see `problem.prepare`), a setting that is not
        positive, a confidence below 0, or no `learning_rate` or `initial_const` without finite bounds.

    Reference:
      Carlini and Wagner, 2017 (arXiv 1608.04644), section VI-A; constants and their search from the authors' code.
    """
    check_whole_number("search_steps", search_steps, least=1)
    search.check_search(num_steps, confidence, {"learning_rate": learning_rate, "initial_const": initial_const})
    problem = prepare(
        "carlini_wagner_l2",
        logits_fn,
        inputs,
        labels,
        key=key,
        targets=targets,
        mask=mask,
        criterion=criterion,
        bounds=bounds,
    )
    variables = search.variables_of(problem)

    def view(variable: Array) -> tuple[Array, search.Pull]:
        return variables.inputs(variable), lambda gradient: gradient * variables.slope(variable)

    return search_l2(
        problem,
        view,
        variables.of(problem.clean),
        restrict=variables.restrict,
        confidence=confidence,
        learning_rate=search.rate_of(problem, learning_rate, 0.01),
        initial_const=problem.share_of_scale("initial_const", initial_const, 1e-3, power=2),
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
    learning_rate: search.Scalar,
    initial_const: search.Scalar,
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
      confidence: see `carlini_wagner_l2`, as for all that follow.
      learning_rate: of Adam.
      initial_const: the first constant.
      search_steps: how many constants are tried.
      num_steps: the steps for each.
      abort_early: whether the search for one constant ends when it makes no more progress.
      constraint: what else must hold.

    Returns:
      As `carlini_wagner_l2`.
    """
    clean = problem.clean
    axes = tuple(range(1, clean.ndim))
    expand = lambda values, like: values.reshape(-1, *(1,) * (like.ndim - 1))
    rate = jnp.asarray(learning_rate, clean.dtype)

    def live(state: _L2State) -> Array:
        # A distance of zero cannot be improved: the clean input reaches the goal itself.
        return (state.number < search_steps) & (state.best > 0)

    def step(state: _L2State) -> _L2State:
        examples, adam, constant = state.task.examples, state.adam, state.constant
        is_live = live(state)
        moved, pull = view(adam.variable)
        if examples.mask is not None:
            moved = jnp.where(examples.mask, moved, examples.clean)
        if restrict is not None:
            # First the clean input itself, which the tanh gives back but for the last bit.
            moved = jnp.where(expand(state.steps == 0, moved), examples.clean, moved)
        found = search.evaluate(problem.logits_fn, moved, state.task)
        if constraint is not None:
            found = search.constrained(found, constraint, moved)
        change = moved - examples.clean
        squared = jnp.sum(change**2, axis=axes)
        closer = is_live & found.reached & (squared < state.best)
        succeeded = state.succeeded | found.reached
        loss = squared + constant * found.hinge
        gradient = 2 * change + expand(constant, change) * examples.free(found.gradient)
        stepped = search.descend(adam, pull(gradient), rate)
        if restrict is not None:
            stepped = stepped._replace(variable=restrict(stepped.variable))

        progress, ends, _ = search.advance(state.progress, loss, num_steps, abort_early)
        upper = jnp.where(ends & succeeded, jnp.minimum(state.upper, constant), state.upper)
        lower = jnp.where(ends & ~succeeded, jnp.maximum(state.lower, constant), state.lower)
        next_constant = jnp.where(jnp.isfinite(upper), (lower + upper) / 2, 10 * constant)
        if search_steps >= 10:
            # As in the authors' code, the last search is with the least constant that is known to succeed.
            is_last = (state.number + 2 == search_steps) & jnp.isfinite(upper)
            next_constant = jnp.where(is_last, upper, next_constant)
        new = _L2State(
            task=state.task,
            start=state.start,
            adam=loops.select(ends, search.begin(state.start, state.steps), stepped),
            progress=loops.select(ends, search.no_progress(loss, state.steps), progress),
            constant=jnp.where(ends, next_constant, constant),
            lower=lower,
            upper=upper,
            number=state.number + ends.astype(jnp.int32),
            succeeded=succeeded & ~ends,
            best=jnp.where(closer, squared, state.best),
            best_inputs=loops.select(closer, moved, state.best_inputs),
            steps=state.steps + 1,
            zero_gradients=state.zero_gradients + found.is_dead,
        )
        return loops.select(is_live, new, state)

    zeros, blank = problem.zeros, problem.blank
    state = _L2State(
        task=search.task_of(problem, confidence),
        start=start,
        adam=search.begin(start, zeros),
        progress=search.no_progress(blank, zeros),
        constant=blank + jnp.asarray(initial_const, clean.dtype),
        lower=blank,
        upper=blank + jnp.inf,
        number=zeros,
        succeeded=zeros > 0,
        best=blank + jnp.inf,
        best_inputs=clean,
        steps=zeros,
        zero_gradients=zeros,
    )
    end = loops.while_live(step, live, state, lanes=loops.lanes(clean))
    return problem.nearest(
        end.best_inputs,
        steps=end.steps,
        gradients=end.steps,
        queries=end.steps,
        zero_gradients=end.zero_gradients,
        # A misclassified clean input need not satisfy the constraint, and a variable need not have it as its input.
        is_found=None if constraint is None and restrict is not None else jnp.isfinite(end.best),
    )
