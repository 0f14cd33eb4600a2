"""Linear bounds of single layers, and the least values of linear functions over boxes and balls."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ddjax import layers
from ddjax.certify.network import Conv, Dense, Layer, MaxPool, Shift, input_size

# Every bound gives way by this times the sum of the magnitudes that were added up for it: some hundred times the
# rounding of float32, so that rounding, here or in the network, proves nothing.
GUARD = 1e-5


def underflow(count: int, dtype: Any) -> Array:
    """A bound of what a sum of `count` products loses to underflow.

    A result below the smallest normal number may come out as 0. The factor stands for the operations that convolutions
    need beside their products.
    """
    return jnp.asarray(64 * (count + 1) * float(jnp.finfo(dtype).tiny), dtype)


def largest_sum(lower: Array, upper: Array) -> Array:
    """The sum of the largest magnitudes in a box: how much an error in all coefficients counts."""
    return jnp.sum(jnp.maximum(jnp.abs(lower), jnp.abs(upper)))


class Ball(NamedTuple):
    """A ball of images around `center`, all of them between `lower` and `upper`."""

    center: Array
    lower: Array
    upper: Array
    radius: Array
    norm: str


def ball_of(image: Array, radius: Array, low: Array, high: Array, norm: str) -> Ball:
    """The ball of a radius around an image, as far as it lies between the bounds."""
    # A radius that is no radius must not prove anything.
    radius = jnp.where(radius >= 0, radius, jnp.nan)
    # The outer minimum and maximum keep an image outside of the bounds in its own ball; `jit` lets such an image pass.
    lower = jnp.minimum(image, jnp.maximum(image - radius, low))
    upper = jnp.maximum(image, jnp.minimum(image + radius, high))
    return Ball(image, lower, upper, radius, norm)


def backward(layer: Layer, rows: Array, lower: Array, upper: Array) -> tuple[Array, Array]:
    """Carries the coefficients of linear functions, `[S, ...]`, from a layer's output to its input.

    Returns:
      The coefficients of lower bounds of them, and what these add to their constants, `[S]`.
    """
    if isinstance(layer, Shift):
        return rows, layer.offset * _sum(rows)
    if isinstance(layer, Dense):
        return (rows @ layer.kernel.T).reshape(-1, *lower.shape), rows @ layer.bias
    if isinstance(layer, Conv):
        inputs = jnp.zeros((rows.shape[0], *input_size(layer, *rows.shape[1:3]), lower.shape[2]), rows.dtype)
        # By its own reverse rule, which is what runs fast inside loops.
        _, pull = jax.vjp(
            lambda x: layers.conv(x, layer.kernel, padding=layer.padding, lowering=layer.lowering), inputs
        )
        return pull(rows)[0], jnp.sum(rows, (1, 2)) @ layer.bias
    relax = _relax_pool if isinstance(layer, MaxPool) else _relax_relu
    return relax(jnp.maximum(rows, 0), jnp.minimum(rows, 0), lower, upper)


def _relax_relu(positive: Array, negative: Array, lower: Array, upper: Array) -> tuple[Array, Array]:
    off, on = upper <= 0, lower >= 0
    # The chord, from (lower, 0) to (upper, upper). Its intercept is upper * (-lower) / span. The larger factor is
    # divided first: the product of two small ones would underflow, and the chord would not lie above the ReLU.
    span = jnp.where(on | off, 1, upper - lower)
    above = jnp.where(on, 1, jnp.where(off, 0, upper / span))
    intercept = jnp.where(on | off, 0, jnp.minimum(upper, -lower) * (jnp.maximum(upper, -lower) / span))
    # Of the lines 0 and z, the one with less area between it and the ReLU.
    below = (on | (~off & (upper > -lower))).astype(above.dtype)
    return positive * below[None] + negative * above[None], _sum(negative * intercept[None])


def _relax_pool(positive: Array, negative: Array, lower: Array, upper: Array) -> tuple[Array, Array]:
    height, width, channels = positive.shape[1:]
    shape = (height, 2, width, 2, channels)
    lower, upper = lower.reshape(shape), upper.reshape(shape)
    # Below: the input in the middle of the highest interval; its slope is 1.
    middle = lower + upper
    place = jnp.arange(4).reshape(1, 2, 1, 2, 1)
    highest = middle == jnp.max(middle, (1, 3), keepdims=True)
    first = jnp.min(jnp.where(highest, place, 4), (1, 3), keepdims=True)
    below = (place == first).astype(lower.dtype)
    above, intercept = _pool_upper(lower, upper)
    rows = positive[:, :, None, :, None] * below[None] + negative[:, :, None, :, None] * above[None]
    return rows.reshape(-1, 2 * height, 2 * width, channels), _sum(negative * intercept[None])


def _pool_upper(lower: Array, upper: Array) -> tuple[Array, Array]:
    """A plane above the maximum of a block, `[h, 2, w, 2, C]`.

    For any level g that is no lower than the greatest lower bound, the plane `g + sum_i s_i (x_i - lower_i)` with
    `s_i = max(upper_i - g, 0) / (upper_i - lower_i)` is at least `max(x)` at each corner of the box, hence everywhere,
    the maximum being convex. The least of all levels passes an input through that dominates the others. The value in
    the middle of the box is least for levels from the third highest upper bound to the second.

    Returns:
      The slopes, as `lower`, and the intercepts `[h, w, C]`.
    """
    flat = jnp.stack([upper[:, row, :, column] for row in (0, 1) for column in (0, 1)])
    second = jnp.sort(flat, 0)[2]
    level = jnp.maximum(jnp.max(lower, (1, 3)), second)
    expanded = level[:, None, :, None]
    excess = jnp.maximum(upper - expanded, 0)
    # A slope must not underflow to 0. A steeper one only lifts the plane.
    steepness = jnp.maximum(excess / jnp.where(excess > 0, upper - lower, 1), jnp.finfo(lower.dtype).tiny)
    slopes = jnp.where(excess > 0, steepness, 0)
    return slopes, level - jnp.sum(slopes * lower, (1, 3))


def _sum(rows: Array) -> Array:
    return jnp.sum(rows, tuple(range(1, rows.ndim)))


def over_box(rows: Array, lower: Array, upper: Array) -> tuple[Array, Array]:
    """The least values of linear functions over a box, and the sum of the magnitudes in them."""
    least = _sum(jnp.where(rows > 0, rows * lower[None], rows * upper[None]))
    return least, _sum(jnp.abs(rows) * jnp.maximum(jnp.abs(lower), jnp.abs(upper))[None])


def over_ball(rows: Array, ball: Ball) -> tuple[Array, Array]:
    """The least values of linear functions over a ball, and the sum of the magnitudes in them."""
    least, size = over_box(rows, ball.lower, ball.upper)
    if ball.norm == "linf":
        return least, size
    # A pixel that cannot move in the falling direction takes no part.
    free = jnp.where(rows > 0, (ball.lower < ball.center)[None], (ball.upper > ball.center)[None])
    slopes = jnp.where(free, jnp.abs(rows), 0)
    steepest = jnp.max(slopes, tuple(range(1, slopes.ndim)))
    if ball.norm == "l2":
        # The largest slope is divided out, because squares of small slopes underflow. Squares that still do are below
        # the smallest normal number, which counts for each of them.
        scale = jnp.where(steepest > 0, steepest, 1)
        relative = slopes / scale.reshape(-1, *(1,) * (slopes.ndim - 1))
        steepest = steepest * jnp.sqrt(_sum(relative**2) + underflow(math.prod(slopes.shape[1:]), slopes.dtype))
    fall = ball.radius * (steepest + underflow(0, slopes.dtype))
    # The ball also lies in the box around it, which counts where the box comes from the pixels' bounds.
    return jnp.maximum(least, _sum(rows * ball.center[None]) - fall), size + fall
