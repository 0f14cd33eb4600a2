"""The smallest radius at which an attack of fixed radius succeeds, for each image."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ddjax.attacks import base
from ddjax.classifier import LogitsFn


class _State(NamedTuple):
    """One entry for each example, but for what is not given."""

    clean: Float[Array, "B H W C"]
    labels: Int[Array, " B"]
    targets: Int[Array, " B"] | None
    keys: Key[Array, " B"] | None
    highest: Float[Array, " B"]
    images: Float[Array, "B H W C"]
    failing: Float[Array, " B"]
    succeeding: Float[Array, " B"]
    tried: Int[Array, " B"]
    halved: Int[Array, " B"]
    found: Bool[Array, " B"]
    done: Bool[Array, " B"]
    steps: Int[Array, " B"]
    gradients: Int[Array, " B"]


def smallest_epsilon(
    attack: Callable[..., base.AttackResult],
    logits_fn: LogitsFn,
    images: Float[Array, "B H W C"],
    labels: Int[Array, " B"],
    key: Key[Array, "..."] | None = None,
    *,
    targets: Int[Array, " B"] | None = None,
    highest: float | Float[Array, ""] | Float[Array, " B"] = 1.0,
    grid: int = 20,
    bisections: int = 8,
    bounds: base.Bounds = (0.0, 1.0),
) -> base.AttackResult:
    """Searches the least epsilon of each image by an ascending grid, then by bisection.

    An attack may succeed at some radius and fail at a larger one, as FGSM does, so the grid is climbed from below up to
    the first success. Bisection then narrows the interval between this and the radius before it, to
    `highest / grid / 2 ** bisections`. Every image goes its own way, and has its own radius, in one common loop.

    Args:
      attack: takes epsilons, one for each example: `fgsm`, or `functools.partial(pgd, num_steps=100)`. Leave its step
        size relative to epsilon if the radii range widely.
      logits_fn: a classifier.
      images: within `bounds`.
      labels: the true classes.
      key: for an attack that is random, one key or one for each image; the same at every radius.
      targets: the classes to reach, for the targeted attack; none may be the true one.
      highest: the largest epsilon, above 0; may be traced, and one for each example.
      grid: the number of epsilons tried, evenly spaced up to `highest`.
      bisections: how often the interval is halved.
      bounds: the least and the greatest value of a pixel, or of each channel.

    Returns:
      The successful image of the smallest radius found; the clean image where no radius on the grid succeeds, or where
      it is adversarial itself. `steps` and `gradients` are those of all the attacks on an example together.

    Raises:
      ValueError: for bad images, labels, targets or bounds (see `base.check_arguments`), a highest epsilon that is not
        positive and finite, less than one epsilon on the grid, a negative number of bisections, and whatever the attack
        raises.

    Reference:
      Carlini and Wagner, Towards Evaluating the Robustness of Neural Networks, 2017 (arXiv 1608.04644), who so compare
      FGSM and its iterative form with attacks that minimise the distance.
    """
    base.check_arguments(logits_fn, images, labels, targets, bounds)
    base.check_number("highest", highest, above=0.0)
    base.check_number("grid", grid, least=1.0)
    base.check_number("bisections", bisections, least=0.0)
    keys = None if key is None else base.example_keys("smallest_epsilon", key, images.shape[0])

    def step(state: _State) -> _State:
        live = ~state.done
        next_on_grid = (state.tried + 1).astype(state.highest.dtype) / grid * state.highest
        epsilon = jnp.where(state.found, (state.failing + state.succeeding) / 2, next_on_grid)
        result = attack(
            logits_fn, state.clean, state.labels, state.keys, targets=state.targets, epsilon=epsilon, bounds=bounds
        )
        # By more than rounding: the image must stay adversarial in whatever batch it is seen again.
        success = live & result.success & base.reached(result.logits, state.labels, state.targets)
        tried = state.tried + (live & ~state.found).astype(jnp.int32)
        halved = state.halved + (live & state.found).astype(jnp.int32)
        found = state.found | success
        return state._replace(
            images=jnp.where(success[:, None, None, None], result.images, state.images),
            failing=jnp.where(live & ~success, epsilon, state.failing),
            succeeding=jnp.where(success, epsilon, state.succeeding),
            tried=tried,
            halved=halved,
            found=found,
            done=state.done | jnp.where(found, halved >= bisections, tried >= grid),
            steps=state.steps + jnp.where(live, result.steps.astype(jnp.int32), 0),
            gradients=state.gradients + jnp.where(live, result.gradients.astype(jnp.int32), 0),
        )

    # Every carry is derived from the inputs, so that it has their sharding.
    zeros = jnp.zeros_like(labels, jnp.int32)
    radii = jnp.zeros_like(images[:, 0, 0, 0]) + base.per_image(highest, images)[:, 0, 0, 0]
    start = _State(
        clean=images,
        labels=labels,
        targets=targets,
        keys=keys,
        highest=radii,
        images=images,
        failing=jnp.zeros_like(radii),
        succeeding=radii,
        tried=zeros,
        halved=zeros,
        found=zeros != 0,
        done=base.is_adversarial(logits_fn(images), labels, targets),
        steps=zeros,
        gradients=zeros,
    )
    end = base.while_live(step, lambda state: ~state.done, start, lanes=base.lanes(images))
    return base.finish(logits_fn, images, end.images, labels, targets, steps=end.steps, gradients=end.gradients)
