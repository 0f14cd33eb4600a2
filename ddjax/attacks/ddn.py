"""The decoupled direction and norm attack: small L2 perturbations in few steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key

from ddjax import losses, rounding
from ddjax.attacks import base
from ddjax.classifier import LogitsFn


class _State(NamedTuple):
    """One entry for each example."""

    images: Float[Array, "B H W C"]
    radius: Float[Array, " B"]
    best: Float[Array, " B"]
    best_images: Float[Array, "B H W C"]


def ddn(
    logits_fn: LogitsFn,
    images: Float[Array, "B H W C"],
    labels: Int[Array, " B"],
    key: Key[Array, "..."] | None = None,
    *,
    targets: Int[Array, " B"] | None = None,
    num_steps: int = 100,
    gamma: float | Float[Array, ""] = 0.05,
    initial_norm: float | Float[Array, ""] = 1.0,
    levels: int = 256,
    bounds: base.Bounds = (0.0, 1.0),
) -> base.AttackResult:
    """Finds a close adversarial image in L2: the gradient gives the direction, a radius of its own gives the norm.

    Each step moves along the normalized gradient of the cross-entropy, by a step size that falls from 1 to 0.01 along a
    cosine, and projects onto the sphere whose radius shrinks by `gamma` while the image is adversarial and grows by
    `gamma` while it is not.

    Args:
      logits_fn: a classifier.
      images: within `bounds`; on the grid of `levels`, as images from files are, or else quantization moves them.
      labels: the true classes.
      key: one key or B of them: where a gradient is exactly zero the direction is random. Without one it is zero.
      targets: the classes to reach, for the targeted attack; none may be the true one.
      num_steps: the number of gradients.
      gamma: the relative change of the radius in each step, in (0, 1); may be traced.
      initial_norm: the first radius, above 0; may be traced.
      levels: the number of values that a pixel can have, at least 2, equally spaced within the bounds; every iterate
        is rounded to them. 0 does not round.
      bounds: the least and the greatest value of a pixel, or of each channel.

    Returns:
      The closest adversarial image of all iterates, or the clean image where there was none.

    Raises:
      ValueError: for bad images, labels, targets or bounds (see `base.check_arguments`), or a setting out of its range.

    Reference:
      Rony et al., Decoupling Direction and Norm for Efficient Gradient-Based L2 Adversarial Attacks and Defenses, 2019
      (arXiv 1811.09600), algorithm 1; the last radii and the treatment of zero gradients from the authors' code.

    Departures from the authors' code:
      The last iterate counts too. Any distance counts as a success; there, only those below that of the farthest
      corner of the box, which bounds the radius here as well.
    """
    base.check_arguments(logits_fn, images, labels, targets, bounds)
    base.check_number("gamma", gamma, above=0.0, most=1.0 - 1e-6)
    base.check_number("initial_norm", initial_norm, above=0.0)
    if num_steps < 1:
        raise ValueError(f"ddn needs at least one step, got num_steps={num_steps}")
    if levels != 0 and levels < 2:
        raise ValueError(f"levels must be at least 2, or 0 for none, got {levels}")
    low, high = base.box(bounds, images)
    keys = None if key is None else base.example_keys("ddn", key, images.shape[0])
    farthest = base.norm(jnp.maximum(images - low, high - images))

    def total_loss(inputs: Array) -> tuple[Array, Array]:
        logits = logits_fn(inputs)
        if targets is None:
            return -jnp.sum(losses.cross_entropy(logits, labels)), logits
        return jnp.sum(losses.cross_entropy(logits, targets)), logits

    def record(state: _State, logits: Array) -> tuple[_State, Array]:
        is_adversarial = base.reached(logits, labels, targets)
        distance = base.norm(state.images - images)
        closer = is_adversarial & (distance < state.best)
        best_images = jnp.where(closer[:, None, None, None], state.images, state.best_images)
        best = jnp.where(closer, distance, state.best)
        return state._replace(best=best, best_images=best_images), is_adversarial

    def step(i: Array, state: _State) -> _State:
        gradient, logits = jax.grad(total_loss, has_aux=True)(state.images)
        state, is_adversarial = record(state, logits)

        gradient = jnp.where(jnp.isfinite(gradient), gradient, 0.0)
        # By the largest entry first, so that the squares of tiny gradients do not underflow.
        largest = base.norm(gradient, jnp.inf)[:, None, None, None]
        gradient = gradient / jnp.where(largest > 0, largest, 1.0)
        length = base.norm(gradient)[:, None, None, None]
        direction = gradient / jnp.where(length > 0, length, 1.0)
        if keys is not None:
            draw = lambda key: jax.random.normal(jax.random.fold_in(key, i), images.shape[1:], images.dtype)
            noise = lambda: jnp.where(length > 0, direction, jax.vmap(draw)(keys))
            direction = lax.cond(jnp.all(length > 0), lambda: direction, noise)
        rate = 0.01 + 0.99 * (1 + jnp.cos(jnp.pi * i.astype(images.dtype) / num_steps)) / 2
        change = state.images - images - rate * direction

        radius = state.radius * jnp.where(is_adversarial, 1 - gamma, 1 + gamma)
        radius = jnp.minimum(radius, farthest)
        length = base.norm(change)
        # A change of zero stays zero: rounding may have removed it and no gradient brought it back.
        change = change * (radius / jnp.where(length > 0, length, 1.0))[:, None, None, None]
        moved = images + change
        if levels:
            # Numbers as they came, since those are exact.
            span = bounds if all(np.ndim(bound) == 0 for bound in bounds) else (low, high)
            moved = rounding.round_to_levels(moved, levels, *span)
        return state._replace(images=jnp.clip(moved, low, high), radius=radius)

    blank = jnp.zeros_like(images[:, 0, 0, 0])
    start = _State(
        images=images,
        radius=blank + jnp.asarray(initial_norm, images.dtype),
        best=blank + jnp.inf,
        best_images=images,
    )
    end = lax.fori_loop(0, num_steps, step, start)
    end, _ = record(end, logits_fn(end.images))
    count = jnp.full_like(labels, num_steps)
    return base.finish(logits_fn, images, end.best_images, labels, targets, steps=count, gradients=count)
