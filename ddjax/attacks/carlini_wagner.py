"""The three attacks of Carlini and Wagner: L2, L0 and Linf, each on a whole batch at once.

All three minimize a distance plus a constant times the margin by which the classifier still decides otherwise, over
tanh variables, with Adam. Public implementations run one image after the other or let the images of a batch decide
together when to stop. Here every example has its own constant, search, optimizer state and end, in one compiled loop;
examples that are done leave the batch (`base.while_live`).

Reference:
  Carlini and Wagner, Towards Evaluating the Robustness of Neural Networks, 2017 (arXiv 1608.04644).

Departures from the paper and its authors' code, for all three:
  The tanh spans slightly more than the box, and its variable is kept within it. Pixels at the bounds, most of those of
  MNIST, then start where they are and with a slope of 1e-3; shrinking the image into the span by 1e-6 gives
  them a slope of 1e-6, so that hundreds of steps pass before they move.
  The steps for one constant end early by the progress of the example's least loss, not by that of its batch's loss.
  What counts as reached must be so by more than rounding (`base.reached`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from ddjax.attacks import base
from ddjax.classifier import LogitsFn

# tanh spans the box divided by this.
_SPAN = 0.999
# Progress is looked at so many times for each constant, and must be at least this.
_CHECKS = 10
_PROGRESS = 0.9999
# Of Adam.
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8

Scalar = float | Float[Array, ""]
# From a gradient with respect to images to that with respect to what they are made from.
Pull = Callable[[Array], Array]
PerExample = float | Float[Array, ""] | Float[Array, " B"]


class Problem(NamedTuple):
    """What does not change; one entry for each example, so that it is compacted with the rest."""

    clean: Float[Array, "B H W C"]
    labels: Int[Array, " B"]
    targets: Int[Array, " B"] | None
    confidence: Float[Array, " B"]


class _Adam(NamedTuple):
    """A variable and its optimizer state, with a count of its own for each example."""

    variable: Float[Array, "B h w c"]
    mean: Float[Array, "B h w c"]
    square: Float[Array, "B h w c"]
    count: Int[Array, " B"]


def _tanh_variable(images: Array, low: Array, high: Array) -> Array:
    return jnp.arctanh((2 * images - (low + high)) / (high - low) * _SPAN)


def _images_of(variable: Array, low: Array, high: Array) -> Array:
    return jnp.clip((low + high) / 2 + (high - low) / (2 * _SPAN) * jnp.tanh(variable), low, high)


def _slope_of(variable: Array, low: Array, high: Array) -> Array:
    """The derivative of the images by the variable."""
    return (high - low) / (2 * _SPAN) * (1 - jnp.tanh(variable) ** 2)


def _start(variable: Array, count: Array) -> _Adam:
    return _Adam(variable, jnp.zeros_like(variable), jnp.zeros_like(variable), jnp.zeros_like(count))


def _step(
    adam: _Adam, gradient: Array, learning_rate: Scalar | Float[Array, "B 1 1 1"], *, bounded: bool = True
) -> _Adam:
    """One step of Adam, a `bounded` variable kept where its images are in the box."""
    count = adam.count + 1
    mean = _BETA1 * adam.mean + (1 - _BETA1) * gradient
    square = _BETA2 * adam.square + (1 - _BETA2) * gradient**2
    time = count.astype(gradient.dtype)[:, None, None, None]
    update = mean / (1 - _BETA1**time) / (jnp.sqrt(square / (1 - _BETA2**time)) + _EPSILON)
    variable = adam.variable - learning_rate * update
    if bounded:
        limit = jnp.arctanh(jnp.asarray(_SPAN, gradient.dtype))
        variable = jnp.clip(variable, -limit, limit)
    return _Adam(variable, mean, square, count)


class _Progress(NamedTuple):
    """Of the constant under way: its steps, its least loss, and what that was when progress was last looked at."""

    count: Int[Array, " B"]
    lowest: Float[Array, " B"]
    previous: Float[Array, " B"]


def _no_progress(like: Array, count: Array) -> _Progress:
    infinite = jnp.full_like(like, jnp.inf)
    return _Progress(jnp.zeros_like(count), infinite, infinite)


def _advance(
    progress: _Progress, loss: Array, num_steps: int, abort_early: bool
) -> tuple[_Progress, Bool[Array, " B"], Bool[Array, " B"]]:
    """Counts a step; whether the constant is done with, and whether it brings nothing any more."""
    lowest = jnp.minimum(progress.lowest, loss)
    is_check = progress.count % max(num_steps // _CHECKS, 1) == 0
    stalled = is_check & (lowest > _PROGRESS * progress.previous)
    count = progress.count + 1
    previous = jnp.where(is_check, lowest, progress.previous)
    return _Progress(count, lowest, previous), (count >= num_steps) | (stalled & abort_early), stalled


def check_search(
    attack: str,
    num_steps: int,
    positive: dict[str, Any],
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    targets: Array | None,
    bounds: base.Bounds,
    confidence: Any,
) -> None:
    """Refuses what can be known to be wrong with the arguments of a search."""
    base.check_arguments(logits_fn, images, labels, targets, bounds)
    base.check_number("confidence", confidence, least=0.0)
    for name, value in positive.items():
        base.check_number(name, value, above=0.0)
    if num_steps < 1:
        raise ValueError(f"{attack} needs at least one step, got num_steps={num_steps}")
    for bound in bounds:
        base.check_number("bounds", bound)


def problem_of(images: Array, labels: Array, targets: Array | None, confidence: PerExample) -> Problem:
    """What an attack is asked for, with a confidence for each example."""
    return Problem(images, labels, targets, base.per_image(confidence, images)[:, 0, 0, 0])


class _Evaluation(NamedTuple):
    """The classifier at the images of a step.

    Attributes:
      hinge: (f)^+ of the paper: by how much the margin is still missed.
      gradient: of the hinge, with respect to the images.
      reached: whether it is not.
    """

    hinge: Float[Array, " B"]
    gradient: Float[Array, "B H W C"]
    raw_gradient: Float[Array, "B H W C"]
    reached: Bool[Array, " B"]


def _evaluate(logits_fn: LogitsFn, images: Array, problem: Problem) -> _Evaluation:
    _, labels, targets, confidence = problem
    logits, distance, gradient = base.objective_and_gradient(logits_fn, images, labels, targets)
    missing = distance + base.required_margin(logits, confidence)
    active = (missing > 0)[:, None, None, None]
    return _Evaluation(
        hinge=jnp.maximum(missing, 0.0),
        gradient=jnp.where(active, gradient, 0.0),
        raw_gradient=gradient,
        reached=base.reached(logits, labels, targets, confidence),
    )


def _constrained(found: _Evaluation, constraint: Callable[[Array], Array], images: Array) -> _Evaluation:
    """What is missed of both, the margin and the constraint."""

    def total(inputs: Array) -> tuple[Array, Array]:
        violation = constraint(inputs)
        return jnp.sum(violation), violation

    gradient, violation = jax.grad(total, has_aux=True)(images)
    gradient = jnp.where(jnp.isfinite(gradient), gradient, 0.0)
    return found._replace(
        hinge=found.hinge + violation,
        gradient=found.gradient + gradient,
        # Not where it is NaN either.
        reached=found.reached & (violation <= 0),
    )


class _L2State(NamedTuple):
    """One entry for each example. `progress` and `succeeded` are of the search under way."""

    problem: Problem
    start: Float[Array, "B h w c"]
    adam: _Adam
    progress: _Progress
    constant: Float[Array, " B"]
    lower: Float[Array, " B"]
    upper: Float[Array, " B"]
    search: Int[Array, " B"]
    succeeded: Bool[Array, " B"]
    best: Float[Array, " B"]
    best_images: Float[Array, "B H W C"]
    steps: Int[Array, " B"]


def carlini_wagner_l2(
    logits_fn: LogitsFn,
    images: Float[Array, "B H W C"],
    labels: Int[Array, " B"],
    key: Key[Array, "..."] | None = None,
    *,
    targets: Int[Array, " B"] | None = None,
    confidence: PerExample = 0.0,
    learning_rate: Scalar = 0.01,
    initial_const: Scalar = 1e-3,
    search_steps: int = 9,
    num_steps: int = 1000,
    abort_early: bool = True,
    constraint: Callable[[Float[Array, "N H W C"]], Float[Array, " N"]] | None = None,
    bounds: base.Bounds = (0.0, 1.0),
) -> base.AttackResult:
    """Finds the closest adversarial image in L2 that is decided by a margin of at least `confidence`.

    Minimizes ||x' - x||^2 + c (max(Z_other - Z_target) + confidence)^+ over tanh variables for a sequence of constants
    c: ten times larger until one succeeds, then bisected. Returns the closest of all iterates that had the margin.

    Args:
      logits_fn: a classifier.
      images: within `bounds`.
      labels: the true classes.
      key: unused; the attack is deterministic.
      targets: the classes to reach, for the targeted attack; none may be the true one.
      confidence: kappa, the margin between the logits, at least 0; may be traced, and one for each example.
      learning_rate: of Adam, on the tanh variables; may be traced.
      initial_const: the first c; may be traced.
      search_steps: how many constants are tried.
      num_steps: the steps for each; the authors' code takes up to 10,000.
      abort_early: whether the search for one constant ends when a tenth of its steps brought less than 0.01 percent.
      constraint: by how much images, of a batch of any size, violate something else that must hold, such as that a
        detector stays silent; zero where it does. It is added to what is missed of the margin, and only images where it
        is zero count. Default: none.
      bounds: the least and the greatest value of a pixel, or of each channel.

    Returns:
      The closest adversarial images, or the clean image where there was none. `steps` and `gradients` count steps.

    Raises:
      ValueError: for bad images, labels, targets or bounds (see `base.check_arguments`), a setting that is not
        positive, or a confidence below 0.

    Reference:
      Carlini and Wagner, 2017 (arXiv 1608.04644), section VI-A; constants and their search from the authors' code.
    """
    del key
    positive = {"learning_rate": learning_rate, "initial_const": initial_const, "search_steps": search_steps}
    check_search("carlini_wagner_l2", num_steps, positive, logits_fn, images, labels, targets, bounds, confidence)
    low, high = base.box(bounds, images)

    def view(variable: Array) -> tuple[Array, Pull]:
        return _images_of(variable, low, high), lambda gradient: gradient * _slope_of(variable, low, high)

    return search_l2(
        logits_fn,
        problem_of(images, labels, targets, confidence),
        view,
        _tanh_variable(images, low, high),
        from_clean=True,
        learning_rate=learning_rate,
        initial_const=initial_const,
        search_steps=search_steps,
        num_steps=num_steps,
        abort_early=abort_early,
        constraint=constraint,
    )


def search_l2(
    logits_fn: LogitsFn,
    problem: Problem,
    view: Callable[[Float[Array, "N h w c"]], tuple[Float[Array, "N H W C"], Pull]],
    start: Float[Array, "B h w c"],
    *,
    from_clean: bool,
    learning_rate: Scalar,
    initial_const: Scalar,
    search_steps: int,
    num_steps: int,
    abort_early: bool,
    constraint: Callable[[Float[Array, "N H W C"]], Float[Array, " N"]] | None = None,
) -> base.AttackResult:
    """The search of `carlini_wagner_l2`, over any variable that images are a function of.

    Args:
      logits_fn: a classifier.
      problem: of the images, as `problem_of` makes it.
      view: from the variables of a batch of any size to their images, and to a function that takes a gradient with
        respect to the images to that with respect to the variables.
      start: the variables that the search for each constant starts from.
      from_clean: whether these are tanh variables of the clean images, which then count as they are and stay in the
        box.
      learning_rate: see `carlini_wagner_l2`, as for all that follow.
      initial_const: the first constant.
      search_steps: how many constants are tried.
      num_steps: the steps for each.
      abort_early: whether the search for one constant ends when it brings nothing any more.
      constraint: what else must hold.

    Returns:
      As `carlini_wagner_l2`.
    """

    def live(state: _L2State) -> Array:
        # A distance of zero cannot be improved: the clean image is what was asked for.
        return (state.search < search_steps) & (state.best > 0)

    def step(state: _L2State) -> _L2State:
        problem, adam, constant = state.problem, state.adam, state.constant
        is_live = live(state)
        moved, pull = view(adam.variable)
        if from_clean:
            # First the clean image itself, which the tanh gives back but for the last bit.
            is_first = (state.steps == 0)[:, None, None, None]
            moved = jnp.where(is_first, problem.clean, moved)
        found = _evaluate(logits_fn, moved, problem)
        if constraint is not None:
            found = _constrained(found, constraint, moved)
        change = moved - problem.clean
        squared = jnp.sum(change**2, axis=(1, 2, 3))
        closer = is_live & found.reached & (squared < state.best)
        succeeded = state.succeeded | found.reached
        loss = squared + constant * found.hinge
        gradient = 2 * change + constant[:, None, None, None] * found.gradient
        stepped = _step(adam, pull(gradient), learning_rate, bounded=from_clean)

        progress, ends, _ = _advance(state.progress, loss, num_steps, abort_early)
        upper = jnp.where(ends & succeeded, jnp.minimum(state.upper, constant), state.upper)
        lower = jnp.where(ends & ~succeeded, jnp.maximum(state.lower, constant), state.lower)
        next_constant = jnp.where(jnp.isfinite(upper), (lower + upper) / 2, 10 * constant)
        if search_steps >= 10:
            # As the authors' code: the last search is with the least constant that is known to succeed.
            is_last = (state.search + 2 == search_steps) & jnp.isfinite(upper)
            next_constant = jnp.where(is_last, upper, next_constant)
        fresh = _start(state.start, adam.count)
        new = _L2State(
            problem=problem,
            start=state.start,
            adam=base.select(ends, fresh, stepped),
            progress=base.select(ends, _no_progress(loss, adam.count), progress),
            constant=jnp.where(ends, next_constant, constant),
            lower=lower,
            upper=upper,
            search=state.search + ends.astype(jnp.int32),
            succeeded=succeeded & ~ends,
            best=jnp.where(closer, squared, state.best),
            best_images=base.select(closer, moved, state.best_images),
            steps=state.steps + 1,
        )
        return base.select(is_live, new, state)

    images, labels, targets, _ = problem
    zeros = jnp.zeros_like(labels, jnp.int32)
    blank = jnp.zeros_like(images[:, 0, 0, 0])
    state = _L2State(
        problem=problem,
        start=start,
        adam=_start(start, zeros),
        progress=_no_progress(blank, zeros),
        constant=blank + jnp.asarray(initial_const, images.dtype),
        lower=blank,
        upper=blank + jnp.inf,
        search=zeros,
        succeeded=zeros > 0,
        best=blank + jnp.inf,
        best_images=images,
        steps=zeros,
    )
    end = base.while_live(step, live, state, lanes=base.lanes(images))
    result = base.finish(logits_fn, images, end.best_images, labels, targets, steps=end.steps, gradients=end.steps)
    if constraint is None and from_clean:
        return result
    # An image that is misclassified as it is need not satisfy the constraint, nor be one that a variable has.
    return dataclasses.replace(result, success=result.success & jnp.isfinite(end.best))


class _L0State(NamedTuple):
    """One entry for each example. `progress` is of the constant under way."""

    problem: Problem
    adam: _Adam
    progress: _Progress
    free: Bool[Array, "B H W C"]
    constant: Float[Array, " B"]
    best_images: Float[Array, "B H W C"]
    live: Bool[Array, " B"]
    steps: Int[Array, " B"]


def carlini_wagner_l0(
    logits_fn: LogitsFn,
    images: Float[Array, "B H W C"],
    labels: Int[Array, " B"],
    key: Key[Array, "..."] | None = None,
    *,
    targets: Int[Array, " B"] | None = None,
    confidence: PerExample = 0.01,
    by: str = "pixel",
    learning_rate: Scalar = 0.01,
    initial_const: Scalar = 1e-3,
    largest_const: Scalar = 2e6,
    const_factor: Scalar = 2.0,
    num_steps: int = 1000,
    abort_early: bool = True,
    bounds: base.Bounds = (0.0, 1.0),
) -> base.AttackResult:
    """Finds an adversarial image in which few pixels differ.

    Solves the L2 problem over the free pixels, at first all; freezes those that contribute least, by the size of their
    change times the size of the margin's gradient; solves again from where it was; and so on, until the rest cannot
    reach the decision with any constant. Frozen pixels are exactly those of the clean image.

    Args:
      logits_fn: a classifier.
      images: within `bounds`.
      labels: the true classes.
      key: unused; the attack is deterministic.
      targets: the classes to reach, for the targeted attack; none may be the true one.
      confidence: the margin between the logits, at least 0; may be traced, and one for each example.
      by: what counts as one change: a `"pixel"` with all its channels, or each `"value"`.
      learning_rate: of Adam, on the tanh variables; may be traced.
      initial_const: the first constant of the first problem; later ones go on with what the last needed; may be traced.
      largest_const: beyond this a problem counts as unsolvable; may be traced.
      const_factor: what a constant that did not suffice is multiplied with, above 1; may be traced.
      num_steps: the steps for each constant.
      abort_early: whether the next constant is taken when a tenth of the steps brought the margin closer by less than
        0.01 percent.
      bounds: the least and the greatest value of a pixel, or of each channel.

    Returns:
      The adversarial images with the fewest changes, or the clean image where not even the first problem was solved.
      `steps` and `gradients` count steps.

    Raises:
      ValueError: for bad images, labels, targets or bounds (see `base.check_arguments`), a setting that is not
        positive, a factor of at most 1, a confidence below 0, or another word for `by`.

    Reference:
      Carlini and Wagner, 2017 (arXiv 1608.04644), section VI-B; how many pixels freeze at a time from the authors'
      code.

    Departures from the authors' code:
      The change of a pixel is the sum of its channels' absolute changes; there, changes of opposite sign cancel. The
      gradient is that of the margin with respect to the pixels, as in the paper. A pixel that carries more than a
      hundredth of all contributions ends a round of freezing; there, one above 0.01, in units that depend on the
      network. Changes below 1e-4 of the range are undone at once.
    """
    del key
    positive = {"learning_rate": learning_rate, "initial_const": initial_const, "largest_const": largest_const}
    check_search("carlini_wagner_l0", num_steps, positive, logits_fn, images, labels, targets, bounds, confidence)
    base.check_number("const_factor", const_factor, above=1.0)
    base.check_choice("by", by, ("pixel", "value"))
    low, high = base.box(bounds, images)

    def step(state: _L0State) -> _L0State:
        problem, adam, constant = state.problem, state.adam, state.constant
        moved = _images_of(adam.variable, low, high)
        changed = state.free & (jnp.abs(moved - problem.clean) >= 1e-4 * (high - low))
        moved = jnp.where(changed, moved, problem.clean)
        found = _evaluate(logits_fn, moved, problem)
        change = moved - problem.clean

        # Not reached: one step, and perhaps a larger constant.
        gradient = 2 * change + constant[:, None, None, None] * found.gradient
        slope = jnp.where(state.free, _slope_of(adam.variable, low, high), 0.0)
        stepped = _step(adam, gradient * slope, learning_rate)
        progress, exhausted, _ = _advance(state.progress, found.hinge, num_steps, abort_early)
        grown = constant * jnp.where(exhausted, jnp.asarray(const_factor, constant.dtype), 1.0)
        failed = grown > largest_const

        # Reached: fewer pixels, and a new problem that starts from here.
        free = _freeze(state.free, jnp.abs(change), jnp.abs(found.raw_gradient), found.reached, by)
        nothing_changed = ~jnp.any(changed, axis=(1, 2, 3))
        none_free = ~jnp.any(free, axis=(1, 2, 3))
        new = _L0State(
            problem=problem,
            adam=base.select(found.reached, _start(_tanh_variable(moved, low, high), adam.count), stepped),
            progress=base.select(found.reached | exhausted, _no_progress(found.hinge, adam.count), progress),
            free=free,
            constant=jnp.where(found.reached, constant, grown),
            best_images=base.select(found.reached, moved, state.best_images),
            live=jnp.where(found.reached, ~nothing_changed & ~none_free, ~failed),
            steps=state.steps + 1,
        )
        return base.select(state.live, new, state)

    zeros = jnp.zeros_like(labels, jnp.int32)
    blank = jnp.zeros_like(images[:, 0, 0, 0])
    state = _L0State(
        problem=problem_of(images, labels, targets, confidence),
        adam=_start(_tanh_variable(images, low, high), zeros),
        progress=_no_progress(blank, zeros),
        free=jnp.zeros_like(images) == 0,
        constant=blank + jnp.asarray(initial_const, images.dtype),
        best_images=images,
        live=zeros == 0,
        steps=zeros,
    )
    end = base.while_live(step, lambda state: state.live, state, lanes=base.lanes(images))
    return base.finish(logits_fn, images, end.best_images, labels, targets, steps=end.steps, gradients=end.steps)


def _freeze(free: Array, change: Array, gradient: Array, solved: Array, by: str) -> Array:
    """Freezes the least important features of the examples that are solved.

    In the order of their importance, up to 0.3 times the square root of the number of features that are changed, or up
    to the first that carries more than a hundredth of all importance; at least one.
    """
    batch = free.shape[0]
    if by == "pixel":
        change, gradient = (jnp.sum(values, axis=3, keepdims=True) for values in (change, gradient))
    importance = (change * gradient).reshape(batch, -1)
    total = jnp.sum(importance, axis=1)
    count = jnp.sum(change > 0, axis=(1, 2, 3)).astype(importance.dtype)
    feature = jnp.arange(importance.shape[1])[None, :]
    # All channels of a pixel are free or none is.
    still = (free[..., :1] if by == "pixel" else free).reshape(batch, -1)

    def body(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        still, frozen, going = carry
        ranked = jnp.where(still, importance, jnp.inf)
        least = jnp.argmin(ranked, axis=1)
        still &= ~(going[:, None] & (feature == least[:, None]))
        frozen += 1
        more = (jnp.min(ranked, axis=1) <= 0.01 * total) & (frozen < 0.3 * jnp.sqrt(count))
        return still, frozen, going & more & jnp.any(still, axis=1)

    start = (still, jnp.zeros_like(total), solved & jnp.any(still, axis=1))
    still, _, _ = lax.while_loop(lambda carry: jnp.any(carry[2]), body, start)
    shape = (*free.shape[:3], 1) if by == "pixel" else free.shape
    return jnp.broadcast_to(still.reshape(shape), free.shape)


class _LinfState(NamedTuple):
    """One entry for each example. `progress` is of the constant under way."""

    problem: Problem
    adam: _Adam
    progress: _Progress
    tau: Float[Array, " B"]
    rate: Float[Array, " B"]
    unit: Float[Array, " B"]
    constant: Float[Array, " B"]
    best: Float[Array, " B"]
    best_images: Float[Array, "B H W C"]
    live: Bool[Array, " B"]
    steps: Int[Array, " B"]


def carlini_wagner_linf(
    logits_fn: LogitsFn,
    images: Float[Array, "B H W C"],
    labels: Int[Array, " B"],
    key: Key[Array, "..."] | None = None,
    *,
    targets: Int[Array, " B"] | None = None,
    confidence: PerExample = 0.0,
    learning_rate: Scalar = 5e-3,
    initial_const: Scalar = 0.1,
    largest_const: Scalar = 20.0,
    const_factor: Scalar = 2.0,
    decrease_factor: Scalar = 0.9,
    num_steps: int = 1000,
    abort_early: bool = True,
    bounds: base.Bounds = (0.0, 1.0),
) -> base.AttackResult:
    """Finds a close adversarial image in Linf.

    Minimizes c (margin)^+ + sum_i (|x'_i - x_i| - tau)^+; when that is (almost) zero, tau becomes `decrease_factor`
    times the distance achieved and the next problem starts from there; where no constant c solves it, that was the end.

    Args:
      logits_fn: a classifier.
      images: within `bounds`.
      labels: the true classes.
      key: unused; the attack is deterministic.
      targets: the classes to reach, for the targeted attack; none may be the true one.
      confidence: the margin between the logits, at least 0; may be traced, and one for each example.
      learning_rate: of Adam, on the tanh variables; may be traced.
      initial_const: the first constant of the first problem, in units of the reciprocal of the margin's largest
        derivative at the clean image; later problems go on with what the last needed; may be traced.
      largest_const: beyond this a problem counts as unsolvable; may be traced.
      const_factor: what a constant that did not suffice is multiplied with, above 1; may be traced.
      decrease_factor: by how much tau shrinks, in (0, 1); the closer to 1, the closer the image and the longer the
        way; may be traced.
      num_steps: the steps for each constant.
      abort_early: whether the next constant is taken when a tenth of the steps brought less than 0.01 percent.
      bounds: the least and the greatest value of a pixel, or of each channel.

    Returns:
      The closest adversarial image of all iterates, or the clean image where there was none. `steps` and `gradients`
      count steps.

    Raises:
      ValueError: for bad images, labels, targets or bounds (see `base.check_arguments`), a setting that is not
        positive, a factor out of its range, or a confidence below 0.

    Reference:
      Carlini and Wagner, 2017 (arXiv 1608.04644), section VI-C; constants from the authors' code.

    Departures from the authors' code:
      The loss is divided by c, which changes nothing but keeps it away from Adam's epsilon. The constant has a unit, so
      that the attack does not depend on the scale of the logits, and starts at 0.1 of it instead of 1e-5: with less,
      the penalty of a pixel that once passed tau stays in Adam's second moment and stops that pixel for good. Where
      the margin is stuck before anything was found, the attack starts again at half the learning rate.
    """
    del key
    positive = {"learning_rate": learning_rate, "initial_const": initial_const, "largest_const": largest_const}
    check_search("carlini_wagner_linf", num_steps, positive, logits_fn, images, labels, targets, bounds, confidence)
    base.check_number("const_factor", const_factor, above=1.0)
    base.check_number("decrease_factor", decrease_factor, above=0.0, most=1.0 - 1e-6)
    low, high = base.box(bounds, images)
    width = jnp.max(high - low)

    def step(state: _LinfState) -> _LinfState:
        problem, adam, constant = state.problem, state.adam, state.constant
        # First the clean image itself, which the tanh gives back but for the last bit.
        is_first = (state.steps == 0)[:, None, None, None]
        moved = jnp.where(is_first, problem.clean, _images_of(adam.variable, low, high))
        found = _evaluate(logits_fn, moved, problem)
        change = moved - problem.clean
        distance = jnp.max(jnp.abs(change), axis=(1, 2, 3))
        excess = jnp.maximum(jnp.abs(change) - state.tau[:, None, None, None], 0.0)
        # The unit of the constant, settled in the first step, at the clean image.
        steepest = base.norm(found.raw_gradient, jnp.inf)
        unit = jnp.where(state.unit > 0, state.unit, 1 / jnp.where(steepest > 0, steepest, 1.0))
        penalty = 1 / (constant * unit)
        loss = found.hinge + jnp.sum(excess, axis=(1, 2, 3)) * penalty
        # Where the decision is reached the hinge is zero, and only the excess is left.
        solved = found.reached & (jnp.sum(excess, axis=(1, 2, 3)) < 1e-4 * constant * width)
        closer = found.reached & (distance < state.best)
        best = jnp.where(closer, distance, state.best)

        # Not solved: one step, and perhaps a larger constant.
        gradient = found.gradient + jnp.where(excess > 0, jnp.sign(change), 0.0) * penalty[:, None, None, None]
        stepped = _step(adam, gradient * _slope_of(adam.variable, low, high), state.rate[:, None, None, None])
        progress, exhausted, stalled = _advance(state.progress, loss, num_steps, abort_early)
        grown = constant * jnp.where(exhausted, jnp.asarray(const_factor, constant.dtype), 1.0)
        # As long as nothing was found there is no penalty, and where the margin is stuck a constant changes nothing: a
        # new start with smaller steps does.
        anew = exhausted & stalled & jnp.isinf(best)
        stepped = base.select(anew, _start(_tanh_variable(problem.clean, low, high), adam.count), stepped)

        # Solved: a smaller tau, and a new problem that starts from here.
        tau = jnp.where(solved, jnp.minimum(state.tau, best) * decrease_factor, state.tau)
        new = _LinfState(
            problem=problem,
            adam=base.select(solved, _start(adam.variable, adam.count), stepped),
            progress=base.select(solved | exhausted, _no_progress(loss, adam.count), progress),
            tau=tau,
            rate=jnp.where(anew, state.rate / 2, state.rate),
            unit=unit,
            constant=jnp.where(solved, constant, grown),
            best=best,
            best_images=base.select(closer, moved, state.best_images),
            live=jnp.where(solved, tau > width / 256, grown <= largest_const) & (best > 0),
            steps=state.steps + 1,
        )
        return base.select(state.live, new, state)

    zeros = jnp.zeros_like(labels, jnp.int32)
    blank = jnp.zeros_like(images[:, 0, 0, 0])
    state = _LinfState(
        problem=problem_of(images, labels, targets, confidence),
        adam=_start(_tanh_variable(images, low, high), zeros),
        progress=_no_progress(blank, zeros),
        tau=blank + width,
        rate=blank + jnp.asarray(learning_rate, images.dtype),
        unit=blank,
        constant=blank + jnp.asarray(initial_const, images.dtype),
        best=blank + jnp.inf,
        best_images=images,
        live=zeros == 0,
        steps=zeros,
    )
    end = base.while_live(step, lambda state: state.live, state, lanes=base.lanes(images))
    return base.finish(logits_fn, images, end.best_images, labels, targets, steps=end.steps, gradients=end.steps)
