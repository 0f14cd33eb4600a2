import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import data, models
from launch import recipes


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_recipes_are_whole(name):
    recipe = recipes.get(name)
    assert recipe.name == name
    assert f"--recipe={name}" in recipe.description or name == "digits"
    models.build(recipe.network, 10)
    assert recipe.augmentation is None or recipe.augmentation in data.AUGMENTATIONS
    recipes.make_optimizer(recipe, 100).init({"w": jnp.zeros(2)})


def updates_of_ones(recipe, steps_per_epoch, count):
    optimizer = recipes.make_optimizer(recipe, steps_per_epoch)
    weights = {"w": jnp.zeros(())}
    state, updates = optimizer.init(weights), []
    for _ in range(count):
        update, state = optimizer.update({"w": jnp.ones(())}, state, weights)
        updates.append(-float(update["w"]))
    return updates


def test_papernot_cifar10_halves_rate_and_momentum_every_ten_epochs():
    # Two steps an epoch: the first twenty at 0.01 and 0.9, the next at half of both.
    velocity, expected = 0.0, []
    for step in range(25):
        rate, momentum = (0.01, 0.9) if step < 20 else (0.005, 0.45)
        velocity = momentum * velocity + 1
        expected.append(rate * velocity)
    np.testing.assert_allclose(updates_of_ones(recipes.get("papernot_cifar10"), 2, 25), expected, rtol=1e-5)


def test_carlini_mnist_is_nesterov_with_keras_decay():
    velocity, expected = 0.0, []
    for step in range(5):
        velocity = 0.9 * velocity + 1
        expected.append(0.01 / (1 + 1e-6 * step) * (0.9 * velocity + 1))
    np.testing.assert_allclose(updates_of_ones(recipes.get("carlini_mnist"), 100, 5), expected, rtol=1e-5)


@pytest.mark.usefixtures("optax_promotion")
def test_animals10_is_adam_at_a_tenth_of_its_rate_from_the_tenth_epoch_on():
    # Of a constant gradient, Adam's update is the rate.
    updates = updates_of_ones(recipes.get("animals10"), 2, 30)
    np.testing.assert_allclose(updates, [1e-4] * 20 + [1e-5] * 10, rtol=1e-4)


def test_the_same_optimizer_object_for_the_same_recipe():
    recipe = recipes.get("digits")
    assert recipes.make_optimizer(recipe, 7) is recipes.make_optimizer(recipe, 7)


def test_unknown_recipe_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown recipe 'mnist'; known: digits, breast_cancer, wine, papernot_mnist"):
        recipes.get("mnist")
