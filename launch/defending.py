"""Defenses with the keys and the evaluator of launchers; see `ddjax.defenses`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags

from ddjax import classifier, data, layers, rounding
from ddjax.defenses import Defense, models, squeezing
from ddjax.evaluation import ConfiguredAttack

from . import common
from .recipes import generative as generative_recipes

FLAGS = flags.FLAGS
# Keys of the draws that judge are others than those of the draws that attack.
_JUDGING, _ATTACKING, _PREPARING, _TRAINING, _FITTING = 0x1D6E, 0xA77A, 0xDA7A, 0x7841, 0xF177


def prepared(defense: Defense, images: np.ndarray) -> Defense:
    """The defense with what it takes in addition, made from training images, bytes or floats, or loaded.

    Raises:
      CheckpointError: where there is no trained model, or a damaged one; with the recipes that train one.
      ValueError: as the defense does.
    """
    try:
        return defense.prepared(data.to_float(images), _key(_PREPARING))
    except models.MissingModelError as error:
        names = [name for name, recipe in generative_recipes.RECIPES.items() if recipe.role == error.role]
        advice = f"train it with: python -m launch.train --recipe={' or --recipe='.join(names)}"
        raise models.MissingModelError(error.role, f"{error}; {advice}") from error


def deployed(defense: Defense, logits_fn: Any, draws: int = 1) -> Any:
    """The deployed classifier; a random one as the mean over some draws of each image."""
    defended = defense.deployed(logits_fn)
    if not isinstance(defended, classifier.Randomized):
        return defended
    return classifier.expectation(defended, _key(_JUDGING), num_samples=draws)


def naive(defense: Defense, logits_fn: Any) -> Any:
    """The deployed classifier as a defense-unaware attacker sees it."""
    return defense.naive(logits_fn, _key(_ATTACKING))


def seen_through(defense: Defense, logits_fn: Any, samples: int) -> Any:
    """The deployed classifier as a defense-aware attacker sees it."""
    return defense.aware(logits_fn, _key(_ATTACKING), samples)


def aware(
    attack: ConfiguredAttack, defense: Defense, logits_fn: Any, *, temperature: float, detector: Any, samples: int
) -> tuple[ConfiguredAttack, Any]:
    """A defense-aware attack, made of a defense-unaware one, and the classifier that it sees.

    Against the detector of feature squeezing, C&W L2 becomes He et al.'s attack on both, and any other attack
    `squeezing.attack_detector` or, without targets, the attack on `squeezing.joint_classifier`. Against other defenses
    the attack is the same, and sees the classifier through the defense's declared gradient, over `samples` draws where
    it is random. It undoes the temperature that the network was trained at.

    Raises:
      ValueError: for a detector that no attack here knows.
    """
    if temperature != 1 and attack.temperature is None:
        attack = attack.replace(temperature=temperature)
    if detector is None:
        return attack, seen_through(defense, logits_fn, samples)
    if not isinstance(detector, squeezing.SqueezingDetector):
        raise ValueError(f"no attack knows the detector {defense.text}; it would look robust")
    if attack.attack.targets == "no":
        return attack, squeezing.joint_classifier(logits_fn, detector.squeezers)
    numbers = {"threshold": detector.threshold}
    if attack.attack.name == "carlini_wagner_l2":
        function = squeezing.adaptive_attack
    else:
        function = _on_detector(attack.attack.function)
        numbers["divisor"] = attack.temperature or 1.0
    known = attack.replace(
        attack=dataclasses.replace(attack.attack, function=function),
        numbers=dict(attack.numbers) | numbers,
        words=dict(attack.words) | {"squeezers": detector.squeezers},
        # The detector looks at probabilities as they are, and so must the attack.
        temperature=None,
    )
    return known, logits_fn


@functools.cache
def _on_detector(function: Callable[..., Any]) -> Callable[..., Any]:
    """`squeezing.attack_detector` with an attack, as one object for one program."""
    return functools.partial(squeezing.attack_detector, function)


def _key(purpose: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(FLAGS.seed), purpose)


def view(defense: Defense, images: np.ndarray) -> np.ndarray | None:
    """Images as the defended network, or the detector's first squeezer, sees them; None where they are unchanged."""
    seen = _compiled_view()(defense, jax.numpy.asarray(images), _key(_JUDGING))
    return None if seen is None else np.asarray(seen)


@functools.cache
def _compiled_view() -> Any:
    """`Defense.view` as one program; operation by operation, a search or a density was compiled at each call."""
    return layers.jit(Defense.view)


def transformed(defense: Defense, dataset: data.Dataset) -> data.Dataset:
    """A data set as the defended network sees it, bytes as bytes; by one draw of each image where it is random.

    Raises:
      ValueError: for a defense that does not transform images, or images on disk, which may not fit into memory.
    """
    if dataset.on_disk:
        raise ValueError(f"{defense.text} needs the images in memory: give --num_train")
    key_data = common.key_data(dataset.indices, _TRAINING)
    description = f"{dataset.name} through {defense.text}"
    shown = common.evaluate(_shown, defense, dataset.images, key_data, description=description)
    return dataclasses.replace(dataset, images=shown)


def _shown(defense: Defense, images: jax.Array, key_data: jax.Array) -> jax.Array:
    """What the transform makes of bytes, as bytes, or of floats."""
    shown = defense.transform(data.to_float(images), jax.random.wrap_key_data(key_data))
    return rounding.to_uint8(shown) if images.dtype == np.uint8 else shown


def detector(defense: Defense, logits_fn: Any, images: np.ndarray, labels: np.ndarray) -> Any:
    """The fitted detector of a defense, see `Defense.detector`; None for a defense without one.

    Args:
      defense: the defense.
      logits_fn: the network.
      images: clean ones that are used for nothing else, in [0, 1].
      labels: their true classes.
    """
    if not defense.is_detector:
        return None
    return defense.detector(logits_fn, images, labels, key=_key(_FITTING), evaluate=common.evaluator())
