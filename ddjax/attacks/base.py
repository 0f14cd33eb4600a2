"""What all attacks share: the result, the judgement of success, and loops that do not pay for finished examples.

An attack is a plain function `attack(logits_fn, images, labels, key, *, targets=None, ...)`:

* `logits_fn` maps images `[B, H, W, C]` to logits `[B, K]` before softmax at temperature 1;
* `labels [B]` are always the true classes; `targets [B]` makes the attack targeted;
* `key` is one typed key or B of them, and an example's randomness depends on nothing else;
* real-valued settings may be traced, structural ones are static;
* the result is inside the box and the budget, holds no NaN, and `success` was judged on exactly the images returned.

Attacks contain no `jit`; the caller compiles.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from ddjax.classifier import LogitsFn

State = TypeVar("State")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttackResult:
    """What every attack returns. Distances are not stored; `ddjax.metrics` measures them.

    The fields are not typed more closely because a pytree's leaves also live as NumPy arrays, stacks and
    specifications.

    Attributes:
      images: the adversarial images, or the strongest that were found, `[B, H, W, C]` floats within the bounds.
      success: whether the classifier's decision on exactly these images is what the attack wanted, `[B]` bools.
      logits: the logits of exactly these images, `[B, K]` floats.
      steps: the number of changes made to each example, `[B]` integers.
    """

    images: Any
    success: Any
    logits: Any
    steps: Any


def is_adversarial(
    logits: Float[Array, "B K"], labels: Int[Array, " B"], targets: Int[Array, " B"] | None
) -> Bool[Array, " B"]:
    """Whether the decision is the target or, without targets, any class but the label.

    Logits that are not finite are no decision and never a success.
    """
    decision = jnp.argmax(logits, axis=1)
    wanted = decision != labels if targets is None else decision == targets
    return wanted & jnp.all(jnp.isfinite(logits), axis=1)


def check_arguments(
    logits_fn: LogitsFn, images: Array, labels: Array, targets: Array | None, bounds: tuple[float, float]
) -> None:
    """Refuses what can be known to be wrong before any work is done.

    Shapes and dtypes are checked always; values where they are known, that is, outside of `jit`.

    Raises:
      ValueError: images not `[B, H, W, C]` floats, not finite or outside the bounds; an empty batch; labels or
        targets not `[B]` integers, or no classes of the classifier; a target that is the true label; bounds that are
        no interval.
    """
    low, high = bounds
    if not low < high:
        raise ValueError(f"bounds must be an interval, got {bounds}")
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floats of shape [B, H, W, C], got {images.dtype} of shape {images.shape}")
    if images.shape[0] == 0:
        raise ValueError("the batch of images is empty")
    for name, classes in (("labels", labels), ("targets", targets)):
        if classes is not None and (
            classes.shape != images.shape[:1] or not jnp.issubdtype(classes.dtype, jnp.integer)
        ):
            raise ValueError(
                f"{name} must be {images.shape[0]} integers, one for each image, "
                f"got {classes.dtype} of shape {classes.shape}"
            )
    pixels, known_labels, known_targets = (_values(array) for array in (images, labels, targets))
    if pixels is not None and not ((pixels >= low) & (pixels <= high)).all():
        found = "NaN" if np.isnan(pixels).any() else f"values from {pixels.min():g} to {pixels.max():g}"
        raise ValueError(f"images must be finite and within {bounds}, found {found}")
    num_classes = jax.eval_shape(logits_fn, images).shape[1]
    for name, classes in (("labels", known_labels), ("targets", known_targets)):
        if classes is not None and not ((classes >= 0) & (classes < num_classes)).all():
            raise ValueError(
                f"{name} must be classes from 0 to {num_classes - 1}, found {classes.min()} to {classes.max()}"
            )
    if known_labels is not None and known_targets is not None and (known_labels == known_targets).any():
        raise ValueError("a target must differ from the true label of its image")


def _values(array: Array | None) -> np.ndarray | None:
    """The values where they are known; by NumPy, because inside `jit` even operations on constants are traced."""
    return None if array is None or isinstance(array, Tracer) else np.asarray(array)


def while_live(
    step: Callable[[State], State],
    live: Callable[[State], Bool[Array, " B"]],
    state: State,
    *,
    shrink: int = 4,
    smallest: int = 32,
) -> State:
    """Runs `step` until no example is live, on ever smaller batches as examples finish.

    The state is a pytree of arrays whose first axis is the batch; `step` must leave examples that are not live as they
    are. When at most a `shrink`-th of the batch is live, these go on alone in a batch of that static size. Every size
    is one more copy of the loop to compile, hence the coarse sizes.

    Args:
      step: advances the whole batch by one step; examples must not influence each other.
      live: tells which examples still need steps.
      state: where to start.
      shrink: the factor between batch sizes.
      smallest: no batch smaller than this is split off.

    Returns:
      The state in which no example is live, in the original order.
    """
    batch = live(state).shape[0]
    position = jnp.arange(batch)
    done: list[State] = []
    size = batch
    while True:
        next_size = -(-size // shrink)
        if next_size < smallest:
            state = lax.while_loop(lambda s: jnp.any(live(s)), step, state)
            break
        state = lax.while_loop(lambda s, limit=next_size: jnp.sum(live(s)) > limit, step, state)
        order = jnp.argsort(~live(state), stable=True)
        position = jnp.concatenate([position[order], position[size:]])
        state = jax.tree.map(lambda leaf, order=order: leaf[order], state)
        done.append(jax.tree.map(lambda leaf, at=next_size: leaf[at:], state))
        state = jax.tree.map(lambda leaf, at=next_size: leaf[:at], state)
        size = next_size
    for rest in reversed(done):
        state = jax.tree.map(lambda head, tail: jnp.concatenate([head, tail]), state, rest)
    original = jnp.argsort(position)
    return jax.tree.map(lambda leaf: leaf[original], state)
