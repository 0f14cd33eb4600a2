"""Classifiers of flax.nnx modules, and their training."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from flax import nnx
from jax.tree_util import Partial
from jaxtyping import Array

from ddjax.binding import modes
from ddjax.binding.calls import explained


@dataclasses.dataclass(frozen=True)
class _NnxCall:
    """Puts a module together from its state, and calls it; compared by value."""

    graph: Any
    static: tuple[tuple[str, Any], ...]

    def __call__(self, state: Any, inputs: Array) -> Array:
        module: Any = nnx.merge(self.graph, state)
        with explained(type(module).__name__, inputs):
            return module(inputs, **dict(self.static))


def bind_nnx(module: Any, *states: Any, **static: Any) -> Partial:
    """The classifier of a module, or of what `nnx.split` returns, in evaluation mode; see `bind`."""
    if isinstance(module, nnx.GraphDef):
        if not states:
            raise ValueError("bind needs the state of the nnx module, too: bind(graphdef, state)")
        module = nnx.merge(module, *states)
    else:
        if states:
            raise ValueError(f"an nnx module keeps its own state: bind({type(module).__name__}(...)), nothing else")
        # The user's object stays in its mode.
        module = nnx.clone(module)
    module.eval()
    found = modes.static_arguments(type(module).__name__, module, static, 1)
    graph, state = nnx.split(module)
    return Partial(_NnxCall(graph, found), state)


@dataclasses.dataclass(frozen=True)
class _Copy:
    """Copies a module, with its parameters; compared by the identity of the module."""

    module: Any

    def __call__(self, *, rngs: nnx.Rngs) -> Any:
        return nnx.clone(self.module)


def as_linen(network: Any) -> "NnxNetwork":
    """The network for training: of a module, whose parameters it starts from, or of its class."""
    return NnxNetwork(network if isinstance(network, type) else _Copy(network))


class NnxNetwork(nn.Module):
    """A flax.nnx network as `ddjax.train`, `ddjax.distill` and the launchers train networks.

    Its parameters are initialized from the key of training, so that `make` is called once for each network. In
    training, dropout draws from the stream `dropout`, and batch statistics are updated; in evaluation neither.

    Attributes:
      make: a function `make(rngs=...)` that returns a new module, such as its class. A class or a function at the
        top level of a module can be named in a checkpoint.

    Example:
      state = ddjax.train(NnxNetwork(MyNetwork), optax.adam(1e-3), inputs, labels, epochs=10, key=jax.random.key(0))
      module = state.network.module(state.variables)
    """

    make: Callable[..., Any]

    @nn.compact
    def __call__(self, inputs: Array, train: bool = False) -> Array:
        """The logits `[B, K]` of inputs `[B, ...]`."""
        graph, params, statistics, draws = self._split(nnx.Rngs(0))
        key = self.make_rng("params") if self.is_initializing() else None
        fresh = self._split(nnx.Rngs(key)) if key is not None else (graph, params, statistics, draws)
        parameters = self.param("nnx", lambda _: nnx.to_pure_dict(fresh[1]))
        nnx.replace_by_pure_dict(params, parameters)
        kept = None
        if jax.tree.leaves(statistics):
            kept = self.variable("batch_stats", "nnx", lambda: nnx.to_pure_dict(fresh[2]))
            nnx.replace_by_pure_dict(statistics, kept.value)
        # Copied: flax lets no trace change variables that another one has made.
        module: Any = nnx.merge(graph, params, statistics, draws, copy=True)
        if train:
            module.train()
            if jax.tree.leaves(draws) and self.has_rng("dropout"):
                nnx.reseed(module, default=self.make_rng("dropout"), dropout=self.make_rng("dropout"))
        else:
            module.eval()
        outputs = module(inputs, **(modes.training_arguments if train else modes.evaluation_arguments)(module))
        if train and kept is not None and not self.is_initializing():
            kept.value = nnx.to_pure_dict(nnx.state(module, _IS_STATISTIC))
        return outputs

    def _split(self, rngs: nnx.Rngs) -> tuple[Any, Any, Any, Any]:
        """A module's graph, parameters, statistics, and keys with their counters."""
        graph, params, statistics, draws = nnx.split(self.make(rngs=rngs), nnx.Param, _IS_STATISTIC, ...)
        return graph, params, statistics, draws

    def module(self, variables: Any) -> Any:
        """The nnx module with trained variables, `state.variables`, in evaluation mode."""
        graph, params, statistics, draws = self._split(nnx.Rngs(0))
        nnx.replace_by_pure_dict(params, variables["params"]["nnx"])
        if jax.tree.leaves(statistics):
            nnx.replace_by_pure_dict(statistics, variables["batch_stats"]["nnx"])
        module = nnx.merge(graph, params, statistics, draws)
        module.eval()
        return module


# All variables that are neither parameters nor belong to random numbers.
_IS_STATISTIC = nnx.filterlib.All(nnx.Not(nnx.Param), nnx.Not(nnx.RngState))
