"""Measures of attacks and classifiers: distances, rates with intervals, robustness."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

_Z95 = 1.959963984540054


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 percent Wilson score interval of a rate.

    Args:
      successes: the number of successes, from 0 to n.
      n: the number of trials; without trials the interval is (0, 1).

    Returns:
      The lower and the upper end, within [0, 1].

    Raises:
      ValueError: when successes is not within 0 and n.

    Reference:
      Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"there cannot be {successes} successes among {n}")
    if n == 0:
        return 0.0, 1.0
    rate, z2 = successes / n, _Z95**2
    center = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    # At the ends the interval touches 0 or 1 exactly; rounding must not push it past.
    low = 0.0 if successes == 0 else max(0.0, center - half)
    high = 1.0 if successes == n else min(1.0, center + half)
    return low, high


def rate_fields(name: str, successes: int, n: int) -> dict[str, float | int | None]:
    """A share with its 95 percent interval as flat fields of a record: NAME, NAME_low, NAME_high and NAME_n.

    Args:
      name: of the share.
      successes: the number of successes.
      n: the number of trials; without trials the share is None.
    """
    low, high = wilson_interval(successes, n)
    return {name: successes / n if n else None, f"{name}_low": low, f"{name}_high": high, f"{name}_n": n}


def auc(clean: Float[np.ndarray, " N"], adversarial: Float[np.ndarray, " M"]) -> float | None:
    """The area under the ROC curve of a detector.

    Args:
      clean: scores of clean images.
      adversarial: scores of adversarial ones, which should be higher.

    Returns:
      From 0 to 1; None if either kind is missing.
    """
    if not len(clean) or not len(adversarial):
        return None
    from sklearn.metrics import roc_auc_score  # lazily: it takes a second, and most runs have no detector

    truth = np.repeat([0, 1], [len(clean), len(adversarial)])
    return float(roc_auc_score(truth, np.concatenate([clean, adversarial])))


class Rate(NamedTuple):
    """A count out of n; its value is 0 if n is 0."""

    successes: int
    n: int

    @property
    def value(self) -> float:
        """The share of successes."""
        return self.successes / self.n if self.n else 0.0


def accuracy(logits: Float[np.ndarray, "N K"], labels: Int[np.ndarray, " N"]) -> Rate:
    """The share of examples whose largest logit is the label's; logits that are not finite are mistakes."""
    return Rate(int(correct(logits, labels).sum()), len(labels))


def correct(logits: Float[np.ndarray, "N K"], labels: Int[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
    """Which examples are classified as their label."""
    logits = np.asarray(logits)
    return (logits.argmax(1) == np.asarray(labels)) & np.isfinite(logits).all(1)


def success_rate(success: Bool[np.ndarray, " N"], clean_correct: Bool[np.ndarray, " N"]) -> Rate:
    """The success of an attack among the examples that the classifier gets right without it.

    An example that is misclassified already is neither a success nor a failure of the attack; it leaves the count.

    Args:
      success: as the attack returned it.
      clean_correct: whether the clean image is classified as its label.

    Returns:
      Successes among the correct, and how many those are.
    """
    success, clean_correct = np.asarray(success), np.asarray(clean_correct)
    return Rate(int((success & clean_correct).sum()), int(clean_correct.sum()))


def mean_absolute_logit(logits: Float[np.ndarray, "N K"]) -> tuple[float, float]:
    """The mean and the standard deviation of the absolute logits, over all examples and classes.

    Reference:
      Carlini and Wagner, 2017 (arXiv 1608.04644), section VIII-A; per logit, as their code computes it.
    """
    size = np.abs(np.asarray(logits))
    return float(size.mean()), float(size.std())


class Distances(NamedTuple):
    """How far images were moved, each `[B]`, in the units of the images.

    Attributes:
      l0_pixels: pixels with any channel changed.
      l0_values: values changed.
      l1: the sum of absolute changes.
      l2: the Euclidean norm.
      linf: the largest absolute change.
    """

    l0_pixels: Int[Array, " B"]
    l0_values: Int[Array, " B"]
    l1: Float[Array, " B"]
    l2: Float[Array, " B"]
    linf: Float[Array, " B"]


def distances(clean: Float[Array, "B H W C"], adversarial: Float[Array, "B H W C"]) -> Distances:
    """Measures the perturbation of each example in the norms of the field.

    Args:
      clean: the images before.
      adversarial: the images after, of the same shape.

    Returns:
      Five distances for each example.
    """
    change = jnp.abs(adversarial - clean)
    return Distances(
        l0_pixels=jnp.sum(jnp.any(change > 0, axis=3), axis=(1, 2)),
        l0_values=jnp.sum(change > 0, axis=(1, 2, 3)),
        l1=jnp.sum(change, axis=(1, 2, 3)),
        l2=jnp.sqrt(jnp.sum(change**2, axis=(1, 2, 3))),
        linf=jnp.max(change, axis=(1, 2, 3)),
    )


class Robustness(NamedTuple):
    """The average least share of features that JSMA must change.

    Attributes:
      mean: over images, of the minimum over targets; an image on which every target failed counts at the cap.
      capped: the number of images on which every target failed.
      images: the number of images.
    """

    mean: float
    capped: int
    images: int


def robustness(
    changed: Int[np.ndarray, " N"],
    success: Bool[np.ndarray, " N"],
    image: Int[np.ndarray, " N"],
    *,
    num_features: int,
    cap: int,
) -> Robustness:
    """Estimates robustness from targeted attacks on several targets for each image.

    Args:
      changed: the number of features changed in each attempt.
      success: whether the attempt reached its target.
      image: which image the attempt was made on.
      num_features: D, the number of features of an image.
      cap: the largest number of features an attempt may change.

    Returns:
      The mean share, with the number of images that count at the cap: a lower bound where that is not zero.

    Reference:
      Papernot et al., Distillation as a Defense, 2016 (arXiv 1511.04508).
    """
    spent = np.where(np.asarray(success), np.asarray(changed), cap)
    image, success = np.asarray(image), np.asarray(success)
    images = np.unique(image)
    if len(images) == 0:
        return Robustness(0.0, 0, 0)
    least = np.array([spent[image == one].min() for one in images])
    capped = sum(not success[image == one].any() for one in images)
    return Robustness(float(least.mean() / num_features), int(capped), len(images))


class Case(NamedTuple):
    """One case over the targets of each image.

    Attributes:
      rate: how often it succeeded.
      distance: the mean distance of the successes; None without one.
    """

    rate: Rate
    distance: float | None


def cases(
    distance: Num[np.ndarray, " N"], success: Bool[np.ndarray, " N"], image: Int[np.ndarray, " N"]
) -> dict[str, Case]:
    """The best, average and worst case over several targets for each image.

    The best case of an image is the least distance of its successes, and fails where all fail; the worst is the
    largest, and fails where any fails; the average case is an attempt at a random target, so the mean over attempts.
    Attempts count whether or not the clean image was classified correctly, as in the paper's code: one that is
    misclassified is its new class at distance zero.

    Args:
      distance: of each attempt.
      success: whether the attempt reached its target.
      image: which image the attempt was made on.

    Returns:
      `"best"`, `"average"` and `"worst"`.

    Reference:
      Carlini and Wagner, 2017 (arXiv 1608.04644), section V and Table IV.
    """
    distance, success, image = np.asarray(distance, np.float64), np.asarray(success), np.asarray(image)
    best, worst = [], []
    images = np.unique(image)
    for one in images:
        of_image = image == one
        if success[of_image].any():
            best.append(distance[of_image & success].min())
        if success[of_image].all():
            worst.append(distance[of_image].max())
    mean = lambda values: float(np.mean(values)) if len(values) else None
    return {
        "best": Case(Rate(len(best), len(images)), mean(best)),
        "average": Case(Rate(int(success.sum()), len(success)), mean(distance[success])),
        "worst": Case(Rate(len(worst), len(images)), mean(worst)),
    }
