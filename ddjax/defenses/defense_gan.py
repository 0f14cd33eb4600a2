"""Defense-GAN: each image is replaced by the nearest one that a generator makes; and two attacks on this defense.

Reference:
  Samangouei, Kabkab and Chellappa, Defense-GAN: Protecting Classifiers Against Adversarial Attacks Using Generative
  Models, 2018 (arXiv 1805.06605), section 4, with the settings of the authors' code.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from ddjax import checks, generative
from ddjax.attacks import carlini_wagner, contract, examples, problem
from ddjax.attacks.carlini_wagner import search
from ddjax.classifier import LogitsFn, as_pytree
from ddjax.defenses import models
from ddjax.defenses.declaration import PREPARED, declare
from ddjax.defenses.images import Images, Keys, Labels, Scalar, check_images, widened

# From codes `[B, L]` to images `[B, H, W, C]` in [0, 1]; a pytree whose leaves are the parameters.
GeneratorFn = Callable[[Array], Array]
# The last fifth of the steps are this much shorter.
_LATE, _SHORTER = 0.8, 0.1


def invert(
    images: Images,
    keys: Keys,
    generator_fn: GeneratorFn,
    *,
    latent: int,
    num_steps: int = 200,
    restarts: int = 10,
    learning_rate: Scalar = 10.0,
    momentum: Scalar = 0.7,
) -> tuple[Float[Array, "B L"], Float[Array, " B"]]:
    """Searches for the codes whose images are the nearest.

    Minimizes the squared difference of the pixels, their mean over an image, by gradient descent with momentum, from
    several starts of which the best end counts. Examples do not influence each other.

    Args:
      images: within [0, 1].
      keys: one for each image. Starts are drawn from the standard normal distribution, the r-th from the key folded
        with r: more of them never do worse.
      generator_fn: from codes to images, such as `ddjax.generative.gan.generator_fn` makes.
      latent: the length of a code, L.
      num_steps: of descent, at least 1.
      restarts: the number of starts, at least 1.
      learning_rate: above 0; a tenth of it in the last fifth of the steps; may be traced. That of the authors, whose
        generator ends in a sigmoid and whose error is the mean over the pixels.
      momentum: what is kept of the last step, in [0, 1); may be traced.

    Returns:
      The codes, and the mean squared error of each image that they make. Neither carries a gradient.

    Raises:
      ValueError: for a generator whose images have another shape, or a setting out of its range.

    Departures from the paper:
      The authors' code chooses among the starts by the errors before the last step, and draws starts of 1 / L of the
      variance that the generator was trained on.
    """
    checks.check_number("learning_rate", learning_rate, above=0.0)
    checks.check_number("momentum", momentum, least=0.0, below=1.0)
    for name, value in (("latent", latent), ("num_steps", num_steps), ("restarts", restarts)):
        checks.check_whole_number(name, value, least=1)
    start = lambda key: jax.random.normal(key, (latent,), jnp.float32)
    draw = lambda restart: jax.vmap(lambda key: start(jax.random.fold_in(key, restart)))(keys)
    starts = jax.vmap(draw)(jnp.arange(restarts, dtype=jnp.int32))
    settings = {"num_steps": num_steps, "learning_rate": learning_rate, "momentum": momentum}
    codes, errors = descend(images, starts, generator_fn, **settings)
    best = jnp.argmin(jnp.where(jnp.isfinite(errors), errors, jnp.inf), axis=0)[None]
    chosen = jnp.take_along_axis(codes, best[:, :, None], axis=0)[0]
    return chosen, jnp.take_along_axis(errors, best, axis=0)[0]


def descend(
    images: Images,
    starts: Float[Array, "R B L"],
    generator_fn: GeneratorFn,
    *,
    num_steps: int = 200,
    learning_rate: Scalar = 10.0,
    momentum: Scalar = 0.7,
) -> tuple[Float[Array, "R B L"], Float[Array, "R B"]]:
    """The descent of `invert`, whose arguments and errors it has, from given codes as starts, all at once.

    One after the other takes less memory and, on two cores of a CPU too, more time for several images; `python -m
    launch.benchmark --work=reconstruct` measures it.

    Returns:
      The codes where each descent ends, and the mean squared error of the images that they make.
    """
    images, generator_fn = lax.stop_gradient((images, as_pytree(generator_fn)))
    made = jax.eval_shape(generator_fn, starts[0]).shape
    if made != images.shape:
        raise ValueError(f"the generator makes images of the shape {made[1:]}, not {images.shape[1:]}")
    rate, late = jnp.asarray(learning_rate, images.dtype), math.ceil(_LATE * num_steps)

    def errors_of(codes: Array) -> Array:
        return jnp.mean((generator_fn(codes) - images) ** 2, axis=(1, 2, 3))

    def from_one(codes: Array) -> tuple[Array, Array]:
        def step(index: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            codes, velocity = state
            # The sum, so that each example's gradient is its own whatever the batch.
            gradient = jax.grad(lambda codes: jnp.sum(errors_of(codes)))(codes)
            velocity = momentum * velocity + jnp.where(jnp.isfinite(gradient), gradient, 0)
            return codes - jnp.where(index < late, rate, _SHORTER * rate) * velocity, velocity

        codes, _ = lax.fori_loop(0, num_steps, step, (codes, jnp.zeros_like(codes)))
        return codes, errors_of(codes)

    return jax.vmap(from_one)(starts)


def reconstruct(
    images: Images,
    keys: Keys,
    generator_fn: GeneratorFn,
    *,
    latent: int,
    num_steps: int = 200,
    restarts: int = 10,
    learning_rate: Scalar = 10.0,
    momentum: Scalar = 0.7,
) -> Images:
    """Replaces each image by the nearest one found among those of a generator, by `invert` with these arguments.

    The images carry no gradient; attacks on the defense use `ddjax.bpda` or `ddjax.reparameterized`.
    """
    settings = {"num_steps": num_steps, "restarts": restarts, "learning_rate": learning_rate, "momentum": momentum}
    check_images("Defense-GAN", images)
    codes, _ = invert(widened(images).astype(jnp.float32), keys, generator_fn, latent=latent, **settings)
    return lax.stop_gradient(generator_fn(codes)).astype(images.dtype)


def load_generator(
    images: Any, key: Any, *, model: str = "runs/train_gan_mnist/checkpoints/seed0_none/generator"
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Loads the generator that `reconstruct` takes, for images of this shape; see `ddjax.defenses.models.load`.

    Returns:
      The generator, and the length of its codes as the setting `latent`.
    """
    del key
    state = models.load(model, "generator", images.shape[1:])
    return (generative.model_fn(state),), {"latent": generative.latent_of(state)}


def manifold_attack(
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    *,
    key: Key[Array, "..."] | None = None,
    generator_fn: GeneratorFn,
    latent: int,
    codes: Float[Array, "B L"] | None = None,
    targets: Labels | None = None,
    confidence: examples.PerExample = 0.0,
    learning_rate: Scalar = 0.1,
    initial_const: Scalar = 1.0,
    search_steps: int = 5,
    num_steps: int = 1000,
    abort_early: bool = True,
    inversion: Mapping[str, Any] | None = None,
) -> contract.AttackResult:
    """Finds an image of the generator that is near in L2 and decided otherwise: the attack by reparameterization.

    Inverts the image, and from the code z that it finds on minimizes ||G(z) - x||^2 + c (max(Z_other - Z_target) +
    confidence)^+ over z, for the constants c of `ddjax.attacks.carlini_wagner_l2`. An image of the generator is what a
    perfect reconstruction gives back, so that an attack which succeeds on the classifier breaks the defense in theory.
    The evaluation tells whether the reconstruction as deployed gives it back: judge the images by the defended
    classifier.

    `logits_fn` is the classifier behind the reconstruction. The settings of the search are those of
    `ddjax.attacks.carlini_wagner_l2`; the learning rate is that of Adam on the codes, and the authors' code takes
    30,000 steps. The search starts from `codes` or, where they are None, from those that `invert` finds with the
    settings `inversion`; only `invert` needs the key, which is one or one for each image. The generator makes images
    within [0, 1].

    Returns:
      The closest images of the generator that have the margin, or the clean image, as no success, where there was
      none. `steps` and `gradients` count those of the search; the inversion takes no gradients of the classifier.

    Raises:
      ValueError: for bad images, labels or targets (see `attacks.prepare`), codes of another shape, or a setting out of
        its range.
      TypeError: for neither key nor codes.

    Reference:
      Athalye, Carlini and Wagner, Obfuscated Gradients Give a False Sense of Security, 2018 (arXiv 1802.00420),
      section 5.4.

    Departures from the authors' code:
      The closest success is returned, not the latest. The margin is one of logits, not of logarithms of probabilities,
      which differ by the same number for all classes. The inversion is the defense's, by descent with momentum.
    """
    for name, count in (("search_steps", search_steps), ("num_steps", num_steps)):
        checks.check_whole_number(name, count, least=1)
    for name, value in (("learning_rate", learning_rate), ("initial_const", initial_const)):
        checks.check_number(name, value, above=0.0)
    checks.check_number("confidence", confidence, least=0.0)
    asked = problem.prepare("manifold_attack", logits_fn, images, labels, key=key, targets=targets)
    if codes is None:
        keys = problem.example_keys("manifold_attack", key, len(images))
        codes, _ = invert(images, keys, generator_fn, latent=latent, **inversion or {})
    elif codes.shape != (len(images), latent):
        raise ValueError(f"codes must be of the shape {(len(images), latent)}, got {codes.shape}")

    def view(variable: Array) -> tuple[Array, search.Pull]:
        made, pull = jax.vjp(generator_fn, variable)

        def finite(gradient: Array) -> Array:
            (found,) = pull(gradient)
            return jnp.where(jnp.isfinite(found), found, 0)

        return made, finite

    rates = {"learning_rate": learning_rate, "initial_const": initial_const}
    steps = {"search_steps": search_steps, "num_steps": num_steps, "abort_early": abort_early}
    return carlini_wagner.search_l2(asked, view, codes, restrict=None, confidence=confidence, **rates, **steps)


def carried_attack(
    logits_fn: LogitsFn,
    images: Images,
    labels: Labels,
    *,
    key: Key[Array, "..."] | None = None,
    generator_fn: GeneratorFn,
    latent: int,
    epsilon: examples.PerExample,
    confidence: examples.PerExample = 5.0,
    inversion: Mapping[str, Any] | None = None,
    **settings: Any,
) -> contract.AttackResult:
    """Changes images within an L2 ball as the reconstruction would have to change to be decided otherwise.

    A clean image is not one of the generator's, and most of the ball is the distance to those, which `manifold_attack`
    has to cover. This attack keeps the residual x - G(z0) of the reconstruction G(z0): it searches from G(z0) for the
    nearest image G(z) of the generator that is decided otherwise with the confidence, and returns x + G(z) - G(z0),
    scaled to the radius. The attack works as far as the reconstruction follows this change.

    `epsilon` is the radius in L2, above 0; it may be traced, and one for each example. The other arguments are those of
    `manifold_attack`. The confidence should be above 0, since the reconstruction follows only so far.

    Returns:
      Images within the ball and the box; the clean one where nothing was found. Success says that an image of the
      generator was found, and the logits are those of that. The evaluation tells whether the reconstruction follows:
      judge the images by the defended classifier.

    Raises:
      ValueError: as `manifold_attack`, or for a radius that is not above 0.

    Reference:
      The change of variables is that of Athalye, Carlini and Wagner, 2018 (arXiv 1802.00420), section 5.4. To carry the
      difference over to the image is this project's own.
    """
    problem.prepare("carried_attack", logits_fn, images, labels, targets=settings.get("targets"))
    checks.check_number("epsilon", epsilon, above=0.0)
    keys = problem.example_keys("carried_attack", key, images.shape[0])
    codes, _ = invert(images, keys, generator_fn, latent=latent, **inversion or {})
    made = lax.stop_gradient(generator_fn(codes))
    through = {"generator_fn": generator_fn, "latent": latent, "codes": codes, "confidence": confidence}
    found = manifold_attack(logits_fn, made, labels, **through, **settings)
    change = found.inputs - made
    length = examples.norm(change)[:, None, None, None]
    scale = jnp.where(length > 0, examples.per_example(epsilon, images) / jnp.where(length > 0, length, 1.0), 0.0)
    return dataclasses.replace(found, inputs=jnp.clip(images + scale * change, 0.0, 1.0))


DEFENSES = (
    declare(
        reconstruct,
        name="defense_gan",
        images=True,
        prepare=load_generator,
        gradient="straight-through",
        random=True,
        # A draw is the best of several starts: another one changes it little.
        averages=True,
        latent=PREPARED,
    ),
)
