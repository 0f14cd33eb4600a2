"""`bind`: the classifier of a model, from whatever framework it comes."""

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from ddjax.binding.calls import arrange
from ddjax.binding.outputs import as_logits, check_classifier


class _Framework(NamedTuple):
    """How the models of a framework are bound.

    Attributes:
      module: of this package. It is imported only for such a model, and with it the framework.
      function: of that module, from the model, its variables and further keyword arguments to a Partial.
      layout: of the images that its models take.
      per_example: whether its models take one example.
    """

    module: str
    function: str
    layout: str = "channels_last"
    per_example: bool = False


_FUNCTION = _Framework("functions", "bind_function")
# By the package and the name of the class from which the models derive.
_FRAMEWORKS: Mapping[tuple[str, str], _Framework] = {
    ("flax.linen", "Module"): _Framework("linen", "bind_linen"),
    ("flax.training", "TrainState"): _Framework("linen", "bind_state"),
    ("ddjax.state", "TrainState"): _Framework("linen", "bind_state"),
    ("flax.nnx", "Module"): _Framework("nnx", "bind_nnx"),
    ("flax.nnx", "GraphDef"): _Framework("nnx", "bind_nnx"),
    ("equinox", "Module"): _Framework("equinox", "bind_equinox", "channels_first", True),
    ("haiku", "Transformed"): _Framework("functions", "bind_haiku"),
    ("haiku", "TransformedWithState"): _Framework("functions", "bind_haiku"),
    ("keras", "Model"): _Framework("functions", "bind_keras"),
    ("jax", "Exported"): _Framework("functions", "bind_exported"),
}


def bind(
    model: Any,
    *variables: Any,
    example: Float[np.ndarray | Array, "B ..."] | None = None,
    outputs: str = "logits",
    layout: str | None = None,
    per_example: bool | None = None,
    **static: Any,
) -> Partial:
    """Makes the classifier of a model, from inputs `[B, ...]` to logits `[B, K]`, in evaluation mode.

    The variables are arguments of each program: two sets of weights of one architecture share one. The model itself is
    not changed. The argument that switches training off is found by its name: `train`, `training`, `is_training`,
    `deterministic` or `use_running_average`.

    Args:
      model: of one of the frameworks below, or a function.
      *variables: those of the model, by framework:
        flax.linen: `bind(module, {"params": ..., "batch_stats": ...})`; a training state in the place of the variables,
          or alone.
        flax.nnx: `bind(module)`, or `bind(graphdef, state)`.
        Equinox: `bind(module)`, or `bind(module, state)`. It is mapped over examples, and images come channels first.
        Haiku: `bind(transformed, params)`, or `bind(transformed, params, state)`.
        Keras on JAX: `bind(model)`.
        jax.export: `bind(exported)` or `bind(exported, variables)`; serialized with `vjp_order=1` and a symbolic batch
          size.
        a function: `bind(function, *pytrees)`; see `bind_function`.
      example: valid inputs, two or more, by which the classifier is checked here; see `check_classifier`.
      outputs: `"probabilities"` for a model that ends in a softmax; see `from_probabilities`.
      layout: of the images that the model takes: `"channels_last"` or `"channels_first"`. Attacks have them as
        `[B, H, W, C]`. Default: that of the framework.
      per_example: whether the model takes one example, not a batch. Default: that of the framework.
      **static: further keyword arguments of the model's call; hashable, part of the program.

    Raises:
      ValueError: for a class in the place of a model, a model of none of these frameworks, variables that are not
        its own, arguments that it does not have or needs and does not get, and whatever the example shows.
    """
    if isinstance(model, type):
        raise ValueError(f"bind needs a model, not its class: bind({model.__name__}(...), ...)")
    framework = _framework(model)
    bind_one = getattr(importlib.import_module(f"ddjax.binding.{framework.module}"), framework.function)
    bound = arrange(
        bind_one(model, *variables, **static),
        framework.layout if layout is None else layout,
        framework.per_example if per_example is None else per_example,
    )
    bound = as_logits(bound, outputs)
    if example is not None:
        check_classifier(bound, example, type(model).__name__)
    return bound


def _framework(model: Any) -> _Framework:
    """The framework that a model comes from, told by the names of its classes.

    Raises:
      ValueError: for a model of PyTorch, and for what cannot be called.
    """
    for each in type(model).__mro__:
        place = each.__module__ + "."
        for (package, name), framework in _FRAMEWORKS.items():
            if each.__name__ == name and place.startswith(package + "."):
                return framework
        if place.startswith("torch.nn."):
            raise ValueError("a PyTorch module is imported by ddjax.from_torch(module, example)")
    if callable(model):
        return _FUNCTION
    known = ", ".join(sorted({package for package, _ in _FRAMEWORKS} - {"flax.training", "ddjax.state"}))
    raise ValueError(f"bind needs a model of one of {known}, or a function, got a {type(model).__name__}")


def trainable(network: Any) -> Any:
    """The network as training takes it: of an nnx module, or its class, an `NnxNetwork`; all else as it is."""
    classes = (network if isinstance(network, type) else type(network)).__mro__
    if not any(each.__module__.startswith("flax.nnx.") and each.__name__ == "Module" for each in classes):
        return network
    from ddjax.binding.nnx import as_linen

    return as_linen(network)
