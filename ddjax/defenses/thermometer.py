"""Thermometer encoding: pixels are coded by the levels that they reach; and the two attacks of its authors.

A pixel in one of `levels` equal bins, at least 2, becomes `levels` bits, of which those up to its bin are set. A
network that takes these codes is a classifier of images behind `encode`, which has no gradient. It is attacked by BPDA
with `ramp`, or in the space of codes by `ls_pga` and `dga`.

Reference:
  Buckman et al., Thermometer Encoding: One Hot Way to Resist Adversarial Examples, 2018 (ICLR).
  Athalye, Carlini and Wagner, Obfuscated Gradients Give a False Sense of Security, 2018 (arXiv 1802.00420), for the
  ramp.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from ddjax import checks, losses
from ddjax.attacks import contract, examples, problem
from ddjax.classifier import LogitsFn, transform, transformed
from ddjax.defenses.declaration import declare
from ddjax.defenses.images import Images, Keys, Labels, Scalar, check_images
from ddjax.training.adversaries import DeclaredAdversary


def encode(images: Images, *, levels: int = 16) -> Float[Array, "B H W CL"]:
    """Codes each pixel by the levels that it reaches: bit j is set where the pixel is at least `j / levels`.

    Bit 0 is always set. The number of set bits less one is the bin; the last bin includes 1. The bits of a channel are
    side by side: bit j of channel c is `c * levels + j`. The gradient is zero everywhere.

    Departures from the paper:
      In the paper bit j is set above `j / levels`; here at `j / levels`, too, as in the public code. The first bit is
      always set, also as in that code.
    """
    check_images("thermometer encoding", images)
    return _reached(images, levels).astype(images.dtype).reshape(*images.shape[:3], -1)


def decode(codes: Float[Array, "B H W CL"], *, levels: int = 16) -> Images:
    """Decodes each code as the center of its bin, which is at most half a bin from the pixel.

    The images `encode` to the same codes. Of relaxed codes, with bits between 0 and 1, the expectation is decoded.
    Codes that are not whole channels of so many bits raise ValueError.
    """
    checks.check_number("levels", levels, least=2.0)
    if codes.shape[3] % levels:
        raise ValueError(f"codes of {levels} levels need a multiple of {levels} bits, got {codes.shape[3]}")
    return (jnp.sum(codes.reshape(*codes.shape[:3], -1, levels), axis=4) - 0.5) / levels


def ramp(images: Images, *, levels: int = 16) -> Float[Array, "B H W CL"]:
    """The encoding with ramps in the place of steps, `min(max(levels * x - j + 1, 0), 1)` for bit j.

    Its floor is the encoding. It is the substitute for a defense-aware attack, see `ddjax.bpda`. For a pixel in bin i
    the ramp of bit i + 1 is active, with slope `levels`: the first bit that the pixel has not reached. A bin includes
    its lower end, so exactly one ramp is active, on the borders of bins too. The last bin has no further bit and a zero
    gradient.

    The ramp shows the effect of the next bin, not of the one before, and nothing for a pixel in the last bin. On images
    with many white pixels, such as digits, `ls_pga` and `dga` find more; judge the defense by the strongest attack.

    Reference:
      Athalye et al., 2018 (arXiv 1802.00420).

    Departures from the paper:
      The scale is that of the public code, with which the floor is the encoding. On the borders of bins that code
      passes the gradients of both neighbors.
    """
    check_images("thermometer encoding", images)
    reached = _reached(images, levels)
    # Masks instead of `clip`, which would share the gradient between its branches on the borders.
    active = jax.nn.one_hot(_bins(images, levels) + 1, levels, dtype=bool)
    slope = levels * images[..., None] - jnp.arange(-1, levels - 1, dtype=images.dtype).reshape(1, 1, 1, 1, -1)
    return jnp.where(active, slope, reached.astype(images.dtype)).reshape(*images.shape[:3], -1)


class Encoded(nn.Module):
    """A network behind the encoding.

    Attributes:
      network: takes codes and `train`; returns logits.
      levels: of the codes, at least 2.
      channels: of the images.
    """

    network: nn.Module
    levels: int = 16
    channels: int = 3

    def __call__(self, images: Float[Array, "B H W _"], train: bool = False) -> Float[Array, "B K"]:
        """Computes the logits of images, which it encodes, or of codes; the number of channels tells them apart."""
        known = (self.channels, self.channels * self.levels)
        if images.shape[3] not in known:
            raise ValueError(
                f"expected images of {known[0]} channels or codes of {known[1]}, got {images.shape[3]} channels"
            )
        codes = encode(images, levels=self.levels) if images.shape[3] == self.channels else images
        return self.network(codes, train=train)


def ls_pga(
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    *,
    key: Key[Array, "..."] | None = None,
    targets: Labels | None = None,
    epsilon: examples.PerExample = 0.031,
    step_size: examples.PerExample = 1.0,
    num_steps: int = 7,
    inverse_temperature: Scalar = 1.0,
    anneal: Scalar = 1.2,
    use_sign: bool = True,
    noisy_start: bool = False,
    levels: int = 16,
) -> contract.AttackResult:
    """Logit-space projected gradient ascent: climbs the cross-entropy of a relaxed code, and then chooses bins.

    Each pixel has a preference for each bin that the ball of radius epsilon reaches inside [0, 1]. The softmax of these
    at a falling temperature weighs the codes of the bins; steps follow the gradient with respect to the preferences. In
    the end each pixel moves to the closest point of the bin that it prefers most, or stays if no bin is preferred to
    its own. Relaxed codes are no images, so no iterate is kept.

    Args:
      logits_fn: takes codes, also relaxed ones; `ddjax.bind` of an `Encoded` does.
      images: within [0, 1].
      labels: the true classes.
      key: one key or one for each image; may be None without `noisy_start`.
      targets: the classes to reach, for the targeted attack; none may be the true one.
      epsilon: the Linf radius of the ball, at least 0; may be traced, and one for each example.
      step_size: of the preferences, at least 0; may be traced, and one for each example. Steps much below 1 over the
        inverse temperature leave the codes soft, and the attack weak.
      num_steps: of the ascent.
      inverse_temperature: of the first step, above 0; may be traced.
      anneal: by what each step multiplies it, above 0; may be traced.
      use_sign: steps along the sign of the gradient, else along the gradient itself.
      noisy_start: starts from standard normal preferences, else from equal ones.
      levels: of the codes.

    Returns:
      Images within [0, 1] and, up to rounding, epsilon. Their encodings are exactly the codes that were found, and they
      are judged on them. `steps` and `gradients` are `num_steps`.

    Raises:
      ValueError: for bad images, labels or targets (see `attacks.prepare`); settings out of their range.
      TypeError: for a noisy start without a key.

    Departures from the paper:
      Adversarial training took steps of 0.01 there. Bins are allowed exactly where the ball has a point, not where one
      of a few samples of it falls, and the codes come as images that have them.
    """
    checks.check_number("step_size", step_size, least=0.0)
    checks.check_number("inverse_temperature", inverse_temperature, above=0.0)
    checks.check_number("anneal", anneal, above=0.0)
    asked, low, high = _prepare(logits_fn, images, labels, targets, epsilon, num_steps, levels)
    allowed = _allowed(low, high, levels)
    length = examples.per_example(step_size, images)[..., None]
    preferences = jnp.zeros_like(images, shape=allowed.shape)
    if noisy_start:
        keys = problem.example_keys("ls_pga with a noisy start", key, images.shape[0])
        preferences = jax.vmap(lambda key: jax.random.normal(key, allowed.shape[1:], images.dtype))(keys)
    growth = jnp.asarray(anneal, images.dtype)

    def step(_: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        preferences, inverse, zeros = carry

        def total(preferences: Array) -> Array:
            weights = jax.nn.softmax(jnp.where(allowed, inverse * preferences, -jnp.inf))
            relaxed = lax.cumsum(weights, axis=4, reverse=True)
            return _total_loss(logits_fn(relaxed.reshape(*images.shape[:3], -1)), asked.examples)

        # An inverse temperature that has grown to infinity ends the ascent, too; long before, the softmax is one-hot.
        gradient = asked.examples.free(jax.grad(total)(preferences))
        preferences = preferences + length * (jnp.sign(gradient) if use_sign else gradient)
        return preferences, inverse * growth, zeros + examples.is_dead(gradient)

    inverse = jnp.asarray(inverse_temperature, images.dtype)
    preferences, _, zeros = lax.fori_loop(0, num_steps, step, (preferences, inverse, asked.zeros))
    found = _closest(images, _preferred(preferences, allowed, _bins(images, levels)), levels)
    return _result(asked, found, logits_fn(encode(found, levels=levels)), num_steps, zeros)


def dga(
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    *,
    key: Key[Array, "..."] | None = None,
    targets: Labels | None = None,
    epsilon: examples.PerExample = 0.031,
    num_steps: int = 7,
    random_start: bool = True,
    levels: int = 16,
) -> contract.AttackResult:
    """Discrete gradient ascent: each step moves every pixel to the bin that raises the linearized cross-entropy most.

    The gain of a bin is the change of the code times the gradient with respect to it. All pixels move at once. The
    attack returns the visited code, the start included, with the smallest margin of the label, or the largest of the
    target.

    The arguments, results and errors are those of `ls_pga`. With `random_start` it starts at the codes of a uniform
    point of the ball and needs a key, else it starts at the codes of the image.

    Departures from the paper:
      The best of all codes that were visited is returned, not the last. Each is taken by images inside the ball.
    """
    asked, low, high = _prepare(logits_fn, images, labels, targets, epsilon, num_steps, levels)
    allowed = _allowed(low, high, levels)
    start = images
    if random_start:
        keys = problem.example_keys("dga with a random start", key, images.shape[0])
        share = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:], images.dtype))(keys)
        start = jnp.clip(low + share * (high - low), low, high)
    start = _bins(start, levels)

    def rated(codes: Array) -> tuple[Array, Array]:
        logits = logits_fn(codes)
        return _total_loss(logits, asked.examples), logits

    def codes_of(bins: Array) -> Array:
        return encode(_closest(images, bins, levels), levels=levels)

    def keep_better(best: tuple[Array, Array], bins: Array, logits: Array) -> tuple[Array, Array]:
        distance, before = (asked.examples.objective(outputs) for outputs in (logits, best[1]))
        # Any code is better than none, and than one whose logits are not finite.
        better = (distance <= before) | jnp.isnan(before)
        return jnp.where(better[:, None, None, None], bins, best[0]), jnp.where(better[:, None], logits, best[1])

    def step(_: Array, carry: tuple[Array, Array, tuple[Array, Array]]) -> tuple[Array, Array, tuple[Array, Array]]:
        bins, zeros, best = carry
        gradient, logits = jax.grad(rated, has_aux=True)(codes_of(bins))
        gradient = asked.examples.free(gradient).reshape(allowed.shape)
        zeros = zeros + examples.is_dead(gradient)
        # The code of bin k has the bits up to k, so its gain is their sum, up to a constant.
        return _preferred(lax.cumsum(gradient, axis=4), allowed, bins), zeros, keep_better(best, bins, logits)

    outputs = jax.eval_shape(logits_fn, codes_of(start))
    worst = jnp.full_like(images, jnp.nan, outputs.dtype, shape=outputs.shape)
    last, zeros, best = lax.fori_loop(0, num_steps, step, (start, asked.zeros, (start, worst)))
    bins, logits = keep_better(best, last, logits_fn(codes_of(last)))
    return _result(asked, _closest(images, bins, levels), logits, num_steps, zeros)


def ls_pga_examples(
    logits_fn: LogitsFn, images: Images, labels: Labels, keys: Keys, *, epsilon: float, num_steps: int, levels: int
) -> Images:
    """The adversarial images of `ls_pga`, for adversarial training of networks of codes with so many levels."""
    return ls_pga(logits_fn, images, labels, key=keys, epsilon=epsilon, num_steps=num_steps, levels=levels).inputs


def _edges(levels: int, dtype: np.dtype) -> np.ndarray:
    """The lower ends of the bins; a table to compare with, since XLA may round a product in more than one way."""
    checks.check_number("levels", levels, least=2.0)
    # A value that another transform has rounded to just below zero is in the first bin, too.
    return np.append(-np.inf, np.arange(1, levels) / levels).astype(dtype)


def _reached(images: Array, levels: int) -> Bool[Array, "B H W C L"]:
    """Which levels each pixel reaches."""
    edges = _edges(levels, images.dtype)
    return images[..., None] >= jnp.asarray(edges).reshape(1, 1, 1, 1, -1)


def _bins(images: Array, levels: int) -> Int[Array, "B H W C"]:
    return jnp.sum(_reached(images, levels), axis=4, dtype=jnp.int32) - 1


def _prepare(
    logits_fn: LogitsFn, images: Array, labels: Array, targets: Array | None, epsilon: Any, num_steps: int, levels: int
) -> tuple[problem.Problem, Array, Array]:
    """Refuses bad arguments; the least and greatest value of each pixel in the ball and the box."""
    checks.check_number("epsilon", epsilon, least=0.0)
    checks.check_number("num_steps", num_steps, least=1.0)
    of_images = transformed(logits_fn, transform(encode, levels=levels))
    asked = problem.prepare("thermometer", of_images, images, labels, targets=targets)
    # A traced radius may be anything; one out of range moves nothing.
    radius = examples.per_example(epsilon, images)
    radius = jnp.where(jnp.isfinite(radius) & (radius > 0), radius, 0.0)
    return asked, jnp.maximum(images - radius, 0.0), jnp.minimum(images + radius, 1.0)


def _allowed(low: Array, high: Array, levels: int) -> Bool[Array, "B H W C L"]:
    """Which bins have a point between the two."""
    bins = jnp.arange(levels, dtype=jnp.int32).reshape(1, 1, 1, 1, -1)
    return (bins >= _bins(low, levels)[..., None]) & (bins <= _bins(high, levels)[..., None])


def _preferred(scores: Array, allowed: Array, current: Array) -> Int[Array, "B H W C"]:
    """The allowed bin with the highest score; the current one where it is among the highest."""
    scores = jnp.where(allowed, scores, -jnp.inf)
    is_current = jax.nn.one_hot(current, scores.shape[4], dtype=bool)
    own = jnp.max(jnp.where(is_current, scores, -jnp.inf), axis=4)
    return jnp.where(own >= jnp.max(scores, axis=4), current, jnp.argmax(scores, axis=4).astype(current.dtype))


def _closest(images: Array, bins: Array, levels: int) -> Array:
    """The point of each bin that is closest to the pixel."""
    lowest = _edges(levels, images.dtype)
    # A bin ends before the next begins, and the last one at 1.
    highest = np.append(np.nextafter(lowest[1:], lowest[:-1]), np.ones_like(lowest[:1]))
    return jnp.clip(images, jnp.asarray(lowest)[bins], jnp.asarray(highest)[bins])


def _total_loss(logits: Array, asked: examples.Examples) -> Array:
    """What the attacks raise; the sum, so that the gradient of an example does not depend on the batch."""
    if asked.targets is None:
        return jnp.sum(losses.cross_entropy(logits, asked.labels))
    return -jnp.sum(losses.cross_entropy(logits, asked.targets))


def _result(
    asked: problem.Problem, images: Array, logits: Array, num_steps: int, zero_gradients: Array
) -> contract.AttackResult:
    count = asked.zeros + num_steps
    return asked.result(images, logits, steps=count, gradients=count, queries=count + 1, zero_gradients=zero_gradients)


DEFENSES = (
    declare(encode, name="thermometer", images=True, gradient="substitute", substitute=ramp, view=decode, levels=16),
)
ADVERSARIES = (DeclaredAdversary("ls_pga", ls_pga_examples),)
