"""Feature squeezing: the detector that compares the classifier's answers for an image and for squeezed copies of it.

`ddjax.defenses.squeezers` holds the squeezers. Attacks see through them by BPDA.

In all functions here, `logits_fn` is the classifier, `squeezers` are those of the detector, and `threshold` is the
detector's, a number that may be traced. Without squeezers they raise ValueError. The classifiers that they return are
pytrees like `bind`'s where `logits_fn` is one.

Reference:
  Xu, Evans and Qi, Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks, 2018 (arXiv 1704.01155).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from ddjax.attacks import carlini_wagner_l2, contract, examples
from ddjax.checks import check_number
from ddjax.classifier import LogitsFn, Transform, as_pytree, at_temperature, bpda
from ddjax.defenses.declaration import declare
from ddjax.defenses.detector import Detector, calibrated_threshold, call
from ddjax.defenses.images import Inputs, Labels, Scalar
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


def _views(logits_fn: LogitsFn, squeezers: Sequence[Transform], images: Array) -> list[Array]:
    """The logits of the images, and of what each squeezer makes of them."""
    if not squeezers:
        raise ValueError("a detector needs at least one squeezer")
    return [logits_fn(images), *(logits_fn(squeeze(images)) for squeeze in squeezers)]


def _distances(views: list[Array], temperature: float | Array = 1.0) -> Float[Array, "S B"]:
    """For each squeezer, the L1 distance between the probabilities of the images and of the squeezed ones."""
    probs, *squeezed = (jax.nn.softmax(logits / temperature) for logits in views)
    return jnp.stack([jnp.sum(jnp.abs(probs - other), axis=1) for other in squeezed])


def detector_scores(logits_fn: LogitsFn, squeezers: Sequence[Transform], images: Inputs) -> Float[Array, " B"]:
    """The joint detector's score: the largest L1 distance by which a squeezer moves the probabilities of an image.

    It is from 0 to 2; an image counts as adversarial when its score exceeds the threshold.
    """
    return jnp.max(_distances(_views(logits_fn, squeezers, images)), axis=0)


@dataclasses.dataclass(frozen=True)
class _Squeezed:
    """A function of a classifier, of squeezers and of more; compared by value."""

    function: Callable[..., Array]
    squeezers: tuple[Transform, ...]

    def __call__(self, logits_fn: LogitsFn, *rest: Array) -> Array:
        return self.function(logits_fn, self.squeezers, *rest)


def _joint_logits(logits_fn: LogitsFn, squeezers: Sequence[Transform], images: Array) -> Array:
    views = _views(logits_fn, squeezers, images)
    return sum(views[1:], views[0]) / len(views)


def joint_classifier(logits_fn: LogitsFn, squeezers: Sequence[Transform]) -> LogitsFn:
    """The classifier by the mean logits of an image and of all that the squeezers make of it.

    An image that deceives all of these views at once has a low score, so any attack on this classifier knows the
    detector.
    """
    return jax.tree_util.Partial(_Squeezed(_joint_logits, tuple(map(bpda, squeezers))), as_pytree(logits_fn))


def adaptive_attack(
    logits_fn: LogitsFn,
    images: Inputs,
    labels: Labels,
    squeezers: Sequence[Transform],
    threshold: Scalar,
    **settings: Any,
) -> contract.AttackResult:
    """Carlini and Wagner's L2 attack on the classifier and its detector together.

    To the margin that is still missed it adds, for each squeezer, by how much the score exceeds the threshold; what
    counts is an image that is misclassified and not detected. The other arguments, and the errors, are those of
    `ddjax.carlini_wagner_l2`.

    Returns:
      The closest such images; where there were none the clean image, without success.

    Reference:
      He, Wei, Chen, Carlini and Song, Adversarial Example Defenses: Ensembles of Weak Defenses are not Strong, 2017
      (arXiv 1706.04701).

    Departures from Xu et al.'s code of it:
      The search for the constant goes by misclassification and detection, there by misclassification alone.
    """

    def excess(images: Array) -> Array:
        distances = _distances(_views(logits_fn, [bpda(squeeze) for squeeze in squeezers], images))
        return jnp.sum(jax.nn.relu(distances - threshold), axis=0)

    return carlini_wagner_l2(logits_fn, images, labels, constraint=excess, **settings)


def _guarded_logits(
    logits_fn: LogitsFn, squeezers: Sequence[Transform], threshold: Array, temperature: Array, images: Array
) -> Array:
    """Logits `[B, K + 1]`, of which the last is the largest where the detector takes the image for adversarial."""
    views = _views(logits_fn, squeezers, images)
    # The detector's score, with the gradient that it would have at the temperature: at 1 that of a distilled network
    # is zero.
    score = jnp.max(_distances(views, temperature), axis=0)
    score = score + lax.stop_gradient(jnp.max(_distances(views), axis=0) - score)
    guard = jnp.max(views[0], axis=1) + _GUARD * temperature * (score - threshold)
    return jnp.concatenate([views[0], guard[:, None]], axis=1) / temperature


def guarded_classifier(
    logits_fn: LogitsFn, squeezers: Sequence[Transform], threshold: Scalar, temperature: Scalar = 1.0
) -> LogitsFn:
    """Classifier and detector as one classifier of K + 1 classes, the last that of the images which are detected.

    A targeted attack on it reaches its target undetected. The logits are divided by `temperature`, which also gives the
    detector the gradient that it has there. The detector's decision stays that at temperature 1.

    Reference:
      Carlini and Wagner, Adversarial Examples Are Not Easily Detected: Bypassing Ten Detection Methods, 2017
      (arXiv 1705.07263).

    Departures from the paper:
      There, the logit of the class more is the largest one times one plus the detector's; here the detector's excess is
      added, since logits need not be positive, times 0.3: on MNIST any factor from 0.1 to 1 serves DDN as well, and 10
      is too steep.
    """
    guarded = _Squeezed(_guarded_logits, tuple(map(bpda, squeezers)))
    return jax.tree_util.Partial(guarded, as_pytree(logits_fn), jnp.float32(threshold), jnp.float32(temperature))


def attack_detector(
    attack: Callable[..., contract.AttackResult],
    logits_fn: LogitsFn,
    images: Inputs,
    labels: Labels,
    squeezers: Sequence[Transform],
    threshold: Scalar,
    *,
    divisor: Scalar = 1.0,
    key: Key[Array, "..."],
    targets: Labels | None = None,
    **settings: Any,
) -> contract.AttackResult:
    """Any attack against classifier and detector together, made twice, of which the better image counts.

    Once on `joint_classifier`, and once on `guarded_classifier` towards a target: without one, the class that is next
    after the label for the views together. The first takes all views over with much to spare, the second stops where
    the detector is passed. For the attack, not for the detector, logits are divided by `divisor`. The other arguments,
    and the errors, are those of the attack, which must take targets.

    Returns:
      For each example the closer image, in L2, of those that are misclassified and not detected; where none is, the
      first attack's.
    """
    joint = at_temperature(joint_classifier(logits_fn, squeezers), divisor)
    guarded = guarded_classifier(logits_fn, squeezers, threshold, divisor)
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


@dataclasses.dataclass(frozen=True)
class SqueezingDetector(Detector):
    """The joint detector beside its network; its scores are from 0 to 2.

    Attributes:
      squeezers: at least one.
    """

    squeezers: tuple[Transform, ...]


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

    `squeezers` are names as in `ddjax.defenses.squeezers.squeezer`, joined by `+`. The threshold is in [0, 2). None
    calibrates it, such that at most a share of the images exceeds it: the `false_positive_rate`, in [0, 1), or 0.05.
    The other arguments are those of all detectors, see `Declaration`; labels and key are not used.

    Raises:
      ValueError: for bad settings; both a threshold and a false-positive rate; a calibrated threshold that no score
        exceeds, where the squeezers change more clean images than the rate allows.
    """
    del labels, key
    check_settings(squeezers=squeezers, threshold=threshold, false_positive_rate=false_positive_rate)
    used = _squeezers(squeezers)
    score_fn = jax.tree_util.Partial(_Squeezed(detector_scores, used), as_pytree(logits_fn))
    if threshold is not None:
        return SqueezingDetector(score_fn, threshold, evaluate, used)
    rate = 0.05 if false_positive_rate is None else false_positive_rate
    threshold = calibrated_threshold(evaluate(call, score_fn, images), rate)
    if threshold >= _LARGEST_SCORE:
        raise ValueError(
            f"squeezing with {squeezers} changes the decision on more than {rate:.0%} of the clean images, "
            "so no threshold detects anything at this false-positive rate; choose weaker squeezers"
        )
    return SqueezingDetector(score_fn, threshold, evaluate, used)


def check_settings(*, squeezers: str, threshold: float | None = None, false_positive_rate: float | None = None) -> None:
    """Refuses bad settings of `joint_detector`, as this does."""
    _squeezers(squeezers)
    if threshold is not None and false_positive_rate is not None:
        raise ValueError("the threshold of a detector is either fixed or calibrated: give one of the two settings")
    if threshold is not None:
        check_number("threshold", threshold, least=0.0, below=2.0)
    if false_positive_rate is not None:
        check_number("false_positive_rate", false_positive_rate, least=0.0, below=1.0)


def _squeezers(names: str) -> tuple[Transform, ...]:
    return tuple(squeezer(name) for name in names.split("+"))


def _first_view(images: Inputs, *, squeezers: str) -> Inputs:
    """The images as the first squeezer shows them. All of them look, so that each can refuse inputs of no use to it."""
    first, *_ = (squeeze(images) for squeeze in _squeezers(squeezers))
    return first


def _published(dataset: str) -> dict[str, Any]:
    """The squeezers that were published for a data set."""
    return {"squeezers": "+".join(JOINT[dataset])} if dataset in JOINT else {}


DEFENSES = (
    declare(
        joint_detector, name="squeezing", kind="detector", published=_published, check=check_settings, view=_first_view
    ),
)
