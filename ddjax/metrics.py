"""Measures of attacks and classifiers: distances, rates with intervals, robustness."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

_Z95 = 1.959963984540054


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 percent Wilson score interval of a rate: its lower and its upper end; (0, 1) without trials, n = 0.

    Raises:
      ValueError: when successes is not within 0 and n.

    Reference:
      Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"there cannot be {successes} successes among {n}")
    if n == 0:
        return 0.0, 1.0
    # SciPy has this interval, but to import its statistics takes more than a second.
    rate, z2 = successes / n, _Z95**2
    center = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    # At the ends the interval touches 0 or 1 exactly; rounding must not push it past.
    low = 0.0 if successes == 0 else max(0.0, center - half)
    return low, 1.0 if successes == n else min(1.0, center + half)


def rate_fields(name: str, successes: int, n: int) -> dict[str, float | int | None]:
    """A share with its 95 percent interval as flat fields of a record: NAME, NAME_low, NAME_high and NAME_n.

    Without trials, n = 0, the share is None.
    """
    low, high = wilson_interval(successes, n)
    return {name: successes / n if n else None, f"{name}_low": low, f"{name}_high": high, f"{name}_n": n}


def auc(clean: Float[np.ndarray, " N"], adversarial: Float[np.ndarray, " M"]) -> float | None:
    """The area under the ROC curve of a detector, from 0 to 1; None if either kind of image is missing.

    The arguments are the scores of clean images, and those of adversarial ones, which should be higher.
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

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 percent Wilson interval."""
        return wilson_interval(self.successes, self.n)

    @classmethod
    def of(cls, success: Bool[np.ndarray, " N"]) -> "Rate":
        """Counts the true values."""
        return cls(int(np.sum(success)), len(success))


def accuracy(logits: Float[np.ndarray, "N K"], labels: Int[np.ndarray, " N"]) -> Rate:
    """The share of examples whose largest logit is the label's; logits that are not finite are mistakes."""
    return Rate.of(correct(logits, labels))


def correct(logits: Float[np.ndarray, "N K"], labels: Int[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
    """Which examples are classified as their label."""
    logits = np.asarray(logits)
    return (logits.argmax(1) == np.asarray(labels)) & np.isfinite(logits).all(1)


def success_rate(success: Bool[np.ndarray, " N"], clean_correct: Bool[np.ndarray, " N"]) -> Rate:
    """The success of an attack among the examples that the classifier gets right without it, `clean_correct`.

    An example that is misclassified already is neither a success nor a failure of the attack; it leaves the count.
    """
    return Rate.of(np.asarray(success)[np.asarray(clean_correct)])


def mean_absolute_logit(logits: Float[np.ndarray, "N K"]) -> tuple[float, float]:
    """The mean and the standard deviation of the absolute logits, over all examples and classes.

    Reference:
      Carlini and Wagner, 2017 (arXiv 1608.04644), section VIII-A; per logit, as their code computes it.
    """
    size = np.abs(np.asarray(logits))
    return float(size.mean()), float(size.std())


class Distances(NamedTuple):
    """How far inputs were moved, each `[B]`, in the units of the inputs.

    Attributes:
      l0_pixels: pixels with any channel changed; of inputs that are no images, values.
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


def distances(clean: Float[Array, "B ..."], adversarial: Float[Array, "B ..."]) -> Distances:
    """Measures how far each example was moved, in the norms of the field."""
    change = jnp.abs(adversarial - clean)
    axes = tuple(range(1, change.ndim))
    changed = change > 0
    pixels = jnp.any(changed, axis=3, keepdims=True) if change.ndim == 4 else changed
    return Distances(
        l0_pixels=jnp.sum(pixels, axis=axes),
        l0_values=jnp.sum(changed, axis=axes),
        l1=jnp.sum(change, axis=axes),
        l2=jnp.sqrt(jnp.sum(change**2, axis=axes)),
        linf=jnp.max(change, axis=axes),
    )


def share_changed(
    clean: Float[np.ndarray, "N ... D"], adversarial: Float[np.ndarray, "N ... D"]
) -> Float[np.ndarray, " D"]:
    """The share of the examples in which each feature, a place along the last axis, was changed; NaN without any."""
    changed = (np.asarray(clean) != np.asarray(adversarial)).any(axis=tuple(range(1, np.ndim(clean) - 1)))
    return changed.mean(axis=0) if len(changed) else np.full(changed.shape[1:], np.nan)


class Robustness(NamedTuple):
    """The average least share of features that JSMA must change; a lower bound where images count at the cap.

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
      changed: the number of features changed in each attempt, at most `cap`.
      success: whether the attempt reached its target.
      image: which image the attempt was made on.
      num_features: D, the number of features of an image.
      cap: the largest number of features an attempt may change.

    Reference:
      Papernot et al., Distillation as a Defense, 2016 (arXiv 1511.04508).
    """
    images, place = np.unique(image, return_inverse=True)
    if len(images) == 0:
        return Robustness(0.0, 0, 0)
    least, reached = np.full(len(images), cap), np.zeros(len(images), bool)
    np.minimum.at(least, place, np.where(success, changed, cap))
    np.logical_or.at(reached, place, np.asarray(success))
    return Robustness(float(least.mean() / num_features), int((~reached).sum()), len(images))


class Case(NamedTuple):
    """One case over the targets of each image: how often it succeeded, and the mean distance of its successes."""

    rate: Rate
    distance: float | None


def cases(
    distance: Num[np.ndarray, " N"], success: Bool[np.ndarray, " N"], image: Int[np.ndarray, " N"]
) -> dict[str, Case]:
    """The `"best"`, `"average"` and `"worst"` case over several targets for each image.

    The best case of an image is the least distance of its successes, and fails where all fail; the worst is the
    largest, and fails where any fails; the average case is an attempt at a random target, so the mean over attempts.
    Attempts count whether or not the clean image was classified correctly, as in the paper's code: one that is
    misclassified is its new class at distance zero.

    Args:
      distance: of each attempt, finite.
      success: whether the attempt reached its target.
      image: which image the attempt was made on.

    Reference:
      Carlini and Wagner, 2017 (arXiv 1608.04644), section V and Table IV.
    """
    images, place = np.unique(image, return_inverse=True)
    # A failure counts as infinitely far.
    average = np.where(success, np.asarray(distance, np.float64), np.inf)
    best, worst = np.full(len(images), np.inf), np.zeros(len(images))
    np.minimum.at(best, place, average)
    np.maximum.at(worst, place, average)

    def case(distances: np.ndarray) -> Case:
        reached = np.isfinite(distances)
        return Case(Rate.of(reached), float(distances[reached].mean()) if reached.any() else None)

    return {"best": case(best), "average": case(average), "worst": case(worst)}
