"""The judge: what a classifier decides about inputs, seen from outside of any attack.

A random classifier is judged with fresh draws, never with those that an attack saw. This is the only way results reach
a table.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Num

from ddjax.attacks import examples
from ddjax.checks import check_whole_number
from ddjax.classifier import Randomized, as_pytree
from ddjax.evaluation.attempts import key_data
from ddjax.parallel import Evaluator
from ddjax.rounding import to_float


class Judgement(NamedTuple):
    """What a classifier decides about N inputs, in each of D draws; D is 1 for a classifier that is not random.

    Attributes:
      predictions: the class of each input in each draw; -1 where the logits are no decision.
      success: whether the decision is the target or, without targets, any class but the label.
    """

    predictions: Int[np.ndarray, "D N"]
    success: Bool[np.ndarray, "D N"]

    def mean(self) -> Float[np.ndarray, " N"]:
        """The share of the draws in which the goal is reached."""
        return np.mean(self.success, axis=0)


def judge(
    classifier: Any,
    inputs: Num[Array | np.ndarray, "N ..."],
    labels: Int[Array | np.ndarray, " N"],
    targets: Int[Array | np.ndarray, " N"] | None = None,
    *,
    key: Key[Array, ""] | None = None,
    num_draws: int = 1,
    indices: Int[np.ndarray, " N"] | None = None,
    evaluate: Evaluator | None = None,
) -> Judgement:
    """Judges inputs by a classifier, with fresh draws where it is random.

    Args:
      classifier: from inputs to logits, or a `Randomized`.
      inputs: any number of them, bytes or floats.
      labels: the true classes.
      targets: the classes to reach; None for misclassification.
      key: for a `Randomized`: another one than the attack had.
      num_draws: of a `Randomized`, at least 1.
      indices: positions of the inputs in their data set, from which keys are derived. Default: 0 to N - 1.
      evaluate: applies programs to many inputs; Default: `Evaluator()`.

    Raises:
      TypeError: for a random classifier without a key.
      ValueError: for less than one draw.
    """
    check_whole_number("num_draws", num_draws, least=1)
    evaluate = evaluate or Evaluator()
    inputs, labels = np.asarray(inputs), np.asarray(labels)
    if isinstance(classifier, Randomized):
        if key is None:
            raise TypeError("a random classifier needs a key for the draws that judge it")
        indices = np.arange(len(inputs)) if indices is None else indices
        keys = [key_data(jax.random.fold_in(key, draw), indices) for draw in range(num_draws)]
        logits = [evaluate(_logits, classifier, inputs, data) for data in keys]
    else:
        logits = [evaluate(_logits, as_pytree(classifier), inputs)]
    predictions = np.stack([decisions(each) for each in logits])
    goal = predictions == np.asarray(targets) if targets is not None else (predictions != labels) & (predictions >= 0)
    return Judgement(predictions, goal)


def decisions(logits: Float[np.ndarray, "N K"]) -> Int[np.ndarray, " N"]:
    """The class of each input; -1 where the logits are no decision, see `attacks.examples.is_decision`."""
    is_decision = np.asarray(examples.is_decision(jnp.asarray(logits)))
    return np.where(is_decision, logits.argmax(1), -1).astype(np.int32)


def _logits(classifier: Any, inputs: Array, *keys: Array) -> Array:
    """The logits of inputs, bytes or floats; by one draw where there are keys, as integers."""
    return classifier(to_float(inputs), *map(jax.random.wrap_key_data, keys))
