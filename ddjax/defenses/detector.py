"""What detectors share: a score for each input, and a threshold that few clean inputs exceed."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Array

from ddjax.checks import check_number


@dataclasses.dataclass(frozen=True)
class Detector:
    """A detector beside its network.

    Attributes:
      score_fn: from inputs `[B, ...]` to scores `[B]`; a pytree whose leaves are the parameters.
      threshold: an input counts as adversarial when its score exceeds it.
      evaluate: `evaluate(function, shared, *columns)` applies `function(shared, *batch)` to any number of examples and
        returns NumPy arrays.
    """

    score_fn: Any
    threshold: float
    evaluate: Callable[..., Any]

    def scores(self, inputs: Any) -> np.ndarray:
        """The scores of any number of inputs."""
        return self.evaluate(call, self.score_fn, inputs)

    def flags(self, inputs: Any) -> np.ndarray:
        """Which inputs the detector takes for adversarial."""
        # In the precision of scores, so that the score that a threshold is taken from does not exceed it.
        return self.scores(inputs) > np.float32(self.threshold)


def call(function: Any, inputs: Array) -> Array:
    """Calls a function that is an argument of the program; one object, so that equal calls share one program."""
    return function(inputs)


def calibrated_threshold(scores: np.ndarray, false_positive_rate: float = 0.05) -> float:
    """The lowest threshold, one of the scores, that at most this share of clean images exceeds.

    The images are used for nothing else. The rate is in [0, 1).

    Raises:
      ValueError: for no scores, scores that are not finite, or another rate.
    """
    scores = np.sort(np.asarray(scores, np.float64).ravel())
    if not len(scores) or not np.isfinite(scores).all():
        raise ValueError("a threshold needs finite scores of clean images, and at least one")
    check_number("false_positive_rate", false_positive_rate, least=0.0, below=1.0)
    # Of 100 scores and a rate of 0.05 it is the 95th: 5 exceed it. Less a rounding error of the product.
    return float(scores[math.ceil(len(scores) * (1 - false_positive_rate) - 1e-9) - 1])
