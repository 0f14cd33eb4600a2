"""Feature squeezing: the detector that compares the classifier's answers for an image and for squeezed copies of it.

`ddjax.defenses.squeezers` holds the squeezers.

Reference:
  Xu, Evans and Qi, Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks, 2018 (arXiv 1704.01155).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from ddjax.attacks import carlini_wagner_l2, contract, examples
from ddjax.checks import check_number
from ddjax.classifier import LogitsFn, Transform, as_pytree, at_temperature, bpda, transformed
from ddjax.defenses.declaration import declare
from ddjax.defenses.squeezers import squeezer

# How steeply the logit of detected images rises with the detector's score, in `guarded_classifier`.
_GUARD = 0.3
# The largest score there is, but for rounding: two probabilities in L1.
_LARGEST_SCORE = 2 * (1 - 1e-6)
# The squeezers of the paper's best joint detectors; thresholds are calibrated, see `calibrated_threshold`.
JOINT = {
    "mnist": ("bit_depth_1", "median_2_2"),
    "cifar10": ("bit_depth_5", "median_2_2", "non_local_means_13_3_2"),
    "imagenet": ("bit_depth_5", "median_2_2", "non_local_means_11_3_4"),
}


def _distances(
    logits_fn: LogitsFn, squeezers: Sequence[Transform], images: Float[Array, "B H W C"]
) -> Float[Array, "S B"]:
    """For each squeezer, the L1 distance between the probabilities of the images and of the squeezed ones."""
    if not squeezers:
        raise ValueError("a detector needs at least one squeezer")
    probs = jax.nn.softmax(logits_fn(images))
    squeezed = [jax.nn.softmax(transformed(logits_fn, squeeze)(images)) for squeeze in squeezers]
    return jnp.stack([jnp.sum(jnp.abs(probs - other), axis=1) for other in squeezed])


def detector_scores(
    logits_fn: LogitsFn, squeezers: Sequence[Transform], images: Float[Array, "B H W C"]
) -> Float[Array, " B"]:
    """The joint detector's score: the largest L1 distance by which a squeezer moves the probabilities of an image.

    Args:
      logits_fn: a classifier.
      squeezers: at least one.
      images: a batch.

    Returns:
      Scores from 0 to 2; an image counts as adversarial when its score exceeds the threshold.

    Raises:
      ValueError: without squeezers.

    Reference:
      Xu et al., 2018 (arXiv 1704.01155).
    """
    return jnp.max(_distances(logits_fn, squeezers, images), axis=0)


@dataclasses.dataclass(frozen=True)
class _Joint:
    squeezers: tuple[Transform, ...]

    def __call__(self, logits_fn: LogitsFn, images: Array) -> Array:
        views = [logits_fn(images), *(logits_fn(bpda(squeeze)(images)) for squeeze in self.squeezers)]
        return sum(views[1:], views[0]) / len(views)


def joint_classifier(logits_fn: LogitsFn, squeezers: Sequence[Transform]) -> LogitsFn:
    """The mean logits of an image and of all that the squeezers make of it, seen through by BPDA.

    An image that deceives all of these views at once has a low score, so any attack on this classifier knows the
    detector.

    Args:
      logits_fn: a classifier.
      squeezers: of the detector.

    Returns:
      A classifier; a pytree like `bind`'s where `logits_fn` is one.
    """
    return jax.tree_util.Partial(_Joint(tuple(squeezers)), as_pytree(logits_fn))


def calibrated_threshold(scores: np.ndarray, false_positive_rate: float = 0.05) -> float:
    """The lowest threshold that at most this share of clean images exceeds.

    Args:
      scores: of clean images that are used for nothing else, `[N]`.
      false_positive_rate: in [0, 1).

    Returns:
      One of the scores.

    Raises:
      ValueError: for no scores, scores that are not finite, or another rate.
    """
    scores = np.sort(np.asarray(scores, np.float64).ravel())
    if not len(scores) or not np.isfinite(scores).all():
        raise ValueError("a threshold needs finite scores of clean images, and at least one")
    check_number("false_positive_rate", false_positive_rate, least=0.0, below=1.0)
    # Of 100 scores and a rate of 0.05 it is the 95th: 5 exceed it. Less a rounding error of the product.
    return float(scores[math.ceil(len(scores) * (1 - false_positive_rate) - 1e-9) - 1])


def _excess(
    logits_fn: LogitsFn, squeezers: Sequence[Transform], threshold: Array | float, images: Array
) -> Float[Array, " B"]:
    distances = _distances(logits_fn, [bpda(squeeze) for squeeze in squeezers], images)
    return jnp.sum(jax.nn.relu(distances - threshold), axis=0)


def adaptive_attack(
    logits_fn: LogitsFn,
    images: Float[Array, "B H W C"],
    labels: Int[Array, " B"],
    squeezers: Sequence[Transform],
    threshold: float | Float[Array, ""],
    *,
    targets: Int[Array, " B"] | None = None,
    **settings: object,
) -> contract.AttackResult:
    """Carlini and Wagner's L2 attack on the classifier and its detector together.

    To the margin that is still missed it adds, for each squeezer, by how much the score exceeds the threshold; what
    counts is an image that is misclassified and not detected. Through squeezers without a gradient it sees by BPDA.

    Args:
      logits_fn: a classifier.
      images: within the bounds.
      labels: the true classes.
      squeezers: of the detector, at least one.
      threshold: of the detector; may be traced.
      targets: the classes to reach, for the targeted attack.
      **settings: of `ddjax.carlini_wagner_l2`.

    Returns:
      The closest such images; where there were none the clean image, without success.

    Raises:
      ValueError: as `ddjax.carlini_wagner_l2` does, and without squeezers.

    Reference:
      He, Wei, Chen, Carlini and Song, Adversarial Example Defenses: Ensembles of Weak Defenses are not Strong, 2017
      (arXiv 1706.04701).

    Departures from Xu et al.'s code of it:
      The search for the constant goes by misclassification and detection, there by misclassification alone.
    """
    excess = functools.partial(_excess, logits_fn, squeezers, threshold)
    return carlini_wagner_l2(logits_fn, images, labels, targets=targets, constraint=excess, **settings)  # pyright: ignore[reportArgumentType]


@dataclasses.dataclass(frozen=True)
class _Guarded:
    """Logits `[B, K + 1]`, of which the last is the largest where the detector takes the image for adversarial."""

    squeezers: tuple[Transform, ...]

    def __call__(self, logits_fn: LogitsFn, threshold: Array, temperature: Array, images: Array) -> Array:
        logits, *others = (logits_fn(view) for view in (images, *(bpda(squeeze)(images) for squeeze in self.squeezers)))

        def score(temperature: Array | float) -> Array:
            probs = jax.nn.softmax(logits / temperature)
            distances = [jnp.sum(jnp.abs(probs - jax.nn.softmax(other / temperature)), axis=1) for other in others]
            return functools.reduce(jnp.maximum, distances)

        # The detector's score, with the gradient that it would have at the temperature: at 1 that of a distilled
        # network is zero.
        seen = score(temperature)
        seen = seen + lax.stop_gradient(score(1.0) - seen)
        guard = jnp.max(logits, axis=1) + _GUARD * temperature * (seen - threshold)
        return jnp.concatenate([logits, guard[:, None]], axis=1) / temperature


def guarded_classifier(
    logits_fn: LogitsFn,
    squeezers: Sequence[Transform],
    threshold: float | Float[Array, ""],
    temperature: float | Float[Array, ""] = 1.0,
) -> LogitsFn:
    """Classifier and detector as one classifier with a class more, that of the images which are detected.

    A targeted attack on it reaches its target undetected.

    Args:
      logits_fn: a classifier of K classes.
      squeezers: of the detector, at least one; seen through by BPDA.
      threshold: of the detector.
      temperature: what the logits are divided by; it also gives the detector the gradient that it has there. The
        detector's decision stays that at temperature 1.

    Returns:
      A classifier of K + 1 classes; a pytree like `bind`'s where `logits_fn` is one.

    Raises:
      ValueError: without squeezers.

    Reference:
      Carlini and Wagner, Adversarial Examples Are Not Easily Detected: Bypassing Ten Detection Methods, 2017
      (arXiv 1705.07263).

    Departures from the paper:
      There, the logit of the class more is the largest one times one plus the detector's; here the detector's excess is
      added, since logits need not be positive, times 0.3: on MNIST any factor from 0.1 to 1 serves DDN as well, and 10
      is too steep.
    """
    if not squeezers:
        raise ValueError("a detector needs at least one squeezer")
    numbers = (jnp.float32(threshold), jnp.float32(temperature))
    return jax.tree_util.Partial(_Guarded(tuple(squeezers)), as_pytree(logits_fn), *numbers)


def attack_detector(
    attack: Callable[..., contract.AttackResult],
    logits_fn: LogitsFn,
    images: Float[Array, "B H W C"],
    labels: Int[Array, " B"],
    key: Key[Array, ""] | Key[Array, " B"],
    squeezers: Sequence[Transform],
    threshold: float | Float[Array, ""],
    temperature: float | Float[Array, ""] = 1.0,
    /,
    *,
    targets: Int[Array, " B"] | None = None,
    **settings: object,
) -> contract.AttackResult:
    """Any attack against classifier and detector together, made twice, of which the better image counts.

    Once on `joint_classifier`, and once on `guarded_classifier` towards a target: without one, the class that is next
    after the label for the views together. The first takes all views over with much to spare, the second stops where
    the detector is passed.

    Args:
      attack: takes targets.
      logits_fn: a classifier.
      images: within the bounds.
      labels: the true classes.
      key: as for the attack.
      squeezers: of the detector, at least one.
      threshold: of the detector.
      temperature: what logits are divided by for the attack, not for the detector.
      targets: the classes to reach, for the targeted attack.
      **settings: of the attack.

    Returns:
      For each example the closer image, in L2, of those that are misclassified and not detected; where none is, the
      first attack's.

    Raises:
      ValueError: as the attack does, and without squeezers.
    """
    joint = at_temperature(joint_classifier(logits_fn, squeezers), temperature)
    guarded = guarded_classifier(logits_fn, squeezers, threshold, temperature)
    goals = targets
    if goals is None:
        logits = joint(images)
        is_label = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
        goals = jnp.argmax(jnp.where(is_label, -jnp.inf, logits), axis=1).astype(labels.dtype)
    first = attack(joint, images, labels, key=key, targets=targets, **settings)
    second = attack(guarded, images, labels, key=key, targets=goals, **settings)

    def judged(result: contract.AttackResult) -> tuple[contract.AttackResult, Array]:
        logits = guarded(result.inputs)
        classes = logits.shape[1] - 1
        success = examples.is_adversarial(logits, labels, targets) & (jnp.argmax(logits, axis=1) < classes)
        distance = jnp.where(success, examples.norm(result.inputs - images), jnp.inf)
        return dataclasses.replace(result, success=success, logits=logits[:, :classes]), distance

    (first, near), (second, nearer) = judged(first), judged(second)
    choose = lambda one, other: jnp.where((nearer < near).reshape(-1, *(1,) * (one.ndim - 1)), other, one)
    chosen = jax.tree.map(choose, first, second)
    both = {name: getattr(first, name) + getattr(second, name) for name in ("gradients", "queries", "zero_gradients")}
    return dataclasses.replace(chosen, **both)


def is_detected(scores: Float[Array, " B"], threshold: float | Float[Array, ""]) -> Bool[Array, " B"]:
    """Whether the joint detector takes images for adversarial."""
    return scores > threshold


@dataclasses.dataclass(frozen=True)
class SqueezingDetector:
    """The joint detector beside its network.

    Attributes:
      logits_fn: the network.
      squeezers: at least one.
      threshold: an image counts as adversarial when its score exceeds it.
      evaluate: applies a function to any number of images.
    """

    logits_fn: Any
    squeezers: tuple[Transform, ...]
    threshold: float
    evaluate: Callable[..., Any]

    def scores(self, inputs: Any) -> np.ndarray:
        """The detector's scores of any number of images, from 0 to 2."""
        return self.evaluate(_scores_of(self.squeezers), self.logits_fn, inputs)

    def flags(self, inputs: Any) -> np.ndarray:
        """Which images the detector takes for adversarial."""
        return self.scores(inputs) > np.float32(self.threshold)


@functools.cache
def _scores_of(squeezers: tuple[Transform, ...]) -> Callable[[Any, jax.Array], jax.Array]:
    """The scores as one object for one program."""
    return lambda logits_fn, images: detector_scores(logits_fn, squeezers, images)


def joint_detector(
    logits_fn: LogitsFn,
    images: Any,
    labels: Any,
    *,
    key: Key[Array, ""],
    evaluate: Callable[..., Any],
    squeezers: str,
    threshold: float | None = None,
    false_positive_rate: float | None = None,
) -> SqueezingDetector:
    """The joint detector with a fixed threshold, or with one that is calibrated on clean images.

    Args:
      logits_fn: the network.
      images: clean ones that are used for nothing else, `[N, H, W, C]`; not looked at with a fixed threshold.
      labels: not looked at.
      key: not used.
      evaluate: `evaluate(function, shared, images)` applies `function(shared, batch)` to any number of images.
      squeezers: names as in `ddjax.defenses.squeezers.squeezer`, joined by `+`.
      threshold: in [0, 2); None calibrates it.
      false_positive_rate: in [0, 1), the share of clean images that may exceed a calibrated threshold; None for 0.05.

    Returns:
      The detector.

    Raises:
      ValueError: for bad settings; both a threshold and a false-positive rate; a calibrated threshold that no score
        exceeds, where the squeezers change more clean images than the rate allows.

    Reference:
      Xu et al., 2018 (arXiv 1704.01155).
    """
    del labels, key
    logits_fn = as_pytree(logits_fn)
    check_settings(squeezers=squeezers, threshold=threshold, false_positive_rate=false_positive_rate)
    names = _squeezers(squeezers)
    if threshold is None:
        rate = 0.05 if false_positive_rate is None else false_positive_rate
        scores = evaluate(_scores_of(names), logits_fn, images)
        # In the precision of scores, so that the score it is taken from does not exceed it.
        threshold = float(np.float32(calibrated_threshold(scores, rate)))
        if threshold >= _LARGEST_SCORE:
            raise ValueError(
                f"squeezing with {squeezers} changes the decision on more than {rate:.0%} of the clean images, "
                "so no threshold detects anything at this false-positive rate; choose weaker squeezers"
            )
    return SqueezingDetector(logits_fn, names, threshold, evaluate)


def check_settings(*, squeezers: str, threshold: float | None = None, false_positive_rate: float | None = None) -> None:
    """Refuses bad settings of `joint_detector`.

    Raises:
      ValueError: as `joint_detector` does.
    """
    _squeezers(squeezers)
    if threshold is not None and false_positive_rate is not None:
        raise ValueError("the threshold of a detector is either fixed or calibrated: give one of the two settings")
    if threshold is not None:
        check_number("threshold", threshold, least=0.0, below=2.0)
    if false_positive_rate is not None:
        check_number("false_positive_rate", false_positive_rate, least=0.0, below=1.0)


def _squeezers(names: str) -> tuple[Transform, ...]:
    return tuple(squeezer(name) for name in names.split("+"))


def _first_view(images: Float[Array, "B H W C"], *, squeezers: str) -> Float[Array, "B H W C"]:
    """The images as the first squeezer shows them."""
    return _squeezers(squeezers)[0](images)


def _published(dataset: str) -> dict[str, Any]:
    """The squeezers that were published for a data set."""
    return {"squeezers": "+".join(JOINT[dataset])} if dataset in JOINT else {}


DEFENSES = (
    declare(
        joint_detector,
        name="squeezing",
        kind="detector",
        published=_published,
        check=check_settings,
        view=_first_view,
    ),
)
