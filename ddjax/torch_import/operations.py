"""What PyTorch's layers compute, in JAX. Feature maps are `[B, C, H, W]`, as there.

Names of arguments, their defaults and their meaning are PyTorch's. Where a size may be given for each axis, a single
number stands for all. Gradients agree with PyTorch's, also where a function has a kink: a maximum sends its gradient to
the first of equal values, in row-major order.

Reference:
  The documentation of torch.nn.functional, PyTorch 2.13.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddjax import windows
from ddjax.checks import check_choice

Size = int | Sequence[int]
# The names of `jnp.pad` for those of PyTorch.
PADDING_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
APPROXIMATIONS = ("none", "tanh")


def _pair(size: Size) -> tuple[int, int]:
    sizes = (size,) if isinstance(size, int) else tuple(size)
    return (sizes[0], sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])


def _channels_last(maps: Array) -> Array:
    return maps.transpose(0, 2, 3, 1)


def _channels_first(maps: Array) -> Array:
    return maps.transpose(0, 3, 1, 2)


def _check_maps(inputs: Array) -> None:
    if inputs.ndim != 4:
        raise ValueError(f"feature maps [B, C, H, W] are needed, the input is {inputs.shape}")


def _by_channel(values: Array, inputs: Array) -> Array:
    """A value for each channel, in a shape that stands beside `inputs`."""
    return values.astype(inputs.dtype).reshape(1, -1, *(1,) * (inputs.ndim - 2))


def conv2d(
    inputs: Float[Array, "B C H W"],
    weight: Float[Array, "F G h w"],
    bias: Float[Array, " F"] | None = None,
    *,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Float[Array, "B F H2 W2"]:
    """Convolves.

    `padding` is how much stands on both sides, down and across, `"valid"` for none, or `"same"`, for stride 1: an odd
    rest of it stands below and on the right. `padding_mode` is one of `PADDING_MODES`.

    Raises:
      ValueError: for an input that is no feature maps or has the wrong number of channels, or an unknown setting.
    """
    _check_maps(inputs)
    check_choice("padding_mode", padding_mode, PADDING_MODES)
    spans = [gap * (taps - 1) for gap, taps in zip(_pair(dilation), weight.shape[2:], strict=True)]
    if isinstance(padding, str):
        check_choice("padding", padding, ("valid", "same"))
        if padding == "same" and _pair(stride) != (1, 1):
            raise ValueError(f"padding 'same' is for stride 1, got {stride}")
        edges = [(span // 2, span - span // 2) if padding == "same" else (0, 0) for span in spans]
    else:
        edges = [(size, size) for size in _pair(padding)]
    inputs = _channels_last(inputs)
    if padding_mode != "zeros":
        inputs = jnp.pad(inputs, ((0, 0), *edges, (0, 0)), PADDING_MODES[padding_mode])
        edges = [(0, 0), (0, 0)]
    if any(size + sum(ends) <= span for size, ends, span in zip(inputs.shape[1:3], edges, spans, strict=True)):
        raise ValueError(f"a kernel of {weight.shape[2:]} is larger than the padded input of {inputs.shape[1:3]}")
    kernel = weight.astype(inputs.dtype).transpose(2, 3, 1, 0)
    outputs = windows.conv(
        inputs, kernel, padding=(edges[0], edges[1]), strides=_pair(stride), dilation=_pair(dilation), groups=groups
    )
    return _channels_first(outputs) + (0 if bias is None else _by_channel(bias, inputs))


def linear(
    inputs: Float[Array, "*B N"], weight: Float[Array, "M N"], bias: Float[Array, " M"] | None = None
) -> Float[Array, "*B M"]:
    """The product with the transposed weight, and the bias.

    Raises:
      ValueError: for an input of another number of features.
    """
    if inputs.shape[-1] != weight.shape[1]:
        raise ValueError(f"the weight takes {weight.shape[1]} features, the input is {inputs.shape}")
    outputs = jnp.tensordot(inputs, weight.astype(inputs.dtype), ((-1,), (1,)))
    return outputs if bias is None else outputs + bias.astype(inputs.dtype).reshape(*(1,) * (inputs.ndim - 1), -1)
