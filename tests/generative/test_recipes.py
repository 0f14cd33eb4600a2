import json
import math

import jax
import jax.numpy as jnp
import pytest

from ddjax import checkpoints, generative
from ddjax.generative import gan, pixelcnn
from launch import recipes
from launch.recipes import generative as generative_recipes
from launch.recipes.generative import MODELS, RECIPES

# Adam's integer power.
pytestmark = pytest.mark.usefixtures("optax_promotion")
SHAPES = {"mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_its_model(name):
    recipe = RECIPES[name]
    assert recipe.name == name
    assert recipe.model in MODELS
    shape = SHAPES[recipe.dataset]
    # Shapes alone, since the largest has 50 million parameters.
    made = jax.eval_shape(lambda key: generative_recipes.create_state(recipe, shape, key), jax.random.key(0))
    # A checkpoint describes it by JSON values, and builds it again from them.
    assert checkpoints.build(json.loads(json.dumps(checkpoints.describe(made.network)))) == made.network
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(made.params)) > 10_000
    if recipe.model == "gan":
        assert (recipe.role, generative.latent_of(made)) == ("generator", made.network.generator.latent)
        assert isinstance(made.network, gan.Gan)
        codes = jax.ShapeDtypeStruct((2, generative.latent_of(made)), jnp.float32)
        images = jax.eval_shape(lambda state, codes: generative.model_fn(state)(codes), made, codes)
        assert images.shape == (2, *shape)
    else:
        assert (recipe.role, generative.latent_of(made)) == ("density", 0)
        assert isinstance(made.network, pixelcnn.PixelCNN)
        assert jax.tree.structure(made.ema_params) == jax.tree.structure(made.params)
        # Its running mean is what is used.
        assert jax.tree.leaves(generative.model_fn(made)) == jax.tree.leaves(made.ema_params)


def test_an_epoch_is_one_object_for_one_program():
    first, second = (generative_recipes.epoch_fn(RECIPES["gan_mnist"]) for _ in range(2))
    assert first is second
    assert generative_recipes.epoch_fn(RECIPES["gan_mnist_full"]) is not first


def test_names_are_of_one_kind_of_recipe():
    assert not RECIPES.keys() & recipes.RECIPES.keys()
    assert {recipe.dataset for recipe in RECIPES.values()} <= SHAPES.keys()
    # What the others do not train on is left to who attacks their defenses.
    assert RECIPES["pixelcnn_mnist"].skip == RECIPES["gan_mnist"].skip
