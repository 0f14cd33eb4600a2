"""Bounds of layers and of margins over balls, and the largest radius within which no input is decided otherwise."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ddjax import checks, losses
from ddjax.attacks import problem
from ddjax.certify.network import Network, apply, layers_of
from ddjax.certify.propagation import Interval, margins_of, propagate
from ddjax.certify.relaxation import Ball, ball_of
from ddjax.classifier import LogitsFn

NORMS = ("linf", "l2", "l1")
METHODS = ("interval", "crown-ibp", "crown")
# From an image and a radius to the ball that lies in the bounds.
BallFn = Callable[[Array, Array], Ball]


def layer_bounds(
    logits_fn: LogitsFn | Network,
    images: Float[Array, "B ..."],
    radius: float | Float[Array, ""] | Float[Array, " B"],
    *,
    norm: str = "linf",
    method: str = "crown",
    bounds: problem.Bounds = (0.0, 1.0),
) -> tuple[Interval, ...]:
    """Encloses the output of each layer while the image moves in a ball.

    The arguments and errors are those of `margin_bounds`. `"interval"` and `"crown-ibp"` enclose all layers but the
    first by interval arithmetic; `"crown"` bounds each neuron in front of a ReLU or a maximum, and each logit, by a
    backward pass.

    Returns:
      For each layer, the least and the greatest value of each of its outputs, `[B, ...]`.
    """
    checks.check_number("radius", radius, least=0.0)

    def enclose(network: Network, ball: BallFn, image: Array, _: Array, radius: Array) -> tuple[Interval, ...]:
        return tuple(propagate(network, ball(image, radius), method)[1:])

    labels = jnp.zeros(images.shape[:1], jnp.int32)
    return _of_each(enclose, logits_fn, images, labels, radius, norm, method, bounds)


def margin_bounds(
    logits_fn: LogitsFn | Network,
    images: Float[Array, "B ..."],
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
      See `ddjax.certify`.

    Departures from the papers:
      The plane above a maximum is chosen from a family that contains CNN-Cert's; boxes and edges as said above.
    """
    checks.check_number("radius", radius, least=0.0)

    def bound(network: Network, ball: BallFn, image: Array, label: Array, radius: Array) -> Array:
        return margins_of(network, ball(image, radius), label, method)

    return _of_each(bound, logits_fn, images, labels, radius, norm, method, bounds)


def largest_radius(
    logits_fn: LogitsFn | Network,
    images: Float[Array, "B ..."],
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
      See `ddjax.certify`.
    """
    checks.check_number("lowest", lowest, above=0.0)
    checks.check_number("highest", highest, least=0.0)
    checks.check_whole_number("num_bisections", num_bisections, least=1)

    def search(network: Network, ball: BallFn, image: Array, label: Array, highest: Array) -> Array:
        def halve(_: Any, bracket: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            below, above, proved = bracket
            radius = jnp.sqrt(below) * jnp.sqrt(above)
            holds = jnp.min(margins_of(network, ball(image, radius), label, method)) > 0
            return jnp.where(holds, radius, below), jnp.where(holds, above, radius), jnp.where(holds, radius, proved)

        decided = losses.margin(apply(network, image[None]), label[None])[0] > 0
        bracket = (jnp.minimum(jnp.asarray(lowest, image.dtype), highest), highest, jnp.zeros_like(highest))
        # An image that is misclassified costs nothing.
        return lax.fori_loop(0, jnp.where(decided, num_bisections, 0), halve, bracket)[2]

    return _of_each(search, logits_fn, images, labels, highest, norm, method, bounds)


def _of_each(
    function: Callable[..., Any],
    logits_fn: LogitsFn | Network,
    images: Array,
    labels: Array,
    radius: Any,
    norm: str,
    method: str,
    bounds: problem.Bounds,
) -> Any:
    """Checks arguments, and applies `function(network, ball, image, label, radius)` to each image, one by one."""
    network, images = _in_one_dtype(layers_of(logits_fn), images)
    checks.check_choice("norm", norm, NORMS)
    checks.check_choice("method", method, METHODS)
    problem.prepare("certify", lambda inputs: apply(network, inputs), images, labels, bounds=bounds)
    low, high, _ = problem.box(bounds, images[:1])
    ball = lambda image, radius: ball_of(image, radius, low[0], high[0], norm)
    radii = jnp.broadcast_to(jnp.asarray(radius, images.dtype), images.shape[:1])
    with jax.default_matmul_precision("highest"):
        return lax.map(lambda example: function(network, ball, *example), (images, labels, radii))


def _in_one_dtype(network: Network, images: Array) -> tuple[Network, Array]:
    """The network and the images in float64 where one of them has it, else in float32."""
    dtypes = {jnp.result_type(leaf) for leaf in (*jax.tree.leaves(network), images) if hasattr(leaf, "dtype")}
    dtype = jnp.float64 if jnp.dtype(jnp.float64) in dtypes else jnp.float32
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (network, images))
