"""The defenses that search with a generative model, each beside the plainer ways to the same result."""

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ddjax import generative, layers, metrics, rounding
from ddjax.defenses import defense_gan, pixel_defend
from ddjax.generative import pixelcnn

from ..recipes import generative as generative_recipes
from . import measure
from .measure import Context, Side

Sides = dict[str, Side | Callable[[], Side]]
# What is made where no trained model is given. Time does not depend on the weights.
_RECIPES = {"density": "pixelcnn_mnist", "generator": "gan_mnist"}
_EPSILON = 16 / 255
# The plain loop is left out where it evaluates the network for more pixels than this: it would take minutes.
_MOST_PIXELS = 2**22
_STEPS, _RESTARTS = 20, 4
# What stands beside all starts at once.
_IN_TURN, _CALLS = "starts in turn", "a call for each start"
# Turns; the plain ways are slow enough for few to tell.
_REPETITIONS = 3


class _Model(NamedTuple):
    """A generative model: its recipe, what a defense takes of it, the length of its codes, and what its weights are."""

    recipe: str
    model_fn: Any
    latent: int
    weights: str


def _model(context: Context, role: str) -> _Model:
    """The model of a role that was given, or one before its training."""
    name, state = context.models.get(role, (_RECIPES[role], None))
    weights = "untrained" if state is None else "trained"
    if state is None:
        recipe = generative_recipes.RECIPES[name]
        state = generative_recipes.create_state(recipe, context.test.image_shape, jax.random.key(context.seed))
    return _Model(name, generative.model_fn(state), generative.latent_of(state), weights)


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
    for batch in context.batches:
        images = jnp.asarray(context.images[:batch])
        # What each side made last, for the comparison of values.
        made: dict[str, jax.Array] = {}

        def side(
            name: str,
            purify: Callable[[Any, jax.Array], jax.Array],
            evaluations: int | None,
            images: jax.Array = images,
            made: dict[str, jax.Array] = made,
        ) -> Side:
            compiled = layers.jit(purify).lower(model.model_fn, images).compile()

            def call() -> None:
                made[name] = jax.block_until_ready(compiled(model.model_fn, images))

            def describe(_: None) -> dict[str, Any]:
                moved, equal = metrics.distances(images, made[name]).l2, made[name] == made["ddjax"]
                return {
                    "norm": "l2",
                    "mean_distance": float(moved.mean()),
                    "equal_pixels": None if name == "ddjax" else float(equal.mean()),
                    "network_evaluations": evaluations,
                    "weights": model.weights,
                    "image_shape": _shape(images),
                    "program_bytes": measure.bytes_of(compiled),
                }

            return Side(call, len(images), describe)

        sides: Sides = {"ddjax": functools.partial(side, "ddjax", _purified, None)}
        if batch * pixels**2 <= _MOST_PIXELS:
            name = "whole network for each pixel"
            sides[name] = functools.partial(side, name, _purified_plainly, pixels)
        else:
            print(f"purify (batch {batch}): the plain loop, of {pixels} evaluations, is left out: it takes minutes")
        where = {"work": "purify", "network": model.recipe, "batch": batch}
        repetitions = min(context.repetitions, _REPETITIONS)
        measure.compare(context.run, where, sides, unit="image", repetitions=repetitions)


def _shape(images: jax.Array) -> str:
    return " x ".join(map(str, images.shape[1:]))


def _reconstruct(context: Context) -> None:
    """Defense-GAN's reconstruction, all starts at once, beside one after the other, in one program and in several."""
    model = _model(context, "generator")
    for batch in context.batches:
        images = jnp.asarray(context.images[:batch])
        starts = jax.random.normal(jax.random.key(context.seed), (_RESTARTS, batch, model.latent))
        # The errors of each side.
        errors: dict[str, np.ndarray] = {}
        side = functools.partial(_search_side, model, images, starts, errors)
        sides: Sides = {name: functools.partial(side, name) for name in ("ddjax", _IN_TURN, _CALLS)}
        where = {"work": "reconstruct", "network": model.recipe, "batch": batch}
        measure.compare(context.run, where, sides, unit="image", repetitions=context.repetitions)


def _descend(generator_fn: Any, images: jax.Array, starts: jax.Array) -> tuple[jax.Array, jax.Array]:
    return defense_gan.descend(images, starts, generator_fn, num_steps=_STEPS)


def _in_turn(generator_fn: Any, images: jax.Array, starts: jax.Array) -> tuple[jax.Array, jax.Array]:
    codes, errors = lax.map(lambda start: _descend(generator_fn, images, start[None]), starts)
    return codes[:, 0], errors[:, 0]


def _search_side(model: _Model, images: jax.Array, starts: jax.Array, errors: dict[str, np.ndarray], name: str) -> Side:
    """A way to the same codes: the starts in one call or in several."""

    def choose(generator_fn: Any, codes: Any, errors: Any) -> tuple[jax.Array, jax.Array]:
        codes, errors = jnp.concatenate(codes), jnp.concatenate(errors)
        best = jnp.argmin(errors, axis=0)[None]
        chosen = jnp.take_along_axis(codes, best[:, :, None], axis=0)[0]
        return generator_fn(chosen), jnp.min(errors, axis=0)

    parts = jnp.split(starts, _RESTARTS) if name == _CALLS else [starts]
    descend = layers.jit(_in_turn if name == _IN_TURN else _descend)
    compiled = descend.lower(model.model_fn, images, parts[0]).compile()
    best = layers.jit(choose)

    def call() -> None:
        found = [jax.block_until_ready(compiled(model.model_fn, images, part)) for part in parts]
        made = jax.block_until_ready(best(model.model_fn, *zip(*found, strict=True)))
        errors[name] = np.asarray(made[1])

    return Side(call, len(images), _describe(model, images, name, errors, measure.bytes_of(compiled)))


def _describe(
    model: _Model, images: jax.Array, name: str, errors: Mapping[str, np.ndarray], program_bytes: int | None
) -> Callable[[Any], dict[str, Any]]:
    def describe(_: None) -> dict[str, Any]:
        difference = np.abs(errors[name] - errors["ddjax"]).max() / errors["ddjax"].mean()
        return {
            "mean_error": float(errors[name].mean()),
            # Relative to the mean.
            "max_error_difference": None if name == "ddjax" else float(difference),
            "restarts": _RESTARTS,
            "num_steps": _STEPS,
            "weights": model.weights,
            "image_shape": _shape(images),
            "program_bytes": program_bytes,
        }

    return describe


WORK: Mapping[str, measure.Work] = types.MappingProxyType({"purify": _purify, "reconstruct": _reconstruct})
