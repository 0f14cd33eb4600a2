"""Feature squeezing: coarser images, and the detector that asks what the classifier makes of them.

Reference:
  Xu, Evans and Qi, Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks, 2018 (arXiv 1704.01155).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from ddjax import checks, rounding
from ddjax.attacks import carlini_wagner_l2, contract, examples
from ddjax.classifier import LogitsFn, Transform, as_pytree, at_temperature, bpda, transform, transformed

# How steeply the logit of detected images rises with the detector's score, in `guarded_classifier`.
_GUARD = 0.3
# The squeezers of the paper's best joint detectors; thresholds are calibrated, see `calibrated_threshold`.
JOINT = {
    "mnist": ("bit_depth_1", "median_2_2"),
    "cifar10": ("bit_depth_5", "median_2_2", "non_local_means_13_3_2"),
    "imagenet": ("bit_depth_5", "median_2_2", "non_local_means_11_3_4"),
}


def reduce_bit_depth(images: Float[Array, "B H W C"], *, bits: int = 1) -> Float[Array, "B H W C"]:
    """Rounds every value to the nearest of 2^bits equally spaced ones.

    Args:
      images: within [0, 1].
      bits: from 1 to 16.

    Returns:
      Images without a gradient: it is zero everywhere.

    Raises:
      ValueError: for another number of bits.
    """
    if not 1 <= bits <= 16:
        raise ValueError(f"bits must be from 1 to 16, got {bits}")
    return rounding.round_to_levels(images, 2**bits)


def binarize(images: Float[Array, "B H W C"], *, threshold: float = 0.5) -> Float[Array, "B H W C"]:
    """One above the threshold, zero at and below it."""
    return (images > threshold).astype(images.dtype)


def median_filter(images: Float[Array, "B H W C"], *, height: int = 2, width: int = 2) -> Float[Array, "B H W C"]:
    """The median of each pixel's neighborhood, in each channel.

    As `scipy.ndimage.median_filter` with mode `"reflect"`: of an even number of values the upper of the two in the
    middle, an even side reaching further up or to the left, and images mirrored at their edges.

    Args:
      images: a batch.
      height: of the neighborhood, at least 1.
      width: of the neighborhood, at least 1.

    Returns:
      The filtered images.

    Raises:
      ValueError: for a side below 1.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a neighborhood must have sides of at least 1, got {height} x {width}")
    windows = _windows(images, height, width)
    return jnp.sort(jnp.stack(windows, axis=-1), axis=-1)[..., len(windows) // 2]


def _windows(images: Array, height: int, width: int) -> list[Array]:
    """The images shifted by each offset of a neighborhood."""
    rows, columns = images.shape[1:3]
    padded = _mirrored(images, height, width)
    return [padded[:, i : i + rows, j : j + columns] for i in range(height) for j in range(width)]


def _mirrored(images: Array, height: int, width: int) -> Array:
    """With the surroundings that a neighborhood of this size needs, the edge pixel repeated first."""
    sides = [(side // 2, (side - 1) // 2) for side in (height, width)]
    return jnp.pad(images, ((0, 0), *sides, (0, 0)), mode="symmetric")


def non_local_means(
    images: Float[Array, "B H W C"], *, search: int = 13, block: int = 3, strength: float = 2.0
) -> Float[Array, "B H W C"]:
    """Averages over pixels whose surroundings look alike, from the formula.

    The weight of a pixel q for a pixel p is exp(-d(p, q) / h^2), d the mean squared difference of the two blocks around
    them over pixels and channels, in units of 8-bit levels.

    Args:
      images: within [0, 1].
      search: the side of the square of pixels q around p; odd.
      block: the side of the blocks that are compared; odd.
      strength: h, above 0.

    Returns:
      The smoothed images.

    Raises:
      ValueError: for even sides or a strength that is not positive.

    Reference:
      Buades, Coll and Morel, A Non-Local Algorithm for Image Denoising, 2005.

    Departures:
      Approximate against OpenCV's, which the paper uses: that works on 8-bit images in the Lab space, with its weights
      from a table.
    """
    if search < 1 or block < 1 or search % 2 == 0 or block % 2 == 0:
        raise ValueError(f"search and block must be odd, got {search} and {block}")
    checks.check_number("strength", strength, above=0.0)
    channels = images.shape[3]
    padded = _mirrored(images, search, search)
    patch = (1, block, block, 1)

    def add(sums: tuple[Array, Array], offset: Array) -> tuple[tuple[Array, Array], None]:
        total, weights = sums
        other = lax.dynamic_slice(padded, (0, offset[0], offset[1], 0), images.shape)
        squared = jnp.sum((255 * (images - other)) ** 2, axis=3, keepdims=True)
        distance = lax.reduce_window(_mirrored(squared, block, block), 0.0, lax.add, patch, (1, 1, 1, 1), "VALID")
        weight = jnp.exp(-distance / (block * block * channels * strength**2))
        return (total + weight * other, weights + weight), None

    offsets = jnp.asarray([(i, j) for i in range(search) for j in range(search)], jnp.int32)
    start = jnp.zeros_like(images), jnp.zeros_like(images[..., :1])
    # Saving nothing for the backward pass but the sums: a gradient costs one more forward pass.
    (total, weights), _ = lax.scan(jax.checkpoint(add), start, offsets)
    return total / weights


def resample(images: Float[Array, "B H W C"], *, factor: int = 2) -> Float[Array, "B H W C"]:
    """Scales the images down by a factor and up again, bilinearly.

    Args:
      images: a batch.
      factor: at least 1; sides are divided by it and rounded down.

    Returns:
      Blurred images of the same size.

    Raises:
      ValueError: when a factor is below 1 or leaves nothing of a side.
    """
    rows, columns = images.shape[1:3]
    if factor < 1 or min(rows, columns) // factor < 1:
        raise ValueError(f"images of {rows} x {columns} cannot be scaled down by {factor}")
    small = (images.shape[0], rows // factor, columns // factor, images.shape[3])
    return jax.image.resize(jax.image.resize(images, small, "bilinear"), images.shape, "bilinear")


# By name: the function, its settings in the order in which a name holds them, and their types.
SQUEEZERS: dict[str, tuple[Callable[..., Array], dict[str, type]]] = {
    "bit_depth": (reduce_bit_depth, {"bits": int}),
    "binary": (binarize, {"threshold": float}),
    "median": (median_filter, {"height": int, "width": int}),
    "non_local_means": (non_local_means, {"search": int, "block": int, "strength": float}),
    "resample": (resample, {"factor": int}),
}


def squeezer(name: str) -> Transform:
    """Makes a squeezer by name: `bit_depth_1`, `binary_0.5`, `median_2_2`, `non_local_means_13_3_2`, `resample_2`.

    Raises:
      ValueError: for an unknown name, or numbers that are none or too many.
    """
    for known, (function, settings) in SQUEEZERS.items():
        if name == known or name.startswith(known + "_"):
            numbers = name[len(known) + 1 :].split("_") if name != known else []
            if len(numbers) not in (0, len(settings)):
                break
            try:
                return transform(function, **{key: settings[key](n) for key, n in zip(settings, numbers, strict=False)})
            except ValueError:
                break
    forms = [
        f"{known}_{'_'.join(setting.upper() for setting in settings)}" for known, (_, settings) in SQUEEZERS.items()
    ]
    raise ValueError(f"unknown squeezer {name!r}; known: {', '.join(forms)}")


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
    """The joint detector: how far at most any squeezer moves the probabilities of an image, in L1.

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

    What deceives all of these views at once moves the detector's score little: with it, any attack knows the detector.

    Args:
      logits_fn: a classifier.
      squeezers: of the detector.

    Returns:
      A classifier; a pytree like `bind`'s where `logits_fn` is one.
    """
    return jax.tree_util.Partial(_Joint(tuple(squeezers)), as_pytree(logits_fn))


def calibrated_threshold(scores: np.ndarray, false_positive_rate: float = 0.05) -> float:
    """The least threshold that at most this share of clean images exceeds.

    Args:
      scores: of clean images that serve nothing else, `[N]`.
      false_positive_rate: in [0, 1).

    Returns:
      One of the scores.

    Raises:
      ValueError: for no scores, scores that are not finite, or another rate.
    """
    scores = np.sort(np.asarray(scores, np.float64).ravel())
    if not len(scores) or not np.isfinite(scores).all():
        raise ValueError(f"a threshold needs finite scores of clean images, got {scores}")
    if not 0 <= false_positive_rate < 1:
        raise ValueError(f"a false-positive rate must be in [0, 1), got {false_positive_rate}")
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
