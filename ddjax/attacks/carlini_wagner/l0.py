"""The L0 attack of Carlini and Wagner."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from ddjax.attacks import loops
from ddjax.attacks.carlini_wagner import search
from ddjax.attacks.contract import AttackResult, refuses_old_calls
from ddjax.attacks.examples import Criterion, PerExample, expand, is_dead
from ddjax.attacks.problem import Bounds, prepare
from ddjax.checks import check_choice, check_number, check_whole_number
from ddjax.classifier import LogitsFn


@refuses_old_calls
def carlini_wagner_l0(
    logits_fn: LogitsFn,
    inputs: Float[Array, "B ..."],
    labels: Int[Array, " B"],
    *,
    key: Key[Array, "..."] | None = None,
    targets: Int[Array, " B"] | None = None,
    confidence: PerExample = 0.01,
    by: str | None = None,
    learning_rate: search.Scalar | None = None,
    initial_const: search.Scalar | None = None,
    largest_const: search.Scalar | None = None,
    const_factor: search.Scalar = 2.0,
    num_steps: int = 1000,
    abort_early: bool = True,
    mask: Bool[Array, "..."] | None = None,
    criterion: Criterion | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """Finds an adversarial input in which few pixels differ.

    Solves the L2 problem over the free pixels, at first all of them. Then freezes those that contribute least, by the
    size of their change times the size of the margin's gradient, and solves the problem again from its last point. This
    repeats until the free pixels cannot reach the decision with any constant. Frozen pixels are exactly those of the
    clean input.

    The settings that the three attacks share are described in `ddjax.attacks.carlini_wagner`, the arguments that all
    attacks have in `ddjax.attacks.contract`.

    Args:
      by: what counts as one change: a `"pixel"` of an image `[B, H, W, C]` with all its channels, or each `"value"`.
        None takes pixels for images and values for other inputs.
      initial_const: the first constant of the first problem, in squared units of the inputs; may be traced. Later
        problems start with the constant of the one before. None takes 1e-3 times the squared range.
      largest_const: a problem that needs a larger constant counts as unsolvable; may be traced. None takes 2e6 times
        the squared range.
      const_factor: the factor by which a constant that did not suffice grows, above 1; may be traced.

    Returns:
      The adversarial inputs with the fewest changes, or the clean input where not even the first problem was solved.
      `steps` and `gradients` count steps.

    Raises:
      TypeError: as in the contract.
      ValueError: as in the contract; for another word for `by`, or pixels of inputs that are no images.

    Reference:
      Carlini and Wagner, 2017 (arXiv 1608.04644), section VI-B; how many pixels freeze at a time from the authors'
      code.

    Departures from the authors' code:
      The change of a pixel is the sum of its channels' absolute changes; in theirs, changes of opposite sign cancel.
      The gradient is that of the margin with respect to the pixels, as in the paper. A pixel that carries more than a
      hundredth of all contributions ends a round of freezing; in theirs, one above 0.01, in units that depend on the
      network. Changes below 1e-4 of the range are undone at once.
    """
    check_number("const_factor", const_factor, above=1.0)
    check_whole_number("num_steps", num_steps, least=1)
    problem = prepare("carlini_wagner_l0", logits_fn, inputs, labels, key, targets, mask, criterion, bounds)
    by = ("pixel" if inputs.ndim == 4 else "value") if by is None else by
    check_choice("by", by, ("pixel", "value"))
    if by == "pixel" and inputs.ndim != 4:
        raise ValueError(f"by='pixel' needs images [B, H, W, C], got inputs of shape {inputs.shape}; use by='value'")
    clean, variables = problem.clean, search.Variables(problem)
    axes = tuple(range(1, clean.ndim))
    rate = problem.share_of_scale("learning_rate", learning_rate, 0.01, power=0)
    first_const = problem.share_of_scale("initial_const", initial_const, 1e-3, power=2)
    last_const = problem.share_of_scale("largest_const", largest_const, 2e6, power=2)
    least_change = 1e-4 * problem.width if problem.is_bounded else 0.0

    def step(state: search.State) -> search.State:
        examples, constant, free = state.examples, state.constant, state.own
        moved, pull = variables.view(state.adam.variable)
        size = jnp.abs(moved - examples.clean)
        changed = free & (size >= least_change) & (size > 0)
        moved = jnp.where(changed, moved, examples.clean)
        found = search.evaluate(problem.logits_fn, moved, state)
        change = moved - examples.clean

        # Not reached: one step, and perhaps a larger constant.
        gradient = 2 * change + expand(constant, change) * found.gradient
        stepped = search.descend(state.adam, pull(jnp.where(free, gradient, 0.0)), rate, variables.restrict)
        progress, exhausted, _ = search.advance(state.progress, found.hinge, num_steps, abort_early)
        grown = constant * jnp.where(exhausted, jnp.asarray(const_factor, constant.dtype), 1.0)

        # Reached: fewer pixels, and a new problem that starts from here.
        free = _freeze(free, jnp.abs(change), jnp.abs(found.raw_gradient), found.reached, by)
        goes_on = jnp.any(changed, axis=axes) & jnp.any(free, axis=axes)
        return state._replace(
            adam=loops.select(found.reached, search.begin(variables.of(moved), state.steps), stepped),
            progress=loops.select(found.reached | exhausted, search.no_progress(found.hinge, state.steps), progress),
            constant=jnp.where(found.reached, constant, grown),
            best_inputs=loops.select(found.reached, moved, state.best_inputs),
            live=jnp.where(found.reached, goes_on, grown <= last_const),
            steps=state.steps + 1,
            zero_gradients=state.zero_gradients + is_dead(found.raw_gradient),
            own=free,
        )

    free = jnp.ones_like(clean, bool) if problem.examples.mask is None else problem.examples.mask
    if by == "pixel":
        # A pixel is free only where all its channels are.
        free = jnp.broadcast_to(jnp.all(free, axis=3, keepdims=True), clean.shape)
    state = search.start(problem, variables.of(clean), free, confidence=confidence, constant=first_const)
    end = search.run(problem, step, state)
    return problem.nearest(end.best_inputs, steps=end.steps, zero_gradients=end.zero_gradients)


def _freeze(free: Array, change: Array, gradient: Array, solved: Array, by: str) -> Array:
    """Freezes the least important features of the examples that are solved.

    It freezes features in the order of their importance: up to 0.3 times the square root of the number of changed
    features, or up to the first that carries more than a hundredth of all importance; at least one.
    """
    batch = free.shape[0]
    if by == "pixel":
        change, gradient = (jnp.sum(values, axis=3, keepdims=True) for values in (change, gradient))
    importance = (change * gradient).reshape(batch, -1)
    total = jnp.sum(importance, axis=1)
    count = jnp.sum(change > 0, axis=tuple(range(1, change.ndim))).astype(importance.dtype)
    feature = jnp.arange(importance.shape[1], dtype=jnp.int32)[None, :]
    # All channels of a pixel are free or none is.
    still = (free[..., :1] if by == "pixel" else free).reshape(batch, -1)

    def body(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        still, frozen, going = carry
        ranked = jnp.where(still, importance, jnp.inf)
        least = jnp.argmin(ranked, axis=1).astype(jnp.int32)
        still &= ~(going[:, None] & (feature == least[:, None]))
        frozen += 1
        more = (jnp.min(ranked, axis=1) <= 0.01 * total) & (frozen < 0.3 * jnp.sqrt(count))
        return still, frozen, going & more & jnp.any(still, axis=1)

    start = (still, jnp.zeros_like(total), solved & jnp.any(still, axis=1))
    still, _, _ = lax.while_loop(lambda carry: jnp.any(carry[2]), body, start)
    shape = (*free.shape[:3], 1) if by == "pixel" else free.shape
    return jnp.broadcast_to(still.reshape(shape), free.shape)
