"""Stochastic activation pruning: a trained network keeps a random part of each layer's activations, mostly large ones.

Reference:
  Dhillon et al., Stochastic Activation Pruning for Robust Adversarial Defense, 2018 (arXiv 1803.01442),
  Algorithm 1.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, UInt32

from ddjax import layers
from ddjax.checks import check_choice, check_number
from ddjax.classifier import LogitsFn, Randomized, as_pytree
from ddjax.defenses.declaration import declare

DRAWS = ("multinomial", "bernoulli")
# A layer whose magnitudes sum to less counts as zero: the inverse of the square is still a number, so gradients are.
_LEAST_TOTAL = 1e-15


def _shares(activations: Float[Array, "B D"]) -> Float[Array, "B D"]:
    """Each unit's part of the sum of magnitudes; zero in a layer of zeros."""
    sizes = jnp.abs(activations)
    total = jnp.sum(sizes, axis=1, keepdims=True)
    return sizes / jnp.where(total > _LEAST_TOTAL, total, 1.0)


def keep_probabilities(
    activations: Float[Array, "B D"], *, samples: int | float | Float[Array, ""]
) -> Float[Array, "B D"]:
    """The probability that a unit is among those sampled: 1 - (1 - p)^r, where p is its part of the magnitudes.

    The number r of draws with replacement is above 0 and may be traced. Probabilities are accurate where they are
    small, and zero in a layer of zeros.
    """
    check_number("samples", samples, above=0.0)
    # Below one, where the logarithm has a derivative; of a unit that is always kept, it is zero.
    shares = jnp.minimum(_shares(activations), 1 - 1e-7)
    return -jnp.expm1(samples * jnp.log1p(-shares))


def _is_drawn(shares: Float[Array, " D"], key: Key[Array, ""], samples: int) -> Bool[Array, " D"]:
    """Which units come up at least once in draws with replacement."""
    # In fixed point, whose running sum is exact: in float32, that of many units rounds the small ones away.
    ends: UInt32[Array, " D"] = jnp.cumsum(jnp.round(shares * 2.0**31).astype(jnp.uint32), dtype=jnp.uint32)
    points = jax.random.randint(key, (samples,), 0, jnp.maximum(ends[-1], 1), dtype=jnp.uint32)
    before = jnp.searchsorted(jnp.sort(points), ends)
    return jnp.diff(before, prepend=jnp.zeros_like(before[:1])) > 0


def prune(
    activations: Float[Array, "B ..."], keys: Key[Array, " B"], *, share: float = 1.0, draws: str = "multinomial"
) -> Float[Array, "B ..."]:
    """Keeps the units that are sampled in proportion to their magnitudes, divided by the probability that they are.

    The expectation is the activations themselves. Gradients pass the activations and the probabilities, not the draw.
    A layer of zeros stays one.

    Args:
      activations: of one layer; all that follows the first axis are an image's units.
      keys: one for each image.
      share: the number of draws as a multiple of the number of units, above 0; at least one is made. One draw for each
        unit keeps 63 percent of units that are alike, fewer of others.
      draws: `"multinomial"`, with replacement as in the paper, or `"bernoulli"`: each unit by itself with the same
        probability to be kept, which is an approximation, and faster.

    Raises:
      ValueError: for a share that is not positive or an unknown kind of draws.

    Departures from the paper:
      Rounding takes units below 2^-32 (multinomial) or a probability below 2^-24 (Bernoulli) for zeros.
    """
    check_number("share", share, above=0.0)
    check_choice("draws", draws, DRAWS)
    units = activations.reshape(activations.shape[0], -1).astype(jnp.float32)
    samples = max(1, round(share * units.shape[1]))
    keep = keep_probabilities(units, samples=samples)
    if draws == "multinomial":
        kept = jax.vmap(functools.partial(_is_drawn, samples=samples))(_shares(units), keys)
    else:
        uniform = jax.vmap(lambda key: jax.random.uniform(key, units.shape[1:]))(keys)
        # Not `uniform < keep`: zero comes up, and what is hardly ever kept must not be divided by that.
        kept = 1 - uniform <= keep
    pruned = jnp.where(kept, units / jnp.where(kept, keep, 1.0), 0.0)
    return pruned.reshape(activations.shape).astype(activations.dtype)


@dataclasses.dataclass(frozen=True)
class _Pruned:
    share: float
    draws: str
    after: tuple[type[nn.Module], ...]

    def __call__(self, logits_fn: LogitsFn, images: Array, keys: Array) -> Array:
        layer, inside = 0, False

        def intercept(run: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            nonlocal layer, inside
            if inside or context.method_name != "__call__" or not isinstance(context.module, self.after):
                return run(*args, **kwargs)
            # What a matching module calls, such as its own base class, is a part of it.
            inside = True
            try:
                outputs = run(*args, **kwargs)
            finally:
                inside = False
            own = jax.vmap(functools.partial(jax.random.fold_in, data=layer))(keys)
            layer += 1
            return prune(outputs, own, share=self.share, draws=self.draws)

        with nn.intercept_methods(intercept):
            logits = logits_fn(images)
        if not layer:
            names = ", ".join(f"{kind.__module__}.{kind.__qualname__}" for kind in self.after)
            raise ValueError(
                f"nothing to prune: the classifier calls no module of the types {names or 'given, of none'}"
            )
        return logits


def pruned(
    logits_fn: LogitsFn,
    *,
    share: float = 1.0,
    draws: str = "multinomial",
    after: tuple[type[nn.Module], ...] = (layers.ReLU,),
) -> Randomized:
    """The classifier with stochastic activation pruning in it.

    The classifier calls flax modules, as `bind` makes it. It must not be compiled already: the program would stay as it
    is, or stay pruned. Each layer of each image has its own draws, see `prune`, from the key of the image.

    `after` are the types of the modules whose outputs are pruned. The default is the paper's, every rectifier;
    `(layers.Conv, nn.Conv)` is every convolution, as in the code that broke the defense, there with a share of 2 and
    Bernoulli draws. Where one of them stands inside another, only the outer one's outputs are pruned.

    Returns:
      A random classifier; a pytree whose leaves are those of `logits_fn`. It raises ValueError when the classifier
      calls no such module.

    Raises:
      ValueError: as `prune` does, and for a compiled classifier.

    Reference:
      Athalye et al., 2018 (arXiv 1802.00420), section 5.3.1, for the attack.
    """
    check_number("share", share, above=0.0)
    check_choice("draws", draws, DRAWS)
    if isinstance(logits_fn, jax.stages.Wrapped):
        raise ValueError("pruning needs a classifier that is not compiled: give it the function inside jax.jit")
    return Randomized(jax.tree_util.Partial(_Pruned(share, draws, tuple(after)), as_pytree(logits_fn)))


DEFENSES = (declare(pruned, name="activation_pruning", kind="wrapper", gradient="own"),)
