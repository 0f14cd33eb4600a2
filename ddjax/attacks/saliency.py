"""JSMA, the Jacobian-based saliency map attack: it changes the most salient pair of features again and again."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from ddjax import jacobian
from ddjax.attacks import loops
from ddjax.attacks.contract import AttackResult, declare, refuses_old_calls
from ddjax.attacks.examples import Criterion, Examples, is_dead
from ddjax.attacks.precision import times_power_of_two
from ddjax.attacks.problem import Bounds, prepare
from ddjax.checks import check_choice, check_number, known_values
from ddjax.classifier import LogitsFn

SCORE_SPACES = ("probs", "logits", "tempered")
# The weights c of the bounds in the pair search, beside those that fit the example.
_GRID = (0.25, 0.5, 1.0, 2.0, 4.0)
# A few units in the last place of float32, so that rounding never makes a bound too low.
_ROUNDING = 1e-6
# A feature with less room than this share of the range counts as being at the bound.
_LEAST_ROOM = 0.01
# So many rows of the table of pairs are computed at a time, and fewer where they have more than so many entries: with
# tables that leave the cache, the search took longer than D log D.
_ROWS, _ENTRIES = 8, 8192


class _State(NamedTuple):
    """One entry for each example."""

    examples: Examples
    inputs: Float[Array, "B ..."]
    unused: Bool[Array, "B D"]
    logits: Float[Array, "B K"]
    steps: Int[Array, " B"]
    zero_gradients: Int[Array, " B"]
    live: Bool[Array, " B"]


class _Search(NamedTuple):
    """The search for a pair, one entry for each example. `bound` limits the scores of a feature's pairs."""

    u: Float[Array, "B D"]
    v: Float[Array, "B D"]
    scaled_u: Float[Array, "B D"]
    scaled_v: Float[Array, "B D"]
    unused: Bool[Array, "B D"]
    bound: Float[Array, "B D"]
    best: Float[Array, " B"]
    first: Int[Array, " B"]
    second: Int[Array, " B"]


@refuses_old_calls
def jsma(
    logits_fn: LogitsFn,
    inputs: Float[Array, "B ..."],
    labels: Int[Array, " B"],
    *,
    key: Key[Array, "..."] | None = None,
    targets: Int[Array, " B"] | None = None,
    theta: float | Float[Array, ""] | None = None,
    gamma: float | Float[Array, ""] = 1 / 7,
    score_space: str = "probs",
    temperature: float | Float[Array, ""] = 1.0,
    mask: Bool[Array, "..."] | None = None,
    criterion: Criterion | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """Moves the most salient pair of features by theta until the target class is reached or the budget is spent.

    With phi the outputs of the score space, alpha and beta of a pair are the sums over its two features of the
    derivative of phi_target and of the other outputs. For theta > 0 a pair counts if alpha > 0 > beta, for theta < 0 if
    alpha < 0 < beta. The pair with the largest -alpha beta is changed; ties go to the first pair in row-major order.
    Each feature changes once. Features that are nearly at the bound, with room for neither theta nor a hundredth of the
    range, are never chosen. Each of the D values of an input is a feature. An example fails where no pair counts.

    The arguments that all attacks have are described in `ddjax.attacks.contract`.

    Args:
      targets: required: there is no untargeted form.
      theta: the change of a feature, not 0, in the units of the inputs; may be traced. None takes the whole range.
      gamma: the largest share of the features that may change, at least one pair and at most 1; may be traced. 1/7 of
        784 is the paper's 112.
      score_space: what is differentiated. `"probs"`, the softmax at temperature 1, as the distillation paper evaluated;
        `"logits"`; or `"tempered"`, the softmax of the logits divided by `temperature`, which undoes the saturation of
        a distilled network.
      temperature: for the score space `"tempered"`; may be traced.
      criterion: as in the contract; where it is reached, the search stops.

    Returns:
      For each example the input at which it stopped. `steps` counts the pairs changed.

    Raises:
      TypeError: as in the contract.
      ValueError: as in the contract; for missing targets, theta 0, a gamma of less than a pair, or a temperature that
        is not 1 without `"tempered"`.

    Reference:
      Papernot et al., The Limitations of Deep Learning in Adversarial Settings, 2016 (arXiv 1511.07528); the
      sums over pairs as in Carlini and Wagner, 2017 (arXiv 1608.04644).

    Departures from the paper:
      A feature leaves the search when it has been changed, not when it has saturated; with a theta of the whole range
      that is the same.
      Features that are nearly at the bound are left out, as torchattacks does, not only those exactly at it: the
      strokes of MNIST are mostly 253 and 254 of 255, and moving those spends the budget on nothing.
    """
    if targets is None:
        raise ValueError("jsma needs targets: it has no untargeted form")
    problem = prepare("jsma", logits_fn, inputs, labels, key, targets, mask, criterion, bounds)
    clean, zeros = problem.clean, problem.zeros
    flat = clean.reshape(clean.shape[0], -1)
    num_features = flat.shape[1]
    _check_settings(theta, gamma, score_space, temperature, num_features)
    direction = jnp.sign(jnp.asarray(1.0 if theta is None else theta, clean.dtype))
    if theta is None:
        step_size = problem.share_of_range("theta", None, 1.0)[:1]
    else:
        step_size = jnp.asarray(theta, clean.dtype).reshape((1,) * clean.ndim)
    # The small constant keeps a share like 112 / 784 from losing a pair to rounding.
    max_pairs = jnp.floor(jnp.asarray(gamma, jnp.float32) * (num_features / 2) + 1e-3).astype(jnp.int32)

    def step(state: _State) -> _State:
        logits, target_slope, others_slope = _slopes(
            problem.logits_fn, state.inputs, state.examples.targets, score_space, temperature
        )
        may_go_on = state.live & ~state.examples.is_adversarial(logits) & (state.steps < max_pairs)
        u = direction * target_slope
        # No time is spent on the pairs of finished examples.
        candidates = state.unused & may_go_on[:, None]
        if score_space == "logits":
            first, second, found = most_salient_pair(u, -direction * others_slope, candidates)
        else:
            first, second, found = most_salient_feature_pair(u, candidates)
        go_on = may_go_on & found
        feature = jnp.arange(num_features, dtype=jnp.int32)[None, :]
        chosen = ((feature == first[:, None]) | (feature == second[:, None])) & go_on[:, None]
        moved = jnp.clip(state.inputs + step_size, problem.low, problem.high)
        return state._replace(
            inputs=jnp.where(chosen.reshape(moved.shape), moved, state.inputs),
            unused=state.unused & ~chosen,
            logits=logits,
            steps=state.steps + go_on.astype(jnp.int32),
            zero_gradients=state.zero_gradients + is_dead(target_slope),
            live=go_on,
        )

    room = jnp.where(step_size > 0, problem.high - clean, clean - problem.low)
    least_room = jnp.abs(step_size)
    if problem.is_bounded:
        least_room = jnp.minimum(least_room, _LEAST_ROOM * problem.width)
    is_free = (room >= least_room) & (room > 0)
    if problem.examples.mask is not None:
        is_free = is_free & problem.examples.mask
    # Every carry is derived from the inputs, so that it has their sharding.
    start = _State(
        # Without what a step does not read: each array of the state is sorted and written back with the examples.
        examples=dataclasses.replace(problem.examples, clean=None, mask=None),
        inputs=clean,
        unused=is_free.reshape(flat.shape),
        logits=jnp.zeros_like(flat, shape=(flat.shape[0], problem.num_classes)),
        steps=zeros,
        zero_gradients=zeros,
        live=zeros == 0,
    )
    end = loops.while_live(step, lambda state: state.live, start, lanes=loops.lanes(clean))
    # Two sums in the space of logits are two backward passes. The last pass tells that there is nothing left to change.
    backward, passes = 2 if score_space == "logits" else 1, end.steps + 1
    return problem.result(
        end.inputs,
        end.logits,
        steps=end.steps,
        gradients=passes * backward,
        queries=passes,
        zero_gradients=end.zero_gradients * backward,
    )


def _check_settings(theta: object, gamma: object, score_space: str, temperature: object, num_features: int) -> None:
    check_choice("score space", score_space, SCORE_SPACES)
    if theta is not None:
        check_number("theta", theta)
        if known_values(theta) == 0:
            raise ValueError("theta must not be 0: it is the change of a feature")
    check_number("gamma", gamma, least=0.0, most=1.0)
    share = known_values(gamma)
    if share is not None and share * num_features < 2 - 1e-3:
        raise ValueError(
            f"gamma={float(share):g} of {num_features} features is less than the one pair that jsma changes at a time; "
            f"gamma must be at least {2 / num_features:.3g}"
        )
    check_number("temperature", temperature, above=0.0)
    if score_space != "tempered" and known_values(temperature) not in (None, 1):
        raise ValueError(
            f"the score space {score_space!r} has no temperature; temperature={temperature} needs 'tempered'"
        )


def _slopes(
    logits_fn: LogitsFn, inputs: Array, targets: Array, score_space: str, temperature: float | Array
) -> tuple[Array, Array, Array]:
    """The logits, and the derivatives of the target's output and of the sum of the others, each `[B, D]`.

    Two cotangents give both sums, whatever the number of classes; probabilities, which sum to one, need a single one.
    """
    logits, vjp_fn = jax.vjp(logits_fn, inputs)
    is_target = (jnp.arange(logits.shape[1], dtype=jnp.int32)[None, :] == targets[:, None]).astype(logits.dtype)
    if score_space == "logits":
        slopes = jacobian.pull_back(vjp_fn, jnp.stack([is_target, jnp.ones_like(is_target)]))
        target_slope, total_slope = slopes.reshape(2, inputs.shape[0], -1)
        return logits, target_slope, total_slope - target_slope
    divisor = jnp.asarray(temperature if score_space == "tempered" else 1.0, logits.dtype)
    _, softmax_vjp = jax.vjp(lambda z: jax.nn.softmax(z / divisor), logits)
    target_slope = vjp_fn(softmax_vjp(is_target)[0])[0].reshape(inputs.shape[0], -1)
    return logits, target_slope, -target_slope


def most_salient_feature_pair(
    u: Float[Array, "B D"], unused: Bool[Array, "B D"]
) -> tuple[Int[Array, " B"], Int[Array, " B"], Bool[Array, " B"]]:
    """`most_salient_pair` where u and v are equal, as in probabilities: the two largest."""
    u = jnp.where(unused & jnp.isfinite(u), u, -jnp.inf)
    largest, first = _first_largest(u)
    is_first = jnp.arange(u.shape[1], dtype=jnp.int32)[None, :] == first[:, None]
    next_largest, second = _first_largest(jnp.where(is_first, -jnp.inf, u))
    # Where a single feature is left, its partner is minus infinity and so is the sum.
    return jnp.minimum(first, second), jnp.maximum(first, second), largest + next_largest > 0


def most_salient_pair(
    u: Float[Array, "B D"], v: Float[Array, "B D"], unused: Bool[Array, "B D"]
) -> tuple[Int[Array, " B"], Int[Array, " B"], Bool[Array, " B"]]:
    """Finds the pair p < q of unused features with the largest (u_p + u_q)(v_p + v_q), both sums positive.

    The search is exact, by branch and bound, and needs neither the D x D table nor a sort. For positive sums U and V
    and any c > 0, U V <= ((c U + V / c) / 2)^2. With s = c u + v / c, a pair that contains p therefore scores at most
    ((s_p + max s) / 2)^2, and p is bounded by the least of these over a few c. Rows of the table are computed from the
    highest bound downwards until no bound reaches the best score: two or three of 784 for most examples, tens for a few
    and in the worst case all. Examples that are done leave the batch.

    Args:
      u: sign(theta) times the derivative of the target's output.
      v: -sign(theta) times the derivative of the sum of the other outputs.
      unused: the features that may be chosen.

    Returns:
      The two features, first < second, and whether there is a pair; where there is none the features mean nothing.
      Of pairs with equal float32 scores, the one that comes first in row-major order.
    """
    num_features = u.shape[1]
    num_rows = max(1, min(_ROWS, num_features, _ENTRIES // num_features))
    unused = unused & jnp.isfinite(u) & jnp.isfinite(v)
    # Products of two slopes underflow where distilled networks live. Powers of two change no comparison; whether a sum
    # is positive is asked of the unscaled values.
    scaled_u, scaled_v = _scale(u, unused), _scale(v, unused)
    bound = jnp.full_like(u, jnp.inf)
    for c in _balances(scaled_u, scaled_v, unused):
        from_u, from_v = c * scaled_u, scaled_v / c
        reach = jnp.where(unused, from_u + from_v, -jnp.inf)
        magnitude = jnp.where(unused, jnp.abs(from_u) + jnp.abs(from_v), 0.0)
        highest, largest = (jnp.max(values, axis=1, keepdims=True) for values in (reach, magnitude))
        bound = jnp.minimum(bound, reach + highest + _ROUNDING * (magnitude + largest))
    # Where the bound of a sum is not positive there is no pair; NaN, from no unused feature at all, is none either.
    bound = jnp.where(unused & (bound > 0), bound**2 / 4 * (1 + _ROUNDING), -1.0)

    def look(state: _Search) -> _Search:
        height, rows = lax.top_k(state.bound, num_rows)
        u, v, scaled_u, scaled_v = (
            values[:, None, :] + jnp.take_along_axis(values, rows, axis=1)[:, :, None]
            for values in (state.u, state.v, state.scaled_u, state.scaled_v)
        )
        is_row = jnp.arange(num_features, dtype=jnp.int32)[None, None, :] == rows[:, :, None]
        counts = (u > 0) & (v > 0) & state.unused[:, None, :] & ~is_row & (height >= 0)[:, :, None]
        score, partner = _first_largest(jnp.where(counts, scaled_u * scaled_v, -1.0))
        # Against the best pair so far; of equal ones the earliest.
        pairs = (score, jnp.minimum(rows, partner), jnp.maximum(rows, partner))
        so_far = (state.best, state.first, state.second)
        score, low, high = (jnp.column_stack(columns) for columns in zip(pairs, so_far, strict=True))
        best = jnp.max(score, axis=1)
        first = jnp.min(jnp.where(score == best[:, None], low, num_features), axis=1)
        is_first = (score == best[:, None]) & (low == first[:, None])
        # What cannot reach the best score is out; what equals it may come earlier and stays.
        still = (state.bound >= best[:, None]) & ~jnp.any(is_row, axis=1)
        return state._replace(
            bound=jnp.where(still, state.bound, -1.0),
            best=best,
            first=first,
            second=jnp.min(jnp.where(is_first, high, num_features), axis=1),
        )

    none = jnp.zeros_like(u[:, 0], jnp.int32)
    start = _Search(u, v, scaled_u, scaled_v, unused, bound, jnp.full_like(u[:, 0], -1.0), none, none)
    # Most examples are done at once, and a few take long.
    end = loops.while_live(look, lambda state: jnp.any(state.bound >= 0, axis=1), start, smallest=2)
    return end.first, end.second, end.best >= 0


def _balances(u: Array, v: Array, unused: Array) -> list[Array]:
    """Weights c for the bounds, each `[B, 1]`: a coarse grid, and two that fit the example.

    Where u and v oppose each other, only the c that cancels their common part prunes: the one of a regression of v on
    u.
    """
    uu, vv, uv = (jnp.sum(jnp.where(unused, x * y, 0.0), axis=1) for x, y in ((u, u), (v, v), (u, v)))
    ratio = jnp.where((uu > 0) & (vv > 0), vv / jnp.where(uu > 0, uu, 1.0), 1.0)
    opposed = jnp.where((uv < 0) & (uu > 0), -uv / jnp.where(uu > 0, uu, 1.0), 1.0)
    fitted = [jnp.clip(c, 2**-20, 2**20)[:, None] for c in (ratio**0.25, opposed**0.5)]
    return [jnp.full_like(fitted[0], c) for c in _GRID] + fitted


def _first_largest(values: Array) -> tuple[Array, Array]:
    """The largest value of the last axis, and where it is first.

    On CPU, two reductions of single values take a quarter of the time of `argmax`, which reduces pairs.
    """
    largest = jnp.max(values, axis=-1)
    index = lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)
    # NaN is nowhere; the position is one in any case.
    return largest, jnp.min(jnp.where(values == largest[..., None], index, values.shape[-1] - 1), axis=-1)


def _scale(values: Array, unused: Array) -> Array:
    """Multiplies each example by the power of two that brings its largest unused magnitude to between 1/2 and 1."""
    _, exponent = jnp.frexp(jnp.max(jnp.where(unused, jnp.abs(values), 0.0), axis=1))
    return times_power_of_two(values, -exponent)


ATTACKS = (
    declare(
        jsma,
        norm="l0",
        kind="fixed",
        targets="required",
        random=False,
        access="gradient",
        refills=True,
        example={"gamma": 0.5},
    ),
)
