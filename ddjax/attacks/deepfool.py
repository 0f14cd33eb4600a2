"""DeepFool: to the nearest boundary of the linearised classifier, again and again."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from ddjax import jacobian, layers
from ddjax.attacks import base
from ddjax.classifier import LogitsFn

NORMS = ("l2", "linf")


class _State(NamedTuple):
    """One entry for each example."""

    clean: Float[Array, "B H W C"]
    images: Float[Array, "B H W C"]
    change: Float[Array, "B H W C"]
    labels: Int[Array, " B"]
    candidates: Int[Array, "B N"]
    steps: Int[Array, " B"]
    found: Bool[Array, " B"]
    live: Bool[Array, " B"]


def deepfool(
    logits_fn: LogitsFn,
    images: Float[Array, "B H W C"],
    labels: Int[Array, " B"],
    key: Key[Array, "..."] | None = None,
    *,
    targets: Int[Array, " B"] | None = None,
    norm: str = "l2",
    num_candidates: int = 10,
    num_steps: int = 50,
    overshoot: float | Float[Array, ""] = 0.02,
    score_space: str = "logits",
    bounds: base.Bounds = (0.0, 1.0),
) -> base.AttackResult:
    """Goes to the nearest boundary of the linearised classifier until the decision changes.

    With s the scores, f_j = s_j - s_label and w_j its gradient at the current point, the boundary of class j is
    |f_j| / |w_j| away, in the norm dual to the attack's. The step to the nearest of them is added to the change r, and
    the next point is the image plus (1 + overshoot) r, clipped to the box. Where every w_j is zero, or so small that
    the step is not finite, the example has failed.

    Args:
      logits_fn: a classifier.
      images: within `bounds`.
      labels: the true classes.
      key: unused; the attack is deterministic.
      targets: must be None: there is no targeted form.
      norm: `"l2"` or `"linf"`, what is kept small.
      num_candidates: the number of classes other than the label whose boundaries are considered, those with the largest
        logits of the clean image; 0 for all. Each costs a backward pass a step.
      num_steps: the most steps.
      overshoot: at least 0; may be traced.
      score_space: what is differentiated: `"logits"`, or `"probs"`, the softmax at temperature 1, whose gradients are
        zero on a saturated, such as a distilled, network (`classifier.at_temperature` revives them).
      bounds: the least and the greatest value of a pixel, or of each channel.

    Returns:
      The first adversarial image on each path, and the clean image where there was none or where it is adversarial
      itself.

    Raises:
      ValueError: for bad images, labels or bounds (see `base.check_arguments`), targets, an unknown norm or score
        space, a negative number of candidates, less than one step, an overshoot that is negative or not finite.

    Reference:
      Moosavi-Dezfooli et al., DeepFool: a Simple and Accurate Method to Fool Deep Neural Networks, 2016 (arXiv
      1511.04599). On distilled networks: Carlini and Wagner, 2017 (arXiv 1608.04644).

    Departures from the paper:
      The overshoot is part of every point, not only of the last one, and points stay in the box. Steps aim past the
      boundary by a few units of rounding.
    """
    del key
    if targets is not None:
        raise ValueError("deepfool takes no targets: it has no targeted form")
    base.check_arguments(logits_fn, images, labels, None, bounds)
    base.check_choice("norm", norm, NORMS)
    base.check_choice("score space", score_space, jacobian.SPACES)
    base.check_number("num_candidates", num_candidates, least=0.0)
    base.check_number("num_steps", num_steps, least=1.0)
    base.check_number("overshoot", overshoot, least=0.0)
    candidates = _candidates(logits_fn, images, labels, num_candidates)
    low, high = base.box(bounds, images)
    stretch = 1 + jnp.asarray(overshoot, images.dtype)

    def step(state: _State) -> _State:
        logits, offsets, slopes = _linearise(logits_fn, state, score_space)
        reached = base.reached(logits, state.labels, None)
        # What was wrong from the beginning needs no margin: nothing was sought.
        reached = reached | ((state.steps == 0) & base.is_adversarial(logits, state.labels, None))
        moved = state.change + _nearest(offsets, slopes, norm)
        images = jnp.clip(state.clean + stretch * moved, low, high)
        # What is not finite fails, and so does a zero step: it would be repeated for ever.
        usable = jnp.all(jnp.isfinite(images) & jnp.isfinite(moved), axis=(1, 2, 3))
        usable = usable & jnp.any(moved != state.change, axis=(1, 2, 3))
        go_on = state.live & ~reached & usable & (state.steps < num_steps)
        chosen = go_on[:, None, None, None]
        return state._replace(
            images=jnp.where(chosen, images, state.images),
            change=jnp.where(chosen, moved, state.change),
            steps=state.steps + go_on.astype(jnp.int32),
            found=state.found | (state.live & reached),
            live=go_on,
        )

    # Every carry is derived from the inputs, so that it has their sharding.
    zeros = jnp.zeros_like(labels, jnp.int32)
    start = _State(
        clean=images,
        images=images,
        change=jnp.zeros_like(images),
        labels=labels,
        candidates=candidates,
        steps=zeros,
        found=zeros != 0,
        live=zeros == 0,
    )
    end = base.while_live(step, lambda state: state.live, start, lanes=base.lanes(images))
    return base.finish(
        logits_fn,
        images,
        jnp.where(end.found[:, None, None, None], end.images, images),
        labels,
        None,
        steps=end.steps,
        # The last point is linearised too, before it is known to be the last.
        gradients=(end.steps + 1) * candidates.shape[1],
    )


def _candidates(logits_fn: LogitsFn, images: Array, labels: Array, count: int) -> Array:
    """The classes whose boundaries are considered, `[B, N]`; never the label."""
    num_classes = jax.eval_shape(logits_fn, images).shape[1]
    others = num_classes - 1
    labels = labels.astype(jnp.int32)[:, None]
    if count in (0, others) or count > others:
        return (labels + 1 + jnp.arange(others)[None, :]) % num_classes
    logits = layers.in_parts(logits_fn, images)
    return lax.top_k(jnp.where(jnp.arange(num_classes)[None, :] == labels, -jnp.inf, logits), count)[1]


def _linearise(logits_fn: LogitsFn, state: _State, score_space: str) -> tuple[Array, Array, Array]:
    """The logits, how far the scores are from each boundary `[N, B]`, and the gradients there `[N, B, H, W, C]`."""
    logits, vjp_fn = jax.vjp(logits_fn, state.images)
    if score_space == "logits":
        scores, back = logits, vjp_fn
    else:
        scores, softmax_vjp = jax.vjp(jax.nn.softmax, logits)
        back = lambda cotangent: vjp_fn(softmax_vjp(cotangent)[0])
    classes = jnp.arange(logits.shape[1])
    own = (classes[None, :] == state.labels[:, None]).astype(scores.dtype)
    other = (classes[None, None, :] == state.candidates.T[:, :, None]).astype(scores.dtype)
    # The difference itself is pulled back: one backward pass a candidate, and nothing cancels afterwards.
    slopes = jacobian.pull_back(back, other - own[None])
    pick = lambda classes: jnp.take_along_axis(scores, classes, axis=1)
    distance = jnp.abs(pick(state.candidates) - pick(state.labels[:, None]))
    # Past the boundary by more than rounding, for what is only on it is no decision.
    offsets = distance + 2 * base.required_margin(scores)[:, None]
    return logits, offsets.T.astype(slopes.dtype), slopes


def _nearest(offsets: Array, slopes: Array, norm: str) -> Array:
    """The step to the nearest of the boundaries; zero where there is none."""
    # By the largest first: squares of what a saturated network returns leave the range of float32.
    largest = jnp.max(jnp.abs(slopes), axis=(2, 3, 4))
    unit = slopes / jnp.where(largest > 0, largest, 1.0)[:, :, None, None, None]
    dual = jax.vmap(lambda one: base.norm(one, 2 if norm == "l2" else 1))(unit)
    length = offsets / largest / jnp.where(dual > 0, dual, 1.0)
    length = jnp.where((largest > 0) & jnp.isfinite(length) & jnp.isfinite(dual), length, jnp.inf)
    nearest = jnp.argmin(length, axis=0)[None]
    length, dual = (jnp.take_along_axis(values, nearest, axis=0)[0, :, None, None, None] for values in (length, dual))
    unit = jnp.take_along_axis(unit, nearest[:, :, None, None, None], axis=0)[0]
    direction = unit / jnp.maximum(dual, 1.0) if norm == "l2" else jnp.sign(unit)
    return jnp.where(jnp.isfinite(length), length * direction, 0.0)
