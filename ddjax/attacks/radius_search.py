"""The smallest radius at which an attack of fixed radius succeeds, for each image."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ddjax.attacks import loops
from ddjax.attacks.contract import AttackResult, refuses_old_calls
from ddjax.attacks.examples import Criterion, Examples, PerExample
from ddjax.attacks.problem import Bounds, prepare
from ddjax.checks import check_whole_number
from ddjax.classifier import LogitsFn


class _State(NamedTuple):
    """One entry for each example, except where something is None.

    Examples, keys and the highest radius do not change, but are compacted with the rest. `failing` and `succeeding` are
    the ends of the interval that is searched, the latter infinite before the first success; `left` counts the radii
    that are left to try, on the grid or by bisection.
    """

    examples: Examples
    keys: Key[Array, " B"] | None
    highest: Float[Array, " B"]
    inputs: Float[Array, "B ..."]
    failing: Float[Array, " B"]
    succeeding: Float[Array, " B"]
    left: Int[Array, " B"]
    counts: dict[str, Int[Array, " B"]]


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

    The arguments that all attacks have are described in `ddjax.attacks.contract`.

    Args:
      attack: takes epsilons, one for each example: `fgsm`, or `functools.partial(pgd, num_steps=100)`. Leave its step
        size relative to epsilon if the radii range widely.
      key: for an attack that is random; the same at every radius.
      highest: the largest epsilon, above 0, in the units of the inputs; may be traced, and one for each example. None
        takes the range of the inputs.
      grid: the number of epsilons tried, evenly spaced up to `highest`.
      bisections: how often the interval is halved.

    Returns:
      The successful input of the smallest radius found; the clean input where no radius on the grid succeeds, or where
      it is adversarial itself. The counts are those of all the attacks on an example together.

    Raises:
      TypeError: as in the contract, and whatever the attack raises.
      ValueError: as in the contract, and whatever the attack raises.

    Reference:
      Carlini and Wagner, Towards Evaluating the Robustness of Neural Networks, 2017 (arXiv 1608.04644), who compare
      FGSM and its iterative form with attacks that minimize the distance in this way.
    """
    check_whole_number("grid", grid, least=1)
    check_whole_number("bisections", bisections, least=0)
    problem = prepare("smallest_epsilon", logits_fn, inputs, labels, key, targets, mask, criterion, bounds)
    clean, zeros, blank = problem.clean, problem.zeros, problem.blank

    def step(state: _State) -> _State:
        examples, found = state.examples, jnp.isfinite(state.succeeding)
        next_on_grid = (grid + 1 - state.left).astype(clean.dtype) / grid * state.highest
        epsilon = jnp.where(found, (state.failing + state.succeeding) / 2, next_on_grid)
        given = {"key": state.keys, "targets": examples.targets, "mask": examples.mask, "criterion": criterion}
        # An attack of a user's need not know the arguments that are not used.
        given = {name: value for name, value in given.items() if value is not None}
        given |= {"epsilon": epsilon, "bounds": (problem.low[0], problem.high[0])}
        result = attack(problem.logits_fn, examples.clean, examples.labels, **given)
        # By more than rounding: the input must stay adversarial in any batch.
        success = result.success & examples.reached(result.logits)
        return state._replace(
            inputs=loops.select(success, result.inputs, state.inputs),
            failing=jnp.where(success, state.failing, epsilon),
            succeeding=jnp.where(success, epsilon, state.succeeding),
            left=jnp.where(success & ~found, bisections, state.left - 1),
            counts={name: count + getattr(result, name) for name, count in state.counts.items()},
        )

    done = problem.examples.is_adversarial(problem.logits_fn(clean))
    # Every carry is derived from the inputs, so that it has their sharding.
    start = _State(
        examples=problem.examples,
        keys=problem.keys,
        highest=blank + problem.share_of_scale("highest", highest, 1.0),
        inputs=clean,
        failing=blank,
        succeeding=blank + jnp.inf,
        left=jnp.where(done, zeros, grid),
        counts=dict.fromkeys(("steps", "gradients", "queries", "zero_gradients"), zeros),
    )
    end = loops.while_live(step, lambda state: state.left > 0, start, lanes=loops.lanes(clean))
    counts = end.counts | {"queries": end.counts["queries"] + 1}
    return problem.nearest(end.inputs, **counts)
