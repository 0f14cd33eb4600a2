"""A network as a list of operations by their names in PyTorch's ATen library.

A graph is plain data that compares by value, and no PyTorch is needed to run it. Two networks of one form have equal
graphs, and share one compiled program.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddjax.checks import first_line
from ddjax.torch_import.aten import OPERATIONS


@dataclasses.dataclass(frozen=True)
class Ref:
    """Stands among the arguments of a node for a value: the input, a parameter by its name, or a node's result.

    Attributes:
      name: of what is meant.
      is_parameter: whether that is a parameter or a buffer.
    """

    name: str
    is_parameter: bool = False


@dataclasses.dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
      name: of its result.
      operation: a key of `OPERATIONS`.
      arguments: numbers, words, None, `Ref`, and tuples of these.
      keywords: the same by name.
    """

    name: str
    operation: str
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class Graph:
    """A network without its weights: a function of these, by name, and of inputs.

    It raises ValueError, with the operation, for inputs or weights of other shapes.

    Attributes:
      nodes: in the order in which they are computed.
      input_name: of the input.
      output_name: of the node whose result is the logits.
    """

    nodes: tuple[Node, ...]
    input_name: str
    output_name: str

    def __call__(self, parameters: Mapping[str, Array], inputs: Float[Array, "B ..."]) -> Float[Array, "B K"]:
        """The logits; images `[B, H, W, C]` become `[B, C, H, W]` first."""
        values: dict[str, Any] = {self.input_name: inputs.transpose(0, 3, 1, 2) if inputs.ndim == 4 else inputs}

        def filled(argument: Any) -> Any:
            if isinstance(argument, Ref):
                return (parameters if argument.is_parameter else values)[argument.name]
            return tuple(map(filled, argument)) if isinstance(argument, tuple) else argument

        # Values of different types and ranks meet in PyTorch as in NumPy.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            for node in self.nodes:
                keywords = {name: filled(value) for name, value in node.keywords}
                try:
                    values[node.name] = OPERATIONS[node.operation](*filled(node.arguments), **keywords)
                except (TypeError, ValueError) as error:
                    raise ValueError(f"{node.operation}, {node.name}: {first_line(error)}") from error
        return jnp.asarray(values[self.output_name])
