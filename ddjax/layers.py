"""Convolution and max pooling, lowered to what each backend runs fast.

XLA:CPU executes the convolutions that automatic differentiation produces as naive loops when they stand inside `scan`,
`while_loop` or `map`, sends ordinary ones to a single-threaded kernel, and turns the gradient of a windowed maximum
into a serial scatter. All training and all attacks of this library live in such loops. Two lowerings with the same
parameters and, to rounding, the same values are therefore kept:

* `"plain"`: `lax.conv_general_dilated` and `lax.reduce_window`. The right one on GPU and TPU, and the only one with
  forward-mode derivatives.
* `"canonical"`: the right one on CPU. The forward pass and both gradients are forward convolutions in the layout that
  XLA:CPU hands to its fast multi-threaded kernel, with half the multiplications where Winograd's algorithm pays. The
  same holds for the gradients of gradients. Pooling is a reshape and a maximum.

`"auto"` chooses by the platform for which the program is lowered. Nothing outside this file, and `windows.py` for other
strides and windows, knows about any of it.
`python -m launch.benchmark --work=layers` measures the choice, which is worth repeating with each new jaxlib: on two
cores `"plain"` took 49 times as long to train MNIST's network, and 12 times as long for input gradients, with jaxlib
0.10.2, and 59 and 19 times with 0.12.0.1.
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from ddjax.checks import check_choice
from ddjax.platforms import by_platform, for_cpu

LOWERINGS = ("auto", "plain", "canonical")
_LAYOUT = ("NHWC", "HWIO", "NHWC")
# With this few inputs to each output, as of a first layer, a convolution is memory-bound and an explicit patch matrix
# beats the convolution kernel.
_FEW_INPUTS = 32
# Where Winograd's algorithm multiplies polynomials. Points near 1 keep rounding errors small: Barabasz et al., Error
# Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks, 2020 (arXiv 1803.10986).
_POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)
# A convolution of fewer multiplications is over before Winograd's many small steps are: those of MNIST's network pay
# from eight images on, and with a single one they cost PGD a sixth.
_LEAST_PRODUCTS = 2**24
# Kernel gradients are summed over parts of the batch: quarters of it, of 8 to 16 images, but not more parts than eight.
# In turns, CIFAR-10 networks took 4 percent less time with parts of 8 of 32 images; digits 3 percent more, of 64.
_CACHED_IMAGES = 16
_MAX_PARTS = 8
# Of so many pixels, the activations of these networks stay in the cache (parts of 32 were, within noise, the fastest
# for 28 x 28 and 32 x 32); fewer than eight images keep no core busy.
_CACHED_PIXELS = 32 * 1024
_LEAST_PART = 8

# Keeps convolutions away from the single-threaded kernel when given to `jax.jit`; see `unpadded`.
COMPILER_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
# Part of the key under which jax keeps traces.
_grows = jax.make_user_context(True)

Padding = tuple[tuple[int, int], tuple[int, int]]


def in_lowering(
    lowering: str, plain: Callable[..., Array], canonical: Callable[..., Array], *arguments: Array
) -> Array:
    """Calls one of the two forms of an operation of arrays; see the head of this file.

    Raises:
      ValueError: for an unknown lowering.
    """
    check_choice("lowering", lowering, LOWERINGS)
    if lowering == "auto":
        return by_platform(*arguments, cpu=canonical, default=plain)
    return plain(*arguments) if lowering == "plain" else canonical(*arguments)


def _plain_conv(inputs: Array, kernel: Array, padding: Padding) -> Array:
    return lax.conv_general_dilated(inputs, kernel, (1, 1), padding, dimension_numbers=_LAYOUT)


def _resolve_padding(padding: str | Padding, kernel_size: Sequence[int]) -> Padding:
    if not isinstance(padding, str):
        return padding
    check_choice("padding", padding, ("VALID", "SAME"))
    height, width = kernel_size if padding == "SAME" else (1, 1)
    return ((height - 1) // 2, height // 2), ((width - 1) // 2, width // 2)


def images_at_once(count: int, image_shape: Sequence[int], *, equal: bool = True) -> int:
    """How many images of a batch of `count` should go through a network together on CPU.

    On CPU, a batch in parts whose activations stay in the cache takes a tenth to a third less time. Other platforms
    should take the whole batch: call this for the CPU form of `by_platform` only, as `in_parts` does.

    Args:
      count: the number of images in the batch.
      image_shape: (H, W, C); inputs of another form go together.
      equal: whether all parts must have the same size, which then divides `count`; it is `count` where there are no
        equal parts of a useful size. If not, waiting images take the places of finished ones.
    """
    if len(image_shape) != 3:
        return count
    most = max(_LEAST_PART, _CACHED_PIXELS // (image_shape[0] * image_shape[1]))
    if equal:
        size = next(size for size in range(min(most, count), 0, -1) if count % size == 0)
        return size if size >= most // 4 else count
    if count <= most:
        return count
    # At most a quarter: in the end, places without a successor wait for the slowest image. A power of two: 32 of
    # MNIST's images were a tenth faster than 41.
    most = 1 << (most.bit_length() - 1)
    return min(most, max(_LEAST_PART, most // 2, count // 4))


def in_parts(fn: Callable[..., Any], *batch: Array) -> Any:
    """Applies a function to a batch; on CPU to equal parts of it, one after the other, of size `images_at_once`.

    The function takes arrays with the examples as first axis, and returns a pytree of such arrays. Examples must not
    influence each other. The shape of the first array decides the size of the parts, if it is that of images.
    """
    count, *shape = batch[0].shape
    size = images_at_once(count, shape)
    if size == count:
        return fn(*batch)

    def one_after_the_other(*batch: Array) -> Any:
        parts = [array.reshape(count // size, size, *array.shape[1:]) for array in batch]
        results = lax.map(lambda part: fn(*part), parts)
        return jax.tree.map(lambda leaf: leaf.reshape(count, *leaf.shape[2:]), results)

    return by_platform(*batch, cpu=one_after_the_other, default=fn)


@contextlib.contextmanager
def unpadded() -> Iterator[None]:
    """Traces canonical convolutions without their rows of zeros, for programs compiled with `COMPILER_OPTIONS`.

    Use it inside the compiled function, so that it holds for that program alone. It saves about a tenth of a training
    step. JAX takes compiler options on an outermost `jit` only; a program without them needs the zeros. The options are
    those of CPU, so the program is traced for CPU alone.
    """
    with _grows(False), for_cpu():
        yield


def _fast_forward(inputs: Array, kernel: Array, padding: Padding) -> Array:
    """A stride-1 convolution in the one form that XLA:CPU gives to its multi-threaded kernel.

    XLA:CPU prefers a single-threaded kernel unless the output or the kernel is larger than the input in some spatial
    dimension. Where neither is, one of them grows by rows of zeros: the one for which that wastes less work.
    """
    sizes = inputs.shape[1:3], kernel.shape[:2], padding
    axes = [(size, size + sum(pads) - taps + 1, taps) for size, taps, pads in zip(*sizes, strict=True)]
    height, out_height, kernel_height = axes[0]
    (top, bottom), across = padding
    if _grows.value and all(max(out, taps) <= size for size, out, taps in axes):
        rows = height + 1 - max(out_height, kernel_height)
        bottom += rows
        if out_height < kernel_height:
            kernel = lax.optimization_barrier(jnp.pad(kernel, ((0, rows), (0, 0), (0, 0), (0, 0))))
    return _plain_conv(inputs, kernel, ((top, bottom), across))[:, :out_height]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _canonical_conv(inputs: Array, kernel: Array, padding: Padding) -> Array:
    return _fast_forward(inputs, kernel, padding)


def _canonical_conv_fwd(inputs: Any, kernel: Any, padding: Padding) -> tuple[Array, tuple[Array, Array]]:
    # An operand without a tangent, as the kernel in an attack, needs no gradient: XLA would drop it, but tracing it
    # takes longer than all the rest. An empty array stands for the residual that is not needed. It must not be None:
    # JAX keeps one structure of the residuals for all uses of a trace.
    nothing = jnp.zeros((0,), inputs.value.dtype)
    residuals = (inputs.value if kernel.perturbed else nothing, kernel.value if inputs.perturbed else nothing)
    return _fast_forward(inputs.value, kernel.value, padding), residuals


def _canonical_conv_bwd(
    padding: Padding, residuals: tuple[Array, Array], cotangent: Any
) -> tuple[Array | None, Array | None]:
    inputs, kernel = residuals
    if isinstance(cotangent, SymbolicZero):
        return None, None
    input_gradient = _input_gradient(kernel, cotangent, padding) if kernel.ndim == 4 else None
    if inputs.ndim != 4:
        return input_gradient, None
    # Padding is made explicit: together with so large a kernel, as an attribute it leads to the naive loop again.
    padded = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))
    # In parts of the batch that fit the cache, which halves the time of the larger layers.
    count = inputs.shape[0]
    part = max(_LEAST_PART, min(_CACHED_IMAGES, count // 4), -(-count // _MAX_PARTS))
    parts = [slice(start, start + part) for start in range(0, count, part)]
    return input_gradient, functools.reduce(jnp.add, [_kernel_gradient(padded[i], cotangent[i]) for i in parts])


def _input_gradient(kernel: Array, cotangent: Array, padding: Padding) -> Array:
    """A convolution of the cotangent by the flipped kernel, inputs and outputs exchanged."""
    height, width = kernel.shape[:2]
    (top, bottom), (left, right) = padding
    # The barriers keep XLA from folding the rearrangements back into dimension numbers, which would bring the naive
    # loop back.
    flipped = lax.optimization_barrier(kernel[::-1, ::-1].transpose(0, 1, 3, 2))
    # Again in this form, so that the derivatives of gradients are fast, too: a gradient penalty takes them.
    pads = ((height - 1 - top, height - 1 - bottom), (width - 1 - left, width - 1 - right))
    return _canonical_conv(cotangent, flipped, pads)  # pyright: ignore[reportReturnType]


def _kernel_gradient(inputs: Array, cotangent: Array) -> Array:
    """Channels take the place of the batch, the batch that of the channels, and the cotangent that of the kernel."""
    channels_first = lax.optimization_barrier(inputs.transpose(3, 1, 2, 0))
    cotangent_kernel = lax.optimization_barrier(cotangent.transpose(1, 2, 0, 3))
    return jnp.transpose(_canonical_conv(channels_first, cotangent_kernel, ((0, 0), (0, 0))), (1, 2, 0, 3))


_canonical_conv.defvjp(_canonical_conv_fwd, _canonical_conv_bwd, symbolic_zeros=True)


def _toom_cook() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices of `y = A ((G g) * (B d))`, four outputs of a filter with three taps from six inputs.

    The filter and the outputs are polynomials, which are multiplied by their values at six points; the last is
    infinity.
    """
    points = np.array(_POINTS)
    others = [np.delete(points, i) for i in range(5)]
    powers = points[:, None] ** np.arange(4)
    scales = np.array([np.prod(point - rest) for point, rest in zip(points, others, strict=True)])
    outputs = np.vstack([powers, [0, 0, 0, 1]]).T
    filters = np.vstack([powers[:, :3] / scales[:, None], [0, 0, 1]])
    inputs = np.vstack([*(np.append(np.poly(rest)[::-1], 0) for rest in others), np.poly(points)[::-1]])
    return outputs, filters, inputs


_OUTPUTS, _FILTERS, _INPUTS = _toom_cook()


def _winograd_conv(inputs: Array, kernel: Array, padding: Padding) -> Array:
    """A convolution by 3 x 3 filters as six by 1 x 3 filters, of rows that are mixed before and after.

    Half the multiplications; see `_is_worth_mixing`. Derivatives are those of its parts, and save as much.

    Reference:
      Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016 (arXiv 1509.09308): F(4, 3), rows only.
    """
    (top, bottom), across = padding
    batch, height, width, channels = inputs.shape
    out_height = height + top + bottom - 2
    tiles = -(-out_height // 4)
    # Tiles of four rows; each needs two rows of the next one as well.
    padded = jnp.pad(inputs, ((0, 0), (top, 4 * (tiles + 1) - height - top), (0, 0), (0, 0)))
    blocks = padded.reshape(batch, tiles + 1, 4, width, channels)
    rows = [blocks[:, j // 4 : tiles + j // 4, j % 4] for j in range(6)]
    products = []
    for of_filter, of_inputs in zip(_FILTERS, _INPUTS, strict=True):
        mixed = lax.optimization_barrier(_combine(of_inputs, rows))
        one_row = _combine(of_filter, list(kernel))[None]
        products.append(_canonical_conv(mixed, one_row, ((0, 0), across)))
    outputs = jnp.stack([_combine(weights, products) for weights in _OUTPUTS], 2)
    return outputs.reshape(batch, 4 * tiles, *outputs.shape[3:])[:, :out_height]


def _is_worth_mixing(inputs: Array, kernel: Array) -> bool:
    """Whether `_winograd_conv` takes less time: measured, with many channels, maps that the cache holds, much to do."""
    batch, height, width, _ = inputs.shape
    of_this_form = kernel.shape[:2] == (3, 3) and inputs.dtype == jnp.float32
    products = batch * height * width * kernel.size
    return of_this_form and min(kernel.shape[2:]) >= height + width and products >= _LEAST_PRODUCTS


def _combine(weights: np.ndarray, arrays: Sequence[Array]) -> Array:
    terms = [float(weight) * array for weight, array in zip(weights, arrays, strict=True) if weight]
    return functools.reduce(jnp.add, terms)


def _patch_conv(inputs: Array, kernel: Array, padding: Padding) -> Array:
    """A convolution as a patch matrix times the kernel matrix."""
    height, width, channels, features = kernel.shape
    padded = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))
    down, across = padded.shape[1] - height + 1, padded.shape[2] - width + 1
    shifts = itertools.product(range(height), range(width))
    patches = jnp.concatenate([padded[:, row : row + down, column : column + across] for row, column in shifts], -1)
    return _patch_product(patches, kernel.reshape(height * width * channels, features))


@jax.custom_gradient
def _patch_product(patches: Array, kernel: Array) -> Any:
    def pull(cotangent: Array) -> tuple[Array, Array]:
        # As one product over all pixels of the batch, its many columns and few rows take several times as long.
        parts = math.gcd(patches.shape[0], _MAX_PARTS)
        of_parts = lambda array: array.reshape(parts, -1, array.shape[-1])
        gradients = jnp.einsum("pnk,pnf->pkf", of_parts(patches), of_parts(cotangent))
        return cotangent @ kernel.T, jnp.sum(gradients, 0)

    return patches @ kernel, pull


def conv(
    inputs: Float[Array, "B H W C"],
    kernel: Float[Array, "h w C F"],
    *,
    padding: str | Padding = "VALID",
    lowering: str = "auto",
) -> Float[Array, "B H2 W2 F"]:
    """Convolves with stride 1.

    Args:
      inputs: a batch of images or feature maps.
      kernel: the filters, no larger than the padded input.
      padding: `"VALID"`, `"SAME"`, or how many zeros stand `((above, below), (left, right))`.
      lowering: `"auto"`, `"plain"` or `"canonical"`; see the head of this file. Values agree to rounding.
        `"canonical"`, and therefore `"auto"`, has reverse-mode derivatives only.

    Raises:
      ValueError: for an unknown padding or lowering, or when the channels of inputs and kernel differ.
    """
    pads = _resolve_padding(padding, kernel.shape[:2])
    if inputs.shape[-1] != kernel.shape[2]:
        raise ValueError(f"the kernel takes {kernel.shape[2]} channels, the input has {inputs.shape[-1]}")
    if any(pad >= taps for taps, edges in zip(kernel.shape, pads, strict=False) for pad in edges):
        # The gradient would have negative padding, for which XLA:CPU (jaxlib 0.10.2) returns arbitrary numbers.
        inputs, pads = jnp.pad(inputs, ((0, 0), *pads, (0, 0))), ((0, 0), (0, 0))
    if math.prod(kernel.shape[:3]) <= _FEW_INPUTS:
        canonical = _patch_conv
    elif _is_worth_mixing(inputs, kernel):
        canonical = _winograd_conv
    else:
        canonical = _canonical_conv
    return in_lowering(lowering, _padded_by(_plain_conv, pads), _padded_by(canonical, pads), inputs, kernel)


@functools.cache
def _padded_by(form: Callable[..., Array], padding: Padding) -> Callable[..., Array]:
    # The same function for the same padding: JAX keeps the trace of a function, and what it derived from that.
    return functools.partial(form, padding=padding)


@jax.custom_gradient
def _reshape_max_pool(inputs: Array) -> Any:
    batch, height, width, channels = inputs.shape
    blocks = inputs.reshape(batch, height // 2, 2, width // 2, 2, channels)
    outputs = blocks.max((2, 4))
    # Exact ties are the rule on a flat background. The first maximum in row-major order gets the cotangent, as in
    # `reduce_window`; sharing it among the tied would change the gradient.
    winner = jnp.full(outputs.shape, 3, jnp.uint8)
    for place in (2, 1, 0):
        is_maximum = blocks[:, :, place // 2, :, place % 2] == outputs
        winner = jnp.where(is_maximum, jnp.uint8(place), winner)

    def pull(cotangent: Array) -> Array:
        place = jnp.arange(4, dtype=jnp.uint8).reshape(1, 1, 2, 1, 2, 1)
        places = jnp.where(winner[:, :, None, :, None] == place, cotangent[:, :, None, :, None], 0)
        return places.reshape(inputs.shape)

    return outputs, pull


def max_pool(inputs: Float[Array, "B H W C"], *, lowering: str = "auto") -> Float[Array, "B H2 W2 C"]:
    """Takes the maximum over 2 x 2 blocks; an odd last row or column is dropped.

    Ties send their gradient to the first maximum in row-major order. For `lowering`, see `conv`.

    Raises:
      ValueError: for an unknown lowering.
    """
    height, width = (size // 2 * 2 for size in inputs.shape[1:3])
    return in_lowering(lowering, _plain_max_pool, _reshape_max_pool, inputs[:, :height, :width])


def _plain_max_pool(inputs: Array) -> Array:
    return nn.max_pool(inputs, (2, 2), (2, 2))


class Conv(nn.Module):
    """A stride-1 convolution with bias, parameters as in `flax.linen.Conv`.

    Attributes:
      features: the number of filters.
      kernel_size: their height and width.
      padding: `"VALID"` or `"SAME"`.
      kernel_init: the initializer of the kernel; the bias starts at zero.
      lowering: see the head of this file.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    padding: str = "VALID"
    kernel_init: nn.initializers.Initializer = nn.initializers.glorot_uniform()
    lowering: str = "auto"

    @nn.compact
    def __call__(self, inputs: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 F"]:
        """Convolves a batch of feature maps."""
        shape = (*self.kernel_size, inputs.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        outputs = conv(inputs, kernel.astype(inputs.dtype), padding=self.padding, lowering=self.lowering)
        return outputs + bias.astype(inputs.dtype)[None, None, None, :]


class ReLU(nn.Module):
    """The rectifier, leaky with a slope above 0, as a module: what stands behind it can be captured and intercepted."""

    negative_slope: float = 0.0

    def __call__(self, inputs: Float[Array, "..."]) -> Float[Array, "..."]:
        """Rectifies values of any shape."""
        return nn.leaky_relu(inputs, self.negative_slope) if self.negative_slope else nn.relu(inputs)


def jit(function: Callable[..., Any], **settings: Any) -> Any:
    """`jax.jit` of a function that differentiates a network in a loop, with the compiler options that a CPU needs.

    The result must be called outside of other compiled functions. `settings` are further arguments of `jax.jit`.
    """
    if jax.default_backend() != "cpu" or not _takes_compiler_options():
        return jax.jit(function, **settings)

    return jax.jit(unpadded()(function), compiler_options=COMPILER_OPTIONS, **settings)


@functools.cache
def _takes_compiler_options() -> bool:
    """Whether this jaxlib knows the options; it raises an error where it does not."""
    try:
        jax.jit(lambda x: x + 1, compiler_options=COMPILER_OPTIONS)(0)
    except (jax.errors.JaxRuntimeError, ValueError):
        return False
    return True
