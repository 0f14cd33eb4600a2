"""Projected gradient descent in a ball of a given radius, and its relatives BIM and MIM."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from ddjax import losses
from ddjax.attacks import base
from ddjax.classifier import LogitsFn

NORMS = ("linf", "l2", "l1")
LOSSES = ("cross_entropy", "margin", "dlr", "logit")
# Without a step size, all steps together are this many times as long as the radius: enough to cross the ball.
_PATH = 2.5
# The share of the values that an L1 step changes.
_L1_SHARE = 0.01


class _Best(NamedTuple):
    """The strongest iterate of each example so far."""

    images: Float[Array, "B H W C"]
    logits: Float[Array, "B K"]
    success: Bool[Array, " B"]
    loss: Float[Array, " B"]


def pgd(
    logits_fn: LogitsFn,
    images: Float[Array, "B H W C"],
    labels: Int[Array, " B"],
    key: Key[Array, "..."] | None = None,
    *,
    targets: Int[Array, " B"] | None = None,
    epsilon: float | Float[Array, ""] | Float[Array, " B"] = 0.3,
    step_size: float | Float[Array, ""] | Float[Array, " B"] = 0.0,
    num_steps: int = 40,
    norm: str = "linf",
    loss: str = "cross_entropy",
    random_start: bool = True,
    restarts: int = 1,
    momentum: float | Float[Array, ""] = 0.0,
    bounds: base.Bounds = (0.0, 1.0),
) -> base.AttackResult:
    """Climbs a loss by steepest steps inside a ball around each image, and keeps the best of all iterates.

    Each step follows the direction that raises the loss most for its length in the norm: the sign of the gradient
    (Linf), the gradient at unit length (L2), or an equal change of the hundredth of the values with the largest
    gradients, of those that the box lets move (L1). The ball and then the box take the iterate back; since the clean
    image is in the box, the latter only shortens the perturbation.

    Among all iterates of all restarts, the starts included, successful ones come first, and of these or else of the
    others the one with the highest loss is returned.

    Args:
      logits_fn: a classifier.
      images: within `bounds`.
      labels: the true classes.
      key: one key or one for each image; may be None without `random_start`.
      targets: the classes to reach, for the targeted attack; none may be the true one.
      epsilon: the radius of the ball, at least 0, in the units of the images; may be traced, and one for each example.
      step_size: the length of a step in the norm, in the units of the images; 0 takes `2.5 * epsilon / num_steps`
        (Madry et al.). May be traced, and one for each example.
      num_steps: of each restart.
      norm: `"linf"`, `"l2"` or `"l1"`.
      loss: what is raised; with targets, what is right for these. `"cross_entropy"`, whose gradient is exactly zero
        where the softmax saturates; `"margin"`, the largest other logit minus the label's; `"dlr"`, the margin relative
        to the spread of the logits; `"logit"`, minus the label's logit, or the target's.
      random_start: whether to start uniformly in the ball rather than at the image.
      restarts: the number of random starts.
      momentum: mu of g = mu g + gradient / |gradient|_1, whose steepest step is taken; 0 is plain PGD. May be traced.
      bounds: the least and the greatest value of a pixel, or of each channel.

    Returns:
      The strongest images, successful or not; the perturbation is within epsilon up to rounding. `steps` and
      `gradients` are those of all restarts together.

    Raises:
      ValueError: for bad images, labels, targets or bounds (see `base.check_arguments`); a radius, step size or
        momentum that is negative or not finite; an unknown norm or loss, or too few classes for it; less than one step
        or restart; several restarts without a random start, as all would be the same; a random start without a key.

    Reference:
      Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, 2018 (arXiv 1706.06083). The L1 step:
      Tramer and Boneh, Adversarial Training and Robustness for Multiple Perturbations, 2019 (arXiv 1904.13000).
      Momentum: Dong et al., 2018 (arXiv 1710.06081).
    """
    base.check_arguments(logits_fn, images, labels, targets, bounds)
    base.check_choice("norm", norm, NORMS)
    base.check_choice("loss", loss, LOSSES)
    for name, value in (("epsilon", epsilon), ("step_size", step_size), ("momentum", momentum)):
        base.check_number(name, value, least=0.0)
    for name, value in (("num_steps", num_steps), ("restarts", restarts)):
        base.check_number(name, value, least=1.0)
    if restarts > 1 and not random_start:
        raise ValueError(f"{restarts} restarts without a random start would all be the same")
    keys = base.example_keys("pgd with a random start", key, images.shape[0]) if random_start else None
    # Traced settings may be anything; what is out of range moves nothing, or is as if it were not given.
    radius = _positive(base.per_image(epsilon, images))
    length = _positive(base.per_image(step_size, images))
    length = jnp.where(length > 0, length, _PATH / num_steps * radius)
    decay = _positive(jnp.asarray(momentum, images.dtype))
    low, high = base.box(bounds, images)

    def rated(inputs: Array) -> tuple[Array, tuple[Array, Array]]:
        logits = logits_fn(inputs)
        value = _loss(loss, logits, labels, targets)
        # The sum, so that each example's gradient is its own whatever the batch.
        return jnp.sum(value), (logits, value)

    def keep_better(best: _Best, current: Array, logits: Array, value: Array) -> _Best:
        success = base.is_adversarial(logits, labels, targets)
        value = jnp.where(jnp.isnan(value), -jnp.inf, value)
        # At equality the later one, so that the first iterate is kept even if its loss means nothing.
        better = (success & ~best.success) | ((success == best.success) & (value >= best.loss))
        return _Best(
            images=jnp.where(better[:, None, None, None], current, best.images),
            logits=jnp.where(better[:, None], logits, best.logits),
            success=jnp.where(better, success, best.success),
            loss=jnp.where(better, value, best.loss),
        )

    def step(_: Array, carry: tuple[Array, Array, _Best]) -> tuple[Array, Array, _Best]:
        current, velocity, best = carry
        gradient, (logits, value) = jax.grad(rated, has_aux=True)(current)
        best = keep_better(best, current, logits, value)
        gradient = _unit(jnp.where(jnp.isfinite(gradient), gradient, 0.0), 1)
        velocity = decay * velocity + gradient
        # A momentum above 1 may run out of range.
        velocity = jnp.where(jnp.isfinite(velocity), velocity, gradient)
        moved = current + length * _steepest(velocity, current, norm, low, high)
        return _restrict(moved, images, radius, norm, low, high), velocity, best

    def restart(number: Array, best: _Best) -> _Best:
        start = images
        if keys is not None:
            start = jnp.clip(images + radius * _uniform_in_ball(keys, number, images, norm), low, high)
        last, _, best = lax.fori_loop(0, num_steps, step, (start, jnp.zeros_like(images), best))
        _, (logits, value) = rated(last)
        return keep_better(best, last, logits, value)

    # Every carry is derived from the inputs, so that it has their sharding.
    outputs = jax.eval_shape(logits_fn, images)
    logits = jnp.zeros_like(images, outputs.dtype, shape=outputs.shape)
    worst = _Best(images, logits, jnp.zeros_like(labels, bool), jnp.full_like(labels, -jnp.inf, outputs.dtype))
    best = lax.fori_loop(0, restarts, restart, worst)
    count = jnp.full_like(labels, restarts * num_steps, jnp.int32)
    return base.AttackResult(images=best.images, success=best.success, logits=best.logits, steps=count, gradients=count)


def bim(
    logits_fn: LogitsFn,
    images: Float[Array, "B H W C"],
    labels: Int[Array, " B"],
    key: Key[Array, "..."] | None = None,
    *,
    targets: Int[Array, " B"] | None = None,
    epsilon: float | Float[Array, ""] | Float[Array, " B"] = 0.3,
    step_size: float | Float[Array, ""] | Float[Array, " B"] = 0.0,
    num_steps: int = 10,
    norm: str = "linf",
    loss: str = "cross_entropy",
    bounds: base.Bounds = (0.0, 1.0),
) -> base.AttackResult:
    """The basic iterative method, also called iterative FGSM: `pgd` from the image itself.

    Args:
      logits_fn: a classifier.
      images: within `bounds`.
      labels: the true classes.
      key: unused; the attack is deterministic.
      targets: the classes to reach, for the targeted attack; none may be the true one.
      epsilon: as in `pgd`.
      step_size: as in `pgd`.
      num_steps: as in `pgd`.
      norm: as in `pgd`.
      loss: as in `pgd`.
      bounds: the least and the greatest value of a pixel, or of each channel.

    Returns:
      As `pgd`.

    Raises:
      ValueError: as `pgd`.

    Reference:
      Kurakin et al., Adversarial Examples in the Physical World, 2017 (arXiv 1607.02533).

    Departures from the paper:
      The best of all iterates is returned, not the last.
    """
    del key
    return pgd(
        logits_fn,
        images,
        labels,
        targets=targets,
        epsilon=epsilon,
        step_size=step_size,
        num_steps=num_steps,
        norm=norm,
        loss=loss,
        random_start=False,
        bounds=bounds,
    )


def mim(
    logits_fn: LogitsFn,
    images: Float[Array, "B H W C"],
    labels: Int[Array, " B"],
    key: Key[Array, "..."] | None = None,
    *,
    targets: Int[Array, " B"] | None = None,
    epsilon: float | Float[Array, ""] | Float[Array, " B"] = 0.3,
    step_size: float | Float[Array, ""] | Float[Array, " B"] = 0.0,
    num_steps: int = 10,
    norm: str = "linf",
    loss: str = "cross_entropy",
    momentum: float | Float[Array, ""] = 1.0,
    bounds: base.Bounds = (0.0, 1.0),
) -> base.AttackResult:
    """The momentum iterative method: `pgd` from the image itself along a decaying sum of its gradients.

    Args:
      logits_fn: a classifier.
      images: within `bounds`.
      labels: the true classes.
      key: unused; the attack is deterministic.
      targets: the classes to reach, for the targeted attack; none may be the true one.
      epsilon: as in `pgd`.
      step_size: as in `pgd`; the paper takes `epsilon / num_steps`.
      num_steps: as in `pgd`.
      norm: as in `pgd`.
      loss: as in `pgd`.
      momentum: as in `pgd`.
      bounds: the least and the greatest value of a pixel, or of each channel.

    Returns:
      As `pgd`.

    Raises:
      ValueError: as `pgd`.

    Reference:
      Dong et al., Boosting Adversarial Attacks with Momentum, 2018 (arXiv 1710.06081).

    Departures from the paper:
      The best of all iterates is returned, not the last.
    """
    del key
    return pgd(
        logits_fn,
        images,
        labels,
        targets=targets,
        epsilon=epsilon,
        step_size=step_size,
        num_steps=num_steps,
        norm=norm,
        loss=loss,
        random_start=False,
        momentum=momentum,
        bounds=bounds,
    )


def _loss(name: str, logits: Array, labels: Array, targets: Array | None) -> Array:
    """What the attack raises, of each example."""
    if name == "margin":
        return -base.objective(logits, labels, targets)
    if name == "dlr":
        return losses.dlr(logits, labels) if targets is None else losses.targeted_dlr(logits, labels, targets)
    of_class: Callable[[Array, Array], Array] = losses.cross_entropy if name == "cross_entropy" else _minus_logit
    return of_class(logits, labels) if targets is None else -of_class(logits, targets)


def _minus_logit(logits: Array, classes: Array) -> Array:
    is_class = jnp.arange(logits.shape[1])[None, :] == classes[:, None]
    return -jnp.sum(jnp.where(is_class, logits, 0.0), axis=1)


def _positive(values: Array) -> Array:
    """The values, and zero for those that are not positive and finite."""
    return jnp.where(jnp.isfinite(values) & (values > 0), values, 0.0)


def _unit(values: Array, order: int) -> Array:
    """Scales each image to norm 1; zero stays zero."""
    # By the largest first: the squares, or the sum, of what a saturated network returns leave the range of float32.
    for size in (math.inf, order):
        scale = base.norm(values, size)[:, None, None, None]
        values = values / jnp.where(scale > 0, scale, 1.0)
    return values


def _steepest(slope: Array, current: Array, norm: str, low: Array, high: Array) -> Array:
    """The direction of norm 1 along which the loss rises most; zero where the slope is."""
    if norm == "linf":
        return jnp.sign(slope)
    if norm == "l2":
        return _unit(slope, 2)
    can_move = jnp.where(slope > 0, current < high, current > low)
    size = jnp.where(can_move, jnp.abs(slope), 0.0).reshape(slope.shape[0], -1)
    # One value alone would be steepest, and slow in many dimensions.
    least = lax.top_k(size, max(1, int(_L1_SHARE * size.shape[1])))[0][:, -1:]
    chosen = ((size >= least) & (size > 0)).astype(slope.dtype)
    share = chosen / jnp.maximum(jnp.sum(chosen, axis=1, keepdims=True), 1.0)
    return jnp.sign(slope) * share.reshape(slope.shape)


def _restrict(moved: Array, clean: Array, radius: Array, norm: str, low: Array, high: Array) -> Array:
    """The closest point of the ball, then of the box."""
    if norm == "linf":
        return jnp.clip(moved, jnp.maximum(clean - radius, low), jnp.minimum(clean + radius, high))
    change = moved - clean
    if norm == "l2":
        size = base.norm(change)[:, None, None, None]
        inside = change * jnp.where(size > radius, radius / jnp.where(size > 0, size, 1.0), 1.0)
    else:
        # All magnitudes shrink by the same amount. Shrinking by t leaves at least (sum of the k largest) - k t, for
        # every k, and exactly that for the right k; so the largest t that some k asks for is the one.
        largest = jnp.sort(jnp.abs(change).reshape(change.shape[0], -1), axis=1, descending=True)
        excess = jnp.cumsum(largest, axis=1) - radius.reshape(-1, 1)
        amount = jnp.max(excess / jnp.arange(1, largest.shape[1] + 1, dtype=change.dtype)[None, :], axis=1)
        shrunk = jnp.maximum(jnp.abs(change) - jnp.maximum(amount, 0.0)[:, None, None, None], 0.0)
        inside = jnp.sign(change) * shrunk
    return jnp.clip(clean + inside, low, high)


def _uniform_in_ball(keys: Array, number: Array, images: Array, norm: str) -> Array:
    """A point of the unit ball for each image, from its own key and the number of the restart."""
    shape, dtype = images.shape[1:], images.dtype
    size = math.prod(shape)

    def draw(key: Array) -> Array:
        key = jax.random.fold_in(key, number)
        if norm == "linf":
            return jax.random.uniform(key, shape, dtype, -1.0, 1.0)
        # A point on a sphere of a few more dimensions, without these, is uniform inside the ball: two for the L2
        # norm, one for the L1 norm.
        if norm == "l2":
            point = jax.random.normal(key, (size + 2,), dtype)
            return (point[:size] / jnp.sqrt(jnp.sum(point**2))).reshape(shape)
        point = jax.random.laplace(key, (size + 1,), dtype)
        return (point[:size] / jnp.sum(jnp.abs(point))).reshape(shape)

    return jax.vmap(draw)(keys)
