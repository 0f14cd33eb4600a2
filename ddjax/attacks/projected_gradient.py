"""Projected gradient descent in a ball of a given radius, and its relatives BIM and MIM."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from ddjax import losses
from ddjax.attacks.contract import AttackResult, declare, refuses_old_calls
from ddjax.attacks.examples import Criterion, PerValue, is_dead, positive, unit
from ddjax.attacks.examples import norm as norm_of
from ddjax.attacks.loops import select
from ddjax.attacks.problem import Bounds, Problem, prepare
from ddjax.checks import check_choice, check_number, check_whole_number
from ddjax.classifier import LogitsFn

NORMS = ("linf", "l2", "l1")
LOSSES = tuple(losses.REGISTRY)
# Without a step size, all steps together are this many times as long as the radius: enough to cross the ball.
_PATH = 2.5
# The share of the values that an L1 step changes.
_L1_SHARE = 0.01
# Of the range, the radius without one that is given.
_EPSILON = 0.3


class _Best(NamedTuple):
    """The strongest iterate of each example so far. `distance` is the objective, the negative of the loss."""

    inputs: Float[Array, "B ..."]
    logits: Float[Array, "B K"]
    success: Bool[Array, " B"]
    distance: Float[Array, " B"]


@refuses_old_calls
def pgd(
    logits_fn: LogitsFn,
    inputs: Float[Array, "B ..."],
    labels: Int[Array, " B"],
    *,
    key: Key[Array, "..."] | None = None,
    targets: Int[Array, " B"] | None = None,
    epsilon: PerValue | None = None,
    step_size: PerValue | None = None,
    num_steps: int = 40,
    norm: str = "linf",
    loss: str = "cross_entropy",
    random_start: bool = True,
    num_restarts: int = 1,
    momentum: float | Float[Array, ""] = 0.0,
    start: Float[Array, "B ..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    criterion: Criterion | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """Climbs a loss by steepest steps inside a ball around each input, and keeps the best of all iterates.

    Each step follows the direction that raises the loss most for its length in the norm: the sign of the gradient
    (Linf); the gradient at unit length (L2); or an equal change of the hundredth of the values with the largest
    gradients, among those that the box lets move (L1). Then the iterate is projected onto the ball and clipped to the
    box. The clean input is in the box, so clipping only shortens the perturbation.

    Among all iterates of all restarts, the starts included, successful ones rank before others, and higher losses
    before lower ones. The best is returned.

    The arguments that all attacks have are described in `ddjax.attacks.contract`.

    Args:
      key: may be None without `random_start`.
      epsilon: the radius of the ball, at least 0, in the units of the inputs; may be traced, and one for each example.
        In Linf also one for each value, as an array that broadcasts against the inputs. None takes 0.3 of the range of
        each value.
      step_size: the length of a step in the norm, in the units of the inputs; may be traced, and have the shapes that
        epsilon may have. None takes `2.5 * epsilon / num_steps` (Madry et al.).
      num_steps: of each restart.
      norm: `"linf"`, `"l2"` or `"l1"`.
      loss: what is raised; with targets, its targeted form. `"cross_entropy"`, whose gradient is exactly zero where
        the softmax saturates; `"margin"`, the largest other logit minus the label's; `"dlr"`, the margin relative to
        the spread of the logits; `"logit"`, minus the label's logit, or the target's. Unused with a criterion.
      random_start: whether to start uniformly in the ball rather than at the input.
      num_restarts: the number of random starts.
      momentum: mu of g = mu g + gradient / |gradient|_1, whose steepest step is taken; 0 is plain PGD. May be traced.
      start: where the first restart starts, projected onto the ball; None for the input itself or a random start.

    Returns:
      The strongest inputs, successful or not; the perturbation is within epsilon up to rounding. The counts are those
      of all restarts together.

    Raises:
      TypeError: as in the contract; for a random start without a key.
      ValueError: as in the contract; for too few classes for the loss, or several restarts without a random start, as
        all would be the same.

    Reference:
      Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, 2018 (arXiv 1706.06083). The L1 step:
      Tramer and Boneh, Adversarial Training and Robustness for Multiple Perturbations, 2019 (arXiv 1904.13000).
      Momentum: Dong et al., 2018 (arXiv 1710.06081).
    """
    problem = prepare("pgd", logits_fn, inputs, labels, key, targets, mask, criterion, bounds)
    return _climb(problem, epsilon, step_size, num_steps, norm, loss, momentum, random_start, num_restarts, start)


@refuses_old_calls
def bim(
    logits_fn: LogitsFn,
    inputs: Float[Array, "B ..."],
    labels: Int[Array, " B"],
    *,
    key: Key[Array, "..."] | None = None,
    targets: Int[Array, " B"] | None = None,
    epsilon: PerValue | None = None,
    step_size: PerValue | None = None,
    num_steps: int = 10,
    norm: str = "linf",
    loss: str = "cross_entropy",
    mask: Bool[Array, "..."] | None = None,
    criterion: Criterion | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """The basic iterative method, also called iterative FGSM: `pgd` from the image itself.

    Its arguments and its result are those of `pgd`.

    Reference:
      Kurakin et al., Adversarial Examples in the Physical World, 2017 (arXiv 1607.02533).

    Departures from the paper:
      The best of all iterates is returned, not the last.
    """
    problem = prepare("bim", logits_fn, inputs, labels, key, targets, mask, criterion, bounds)
    return _climb(problem, epsilon, step_size, num_steps, norm, loss)


@refuses_old_calls
def mim(
    logits_fn: LogitsFn,
    inputs: Float[Array, "B ..."],
    labels: Int[Array, " B"],
    *,
    key: Key[Array, "..."] | None = None,
    targets: Int[Array, " B"] | None = None,
    epsilon: PerValue | None = None,
    step_size: PerValue | None = None,
    num_steps: int = 10,
    norm: str = "linf",
    loss: str = "cross_entropy",
    momentum: float | Float[Array, ""] = 1.0,
    mask: Bool[Array, "..."] | None = None,
    criterion: Criterion | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """The momentum iterative method: `pgd` from the image itself along a decaying sum of its gradients.

    Its arguments and its result are those of `pgd`; the step size of the paper is `epsilon / num_steps`.

    Reference:
      Dong et al., Boosting Adversarial Attacks with Momentum, 2018 (arXiv 1710.06081).

    Departures from the paper:
      The best of all iterates is returned, not the last.
    """
    problem = prepare("mim", logits_fn, inputs, labels, key, targets, mask, criterion, bounds)
    return _climb(problem, epsilon, step_size, num_steps, norm, loss, momentum)


def _climb(
    problem: Problem,
    epsilon: PerValue | None,
    step_size: PerValue | None,
    num_steps: int,
    norm: str,
    loss: str,
    momentum: float | Float[Array, ""] = 0.0,
    random_start: bool = False,
    num_restarts: int = 1,
    start: Float[Array, "B ..."] | None = None,
) -> AttackResult:
    """The search of `pgd`."""
    check_choice("norm", norm, NORMS)
    check_choice("loss", loss, LOSSES)
    check_number("momentum", momentum, least=0.0)
    check_whole_number("num_steps", num_steps, least=1)
    check_whole_number("num_restarts", num_restarts, least=1)
    if num_restarts > 1 and not random_start:
        raise ValueError(f"{num_restarts} restarts without a random start would all be the same")
    examples, clean = problem.examples, problem.clean
    keys = problem.keys if random_start else None
    if random_start and keys is None:
        raise TypeError("pgd with a random start needs a key as jax.random.key makes it, got none")
    radius = problem.share_of_range("epsilon", epsilon, _EPSILON)
    length = _PATH / num_steps * radius
    if step_size is not None:
        length = problem.share_of_range("step_size", step_size, 0.0)
    if norm != "linf":
        # One number for each example: the default radius has one for each value.
        radius, length = (jnp.max(each, axis=tuple(range(1, each.ndim)), keepdims=True) for each in (radius, length))
    # Traced settings may be anything.
    decay = positive(jnp.asarray(momentum, clean.dtype))

    def keep_better(best: _Best, inputs: Array, logits: Array, distance: Array) -> _Best:
        distance = jnp.where(jnp.isnan(distance), jnp.inf, distance)
        new = _Best(inputs, logits, examples.is_adversarial(logits), distance)
        # At equality the later one, so that the first iterate is kept even if its loss means nothing.
        better = (new.success & ~best.success) | ((new.success == best.success) & (distance <= best.distance))
        return select(better, new, best)

    def step(_: Array, carry: tuple[Array, Array, _Best, Array]) -> tuple[Array, Array, _Best, Array]:
        current, velocity, best, zero_gradients = carry
        logits, distance, gradient = examples.objective_and_gradient(problem.logits_fn, current, loss)
        best = keep_better(best, current, logits, distance)
        slope = unit(-gradient, 1)
        velocity = decay * velocity + slope
        # A momentum above 1 may run out of range.
        velocity = jnp.where(jnp.isfinite(velocity), velocity, slope)
        moved = current + length * _steepest(velocity, current, problem, norm)
        return _restrict(moved, problem, radius, norm), velocity, best, zero_gradients + is_dead(gradient)

    def restart(number: Array, carry: tuple[_Best, Array]) -> tuple[_Best, Array]:
        begin = clean
        if keys is not None:
            begin = problem.clip(clean + radius * _uniform_in_ball(keys, number, clean, norm))
        if start is not None:
            given = _restrict(jnp.asarray(start, clean.dtype), problem, radius, norm)
            begin = jnp.where(jnp.asarray(number) == 0, given, begin)
        last, _, best, zero_gradients = lax.fori_loop(0, num_steps, step, (begin, jnp.zeros_like(clean), *carry))
        logits = problem.logits_fn(last)
        return keep_better(best, last, logits, examples.objective(logits, loss)), zero_gradients

    # Every carry is derived from the inputs, so that it has their sharding.
    logits = jnp.zeros_like(clean, shape=(clean.shape[0], problem.num_classes))
    worst = _Best(clean, logits, problem.zeros > 0, problem.blank + jnp.inf)
    best, zero_gradients = lax.fori_loop(0, num_restarts, restart, (worst, problem.zeros))
    count = problem.zeros + num_restarts * num_steps
    return problem.result(
        best.inputs,
        best.logits,
        success=best.success,
        steps=count,
        queries=count + num_restarts,
        zero_gradients=zero_gradients,
    )


def _steepest(slope: Array, current: Array, problem: Problem, norm: str) -> Array:
    """The direction of norm 1 along which the loss rises most; zero where the slope is."""
    if norm == "linf":
        return jnp.sign(slope)
    if norm == "l2":
        return unit(slope)
    can_move = jnp.where(slope > 0, current < problem.high, current > problem.low)
    size = jnp.where(can_move, jnp.abs(slope), 0.0).reshape(slope.shape[0], -1)
    # One value alone would be steepest, and slow in many dimensions.
    least = lax.top_k(size, max(1, int(_L1_SHARE * size.shape[1])))[0][:, -1:]
    chosen = ((size >= least) & (size > 0)).astype(slope.dtype)
    share = chosen / jnp.maximum(jnp.sum(chosen, axis=1, keepdims=True), 1.0)
    return jnp.sign(slope) * share.reshape(slope.shape)


def _restrict(moved: Array, problem: Problem, radius: Array, norm: str) -> Array:
    """The closest point of the ball, then of the box."""
    # optax.projections has both balls, too. With a radius of 0 they give NaN, that of L1 for any change and that of L2
    # for no change; and that of L1 mixes integers with floats, which strict promotion refuses.
    clean = problem.clean
    if norm == "linf":
        return problem.clip(jnp.clip(moved, clean - radius, clean + radius))
    change = moved - clean
    if norm == "l2":
        size = norm_of(change).reshape(radius.shape)
        return problem.clip(clean + change * jnp.where(size > radius, radius / jnp.where(size > 0, size, 1.0), 1.0))
    # All magnitudes shrink by the same amount t. What is left is at least (the sum of the k largest) - k t for every k,
    # and exactly that for the right k. So the largest t that some k asks for is the right one.
    largest = jnp.sort(jnp.abs(change).reshape(change.shape[0], -1), axis=1, descending=True)
    excess = jnp.cumsum(largest, axis=1) - radius.reshape(-1, 1)
    amount = jnp.max(excess / jnp.arange(1, largest.shape[1] + 1, dtype=change.dtype)[None, :], axis=1)
    shrunk = jnp.maximum(jnp.abs(change) - jnp.maximum(amount, 0.0).reshape(radius.shape), 0.0)
    return problem.clip(clean + jnp.sign(change) * shrunk)


def _uniform_in_ball(keys: Array, number: Array, inputs: Array, norm: str) -> Array:
    """A point of the unit ball for each input, from its own key and the number of the restart."""
    shape, dtype, size = inputs.shape[1:], inputs.dtype, math.prod(inputs.shape[1:])

    def draw(key: Array) -> Array:
        key = jax.random.fold_in(key, number)
        if norm == "linf":
            return jax.random.uniform(key, shape, dtype, -1.0, 1.0)
        # A point on a sphere, without a few of its coordinates, is uniform inside the ball: without two in the L2 norm,
        # without one in the L1 norm.
        if norm == "l2":
            point = jax.random.normal(key, (size + 2,), dtype)
            return (point[:size] / jnp.sqrt(jnp.sum(point**2))).reshape(shape)
        point = jax.random.laplace(key, (size + 1,), dtype)
        return (point[:size] / jnp.sum(jnp.abs(point))).reshape(shape)

    return jax.vmap(draw)(keys)


_OF_PGD = {"num_steps": 10}

ATTACKS = (
    declare(pgd, norm=NORMS, kind="budget", targets="optional", random=True, access="gradient", example=_OF_PGD),
    declare(bim, norm=NORMS, kind="budget", targets="optional", random=False, access="gradient"),
    declare(mim, norm=NORMS, kind="budget", targets="optional", random=False, access="gradient"),
)
