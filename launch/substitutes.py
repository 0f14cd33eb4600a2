"""Substitutes for the label-only black-box attacker: networks trained on the answers of a classifier."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from absl import flags

from ddjax import attacks, data, rounding, runs

from . import attacking, common, loading, recipes

FLAGS = flags.FLAGS
_QUERIES = flags.DEFINE_integer(
    "num_queries", 1000, "Inputs whose predictions train a substitute, at most.", lower_bound=10
)
_ROUNDS = flags.DEFINE_integer("substitute_rounds", 1, "Doublings of images by Jacobian augmentation.", lower_bound=0)
_EPOCHS = flags.DEFINE_integer("substitute_epochs", 10, "Epochs of each training of a substitute.", lower_bound=1)
# Lambda: by how much augmentation moves every value.
_STEP_SIZE = 0.1


@functools.cache
def _recipe(of: recipes.Recipe, epochs: int) -> recipes.Recipe:
    """Another network than the target's, as far as one recipe goes: without the defense, from another key."""
    # Without class weights, since the target may never answer with some class.
    none = {"augmentation": None, "transform": None, "adversary": None, "class_weights": False}
    return dataclasses.replace(of, epochs=epochs, thermometer_levels=0, warm_start_epochs=0, **none)


def _augmented(shared: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    logits_fn, limits = shared
    return attacks.jacobian_augmentation(logits_fn, images, labels, step_size=_STEP_SIZE, **limits)


def flags_of_run() -> dict[str, Any]:
    """The flags that determine what is trained."""
    return {name: FLAGS[name].value for name in ("num_queries", "substitute_rounds", "substitute_epochs")}


def queries(dataset: str, recipe: recipes.Recipe) -> data.Dataset:
    """Training images to ask about: another subset than what the target was trained on, as far as there are others."""
    return loading.load_train(dataset, recipe, _QUERIES.value, seed=FLAGS.seed + 1, at_most=True)


def train(run: runs.Run, name: str, recipe: recipes.Recipe, target: Any, queries: data.Dataset) -> Any:
    """Trains a substitute on what a classifier answers; with checkpoints, so that a stopped run goes on.

    After each round of `attacks.jacobian_augmentation` it is trained anew.

    Args:
      run: keeps the networks.
      name: of the target, a directory for them.
      recipe: undefended, of the substitute's network and optimizer.
      target: the classifier as it is deployed; its labels alone are looked at.
      queries: the first images to ask about; their labels are not looked at.

    Reference:
      Papernot et al., Practical Black-Box Attacks against Machine Learning, 2017 (arXiv 1602.02697).
    """
    chosen = _recipe(recipe, _EPOCHS.value)
    asked = dataclasses.replace(queries, labels=_ask(target, queries.images))
    logits_fn = None
    for number in range(_ROUNDS.value + 1):
        if logits_fn is not None:
            new = common.evaluate(_augmented, (logits_fn, asked.limits), data.to_float(asked.images), asked.labels)
            new = rounding.to_uint8(new) if asked.images.dtype == np.uint8 else new
            asked = dataclasses.replace(
                asked,
                images=np.concatenate([asked.images, new]),
                labels=np.concatenate([asked.labels, _ask(target, new)]),
                indices=np.concatenate([asked.indices, asked.indices]),
            )
        trainer = loading.trainer_of(run, chosen, asked, f"substitute_{name}/round{number}")
        logits_fn = trainer.plain(FLAGS.seed, role="substitute").logits_fn
    return logits_fn


def _ask(target: Any, images: np.ndarray) -> np.ndarray:
    """The target's answers; class 0 where it has none."""
    return np.maximum(attacking.decide(target, data.to_float(images)), 0)
