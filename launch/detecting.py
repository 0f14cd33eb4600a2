"""The detector of local intrinsic dimensionality as launchers fit and ask it; see `ddjax.defenses.lid`."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from ddjax import attacks, data, metrics
from ddjax.defenses import lid, squeezing
from ddjax.evaluation import Attempts, ConfiguredAttack

from . import attacking, common

FLAGS = flags.FLAGS
_NOISE = 0x2015E
# Shares of the clean images: what the detector compares with, and what it is fitted on; the rest is for its threshold.
_REFERENCES, _FITTED = 1 / 8, 3 / 8
# Opt of the paper, shortened: the attack that the detector is fitted on.
_ATTACK = ConfiguredAttack(
    "carlini_wagner_l2",
    attacks.ATTACKS["carlini_wagner_l2"],
    {"learning_rate": 0.01, "initial_const": 1.0},
    {"search_steps": 3, "num_steps": 100},
)


def attack() -> ConfiguredAttack:
    """The attack that the detector is fitted on."""
    return _ATTACK


def _features(shared: Any, images: jax.Array) -> jax.Array:
    logits_fn, references = shared
    return lid.features(logits_fn, images, references)


def _scores(shared: Any, images: jax.Array) -> jax.Array:
    logits_fn, detector, references = shared
    return lid.detector_scores(logits_fn, detector, images, references)


@dataclasses.dataclass(frozen=True)
class LidDetector:
    """A fitted detector beside its network.

    Attributes:
      logits_fn: the network.
      detector: fitted.
      references: clean images, `[M, H, W, C]`.
    """

    logits_fn: Any
    detector: lid.Detector
    references: np.ndarray

    def scores(self, inputs: np.ndarray) -> np.ndarray:
        """How adversarial each image looks, in [0, 1]."""
        return common.evaluate(_scores, (self.logits_fn, self.detector, self.references), inputs)

    def flags(self, inputs: np.ndarray) -> np.ndarray:
        """Which images it takes for adversarial."""
        return self.scores(inputs) > np.asarray(self.detector.threshold)


def fit(logits_fn: Any, held_out: data.Dataset, false_positive_rate: float, description: str) -> LidDetector:
    """Fits the detector, and sets its threshold for a share of false positives.

    Args:
      logits_fn: the network.
      held_out: clean images that serve nothing else and that the network was not trained on, since it is too much at
        home on those: an eighth to compare with, three eighths to be fitted on, one half for the threshold.
      false_positive_rate: in [0, 1), of the images for the threshold that the network gets right.
      description: for the progress bar.

    Returns:
      The detector.
    """
    images, labels = data.to_float(held_out.images), held_out.labels
    first, second = (round(len(images) * share) for share in (_REFERENCES, _REFERENCES + _FITTED))
    references = images[:first]
    tried = Attempts(
        np.arange(first, second), images[first:second], labels[first:second], None, held_out.indices[first:second]
    )
    outcome = attacking.run_attack(_ATTACK, logits_fn, tried, description)
    correct = attacking.decide(logits_fn, tried.inputs) == tried.labels
    fooled = correct & outcome.success
    keys = jax.random.wrap_key_data(jnp.asarray(common.key_data(tried.indices[fooled], _NOISE)))
    noisy = np.asarray(lid.noisy(jnp.asarray(tried.inputs[fooled]), jnp.asarray(outcome.inputs[fooled]), keys))
    seen = functools.partial(common.evaluate, _features, (logits_fn, references))
    detector = lid.fit_detector(seen(tried.inputs[correct]), seen(noisy), seen(outcome.inputs[fooled]), seed=FLAGS.seed)
    found = LidDetector(logits_fn, detector, references)
    clean = images[second:][metrics.correct(common.classify(logits_fn, images[second:]), labels[second:])]
    threshold = squeezing.calibrated_threshold(found.scores(clean), false_positive_rate)
    return dataclasses.replace(found, detector=dataclasses.replace(detector, threshold=jnp.float32(threshold)))
