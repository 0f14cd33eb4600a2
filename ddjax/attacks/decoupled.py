"""The decoupled direction and norm attack: small L2 perturbations in few steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from ddjax import losses, rounding
from ddjax.attacks.contract import AttackResult, declare, refuses_old_calls
from ddjax.attacks.examples import Criterion, is_dead, norm
from ddjax.attacks.problem import Bounds, prepare
from ddjax.checks import check_number, check_whole_number
from ddjax.classifier import LogitsFn


class _State(NamedTuple):
    """One entry for each example."""

    inputs: Float[Array, "B ..."]
    radius: Float[Array, " B"]
    best: Float[Array, " B"]
    best_inputs: Float[Array, "B ..."]
    zero_gradients: Int[Array, " B"]


@refuses_old_calls
def ddn(
    logits_fn: LogitsFn,
    inputs: Float[Array, "B ..."],
    labels: Int[Array, " B"],
    *,
    key: Key[Array, "..."] | None = None,
    targets: Int[Array, " B"] | None = None,
    num_steps: int = 100,
    gamma: float | Float[Array, ""] = 0.05,
    initial_norm: float | Float[Array, ""] | None = None,
    levels: int | None = None,
    start: Float[Array, "B ..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    criterion: Criterion | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """Finds a close adversarial input in L2: the gradient gives the direction, a separate radius gives the norm.

    Each step moves along the normalized gradient of the cross-entropy, by a step size that falls from 1 to 0.01 of the
    range along a cosine, and projects onto the sphere whose radius shrinks by `gamma` while the input is adversarial
    and grows by `gamma` while it is not.

    Args:
      logits_fn: a classifier.
      inputs: inside `bounds`; on the grid of `levels`, as images from files are, or else rounding moves them.
      labels: the true classes.
      key: one key or B of them: where a gradient is exactly zero the direction is random. Without one it is zero.
      targets: the classes to reach, for the targeted attack; none may be the true one.
      num_steps: the number of gradients.
      gamma: the relative change of the radius in each step, in (0, 1); may be traced.
      initial_norm: the first radius, above 0, in the units of the inputs; may be traced. None takes the range of the
        inputs. Without finite bounds, step sizes are relative to it.
      levels: the number of values that an input can have, at least 2, equally spaced inside the bounds; every iterate
        is rounded to them. 0 does not round. None takes 256 inside finite bounds, and else does not round.
      start: where the search starts, inside the bounds; None for the input itself.
      mask: which entries may change, `[B, ...]` or broadcastable; None for all. Others are not rounded.
      criterion: the goal in the place of misclassification, see `problem.prepare`; it is what is lowered.
      bounds: the least and the greatest value of an input; see `problem.prepare`.

    Returns:
      The closest adversarial input of all iterates, or the clean input where there was none.

    Raises:
      TypeError: for arguments of a wrong type (see `problem.prepare`).
      ValueError: for bad inputs, labels, targets or bounds (see `problem.prepare`), a setting out of its range, or
        levels or no `initial_norm` without finite bounds.

    Reference:
      Rony et al., Decoupling Direction and Norm for Efficient Gradient-Based L2 Adversarial Attacks and Defenses, 2019
      (arXiv 1811.09600), algorithm 1; the last radii and the treatment of zero gradients from the authors' code.

    Departures from the authors' code:
      The last iterate counts too. Any distance counts as a success; in the authors' code only those below the distance
      to the farthest corner of the box, which bounds the radius here as well.
    """
    check_number("gamma", gamma, above=0.0, below=1.0)
    if initial_norm is not None:
        check_number("initial_norm", initial_norm, above=0.0)
    check_whole_number("num_steps", num_steps, least=1)
    if levels is not None and levels != 0:
        check_whole_number("levels", levels, least=2)
    problem = prepare(
        "ddn", logits_fn, inputs, labels, key=key, targets=targets, mask=mask, criterion=criterion, bounds=bounds
    )
    if not problem.is_bounded and levels:
        raise ValueError(f"ddn cannot round to {levels} levels without finite bounds")
    num_levels = (256 if problem.is_bounded else 0) if levels is None else levels
    examples, clean, keys = problem.examples, problem.clean, problem.keys
    low, high = problem.low, problem.high
    first_radius = problem.share_of_scale("initial_norm", initial_norm, 1.0)
    unit = problem.scale if problem.is_bounded else first_radius
    farthest = norm(jnp.maximum(clean - low, high - clean))
    expand = lambda values: values.reshape(-1, *(1,) * (clean.ndim - 1))

    def total_loss(inputs: Array) -> tuple[Array, Array]:
        logits = problem.logits_fn(inputs)
        if criterion is not None:
            return jnp.sum(examples.objective(logits)), logits
        if targets is None:
            return -jnp.sum(losses.cross_entropy(logits, examples.labels)), logits
        return jnp.sum(losses.cross_entropy(logits, examples.targets)), logits

    def record(state: _State, logits: Array) -> tuple[_State, Array]:
        is_adversarial = examples.reached(logits)
        distance = norm(state.inputs - clean)
        closer = is_adversarial & (distance < state.best)
        best_inputs = jnp.where(expand(closer), state.inputs, state.best_inputs)
        return state._replace(best=jnp.where(closer, distance, state.best), best_inputs=best_inputs), is_adversarial

    def step(number: Array, state: _State) -> _State:
        # Without `jit`, the loop counts with Python integers.
        number = jnp.asarray(number, jnp.int32)
        gradient, logits = jax.grad(total_loss, has_aux=True)(state.inputs)
        state, is_adversarial = record(state, logits)

        gradient = examples.free(gradient)
        zero_gradients = state.zero_gradients + is_dead(gradient)
        # By the largest entry first, so that the squares of tiny gradients do not underflow.
        largest = expand(norm(gradient, jnp.inf))
        gradient = gradient / jnp.where(largest > 0, largest, 1.0)
        length = expand(norm(gradient))
        direction = gradient / jnp.where(length > 0, length, 1.0)
        if keys is not None:
            draw = lambda key: jax.random.normal(jax.random.fold_in(key, number), clean.shape[1:], clean.dtype)
            noise = lambda: jnp.where(length > 0, direction, examples.free(jax.vmap(draw)(keys)))
            direction = lax.cond(jnp.all(length > 0), lambda: direction, noise)
        rate = 0.01 + 0.99 * (1 + jnp.cos(jnp.pi * number.astype(clean.dtype) / num_steps)) / 2
        change = state.inputs - clean - unit * rate * direction

        radius = state.radius * jnp.where(is_adversarial, 1 - gamma, 1 + gamma)
        radius = jnp.minimum(radius, farthest)
        length = norm(change)
        # A change of zero stays zero: rounding may have removed it, and no gradient brought it back.
        change = change * expand(radius / jnp.where(length > 0, length, 1.0))
        moved = clean + change
        if num_levels:
            moved = rounding.round_to_levels(moved, num_levels, low, high)
        return state._replace(inputs=problem.clip(moved), radius=radius, zero_gradients=zero_gradients)

    begin = _State(
        inputs=clean if start is None else problem.clip(jnp.asarray(start, clean.dtype)),
        radius=problem.blank + first_radius,
        best=problem.blank + jnp.inf,
        best_inputs=clean,
        zero_gradients=problem.zeros,
    )
    end = lax.fori_loop(0, num_steps, step, begin)
    end, _ = record(end, problem.logits_fn(end.inputs))
    count = problem.zeros + num_steps
    return problem.nearest(
        end.best_inputs, steps=count, gradients=count, queries=count + 1, zero_gradients=end.zero_gradients
    )


ATTACKS = (
    declare(
        ddn,
        norm="l2",
        kind="minimum",
        targets="optional",
        random=False,
        access="gradient",
        example={"num_steps": 30},
    ),
)
