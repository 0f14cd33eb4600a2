"""What is common to the calls of all models: their layout, and errors in one sentence."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array

from ddjax.checks import check_choice, first_line

LAYOUTS = ("channels_last", "channels_first")
# What flax says by the type of its error, and what to do about it.
_REMEDIES: tuple[tuple[tuple[type, ...], str], ...] = (
    (
        (flax.errors.ModifyScopeVariableError,),
        "it changes its batch statistics, as in training: name the argument that switches training off",
    ),
    (
        (flax.errors.InvalidRngError,),
        "it draws random numbers, as in training: name the argument that switches dropout off",
    ),
    (
        (flax.errors.ScopeCollectionNotFound, flax.errors.ScopeVariableNotFoundError),
        'a collection is missing: give all variables that module.init returns, {"params": ..., "batch_stats": ...}',
    ),
    (
        (flax.errors.ScopeParamShapeError, flax.errors.ScopeParamNotFoundError),
        "its parameters are those of another network, or of inputs of another size",
    ),
)


@contextmanager
def explained(what: str, inputs: Array) -> Iterator[None]:
    """Turns the errors of a model that cannot take these inputs into a sentence that names the remedy.

    Errors of a trace, such as a branch on a traced value, say themselves where they come from and stay.

    Raises:
      ValueError: in their place.
    """
    try:
        yield
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
        raise
    except (flax.errors.FlaxError, TypeError, ValueError, KeyError) as error:
        remedy = next((text for types, text in _REMEDIES if isinstance(error, types)), None)
        shape = "[B, " + ", ".join(map(str, inputs.shape[1:])) + "]"
        reason = f"{remedy} ({first_line(error)})" if remedy else first_line(error)
        hint = ""
        if inputs.ndim == 4 and inputs.shape[1] in (1, 3) and inputs.shape[-1] not in (1, 3):
            hint = "; these look like images with channels first, and ddjax takes [B, H, W, C]"
        raise ValueError(f"{what} cannot take inputs {shape}: {reason}{hint}") from error


@dataclasses.dataclass(frozen=True)
class _Arranged:
    """Calls a function on inputs as it wants them; compared by value.

    Attributes:
      function: of the variables and the inputs.
      layout: of images `[B, H, W, C]`, one of `LAYOUTS`; other inputs stay as they are.
      per_example: whether it takes one example, not a batch.
    """

    function: Callable[..., Any]
    layout: str
    per_example: bool

    def __call__(self, *arguments: Any) -> Any:
        *variables, inputs = arguments
        if self.layout == "channels_first" and inputs.ndim == 4:
            inputs = jnp.moveaxis(inputs, -1, 1)
        if not self.per_example:
            return self.function(*variables, inputs)
        one = lambda example: self.function(*variables, example)
        # Batch normalization of Equinox asks for the name even in evaluation.
        return jax.vmap(one, axis_name="batch")(inputs)


def arrange(bound: Partial, layout: str | None, per_example: bool | None) -> Partial:
    """The classifier of a bound model that wants its inputs in another layout, or one by one.

    Raises:
      ValueError: for an unknown layout.
    """
    layout = layout or "channels_last"
    check_choice("layout", layout, LAYOUTS)
    if layout == "channels_last" and not per_example:
        return bound
    return Partial(_Arranged(bound.func, layout, bool(per_example)), *bound.args)
