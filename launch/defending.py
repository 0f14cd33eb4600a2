"""Defenses from their names, as they are deployed and as an attack that knows them looks through them."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from ddjax import attacks, checkpoints, classifier, data, defenses, generative, registry, rounding
from ddjax.classifier import Transform
from ddjax.defenses import defense_gan, input_transformations, pixel_defend, squeezing, thermometer
from ddjax.evaluation import ConfiguredAttack
from ddjax.state import TrainState

from . import common, recipes
from .recipes import generative as generative_recipes

FLAGS = flags.FLAGS
NAMES = ("none", "squeezing", *defenses.TRANSFORMS, *defenses.WRAPPERS, "thermometer")
_DETECTOR_SETTINGS = {"squeezers": "", "threshold": 0.0, "false_positive_rate": 0.05}
# What the database of quilting is made with.
_OF_DATABASE = {"num_patches": 10_000, "patch": 5}
# Where the models of these defenses are, and what they are.
_ROLES = {"pixel_defend": "density", "defense_gan": "generator"}
_MODELS = {
    name: {"model": f"runs/train_{recipe}/checkpoints/seed0_none/{_ROLES[name]}"}
    for name, recipe in (("pixel_defend", "pixelcnn_mnist"), ("defense_gan", "gan_mnist"))
}
# Settings that `prepared` uses up.
_PREPARING = {"quilting": _OF_DATABASE, **_MODELS}
_OF_CROPS = {"size": 24}
_THERMOMETER = {"levels": 16}
# Keys of the draws that judge are others than those of the draws that attack.
_JUDGING, _ATTACKING, _DATABASE, _TRAINING = 0x1D6E, 0xA77A, 0xDA7A, 0x7841


class Defense(NamedTuple):
    """A defense with its settings.

    Attributes:
      text: as the flag has it.
      transform: what is done to images; None for the network as it is, or with a detector beside it.
      wrapper: one of `defenses.WRAPPERS`, for a defense that is more than a transform; empty for none.
      settings: of the wrapper.
      given: what the wrapper takes beside the classifier, which `prepared` makes or loads: the patches of quilting, the
        density of PixelDefend, the generator of Defense-GAN.
      squeezers: of the detector; empty where there is none.
      threshold: of the detector; None to calibrate it.
      false_positive_rate: for which it is calibrated.
    """

    text: str
    transform: Transform | None = None
    wrapper: str = ""
    settings: tuple[tuple[str, Any], ...] = ()
    given: Any = None
    squeezers: tuple[Transform, ...] = ()
    threshold: float | None = None
    false_positive_rate: float = 0.05


def parse_defense(text: str, dataset: str) -> Defense:
    """Reads `name` or `name:key=value,key=value`.

    `squeezing` takes `squeezers=NAME+NAME`, by default those that the paper found best for the data set, or MNIST's for
    data sets without a published choice, and either a fixed `threshold` or a `false_positive_rate`; `thermometer` takes
    `levels`, and is for networks of such codes. All other names are those of `defenses.TRANSFORMS` and
    `defenses.WRAPPERS`, with their keyword arguments; `quilting` also takes those of its database, `pixel_defend` and
    `defense_gan` a `model`, the checkpoint of the density or the generator.

    Raises:
      ValueError: for an unknown name or key, or a value that is missing or of the wrong kind; the message lists the
        known ones.
    """
    name = text.partition(":")[0]
    if name not in NAMES:
        raise ValueError(f"unknown defense {name!r}; known: {', '.join(NAMES)}")
    defaults = _defaults(name)
    parameters = {
        key: inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default)
        for key, default in defaults.items()
    }
    settings: dict[str, Any] = registry.read_settings(f"--defense={text}", name, text.partition(":")[2], parameters)
    if name in (*defenses.WRAPPERS, "thermometer"):
        return Defense(text, wrapper=name, settings=tuple(sorted(settings.items())))
    if name in defenses.TRANSFORMS:
        return Defense(text, classifier.transform(defenses.TRANSFORMS[name], **settings))
    if name == "none":
        return Defense(text)
    names = settings.pop("squeezers", "+".join(squeezing.JOINT.get(dataset, squeezing.JOINT["mnist"])))
    if "threshold" in settings and "false_positive_rate" in settings:
        raise ValueError(f"--defense={text}: a threshold is either fixed or calibrated")
    rate = settings.get("false_positive_rate", 0.05)
    if not 0 <= rate < 1:
        raise ValueError(f"--defense={text}: a false-positive rate must be in [0, 1), got {rate}")
    squeezers = tuple(squeezing.squeezer(each) for each in names.split("+"))
    return Defense(text, squeezers=squeezers, threshold=settings.get("threshold"), false_positive_rate=rate)


def _defaults(name: str) -> dict[str, Any]:
    """The settings that a defense takes from a flag, with their defaults."""
    if name == "squeezing":
        return _DETECTOR_SETTINGS
    if name == "thermometer":
        return _THERMOMETER
    function = defenses.TRANSFORMS.get(name) or defenses.WRAPPERS.get(name)
    if function is None:
        return {}
    found = {
        # Sides that follow from the image where they are not given.
        parameter.name: 0 if parameter.default is None else parameter.default
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        and isinstance(parameter.default, bool | int | float | str | None)
        and parameter.name != "straight_through"
    }
    return found | (_PREPARING | {"crop_ensemble": _OF_CROPS}).get(name, {})


def check(defense: Defense, checkpoint: str, spec: checkpoints.NetworkSpec) -> None:
    """Refuses thermometer codes for a network that does not take them.

    Raises:
      ValueError: with the recipe that trains one.
    """
    if defense.wrapper != "thermometer":
        return
    levels = (_THERMOMETER | dict(defense.settings))["levels"]
    found = recipes.get(spec.recipe).thermometer_levels
    if found != levels:
        raise ValueError(
            f"--defense={defense.text} needs a network of codes with {levels} levels, that of {checkpoint} has "
            f"{found or 'none'}; --recipe=thermometer_quick trains one of 16"
        )


def prepared(defense: Defense, images: np.ndarray) -> Defense:
    """The defense with what it takes beside the classifier: the patches of quilting, the trained model of others.

    Args:
      defense: the defense.
      images: training images, or others of their shape where there is no database to be made of them.

    Raises:
      CheckpointError: where there is no trained model, or a damaged one.
      ValueError: when it is another kind of model, or of other images.
    """
    defaults = _PREPARING.get(defense.wrapper)
    if defaults is None:
        return defense
    settings = {name: dict(defense.settings).get(name, default) for name, default in defaults.items()}
    rest = tuple((name, value) for name, value in defense.settings if name not in defaults)
    if defense.wrapper == "quilting":
        patches = input_transformations.patch_database(jnp.asarray(data.to_float(images)), _key(_DATABASE), **settings)
        return defense._replace(given=patches, settings=rest)
    state = load_model(settings["model"], _ROLES[defense.wrapper], images.shape[1:])
    latent = generative.latent_of(state)
    return defense._replace(given=generative.model_fn(state), settings=rest + ((("latent", latent),) if latent else ()))


def load_model(checkpoint: str, role: str, image_shape: tuple[int, ...]) -> TrainState:
    """The trained model of a defense.

    Args:
      checkpoint: its directory.
      role: `"density"` or `"generator"`.
      image_shape: (H, W, C) of the images that it must take.

    Raises:
      CheckpointError: where there is none.
      ValueError: for a model of another role, or of images of another shape.
    """
    names = [name for name, recipe in generative_recipes.RECIPES.items() if recipe.role == role]
    try:
        spec = checkpoints.read_spec(checkpoint)
    except checkpoints.CheckpointError as error:
        advice = f"train it with: python -m launch.train --recipe={' or --recipe='.join(names)}"
        raise checkpoints.CheckpointError(f"{error}; {advice}") from error
    if spec.role != role:
        raise ValueError(f"{checkpoint} holds a {spec.role}, not a {role}; recipes of one: {', '.join(names)}")
    if spec.image_shape != image_shape:
        raise ValueError(f"the {role} of {checkpoint} is of images of shape {spec.image_shape}, not {image_shape}")
    state, _ = checkpoints.load_network(checkpoint)
    return state


def deployed(defense: Defense, logits_fn: Any, draws: int = 1) -> Any:
    """The classifier that a user of the defense has; where it is random, one draw of each image or the mean of more."""
    defended = _defended(defense, logits_fn)
    if not isinstance(defended, classifier.Randomized):
        return defended
    return classifier.expectation(defended, _key(_JUDGING), num_samples=draws)


def naive(defense: Defense, logits_fn: Any) -> Any:
    """The deployed classifier as an attack sees it that takes its gradients for what they are, and its draw for all."""
    defended = _defended(defense, logits_fn)
    if not isinstance(defended, classifier.Randomized):
        return defended
    return classifier.single_draw(defended, _key(_ATTACKING))


def seen_through(defense: Defense, logits_fn: Any, samples: int) -> Any:
    """The deployed classifier as an attack that knows it sees it: by BPDA, and by an expectation over draws."""
    if defense.wrapper == "thermometer":
        return thermometer.aware(logits_fn, **dict(defense.settings))
    seen = _defended(defense, logits_fn, aware=True)
    if not isinstance(seen, classifier.Randomized):
        return seen
    if defense.wrapper in ("crop_ensemble", "defense_gan"):
        # A draw is an expectation over crops already, or the best of several starts.
        samples = 1
    return classifier.expectation(seen, _key(_ATTACKING), num_samples=samples)


def _defended(defense: Defense, logits_fn: Any, *, aware: bool = False) -> Any:
    """The network behind the defense, a `Randomized` where that is random."""
    settings = dict(defense.settings)
    if defense.wrapper in _PREPARING:
        if defense.given is None:
            raise ValueError(f"{defense.wrapper} is not whole: pass the defense through `prepared`")
        wrap = defenses.WRAPPERS[defense.wrapper]
        return wrap(logits_fn, defense.given, **settings, straight_through=aware)
    if defense.wrapper == "crop_ensemble":
        return input_transformations.crop_ensemble(logits_fn, **_OF_CROPS | settings)
    if defense.wrapper in defenses.WRAPPERS:
        return defenses.WRAPPERS[defense.wrapper](logits_fn, **settings)
    if defense.transform is None:
        return logits_fn
    transform = defenses.aware(defense.transform) if aware else defense.transform
    if defenses.is_random(defense.transform):
        return classifier.randomized(logits_fn, transform)
    return classifier.transformed(logits_fn, transform)


def aware(
    attack: ConfiguredAttack, defense: Defense, logits_fn: Any, *, temperature: float, threshold: float, samples: int
) -> tuple[ConfiguredAttack, Any]:
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
        attack = attack.replace(temperature=temperature)
    if defense.squeezers and attack.attack.targets != "no":
        numbers = dict(attack.numbers) | {"threshold": threshold}
        words = dict(attack.words) | {"squeezers": defense.squeezers}
        # The detector looks at probabilities as they are, and so must the attack.
        known = attack.replace(numbers=numbers, words=words, temperature=None)
        if attack.attack.name == "carlini_wagner_l2":
            return known.replace(attack=dataclasses.replace(attack.attack, function=_undetected)), logits_fn
        numbers["divisor"] = attack.temperature or 1.0
        together = _on_detector(attack.attack.function)
        return known.replace(attack=dataclasses.replace(attack.attack, function=together)), logits_fn
    if defense.squeezers:
        return attack, squeezing.joint_classifier(logits_fn, defense.squeezers)
    return attack, seen_through(defense, logits_fn, samples)


def _undetected(
    logits_fn: Any, images: Any, labels: Any, *, key: Any, squeezers: Any, threshold: Any, **rest: Any
) -> Any:
    del key
    return squeezing.adaptive_attack(logits_fn, images, labels, squeezers, threshold, **rest)


@functools.cache
def _on_detector(function: Callable[..., Any]) -> Callable[..., Any]:
    """`squeezing.attack_detector` with an attack, as one object for one program."""

    def attack(
        logits_fn: Any, images: Any, labels: Any, *, key: Any, squeezers: Any, threshold: Any, divisor: Any, **rest: Any
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
    if defense.wrapper == "thermometer":
        levels = dict(defense.settings)
        return np.asarray(thermometer.decode(thermometer.encode(jnp.asarray(images), **levels), **levels))
    if defense.transform is None and defense.given is None:
        return None
    keys = jax.random.split(_key(_JUDGING), len(images))
    return np.asarray(_transform(defense._replace(given=None), jnp.asarray(images), keys, defense.given))


def transformed(defense: Defense, dataset: data.Dataset) -> data.Dataset:
    """A data set as the defended network sees it, in bytes; where the defense is random, by one draw of each image.

    Raises:
      ValueError: for a defense that does not transform images, or images on disk, which may not fit into memory.
    """
    if defense.transform is None and defense.given is None:
        raise ValueError(f"{defense.text} does not transform images")
    if dataset.on_disk:
        raise ValueError(f"{defense.text} needs the images in memory: give --num_train")
    key_data = common.key_data(dataset.indices, _TRAINING)
    description = f"{dataset.name} through {defense.text}"
    shown = common.evaluate(
        _shown(defense._replace(given=None)), defense.given, dataset.images, key_data, description=description
    )
    return dataclasses.replace(dataset, images=shown)


@functools.cache
def _shown(defense: Defense) -> Callable[..., jax.Array]:
    """The transform as one object for one program, from and to bytes."""

    def show(given: Any, images: jax.Array, key_data: jax.Array) -> jax.Array:
        seen = _transform(defense, data.to_float(images), jax.random.wrap_key_data(key_data), given)
        return rounding.to_uint8(seen)

    return show


def _transform(defense: Defense, images: jax.Array, keys: jax.Array, given: Any) -> jax.Array:
    """What a transform, or a wrapper that transforms images by what it was given, makes of them."""
    if defense.transform is None:
        settings = dict(defense.settings)
        if defense.wrapper == "pixel_defend":
            return pixel_defend.purify(images, given, **settings)
        function = {"quilting": input_transformations.quilt, "defense_gan": defense_gan.reconstruct}[defense.wrapper]
        return function(images, keys, given, **settings)
    return defense.transform(images, keys) if defenses.is_random(defense.transform) else defense.transform(images)


@functools.cache
def _scores(squeezers: tuple[Transform, ...]) -> Callable[[Any, jax.Array], jax.Array]:
    return lambda logits_fn, images: squeezing.detector_scores(logits_fn, squeezers, images)


class Detector(NamedTuple):
    """The squeezing detector of a defense beside its network, as `evaluation.MatrixRow` takes it.

    Attributes:
      defense: a defense with squeezers.
      logits_fn: the network.
      threshold: of the scores.
    """

    defense: Defense
    logits_fn: Any
    threshold: float

    def scores(self, inputs: np.ndarray) -> np.ndarray:
        """The detector's scores of any number of images."""
        return common.evaluate(_scores(self.defense.squeezers), self.logits_fn, inputs)

    def flags(self, inputs: np.ndarray) -> np.ndarray:
        """Which images it takes for adversarial."""
        return np.asarray(squeezing.is_detected(jnp.asarray(self.scores(inputs)), self.threshold))


def detector(defense: Defense, logits_fn: Any, calibration: np.ndarray) -> Detector | None:
    """The detector of a defense, its threshold fixed or calibrated on clean images; None where there is none."""
    if not defense.squeezers:
        return None
    if defense.threshold is not None:
        return Detector(defense, logits_fn, defense.threshold)
    scores = Detector(defense, logits_fn, 0.0).scores(calibration)
    found = squeezing.calibrated_threshold(scores, defense.false_positive_rate)
    # In the precision of scores, so that the score it is taken from does not exceed it.
    return Detector(defense, logits_fn, float(jnp.float32(found)))
