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
Number = int | float
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
    inputs: Float[Array, "..."],
    weight: Float[Array, "F G h w"],
    bias: Float[Array, " F"] | None = None,
    *,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Float[Array, "B F H2 W2"]:
    """Convolves feature maps `[B, C, H, W]`.

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
    inputs: Float[Array, "*B N"], weight: Float[Array, "M D"], bias: Float[Array, " M"] | None = None
) -> Float[Array, "*B M"]:
    """The product with the transposed weight, and the bias.

    Raises:
      ValueError: for an input of another number of features.
    """
    if inputs.shape[-1] != weight.shape[1]:
        raise ValueError(f"the weight takes {weight.shape[1]} features, the input is {inputs.shape}")
    outputs = jnp.tensordot(inputs, weight.astype(inputs.dtype), ((-1,), (1,)))
    return outputs if bias is None else outputs + bias.astype(inputs.dtype).reshape(*(1,) * (inputs.ndim - 1), -1)


def batch_norm(
    inputs: Float[Array, "B F *S"],
    weight: Float[Array, " C"] | None,
    bias: Float[Array, " C"] | None,
    running_mean: Float[Array, " C"],
    running_var: Float[Array, " C"],
    *,
    eps: Number = 1e-5,
) -> Float[Array, "B F *S"]:
    """Normalizes each channel by statistics from training.

    Raises:
      ValueError: for an input of another number of channels.
    """
    if inputs.ndim < 2 or inputs.shape[1] != len(running_mean):
        raise ValueError(f"there are statistics of {len(running_mean)} channels, the input is {inputs.shape}")
    scale = 1 / jnp.sqrt(running_var + eps)
    outputs = (inputs - _by_channel(running_mean, inputs)) * _by_channel(scale, inputs)
    return _affine(outputs, *(None if each is None else _by_channel(each, inputs) for each in (weight, bias)))


def _affine(inputs: Array, weight: Array | None, bias: Array | None) -> Array:
    scaled = inputs if weight is None else inputs * weight
    return scaled if bias is None else scaled + bias


def _standardized(inputs: Array, axes: tuple[int, ...], eps: float) -> Array:
    mean = jnp.mean(inputs, axes, keepdims=True)
    return (inputs - mean) / jnp.sqrt(jnp.var(inputs, axes, keepdims=True) + eps)


def layer_norm(
    inputs: Float[Array, "..."],
    normalized_shape: Sequence[int],
    weight: Float[Array, "..."] | None = None,
    bias: Float[Array, "..."] | None = None,
    *,
    eps: Number = 1e-5,
) -> Float[Array, "..."]:
    """Normalizes the last axes, which have `normalized_shape`, of each example."""
    rest = inputs.ndim - len(normalized_shape)
    beside = lambda values: values.astype(inputs.dtype).reshape(*(1,) * rest, *values.shape)
    outputs = _standardized(inputs, tuple(range(rest, inputs.ndim)), eps)
    return _affine(outputs, *(None if each is None else beside(each) for each in (weight, bias)))


def group_norm(
    inputs: Float[Array, "B C *S"],
    num_groups: int,
    weight: Float[Array, " C"] | None = None,
    bias: Float[Array, " C"] | None = None,
    *,
    eps: Number = 1e-5,
) -> Float[Array, "B C *S"]:
    """Normalizes groups of channels of each example. As many groups as channels: instance normalization."""
    groups = inputs.reshape(inputs.shape[0], num_groups, -1)
    outputs = _standardized(groups, (2,), eps).reshape(inputs.shape)
    return _affine(outputs, *(None if each is None else _by_channel(each, inputs) for each in (weight, bias)))


def _pool_edges(
    sizes: Sequence[int], window: Size, stride: Size | None, padding: Size, dilation: Size, ceil_mode: bool
) -> tuple[tuple[int, int], tuple[int, int], windows.Padding]:
    """The window and its strides, and what stands on both ends of each axis."""
    taps = _pair(window)
    strides = _pair(stride) if stride not in (None, (), []) else taps  # pyright: ignore[reportArgumentType]
    edges = []
    for size, tap, step, pad, gap in zip(sizes, taps, strides, _pair(padding), _pair(dilation), strict=True):
        if 2 * pad > tap:
            raise ValueError(f"padding must be at most half of the window, got {padding} for {window}")
        span, extra = gap * (tap - 1) + 1, 0
        if size + 2 * pad < span:
            raise ValueError(f"a window of {window} is larger than the padded input of {tuple(sizes)}")
        if ceil_mode:
            last = -(-(size + 2 * pad - span) // step) * step
            # No window begins in the padding on the right.
            last -= step if last >= size + pad else 0
            extra = max(0, last + span - size - 2 * pad)
        edges.append((pad, pad + extra))
    return taps, strides, (edges[0], edges[1])


def max_pool2d(
    inputs: Float[Array, "..."],
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Float[Array, "B C H2 W2"]:
    """Takes the maximum over windows; what stands around the input is minus infinity.

    `stride` is by default the size of the window. With `ceil_mode`, windows may reach beyond the padding below and on
    the right, but begin before it.

    Raises:
      ValueError: for an input that is no feature maps, a window that is larger, or padding by more than half a window.
    """
    _check_maps(inputs)
    sizes = inputs.shape[2:]
    window, strides, edges = _pool_edges(sizes, kernel_size, stride, padding, dilation, ceil_mode)
    maps = _channels_last(inputs)
    return _channels_first(windows.max_pool(maps, window, strides=strides, padding=edges, dilation=_pair(dilation)))


def avg_pool2d(
    inputs: Float[Array, "..."],
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Float[Array, "B C H2 W2"]:
    """Takes the mean over windows; what stands around the input is zero.

    The padding counts in the mean with `count_include_pad`; what `ceil_mode` adds to it never does. `divisor_override`
    divides the sum of each window instead. For the rest, see `max_pool2d`.

    Raises:
      ValueError: as `max_pool2d`.
    """
    _check_maps(inputs)
    sizes = inputs.shape[2:]
    window, strides, edges = _pool_edges(sizes, kernel_size, stride, padding, 1, ceil_mode)
    sums = windows.sum_pool(_channels_last(inputs), window, strides=strides, padding=edges)
    counts = []
    for size, pad, tap, step, count in zip(sizes, _pair(padding), window, strides, sums.shape[1:3], strict=True):
        first, last = (-pad, size + pad) if count_include_pad else (0, size)
        starts = step * np.arange(count) - pad
        counts.append(np.minimum(starts + tap, last) - np.maximum(starts, first))
    divisors = np.multiply.outer(*counts) if divisor_override is None else np.full((1, 1), divisor_override)
    return _channels_first(sums / jnp.asarray(divisors[None, :, :, None], sums.dtype))


def _adaptive_windows(inputs: Array, output_size: int | Sequence[int | None]) -> list[list[tuple[int, int]]]:
    """For each axis, the first place of each window, and the place behind it."""
    _check_maps(inputs)
    sizes = (output_size,) * 2 if isinstance(output_size, int) else output_size
    found = []
    for size, wanted in zip(inputs.shape[2:], sizes, strict=True):
        count = size if wanted is None else wanted
        found.append([(i * size // count, -(-(i + 1) * size // count)) for i in range(count)])
    return found


def adaptive_avg_pool2d(
    inputs: Float[Array, "..."], output_size: int | Sequence[int | None]
) -> Float[Array, "B C H2 W2"]:
    """Takes the mean over as many windows as `output_size` says, for each axis; None keeps its size.

    Of n windows of an axis of size H, window i goes from floor(i H / n) to ceil((i + 1) H / n). They may overlap.
    """
    spans = _adaptive_windows(inputs, output_size)
    if all(len(axis) == 1 for axis in spans):
        return jnp.mean(inputs, (2, 3), keepdims=True)
    weights = []
    for size, axis in zip(inputs.shape[2:], spans, strict=True):
        table = np.zeros((len(axis), size))
        for row, (first, last) in zip(table, axis, strict=True):
            row[first:last] = 1 / (last - first)
        weights.append(jnp.asarray(table, inputs.dtype))
    return jnp.einsum("bchw,ih,jw->bcij", inputs, *weights)


def adaptive_max_pool2d(
    inputs: Float[Array, "..."], output_size: int | Sequence[int | None]
) -> Float[Array, "B C H2 W2"]:
    """Takes the maximum over as many windows as `output_size` says; see `adaptive_avg_pool2d`."""
    rows, columns = _adaptive_windows(inputs, output_size)
    parts = [inputs[:, :, top:end, left:right] for (top, end), (left, right) in itertools.product(rows, columns)]
    flat = [part.reshape(*part.shape[:2], -1) for part in parts]
    first = [jax.nn.one_hot(jnp.argmax(part, 2), part.shape[2], dtype=bool) for part in flat]
    chosen = [jnp.sum(jnp.where(*pair, 0), 2) for pair in zip(first, flat, strict=True)]
    return jnp.stack(chosen, 2).reshape(*inputs.shape[:2], len(rows), len(columns))


def flatten(inputs: Float[Array, "..."], start_dim: int = 1, end_dim: int = -1) -> Float[Array, "..."]:
    """Makes one axis of those from `start_dim` to `end_dim`; of feature maps in the order C, H, W."""
    first, last = start_dim % inputs.ndim, end_dim % inputs.ndim
    return inputs.reshape(*inputs.shape[:first], -1, *inputs.shape[last + 1 :])


def attention(
    query: Float[Array, "*B T D"],
    key: Float[Array, "*B S D"],
    value: Float[Array, "*B S V"],
    mask: Array | None = None,
    *,
    is_causal: bool = False,
    scale: Number | None = None,
) -> Float[Array, "*B T V"]:
    """Scaled dot-product attention; `mask` is boolean, of what takes part, or is added to the products."""
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    products = jnp.matmul(query * factor, jnp.swapaxes(key, -1, -2))
    if is_causal:
        mask = jnp.tril(jnp.ones(products.shape[-2:], bool))
    if mask is not None and mask.dtype == bool:
        mask = jnp.where(mask, jnp.zeros((), products.dtype), -jnp.inf)
    if mask is not None:
        products = products + jnp.broadcast_to(mask.astype(products.dtype), products.shape)
    return jnp.matmul(jax.nn.softmax(products, -1), value)


def clamp(inputs: Array, min: Any = None, max: Any = None) -> Array:
    """Limits values from both sides; the gradient passes at a limit."""
    outputs = inputs if min is None else jnp.where(inputs < min, min, inputs)
    return outputs if max is None else jnp.where(outputs > max, max, outputs)


def hardtanh(inputs: Array, min_val: Number = -1.0, max_val: Number = 1.0) -> Array:
    """Limits values from both sides; the gradient at a limit is zero."""
    return jnp.where(inputs <= min_val, min_val, jnp.where(inputs >= max_val, max_val, inputs))


def gelu(inputs: Array, approximate: str = "none") -> Array:
    """The Gaussian error linear unit: exact, or by `approximate="tanh"`."""
    check_choice("approximate", approximate, APPROXIMATIONS)
    return jax.nn.gelu(inputs, approximate=approximate == "tanh")


def softplus(inputs: Array, beta: Number = 1.0, threshold: Number = 20.0) -> Array:
    """`log(1 + exp(beta x)) / beta`; the identity where `beta x` is above the threshold."""
    return jnp.where(inputs * beta > threshold, inputs, jax.nn.softplus(inputs * beta) / beta)


def leaky_relu(inputs: Array, negative_slope: Number = 0.01) -> Array:
    """The identity above zero, and the product with the slope at zero and below."""
    return jnp.where(inputs > 0, inputs, inputs * negative_slope)


def elu(inputs: Array, alpha: Number = 1.0, scale: Number = 1.0, input_scale: Number = 1.0) -> Array:
    """The exponential linear unit, `alpha (exp(x) - 1)` below zero."""
    below = alpha * jnp.expm1(jnp.where(inputs > 0, 0, inputs) * input_scale)
    return scale * jnp.where(inputs > 0, inputs, below)


def hardsigmoid(inputs: Array) -> Array:
    """`relu6(x + 3) / 6`."""
    return hardtanh(inputs + 3, 0.0, 6.0) / 6


def hardswish(inputs: Array) -> Array:
    """`x relu6(x + 3) / 6`."""
    return inputs * hardsigmoid(inputs)


# Functions of each value by PyTorch's names.
ACTIVATIONS: dict[str, Callable[..., Array]] = {
    "celu": lambda inputs, alpha=1.0: elu(inputs, alpha, 1.0, 1 / alpha),
    "elu": elu,
    "gelu": gelu,
    "hardsigmoid": hardsigmoid,
    "hardswish": hardswish,
    "hardtanh": hardtanh,
    "leaky_relu": leaky_relu,
    "log_sigmoid": jax.nn.log_sigmoid,
    "mish": lambda inputs: inputs * jnp.tanh(jax.nn.softplus(inputs)),
    "relu": jax.nn.relu,
    "relu6": lambda inputs: hardtanh(inputs, 0.0, 6.0),
    "selu": jax.nn.selu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "softplus": softplus,
    "softsign": jax.nn.soft_sign,
    "tanh": jnp.tanh,
}
