"""Classifiers of functions with their arrays: any function, and those of Haiku, Keras and jax.export."""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
from jax.custom_batching import sequential_vmap
from jax.tree_util import Partial
from jaxtyping import Array

from ddjax.binding import modes
from ddjax.binding.calls import explained


@dataclasses.dataclass(frozen=True)
class _Call:
    """Calls a function of arrays and inputs; compared by value."""

    function: Callable[..., Any]
    static: tuple[tuple[str, Any], ...]

    def __call__(self, *arguments: Any) -> Array:
        with explained(_name(self.function), arguments[-1]):
            return self.function(*arguments, **dict(self.static))


def bind_function(function: Callable[..., Array], *pytrees: Any, **static: Any) -> Partial:
    """The classifier `inputs -> function(*pytrees, inputs, **static)`, for models that `bind` does not know.

    Arrays in `pytrees` are arguments of each program: another set of weights of the same shapes compiles nothing.
    Arrays that the function itself closes over are constants of the program.

    Args:
      function: from the pytrees and inputs `[B, ...]` to logits `[B, K]`.
      *pytrees: of arrays and numbers.
      **static: further keyword arguments; hashable, part of the program. Those that switch training off are found by
        their names: `train`, `training`, `is_training`, `deterministic`, `use_running_average`.

    Raises:
      TypeError: for what is no function, or a leaf that is neither an array nor a number.
      ValueError: for an argument that the function does not have, or needs and does not get.
    """
    if isinstance(function, type) or not callable(function):
        raise TypeError(f"bind_function needs a function, got {function!r}")
    if isinstance(function, Partial):
        if pytrees or static:
            raise TypeError("bind_function got a Partial, which has its arrays: give its function and all arrays")
        return function
    for leaf in jax.tree.leaves(pytrees):
        if not (hasattr(leaf, "dtype") or isinstance(leaf, int | float | complex)):
            raise TypeError(
                f"bind_function needs pytrees of arrays, got a leaf of type {type(leaf).__name__}; what is no array "
                "goes by name: bind_function(function, weights, name=value)"
            )
    static_of_call = modes.static_arguments(_name(function), function, static, len(pytrees) + 1)
    return Partial(_Call(function, static_of_call), *pytrees)


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


@dataclasses.dataclass(frozen=True)
class _HaikuCall:
    """Calls the `apply` of a transformed function of Haiku, without a key."""

    apply: Callable[..., Any]
    static: tuple[tuple[str, Any], ...]
    takes_key: bool
    has_state: bool

    def __call__(self, *arguments: Any) -> Any:
        *variables, inputs = arguments
        key = (None,) if self.takes_key else ()
        with explained("the Haiku function", inputs):
            outputs = self.apply(*variables, *key, inputs, **dict(self.static))
        return outputs[0] if self.has_state else outputs


def bind_haiku(transformed: Any, *variables: Any, **static: Any) -> Partial:
    """The classifier of `hk.transform(f)` and its parameters, or of one with state and both; see `bind`."""
    has_state = type(transformed).__name__ == "TransformedWithState"
    wanted = ("params", "state") if has_state else ("params",)
    if len(variables) != len(wanted):
        raise ValueError(
            f"bind needs {' and '.join(wanted)} of the Haiku function, as its init returns them: "
            f"bind(transformed, {', '.join(wanted)})"
        )
    takes_key = "rng" in modes.parameters(transformed.apply)
    first = len(wanted) + takes_key + 1
    found = modes.static_arguments("the Haiku function", transformed.apply, static, first)
    return Partial(_HaikuCall(transformed.apply, found, takes_key, has_state), *variables)


@dataclasses.dataclass(frozen=True)
class _KerasCall:
    """Calls a Keras model without changing it; compared by the model's identity."""

    model: Any
    static: tuple[tuple[str, Any], ...]

    def __call__(self, trainable: Any, others: Any, inputs: Array) -> Array:
        with explained(type(self.model).__name__, inputs):
            return self.model.stateless_call(trainable, others, inputs, **dict(self.static))[0]


def bind_keras(model: Any, *variables: Any, **static: Any) -> Partial:
    """The classifier of a Keras model on JAX, with its own variables or the two lists that are given; see `bind`."""
    keras: Any = importlib.import_module("keras")

    if keras.backend.backend() != "jax":
        raise ValueError(
            f"Keras computes with {keras.backend.backend()} here: set KERAS_BACKEND=jax before it is imported"
        )
    if not model.built:
        raise ValueError("the Keras model has no variables yet: call it, or build it with its input shape")
    if not variables:
        values = lambda group: [each.value for each in group]
        variables = (values(model.trainable_variables), values(model.non_trainable_variables))
    if len(variables) != 2:
        raise ValueError("bind needs the trainable and the non-trainable variables of a Keras model, or neither")
    found = modes.static_arguments(type(model).__name__, model.call, static, 1)
    return Partial(_KerasCall(model, tuple(sorted({"training": False, **dict(found)}.items()))), *variables)


@dataclasses.dataclass(frozen=True)
class _ExportedCall:
    """Calls an exported function; compared by the identity of the export.

    `jax.export` gives it a gradient, but no rule for `vmap`, which Jacobians need: examples then go one by one.
    """

    exported: Any

    def __call__(self, *arguments: Any) -> Any:
        with explained("the exported function", arguments[-1]):
            return _exported_function(self.exported)(*arguments)


@functools.cache
def _exported_function(exported: Any) -> Callable[..., Any]:
    """The function with a gradient and a rule for `vmap`."""
    forward = sequential_vmap(exported.call)
    backward = sequential_vmap(lambda arguments, given: jax.vjp(exported.call, *arguments)[1](given))
    function = jax.custom_vjp(forward)
    function.defvjp(lambda *arguments: (forward(*arguments), arguments), backward)
    return function


def bind_exported(exported: Any, *variables: Any, **static: Any) -> Partial:
    """The classifier of an exported function of the variables, if it has some, and the inputs; see `bind`."""
    if static:
        raise ValueError(f"an exported function takes no further arguments, got {', '.join(static)}")
    if not exported.has_vjp():
        raise ValueError("the exported function has no gradient: serialize it with vjp_order=1")
    batch = exported.in_avals[-1].shape[0] if exported.in_avals[-1].shape else None
    if isinstance(batch, int):
        raise ValueError(
            f"the exported function takes inputs of shape {exported.in_avals[-1].shape} alone: export it with "
            'a symbolic batch size, jax.export.symbolic_shape("b, ...")'
        )
    return Partial(_ExportedCall(exported), *variables)
