"""Networks as chains of layers, whose bounds are known."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from ddjax import classifier, layers, models
from ddjax.classifier import LogitsFn


@struct.dataclass
class Shift:
    """Adds a constant, `offset`, to every value."""

    offset: Any


@struct.dataclass
class Conv:
    """A convolution of stride 1 with bias.

    Attributes:
      kernel: `[h, w, C, F]`.
      bias: `[F]`.
      padding: `"VALID"` or `"SAME"`.
      lowering: see `ddjax.layers`.
    """

    kernel: Any
    bias: Any
    padding: str = struct.field(pytree_node=False, default="VALID")
    lowering: str = struct.field(pytree_node=False, default="auto")


@struct.dataclass
class Dense:
    """A dense layer with bias, from `[N]` to `[M]`; it flattens what comes in.

    Attributes:
      kernel: `[N, M]`.
      bias: `[M]`.
    """

    kernel: Any
    bias: Any


@struct.dataclass
class Relu:
    """The positive part."""


@struct.dataclass
class MaxPool:
    """The maximum over 2 x 2 blocks; an odd last row or column is dropped."""


Layer = Shift | Conv | Dense | Relu | MaxPool
Network = tuple[Layer, ...]
# All results of `at_temperature` have the same function, by which they are recognized.
_TEMPERED: Any = classifier.at_temperature(lambda inputs: inputs, 1.0)


def layers_of(logits_fn: LogitsFn | Network) -> Network:
    """Reads the layers of a classifier.

    Args:
      logits_fn: `bind(module, variables)` of a `models.ConvNet` with dropout off, as `training.logits_fn` makes it,
        alone or under `at_temperature`; or already a network. Any other chain of these layers can be written down as a
        tuple, ending in the `Dense` that makes the logits: `(Dense(kernel, bias),)` is a linear classifier.

    Returns:
      The network; a pytree whose leaves are its parameters.

    Raises:
      ValueError: for any other classifier.
    """
    if isinstance(logits_fn, tuple):
        if not logits_fn or not isinstance(logits_fn[-1], Dense) or not all(isinstance(x, Layer) for x in logits_fn):
            raise ValueError(
                "a network is a tuple of Shift, Conv, Dense, Relu and MaxPool that ends in a Dense, "
                f"got {tuple(type(x).__name__ for x in logits_fn)}"
            )
        return logits_fn
    function = logits_fn.func if isinstance(logits_fn, jax.tree_util.Partial) else None
    if function is _TEMPERED.func:
        untempered, temperature = logits_fn.args
        network = layers_of(untempered)
        return (*network[:-1], jax.tree.map(lambda leaf: leaf / temperature, network[-1]))
    module = getattr(function, "module", None)
    if not isinstance(module, models.ConvNet):
        raise ValueError(
            "certification needs to know the layers: it takes bind(module, variables) of a ddjax.models.ConvNet, "
            f"or a tuple of layers of ddjax.certify, got {logits_fn!r}"
        )
    if dict(getattr(function, "static", ())).get("train", False):
        raise ValueError("certification is for a network with dropout off, but this one is bound with train=True")
    (variables,) = logits_fn.args
    if module.batch_norm or module.scale != 1 or isinstance(module.center, tuple):
        raise ValueError("certification knows no batch normalization, and no pixels scaled or centered by channel")
    parameters = variables["params"]
    chain: list[Layer] = [Shift(-module.center)] if module.center else []
    names = (f"Conv_{number}" for number in itertools.count())
    for widths in module.stages:
        for _ in widths:
            chain += [Conv(**parameters[next(names)], padding=module.padding, lowering=module.lowering), Relu()]
        chain.append(MaxPool())
    for number in range(len(module.dense) + 1):
        chain += [Dense(**parameters[f"Dense_{number}"]), Relu()]
    return tuple(chain[:-1])


def apply(network: Network, images: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """What comes out of a chain of layers: the logits `[B, K]` where it is a whole network."""
    for layer in network:
        images = forward(layer, images)
    return images


def forward(layer: Layer, inputs: Array) -> Array:
    """One layer of a batch."""
    if isinstance(layer, Shift):
        return inputs + layer.offset
    if isinstance(layer, Conv):
        outputs = layers.conv(inputs, layer.kernel, padding=layer.padding, lowering=layer.lowering)
        return outputs + layer.bias[None, None, None, :]
    if isinstance(layer, Dense):
        return inputs.reshape(inputs.shape[0], -1) @ layer.kernel + layer.bias[None, :]
    if isinstance(layer, MaxPool):
        return layers.max_pool(inputs)
    return jnp.maximum(inputs, 0)


def is_affine(layer: Layer) -> bool:
    """Whether a layer is an affine function, which needs no relaxation."""
    return isinstance(layer, Shift | Conv | Dense)


def input_size(layer: Layer, height: int, width: int) -> tuple[int, int]:
    """The height and width of the patch that an output patch depends on, without padding."""
    if isinstance(layer, Conv) and layer.padding == "VALID":
        return height + layer.kernel.shape[0] - 1, width + layer.kernel.shape[1] - 1
    return (2 * height, 2 * width) if isinstance(layer, MaxPool) else (height, width)
