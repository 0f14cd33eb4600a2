"""The contract of attacks: what each one takes, declares and returns.

An attack is a plain function

    attack(logits_fn, inputs, labels, *, key=None, targets=None, mask=None, criterion=None, bounds=(0.0, 1.0), ...)

Its docstring describes its own settings. Those that may be traced say so; the others are static. None lets the attack
choose. All attacks have the following arguments in common, which `ddjax.attacks.problem.prepare` checks.

Args:
  logits_fn: a classifier: from inputs `[B, ...]` to logits `[B, K]`, before softmax, at temperature 1, K at least 2.
  inputs: floats inside the bounds, up to a few units in the last place.
  labels: the true classes, integers from 0 to K - 1, `[B]`.
  key: one typed key, or B of them. The randomness of an example depends on its key alone. An attack that is not random
    checks the key and does not use it.
  targets: the classes to reach, integers, `[B]`; none may be the label of its row. None for the untargeted attack.
  mask: which entries may change, booleans that broadcast against the inputs. None for all.
  criterion: the goal, in the place of misclassification: from logits, labels and targets (or None) to a value `[B]`
    that is negative where the attack has succeeded. The attack lowers it, in the place of its own loss or margin.
  bounds: the least and the greatest value of an input: numbers, or arrays that broadcast against one input, such as one
    for each channel. They may be infinite; an attack then needs those settings that are shares of the range by default.

Returns:
  An `AttackResult`, inside the box and the budget. Its success is judged on exactly the inputs that are returned.

Raises:
  TypeError: for arguments that are no arrays, no function or no typed key, and settings that are no numbers.
  ValueError: for shapes, types or values that do not fit, a setting out of its range, or a setting of None that has no
    default without finite bounds. The message says what was wanted.

Inside of a trace, where bad values cannot raise, a row with bad values comes back unchanged, as a failure. Attacks
contain no `jit`: the caller compiles. `ddjax.attacks.problem` has the checks and the judgement that all attacks share,
`ddjax.attacks.loops` the loop that spends no time on finished examples.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

from ddjax.checks import check_choice

NORMS = ("linf", "l2", "l1", "l0")
KINDS = ("budget", "minimum", "fixed", "ensemble")
TARGETS = ("no", "optional", "required")
ACCESS = ("gradient", "score", "decision")
# Names that changed with version 0.2.
_RENAMED = {"images": "inputs", "restarts": "num_restarts"}

F = TypeVar("F", bound=Callable[..., Any])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttackResult:
    """What every attack returns. Distances are not stored: `ddjax.metrics` measures them.

    The fields have no closer types, because the leaves of a pytree are also NumPy arrays, stacks and specifications.

    Attributes:
      inputs: the adversarial inputs, or the strongest that were found, `[B, ...]` floats inside the bounds. A row that
        is no valid input of the attack comes back unchanged.
      success: whether the attack reached its goal on exactly these inputs, `[B]` bools.
      logits: the logits of exactly these inputs, `[B, K]` floats; NaN in the rows that are not valid.
      steps: the number of changes made to each example, `[B]` integers.
      gradients: the number of gradients (backward passes) spent on each example, `[B]` integers.
      queries: the number of forward passes spent on each example, `[B]` integers.
      zero_gradients: how many of the gradients were zero in every feature, `[B]` integers. An attack that follows
        gradients sees nothing there: the classifier may be masked, not robust.
      info: what one attack has beyond this, such as a history or the members of an ensemble, as arrays `[B, ...]`.
    """

    inputs: Any
    success: Any
    logits: Any
    steps: Any
    gradients: Any
    queries: Any
    zero_gradients: Any
    info: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Attack:
    """The declaration of an attack.

    Attributes:
      name: in the registry.
      function: the attack.
      norm: the norms that it bounds or minimizes; the first is the default of its setting `norm`, if it has one.
      kind: `"budget"`, the strongest input within epsilon; `"minimum"`, the nearest success; `"fixed"`, a path of its
        own, as JSMA's; `"ensemble"`, several attacks.
      targets: whether it has a targeted form: `"no"`, `"optional"` or `"required"`.
      random: whether it needs a key with its default settings.
      access: what it asks of the classifier: `"gradient"`, `"score"` or `"decision"`.
      refills: whether it keeps a limited number of examples at work by itself (`loops.while_live` with `lanes`). Such
        an attack takes a whole batch at once; others run on parts of a large batch.
      example: settings with which the tests run it, so that it is fast.
    """

    name: str
    function: Callable[..., AttackResult]
    norm: tuple[str, ...]
    kind: str
    targets: str
    random: bool
    access: str
    refills: bool = False
    example: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    def norm_with(self, settings: Mapping[str, Any]) -> str:
        """The norm that it bounds or minimizes with some settings."""
        return settings.get("norm") or self.norm[0]


def declare(
    function: Callable[..., AttackResult],
    *,
    norm: str | tuple[str, ...],
    kind: str,
    targets: str,
    random: bool,
    access: str,
    name: str | None = None,
    refills: bool = False,
    example: Mapping[str, Any] | None = None,
) -> Attack:
    """Declares an attack; see `Attack` for the arguments.

    A file ends in `ATTACKS = (declare(...), ...)`. The registry `ddjax.attacks.ATTACKS` collects these tuples from the
    files of the package; a user's file is named by its import path, or registered with `ddjax.attacks.register`.

    Raises:
      ValueError: for an unknown word.
      TypeError: for a function that does not take the arguments of the contract.
    """
    norms = (norm,) if isinstance(norm, str) else tuple(norm)
    name = name or function.__name__
    for each in norms:
        check_choice("norm", each, NORMS)
    check_choice("kind", kind, KINDS)
    check_choice("targets", targets, TARGETS)
    check_choice("access", access, ACCESS)
    positional = _positional(function)
    missing = {"key", "targets", "bounds"} - inspect.signature(function).parameters.keys()
    if positional != ["logits_fn", "inputs", "labels"] or missing:
        raise TypeError(
            f"attack {name!r} must take logits_fn, inputs and labels by position, and key, targets and bounds by name; "
            f"its signature is {inspect.signature(function)}"
        )
    return Attack(name, function, norms, kind, targets, random, access, refills, dict(example or {}))


def _positional(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is not inspect.Parameter.KEYWORD_ONLY]


def refuses_old_calls(attack: F) -> F:
    """Decorates an attack: a call in the form of an earlier version raises a sentence with the form of this one."""
    positional = _positional(attack)

    @functools.wraps(attack)
    def checked(*args: Any, **settings: Any) -> Any:
        if len(args) > len(positional):
            names = ", ".join(positional)
            raise TypeError(
                f"{attack.__name__} takes {names} by position and all else by name, as in {attack.__name__}({names}, "
                f"key=key, targets=targets); it got {len(args)} positional arguments"
            )
        for old, new in _RENAMED.items():
            if old in settings:
                raise TypeError(f"{attack.__name__}: the argument {old!r} is now called {new!r}")
        return attack(*args, **settings)

    return checked  # pyright: ignore[reportReturnType]
