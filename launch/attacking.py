"""What the launchers that attack share: attacks from their names, targets, and measurements made from outside."""

import functools
import inspect
import math
import time
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from ddjax import attacks, classifier, data, metrics, rounding, runs

from . import common

FLAGS = flags.FLAGS
# How targets are chosen; `auto` depends on the attack.
TARGETS = ("auto", "all", "random", "next", "least_likely")
_NEEDS_TARGETS = ("jsma",)
_TAKES_NO_TARGETS = ("deepfool",)
FORWARDS = ("float32", "bfloat16")
# Settled by the launchers, not by a user's settings.
_RESERVED = ("targets", "bounds", "constraint")

AttackFn = Callable[..., attacks.AttackResult]


class Attack(NamedTuple):
    """An attack with its settings.

    Attributes:
      name: in `attacks.ATTACKS`, or another for the results.
      function: the attack.
      numbers: real-valued settings: arguments of the compiled program.
      words: all others: part of it.
      temperature: what the logits are divided by; None leaves the classifier as it is.
      forward: the precision in which the attack sees the classifier, one of `FORWARDS`.
      given: what else it takes that is made of arrays, such as a generator.
    """

    name: str
    function: AttackFn
    numbers: dict[str, float]
    words: dict[str, Any]
    temperature: float | None = None
    forward: str = "float32"
    given: Mapping[str, Any] = types.MappingProxyType({})


class Attempts(NamedTuple):
    """The images an attack is tried on, each once for each of its targets; all `[N, ...]`.

    Attributes:
      rows: which test image.
      images: in [0, 1].
      labels: the true classes.
      targets: the classes to reach, or None.
      indices: the test images' positions in their data set, from which keys derive.
    """

    rows: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    targets: np.ndarray | None
    indices: np.ndarray


class Outcome(NamedTuple):
    """What an attack did, `[N]` each; not what it says of itself.

    Attributes:
      images: as returned.
      predictions: the decisions of the classifier that was attacked.
      success: whether these are what was wanted.
      claimed: what the attack says of its success, by the classifier as it saw it.
      success_8_bits: the same as `success` after rounding the images to what a file holds.
      distances: from the clean images.
      steps: as returned.
      gradients: as returned.
      seconds: for one attempt, without compilation.
    """

    images: np.ndarray
    predictions: np.ndarray
    success: np.ndarray
    claimed: np.ndarray
    success_8_bits: np.ndarray
    distances: metrics.Distances
    steps: np.ndarray
    gradients: np.ndarray
    seconds: float


def parse_attack(text: str) -> Attack:
    """Reads `name` or `name:key=value,key=value`.

    Raises:
      ValueError: for an unknown name or key, or a value that is missing or of the wrong kind; the message lists the
        known ones.
    """
    name = text.partition(":")[0]
    if name not in attacks.ATTACKS:
        raise ValueError(f"unknown attack {name!r}; known: {', '.join(attacks.ATTACKS)}")
    function = attacks.ATTACKS[name]
    defaults = {
        parameter.name: parameter.default
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.name not in _RESERVED
    }
    # Any attack runs through softmax(Z / T), for which jsma has a score space, and in either precision.
    known = [*defaults, *(() if "temperature" in defaults else ("temperature",)), "forward"]
    numbers, words, temperature, forward = {}, {}, None, "float32"
    for key, value in read_pairs("attack", text, known):
        if key == "forward":
            if value not in FORWARDS:
                raise ValueError(f"--attack={text}: unknown forward {value!r}; known: {', '.join(FORWARDS)}")
            forward = value
        elif key not in defaults:
            temperature = float(read_setting(f"--attack={text}", key, value, 1.0))
            classifier.check_temperature(temperature)
        elif isinstance(defaults[key], float):
            numbers[key] = read_setting(f"--attack={text}", key, value, defaults[key])
        else:
            words[key] = read_setting(f"--attack={text}", key, value, defaults[key])
    return Attack(name, function, numbers, words, temperature, forward)


def read_pairs(flag: str, text: str, known: Collection[str]) -> Iterator[tuple[str, str]]:
    """Reads the settings of `name:key=value,key=value`, none where there is but a name.

    Args:
      flag: whose value it is, for errors.
      text: the value.
      known: the keys that the name has.

    Yields:
      Keys and values, as words.

    Raises:
      ValueError: for an unknown key or a missing value.
    """
    name, _, rest = text.partition(":")
    for part in rest.split(",") if rest else []:
        key, equals, value = part.partition("=")
        if key not in known:
            raise ValueError(f"{flag} {name} has no setting {key!r}; known: {', '.join(known) or 'none'}")
        if not equals or not value:
            raise ValueError(f"--{flag}={text}: {key!r} needs a value, as in {key}=VALUE")
        yield key, value


def read_setting(where: str, key: str, value: str, default: Any) -> Any:
    """Reads a setting by the type of its default.

    Args:
      where: the flag, for errors.
      key: the name of the setting.
      value: what was given.
      default: a bool, an int or a float; what has another type stays a word.

    Raises:
      ValueError: when it is of another kind.
    """
    if isinstance(default, bool):
        if value.lower() not in ("true", "false"):
            raise ValueError(f"{where}: {key} must be true or false, got {value!r}")
        return value.lower() == "true"
    if not isinstance(default, int | float):
        return value
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"{where}: {key} must be a number, got {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{where}: {key} must be finite, got {value}")
    if isinstance(default, float):
        return number
    if number != int(number):
        raise ValueError(f"{where}: {key} must be a whole number, got {value}")
    return int(number)


def resolve_targets(how: str, name: str) -> str:
    """How an attack's targets are chosen, `"none"` for untargeted.

    Raises:
      ValueError: for targets that an attack cannot take.
    """
    if not takes_targets(name):
        if how != "auto":
            raise ValueError(f"{name} has no targeted form: --targets={how} does not go with it")
        return "none"
    if how != "auto":
        return how
    return "all" if name in _NEEDS_TARGETS else "none"


def takes_targets(name: str) -> bool:
    """Whether an attack has a targeted form."""
    return name not in _TAKES_NO_TARGETS


def check_settings(attack: Attack, logits_fn: Any, image_shape: tuple[int, int, int], targeted: bool) -> None:
    """Lets the attack refuse its settings: traced without running, while the settings' values are still known."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    label = jax.ShapeDtypeStruct((1,), jnp.int32)
    settings = attack.numbers | attack.words
    jax.eval_shape(
        lambda f, x, y, t, k: attack.function(f, x, y, k, targets=t if targeted else None, **settings),
        logits_fn,
        image,
        label,
        label,
        jax.random.key(0),
    )


def choose_targets(how: str, logits: np.ndarray, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Chooses targets, never the label.

    Args:
      how: `"all"`, `"random"`, `"next"` or `"least_likely"`.
      logits: of the clean images, `[N, K]`.
      labels: `[N]`.
      seed: for `"random"`.

    Returns:
      For each attempt the row of its image, and its target.
    """
    count, classes = logits.shape
    if how == "all":
        rows, targets = np.repeat(np.arange(count), classes), np.tile(np.arange(classes), count)
        other = targets != labels[rows]
        return rows[other], targets[other].astype(np.int32)
    if how == "random":
        targets = (labels + np.random.default_rng(seed).integers(1, classes, count)) % classes
    elif how == "next":
        targets = (labels + 1) % classes
    else:
        targets = np.where(np.arange(classes) == labels[:, None], np.inf, logits).argmin(1)
    return np.arange(count), targets.astype(np.int32)


def attempts(how: str, test: data.Dataset, logits: np.ndarray) -> Attempts:
    """The attempts on a test set, targets chosen as `resolve_targets` says; `logits` are those of its clean images."""
    if how == "none":
        rows, targets = np.arange(len(test)), None
    else:
        rows, targets = choose_targets(how, logits, test.labels, FLAGS.seed)
    return Attempts(rows, data.to_float(test.images)[rows], test.labels[rows], targets, test.indices[rows])


def decide(logits_fn: Any, images: np.ndarray) -> np.ndarray:
    """The class of each image; -1, no class, where the logits are not finite."""
    logits = common.classify(logits_fn, images)
    return np.where(np.isfinite(logits).all(1), logits.argmax(1), -1).astype(np.int32)


def wanted(predictions: np.ndarray, tried: Attempts) -> np.ndarray:
    """Whether decisions are what the attempts were for."""
    if tried.targets is not None:
        return predictions == tried.targets
    return (predictions != tried.labels) & (predictions >= 0)


@functools.cache
def _program(function: AttackFn, words: tuple[tuple[str, Any], ...], targeted: bool, names: tuple[str, ...]) -> Any:
    """The attack as a function of what all examples share and of a batch; one object for each program.

    Args:
      function: the attack.
      words: its settings that are part of the program.
      targeted: whether the batch has targets.
      names: of the settings that differ from example to example.
    """

    def attack(shared: Any, images: jax.Array, labels: jax.Array, key_data: jax.Array, *rest: jax.Array) -> Any:
        logits_fn, numbers = shared
        targets = rest[0] if targeted else None
        settings = numbers | dict(words) | dict(zip(names, rest[int(targeted) :], strict=True))
        return function(logits_fn, images, labels, jax.random.wrap_key_data(key_data), targets=targets, **settings)

    return attack


def run_attack(
    attack: Attack, logits_fn: Any, tried: Attempts, description: str, per_example: dict[str, np.ndarray] | None = None
) -> Outcome:
    """Makes the attempts, and measures what came of them.

    Args:
      attack: with its settings.
      logits_fn: the classifier.
      tried: the attempts.
      description: for the progress bar.
      per_example: real-valued settings that differ from attempt to attempt, `[N]` each.

    Returns:
      The outcome.
    """
    names = tuple(per_example or ())
    program = _program(attack.function, tuple(sorted(attack.words.items())), tried.targets is not None, names)
    numbers = {name: np.float32(value) for name, value in attack.numbers.items()}
    seen = classifier.in_bfloat16(logits_fn) if attack.forward == "bfloat16" else logits_fn
    if attack.temperature is not None:
        seen = classifier.at_temperature(seen, attack.temperature)
    columns = [tried.images, tried.labels, common.key_data(tried.indices)]
    columns += [] if tried.targets is None else [tried.targets]
    columns += [(per_example or {})[name].astype(np.float32) for name in names]
    in_parts = attack.function not in attacks.KEEP_LANES
    evaluate = common.compiled_batched(program, (seen, numbers | dict(attack.given)), *columns, in_parts=in_parts)
    with common.progress(len(tried.rows), description, "attempt") as bar:
        started = time.monotonic()
        result = evaluate(bar.update)
        seconds = time.monotonic() - started
    predictions = decide(logits_fn, result.images)
    rounded = decide(logits_fn, rounding.round_to_8_bits(np.asarray(result.images)))
    measured = metrics.distances(jnp.asarray(tried.images), jnp.asarray(result.images))
    return Outcome(
        images=result.images,
        predictions=predictions,
        success=wanted(predictions, tried),
        claimed=result.success,
        success_8_bits=wanted(rounded, tried),
        distances=metrics.Distances(*(np.asarray(values) for values in measured)),  # pyright: ignore[reportArgumentType]
        steps=result.steps,
        gradients=result.gradients,
        seconds=seconds / len(tried.rows),
    )


def save_outcome(run: runs.Run, name: str, tried: Attempts, outcome: Outcome) -> str:
    """Keeps the images, and what they were for, as `images/NAME.npz` of the run; returns that path."""
    targets = {} if tried.targets is None else {"targets": tried.targets}
    run.save_arrays(
        f"images/{name}",
        images=outcome.images,
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


def costs(outcome: Outcome) -> dict[str, float]:
    """The fields of a record that say what an attack cost, mean over attempts."""
    return {
        "mean_steps": float(outcome.steps.mean()),
        "mean_gradients": float(outcome.gradients.mean()),
        "seconds_per_example": outcome.seconds,
    }
