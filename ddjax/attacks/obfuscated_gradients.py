"""Gradients of defenses that have none, or random ones, or vanishing ones: BPDA, EOT and reparameterization.

All three are wrappers that every attack accepts.

Reference:
  Athalye, Carlini and Wagner, Obfuscated Gradients Give a False Sense of Security, 2018 (arXiv 1802.00420).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key, UInt32

from ddjax import checks
from ddjax.classifier import LogitsFn, Randomized, Transform, as_pytree, transform

AVERAGES = ("logits", "probs")
# 2654435761, the prime next to 2^32 over the golden ratio, as multiplicative hashing takes it: odd, and far from any
# number that pixels could resonate with.
_GOLDEN = 0x9E3779B1


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _substituted(
    exact: Transform, substitute: Callable[[Array], Array] | None, images: Array, rest: tuple[Any, ...]
) -> Array:
    return exact(images, *rest)


def _substituted_fwd(
    exact: Transform, substitute: Callable[[Array], Array] | None, images: Array, rest: tuple[Any, ...]
) -> tuple[Array, Array]:
    found = exact(images, *rest)
    like = images if substitute is None else jax.eval_shape(substitute, images)
    if like.shape != found.shape:
        raise ValueError(
            f"BPDA needs a substitute with images of the same shape as the transform's: "
            f"{like.shape} in the place of {found.shape}"
        )
    return found, images


def _substituted_bwd(
    exact: Transform, substitute: Callable[[Array], Array] | None, images: Array, cotangent: Array
) -> tuple[Array, None]:
    if substitute is None:
        return cotangent, None
    return jax.vjp(substitute, images)[1](cotangent)[0], None


_substituted.defvjp(_substituted_fwd, _substituted_bwd)


def _bpda(images: Array, *rest: Any, exact: Transform, substitute: Callable[[Array], Array] | None) -> Array:
    return _substituted(exact, substitute, images, rest)


def bpda(exact: Transform, substitute: Callable[[Array], Array] | None = None) -> Transform:
    """Backward pass differentiable approximation: the exact transform forward, another's gradient backward.

    Args:
      exact: a transform without a useful gradient, random or not.
      substitute: what is differentiated in its place, from images to images of the same shape as the transform's;
        hashable. Default: the identity, right where the transform gives back about what it was given.

    Returns:
      A transform whose values are those of `exact` to the bit.

    Raises:
      ValueError: when differentiated, if the shapes differ.

    Reference:
      Athalye et al., 2018 (arXiv 1802.00420).
    """
    return transform(_bpda, exact=exact, substitute=substitute)


@dataclasses.dataclass(frozen=True)
class _Expectation:
    num_samples: int
    average: str

    def __call__(self, classifier: Randomized, key: Array, images: Array) -> Array:
        keys = _keys_of(key, images, self.num_samples)
        if self.num_samples == 1:
            return classifier(images, keys[0])
        draw = functools.partial(classifier, images)
        # One draw after the other where each keeps all cores busy, with less memory.
        logits = lax.map(draw, keys) if jax.default_backend() == "cpu" else jax.vmap(draw)(keys)
        if self.average == "logits":
            return jnp.mean(logits, axis=0)
        return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - jnp.log(jnp.float32(self.num_samples))


def _keys_of(key: Key[Array, ""], images: Float[Array, "B H W C"], num_samples: int) -> Key[Array, "S B"]:
    """Keys for each draw of each image, from the key and what is in the image."""
    fold = lambda digest: jax.random.split(jax.random.fold_in(key, digest), num_samples)
    return jnp.moveaxis(jax.vmap(fold)(_digest(lax.stop_gradient(images))), 1, 0)


def _digest(images: Float[Array, "B H W C"]) -> UInt32[Array, " B"]:
    """A number for each image that changes with any bit of any one pixel; of several, changes may cancel."""
    bits = lax.bitcast_convert_type(images.astype(jnp.float32), jnp.uint32).reshape(images.shape[0], -1)
    weights = (2 * jnp.arange(bits.shape[1], dtype=jnp.uint32) + 1) * jnp.uint32(_GOLDEN)
    mixed = (bits ^ (bits >> 15)) * weights[None]
    return jnp.sum(mixed ^ (mixed >> 13), axis=1, dtype=jnp.uint32)


def expectation(
    classifier: Randomized, key: Key[Array, ""], *, num_samples: int = 30, average: str = "logits"
) -> LogitsFn:
    """Expectation over transformation: the classifier that averages over draws of a random one.

    Draws are fresh for each example and each step of any attack, without the attack's help: their keys come from the
    key and from the bits of the image. The same image gets the same draws, in whatever place of whatever batch.

    Args:
      classifier: a random classifier.
      key: a single one. Judge an attack by draws from another.
      num_samples: the number of draws, at least 1; with 1 it is the classifier as it is met once.
      average: of `"logits"`, or of `"probs"`, then as logarithms. The gradient of a loss that is linear in the logits,
        such as a margin, is the mean of the gradients of the draws with the first.

    Returns:
      A classifier; a pytree like `bind`'s.

    Raises:
      ValueError: for no samples, an unknown average, or several keys.

    Reference:
      Athalye, Engstrom, Ilyas and Kwok, Synthesizing Robust Adversarial Examples, 2018 (arXiv 1707.07397).

    What follows from keys that come from the image:
      Programs of different shapes round differently, so that in these an attack meets other draws: its rates agree as
      far as samples do, not to rounding.
    """
    checks.check_choice("average", average, AVERAGES)
    if num_samples < 1:
        raise ValueError(f"an expectation needs at least one sample, got {num_samples}")
    _check_key("an expectation", key)
    return jax.tree_util.Partial(_Expectation(num_samples, average), classifier, key)


@dataclasses.dataclass(frozen=True)
class _SingleDraw:
    def __call__(self, classifier: Randomized, key: Array, images: Array) -> Array:
        return classifier(images, jnp.broadcast_to(key, images.shape[:1]))


def single_draw(classifier: Randomized, key: Key[Array, ""]) -> LogitsFn:
    """A random classifier with one draw, the same for all images and at all times.

    Who attacks it does not reckon with another draw when the images are judged: the single-pattern attack of Xie et al.

    Args:
      classifier: a random classifier.
      key: of the draw, a single one.

    Returns:
      A classifier; a pytree like `bind`'s.

    Raises:
      ValueError: for several keys.

    Reference:
      Xie et al., Mitigating Adversarial Effects Through Randomization, 2018 (arXiv 1711.01991), section 4.
    """
    _check_key("a single draw", key)
    return jax.tree_util.Partial(_SingleDraw(), classifier, key)


def _of_decoded(logits_fn: LogitsFn, decode: Callable[[Array], Array], codes: Array) -> Array:
    return logits_fn(decode(codes))


def reparameterized(
    logits_fn: LogitsFn, decode: Callable[[Float[Array, "B h w c"]], Float[Array, "B H W C"]]
) -> LogitsFn:
    """The classifier of codes: it decodes them to images before it looks at them.

    Against a defense that projects images onto the range of a function h by an optimization, through which no gradient
    gets: what lies in the range already is projected onto itself, and an attack that moves the code z of x = h(z)
    stays in the range. Any attack then runs on codes; its bounds and its radius are those of codes, and the images
    are `decode` of what it returns.

    Args:
      logits_fn: a classifier of images.
      decode: from codes, shaped like images of any size, to images; differentiable. A `Partial` whose leaves are
        parameters, such as `ddjax.defenses.defense_gan.decoder` makes, or else hashable.

    Returns:
      A classifier of codes; a pytree whose leaves are those of both.

    Reference:
      Athalye et al., 2018 (arXiv 1802.00420), section 4.3.
    """
    return jax.tree_util.Partial(_of_decoded, as_pytree(logits_fn), as_pytree(decode))


def _check_key(name: str, key: Key[Array, "..."]) -> None:
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape != ():
        raise ValueError(f"{name} needs one key, as jax.random.key makes it, got {key}")
