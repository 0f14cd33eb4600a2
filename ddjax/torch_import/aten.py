"""The operations of ATen, PyTorch's library of tensors, that an exported network may consist of.

Arguments stand in the order of ATen's schemas. Layers are those of `operations`. Where ATen returns further results,
that only its gradients need, a tuple of the first alone is returned.

Reference:
  native_functions.yaml of PyTorch 2.13.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ddjax.torch_import import operations

_LARGEST = 2**31 - 1


def _axes(dim: Any) -> int | tuple[int, ...] | None:
    return (tuple(dim) or None) if isinstance(dim, list | tuple) else dim


def _reduction(function: Callable[..., Array]) -> Callable[..., Array]:
    def reduce(inputs: Array, dim: Any = None, keepdim: bool = False, *, dtype: str | None = None) -> Array:
        outputs = function(inputs, _axes(dim), keepdims=keepdim)
        return outputs if dtype is None else outputs.astype(dtype)

    return reduce


def _convolution(
    inputs: Array, weight: Array, bias: Array | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
) -> Array:  # fmt: skip
    axes = weight.ndim - 2
    if transposed or axes > 2:
        raise ValueError("only convolutions in one or two dimensions are supported, and none that is transposed")
    if axes == 1:  # As of images of one row.
        inputs, weight = inputs[:, :, None], weight[:, :, None]
        stride, padding, dilation = (1, *stride), (0, *padding), (1, *dilation)
    settings: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    outputs = operations.conv2d(inputs, weight, bias, **settings)
    return outputs[:, :, 0] if axes == 1 else outputs


def _batch_norm(
    inputs: Array, weight: Array | None, bias: Array | None, mean: Array, var: Array, momentum: Any, eps: Any
) -> tuple[Array]:
    return (operations.batch_norm(inputs, weight, bias, mean, var, eps=eps),)


def _instance_norm(
    inputs: Array, weight: Array | None, bias: Array | None, mean: Array | None, var: Array | None,
    use_input_stats: bool, momentum: Any, eps: Any, cudnn_enabled: bool,
) -> Array:  # fmt: skip
    if use_input_stats or mean is None or var is None:
        return operations.group_norm(inputs, inputs.shape[1], weight, bias, eps=eps)
    return operations.batch_norm(inputs, weight, bias, mean, var, eps=eps)


def _pad(inputs: Array, pad: Sequence[int], mode: str = "constant", value: Any = None) -> Array:
    """The sizes begin with those of the last axis; negative ones cut off."""
    pairs = [(0, 0)] * (inputs.ndim - len(pad) // 2) + list(zip(pad[::2], pad[1::2], strict=True))[::-1]
    ends = zip(inputs.shape, pairs, strict=True)
    kept = tuple(slice(max(-low, 0), size - max(-high, 0)) for size, (low, high) in ends)
    edges = [(max(low, 0), max(high, 0)) for low, high in pairs]
    if mode == "constant":
        return jnp.pad(inputs[kept], edges, constant_values=0 if value is None else value)
    return jnp.pad(inputs[kept], edges, operations.PADDING_MODES[mode])


def _divide(inputs: Any, other: Any, *, rounding_mode: str | None = None) -> Array:
    if rounding_mode is None:
        return jnp.true_divide(inputs, other)
    return jnp.floor_divide(inputs, other) if rounding_mode == "floor" else jnp.trunc(jnp.true_divide(inputs, other))


def _variance(
    inputs: Array, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: Any = None
) -> Array:
    return jnp.var(inputs, _axes(dim), ddof=int(unbiased) if correction is None else correction, keepdims=keepdim)


def _slice(inputs: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Array:
    span = slice(start, None if end is None else min(end, _LARGEST), step)
    return inputs[(slice(None),) * (dim % inputs.ndim) + (span,)]


def _split(inputs: Array, sizes: int | Sequence[int], dim: int = 0) -> tuple[Array, ...]:
    if isinstance(sizes, int):
        ends = range(sizes, inputs.shape[dim], sizes)
    else:
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    return tuple(jnp.split(inputs, list(ends), dim))


def _expand(inputs: Array, sizes: Sequence[int], *, implicit: bool = False) -> Array:
    shape = (1,) * (len(sizes) - inputs.ndim) + inputs.shape
    return jnp.broadcast_to(inputs, [own if size == -1 else size for own, size in zip(shape, sizes, strict=True)])


def _squeeze(inputs: Array, dim: Any = None) -> Array:
    axes = range(inputs.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    return jnp.squeeze(inputs, tuple(axis % inputs.ndim for axis in axes if inputs.shape[axis] == 1))


def _index(inputs: Array, indices: Sequence[Array | None]) -> Array:
    return inputs[tuple(slice(None) if each is None else each for each in indices)]


def _arange(*bounds: Any, dtype: str | None = None) -> Array:
    return jnp.arange(*bounds, dtype=dtype)


def _full(size: Sequence[int], value: Any, *, dtype: str | None = None) -> Array:
    return jnp.full(size, value, dtype)


def _full_like(inputs: Array, value: Any, *, dtype: str | None = None) -> Array:
    return jnp.full_like(inputs, value, dtype)


def _upsample_nearest(inputs: Array, output_size: Sequence[int] | None, scale_factors: Any = None) -> Array:
    for axis, size in enumerate(inputs.shape[2:], 2):
        scale = scale_factors[axis - 2] if output_size is None else output_size[axis - 2] / size
        places = np.minimum(np.arange(int(size * scale)) / scale, size - 1).astype(np.int32)
        inputs = jnp.take(inputs, jnp.asarray(places), axis)
    return inputs


def _attention(
    query: Array, key: Array, value: Array, attn_mask: Array | None = None, dropout_p: Any = 0.0,
    is_causal: bool = False, *, scale: Any = None, enable_gqa: bool = False,
) -> Array:  # fmt: skip
    if enable_gqa:
        raise ValueError("attention with grouped queries is not supported")
    return operations.attention(query, key, value, attn_mask, is_causal=is_causal, scale=scale)


def _same(inputs: Array, *_: Any, **__: Any) -> Array:
    return inputs


def _cast(inputs: Array, *, dtype: str | None = None, **_: Any) -> Array:
    return inputs if dtype is None else inputs.astype(dtype)


def _of_elements(function: Callable[..., Any]) -> Callable[..., Any]:
    """Sums and differences, whose second term may have a factor `alpha`."""
    return lambda inputs, other, *, alpha=1: function(inputs, other if alpha == 1 else other * alpha)


# By the name without its overload.
OPERATIONS: dict[str, Callable[..., Any]] = {
    # Layers.
    "_adaptive_avg_pool2d": operations.adaptive_avg_pool2d,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "adaptive_avg_pool2d": operations.adaptive_avg_pool2d,
    "adaptive_max_pool2d": lambda inputs, size: (operations.adaptive_max_pool2d(inputs, size),),
    "avg_pool2d": operations.avg_pool2d,
    "convolution": _convolution,
    "instance_norm": _instance_norm,
    "linear": operations.linear,
    "max_pool2d_with_indices": lambda *arguments: (operations.max_pool2d(*arguments),),
    "native_group_norm": lambda inputs, weight, bias, batch, channels, size, groups, eps: (
        operations.group_norm(inputs, groups, weight, bias, eps=eps),
    ),
    "native_layer_norm": lambda inputs, shape, weight, bias, eps: (
        operations.layer_norm(inputs, shape, weight, bias, eps=eps),
    ),
    "scaled_dot_product_attention": _attention,
    "upsample_nearest2d": _upsample_nearest,
    # Functions of each value.
    **operations.ACTIVATIONS,
    "_prelu_kernel": lambda inputs, weight: jnp.where(inputs > 0, inputs, weight * inputs),
    "abs": jnp.abs,
    "add": _of_elements(operator.add),
    "clamp": operations.clamp,
    "clamp_max": lambda inputs, most: operations.clamp(inputs, None, most),
    "clamp_min": operations.clamp,
    "cos": jnp.cos,
    "div": _divide,
    "erf": jax.scipy.special.erf,
    "exp": jnp.exp,
    "expm1": jnp.expm1,
    "log": jnp.log,
    "log1p": jnp.log1p,
    "maximum": jnp.maximum,
    "minimum": jnp.minimum,
    "mul": operator.mul,
    "neg": operator.neg,
    "pow": jnp.power,
    "reciprocal": lambda inputs: 1 / inputs,
    "rsqrt": lambda inputs: 1 / jnp.sqrt(inputs),
    "sign": jnp.sign,
    "sin": jnp.sin,
    "sqrt": jnp.sqrt,
    "square": jnp.square,
    "sub": _of_elements(operator.sub),
    "rsub": lambda inputs, other, alpha=1: other - inputs * alpha,
    # Comparisons.
    "bitwise_not": operator.invert,
    "eq": operator.eq,
    "ge": operator.ge,
    "gt": operator.gt,
    "le": operator.le,
    "logical_and": jnp.logical_and,
    "logical_not": jnp.logical_not,
    "logical_or": jnp.logical_or,
    "lt": operator.lt,
    "masked_fill": lambda inputs, mask, value: jnp.where(mask, value, inputs),
    "ne": operator.ne,
    "where": jnp.where,
    # Products.
    "addmm": lambda inputs, left, right, *, beta=1, alpha=1: beta * inputs + alpha * (left @ right),
    "baddbmm": lambda inputs, left, right, *, beta=1, alpha=1: beta * inputs + alpha * (left @ right),
    "bmm": jnp.matmul,
    "dot": jnp.matmul,
    "matmul": jnp.matmul,
    "mm": jnp.matmul,
    "mv": jnp.matmul,
    # Along axes.
    "_log_softmax": lambda inputs, dim, half_to_float: jax.nn.log_softmax(inputs, dim),
    "_softmax": lambda inputs, dim, half_to_float: jax.nn.softmax(inputs, dim),
    "amax": _reduction(jnp.max),
    "amin": _reduction(jnp.min),
    "any": _reduction(jnp.any),
    "argmax": _reduction(jnp.argmax),
    "cumsum": lambda inputs, dim, *, dtype=None: jnp.cumsum(inputs, dim, dtype=dtype),
    "mean": _reduction(jnp.mean),
    "sum": _reduction(jnp.sum),
    "var": _variance,
    # Shapes and places.
    "cat": lambda tensors, dim=0: jnp.concatenate(tensors, dim),
    "constant_pad_nd": lambda inputs, pad, value=0: _pad(inputs, pad, "constant", value),
    "expand": _expand,
    "flip": lambda inputs, dims: jnp.flip(inputs, dims),
    "index": _index,
    "pad": _pad,
    "permute": lambda inputs, dims: jnp.transpose(inputs, dims),
    "repeat": lambda inputs, repeats: jnp.tile(inputs, repeats),
    "reshape": jnp.reshape,
    "roll": lambda inputs, shifts, dims=(): jnp.roll(inputs, shifts, _axes(dims)),
    "select": lambda inputs, dim, index: jax.lax.index_in_dim(inputs, index, dim, keepdims=False),
    "slice": _slice,
    "split": _split,
    "split_with_sizes": _split,
    "squeeze": _squeeze,
    "stack": lambda tensors, dim=0: jnp.stack(tensors, dim),
    "transpose": jnp.swapaxes,
    "unbind": lambda inputs, dim=0: tuple(jnp.moveaxis(inputs, dim, 0)),
    "unsqueeze": jnp.expand_dims,
    "view": jnp.reshape,
    # Copies, which mean nothing here.
    "_to_copy": _cast,
    "alias": _same,
    "clone": _same,
    "detach": jax.lax.stop_gradient,
    "dropout": _same,
    "lift_fresh_copy": _same,
    # Constants, and the sizes of tensors, which are numbers here.
    "arange": _arange,
    "full": _full,
    "full_like": _full_like,
    "ones": functools.partial(_full, value=1.0),
    "scalar_tensor": lambda value, *, dtype=None: jnp.asarray(value, dtype),
    "sym_size": lambda inputs, dim: inputs.shape[dim],
    "zeros": functools.partial(_full, value=0.0),
    **{
        f"operator.{name}": getattr(operator, name)
        for name in ("add", "floordiv", "getitem", "mod", "mul", "neg", "sub")
    },
}  # fmt: skip
