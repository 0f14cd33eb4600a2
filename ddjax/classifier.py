"""What an attack sees: a function from inputs `[B, ...]` to logits `[B, K]`, before softmax.

`ddjax.bind` makes one of anyone's model. The functions here make a classifier of another one: at a temperature, behind
a normalization, behind a transform of its inputs. Stochastic classifiers have their own type, `Randomized`,
which takes a key for each example. Attacks do not take it; `expectation` and `single_draw` make of it what they take.

BPDA, expectation over transformation and reparameterization recover the gradients of defenses that have none, random
ones, or vanishing ones. Each returns a transform or a classifier that every attack accepts.

All these classifiers are pytrees whose leaves are the arrays that they are made of: the variables, and what else is
given. Passed through `jit`, `vmap` or `shard_map`, these are ordinary arguments, not constants of the program, and
another classifier of the same form compiles nothing. A plain function is a pytree without leaves.

Reference:
  Athalye, Carlini and Wagner, Obfuscated Gradients Give a False Sense of Security, 2018 (arXiv 1802.00420), for BPDA,
  expectation and reparameterization.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key, UInt32

from ddjax.checks import check_choice, check_whole_number
from ddjax.platforms import by_platform

LogitsFn = Callable[[Array], Array]
AVERAGES = ("logits", "probs")
# 2654435761, the prime next to 2^32 over the golden ratio, as in multiplicative hashing.
_GOLDEN = 0x9E3779B1


def as_pytree(function: Callable[..., Array]) -> Partial:
    """The function as it can stand among a program's arguments: a plain one as a Partial without leaves."""
    return function if isinstance(function, Partial) else Partial(function)


def _divide_by_temperature(logits_fn: LogitsFn, temperature: float | Array, inputs: Array) -> Array:
    return logits_fn(inputs) / temperature


def at_temperature(logits_fn: LogitsFn, temperature: float | Float[Array, ""]) -> LogitsFn:
    """The classifier whose logits are divided by a temperature T > 0, which may be traced.

    Predictions stay the same. The gradients of the softmax of a network distilled at T vanish at temperature 1; they
    come back at T.

    Raises:
      ValueError: when the temperature is known and not a positive finite number.

    Reference:
      Carlini and Wagner, Towards Evaluating the Robustness of Neural Networks, 2017 (arXiv 1608.04644), section VIII-A.
    """
    check_temperature(temperature)
    return Partial(_divide_by_temperature, as_pytree(logits_fn), temperature)


def check_temperature(temperature: float | Float[Array, ""]) -> None:
    """Raises ValueError for a temperature that is known and not a positive finite number."""
    if not isinstance(temperature, Tracer) and not 0 < float(temperature) < float("inf"):
        raise ValueError(f"a temperature must be positive and finite, got {temperature}")


def _in_bfloat16(logits_fn: LogitsFn, inputs: Array) -> Array:
    low = lambda leaf: leaf.astype(jnp.bfloat16) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
    return jax.tree.map(low, logits_fn)(low(inputs)).astype(inputs.dtype)


def in_bfloat16(logits_fn: LogitsFn) -> LogitsFn:
    """The classifier whose forward and backward passes run in bfloat16; logits and gradients have the inputs' dtype.

    An attack on it keeps its own state in the inputs' dtype. Judge what it finds by `logits_fn` itself: bfloat16 has
    eight bits, and a margin in bfloat16 may not exist in float32.

    Raises:
      ValueError: for a function without parameters among its leaves; its constants would keep their dtype.
    """
    leaves = jax.tree.leaves(logits_fn)
    if not leaves or not all(hasattr(leaf, "astype") for leaf in leaves):
        raise ValueError("bfloat16 needs a classifier whose parameters are leaves, as ddjax.bind makes it")
    return Partial(_in_bfloat16, logits_fn)


def _of_normalized(logits_fn: LogitsFn, mean: Array, std: Array, inputs: Array) -> Array:
    by_channel = lambda values: values.astype(inputs.dtype).reshape(*(1,) * (inputs.ndim - 1), -1)
    return logits_fn((inputs - by_channel(mean)) / by_channel(std))


def normalized(logits_fn: LogitsFn, mean: float | Float[Array, " C"], std: float | Float[Array, " C"]) -> LogitsFn:
    """The classifier of inputs in [0, 1], made of one of `(inputs - mean) / std`, where `std` is above 0.

    Channels are the last axis of the inputs. Attacks on the new classifier work, and measure, in pixels. To attack in
    the normalized space instead, give them `logits_fn` itself, normalized inputs, and the bounds
    `((0 - mean) / std, (1 - mean) / std)`.

    Raises:
      ValueError: when a standard deviation is known and not positive, or either of the two is neither a number nor one
        for each channel.
    """
    if jnp.ndim(mean) > 1 or jnp.ndim(std) > 1:
        raise ValueError(f"mean and std must be numbers, or one for each channel, got {mean} and {std}")
    if not isinstance(std, Tracer) and not bool(jnp.all(jnp.asarray(std) > 0)):
        raise ValueError(f"std must be positive, got {std}")
    number = lambda values: jnp.asarray(values, jnp.result_type(float))
    return Partial(_of_normalized, as_pytree(logits_fn), number(mean), number(std))


@dataclasses.dataclass(frozen=True)
class Transform:
    """A function of inputs with its settings; compared by value, so that equal ones share one compiled program.

    The function takes inputs `[B, ...]`, a key for each where it is random, and the settings as keywords. The settings
    are names and hashable values, sorted.
    """

    function: Callable[..., Array]
    settings: tuple[tuple[str, Any], ...] = ()

    def __call__(self, inputs: Float[Array, "B ..."], *rest: Any) -> Array:
        """Transforms a batch; `rest` are its keys, and the arrays or pytrees that the function also takes."""
        return self.function(inputs, *rest, **dict(self.settings))


def transform(function: Callable[..., Array], **settings: Any) -> Transform:
    """Makes a `Transform`; the settings must be hashable, a table therefore a tuple of tuples."""
    return Transform(function, tuple(sorted(settings.items())))


def _of_transformed(
    logits_fn: LogitsFn, transform: Callable[..., Array], given: tuple[Any, ...], inputs: Array, *keys: Array
) -> Array:
    return logits_fn(transform(inputs, *keys, *given))


def transformed(logits_fn: LogitsFn, transform: Callable[..., Array], *given: Any) -> LogitsFn:
    """The classifier that first applies a deterministic transform, from inputs to inputs; hashable or a pytree.

    `given` are arrays and pytrees that the transform also takes, such as the parameters of a model.
    """
    return Partial(_of_transformed, as_pytree(logits_fn), as_pytree(transform), given)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Randomized:
    """A stochastic classifier: from inputs and a key for each to logits; a pytree whose leaves are the parameters."""

    logits_fn: Any

    def __call__(self, inputs: Float[Array, "B ..."], keys: Key[Array, " B"]) -> Float[Array, "B K"]:
        """The logits of one draw for each example."""
        return self.logits_fn(inputs, keys)


def randomized(logits_fn: LogitsFn, transform: Callable[..., Array], *given: Any) -> Randomized:
    """As `transformed`, but at random: `transform` takes inputs, a key for each, and what is given."""
    return Randomized(transformed(logits_fn, transform, *given))


def _bpda(inputs: Array, *rest: Any, exact: Transform, substitute: Callable[..., Array]) -> Array:
    @jax.custom_gradient
    def substituted(inputs: Array, rest: tuple[Any, ...]) -> Any:
        def pull(cotangent: Array) -> tuple[Array, None]:
            like, pull_back = jax.vjp(lambda inputs: substitute(inputs, *rest), inputs)
            if like.shape != cotangent.shape:
                raise ValueError(
                    "BPDA needs a substitute whose outputs have the shape of the transform's, "
                    f"{cotangent.shape}, got {like.shape}"
                )
            return pull_back(cotangent)[0], None

        return exact(inputs, *rest), pull

    return substituted(inputs, rest)


def _identity(inputs: Array, *rest: Any) -> Array:
    return inputs


def bpda(exact: Transform, substitute: Callable[..., Array] | None = None) -> Transform:
    """Backward pass differentiable approximation: the exact transform forward, a substitute's gradient backward.

    The values are those of `exact`, which may be random, to the bit. The substitute takes what `exact` takes: inputs,
    then the keys and whatever else is given; its outputs have the same shape. It is hashable. The default is the
    identity, the straight-through gradient, which is right for a transform whose outputs are close to its inputs.

    Raises:
      ValueError: when differentiated, if the shapes differ.

    Reference:
      Athalye et al., 2018 (arXiv 1802.00420).
    """
    return transform(_bpda, exact=exact, substitute=substitute or _identity)


@dataclasses.dataclass(frozen=True)
class _Expectation:
    num_samples: int
    average: str

    def __call__(self, classifier: Randomized, key: Array, inputs: Array) -> Array:
        keys = _keys_of(key, inputs, self.num_samples)
        if self.num_samples == 1:
            return classifier(inputs, keys[0])
        logits = map_draws(functools.partial(classifier, inputs), keys)
        if self.average == "logits":
            return jnp.mean(logits, axis=0)
        return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - math.log(self.num_samples)


def map_draws(draw: Callable[[Array], Array], keys: Key[Array, "S B"]) -> Array:
    """Stacks `draw` of each of S rows of `[B]` keys: one after the other on CPU, all at once on other platforms.

    On a CPU one draw keeps all cores busy, and takes less memory.
    """
    return by_platform(keys, cpu=lambda keys: lax.map(draw, keys), default=jax.vmap(draw))


def _keys_of(key: Key[Array, ""], inputs: Float[Array, "B ..."], num_samples: int) -> Key[Array, "S B"]:
    """Keys for each draw of each example, from the key and the bits of the input."""
    fold = lambda digest: jax.random.split(jax.random.fold_in(key, digest), num_samples)
    return jnp.moveaxis(jax.vmap(fold)(_digest(lax.stop_gradient(inputs))), 1, 0)


def _digest(inputs: Float[Array, "B ..."]) -> UInt32[Array, " B"]:
    """A number for each input. A change of any bit of one value changes it; changes of several values may cancel."""
    wide = inputs if inputs.dtype.itemsize == 8 else inputs.astype(jnp.float32)
    bits = lax.bitcast_convert_type(wide, jnp.uint32).reshape(inputs.shape[0], -1)
    weights = (2 * jnp.arange(bits.shape[1], dtype=jnp.uint32) + 1) * jnp.uint32(_GOLDEN)
    mixed = (bits ^ (bits >> 15)) * weights[None]
    return jnp.sum(mixed ^ (mixed >> 13), axis=1, dtype=jnp.uint32)


def expectation(
    classifier: Randomized, key: Key[Array, ""], *, num_samples: int = 30, average: str = "logits"
) -> LogitsFn:
    """Expectation over transformation: the classifier that averages over draws of a stochastic one.

    Draws are fresh for each example and each step of any attack: their keys come from the key and from the bits of the
    input. The same input gets the same draws, in whatever place of whatever batch. Programs of different shapes round
    differently, so an attack meets other draws in them: its rates agree up to sampling, not up to rounding.

    Args:
      classifier: a stochastic one.
      key: a single one. Judge an attack by draws from another.
      num_samples: the number of draws, at least 1.
      average: of `"logits"`, or of `"probs"`; the latter returns the logarithms of mean probabilities. With the first,
        the gradient of a loss that is linear in the logits, such as a margin, is the mean of the draws' gradients.

    Raises:
      ValueError: for no samples, an unknown average, or several keys.

    Reference:
      Athalye, Engstrom, Ilyas and Kwok, Synthesizing Robust Adversarial Examples, 2018 (arXiv 1707.07397).
    """
    check_choice("average", average, AVERAGES)
    check_whole_number("num_samples", num_samples, least=1)
    _check_key("an expectation", key)
    return Partial(_Expectation(num_samples, average), classifier, key)


def _single_draw(classifier: Randomized, key: Array, inputs: Array) -> Array:
    return classifier(inputs, jnp.broadcast_to(key, inputs.shape[:1]))


def single_draw(classifier: Randomized, key: Key[Array, ""]) -> LogitsFn:
    """A stochastic classifier with one fixed draw, of a single key, the same for all examples and all calls.

    An attack on it ignores that other draws judge its examples: the single-pattern attack of Xie et al.

    Raises:
      ValueError: for several keys.

    Reference:
      Xie et al., Mitigating Adversarial Effects Through Randomization, 2018 (arXiv 1711.01991), section 4.
    """
    _check_key("a single draw", key)
    return Partial(_single_draw, classifier, key)


def _check_key(name: str, key: Key[Array, "..."]) -> None:
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape != ():
        raise ValueError(f"{name} needs one key, as jax.random.key makes it")


def reparameterized(logits_fn: LogitsFn, decode: Callable[[Float[Array, "B ..."]], Float[Array, "B ..."]]) -> LogitsFn:
    """The classifier of codes: it decodes them first.

    It breaks a defense that projects inputs onto the range of a function h by an optimization without a gradient. A
    point of the range is projected onto itself, and an attack that moves the code z of x = h(z) stays in the range. Any
    attack then runs on codes; its bounds and its radius are those of codes, and the adversarial inputs are `decode` of
    the codes that it returns.

    `decode` is differentiable. It is a `Partial` whose leaves are parameters, such as
    `ddjax.generative.gan.generator_fn` makes, or else hashable.

    Reference:
      Athalye et al., 2018 (arXiv 1802.00420), section 4.3.
    """
    return transformed(logits_fn, decode)
