"""What launchers that attack share: `ddjax.evaluation` with the flags' seed, batch size and progress."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import flags

from ddjax import data, evaluation, runs
from ddjax.evaluation import Attempts, ConfiguredAttack, Outcome

from . import common

FLAGS = flags.FLAGS
# Keys of the draws that judge are others than those of the draws that attack.
JUDGING = 0x1D6E


def attempts(how: str, test: data.Dataset, logits: np.ndarray | None = None) -> Attempts:
    """The attempts on a test set, targets chosen as `evaluation.resolve_targets` says.

    Args:
      how: a choice of targets, or `"none"`.
      test: the test set.
      logits: of its clean inputs; needed for targets alone.
    """
    inputs = data.to_float(test.images)
    return evaluation.make_attempts(how, inputs, test.labels, logits=logits, indices=test.indices, seed=FLAGS.seed)


def decide(classifier: Any, inputs: np.ndarray) -> np.ndarray:
    """The class of each input, by one fresh draw where the classifier is random; -1 where there is no decision."""
    key = jax.random.fold_in(jax.random.key(FLAGS.seed), JUDGING)
    labels = np.zeros(len(inputs), np.int32)
    return evaluation.judge(classifier, inputs, labels, key=key, evaluate=common.evaluator()).predictions[0]


def run_attack(
    attack: ConfiguredAttack,
    logits_fn: Any,
    tried: Attempts,
    description: str,
    per_example: Mapping[str, np.ndarray] | None = None,
    judged: Any = None,
) -> Outcome:
    """`evaluation.run_attack` with the flags' seed, batch size and progress."""
    return evaluation.run_attack(
        attack,
        logits_fn,
        tried,
        key=jax.random.key(FLAGS.seed),
        judged=judged,
        per_example=per_example,
        evaluate=common.evaluator(),
        description=description,
    )


def save_outcome(run: runs.Run, name: str, tried: Attempts, outcome: Outcome) -> str:
    """Keeps the adversarial inputs, and what they were for, as `images/NAME.npz` of the run; returns that path."""
    targets = {} if tried.targets is None else {"targets": tried.targets}
    run.save_arrays(
        f"images/{name}",
        images=outcome.inputs,
        success=outcome.success,
        labels=tried.labels,
        rows=tried.rows,
        predictions=outcome.predictions,
        **targets,
    )
    return f"images/{name}.npz"


def save_clean(run: runs.Run, test: data.Dataset, logits: np.ndarray, name: str = "clean") -> None:
    """Keeps the test images as `images/NAME.npz`."""
    predictions = logits.argmax(1).astype(np.int32)
    run.save_arrays(f"images/{name}", images=test.images, labels=test.labels, predictions=predictions)
