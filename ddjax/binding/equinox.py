"""Classifiers of Equinox modules, which are pytrees of arrays and of what is none."""

import dataclasses
import importlib
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array

from ddjax.binding import modes
from ddjax.binding.calls import explained


@dataclasses.dataclass(frozen=True)
class _NoArray:
    """A leaf that is no array, at its place among the leaves; compared by value."""

    value: Any


@dataclasses.dataclass(frozen=True)
class _EquinoxCall:
    """Puts a module together from its arrays, and calls it on one example; compared by value.

    Two objects of one architecture have equal structures and equal leaves that are no arrays. The objects themselves
    may not compare as equal.
    """

    structure: Any
    others: tuple[_NoArray | None, ...]
    static: tuple[tuple[str, Any], ...]
    has_state: bool

    def __call__(self, arrays: list[Array], inputs: Array) -> Array:
        given = iter(arrays)
        leaves = [next(given) if other is None else other.value for other in self.others]
        module, state = jax.tree.unflatten(self.structure, leaves)
        with explained(type(module).__name__, inputs[None]):
            outputs = module(inputs, *((state,) if self.has_state else ()), **dict(self.static))
        return outputs[0] if self.has_state else outputs


def bind_equinox(module: Any, *states: Any, **static: Any) -> Partial:
    """The classifier of an Equinox module, and of its state where it has one, for one example; see `bind`."""
    equinox: Any = importlib.import_module("equinox")
    is_index = lambda leaf: isinstance(leaf, equinox.nn.StateIndex)
    name = type(module).__name__
    if len(states) > 1:
        raise ValueError(f"bind takes {name} and its state, got {len(states)} states")
    if not states and any(map(is_index, jax.tree.leaves(module, is_leaf=is_index))):
        raise ValueError(f"{name} has a state, as batch normalization does: bind(model, state)")
    module = equinox.nn.inference_mode(module)
    known = modes.parameters(type(module).__call__)
    needs_key = "key" in known and known["key"].default is known["key"].empty
    static = {**({"key": None} if needs_key else {}), **static}
    found = modes.static_arguments(name, module, static, 1 + len(states))
    leaves, structure = jax.tree.flatten((module, states[0] if states else None))
    is_array = lambda leaf: isinstance(leaf, jax.Array | np.ndarray)
    others = tuple(None if is_array(leaf) else _NoArray(leaf) for leaf in leaves)
    arrays = [leaf for leaf in leaves if is_array(leaf)]
    return Partial(_EquinoxCall(structure, others, found, bool(states)), arrays)
