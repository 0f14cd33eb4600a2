"""The decoupled direction and norm attack: small L2 perturbations in few steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from ddjax import rounding
from ddjax.attacks import loops
from ddjax.attacks.contract import AttackResult, declare, refuses_old_calls
from ddjax.attacks.examples import Criterion, expand, is_dead, norm, unit
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

    The arguments that all attacks have are described in `ddjax.attacks.contract`.

    Args:
      inputs: on the grid of `levels`, as images from files are, or else rounding moves them.
      key: where a gradient is exactly zero the direction is random. Without a key it is zero.
      num_steps: the number of gradients.
      gamma: the relative change of the radius in each step, in (0, 1); may be traced.
      initial_norm: the first radius, above 0, in the units of the inputs; may be traced. None takes the range of the
        inputs. Without finite bounds, step sizes are relative to it.
      levels: the number of values that an input can have, at least 2, equally spaced inside the bounds; every iterate
        is rounded to them, except where it is masked. 0 does not round. None takes 256 for images `[B, H, W, C]` inside
        finite bounds, and else does not round. Needs finite bounds.
      start: where the search starts, inside the bounds; None for the input itself.

    Returns:
      The closest adversarial input of all iterates, or the clean input where there was none.

    Reference:
      Rony et al., Decoupling Direction and Norm for Efficient Gradient-Based L2 Adversarial Attacks and Defenses, 2019
      (arXiv 1811.09600), algorithm 1; the last radii and the treatment of zero gradients from the authors' code.

    Departures from the authors' code:
      The last iterate counts too. Any distance counts as a success; in the authors' code only those below the distance
      to the farthest corner of the box, which bounds the radius here as well.
    """
    check_number("gamma", gamma, above=0.0, below=1.0)
    check_whole_number("num_steps", num_steps, least=1)
    if levels is not None and levels != 0:
        check_whole_number("levels", levels, least=2)
    problem = prepare("ddn", logits_fn, inputs, labels, key, targets, mask, criterion, bounds)
    if levels and not problem.is_bounded:
        raise ValueError(f"ddn cannot round to {levels} levels without finite bounds")
    if levels is None:
        levels = 256 if problem.is_bounded and inputs.ndim == 4 else 0
    examples, clean, keys = problem.examples, problem.clean, problem.keys
    first_radius = problem.share_of_scale("initial_norm", initial_norm, 1.0)
    range_of_steps = problem.scale if problem.is_bounded else first_radius
    farthest = norm(jnp.maximum(clean - problem.low, problem.high - clean))

    def record(state: _State, logits: Array) -> tuple[_State, Array]:
        is_adversarial = examples.reached(logits)
        distance = norm(state.inputs - clean)
        closer = is_adversarial & (distance < state.best)
        best, best_inputs = loops.select(closer, (distance, state.inputs), (state.best, state.best_inputs))
        return state._replace(best=best, best_inputs=best_inputs), is_adversarial

    def step(number: Array, state: _State) -> _State:
        # Without `jit`, the loop counts with Python integers.
        number = jnp.asarray(number, jnp.int32)
        logits, _, gradient = examples.objective_and_gradient(problem.logits_fn, state.inputs, "cross_entropy")
        state, is_adversarial = record(state, logits)
        direction, dead = unit(gradient), is_dead(gradient)
        if keys is not None:
            draw = lambda key: jax.random.normal(jax.random.fold_in(key, number), clean.shape[1:], clean.dtype)
            noise = lambda: loops.select(dead > 0, examples.free(jax.vmap(draw)(keys)), direction)
            direction = lax.cond(jnp.any(dead > 0), noise, lambda: direction)
        rate = 0.01 + 0.99 * (1 + jnp.cos(jnp.pi * number.astype(clean.dtype) / num_steps)) / 2
        change = state.inputs - clean - range_of_steps * rate * direction

        radius = jnp.minimum(state.radius * jnp.where(is_adversarial, 1 - gamma, 1 + gamma), farthest)
        length = norm(change)
        # A change of zero stays zero: rounding may have removed it, and no gradient brought it back.
        moved = clean + change * expand(radius / jnp.where(length > 0, length, 1.0), clean)
        if levels:
            moved = rounding.round_to_levels(moved, levels, problem.low, problem.high)
        return state._replace(inputs=problem.clip(moved), radius=radius, zero_gradients=state.zero_gradients + dead)

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
    return problem.nearest(end.best_inputs, steps=count, queries=count + 1, zero_gradients=end.zero_gradients)


_EXAMPLE = {"num_steps": 30}

ATTACKS = (
    declare(ddn, norm="l2", kind="minimum", targets="optional", random=False, access="gradient", example=_EXAMPLE),
)
