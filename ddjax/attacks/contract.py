"""The contract of attacks: what each one declares, and what each one returns.

An attack is a plain function

    attack(logits_fn, inputs, labels, *, key=None, targets=None, mask=None, criterion=None, bounds=(0.0, 1.0), ...)

* `logits_fn` maps inputs `[B, ...]` to logits `[B, K]`, before softmax, at temperature 1.
* `labels [B]` are always the true classes. `targets [B]` makes the attack targeted.
* `key` is one typed key or B of them. The randomness of an example depends on its key alone.
* Real-valued settings may be traced; structural ones are static. None lets the attack choose.
* The result is inside the box and the budget. Its success is judged on exactly the inputs that are returned.

Attacks contain no `jit`: the caller compiles. `ddjax.attacks.problem` has the checks and the judgement that all attacks
share, `ddjax.attacks.loops` the loop that spends no time on finished examples.
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
    parameters = inspect.signature(function).parameters
    positional = [p.name for p in parameters.values() if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    missing = [each for each in ("key", "targets", "bounds") if each not in parameters]
    if positional != ["logits_fn", "inputs", "labels"] or missing:
        raise TypeError(
            f"attack {name!r} must take logits_fn, inputs and labels by position, and key, targets and bounds by name; "
            f"its signature is {inspect.signature(function)}"
        )
    return Attack(name, function, norms, kind, targets, random, access, refills, dict(example or {}))


def refuses_old_calls(attack: F) -> F:
    """Decorates an attack: a call in the form of an earlier version raises a sentence with the form of this one."""
    positional = [
        parameter.name
        for parameter in inspect.signature(attack).parameters.values()
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]

    @functools.wraps(attack)
    def checked(*args: Any, **settings: Any) -> Any:
        if len(args) > len(positional):
            raise TypeError(
                f"{attack.__name__} takes {', '.join(positional)} by position and all else by name, as in "
                f"{attack.__name__}({', '.join(positional)}, key=key, targets=targets); "
                f"it got {len(args)} positional arguments"
            )
        for old, new in _RENAMED.items():
            if old in settings:
                raise TypeError(f"{attack.__name__}: the argument {old!r} is now called {new!r}")
        return attack(*args, **settings)

    return checked  # pyright: ignore[reportReturnType]
