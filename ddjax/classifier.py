"""What an attack sees: a function from images `[B, H, W, C]` in `[0, 1]` to logits `[B, K]`.

A classifier that is random is another thing, a `Randomized`: it takes a key for each image, too. Attacks do not take
it; `ddjax.attacks.expectation` makes of it what they take.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Key

LogitsFn = Callable[[Array], Array]


@dataclasses.dataclass(frozen=True)
class _Apply:
    """Calls a module; compared by value, so that equal modules share one compiled program."""

    module: nn.Module
    static: tuple[tuple[str, Any], ...]

    def __call__(self, variables: Any, images: Array) -> Array:
        return self.module.apply(variables, images, **dict(self.static))  # pyright: ignore[reportReturnType]


def bind(module: nn.Module, variables: Any, **static: Any) -> jax.tree_util.Partial:
    """Makes the classifier of a flax.linen module and its variables.

    The result is a pytree whose leaves are the variables: passed through `jit`, `vmap` or `shard_map`, the parameters
    are ordinary arguments, not constants of the program, and another network of the same shape compiles nothing.

    Args:
      module: maps images to logits.
      variables: what `module.init` returned, or trained; `{"params": ...}`.
      **static: further keyword arguments of `module.__call__`, such as `train=False`; hashable.

    Returns:
      A function from images to logits.
    """
    return jax.tree_util.Partial(_Apply(module, tuple(sorted(static.items()))), variables)


def as_pytree(logits_fn: LogitsFn) -> jax.tree_util.Partial:
    """The classifier as it can stand among a program's arguments: a plain function as a Partial without leaves."""
    return logits_fn if isinstance(logits_fn, jax.tree_util.Partial) else jax.tree_util.Partial(logits_fn)


def _divide_by_temperature(
    logits_fn: LogitsFn, temperature: float | Float[Array, ""], images: Float[Array, "B H W C"]
) -> Float[Array, "B K"]:
    return logits_fn(images) / temperature


def at_temperature(logits_fn: LogitsFn, temperature: float | Float[Array, ""]) -> LogitsFn:
    """The classifier whose logits are divided by a temperature.

    Predictions stay the same. Gradients of the softmax of a network distilled at T, which vanish at temperature 1, come
    back.

    Args:
      logits_fn: a classifier.
      temperature: T > 0; may be traced.

    Returns:
      A classifier; a pytree like `bind`'s where `logits_fn` is one.

    Raises:
      ValueError: when the temperature is known and not positive.

    Reference:
      Carlini and Wagner, Towards Evaluating the Robustness of Neural Networks, 2017 (arXiv 1608.04644), section VIII-A.
    """
    check_temperature(temperature)
    return jax.tree_util.Partial(_divide_by_temperature, as_pytree(logits_fn), temperature)


def _in_bfloat16(logits_fn: LogitsFn, images: Float[Array, "B H W C"]) -> Float[Array, "B K"]:
    low = lambda leaf: leaf.astype(jnp.bfloat16) if leaf.dtype == jnp.float32 else leaf
    return jax.tree.map(low, logits_fn)(low(images)).astype(images.dtype)


def in_bfloat16(logits_fn: LogitsFn) -> LogitsFn:
    """The classifier whose forward and backward passes run in bfloat16; images, logits and gradients stay float32.

    An attack on it keeps its own state in float32. What it finds must be judged by `logits_fn` itself: bfloat16 has
    eight bits, and a margin that it sees may not be there.

    Args:
      logits_fn: a classifier whose parameters are leaves, as `bind` makes it.

    Returns:
      A classifier; a pytree like `bind`'s.

    Raises:
      ValueError: for a function without parameters among its leaves; what it has closed over stays in float32.
    """
    leaves = jax.tree.leaves(logits_fn)
    if not leaves or not all(hasattr(leaf, "astype") for leaf in leaves):
        raise ValueError("bfloat16 needs a classifier whose parameters are leaves, as ddjax.bind makes it")
    return jax.tree_util.Partial(_in_bfloat16, logits_fn)


def _of_normalized(logits_fn: LogitsFn, mean: Array, deviation: Array, images: Array) -> Array:
    return logits_fn((images - mean) / deviation)


def normalized(
    logits_fn: LogitsFn, mean: float | Float[Array, " C"], deviation: float | Float[Array, " C"]
) -> LogitsFn:
    """The classifier of images in [0, 1] that normalizes them and asks one which was trained on normalized images.

    Attacks on it work, and measure, in pixels. To attack in the normalized space instead, give them `logits_fn` itself,
    normalized images, and the bounds `((0 - mean) / deviation, (1 - mean) / deviation)`.

    Args:
      logits_fn: takes `(images - mean) / deviation`.
      mean: what is subtracted, a number or one for each channel.
      deviation: what is divided by then, above 0.

    Returns:
      A classifier; a pytree like `bind`'s where `logits_fn` is one.

    Raises:
      ValueError: when a deviation is known and not positive, or neither of the two is a number or one for each channel.
    """
    if jnp.ndim(mean) > 1 or jnp.ndim(deviation) > 1:
        raise ValueError(f"mean and deviation must be numbers, or one for each channel, got {mean} and {deviation}")
    if not isinstance(deviation, Tracer) and not bool(jnp.all(jnp.asarray(deviation) > 0)):
        raise ValueError(f"a deviation must be positive, got {deviation}")
    by_channel = lambda values: jnp.reshape(jnp.asarray(values, jnp.float32), (1, 1, 1, -1))
    return jax.tree_util.Partial(_of_normalized, as_pytree(logits_fn), by_channel(mean), by_channel(deviation))


@dataclasses.dataclass(frozen=True)
class Transform:
    """A function of images with its settings; compared by value, so that equal ones share one compiled program.

    Attributes:
      function: takes images `[B, H, W, C]`, where it is random also a key for each, and the settings as keywords.
      settings: names and hashable values, sorted.
    """

    function: Callable[..., Array]
    settings: tuple[tuple[str, Any], ...] = ()

    def __call__(self, images: Float[Array, "B H W C"], *rest: Any) -> Array:
        """Transforms a batch; what follows it are its keys, and arrays or pytrees that the function takes beside."""
        return self.function(images, *rest, **dict(self.settings))


def transform(function: Callable[..., Array], **settings: Any) -> Transform:
    """Makes a `Transform`; the settings must be hashable, a table therefore a tuple of tuples."""
    return Transform(function, tuple(sorted(settings.items())))


@dataclasses.dataclass(frozen=True)
class _OfTransformed:
    transform: Transform

    def __call__(self, logits_fn: LogitsFn, given: tuple[Any, ...], images: Array) -> Array:
        return logits_fn(self.transform(images, *given))


def transformed(logits_fn: LogitsFn, transform: Transform, *given: Any) -> LogitsFn:
    """The classifier that transforms its images before it looks at them.

    Args:
      logits_fn: a classifier.
      transform: from images to images, the same each time.
      *given: arrays and pytrees that the transform takes beside, such as the parameters of a model.

    Returns:
      A classifier; a pytree like `bind`'s where `logits_fn` is one, whose leaves are also those of `given`.
    """
    return jax.tree_util.Partial(_OfTransformed(transform), as_pytree(logits_fn), given)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Randomized:
    """A classifier that is random, marked as such: it takes a key for each image, too.

    Attributes:
      logits_fn: from images and keys to logits; a pytree whose leaves are the parameters.
    """

    logits_fn: Any

    def __call__(self, images: Float[Array, "B H W C"], keys: Key[Array, " B"]) -> Float[Array, "B K"]:
        """The logits for one draw of each image."""
        return self.logits_fn(images, keys)


@dataclasses.dataclass(frozen=True)
class _OfRandomlyTransformed:
    transform: Transform

    def __call__(self, logits_fn: LogitsFn, given: tuple[Any, ...], images: Array, keys: Array) -> Array:
        return logits_fn(self.transform(images, keys, *given))


def randomized(logits_fn: LogitsFn, transform: Transform, *given: Any) -> Randomized:
    """The classifier that transforms its images at random before it looks at them.

    Args:
      logits_fn: a classifier.
      transform: takes images, a key for each, and what is given.
      *given: arrays and pytrees that the transform takes beside, such as the parameters of a model.

    Returns:
      A random classifier; a pytree whose leaves are those of `logits_fn` and of `given`.
    """
    return Randomized(jax.tree_util.Partial(_OfRandomlyTransformed(transform), as_pytree(logits_fn), given))


def check_temperature(temperature: float | Float[Array, ""]) -> None:
    """Raises ValueError for a temperature that is known and not a positive finite number."""
    if not isinstance(temperature, Tracer) and not 0 < float(temperature) < float("inf"):
        raise ValueError(f"a temperature must be positive and finite, got {temperature}")
