"""Tests for signs of masked gradients.

Gradient attacks on a classifier with useful gradients behave in ways that can be tested. If they do not, the gradients
are masked, and a low success rate does not mean robustness. Then attack the classifier in another way: by BPDA, by
expectation over transformation, through its logits, or by transfer from another network. Green lights are no proof of
robustness.

`probe` measures a batch; the caller compiles it, maps it over batches and puts the results together. `lights` then
judges, in NumPy.

Reference:
  Athalye, Carlini and Wagner, Obfuscated Gradients Give a False Sense of Security, 2018 (arXiv 1802.00420), section
  3.1.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key
from scipy import special

from ddjax import checks, losses
from ddjax.attacks import examples, fgsm, pgd, problem
from ddjax.classifier import LogitsFn

# From the best to the worst; with "unknown" too little was measured to tell.
COLORS = ("unknown", "green", "yellow", "red")
RADII = (0.25, 0.5, 1.0, 2.0, 4.0)
# How often chance alone may turn a light red.
LEVEL = 0.05
# An attack of a limited number of steps misses an image now and then. Where up to this share of all images behaves
# oddly, a rate of success is off by no more than that, whatever the reason.
TOLERANCE = 0.01
# With fewer images even half of them could be chance.
LEAST = 20


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Probe:
    """The measurements of each image. An image is broken if the judge misclassifies its attacked version.

    All fields are arrays, `[B]` bools unless said otherwise.

    Attributes:
      correct: whether the judge is right about the clean image; the others do not count.
      one_step: broken by FGSM.
      many_steps: broken by PGD with the same radius.
      transfer: broken by PGD with the same radius on the substitute; None without a substitute.
      random: broken by random search with the same radius.
      whole_box: broken by PGD with a radius that reaches the whole box.
      by_radius: broken by PGD with each radius, ascending, `[B, R]` bools.
      zeros: the share of the gradient's values that are exactly zero or not finite, `[B]` floats.
    """

    correct: Any
    one_step: Any
    many_steps: Any
    transfer: Any
    random: Any
    whole_box: Any
    by_radius: Any
    zeros: Any


def probe(
    logits_fn: LogitsFn,
    inputs: Float[Array, "B ..."],
    labels: Int[Array, " B"],
    keys: Key[Array, " B"],
    *,
    judge: LogitsFn | None = None,
    substitute: LogitsFn | None = None,
    epsilon: float | Float[Array, ""] = 0.3,
    radii: Sequence[float] = RADII,
    num_steps: int = 40,
    num_random: int = 1000,
    mask: Bool[Array, "..."] | None = None,
    bounds: problem.Bounds = (0.0, 1.0),
) -> Probe:
    """Attacks each input in the ways whose comparison gives masked gradients away.

    All gradients are those of the cross-entropy, which saturates where a softmax does; PGD starts at random.

    Args:
      logits_fn: the classifier as attacks see it; of a random one the expectation.
      inputs: of any shape, within the bounds.
      labels: the true classes.
      keys: one for each input.
      judge: decides what is broken. Default: `logits_fn`. For a random classifier, an expectation with another key, so
        that no attack is credited with the draws it has seen; over several draws, so that few images break by
        themselves.
      substitute: another network for the same classes, whose adversarial images are tried on this one; without masking
        of its own, or they tell nothing.
      epsilon: the radius of the Linf ball, above 0, in the units of the inputs; may be traced.
      radii: two or more radii as multiples of epsilon, ascending, with 1 among them. None goes beyond the whole box.
      num_steps: of PGD, at least 2.
      num_random: the number of uniform samples of the ball within the box, at least 1. The paper takes 1e5 or more.
      mask: which values may change, booleans that broadcast against the inputs; None for all. With a mask, an input may
        be safe although there is the whole box to move in, and the light of that is no sign.
      bounds: the least and the greatest value, finite: numbers, or arrays that broadcast against one input.

    Raises:
      ValueError: for inputs or labels that no attack takes (see `attacks.prepare`), or a setting out of its range.

    Reference:
      Athalye et al., 2018 (arXiv 1802.00420), section 3.1.

    Departures from the paper:
      The share of zeros is added. Of random samples the strongest by `logits_fn` is what the judge sees, as for the
      other attacks; for a classifier that is its own judge this is whether any sample fools it.
    """
    judge = logits_fn if judge is None else judge
    for classifier in (logits_fn, judge, substitute):
        if classifier is not None:
            asked = problem.prepare("the masking check", classifier, inputs, labels, mask=mask, bounds=bounds)
    checks.check_number("epsilon", epsilon, above=0.0)
    checks.check_number("num_steps", num_steps, least=2.0)
    checks.check_number("num_random", num_random, least=1.0)
    checks.check_number("radii", np.asarray(radii, np.float64), above=0.0)
    if 1 not in radii or len(radii) < 2 or list(radii) != sorted(set(radii)):
        raise ValueError(f"radii must be two or more ascending multiples of epsilon with 1 among them, got {radii}")
    of_pgd, of_transfer, of_random = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0)

    gradient = jax.grad(lambda inputs: jnp.sum(losses.cross_entropy(logits_fn(inputs), labels)))(inputs)
    nothing = ~jnp.isfinite(gradient) | (gradient == 0)
    limits = {"mask": mask, "bounds": bounds}
    one_step = fgsm(logits_fn, inputs, labels, epsilon=epsilon, **limits).inputs

    def climb(radius: Array) -> Array:
        return pgd(logits_fn, inputs, labels, key=of_pgd, epsilon=radius, num_steps=num_steps, **limits).inputs

    # The same starts, scaled, with every radius: the comparisons are paired. One loop, so that PGD is compiled once.
    scaled, whole = (jnp.asarray(each, inputs.dtype) for each in (epsilon, jnp.max(asked.width)))
    scaled = scaled * jnp.asarray([*radii], inputs.dtype)
    climbed = lax.map(climb, jnp.append(jnp.minimum(scaled, whole), whole))
    candidates = [
        inputs,
        one_step,
        _random_search(asked, logits_fn, of_random, epsilon, num_random).astype(inputs.dtype),
    ]
    if substitute is not None:
        steps = {"epsilon": epsilon, "num_steps": num_steps}
        candidates.append(pgd(substitute, inputs, labels, key=of_transfer, **steps, **limits).inputs)
    logits = lax.map(judge, jnp.concatenate([jnp.stack(candidates), climbed]))
    broken = jax.vmap(lambda of_one: examples.is_adversarial(of_one, labels))(logits)
    by_radius = broken[len(candidates) : -1]
    return Probe(
        # With the label as the target, a success is to be right.
        correct=examples.is_adversarial(logits[0], labels, labels),
        one_step=broken[1],
        many_steps=by_radius[radii.index(1)],
        transfer=None if substitute is None else broken[3],
        random=broken[2],
        whole_box=broken[-1],
        by_radius=by_radius.T,
        zeros=jnp.mean(nothing, axis=tuple(range(1, nothing.ndim))),
    )


def _random_search(
    asked: problem.Problem, logits_fn: LogitsFn, keys: Array, epsilon: float | Array, num_random: int
) -> Array:
    """The sample of each input's ball, within the box, that comes closest to a wrong decision or is furthest in it."""
    inputs, labels = asked.clean, asked.examples.labels
    radius = examples.per_example(epsilon, inputs)
    low, high = (asked.clip(inputs + change) for change in (-radius, radius))

    def step(number: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        best, least = carry
        draw = lambda key: jax.random.uniform(jax.random.fold_in(key, number), inputs.shape[1:], inputs.dtype)
        sample = low + (high - low) * jax.vmap(draw)(keys)
        logits = logits_fn(sample)
        distance = jnp.where(examples.is_decision(logits), losses.margin(logits, labels), jnp.inf)
        better = distance < least
        return jnp.where(examples.expand(better, sample), sample, best), jnp.where(better, distance, least)

    like = jax.eval_shape(logits_fn, inputs)
    return lax.fori_loop(0, num_random, step, (inputs, jnp.full_like(labels, jnp.inf, like.dtype)))[0]


class Light(NamedTuple):
    """One behavior: whether gradients seem to be masked by it.

    Attributes:
      name: of the behavior.
      color: `"green"`, not seen; `"yellow"`, seen, but perhaps by chance; `"red"`, seen beyond chance; `"unknown"`, too
        few images to tell.
      value: the rate that was measured, a share of the images that the judge gets right. Of `radius`, the rate at the
        larger of the two radii between which it falls most; without a fall, at the largest multiple.
      reference: the rate to compare it with: that of many steps with the same radius; 1 for `whole_box`; 0 for `random`
        and `zero_gradient`; of `radius`, that at the smaller of the two, or else at the smallest multiple.
      explanation: a sentence with the counts.
    """

    name: str
    color: str
    value: float
    reference: float
    explanation: str


def lights(probe: Probe) -> tuple[Light, ...]:
    """Judges each behavior by the images whose clean version the judge gets right.

    Two attacks are compared on the same images, by those that only one of them breaks: a sign test says whether the
    weaker one breaks more (McNemar's exact test). What should happen to no image is red where it happens to
    significantly more than `TOLERANCE` of them. All tests are one-sided, at `LEVEL`. In short, of what is not green:

    * `one_step`: one step breaks more than many steps do.
    * `transfer`: images made on the substitute break more than many steps do.
    * `whole_box`: many steps do not break every image with the whole box to move in.
    * `random`: random search breaks images that many steps do not break.
    * `radius`: a larger radius breaks fewer images. Every pair of radii is compared, the whole box included, with
      `LEVEL` divided by their number. The smallest and the largest multiple are also compared the other way: where the
      largest breaks neither more nor all, the light is red if the whole box does not break all either, and else yellow,
      since the radii may just be too small.
    * `zero_gradient`: images whose whole gradient is zero or not finite. A gradient attack does not move there.

    The probe is of all images together. There is no light for `transfer` without a substitute. All are unknown with
    fewer than `LEAST` images that the judge gets right.
    """
    right = np.asarray(probe.correct, bool)
    seen: Probe = jax.tree.map(lambda leaf: np.asarray(leaf)[right], probe)
    count, many = len(seen.correct), seen.many_steps
    missed, alone, blind = ~seen.whole_box, seen.random & ~many, seen.zeros == 1
    found = [_compared("one_step", "one step", seen.one_step, many)]
    if seen.transfer is not None:
        found.append(_compared("transfer", "images made on the substitute", seen.transfer, many))
    not_all = f"With the whole box to move in, many steps do not break {missed.sum()} of {count} images."
    by_chance = f"Random search breaks {alone.sum()} of {count} images that many steps do not break."
    flat = (
        f"The whole gradient is zero or not finite on {blind.sum()} of {count} images, "
        f"and so are {_rate(seen.zeros):.0%} of all its values."
    )
    found += [
        Light("whole_box", _color_of_rare(missed), _rate(seen.whole_box), 1.0, not_all),
        Light("random", _color_of_rare(alone), _rate(alone), 0.0, by_chance),
        _of_radii(np.column_stack([seen.by_radius, seen.whole_box])),
        Light("zero_gradient", _color_of_rare(blind), _rate(blind), 0.0, flat),
    ]
    if count < LEAST:
        few = f"Only {count} images are classified correctly; at least {LEAST} are needed."
        found = [light._replace(color="unknown", explanation=few) for light in found]
    return tuple(found)


def overall(found: Sequence[Light]) -> str:
    """The worst color of some lights; `"unknown"` where no light knows more, or there is none."""
    return max((light.color for light in found), key=COLORS.index, default="unknown")


def _compared(name: str, attack: str, suspect: Bool[np.ndarray, " N"], many: Bool[np.ndarray, " N"]) -> Light:
    """The light of an attack that should break less than many steps do."""
    more, fewer = int((suspect & ~many).sum()), int((many & ~suspect).sum())
    return Light(
        name,
        _color(_p_value(more, fewer) < LEVEL, more > fewer),
        _rate(suspect),
        _rate(many),
        f"Of {len(many)} images, {more} are broken only by {attack} and {fewer} only by many steps.",
    )


def _of_radii(broken: Bool[np.ndarray, "N R"]) -> Light:
    """The light of ascending radii, the last of which is the whole box."""
    count, radii = broken.shape
    last = radii - 2
    pairs = list(itertools.combinations(range(radii), 2))
    lost = lambda small, large: int((broken[:, small] & ~broken[:, large]).sum())
    falls = [_p_value(lost(*pair), lost(*pair[::-1])) < LEVEL / len(pairs) for pair in pairs]
    drops = [lost(*pair) - lost(*pair[::-1]) for pair in pairs]
    flat = _exceeds(~broken[:, last]) and _p_value(lost(last, 0), lost(0, last)) >= LEVEL
    stuck = flat and _exceeds(~broken[:, -1])
    small, large = pairs[int(np.argmax(drops))] if max(drops) > 0 else (0, last)
    rates = ", ".join(f"{rate:.0%}" for rate in broken.sum(0) / max(count, 1))
    return Light(
        "radius",
        _color(any(falls) or stuck, max(drops) > 0 or flat),
        _rate(broken[:, large]),
        _rate(broken[:, small]),
        f"As the radius grows up to the whole box, many steps break {rates} of {count} images.",
    )


def _color(is_red: bool, is_seen: bool) -> str:
    return "red" if is_red else "yellow" if is_seen else "green"


def _color_of_rare(cases: Bool[np.ndarray, " N"]) -> str:
    """The color of what should happen to no image."""
    return _color(_exceeds(cases), bool(cases.any()))


def _rate(values: np.ndarray) -> float:
    return float(np.sum(values)) / max(len(values), 1)


def _p_value(more: int, fewer: int) -> float:
    """Of McNemar's exact one-sided test, from the numbers of images on which two attacks differ."""
    return float(special.bdtrc(more - 1, more + fewer, 0.5))


def _exceeds(cases: Bool[np.ndarray, " N"]) -> bool:
    """Whether cases are significantly more frequent than is tolerated."""
    return float(special.bdtrc(int(cases.sum()) - 1, len(cases), TOLERANCE)) < LEVEL
