"""Convolution and pooling with any stride, dilation, padding and groups, as PyTorch's networks have them.

The two lowerings are those of `ddjax.layers`. `"canonical"`, for CPU, makes of each operation convolutions of stride 1,
or sums and maxima of shifted maps: `lax` itself runs their gradients in loops as naively as those of stride 1.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ddjax import layers
from ddjax.layers import Padding

Pair = tuple[int, int]
NO_PADDING: Padding = ((0, 0), (0, 0))
# With more places than this, a window is compared by `reduce_window`: as many maps would take long to compile.
_MOST_PLACES = 49


def conv(
    inputs: Float[Array, "B H W C"],
    kernel: Float[Array, "h w G F"],
    *,
    padding: Padding = NO_PADDING,
    strides: Pair = (1, 1),
    dilation: Pair = (1, 1),
    groups: int = 1,
    lowering: str = "auto",
) -> Float[Array, "B H2 W2 F"]:
    """Convolves.

    Args:
      inputs: a batch of images or feature maps.
      kernel: the filters; G is C divided by the number of groups.
      padding: how many zeros stand `((above, below), (left, right))`.
      strides: of the window, down and across.
      dilation: the distance of neighboring taps, down and across.
      groups: into how many the channels are divided; each makes its part of the F outputs.
      lowering: see `ddjax.layers`.

    Raises:
      ValueError: for an unknown lowering, or when the channels of inputs and kernel differ.
    """
    if inputs.shape[-1] != kernel.shape[2] * groups:
        raise ValueError(f"the kernel takes {kernel.shape[2] * groups} channels, the input has {inputs.shape[-1]}")
    if any(
        pad > gap * (taps - 1) for taps, gap, ends in zip(kernel.shape, dilation, padding, strict=False) for pad in ends
    ):
        # The gradient would have negative padding, for which XLA:CPU (jaxlib 0.10.2) returns arbitrary numbers.
        inputs, padding = jnp.pad(inputs, ((0, 0), *padding, (0, 0))), NO_PADDING
    settings = (padding, strides, dilation, groups)
    return layers.in_lowering(lowering, _with(_plain_conv, *settings), _with(_any_conv, *settings), inputs, kernel)


@functools.cache
def _with(form: Callable[..., Array], *settings: Any) -> Callable[..., Array]:
    # The same function for the same settings: JAX keeps the trace of a function, and what it derived from that.
    return lambda *arrays: form(*arrays, *settings)


def _plain_conv(inputs: Array, kernel: Array, padding: Padding, strides: Pair, dilation: Pair, groups: int) -> Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(inputs, kernel, strides, padding, None, dilation, numbers, groups)


def _any_conv(inputs: Array, kernel: Array, padding: Padding, strides: Pair, dilation: Pair, groups: int) -> Array:
    """Any convolution, by convolutions of stride 1 without groups."""
    if dilation != (1, 1):
        gaps = [(0, 0, size - 1) for size in (*dilation, 1, 1)]
        # Behind a barrier, or XLA gives the zeros back to the convolution as an attribute.
        kernel = lax.optimization_barrier(lax.pad(kernel, jnp.zeros((), kernel.dtype), gaps))
    if groups > 1 and kernel.shape[2] == 1:
        return _depthwise_conv(inputs, kernel, padding, strides)
    if groups > 1:
        parts = zip(jnp.split(inputs, groups, 3), jnp.split(kernel, groups, 3), strict=True)
        return jnp.concatenate([_any_conv(*part, padding, strides, (1, 1), 1) for part in parts], 3)
    if strides != (1, 1):
        inputs, kernel, padding = _in_blocks(inputs, kernel, padding, strides)
    return layers.conv(inputs, kernel, padding=padding, lowering="canonical")


def _in_blocks(inputs: Array, kernel: Array, padding: Padding, strides: Pair) -> tuple[Array, Array, Padding]:
    """A convolution with strides as one of stride 1: a block of the input becomes one pixel with more channels."""
    batch, *sizes, channels = inputs.shape
    of_inputs, of_kernel, blocks, needed = [], [], [], []
    for size, taps, (before, after), stride in zip(sizes, kernel.shape, padding, strides, strict=False):
        taps_in_blocks = -(-taps // stride)
        blocks.append((size + before + after - taps) // stride + taps_in_blocks)
        of_inputs.append((before, stride * blocks[-1] - size - before, 0))
        of_kernel.append((0, stride * taps_in_blocks - taps, 0))
        # Where a filter is smaller than its stride, the rest of a block is not needed.
        needed.append(min(taps, stride))
    zero, none = jnp.zeros((), inputs.dtype), (0, 0, 0)
    inputs = lax.pad(inputs, zero, [none, *of_inputs, none])
    inputs = inputs.reshape(batch, blocks[0], strides[0], blocks[1], strides[1], channels)
    inputs = inputs[:, :, : needed[0], :, : needed[1]].transpose(0, 1, 3, 2, 4, 5)
    kernel = lax.pad(kernel, zero.astype(kernel.dtype), [*of_kernel, none, none])
    down, across = kernel.shape[0] // strides[0], kernel.shape[1] // strides[1]
    kernel = kernel.reshape(down, strides[0], across, strides[1], *kernel.shape[2:])
    kernel = kernel[:, : needed[0], :, : needed[1]].transpose(0, 2, 1, 3, 4, 5)
    kernel = kernel.reshape(down, across, -1, kernel.shape[-1])
    return inputs.reshape(batch, *blocks, -1), kernel, NO_PADDING


def _shifted(inputs: Array, window: Sequence[int], strides: Pair, dilation: Pair = (1, 1)) -> list[Array]:
    """For each place of a window, row by row, what stands there as the window moves over the input."""
    spans = [
        [slice(place * gap, place * gap + size - gap * (taps - 1), stride) for place in range(taps)]
        for size, taps, stride, gap in zip(inputs.shape[1:3], window, strides, dilation, strict=True)
    ]
    return [inputs[:, rows, columns] for rows, columns in itertools.product(*spans)]


def _depthwise_conv(inputs: Array, kernel: Array, padding: Padding, strides: Pair) -> Array:
    """A convolution of each channel by itself: as many products of whole maps as the filter has taps."""
    inputs = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))
    inputs = jnp.repeat(inputs, kernel.shape[3] // inputs.shape[3], axis=3)
    taps = kernel.reshape(-1, 1, 1, 1, kernel.shape[3])
    shifted = _shifted(inputs, kernel.shape[:2], strides)
    return functools.reduce(jnp.add, [part * tap for part, tap in zip(shifted, taps, strict=True)])


def max_pool(
    inputs: Float[Array, "B H W C"],
    window: Pair,
    *,
    strides: Pair | None = None,
    padding: Padding = NO_PADDING,
    dilation: Pair = (1, 1),
    lowering: str = "auto",
) -> Float[Array, "B H2 W2 C"]:
    """Takes the maximum over windows; rows or columns that fill no window are dropped.

    Ties send their gradient to the first maximum in row-major order.

    Args:
      inputs: a batch of feature maps.
      window: its height and width.
      strides: of the window, down and across; default: its size.
      padding: how many values of minus infinity stand `((above, below), (left, right))`.
      dilation: the distance of neighboring places of the window, down and across.
      lowering: see `ddjax.layers`.

    Raises:
      ValueError: for an unknown lowering.
    """
    settings = (window, strides or window, padding, dilation)
    if settings == ((2, 2), (2, 2), NO_PADDING, (1, 1)):
        return layers.max_pool(inputs, lowering=lowering)
    plain, shifted = _with(_plain_max_pool, *settings), _with(_shifted_max_pool, *settings)
    if dilation != (1, 1):  # The gradient of `reduce_window` knows none.
        plain = shifted
    elif window[0] * window[1] > _MOST_PLACES:
        shifted = plain
    return layers.in_lowering(lowering, plain, shifted, inputs)


def _plain_max_pool(inputs: Array, window: Pair, strides: Pair, padding: Padding, _: Pair) -> Array:
    edges = ((0, 0), *padding, (0, 0))
    return lax.reduce_window(inputs, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), edges)


def _shifted_max_pool(inputs: Array, window: Pair, strides: Pair, padding: Padding, dilation: Pair) -> Array:
    """Any pooling, by as many comparisons of whole maps as a window has places."""
    shifts = functools.partial(_shifted, window=window, strides=strides, dilation=dilation)

    @jax.custom_gradient
    def pool(padded: Array) -> Any:
        places = shifts(padded)
        outputs = functools.reduce(jnp.maximum, places)
        winner = jnp.full(outputs.shape, len(places) - 1, jnp.uint16)
        for number in reversed(range(len(places) - 1)):
            winner = jnp.where(places[number] == outputs, jnp.uint16(number), winner)

        def pull(cotangent: Array) -> Array:
            parts = [jnp.where(winner == number, cotangent, 0) for number in range(len(places))]
            return jax.linear_transpose(shifts, padded)(parts)[0]

        return outputs, pull

    edges = ((0, 0), *padding, (0, 0))
    return pool(jnp.pad(inputs, edges, constant_values=-jnp.inf))  # pyright: ignore[reportReturnType]


def sum_pool(
    inputs: Float[Array, "B H W C"],
    window: Pair,
    *,
    strides: Pair,
    padding: Padding = NO_PADDING,
    lowering: str = "auto",
) -> Float[Array, "B H2 W2 C"]:
    """Takes the sum over windows, of zeros where there is padding; the arguments are those of `max_pool`."""
    edges = ((0, 0), *padding, (0, 0))

    def plain(inputs: Array) -> Array:
        return lax.reduce_window(inputs, 0.0, lax.add, (1, *window, 1), (1, *strides, 1), edges)

    def shifted(inputs: Array) -> Array:
        return functools.reduce(jnp.add, _shifted(jnp.pad(inputs, edges), window, strides))

    small = window[0] * window[1] <= _MOST_PLACES
    return layers.in_lowering(lowering, plain, shifted if small else plain, inputs)
