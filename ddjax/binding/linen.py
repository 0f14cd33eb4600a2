"""Classifiers of flax.linen modules and their variables."""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
from jax.tree_util import Partial
from jaxtyping import Array

from ddjax.binding import modes
from ddjax.binding.calls import explained

# Arguments of `module.apply` itself that a user may want; the others draw, or change the variables.
_OF_APPLY = ("method",)


@dataclasses.dataclass(frozen=True)
class _Apply:
    """Calls a module; compared by value, so that equal modules share one compiled program."""

    module: nn.Module
    static: tuple[tuple[str, Any], ...]

    def __call__(self, variables: Any, inputs: Array) -> Array:
        with explained(type(self.module).__name__, inputs):
            return self.module.apply(variables, inputs, **dict(self.static))  # pyright: ignore[reportReturnType]


def bind_linen(module: nn.Module, *collections: Any, **static: Any) -> Partial:
    """The classifier of a module and its variables; see `bind`."""
    name = type(module).__name__
    if len(collections) != 1:
        raise ValueError(f'bind needs the variables of {name} as one dictionary: bind(module, {{"params": ...}})')
    module = _hashable(module)
    variables = of_state(collections[0])
    if not isinstance(variables, Mapping):
        raise ValueError(f'bind needs the variables as {{"params": ...}}, got a {type(variables).__name__}')
    if variables and "params" not in variables:
        names = ", ".join(map(str, variables))
        raise ValueError(f'bind needs the variables as {{"params": ...}}, as module.init returns them, got {names}')
    method = static.get("method", "__call__")
    call = getattr(module, method) if isinstance(method, str) else method
    own = {key: value for key, value in static.items() if key not in _OF_APPLY}
    first = 1 if isinstance(method, str) else 2
    found = modes.static_arguments(name, call, own, first)
    kept = {key: value for key, value in static.items() if key in _OF_APPLY}
    return Partial(_Apply(module, tuple(sorted({**dict(found), **kept}.items()))), variables)


def _hashable(module: nn.Module) -> nn.Module:
    """The module with tuples in the place of lists, as those of `nn.Sequential([...])`, which programs cannot hold.

    Raises:
      ValueError: for another attribute that cannot be hashed.
    """
    values = {each.name: getattr(module, each.name, None) for each in dataclasses.fields(cast("Any", module))}
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    for name, value in (values | lists).items():
        try:
            hash(value)
        except TypeError:
            raise ValueError(
                f"the attribute {name} of {type(module).__name__} cannot be hashed, and programs are told apart by it; "
                "use tuples in the place of lists, and flax's FrozenDict for dictionaries"
            ) from None
    return module.clone(**cast("Any", lists)) if lists else module


def of_state(state: Any) -> Any:
    """The variables of a training state of flax or ddjax; anything else as it is."""
    if isinstance(state, Mapping) or not hasattr(state, "params"):
        return state
    if hasattr(state, "variables"):
        return state.variables
    statistics = {"batch_stats": state.batch_stats} if getattr(state, "batch_stats", None) else {}
    # Some keep all that `init` returned under `params`.
    within = isinstance(state.params, Mapping) and "params" in state.params
    return {**(state.params if within else {"params": state.params}), **statistics}


def bind_state(state: Any, *rest: Any, **static: Any) -> Partial:
    """The classifier of a training state of flax or ddjax; see `bind`."""
    network = getattr(state, "network", None) or getattr(state.apply_fn, "__self__", None)
    if rest or not isinstance(network, nn.Module):
        raise ValueError("bind takes a training state alone if it knows its module: bind(module, state)")
    return bind_linen(network, state, **static)
