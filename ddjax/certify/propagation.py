"""Bounds of all layers of a network, and of the margins, over a ball."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ddjax.certify.network import Conv, Dense, Layer, MaxPool, Network, forward, input_size, is_affine
from ddjax.certify.relaxation import GUARD, Ball, backward, largest_sum, over_ball, over_box, underflow

# The least and the greatest value of each neuron.
Interval = tuple[Array, Array]
# The first row and column of a patch; None for all of the image.
Corner = tuple[Array, Array] | None

# The numbers one array of a backward pass may hold: passes run in groups that stay near the cache.
_GROUP = 2**21


def _interval(layer: Layer, lower: Array, upper: Array) -> Interval:
    """Interval arithmetic of one layer for one example."""
    if isinstance(layer, Conv | Dense):
        middle, reach = (lower + upper) / 2, (upper - lower) / 2
        reach = reach + GUARD * (jnp.abs(middle) + reach) + underflow(0, reach.dtype)
        middle = forward(layer, middle[None])[0]
        size = dataclasses.replace(layer, kernel=jnp.abs(layer.kernel), bias=GUARD * jnp.abs(layer.bias))
        products = layer.kernel.size // layer.kernel.shape[-1]
        reach = forward(size, reach[None])[0] + underflow(products, reach.dtype)
        return middle - reach, middle + reach
    # The others never decrease.
    return forward(layer, lower[None])[0], forward(layer, upper[None])[0]


def propagate(network: Network, ball: Ball, method: str) -> list[Interval]:
    """Encloses the input of each layer and, last, the output of the last."""
    known = [(ball.lower, ball.upper)]
    for index, layer in enumerate(network):
        lower, upper = _interval(layer, *known[-1])
        linear = all(is_affine(previous) for previous in network[: index + 1])
        # Only what goes into something that is not linear is worth a closer look, and what comes out at the end.
        used = index + 1 == len(network) or not is_affine(network[index + 1])
        if is_affine(layer) and used and (linear or method == "crown"):
            least, greatest = _neuron_bounds(network[: index + 1], known, ball, lower.shape)
            lower = jnp.maximum(lower, least)
            upper = jnp.maximum(lower, jnp.minimum(upper, greatest))
        known.append((lower, upper))
    return known


def margins_of(network: Network, ball: Ball, label: Array, method: str) -> Array:
    """The lower bounds of the label's margin over each class, `[K]`."""
    hidden, last = network[:-1], network[-1]
    assert isinstance(last, Dense), "layers_of says so"
    known = propagate(hidden, ball, method)
    # The margins are the functionals `rows` of the last hidden layer: one bound of a difference is tighter than a
    # difference of two bounds.
    is_label = jnp.arange(last.bias.shape[0]) == label
    own = last.kernel @ is_label.astype(last.kernel.dtype)
    rows = (own[:, None] - last.kernel).T
    constants = jnp.sum(jnp.where(is_label, last.bias, 0)) - last.bias
    sizes = jnp.abs(constants)
    rows = rows.reshape(-1, *known[-1][0].shape)
    least, size = over_box(rows, *known[-1])
    margins = constants + least - GUARD * (sizes + size) - underflow(last.kernel.shape[0], rows.dtype)
    if method != "interval" or all(is_affine(layer) for layer in hidden):
        margins = jnp.maximum(margins, _lower_bounds(hidden, known, ball, rows, constants, None))
    # The differences of small weights may have underflowed themselves.
    margins = margins - underflow(0, rows.dtype) * largest_sum(*known[-1])
    # Overflow proves nothing.
    margins = jnp.where(jnp.isnan(margins), -jnp.inf, margins)
    return jnp.where(is_label, jnp.inf, margins)


def _neuron_bounds(network: Network, known: list[Interval], ball: Ball, shape: tuple[int, ...]) -> Interval:
    """Bounds each output of an affine layer, the last of `network`, by backward passes.

    Without padding, one output position of a convolution is the same function of its patch of the image at all
    positions, so that a pass runs on the patch. Otherwise it runs on the whole image.
    """
    patched = isinstance(network[-1], Conv) and all(
        layer.padding == "VALID" for layer in network if isinstance(layer, Conv)
    )
    height, width = shape[:2] if patched else (1, 1)
    neuron_shape = (1, 1, shape[2]) if patched else shape
    count = math.prod(neuron_shape)
    numbers = 2 * _largest_patch(network, known, patched)

    def neuron(index: Array, corner: Corner) -> tuple[Array, Array]:
        row = (jnp.arange(count) == index).astype(known[0][0].dtype).reshape(neuron_shape)
        zero = jnp.zeros(2, row.dtype)
        least, negative = _lower_bounds(network, known, ball, jnp.stack([row, -row]), zero, corner)
        return least, -negative

    def position(place: Array) -> tuple[Array, Array]:
        corner = (place // width, place % width) if patched else None
        return _map(lambda index: neuron(index, corner), count, _GROUP // numbers)

    least, greatest = _map(position, height * width, _GROUP // (numbers * count))
    return least.reshape(shape), greatest.reshape(shape)


def _map(function: Callable[[Array], Any], count: int, group: int) -> Any:
    """Applies a function to 0, 1, ... count - 1, about `group` at a time."""
    groups = -(-count // max(group, 1))
    group = -(-count // groups)
    # Indices wrap around to fill the last group: a smaller one would be compiled for itself.
    indices = jnp.arange(groups * group) % count
    results = jax.vmap(function)(indices) if groups == 1 else lax.map(function, indices, batch_size=group)
    return jax.tree.map(lambda leaf: leaf[:count], results)


def _largest_patch(network: Network, known: list[Interval], patched: bool) -> int:
    """The most numbers that a backward pass holds at a time."""
    if not patched:
        return max(lower.size for lower, _ in known[: len(network)])
    height = width = 1
    largest = 0
    for index in range(len(network) - 1, -1, -1):
        height, width = input_size(network[index], height, width)
        largest = max(largest, height * width * known[index][0].shape[2])
    return largest


def _lower_bounds(
    network: Network, known: list[Interval], ball: Ball, rows: Array, constants: Array, corner: Corner
) -> Array:
    """Bounds S linear functions of the network's output over a ball from below, by linear functions of the image.

    `known` encloses the input of each layer. `rows` are the coefficients, `[S, ...]` as the output or as its patch at
    `corner`, and `constants` the constants, `[S]`.
    """
    sizes = jnp.abs(constants)
    lost = jnp.zeros((), rows.dtype)
    for index in range(len(network) - 1, -1, -1):
        layer, (lower, upper) = network[index], known[index]
        if rows.ndim == 4:
            if corner is not None and isinstance(layer, MaxPool):
                corner = (2 * corner[0], 2 * corner[1])
            patch = input_size(layer, *rows.shape[1:3])
            lower, upper = (_cut(bound, corner, patch) for bound in (lower, upper))
        # What underflows in the coefficients counts as much as the inputs are large; what underflows in the constants
        # counts once.
        count = math.prod(rows.shape[1:])
        products = layer.kernel.size // layer.kernel.shape[-2] if isinstance(layer, Conv | Dense) else 4
        lost = lost + underflow(products, rows.dtype) * largest_sum(lower, upper) + underflow(count, rows.dtype)
        rows, added = backward(layer, rows, lower, upper)
        if corner is None and rows.ndim == 4:
            # What pooling drops has no influence; the next convolution wants it there all the same.
            missing = [most - there for most, there in zip(known[index][0].shape, rows.shape[1:], strict=True)]
            rows = jnp.pad(rows, ((0, 0), *((0, count) for count in missing)))
            lower, upper = known[index]
        constants = constants + added
        sizes = sizes + jnp.abs(added)
        if not is_affine(layer):
            sizes = sizes + over_box(rows, lower, upper)[1]
    patch = rows.shape[1:]
    center, lower, upper = (_cut(pixels, corner, patch) for pixels in (ball.center, ball.lower, ball.upper))
    least, size = over_ball(rows, ball._replace(center=center, lower=lower, upper=upper))
    lost = lost + underflow(math.prod(patch), rows.dtype)
    return constants + least - GUARD * (sizes + size) - lost


def _cut(values: Array, corner: Corner, patch: tuple[int, ...]) -> Array:
    if corner is None:
        return values[tuple(slice(size) for size in patch)]
    return lax.dynamic_slice(values, (*corner, 0), (*patch[:2], values.shape[2]))
