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
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Key

from ddjax import layers, losses
from ddjax.classifier import LogitsFn

State = TypeVar("State")
# The least and the greatest value of a pixel: numbers, or one for each channel where a classifier is attacked behind
# its own normalization.
Bounds = tuple[Any, Any]
# A margin must exceed rounding, relative to the largest logit, to count as one during a search: what is found in one
# batch must also hold in another, where XLA rounds differently.
_GUARD = 1e-5


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
      gradients: the number of gradients (backward passes) spent on each example, `[B]` integers.
    """

    images: Any
    success: Any
    logits: Any
    steps: Any
    gradients: Any


def is_adversarial(
    logits: Float[Array, "B K"], labels: Int[Array, " B"], targets: Int[Array, " B"] | None
) -> Bool[Array, " B"]:
    """Whether the decision is the target or, without targets, any class but the label.

    Logits that are not finite are no decision and never a success.
    """
    decision = jnp.argmax(logits, axis=1)
    wanted = decision != labels if targets is None else decision == targets
    return wanted & jnp.all(jnp.isfinite(logits), axis=1)


def objective(
    logits: Float[Array, "B K"], labels: Int[Array, " B"], targets: Int[Array, " B"] | None
) -> Float[Array, " B"]:
    """What attacks bring down: how far the logits are from the decision that is wanted, negative once it is made."""
    return losses.margin(logits, labels) if targets is None else -losses.margin(logits, targets)


def required_margin(
    logits: Float[Array, "B K"], confidence: float | Float[Array, ""] | Float[Array, " B"] = 0.0
) -> Float[Array, " B"]:
    """How far below zero a search must bring the `objective`: by the confidence, and by more than rounding."""
    return jnp.maximum(jnp.asarray(confidence, logits.dtype), _GUARD * jnp.max(jnp.abs(logits), axis=1))


def reached(
    logits: Float[Array, "B K"],
    labels: Int[Array, " B"],
    targets: Int[Array, " B"] | None,
    confidence: float | Float[Array, ""] | Float[Array, " B"] = 0.0,
) -> Bool[Array, " B"]:
    """`is_adversarial` by the `required_margin`."""
    distance = objective(logits, labels, targets)
    # Where all logits are zero, so is the required margin.
    enough = (distance <= -required_margin(logits, confidence)) & (distance < 0)
    return enough & jnp.all(jnp.isfinite(logits), axis=1)


def objective_and_gradient(
    logits_fn: LogitsFn, images: Float[Array, "B H W C"], labels: Int[Array, " B"], targets: Int[Array, " B"] | None
) -> tuple[Float[Array, "B K"], Float[Array, " B"], Float[Array, "B H W C"]]:
    """The logits, the `objective`, and its gradient; where that is not finite, zero."""

    def total(inputs: Array) -> tuple[Array, tuple[Array, Array]]:
        logits = logits_fn(inputs)
        distance = objective(logits, labels, targets)
        # The sum, so that each example's gradient is its own whatever the batch.
        return jnp.sum(distance), (logits, distance)

    gradient, (logits, distance) = jax.grad(total, has_aux=True)(images)
    return logits, distance, jnp.where(jnp.isfinite(gradient), gradient, 0.0)


def finish(
    logits_fn: LogitsFn,
    clean: Float[Array, "B H W C"],
    found: Float[Array, "B H W C"],
    labels: Int[Array, " B"],
    targets: Int[Array, " B"] | None,
    *,
    steps: Int[Array, " B"],
    gradients: Int[Array, " B"],
) -> AttackResult:
    """The result of a minimum-norm attack: judges what was found, and gives the clean image back where it is nothing.

    Args:
      logits_fn: the classifier.
      clean: the images before.
      found: the closest adversarial images, or the clean ones where there were none.
      labels: the true classes.
      targets: the classes to reach, or None.
      steps: as in the result.
      gradients: as in the result.

    Returns:
      The result.
    """
    logits = layers.in_parts(logits_fn, found)
    success = is_adversarial(logits, labels, targets)
    # Where the search found nothing, `found` is the clean image and these are its logits. What it found stands, since
    # `reached` asks for more than rounding.
    images = jnp.where(success[:, None, None, None], found, clean)
    return AttackResult(images=images, success=success, logits=logits, steps=steps, gradients=gradients)


def box(bounds: Bounds, images: Float[Array, "B H W C"]) -> tuple[Array, Array]:
    """The bounds as arrays that broadcast against a batch of images."""
    low, high = (jnp.reshape(jnp.asarray(bound, images.dtype), (1, 1, 1, -1)) for bound in bounds)
    return low, high


def per_image(values: float | Array, images: Float[Array, "B H W C"]) -> Float[Array, "B 1 1 1"]:
    """A number, or one for each example, such that it broadcasts against the batch of images."""
    return jnp.broadcast_to(jnp.asarray(values, images.dtype), images.shape[:1])[:, None, None, None]


def lanes(images: Float[Array, "B H W C"]) -> int:
    """How many of the images an attack should have at work at a time; see `while_live`."""
    return layers.images_at_once(images.shape[0], images.shape[1:], equal=False)


def norm(images: Float[Array, "B H W C"], order: int | float = 2) -> Float[Array, " B"]:
    """The L1, L2 or Linf norm (`order` 1, 2 or infinity) of each image."""
    size = jnp.abs(images)
    if order == 1:
        return jnp.sum(size, axis=(1, 2, 3))
    if order == 2:
        return jnp.sqrt(jnp.sum(size**2, axis=(1, 2, 3)))
    return jnp.max(size, axis=(1, 2, 3))


def example_keys(name: str, key: Key[Array, "..."] | None, batch: int) -> Key[Array, " B"]:
    """One key for each example, which depends on nothing but the caller's key and, if that is a single one, the row.

    Args:
      name: of the attack, for the error.
      key: one typed key, or B.
      batch: B.

    Raises:
      ValueError: without a key, or when there are neither one nor B of them.
    """
    if key is None or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"{name} is random: it needs a key, as jax.random.key makes one, got {key}")
    if key.shape == ():
        return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(batch))
    if key.shape != (batch,):
        raise ValueError(f"{name} needs one key or {batch}, one for each image, got {key.shape}")
    return key


def check_number(
    name: str, value: Any, *, above: float = -np.inf, least: float = -np.inf, most: float = np.inf
) -> None:
    """Refuses a setting that is known and not a finite number, or numbers, in its range.

    Args:
      name: of the setting.
      value: a number or an array of them; traced ones pass.
      above: what it must exceed.
      least: the least it may be.
      most: the most it may be.

    Raises:
      ValueError: with the range.
    """
    if isinstance(value, Tracer):
        return
    known = np.asarray(value)
    if not (np.isfinite(known) & (known > above) & (known >= least) & (known <= most)).all():
        ends = [f"{word} {end:g}" for word, end in (("above", above), ("at least", least), ("at most", most))]
        wanted = " and ".join(end for end in ends if "inf" not in end)
        raise ValueError(f"{name} must be a finite number {wanted}".rstrip() + f", got {value}")


def check_choice(name: str, value: str, known: Collection[str]) -> None:
    """Refuses a word that is not one of the known.

    Raises:
      ValueError: with the known ones.
    """
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")


def check_arguments(logits_fn: LogitsFn, images: Array, labels: Array, targets: Array | None, bounds: Bounds) -> None:
    """Refuses what can be known to be wrong before any work is done.

    Shapes and dtypes are checked always; values where they are known, that is, outside of `jit`.

    Raises:
      ValueError: images not `[B, H, W, C]` floats, not finite or outside the bounds; an empty batch; labels or
        targets not `[B]` integers, or no classes of the classifier; a target that is the true label; bounds that are
        no interval.
    """
    low, high = (_values(bound) for bound in bounds)
    if low is not None and high is not None and not (low < high).all():
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
    if any(jnp.shape(bound) not in ((), (1,), images.shape[3:]) for bound in bounds):
        raise ValueError(f"bounds must be numbers or {images.shape[3]}, one for each channel, got {bounds}")
    pixels, known_labels, known_targets = (_values(array) for array in (images, labels, targets))
    if pixels is not None and low is not None and high is not None and not ((pixels >= low) & (pixels <= high)).all():
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


def _values(array: Any) -> np.ndarray | None:
    """The values where they are known; by NumPy, because inside `jit` even operations on constants are traced."""
    return None if array is None or isinstance(array, Tracer) else np.asarray(array)


def while_live(
    step: Callable[[State], State],
    live: Callable[[State], Bool[Array, " B"]],
    state: State,
    *,
    lanes: int | None = None,
    shrink: int = 4,
    smallest: int = 32,
) -> State:
    """Runs `step` until no example is live, and spends little on those that are not.

    The state is a pytree of arrays whose first axis is the batch; `step` must leave examples that are not live as they
    are. Of more examples than `lanes`, so many are at work at a time, and where one ends another takes its place. When
    no more are waiting and at most a `shrink`-th of those at work is live, these go on alone in a batch of that static
    size, and so on. Every size is one more copy of the loop to compile, hence the coarse sizes.

    Args:
      step: advances the examples at work by one step; they must not influence each other.
      live: tells which examples still need steps.
      state: where to start.
      lanes: how many examples are at work at most; default: all.
      shrink: the factor between batch sizes.
      smallest: no batch smaller than this is split off; but one is where some had to wait.

    Returns:
      The state in which no example is live, in the original order.
    """
    count = live(state).shape[0]
    sizes = [count if lanes is None else min(lanes, count)]
    if sizes[0] < count:
        smallest = min(smallest, -(-sizes[0] // shrink))
    while smallest <= -(-sizes[-1] // shrink) < sizes[-1]:
        sizes.append(-(-sizes[-1] // shrink))
    # The examples at work are ahead of what is kept of them in `state`.
    rows = jnp.arange(sizes[0], dtype=jnp.int32)
    working = jax.tree.map(lambda leaf: leaf[: sizes[0]], state)
    for size, limit in zip(sizes, [*sizes[1:], 0], strict=True):
        if size < sizes[0]:
            order = jnp.argsort(~live(working), stable=True)[:size]
            rows, working = jax.tree.map(lambda leaf, order=order: leaf[order], (rows, working))
        if size == sizes[0] < count:
            state, rows, working = _while_waiting(step, live, (state, rows, working), limit)
        else:
            working = lax.while_loop(lambda s, limit=limit: jnp.sum(live(s)) > limit, step, working)
        state = working if size == count else _put(state, rows, working)
    return state


def _while_waiting(
    step: Callable[[State], State],
    live: Callable[[State], Bool[Array, " L"]],
    state: tuple[State, Int[Array, " L"], State],
    limit: int,
) -> tuple[State, Int[Array, " L"], State]:
    """Runs `step` on so many examples at a time until no others are waiting and at most `limit` are live.

    Args:
      step: as in `while_live`.
      live: as in `while_live`.
      state: what is kept of all examples, the rows of the first few, and their states.
      limit: how many may be left.

    Returns:
      The same three, at the end.
    """
    count = live(state[0]).shape[0]

    def refill(carry: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
        kept, rows, working, waiting = carry
        # The first idle lane takes the first example that waits, the second the second, while there are any.
        idle = ~live(working)
        turn = waiting + jnp.cumsum(idle, dtype=jnp.int32) - 1
        takes = idle & (turn < count)
        kept = _put(kept, jnp.where(takes, rows, count), working)
        rows = jnp.where(takes, turn, rows)
        taken = jax.tree.map(lambda leaf: leaf[rows], kept)
        return kept, rows, select(takes, taken, working), waiting + jnp.sum(takes, dtype=jnp.int32)

    def advance(carry: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
        kept, rows, working, waiting = carry
        working = step(working)
        is_due = (waiting < count) & jnp.any(~live(working))
        return lax.cond(is_due, refill, lambda carry: carry, (kept, rows, working, waiting))

    def goes_on(carry: tuple[Any, Any, Any, Any]) -> Array:
        return (carry[3] < count) | (jnp.sum(live(carry[2])) > limit)

    waiting = jnp.int32(state[1].shape[0])
    return lax.while_loop(goes_on, advance, (*state, waiting))[:3]


def _put(state: State, rows: Int[Array, " L"], working: State) -> State:
    """Writes the examples at work back to their rows; a row that there is not is left out."""
    return jax.tree.map(lambda leaf, part: leaf.at[rows].set(part, mode="drop"), state, working)


def select(condition: Bool[Array, " B"], new: State, old: State) -> State:
    """For each example, one of two states."""
    where = lambda a, b: jnp.where(condition.reshape(-1, *(1,) * (a.ndim - 1)), a, b)
    return jax.tree.map(where, new, old)
