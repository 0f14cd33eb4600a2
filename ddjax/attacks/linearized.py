"""DeepFool: repeated steps to the nearest decision boundary of the linearized classifier."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from ddjax import jacobian, layers
from ddjax.attacks import loops
from ddjax.attacks.contract import AttackResult, declare, refuses_old_calls
from ddjax.attacks.examples import Criterion, Examples, all_of
from ddjax.attacks.examples import norm as norm_of
from ddjax.attacks.problem import Bounds, Problem, prepare
from ddjax.checks import check_choice, check_number, check_whole_number
from ddjax.classifier import LogitsFn

NORMS = ("l2", "linf")


class _State(NamedTuple):
    """One entry for each example."""

    examples: Examples
    inputs: Float[Array, "B ..."]
    change: Float[Array, "B ..."]
    candidates: Int[Array, "B N"]
    steps: Int[Array, " B"]
    zero_gradients: Int[Array, " B"]
    live: Bool[Array, " B"]


@refuses_old_calls
def deepfool(
    logits_fn: LogitsFn,
    inputs: Float[Array, "B ..."],
    labels: Int[Array, " B"],
    *,
    key: Key[Array, "..."] | None = None,
    targets: Int[Array, " B"] | None = None,
    norm: str = "l2",
    num_candidates: int | None = 10,
    num_steps: int = 50,
    overshoot: float | Float[Array, ""] = 0.02,
    score_space: str = "logits",
    mask: Bool[Array, "..."] | None = None,
    criterion: Criterion | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """Steps to the nearest boundary of the linearized classifier until the decision changes.

    With scores s, f_j = s_j - s_label, and w_j its gradient at the current point, the boundary of class j is
    |f_j| / |w_j| away, in the norm dual to the attack's. The step to the nearest boundary is added to the change r. The
    next point is the input plus (1 + overshoot) r, clipped to the box. An example fails where every w_j is zero, or so
    small that the step is not finite.

    The arguments that all attacks have are described in `ddjax.attacks.contract`.

    Args:
      targets: must be None: there is no targeted form.
      norm: `"l2"` or `"linf"`, what is kept small.
      num_candidates: the number of classes other than the label whose boundaries are considered, those with the largest
        logits of the clean input; None for all. Each costs a backward pass a step.
      num_steps: the most steps.
      overshoot: at least 0; may be traced.
      score_space: what is differentiated: `"logits"`, or `"probs"`, the softmax at temperature 1, whose gradients are
        zero on a saturated network, such as a distilled one (`classifier.at_temperature` brings them back).
      criterion: as in the contract; its zero is the only boundary.

    Returns:
      The first adversarial input on each path; the clean input where there was none or where it is adversarial itself.

    Reference:
      Moosavi-Dezfooli et al., DeepFool: a Simple and Accurate Method to Fool Deep Neural Networks, 2016 (arXiv
      1511.04599). On distilled networks: Carlini and Wagner, 2017 (arXiv 1608.04644).

    Departures from the paper:
      The overshoot is part of every point, not only of the last one, and points stay in the box. Steps aim past the
      boundary by a few units of rounding.
    """
    if targets is not None:
        raise ValueError("deepfool takes no targets: it has no targeted form")
    check_choice("norm", norm, NORMS)
    check_choice("score space", score_space, jacobian.SPACES)
    if num_candidates is not None:
        check_whole_number("num_candidates", num_candidates, least=1)
    check_whole_number("num_steps", num_steps, least=1)
    check_number("overshoot", overshoot, least=0.0)
    problem = prepare("deepfool", logits_fn, inputs, labels, key, None, mask, criterion, bounds)
    candidates, zeros = _candidates(problem, num_candidates), problem.zeros
    stretch = 1 + jnp.asarray(overshoot, problem.clean.dtype)

    def step(state: _State) -> _State:
        clean = state.examples.clean
        logits, offsets, slopes = _linearize(problem.logits_fn, state, score_space)
        reached = state.examples.reached(logits)
        # A clean input that is adversarial needs no margin: nothing was searched.
        reached = reached | ((state.steps == 0) & state.examples.is_adversarial(logits))
        change = state.change + _nearest(offsets, slopes, norm)
        moved = state.examples.unmasked(jnp.clip(clean + stretch * change, problem.low, problem.high))
        # A step that is not finite fails, and so does a zero step, which would be repeated for ever.
        usable = all_of(jnp.isfinite(moved) & jnp.isfinite(change)) & ~all_of(change == state.change)
        go_on = ~reached & usable & (state.steps < num_steps)
        dead = jnp.sum(jnp.all(slopes == 0, axis=tuple(range(2, slopes.ndim))), axis=0, dtype=jnp.int32)
        return state._replace(
            # A path that fails ends at the clean input.
            inputs=loops.select(reached, state.inputs, loops.select(go_on, moved, clean)),
            change=change,
            steps=state.steps + go_on.astype(jnp.int32),
            zero_gradients=state.zero_gradients + dead,
            live=go_on,
        )

    # Every carry is derived from the inputs, so that it has their sharding.
    start = _State(
        examples=problem.examples,
        inputs=problem.clean,
        change=jnp.zeros_like(problem.clean),
        candidates=candidates,
        steps=zeros,
        zero_gradients=zeros,
        live=zeros == 0,
    )
    end = loops.while_live(step, lambda state: state.live, start, lanes=loops.lanes(problem.clean))
    # The last point is linearized too, before it is known to be the last.
    passes = end.steps + 1
    gradients = passes * candidates.shape[1]
    return problem.nearest(
        end.inputs, steps=end.steps, gradients=gradients, queries=passes, zero_gradients=end.zero_gradients
    )


def _candidates(problem: Problem, count: int | None) -> Int[Array, "B N"]:
    """The classes whose boundaries are considered; never the label."""
    labels, num_classes = problem.examples.labels[:, None], problem.num_classes
    others = num_classes - 1
    if problem.examples.criterion is not None:
        return labels
    if count is None or count >= others:
        return (labels + 1 + jnp.arange(others, dtype=jnp.int32)[None, :]) % num_classes
    logits = layers.in_parts(problem.logits_fn, problem.clean)
    return lax.top_k(jnp.where(jnp.arange(num_classes, dtype=jnp.int32)[None, :] == labels, -jnp.inf, logits), count)[1]


def _linearize(logits_fn: LogitsFn, state: _State, score_space: str) -> tuple[Array, Array, Array]:
    """The logits, how far the scores are from each boundary `[N, B]`, and the gradients there `[N, B, ...]`."""
    examples = state.examples
    logits, vjp_fn = jax.vjp(logits_fn, state.inputs)
    if score_space == "logits":
        scores, back = logits, vjp_fn
    else:
        scores, softmax_vjp = jax.vjp(jax.nn.softmax, logits)
        back = lambda cotangent: vjp_fn(softmax_vjp(cotangent)[0])
    if examples.criterion is not None:
        distance, criterion_vjp = jax.vjp(examples.objective, scores)
        slopes = back(-criterion_vjp(jnp.ones_like(distance))[0])[0][None]
        return logits, distance[None], examples.free(slopes)
    classes = jnp.arange(logits.shape[1], dtype=jnp.int32)
    own = (classes[None, :] == examples.labels[:, None]).astype(scores.dtype)
    other = (classes[None, None, :] == state.candidates.T[:, :, None]).astype(scores.dtype)
    # The difference itself is pulled back: one backward pass a candidate, and nothing cancels afterwards.
    slopes = jacobian.pull_back(back, other - own[None])
    own_score, other_scores = (
        jnp.take_along_axis(scores, classes, axis=1) for classes in (examples.labels[:, None], state.candidates)
    )
    # Past the boundary by more than rounding, because a point on it is no decision.
    offsets = jnp.abs(other_scores - own_score) + 2 * examples.rounding(own_score, other_scores)
    return logits, offsets.T, examples.free(slopes)


def _nearest(offsets: Float[Array, "N B"], slopes: Float[Array, "N B ..."], norm: str) -> Float[Array, "B ..."]:
    """The step to the nearest of the boundaries; zero where there is none."""
    axes = tuple(range(2, slopes.ndim))
    expand = lambda values: values.reshape(*values.shape, *(1,) * len(axes))
    # By the largest entry first: squares of what a saturated network returns leave the range of float32.
    largest = jnp.max(jnp.abs(slopes), axis=axes)
    unit = slopes / expand(jnp.where(largest > 0, largest, 1.0))
    dual = jax.vmap(lambda one: norm_of(one, 2 if norm == "l2" else 1))(unit)
    length = offsets / jnp.where(largest > 0, largest, 1.0) / jnp.where(dual > 0, dual, 1.0)
    length = jnp.where((largest > 0) & jnp.isfinite(length) & jnp.isfinite(dual), length, jnp.inf)
    nearest = jnp.argmin(length, axis=0)[None]
    length, dual = (expand(jnp.take_along_axis(values, nearest, axis=0)[0]) for values in (length, dual))
    unit = jnp.take_along_axis(unit, expand(nearest), axis=0)[0]
    direction = unit / jnp.maximum(dual, 1.0) if norm == "l2" else jnp.sign(unit)
    return jnp.where(jnp.isfinite(length), length, 0.0) * direction


ATTACKS = (declare(deepfool, norm=NORMS, kind="minimum", targets="no", random=False, access="gradient", refills=True),)
