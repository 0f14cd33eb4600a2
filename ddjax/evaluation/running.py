"""Attacks with their settings, run on any number of attempts, and measured from outside."""

import dataclasses
import functools
import inspect
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from ddjax import classifier, metrics, registry
from ddjax.attacks import ATTACKS, Attack, AttackResult
from ddjax.attacks.problem import Bounds
from ddjax.checks import check_choice
from ddjax.evaluation.attempts import Attempts, key_data
from ddjax.evaluation.judging import judge
from ddjax.parallel import Evaluator
from ddjax.rounding import round_to_levels

FORWARDS = ("float32", "bfloat16")
# Arguments of an attack that are no settings of a user.
_RESERVED = ("key", "targets", "bounds", "constraint", "criterion", "mask", "start")
# Settings that every attack has when it is run by name.
_COMMON = {
    "temperature": inspect.Parameter("temperature", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=float),
    "forward": inspect.Parameter("forward", inspect.Parameter.KEYWORD_ONLY, default="float32", annotation=str),
}


@dataclasses.dataclass(frozen=True)
class ConfiguredAttack:
    """An attack with its settings.

    Attributes:
      text: how it is called in results.
      attack: its declaration.
      numbers: real-valued settings: arguments of the compiled program.
      words: all other settings: part of the program.
      temperature: what the logits are divided by for the attack; None leaves the classifier as it is.
      forward: the precision in which the attack sees the classifier, one of `FORWARDS`.
      given: further arguments that are made of arrays, such as a generator, bounds or a mask.
    """

    text: str
    attack: Attack
    numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    words: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    temperature: float | None = None
    forward: str = "float32"
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def norm(self) -> str:
        """The norm that it bounds or minimizes with its settings."""
        return self.attack.norm_with(self.words)

    def replace(self, **changes: Any) -> "ConfiguredAttack":
        """A copy with other fields."""
        return dataclasses.replace(self, **changes)

    def limited(self, bounds: Bounds | None = None, mask: Any = None) -> "ConfiguredAttack":
        """A copy that moves inputs within bounds and a mask, as the contract of attacks has them; None for any.

        Both broadcast against one input. Bounds that are arrays are finite.

        Raises:
          ValueError: for arrays with infinite bounds, and for an attack that takes no mask.
        """
        words, given = dict(self.words), dict(self.given)
        if bounds is not None and all(np.ndim(end) == 0 for end in bounds):
            # As part of the program: whether they are finite decides about defaults.
            words["bounds"] = tuple(float(end) for end in bounds)
        elif bounds is not None:
            given["bounds"] = tuple(np.asarray(end, np.result_type(end, np.float32)) for end in bounds)
            if not all(np.isfinite(end).all() for end in given["bounds"]):
                raise ValueError("bounds that are arrays must be finite; infinite ones are two numbers")
        if mask is not None:
            parameters = inspect.signature(self.attack.function).parameters.values()
            if not any(each.name == "mask" or each.kind is each.VAR_KEYWORD for each in parameters):
                raise ValueError(f"{self.text} takes no mask, and some values must not change")
            given["mask"] = jnp.asarray(mask)
        return self.replace(words=words, given=given)


class Outcome(NamedTuple):
    """What an attack did, for N attempts; measured from outside, except for `claimed`.

    Attributes:
      inputs: as returned.
      predictions: the decisions of the judged classifier, by one draw where it is random.
      success: whether these are what was wanted.
      success_rate: the share of the judge's draws in which they are.
      claimed: what the attack says of its success, by the classifier as it saw it.
      success_8_bits: `success` after images are rounded to what an 8-bit file holds; None for inputs that are no images
        `[N, H, W, C]` within finite bounds.
      distances: from the clean inputs.
      steps, gradients, queries, zero_gradients: as returned.
      seconds: for one attempt, without compilation.
    """

    inputs: np.ndarray
    predictions: np.ndarray
    success: np.ndarray
    success_rate: np.ndarray
    claimed: np.ndarray
    success_8_bits: np.ndarray | None
    distances: metrics.Distances
    steps: np.ndarray
    gradients: np.ndarray
    queries: np.ndarray
    zero_gradients: np.ndarray
    seconds: float

    @property
    def zero_gradient_share(self) -> float | None:
        """The share of all gradients that were exactly zero; None for an attack that takes none."""
        total = int(self.gradients.sum())
        return int(self.zero_gradients.sum()) / total if total else None


def settings_of(attack: Attack) -> dict[str, inspect.Parameter]:
    """The settings that an attack takes by name on a command line, with its defaults."""
    own = registry.settings_of(attack.function, _RESERVED)
    return own | {name: each for name, each in _COMMON.items() if name not in own}


def parse_attack(text: str, flag: str = "--attack") -> ConfiguredAttack:
    """Reads `name:key=value,key=value`; the name may be an import path, `package.module:name`.

    `temperature=T` divides the logits by T for the attack, and `forward=bfloat16` lets it see the classifier in that
    precision. An attack with a temperature of its own takes it as that: for `jsma` it implies the score space
    `"tempered"`.

    Raises:
      ValueError: for an unknown name or key, or a value that is missing or of another type; the message lists the known
        ones.
    """
    name, settings = ATTACKS.split(text)
    attack = ATTACKS.find(name)
    found: dict[str, Any] = registry.read_settings(f"{flag}={text}", name, settings, settings_of(attack))
    own = registry.settings_of(attack.function, _RESERVED)
    common = {key: found.pop(key) for key in _COMMON if key in found and key not in own}
    forward, temperature = common.get("forward", "float32"), common.get("temperature")
    check_choice("forward", forward, FORWARDS)
    if temperature is not None:
        classifier.check_temperature(temperature)
    if "temperature" in found and "score_space" in own:
        found.setdefault("score_space", "tempered")
    numbers = {key: value for key, value in found.items() if registry.is_real(own[key]) and value is not None}
    words = {key: value for key, value in found.items() if key not in numbers}
    return ConfiguredAttack(text, attack, numbers, words, temperature, forward)


def check_settings(configured: ConfiguredAttack, logits_fn: Any, input_shape: tuple[int, ...], targeted: bool) -> None:
    """Lets the attack refuse its settings: it is traced without running, while their values are still known.

    Raises:
      TypeError: as the attack.
      ValueError: as the attack.
    """
    settings = {**configured.numbers, **configured.words, **configured.given}
    jax.eval_shape(
        lambda f, x, y, t, k: configured.attack.function(f, x, y, key=k, targets=t if targeted else None, **settings),
        classifier.as_pytree(logits_fn),
        jax.ShapeDtypeStruct((1, *input_shape), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
        jax.random.key(0),
    )


@functools.cache
def _program(
    function: Callable[..., AttackResult], words: tuple[tuple[str, Any], ...], targeted: bool, names: tuple[str, ...]
) -> Any:
    """An attack as a function of what all examples share and of a batch; one object for each program.

    `words` are part of the program. The batch ends in the targets, if there are any, and the settings `names`.
    """

    def attack(shared: Any, inputs: Array, labels: Array, key_data: Array, *rest: Array) -> AttackResult:
        logits_fn, numbers = shared
        targets = rest[0] if targeted else None
        settings = numbers | dict(words) | dict(zip(names, rest[int(targeted) :], strict=True))
        return function(logits_fn, inputs, labels, key=jax.random.wrap_key_data(key_data), targets=targets, **settings)

    return attack


def run_attack(
    configured: ConfiguredAttack,
    logits_fn: Any,
    attempts: Attempts,
    *,
    key: Key[Array, ""],
    judged: Any = None,
    num_draws: int = 1,
    per_example: Mapping[str, np.ndarray] | None = None,
    evaluate: Evaluator | None = None,
    description: str = "",
) -> Outcome:
    """Makes the attempts, and measures what came of them.

    Args:
      configured: the attack with its settings.
      logits_fn: the classifier as the attack sees it.
      attempts: inputs, labels and targets.
      key: of the attack; the judge's draws come from another one.
      judged: the classifier that decides about success, perhaps a `Randomized`. Default: `logits_fn`.
      num_draws: of a random one, see `judge`.
      per_example: real-valued settings that differ from attempt to attempt, `[N]` each.
      evaluate: applies programs to many inputs. Default: `Evaluator()`.
      description: for the display of progress. Default: the attack's text.
    """
    evaluate = evaluate or Evaluator()
    judged = logits_fn if judged is None else judged
    seen, per_example = classifier.as_pytree(logits_fn), per_example or {}
    if configured.forward == "bfloat16":
        seen = classifier.in_bfloat16(seen)
    if configured.temperature is not None:
        seen = classifier.at_temperature(seen, configured.temperature)
    numbers = {name: np.float32(value) for name, value in configured.numbers.items()}
    targets = () if attempts.targets is None else (attempts.targets,)
    program = _program(
        configured.attack.function, tuple(sorted(configured.words.items())), bool(targets), tuple(per_example)
    )
    own = (np.asarray(values, np.float32) for values in per_example.values())
    columns = (attempts.inputs, attempts.labels, key_data(key, attempts.indices), *targets, *own)
    shared = (seen, numbers | dict(configured.given))
    work = evaluate.compiled(program, shared, *columns, in_parts=not configured.attack.refills)
    with evaluate.progress(len(attempts.rows), description or configured.text, "attempt") as bar:
        started = time.monotonic()
        result = work(bar.update)
        seconds = time.monotonic() - started
    settings = {"key": jax.random.fold_in(key, 0x1D6E), "indices": attempts.indices, "evaluate": evaluate}
    judgement = judge(judged, result.inputs, attempts.labels, attempts.targets, num_draws=num_draws, **settings)
    rounded = None
    low, high = configured.words.get("bounds") or configured.given.get("bounds", (0.0, 1.0))
    if result.inputs.ndim == 4 and np.isfinite(np.subtract(high, low)).all() and np.less(low, high).all():
        stored = round_to_levels(result.inputs, 256, low, high)
        rounded = judge(judged, stored, attempts.labels, attempts.targets, **settings)
    return Outcome(
        inputs=result.inputs,
        predictions=judgement.predictions[0],
        success=judgement.success[0],
        success_rate=judgement.mean(),
        claimed=result.success,
        success_8_bits=None if rounded is None else rounded.success[0],
        distances=jax.tree.map(np.asarray, metrics.distances(jnp.asarray(attempts.inputs), jnp.asarray(result.inputs))),
        steps=result.steps,
        gradients=result.gradients,
        queries=result.queries,
        zero_gradients=result.zero_gradients,
        seconds=seconds / len(attempts.rows),
    )


def costs(outcome: Outcome) -> dict[str, float | None]:
    """The fields of a record that say what an attack cost, mean over attempts, and how many gradients were zero."""
    return {
        "mean_steps": float(outcome.steps.mean()),
        "mean_gradients": float(outcome.gradients.mean()),
        "mean_queries": float(outcome.queries.mean()),
        "zero_gradient_share": outcome.zero_gradient_share,
        "seconds_per_example": outcome.seconds,
    }
