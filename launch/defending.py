"""Defenses from their names, as they are deployed and as an attack that knows them looks through them."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from ddjax import attacks, classifier, defenses
from ddjax.classifier import Transform
from ddjax.defenses import squeezing
from launch import attacking, common

FLAGS = flags.FLAGS
NAMES = ("none", "squeezing", *defenses.TRANSFORMS)
_DETECTOR_SETTINGS = {"squeezers": "", "threshold": 0.0, "false_positive_rate": 0.05}
# Keys of the draws that judge are others than those of the draws that attack.
_JUDGING, _ATTACKING = 0x1D6E, 0xA77A


class Defense(NamedTuple):
    """A defense with its settings.

    Attributes:
      text: as the flag has it.
      transform: what is done to images; None for the network as it is, or with a detector beside it.
      squeezers: of the detector; empty where there is none.
      threshold: of the detector; None to calibrate it.
      false_positive_rate: for which it is calibrated.
    """

    text: str
    transform: Transform | None = None
    squeezers: tuple[Transform, ...] = ()
    threshold: float | None = None
    false_positive_rate: float = 0.05


def parse_defense(text: str, dataset: str) -> Defense:
    """Reads `name` or `name:key=value,key=value`.

    `squeezing` takes `squeezers=NAME+NAME`, by default those that the paper found best for the data set, or MNIST's for
    data sets without a published choice, and either a fixed `threshold` or a `false_positive_rate`; all other names are
    transforms with their keyword arguments.

    Raises:
      ValueError: for an unknown name or key, or a value that is missing or of the wrong kind; the message lists the
        known ones.
    """
    name = text.partition(":")[0]
    if name not in NAMES:
        raise ValueError(f"unknown defense {name!r}; known: {', '.join(NAMES)}")
    function = defenses.TRANSFORMS.get(name)
    defaults: dict[str, Any] = _DETECTOR_SETTINGS if name == "squeezing" else {}
    if function is not None:
        defaults = {
            parameter.name: parameter.default
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
            and isinstance(parameter.default, bool | int | float | str)
            and parameter.name != "straight_through"
        }
    settings = {
        key: attacking.read_setting(f"--defense={text}", key, value, defaults[key])
        for key, value in attacking.read_pairs("defense", text, defaults)
    }
    if function is not None:
        return Defense(text, classifier.transform(function, **settings))
    if name == "none":
        return Defense(text)
    names = settings.pop("squeezers", "+".join(squeezing.JOINT.get(dataset, squeezing.JOINT["mnist"])))
    if "threshold" in settings and "false_positive_rate" in settings:
        raise ValueError(f"--defense={text}: a threshold is either fixed or calibrated")
    rate = settings.get("false_positive_rate", 0.05)
    if not 0 <= rate < 1:
        raise ValueError(f"--defense={text}: a false-positive rate must be in [0, 1), got {rate}")
    squeezers = tuple(squeezing.squeezer(each) for each in names.split("+"))
    return Defense(text, None, squeezers, settings.get("threshold"), rate)


def deployed(defense: Defense, logits_fn: Any) -> Any:
    """The classifier that a user of the defense has; where it is random, one draw of each image."""
    if defense.transform is None:
        return logits_fn
    if not defenses.is_random(defense.transform):
        return classifier.transformed(logits_fn, defense.transform)
    random = classifier.randomized(logits_fn, defense.transform)
    return attacks.expectation(random, _key(_JUDGING), num_samples=1)


def aware(
    attack: attacking.Attack, defense: Defense, logits_fn: Any, *, temperature: float, threshold: float, samples: int
) -> tuple[attacking.Attack, Any]:
    """An attack that knows the defense, and the classifier that it sees.

    Args:
      attack: the one that does not.
      defense: the defense.
      logits_fn: the network.
      temperature: that the network was trained at, which the attack undoes.
      threshold: of the detector.
      samples: the draws of an expectation.

    Returns:
      C&W L2 against a detector becomes He et al.'s attack on both, and any other attack `squeezing.attack_detector`, or
      where it takes no targets the same on the views of the detector together. Through a transform the attack goes by
      its gradient, by BPDA or by an expectation.
    """
    if temperature != 1 and attack.temperature is None:
        attack = attack._replace(temperature=temperature)
    if defense.squeezers and attacking.takes_targets(attack.name):
        numbers, words = attack.numbers | {"threshold": threshold}, attack.words | {"squeezers": defense.squeezers}
        # The detector looks at probabilities as they are, and so must the attack.
        known = attack._replace(numbers=numbers, words=words, temperature=None)
        if attack.name == "carlini_wagner_l2":
            return known._replace(function=_undetected), logits_fn
        numbers["divisor"] = attack.temperature or 1.0
        return known._replace(function=_on_detector(attack.function)), logits_fn
    if defense.squeezers:
        return attack, squeezing.joint_classifier(logits_fn, defense.squeezers)
    if defense.transform is None:
        return attack, logits_fn
    through = defenses.aware(defense.transform)
    if not defenses.is_random(defense.transform):
        return attack, classifier.transformed(logits_fn, through)
    random = classifier.randomized(logits_fn, through)
    return attack, attacks.expectation(random, _key(_ATTACKING), num_samples=samples)


def _undetected(
    logits_fn: Any, images: Any, labels: Any, key: Any, *, squeezers: Any, threshold: Any, **rest: Any
) -> Any:
    del key
    return squeezing.adaptive_attack(logits_fn, images, labels, squeezers, threshold, **rest)


@functools.cache
def _on_detector(function: attacking.AttackFn) -> attacking.AttackFn:
    """`squeezing.attack_detector` with an attack, as one object for one program."""

    def attack(
        logits_fn: Any, images: Any, labels: Any, key: Any, *, squeezers: Any, threshold: Any, divisor: Any, **rest: Any
    ) -> attacks.AttackResult:
        detector = (squeezers, threshold, divisor)
        return squeezing.attack_detector(function, logits_fn, images, labels, key, *detector, **rest)

    return attack


def _key(purpose: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(FLAGS.seed), purpose)


def view(defense: Defense, images: np.ndarray) -> np.ndarray | None:
    """Images as the defended network, or else its detector's first squeezer, shows them; None where as they are."""
    if defense.squeezers:
        return np.asarray(defense.squeezers[0](jnp.asarray(images)))
    if defense.transform is None:
        return None
    keys = [jax.random.split(_key(_JUDGING), len(images))] if defenses.is_random(defense.transform) else []
    return np.asarray(defense.transform(jnp.asarray(images), *keys))


@functools.cache
def _scores(squeezers: tuple[Transform, ...]) -> Callable[[Any, jax.Array], jax.Array]:
    return lambda logits_fn, images: squeezing.detector_scores(logits_fn, squeezers, images)


def scores(defense: Defense, logits_fn: Any, images: np.ndarray) -> np.ndarray:
    """The detector's scores of any number of images."""
    return common.evaluate(_scores(defense.squeezers), logits_fn, images)


def threshold(defense: Defense, logits_fn: Any, calibration: np.ndarray) -> float:
    """The threshold of a detector, fixed or calibrated on clean images; infinite where there is no detector."""
    if not defense.squeezers:
        return float("inf")
    if defense.threshold is not None:
        return defense.threshold
    # In the precision of scores, so that the score it is taken from does not exceed it.
    found = squeezing.calibrated_threshold(scores(defense, logits_fn, calibration), defense.false_positive_rate)
    return float(jnp.float32(found))
