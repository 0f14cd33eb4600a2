"""What an attack sees: a function from images `[B, H, W, C]` in `[0, 1]` to logits `[B, K]`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.core import Tracer
from jaxtyping import Array, Float

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
    if not isinstance(logits_fn, jax.tree_util.Partial):
        # A plain function is no pytree; a Partial without arguments makes it one.
        logits_fn = jax.tree_util.Partial(logits_fn)
    return jax.tree_util.Partial(_divide_by_temperature, logits_fn, temperature)


def check_temperature(temperature: float | Float[Array, ""]) -> None:
    """Raises ValueError for a temperature that is known and not a positive finite number."""
    if not isinstance(temperature, Tracer) and not 0 < float(temperature) < float("inf"):
        raise ValueError(f"a temperature must be positive and finite, got {temperature}")
