"""The smallest radius at which an attack of fixed radius succeeds, for each image."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ddjax.attacks import loops
from ddjax.attacks.contract import AttackResult, refuses_old_calls
from ddjax.attacks.examples import Criterion, Examples, PerExample
from ddjax.attacks.problem import Bounds, prepare
from ddjax.checks import check_number, check_whole_number
from ddjax.classifier import LogitsFn


class _State(NamedTuple):
    """One entry for each example, except where something is None."""

    examples: Examples
    keys: Key[Array, " B"] | None
    highest: Float[Array, " B"]
    inputs: Float[Array, "B ..."]
    failing: Float[Array, " B"]
    succeeding: Float[Array, " B"]
    tried: Int[Array, " B"]
    halved: Int[Array, " B"]
    found: Bool[Array, " B"]
    done: Bool[Array, " B"]
    counts: tuple[Int[Array, " B"], ...]


@refuses_old_calls
def smallest_epsilon(
    attack: Callable[..., AttackResult],
    logits_fn: LogitsFn,
    inputs: Float[Array, "B ..."],
    labels: Int[Array, " B"],
    *,
    key: Key[Array, "..."] | None = None,
    targets: Int[Array, " B"] | None = None,
    highest: PerExample | None = None,
    grid: int = 20,
    bisections: int = 8,
    mask: Bool[Array, "..."] | None = None,
    criterion: Criterion | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """Searches the least epsilon of each input by an ascending grid, then by bisection.

    An attack may succeed at some radius and fail at a larger one, as FGSM does. So the grid is climbed from below up to
    the first success. Bisection then narrows the interval between this radius and the one before it, to
    `highest / grid / 2 ** bisections`. Each input has its own radius, in one common loop.

    Args:
      attack: takes epsilons, one for each example: `fgsm`, or `functools.partial(pgd, num_steps=100)`. Leave its step
        size relative to epsilon if the radii range widely.
      logits_fn: a classifier.
      inputs: inside `bounds`.
      labels: the true classes.
      key: for an attack that is random, one key or one for each input; the same at every radius.
      targets: the classes to reach, for the targeted attack; none may be the true one.
      highest: the largest epsilon, above 0, in the units of the inputs; may be traced, and one for each example. None
        takes the range of the inputs.
      grid: the number of epsilons tried, evenly spaced up to `highest`.
      bisections: how often the interval is halved.
      mask: which entries may change, `[B, ...]` or broadcastable; None for all.
      criterion: the goal in the place of misclassification; see `problem.prepare`.
      bounds: the least and the greatest value of an input; see `problem.prepare`.

    Returns:
      The successful input of the smallest radius found; the clean input where no radius on the grid succeeds, or where
      it is adversarial itself. The counts are those of all the attacks on an example together.

    Raises:
      TypeError: for arguments of a wrong type (see `problem.prepare`).
      ValueError: for bad inputs, labels, targets or bounds (see `problem.prepare`), a highest epsilon that is not
        positive and finite, less than one epsilon on the grid, a negative number of bisections, and whatever the attack
        raises.

    Reference:
      Carlini and Wagner, Towards Evaluating the Robustness of Neural Networks, 2017 (arXiv 1608.04644), who compare
      FGSM and its iterative form with attacks that minimize the distance in this way.
    """
    if highest is not None:
        check_number("highest", highest, above=0.0)
    check_whole_number("grid", grid, least=1)
    check_whole_number("bisections", bisections, least=0)
    problem = prepare(
        "smallest_epsilon",
        logits_fn,
        inputs,
        labels,
        key=key,
        targets=targets,
        mask=mask,
        criterion=criterion,
        bounds=bounds,
    )
    clean = problem.clean

    def step(state: _State) -> _State:
        live, examples = ~state.done, state.examples
        next_on_grid = (state.tried + 1).astype(state.highest.dtype) / grid * state.highest
        epsilon = jnp.where(state.found, (state.failing + state.succeeding) / 2, next_on_grid)
        given = {} if examples.mask is None else {"mask": examples.mask}
        given |= {} if criterion is None else {"criterion": criterion}
        result = attack(
            problem.logits_fn,
            examples.clean,
            examples.labels,
            key=state.keys,
            targets=examples.targets,
            epsilon=epsilon,
            bounds=(problem.low[0], problem.high[0]),
            **given,
        )
        # By more than rounding: the input must stay adversarial in any batch.
        success = live & result.success & examples.reached(result.logits)
        found = state.found | success
        tried = state.tried + (live & ~state.found).astype(jnp.int32)
        halved = state.halved + (live & state.found).astype(jnp.int32)
        added = (result.steps, result.gradients, result.queries, result.zero_gradients)
        return state._replace(
            inputs=jnp.where(success.reshape(-1, *(1,) * (clean.ndim - 1)), result.inputs, state.inputs),
            failing=jnp.where(live & ~success, epsilon, state.failing),
            succeeding=jnp.where(success, epsilon, state.succeeding),
            tried=tried,
            halved=halved,
            found=found,
            done=state.done | jnp.where(found, halved >= bisections, tried >= grid),
            counts=tuple(count + jnp.where(live, more, 0) for count, more in zip(state.counts, added, strict=True)),
        )

    # Every carry is derived from the inputs, so that it has their sharding.
    zeros = problem.zeros
    default = problem.share_of_scale("highest", None, 1.0) if highest is None else jnp.asarray(highest, clean.dtype)
    radii = problem.blank + default
    start = _State(
        examples=problem.examples,
        keys=problem.keys,
        highest=radii,
        inputs=clean,
        failing=jnp.zeros_like(radii),
        succeeding=radii,
        tried=zeros,
        halved=zeros,
        found=zeros != 0,
        done=problem.examples.is_adversarial(problem.logits_fn(clean)),
        counts=(zeros,) * 4,
    )
    end = loops.while_live(step, lambda state: ~state.done, start, lanes=loops.lanes(clean))
    steps, gradients, queries, zero_gradients = end.counts
    return problem.nearest(
        end.inputs, steps=steps, gradients=gradients, queries=queries + 1, zero_gradients=zero_gradients
    )
