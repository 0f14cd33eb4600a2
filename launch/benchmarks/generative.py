"""The defenses that search with a generative model, each beside the plainer ways to the same result."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ddjax import checkpoints, data, generative, layers, metrics, rounding
from ddjax.defenses import defense_gan, models, pixel_defend
from ddjax.generative import pixelcnn

from ..recipes import generative as generative_recipes
from . import measure
from .measure import Context, Maker, Side

# What is made where no trained model is given. Time does not depend on the weights.
_RECIPES = {"density": "pixelcnn_mnist", "generator": "gan_mnist"}
_EPSILON = 16 / 255
# The plain loop is left out where it evaluates the network for more pixels than this: it would take minutes.
_MOST_PIXELS = 2**22
_STEPS, _RESTARTS = 20, 4
# Turns; the plain ways are slow enough for few to tell.
_TURNS = 3


def load(checkpoint: str, role: str, image_shape: tuple[int, int, int]) -> tuple[str, Any]:
    """A trained model for `Context.models`.

    Raises:
      MissingModelError: where there is none, with the recipe that trains one.
    """
    try:
        state = models.load(checkpoint, role, image_shape)
    except models.MissingModelError as error:
        advice = f"train it with: python -m launch.train --recipe={_RECIPES[role]}"
        raise models.MissingModelError(role, f"{error}; {advice}") from error
    return checkpoints.read_spec(checkpoint).recipe, state


class _Model(NamedTuple):
    """A generative model: its recipe, what a defense takes of it, the length of its codes, and fields of records."""

    recipe: str
    model_fn: Any
    latent: int
    fields: dict[str, Any]


def _model(context: Context, role: str) -> _Model:
    """The model of a role that was given, or one before its training."""
    name, state = context.models.get(role, (_RECIPES[role], None))
    fields = {
        "weights": "untrained" if state is None else "trained",
        "image_shape": " x ".join(map(str, context.test.image_shape)),
    }
    if state is None:
        recipe = generative_recipes.RECIPES[name]
        image_shape = data.check_images(context.test, name)
        state = generative_recipes.create_state(recipe, image_shape, jax.random.key(context.seed))
    return _Model(name, generative.model_fn(state), generative.latent_of(state), fields)


def _pixel_after_pixel(density: Any, levels: jax.Array, choose: pixelcnn.Choose) -> jax.Array:
    """In the place of `pixelcnn.autoregress`: the whole network once for each pixel, with nothing kept."""
    height, width = levels.shape[1:3]

    def of_pixel(place: jax.Array, images: jax.Array) -> jax.Array:
        row, column = place // width, place % width
        start = (jnp.zeros_like(row), row, column, jnp.zeros_like(row))
        at = lambda array: lax.dynamic_slice(array, start, (len(array), 1, 1, array.shape[3]))
        chosen = choose(at(density(images))[:, 0, 0], at(images)[:, 0, 0], row, column)
        return lax.dynamic_update_slice(images, chosen[:, None, None].astype(images.dtype), start)

    return lax.fori_loop(0, height * width, of_pixel, levels)


def _purified(density: Any, images: jax.Array) -> jax.Array:
    return pixel_defend.purify(images, density, epsilon=_EPSILON)


def _purified_plainly(density: Any, images: jax.Array) -> jax.Array:
    return rounding.round_to_levels(_pixel_after_pixel(density, *pixel_defend.greedy(images, _EPSILON)) / 255, 256)


def _purify(context: Context) -> None:
    """PixelDefend's purification, which keeps what has been computed, beside a loop that keeps nothing."""
    model = _model(context, "density")
    pixels = int(np.prod(context.test.image_shape[:2]))

    def side(name: str, purify: Any, evaluations: int | None, images: jax.Array, made: dict[str, jax.Array]) -> Maker:
        def describe(purified: jax.Array) -> dict[str, Any]:
            made[name] = purified
            return model.fields | {
                "norm": "l2",
                "mean_distance": float(metrics.distances(images, purified).l2.mean()),
                "equal_pixels": None if name == "ddjax" else float((purified == made["ddjax"]).mean()),
                "network_evaluations": evaluations,
            }

        return measure.program(purify, model.model_fn, images, units=len(images), fields=describe)

    for batch in context.batches:
        ways: dict[str, tuple[Any, int | None]] = {"ddjax": (_purified, None)}
        if batch * pixels**2 <= _MOST_PIXELS:
            ways["whole network for each pixel"] = (_purified_plainly, pixels)
        else:
            print(f"purify (batch {batch}): the plain loop, of {pixels} evaluations, is left out: it takes minutes")
        given = (jnp.asarray(context.images[:batch]), {})
        sides = {name: side(name, *way, *given) for name, way in ways.items()}
        measure.compare(context, "purify", sides, unit="image", most_turns=_TURNS, network=model.recipe, batch=batch)


def _descend(generator_fn: Any, images: jax.Array, starts: jax.Array) -> tuple[jax.Array, jax.Array]:
    return defense_gan.descend(images, starts, generator_fn, num_steps=_STEPS)


def _in_turn(generator_fn: Any, images: jax.Array, starts: jax.Array) -> tuple[jax.Array, jax.Array]:
    codes, errors = lax.map(lambda start: _descend(generator_fn, images, start[None]), starts)
    return codes[:, 0], errors[:, 0]


def _best(generator_fn: Any, codes: Sequence[jax.Array], errors: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """What was reconstructed from the best start of each image, and its error."""
    best = jnp.argmin(jnp.concatenate(errors), axis=0)[None]
    chosen = jnp.take_along_axis(jnp.concatenate(codes), best[:, :, None], axis=0)[0]
    return generator_fn(chosen), jnp.min(jnp.concatenate(errors), axis=0)


def _reconstruct(context: Context) -> None:
    """Defense-GAN's reconstruction, all starts at once, beside one after the other, in one program and in several."""
    model = _model(context, "generator")

    def side(name: str, descend: Any, parts: Sequence[jax.Array], images: jax.Array, made: dict[str, Any]) -> Side:
        compiled = layers.jit(descend).lower(model.model_fn, images, parts[0]).compile()
        best = layers.jit(_best)

        def call() -> tuple[jax.Array, jax.Array]:
            found = [jax.block_until_ready(compiled(model.model_fn, images, part)) for part in parts]
            return jax.block_until_ready(best(model.model_fn, *zip(*found, strict=True)))

        def describe(result: tuple[jax.Array, jax.Array]) -> dict[str, Any]:
            errors = made[name] = np.asarray(result[1])
            # Relative to the mean.
            difference = float(np.abs(errors - made["ddjax"]).max() / made["ddjax"].mean())
            return model.fields | {
                "mean_error": float(errors.mean()),
                "max_error_difference": None if name == "ddjax" else difference,
                "restarts": _RESTARTS,
                "num_steps": _STEPS,
                "program_bytes": measure.bytes_of(compiled),
            }

        return Side(call, len(images), describe)

    for batch in context.batches:
        images = jnp.asarray(context.images[:batch])
        starts = jax.random.normal(jax.random.key(context.seed), (_RESTARTS, batch, model.latent))
        ways = {
            "ddjax": (_descend, [starts]),
            "starts in turn": (_in_turn, [starts]),
            "a call for each start": (_descend, jnp.split(starts, _RESTARTS)),
        }
        made: dict[str, Any] = {}
        sides = {name: functools.partial(side, name, *way, images, made) for name, way in ways.items()}
        measure.compare(context, "reconstruct", sides, unit="image", network=model.recipe, batch=batch)


WORK = {"purify": _purify, "reconstruct": _reconstruct}
