"""Robustness by proof: a radius within which no image changes the decision, where attacks only find how far one does.

A network is a tuple of layers, `layers_of(logits_fn)` for those of `ddjax.models`. Every value in it is enclosed, while
the image moves in a ball, first by interval arithmetic and then by linear bounds carried backwards to the pixels:

* a ReLU between `lower < 0 < upper` lies under its chord and above one of the lines 0 and z, whichever is closer;
* a maximum lies above any of its inputs and under `_pool_upper`'s plane;
* the margin of the label over another class is one linear function of the last hidden layer, and bounded as one.

Cost: bounds of all neurons of a layer are one backward pass for each neuron. Without padding a neuron of a convolution
sees a small patch of the image, and its pass is run on that patch alone: two seconds on two CPU cores for one radius of
one image and the papers' MNIST network. With padding each pass runs on the whole image, which is for small images.
Nothing here calls `jit`; compile `largest_radius` with the strings and `num_bisections` static.

References:
  Zhang et al., Efficient Neural Network Robustness Certification with General Activation Functions (CROWN), 2018
  (arXiv 1811.00866); Weng et al., Towards Fast Computation of Certified Robustness for ReLU Networks (Fast-Lin), 2018
  (arXiv 1804.09699); Boopathy et al., CNN-Cert: An Efficient Framework for Certifying Robustness of Convolutional
  Neural Networks, 2019 (arXiv 1811.12395); Gowal et al., On the Effectiveness of Interval Bound Propagation, 2018
  (arXiv 1810.12715); Zhang et al., Towards Stable and Efficient Training of Verifiably Robust Neural Networks
  (CROWN-IBP), 2020 (arXiv 1906.06316).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ddjax import checks, classifier, layers, losses, models
from ddjax.attacks import problem
from ddjax.classifier import LogitsFn

NORMS = ("linf", "l2", "l1")
METHODS = ("interval", "crown-ibp", "crown")
# Every bound gives way by this times the sum of the magnitudes that were added up for it: some hundred times the
# rounding of float32, so that rounding, here or in the network, proves nothing.
_GUARD = 1e-5
# The numbers one array of a backward pass may hold: passes run in groups that stay near the cache.
_GROUP = 2**21


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shift:
    """Adds a constant to every value.

    Attributes:
      offset: the constant.
    """

    offset: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
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
    padding: str = dataclasses.field(default="VALID", metadata={"static": True})
    lowering: str = dataclasses.field(default="auto", metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense:
    """A dense layer with bias; it flattens what comes in.

    Attributes:
      kernel: `[N, M]`.
      bias: `[M]`.
    """

    kernel: Any
    bias: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Relu:
    """The positive part."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MaxPool:
    """The maximum over 2 x 2 blocks; an odd last row or column is dropped."""


Layer = Shift | Conv | Dense | Relu | MaxPool
Network = tuple[Layer, ...]
# The least and the greatest value of each neuron.
Interval = tuple[Array, Array]


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
    if function is classifier._divide_by_temperature:
        untempered, temperature = logits_fn.args
        network = layers_of(untempered)
        return (*network[:-1], jax.tree.map(lambda leaf: leaf / temperature, network[-1]))
    if not isinstance(function, classifier._Apply) or not isinstance(function.module, models.ConvNet):
        raise ValueError(
            "certification needs to know the layers: it takes bind(module, variables) of a ddjax.models.ConvNet, "
            f"or a tuple of layers of ddjax.certify, got {logits_fn!r}"
        )
    if dict(function.static).get("train", False):
        raise ValueError("certification is for a network with dropout off, but this one is bound with train=True")
    module, (variables,) = function.module, logits_fn.args
    if module.batch_norm or module.scale != 1 or isinstance(module.center, tuple):
        raise ValueError("certification knows no batch normalization, and no pixels scaled or centered by channel")
    parameters = variables["params"]
    chain: list[Layer] = [Shift(-module.center)] if module.center else []
    convolutions = 0
    for widths in module.stages:
        for _ in widths:
            named = parameters[f"Conv_{convolutions}"]
            chain += [Conv(named["kernel"], named["bias"], module.padding, module.lowering), Relu()]
            convolutions += 1
        chain.append(MaxPool())
    for index in range(len(module.dense) + 1):
        named = parameters[f"Dense_{index}"]
        chain += [Dense(named["kernel"], named["bias"]), Relu()]
    return tuple(chain[:-1])


def apply(network: Network, images: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """What comes out of a chain of layers: the logits `[B, K]` where it is a whole network."""
    for layer in network:
        images = _forward(layer, images)
    return images


def layer_bounds(
    logits_fn: LogitsFn | Network,
    images: Float[Array, "B H W C"],
    radius: float | Float[Array, ""] | Float[Array, " B"],
    *,
    norm: str = "linf",
    method: str = "crown",
    bounds: problem.Bounds = (0.0, 1.0),
) -> tuple[Interval, ...]:
    """Encloses the output of each layer while the image moves in a ball.

    Args:
      logits_fn: see `layers_of`.
      images: the centers of the balls, within `bounds`.
      radius: of the balls, in the units of the images, at least 0; may be traced, and one for each example.
      norm: `"linf"`, `"l2"` or `"l1"`.
      method: `"interval"` and `"crown-ibp"` enclose all layers but the first by interval arithmetic; `"crown"` bounds
        each neuron in front of a ReLU or a maximum, and each logit, by a backward pass.
      bounds: the least and the greatest value of a pixel, or of each channel.

    Returns:
      For each layer, the least and the greatest value of each of its outputs, `[B, ...]`.

    Raises:
      ValueError: for a classifier that is not supported, bad images or bounds, an unknown norm or method, or a radius
        that is known and negative or not finite.
    """
    network = layers_of(logits_fn)
    _check(network, images, jnp.zeros(images.shape[:1], jnp.int32), norm, method, bounds, radius)
    low, high = problem.box(bounds, images[:1])

    def enclose(example: tuple[Array, Array]) -> tuple[Interval, ...]:
        image, radius = example
        return tuple(_propagate(network, _ball(image, radius, low[0], high[0], norm), method)[1:])

    radii = jnp.broadcast_to(jnp.asarray(radius, images.dtype), images.shape[:1])
    with jax.default_matmul_precision("highest"):
        return lax.map(enclose, (images, radii))


def margin_bounds(
    logits_fn: LogitsFn | Network,
    images: Float[Array, "B H W C"],
    labels: Int[Array, " B"],
    radius: float | Float[Array, ""] | Float[Array, " B"],
    *,
    norm: str = "linf",
    method: str = "crown",
    bounds: problem.Bounds = (0.0, 1.0),
) -> Float[Array, "B K"]:
    """Bounds the margin of the label's logit over each other from below, for all images of a ball.

    The ball is intersected with the pixels' bounds: exactly for Linf; for L2 and L1 as far as a pixel at one of its
    bounds does not pass it.

    Args:
      logits_fn: see `layers_of`.
      images: the centers of the balls, within `bounds`.
      labels: the true classes.
      radius: of the balls, in the units of the images, at least 0; may be traced, and one for each example.
      norm: `"linf"`, `"l2"` or `"l1"`.
      method: how tight. `"interval"`: interval arithmetic, little more than an evaluation of the network.
        `"crown-ibp"`: one backward pass for each class over intervals. `"crown"`: one for each neuron of each layer,
        for intervals that deserve the name. Neither of the last two is looser than the first; between these two
        that is the rule, but tighter intervals may also choose a ReLU's other line.
      bounds: the least and the greatest value of a pixel, or of each channel.

    Returns:
      For each class a number that the label's logit minus its logit never falls below, infinite for the label itself.
      Where the least of a row is positive, the decision on the whole ball is the label. Minus infinity where the
      arithmetic overflowed or a traced radius was no radius. Each has given way by 1e-5 of the magnitudes summed up
      for it, layer by layer, to keep rounding from proving anything; that is a wide guard, but no proof about the
      rounding itself.

    Raises:
      ValueError: for a classifier that is not supported, bad images, labels or bounds, an unknown norm or method, or a
        radius that is known and negative or not finite.

    Reference:
      See the head of this file.

    Departures from the papers:
      The plane above a maximum is chosen from a family that contains CNN-Cert's; boxes and edges as said above.
    """
    network = layers_of(logits_fn)
    _check(network, images, labels, norm, method, bounds, radius)
    low, high = problem.box(bounds, images[:1])

    def bound(example: tuple[Array, Array, Array]) -> Array:
        image, label, radius = example
        return _margins(network, _ball(image, radius, low[0], high[0], norm), label, method)

    radii = jnp.broadcast_to(jnp.asarray(radius, images.dtype), images.shape[:1])
    with jax.default_matmul_precision("highest"):
        return lax.map(bound, (images, labels, radii))


def largest_radius(
    logits_fn: LogitsFn | Network,
    images: Float[Array, "B H W C"],
    labels: Int[Array, " B"],
    *,
    norm: str = "linf",
    method: str = "crown",
    lowest: float | Float[Array, ""] = 1e-4,
    highest: float | Float[Array, ""] | Float[Array, " B"] = 10.0,
    num_bisections: int = 10,
    bounds: problem.Bounds = (0.0, 1.0),
) -> Float[Array, " B"]:
    """Searches for the largest radius within which no image is decided otherwise.

    The search bisects the logarithm, so that radii of all sizes are found to the same relative accuracy: with the
    defaults, to 1.2 percent. What it returns was itself proved.

    Args:
      logits_fn: see `layers_of`.
      images: the images, within `bounds`.
      labels: the true classes.
      norm: `"linf"`, `"l2"` or `"l1"`.
      method: see `margin_bounds`; the cost is that of `num_bisections` calls of it.
      lowest: the search looks above this, in the units of the images; above 0.
      highest: and below this; may be one for each example, such as the distance of an adversarial image.
      num_bisections: the number of radii tried for each example.
      bounds: the least and the greatest value of a pixel, or of each channel.

    Returns:
      The radii, at least 0, below `highest`; 0 where the image itself is not decided as the label, or nothing above
      `lowest` was proved.

    Raises:
      ValueError: as `margin_bounds`, or for a search that has no range or no steps.

    Reference:
      See the head of this file.
    """
    network = layers_of(logits_fn)
    _check(network, images, labels, norm, method, bounds, 0.0)
    checks.check_number("lowest", lowest, above=0.0)
    checks.check_number("highest", highest, least=0.0)
    if num_bisections < 1:
        raise ValueError(f"num_bisections must be at least 1, got {num_bisections}")
    low, high = problem.box(bounds, images[:1])

    def search(example: tuple[Array, Array, Array]) -> Array:
        image, label, highest = example

        def halve(_: Any, bracket: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            below, above, proved = bracket
            radius = jnp.sqrt(below * above)
            holds = jnp.min(_margins(network, _ball(image, radius, low[0], high[0], norm), label, method)) > 0
            return jnp.where(holds, radius, below), jnp.where(holds, above, radius), jnp.where(holds, radius, proved)

        decided = losses.margin(apply(network, image[None]), label[None])[0] > 0
        bracket = (jnp.minimum(jnp.asarray(lowest, image.dtype), highest), highest, jnp.zeros_like(highest))
        # An image that is misclassified costs nothing.
        return lax.fori_loop(0, jnp.where(decided, num_bisections, 0), halve, bracket)[2]

    highs = jnp.broadcast_to(jnp.asarray(highest, images.dtype), images.shape[:1])
    with jax.default_matmul_precision("highest"):
        return lax.map(search, (images, labels, highs))


def _check(
    network: Network, images: Array, labels: Array, norm: str, method: str, bounds: problem.Bounds, radius: Any
) -> None:
    checks.check_choice("norm", norm, NORMS)
    checks.check_choice("method", method, METHODS)
    checks.check_number("radius", radius, least=0.0)
    problem.prepare("certify", lambda inputs: apply(network, inputs), images, labels, bounds=bounds)


class _Ball(NamedTuple):
    """A ball of images around `center`, all of them between `lower` and `upper`."""

    center: Array
    lower: Array
    upper: Array
    radius: Array
    norm: str


def _ball(image: Array, radius: Array, low: Array, high: Array, norm: str) -> _Ball:
    # A radius that is no radius must not prove anything.
    radius = jnp.where(radius >= 0, radius, jnp.nan)
    # The outer minimum and maximum keep an image outside of the bounds, seen under `jit` only, in its own ball.
    lower = jnp.minimum(image, jnp.maximum(image - radius, low))
    upper = jnp.maximum(image, jnp.minimum(image + radius, high))
    return _Ball(image, lower, upper, radius, norm)


def _is_affine(layer: Layer) -> bool:
    return isinstance(layer, Shift | Conv | Dense)


def _forward(layer: Layer, inputs: Array) -> Array:
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


def _interval(layer: Layer, lower: Array, upper: Array) -> Interval:
    """Interval arithmetic of one layer for one example."""
    if isinstance(layer, Conv | Dense):
        middle, reach = (lower + upper) / 2, (upper - lower) / 2
        reach = reach + _GUARD * (jnp.abs(middle) + reach)
        middle = _forward(layer, middle[None])[0]
        size = dataclasses.replace(layer, kernel=jnp.abs(layer.kernel), bias=_GUARD * jnp.abs(layer.bias))
        reach = _forward(size, reach[None])[0]
        return middle - reach, middle + reach
    # The others never decrease.
    return _forward(layer, lower[None])[0], _forward(layer, upper[None])[0]


def _propagate(network: Network, ball: _Ball, method: str) -> list[Interval]:
    """Encloses the input of each layer and, last, the output of the last."""
    known = [(ball.lower, ball.upper)]
    for index, layer in enumerate(network):
        lower, upper = _interval(layer, *known[-1])
        linear = all(_is_affine(previous) for previous in network[: index + 1])
        # Only what goes into something that is not linear is worth a closer look, and what comes out at the end.
        used = index + 1 == len(network) or not _is_affine(network[index + 1])
        if _is_affine(layer) and used and (linear or method == "crown"):
            least, greatest = _neuron_bounds(network[: index + 1], known, ball, lower.shape)
            lower = jnp.maximum(lower, least)
            upper = jnp.maximum(lower, jnp.minimum(upper, greatest))
        known.append((lower, upper))
    return known


def _margins(network: Network, ball: _Ball, label: Array, method: str) -> Array:
    """The lower bounds of the label's margin over each class, `[K]`."""
    hidden, last = network[:-1], network[-1]
    assert isinstance(last, Dense), "layers_of says so"
    known = _propagate(hidden, ball, method)
    # The margins are the functionals `rows` of the last hidden layer: one bound of a difference is tighter than a
    # difference of two bounds.
    is_label = jnp.arange(last.bias.shape[0]) == label
    own = last.kernel @ is_label.astype(last.kernel.dtype)
    rows = (own[:, None] - last.kernel).T
    constants = jnp.sum(jnp.where(is_label, last.bias, 0)) - last.bias
    sizes = jnp.abs(constants)
    rows = rows.reshape(-1, *known[-1][0].shape)
    least, size = _over_box(rows, *known[-1])
    margins = constants + least - _GUARD * (sizes + size)
    if method != "interval" or all(_is_affine(layer) for layer in hidden):
        margins = jnp.maximum(margins, _lower_bounds(hidden, known, ball, rows, constants, None))
    # Overflow proves nothing.
    margins = jnp.where(jnp.isnan(margins), -jnp.inf, margins)
    return jnp.where(is_label, jnp.inf, margins)


def _neuron_bounds(network: Network, known: list[Interval], ball: _Ball, shape: tuple[int, ...]) -> Interval:
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

    def neuron(index: Array, corner: tuple[Array, Array] | None) -> tuple[Array, Array]:
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
        height, width = _input_size(network[index], height, width)
        largest = max(largest, height * width * known[index][0].shape[2])
    return largest


def _input_size(layer: Layer, height: int, width: int) -> tuple[int, int]:
    """The height and width of the patch that an output patch depends on, without padding."""
    if isinstance(layer, Conv) and layer.padding == "VALID":
        return height + layer.kernel.shape[0] - 1, width + layer.kernel.shape[1] - 1
    return (2 * height, 2 * width) if isinstance(layer, MaxPool) else (height, width)


def _lower_bounds(
    network: Network,
    known: list[Interval],
    ball: _Ball,
    rows: Array,
    constants: Array,
    corner: tuple[Array, Array] | None,
) -> Array:
    """Bounds linear functions of the network's output from below by linear functions of the image.

    Args:
      network: the layers up to the output.
      known: an enclosure of the input of each.
      ball: the images.
      rows: the coefficients of S functions, `[S, ...]` as the output, or as the patch of it at `corner`.
      constants: their constants, `[S]`.
      corner: the first row and column of the output patch, or None where `rows` cover all of the output.

    Returns:
      The least values over the ball, `[S]`.
    """
    sizes = jnp.abs(constants)
    for index in range(len(network) - 1, -1, -1):
        layer, (lower, upper) = network[index], known[index]
        if rows.ndim == 4:
            if corner is not None and isinstance(layer, MaxPool):
                corner = (2 * corner[0], 2 * corner[1])
            patch = _input_size(layer, *rows.shape[1:3])
            lower, upper = (_cut(bound, corner, patch) for bound in (lower, upper))
        rows, added = _backward(layer, rows, lower, upper)
        if corner is None and rows.ndim == 4:
            # What pooling drops has no influence; the next convolution wants it there all the same.
            missing = [most - there for most, there in zip(known[index][0].shape, rows.shape[1:], strict=True)]
            rows = jnp.pad(rows, ((0, 0), *((0, count) for count in missing)))
            lower, upper = known[index]
        constants = constants + added
        sizes = sizes + jnp.abs(added)
        if not _is_affine(layer):
            sizes = sizes + _over_box(rows, lower, upper)[1]
    patch = rows.shape[1:3]
    center, lower, upper = (_cut(pixels, corner, patch) for pixels in (ball.center, ball.lower, ball.upper))
    least, size = _over_ball(rows, ball._replace(center=center, lower=lower, upper=upper))
    return constants + least - _GUARD * (sizes + size)


def _cut(values: Array, corner: tuple[Array, Array] | None, patch: tuple[int, ...]) -> Array:
    height, width = patch
    if corner is None:
        return values[:height, :width]
    return lax.dynamic_slice(values, (*corner, 0), (height, width, values.shape[2]))


def _backward(layer: Layer, rows: Array, lower: Array, upper: Array) -> tuple[Array, Array]:
    """Carries the coefficients of linear functions, `[S, ...]`, from a layer's output to its input.

    Returns:
      The coefficients of lower bounds of them, and what these add to their constants, `[S]`.
    """
    if isinstance(layer, Shift):
        return rows, layer.offset * _sum(rows)
    if isinstance(layer, Dense):
        return (rows @ layer.kernel.T).reshape(-1, *lower.shape), rows @ layer.bias
    if isinstance(layer, Conv):
        inputs = jnp.zeros((rows.shape[0], *_input_size(layer, *rows.shape[1:3]), lower.shape[2]), rows.dtype)
        # By its own reverse rule, which is what runs fast inside loops.
        _, pull = jax.vjp(
            lambda x: layers.conv(x, layer.kernel, padding=layer.padding, lowering=layer.lowering), inputs
        )
        return pull(rows)[0], jnp.sum(rows, (1, 2)) @ layer.bias
    relax = _relax_pool if isinstance(layer, MaxPool) else _relax_relu
    return relax(jnp.maximum(rows, 0), jnp.minimum(rows, 0), lower, upper)


def _relax_relu(positive: Array, negative: Array, lower: Array, upper: Array) -> tuple[Array, Array]:
    off, on = upper <= 0, lower >= 0
    # The chord, from (lower, 0) to (upper, upper).
    span = jnp.where(on | off, 1, upper - lower)
    above = jnp.where(on, 1, jnp.where(off, 0, upper / span))
    intercept = jnp.where(on | off, 0, -upper * lower / span)
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
    slopes = jnp.where(excess > 0, excess / jnp.where(excess > 0, upper - lower, 1), 0)
    return slopes, level - jnp.sum(slopes * lower, (1, 3))


def _sum(rows: Array) -> Array:
    return jnp.sum(rows, tuple(range(1, rows.ndim)))


def _over_box(rows: Array, lower: Array, upper: Array) -> tuple[Array, Array]:
    """The least values of linear functions over a box, and the sum of the magnitudes in them."""
    least = _sum(jnp.where(rows > 0, rows * lower[None], rows * upper[None]))
    return least, _sum(jnp.abs(rows) * jnp.maximum(jnp.abs(lower), jnp.abs(upper))[None])


def _over_ball(rows: Array, ball: _Ball) -> tuple[Array, Array]:
    """The least values of linear functions over a ball, and the sum of the magnitudes in them."""
    least, size = _over_box(rows, ball.lower, ball.upper)
    if ball.norm == "linf":
        return least, size
    # A pixel that cannot go the way down takes no part.
    free = jnp.where(rows > 0, (ball.lower < ball.center)[None], (ball.upper > ball.center)[None])
    slopes = jnp.where(free, jnp.abs(rows), 0)
    steepest = jnp.sqrt(_sum(slopes**2)) if ball.norm == "l2" else jnp.max(slopes, (1, 2, 3))
    fall = ball.radius * steepest
    # The ball also lies in the box around it, which counts where the box is the pixels' own.
    return jnp.maximum(least, _sum(rows * ball.center[None]) - fall), size + fall
