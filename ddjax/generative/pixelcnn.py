"""PixelCNN++: the density of an image, pixel by pixel from what stands above it and to its left.

Reference:
  Salimans, Karpathy, Chen and Kingma, PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood
  and Other Modifications, 2017 (arXiv 1701.05517).

Departures from the paper:
  No weight normalization; kernels start by He et al.'s rule instead of from a batch of data. Halving and doubling of
  the resolution go by blocks of 2 x 2 pixels without overlap, in both streams. The running mean of the parameters
  starts with a short memory.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key, Num

from ddjax import layers, rounding
from ddjax.binding import bind
from ddjax.generative.logistic_mixture import channel_log_probs, log_prob, num_parameters
from ddjax.generative.resolution import depth_to_space, space_to_depth
from ddjax.state import TrainState
from ddjax.state import create_state as create_plain_state
from ddjax.training.step import epoch_rows

_HE = nn.initializers.he_normal()
_SMALL = nn.initializers.variance_scaling(0.02, "fan_in", "truncated_normal")


class _At(NamedTuple):
    """Where in a feature map of this height and width a strip of one row begins, when the map is computed in parts."""

    row: Any
    column: Any
    height: int
    width: int

    def halved(self) -> "_At":
        """The same place at half the resolution."""
        return _At(self.row // 2, self.column // 2, -(-self.height // 2), -(-self.width // 2))


def _window(padded: Array, at: _At, height: int, width: int) -> Array:
    zero = jnp.zeros_like(at.row)
    return lax.dynamic_slice(padded, (zero, at.row, at.column, zero), (padded.shape[0], height, width, padded.shape[3]))


class _Remembering(nn.Module):
    """A layer that looks at several places of its input, of which it may be given one strip after the other."""

    def seen(self, inputs: Array, at: _At | None, kernel: tuple[int, int], left: int, right: int) -> Array:
        """The padded input or, of one that comes strip by strip, what the layer sees of it from this strip.

        A strip is one row of the map or one entry of it. It is kept, in the collection `cache`, for those that follow.
        """
        top = kernel[0] - 1
        if at is None:
            return jnp.pad(inputs, ((0, 0), (top, 0), (left, right), (0, 0)))
        shape = (inputs.shape[0], at.height + top, at.width + left + right, inputs.shape[3])
        kept = self.variable("cache", "inputs", jnp.zeros, shape, inputs.dtype)
        zero = jnp.zeros_like(at.row)
        kept.value = lax.dynamic_update_slice(kept.value, inputs, (zero, at.row + top, at.column + left, zero))
        return _window(kept.value, at, kernel[0], inputs.shape[2] + kernel[1] - 1)


class _Conv(_Remembering):
    """A convolution of the first stream (`down`) or of the second one.

    The first sees the row above and its own from side to side, the second what is above, left, and the place itself.
    """

    features: int
    down: bool
    kernel_init: Any = _HE

    @nn.compact
    def __call__(self, inputs: Array, at: _At | None) -> Array:
        kernel, right = ((2, 3), 1) if self.down else ((2, 2), 0)
        return _Valid(self.features, kernel, self.kernel_init)(self.seen(inputs, at, kernel, 1, right))


class _Valid(nn.Module):
    """A convolution without padding; where one place is left, it is a matrix product."""

    features: int
    kernel_size: tuple[int, int]
    kernel_init: Any = _HE

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        shape = (*self.kernel_size, inputs.shape[3], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        if inputs.shape[1:3] == self.kernel_size:
            flat = inputs.reshape(inputs.shape[0], -1) @ kernel.reshape(-1, self.features)
            return (flat + bias[None])[:, None, None]
        return layers.conv(inputs, kernel) + bias[None, None, None]


class _Halve(_Remembering):
    """To half the resolution: each place sees a block of 2 x 2 that ends at its first pixel."""

    features: int

    @nn.compact
    def __call__(self, inputs: Array, at: _At | None) -> Array:
        if at is None:
            height, width = inputs.shape[1:3]
            seen = jnp.pad(inputs, ((0, 0), (1, height % 2), (1, width % 2), (0, 0)))
            seen = seen[:, : height + height % 2, : width + width % 2]
        else:
            # The strip is the last to be seen; of the block that its half stands for, all has been before.
            self.seen(inputs, at, (2, 2), 1, 1)
            kept = self.get_variable("cache", "inputs")
            first = at._replace(row=at.row // 2 * 2, column=at.column // 2 * 2)
            seen = _window(kept, first, 2, -(-inputs.shape[2] // 2) * 2)
        return nn.Dense(self.features, kernel_init=_HE)(space_to_depth(seen))


class _Double(nn.Module):
    """To twice the resolution: each place becomes a block of 2 x 2."""

    features: int

    @nn.compact
    def __call__(self, inputs: Array, at: _At | None, shape: tuple[int, int]) -> Array:
        doubled = depth_to_space(nn.Dense(4 * self.features, kernel_init=_HE)(inputs))
        if at is None:
            return doubled[:, : shape[0], : shape[1]]
        return _window(doubled, at._replace(row=at.row % 2, column=at.column % 2), *shape)


def _concat_elu(inputs: Array) -> Array:
    return nn.elu(jnp.concatenate([inputs, -inputs], axis=-1))


class _Gated(nn.Module):
    """A residual unit with a gate: two convolutions, a shortcut, and perhaps what another stream has."""

    features: int
    down: bool
    dropout: float

    @nn.compact
    def __call__(self, inputs: Array, other: Array | None, at: _At | None, train: bool) -> Array:
        hidden = _Conv(self.features, self.down)(_concat_elu(inputs), at)
        if other is not None:
            hidden = hidden + nn.Dense(self.features, kernel_init=_HE)(_concat_elu(other))
        hidden = nn.Dropout(self.dropout)(_concat_elu(hidden), deterministic=not train)
        value, gate = jnp.split(_Conv(2 * self.features, self.down, _SMALL)(hidden, at), 2, axis=-1)
        return inputs + value * nn.sigmoid(gate)


# Of a stream: the units at each resolution on the way down and back, and what is between them on either way.
_Modules = tuple[Sequence[Sequence[_Gated]], Sequence[_Halve], Sequence[_Double]]


class PixelCNN(nn.Module):
    """PixelCNN++: parameters of a mixture of logistics for each pixel, from the pixels before it in raster order.

    Two streams go over the image. The first one sees all rows above, the second one also what is to the left in the
    same row. Each passes units at the full resolution, at a half and so on, and back with shortcuts across.

    Attributes:
      channels: of the images.
      width: the features of each stream.
      blocks: units at each resolution on the way down; on the way back there is one more, but for the lowest.
      levels: how many resolutions there are.
      mixtures: logistics in the mixture.
      dropout: the rate in each unit.
    """

    channels: int
    width: int = 160
    blocks: int = 5
    levels: int = 3
    mixtures: int = 10
    dropout: float = 0.5

    def setup(self) -> None:
        """Makes the layers."""
        counts = [self.blocks] * (self.levels + 1) + [self.blocks + 1] * (self.levels - 1)
        units = lambda down: [[_Gated(self.width, down, self.dropout) for _ in range(count)] for count in counts]
        between = lambda kind: [kind(self.width) for _ in range(self.levels - 1)]
        self.above_first = _Valid(self.width, (2, 3))
        self.before_first = _Valid(self.width, (1, 3)), _Valid(self.width, (2, 1))
        self.above_units, self.before_units = units(True), units(False)
        self.above_halves, self.before_halves = between(_Halve), between(_Halve)
        self.above_doubles, self.before_doubles = between(_Double), between(_Double)
        self.last = nn.Dense(num_parameters(self.channels) * self.mixtures, kernel_init=_SMALL)

    def __call__(self, levels: Num[Array, "B H W C"], train: bool = False) -> Float[Array, "B H W P"]:
        """The parameters for every pixel of images of levels from 0 to 255; `train` drops out."""
        padded = _padded(levels)
        return self.before(padded, self.above(padded, None, train), None, train)

    def above(self, padded: Array, at: _At | None, train: bool = False) -> list[Array]:
        """The first stream, or one row of it: what each unit of the second one takes of it."""
        # In this stream a row depends on those above alone.
        seen = padded[:, :-1] if at is None else _window(padded, at, 2, padded.shape[2])
        modules = self.above_units, self.above_halves, self.above_doubles
        return self._stream(self.above_first(seen), at, train, modules)

    def before(self, padded: Array, above: list[Array], at: _At | None, train: bool = False) -> Array:
        """The second stream, or one place of it, and the parameters from it."""
        of_rows, of_column = self.before_first
        if at is None:
            hidden = of_rows(padded[:, 1:-1]) + of_column(padded[:, 1:, :-2])
        else:
            lower = at._replace(row=at.row + 1)
            hidden = of_rows(_window(padded, lower, 1, 3)) + of_column(_window(padded, lower, 2, 1))
        modules = self.before_units, self.before_halves, self.before_doubles
        return self.last(nn.elu(self._stream(hidden, at, train, modules, above)[-1]))

    def _stream(
        self, hidden: Array, at: _At | None, train: bool, modules: _Modules, above: Sequence[Array] | None = None
    ) -> list[Array]:
        """Down to the lowest resolution and back; the outputs of all units.

        The second stream takes what the units of the first one gave, `above`.
        """
        units, halves, doubles = modules
        of_above = iter(above or [])
        shape_of = lambda hidden: (hidden.shape[1], hidden.shape[2])
        places, shapes, kept, outputs = [at], [shape_of(hidden)], [hidden], []
        for level in range(self.levels):
            if level:
                hidden = halves[level - 1](hidden, at)
                at = None if at is None else at.halved()
                places.append(at)
                shapes.append(shape_of(hidden))
                kept.append(hidden)
            for each in units[level]:
                other = None if above is None else _strip(next(of_above), at, hidden)
                hidden = each(hidden, other, at, train)
                kept.append(hidden)
                outputs.append(hidden)
        kept.pop()
        for level in reversed(range(self.levels)):
            if level + 1 < self.levels:
                hidden = doubles[level](hidden, places[level], shapes[level])
            at = places[level]
            for each in units[2 * self.levels - 1 - level]:
                other = kept.pop()
                if above is not None:
                    other = jnp.concatenate([_strip(next(of_above), at, hidden), other], axis=-1)
                hidden = each(hidden, other, at, train)
                outputs.append(hidden)
        return outputs


def _strip(row: Array, at: _At | None, like: Array) -> Array:
    """Of a row of the first stream, the place where the second one is."""
    if at is None or row.shape == like.shape:
        return row
    return lax.dynamic_slice_in_dim(row, at.column, like.shape[2], 2)


def _padded(levels: Array) -> Array:
    """From -1 to 1, with a channel of ones that ends where the image does, and room for what looks beyond it."""
    values = levels.astype(jnp.float32) / 127.5 - 1
    return jnp.pad(jnp.concatenate([values, jnp.ones_like(values[..., :1])], axis=3), ((0, 0), (2, 0), (1, 1), (0, 0)))


def density(model: PixelCNN, params: Any) -> jax.tree_util.Partial:
    """The distribution of images of a network with its trained parameters, see `TrainState.trained`, by `ddjax.bind`.

    It takes levels `[B, H, W, C]`, numbers from 0 to 255, to the parameters `[B, H, W, P]` for every pixel.
    """
    return bind(model, {"params": params})


def bits_per_dimension(density: Callable[[Array], Array], levels: Num[Array, "B H W C"]) -> Float[Array, " B"]:
    """How many bits a pixel's channel takes by the distribution, on average over each image of levels from 0 to 255.

    They are 8 for the uniform distribution, and less for likelier images.
    """
    return -log_prob(density(levels), levels) / (math.prod(levels.shape[1:]) * math.log(2))


# From the parameters of a pixel `[B, P]`, the pixel as it is `[B, C]`, its row and its column to what it becomes.
Choose = Callable[[Array, Array, Array, Array], Array]


def autoregress(
    density: jax.tree_util.Partial, levels: Float[Array, "B H W C"], choose: Choose
) -> Float[Array, "B H W C"]:
    """Goes over images in raster order and sets each pixel, given the parameters that follow from those before it.

    What has been computed for the pixels before is kept: the first stream is computed once for each row, and the second
    once for each pixel, instead of the whole network once for each pixel. The values are the same to rounding.

    Reference:
      For keeping what was computed: Ramachandran et al., Fast Generation for Convolutional Autoregressive Models, 2017
      (arXiv 1704.06001).
    """
    model, (variables,) = density.func.module, density.args
    height, width = levels.shape[1:3]

    def run(method: Any, cache: Any, *arguments: Any) -> Any:
        return model.apply(variables | {"cache": cache}, *arguments, method=method, mutable=["cache"])

    def blank(method: Any, *arguments: Any) -> tuple[Any, Any]:
        start = lambda *given: run(method, {}, *given, _At(zero, zero, height, width))
        outputs, changed = jax.eval_shape(start, *arguments)
        return outputs, jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), changed["cache"])

    zero = jnp.zeros((), jnp.int32)
    padded = jax.eval_shape(_padded, levels)
    above, above_cache = blank(PixelCNN.above, padded)
    _, before_cache = blank(PixelCNN.before, padded, above)

    def of_row(carry: tuple[Array, Any, Any], row: Array) -> tuple[tuple[Array, Any, Any], None]:
        images, above_cache, before_cache = carry
        above, changed = run(PixelCNN.above, above_cache, _padded(images), _At(row, zero, height, width))

        def of_pixel(carry: tuple[Array, Any], column: Array) -> tuple[tuple[Array, Any], None]:
            images, cache = carry
            at = _At(row, column, height, width)
            # Of the image it takes what is near the place alone.
            parameters, changed = run(PixelCNN.before, cache, _padded(images), above, at)
            chosen = choose(parameters[:, 0, 0], images[:, row, column], row, column).astype(images.dtype)
            images = lax.dynamic_update_slice(images, chosen[:, None, None], (zero, row, column, zero))
            return (images, changed["cache"]), None

        (images, before_cache), _ = lax.scan(of_pixel, (images, before_cache), jnp.arange(width, dtype=jnp.int32))
        return (images, changed["cache"], before_cache), None

    carry, _ = lax.scan(of_row, (levels, above_cache, before_cache), jnp.arange(height, dtype=jnp.int32))
    return carry[0]


def sample(
    density: jax.tree_util.Partial, keys: Key[Array, " B"], image_shape: tuple[int, int, int]
) -> Float[Array, "B H W C"]:
    """Draws an image (H, W, C) of levels from the distribution with each key."""

    def choose(parameters: Array, pixel: Array, row: Array, column: Array) -> Array:
        of_place = jax.vmap(jax.random.fold_in, (0, None))(keys, row * image_shape[1] + column)
        for channel in range(image_shape[2]):
            log_probs = channel_log_probs(parameters, pixel, channel)
            own = jax.vmap(jax.random.fold_in, (0, None))(of_place, channel)
            drawn = jax.vmap(jax.random.categorical)(own, log_probs).astype(pixel.dtype)
            pixel = pixel.at[:, channel].set(drawn)
        return pixel

    return autoregress(density, jnp.zeros((keys.shape[0], *image_shape)), choose)


@functools.cache
def make_optimizer(learning_rate: float, decay: float) -> optax.GradientTransformation:
    """Adam whose rate is multiplied by `decay` at every step; the same object for the same arguments."""
    return optax.adam(optax.exponential_decay(learning_rate, 1, decay))


def create_state(
    model: PixelCNN, optimizer: optax.GradientTransformation, image_shape: tuple[int, int, int], key: Key[Array, ""]
) -> TrainState:
    """The network before training, with a moving average of its parameters; see `ddjax.state.create_state`."""
    start = create_plain_state(model, optimizer, image_shape, key)
    # Arrays of their own, so that a step may be given both.
    return start.replace(ema_params=jax.tree.map(jnp.copy, start.params))


def train_step(
    state: TrainState, images: Num[Array, "B H W C"], *, ema_decay: float = 0.9995
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Takes a step of maximum likelihood, on images in uint8, or floats in [0, 1], which are rounded to 8 bits.

    `ema_decay` is that of the moving average of the parameters, in [0, 1).

    Returns:
      The state after the step, and `bits_per_dimension` of the images before it, with dropout.
    """
    levels = jnp.round(255 * rounding.to_float(images))
    dropout = {"dropout": jax.random.fold_in(state.key, state.step)}

    def loss_fn(params: Any) -> Array:
        seen_in_training = lambda levels: state.network.apply({"params": params}, levels, train=True, rngs=dropout)
        return jnp.mean(bits_per_dimension(seen_in_training, levels))

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    new = state.apply_gradients(gradients)
    # Short at first, since the first parameters are worth nothing.
    steps = state.step.astype(jnp.float32)
    kept = jnp.minimum(ema_decay, (1 + steps) / (10 + steps))
    ema_params = optax.incremental_update(new.params, state.ema_params, 1 - kept)
    return new.replace(ema_params=ema_params), {"bits_per_dimension": loss}


def train_epoch(
    state: TrainState, images: Num[Array, "N H W C"], *, batch_size: int, ema_decay: float = 0.9995
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Trains for one epoch, by `train_step`: a scan over a random permutation of the images, which stay on the device.

    A batch has at most N images. A rest smaller than a batch waits for another epoch's permutation. With the state come
    the means of what `train_step` tells.
    """

    def step(state: TrainState, rows: Int[Array, " B"]) -> tuple[TrainState, dict[str, Array]]:
        return train_step(state, images[rows], ema_decay=ema_decay)

    state, told = lax.scan(step, state, epoch_rows(state, images.shape[0], batch_size))
    return state, jax.tree.map(jnp.mean, told)
