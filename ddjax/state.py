"""The state of a network in training, and what kinds of networks can be trained.

A state is the same for classifiers, densities and GANs: parameters, optimizer state, a step count and a key.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Key

from ddjax.binding.linen import bind_linen
from ddjax.binding.modes import evaluation_arguments, training_arguments
from ddjax.checks import first_line


class TrainState(struct.PyTreeNode):
    """Parameters, optimizer state and step count, with the key from which all randomness of training derives.

    Attributes:
      params: of the network; of several networks a dictionary by name.
      opt_state: of the optimizer, or of one for each network.
      step: how many steps have been taken.
      key: the order of the examples and all draws of any step follow from it and the step's number, so that training
        resumed from a checkpoint repeats what would have been.
      statistics: the collections that a step changes without a gradient, by name, such as the `batch_stats` of batch
        normalization; empty where there are none.
      ema_params: an exponential moving average of the parameters, for use after training; empty where the last
        parameters are used.
      network: the module, or a dataclass of several; compared by value.
      optimizer: from optax. States of equal programs need the same object. None in a state that was loaded for use.
    """

    params: Any
    opt_state: Any
    step: Any
    key: Any
    statistics: Any = struct.field(default_factory=dict)
    ema_params: Any = struct.field(default_factory=dict)
    network: Any = struct.field(pytree_node=False, default=None)
    optimizer: Any = struct.field(pytree_node=False, default=None)

    @property
    def variables(self) -> dict[str, Any]:
        """What the network is applied to."""
        return {"params": self.params, **self.statistics}

    @property
    def trained(self) -> Any:
        """The parameters to use after training: their moving average where there is one."""
        return self.ema_params or self.params

    @property
    def logits_fn(self) -> jax.tree_util.Partial:
        """The classifier: dropout is off, and batch normalization uses its running statistics."""
        return bind_linen(self.network, self.variables)

    def apply_gradients(self, gradients: Any) -> "TrainState":
        """The state after a step of the optimizer."""
        updates, opt_state = self.optimizer.update(gradients, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        return self.replace(params=params, opt_state=opt_state, step=self.step + 1)

    def stored(self) -> dict[str, Any]:
        """What a checkpoint holds: all arrays by name, typed keys as integers."""
        ema = {"ema_params": self.ema_params} if self.ema_params else {}
        rest = {"opt_state": self.opt_state, "step": self.step, "key": jax.random.key_data(self.key)}
        return {**self.variables, **ema, **rest}

    def with_stored(self, stored: Mapping[str, Any]) -> "TrainState":
        """The state with the arrays that `stored` returned."""
        return self.replace(
            params=stored["params"],
            opt_state=stored["opt_state"],
            step=stored["step"],
            key=jax.random.wrap_key_data(stored["key"]),
            statistics={name: stored[name] for name in self.statistics},
            ema_params=stored.get("ema_params", {}),
        )


def create_state(
    network: nn.Module, optimizer: optax.GradientTransformation, input_shape: tuple[int, ...], key: Key[Array, ""]
) -> TrainState:
    """Initializes a network and its optimizer, and returns the state before the first step.

    Args:
      network: maps inputs `[B, ...]` to logits.
      optimizer: from optax. States of equal programs need the same object.
      input_shape: of one example, (H, W, C) for images.
      key: makes the parameters and all later randomness.
    """
    init_key, train_key = jax.random.split(key)
    variables = dict(_compiled_init(network)(init_key, jnp.zeros((1, *input_shape))))
    params = variables.pop("params", {})
    return TrainState(
        params=params,
        opt_state=optimizer.init(params),
        # As it comes back from a step and from a checkpoint; a Python integer would be a program of its own.
        step=jnp.zeros((), jnp.int32),
        key=train_key,
        statistics=variables,
        network=network,
        optimizer=optimizer,
    )


@functools.cache
def _compiled_init(network: nn.Module) -> Callable[..., Any]:
    """Makes a network's variables. Compiled, the forward pass that tells their shapes is not run."""
    return jax.jit(functools.partial(network.init, **evaluation_arguments(network)))


def check_network(network: Any, input_shape: tuple[int, ...]) -> int:
    """Refuses a network that cannot be trained as a classifier, before anything is compiled.

    The shape is that of one input. Returns the number of classes, K.

    Raises:
      ValueError: for what is no flax.linen module, for inputs that it cannot take, and for outputs that are not
        logits `[B, K]` of at least two classes.
    """
    name = type(network).__name__
    if not isinstance(network, nn.Module):
        shown = f"the class {network.__name__}" if isinstance(network, type) else f"an object of type {name}"
        raise ValueError(f"the network must be a flax module, such as ConvNet(num_classes=10), got {shown}")
    try:
        hash(network)
    except TypeError as error:
        raise ValueError(
            f"the attributes of the network {name} must be hashable, tuples and not lists: {error}"
        ) from error
    in_training: dict[str, Any] = training_arguments(network)
    in_evaluation: dict[str, Any] = evaluation_arguments(network)

    def both(inputs: Array, key: Array) -> Any:
        variables = network.init(key, inputs, **in_evaluation)
        mutable = [collection for collection in variables if collection != "params"]
        logits, _ = network.apply(variables, inputs, **in_training, rngs={"dropout": key}, mutable=mutable)
        return network.apply(variables, inputs, **in_evaluation), logits

    try:
        outputs = jax.eval_shape(both, jax.ShapeDtypeStruct((2, *input_shape), jnp.float32), jax.random.key(0))
    except Exception as error:  # whatever the user's network raises
        raise ValueError(
            f"the network {name} cannot take inputs of shape {input_shape}: {first_line(error)}"
        ) from error
    for logits in outputs:
        if not isinstance(logits, jax.ShapeDtypeStruct):
            raise ValueError(f"the network {name} must return logits [B, K], got a {type(logits).__name__}")
        if logits.ndim != 2 or logits.shape[0] != 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
            raise ValueError(
                f"the network {name} must return floating logits [B, K], got {logits.dtype} of shape "
                f"{logits.shape} for a batch of 2"
            )
        if logits.shape[1] < 2:
            raise ValueError(f"a classifier needs at least two classes, and {name} returns {logits.shape[1]}")
    return outputs[0].shape[1]
