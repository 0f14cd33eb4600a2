"""What recipes are, and the network, the optimizer and the training that the recipe of a classifier names."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ddjax import data, defenses, models, training
from ddjax.defenses import thermometer
from ddjax.training import adversaries


# Compared by identity: optimizers and programs are cached by recipe.
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class BaseRecipe:
    """What all recipes have, those of classifiers and those of generative models.

    Attributes:
      name: what `--recipe` takes.
      description: what it is, its command, its cost and the result to expect.
      dataset: a name for `ddjax.data.load`.
      epochs: passes over the training set, for each network.
      batch_size: examples of a step; of a GAN, of one step of the critic.
      learning_rate: at the start.
      skip: the first rows of the training split that are left out, as the papers hold them out for validation.
      num_train: a stratified subset of this size for training; None for all.
      num_test: the same for testing.
    """

    name: str
    description: str
    dataset: str
    epochs: int
    batch_size: int
    learning_rate: float
    skip: int = 0
    num_train: int | None = None
    num_test: int | None = None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Recipe(BaseRecipe):
    """How to train a classifier and attack it.

    Attributes:
      network: a name for `ddjax.models.build`, or `package.module:name` of one that a module declares.
      optimizer: `"sgd"` or `"adam"`.
      momentum: of SGD, at the start.
      nesterov: whether the momentum is Nesterov's.
      decay: multiplies the learning rate at every `decay_epochs`-th epoch.
      decay_epochs: 0 for never.
      momentum_decays: whether SGD's momentum is multiplied, too.
      weight_decay: w in the loss's additional w/2 times the squared norm of all kernels.
      inverse_decay: d in learning_rate / (1 + d step), as in Keras.
      warm_start_epochs: see `training.Settings`.
      augmentation: a name of `ddjax.data.AUGMENTATIONS`, how training images are varied; None for not.
      transform: a defense of `launch.evaluate` through which training and test images go once, before all else; None
        for as they are.
      adversary: a name of `ddjax.training.adversaries.REGISTRY`, which makes adversarial images of every batch; None
        for clean ones.
      adversary_epsilon: the radius in Linf, for images in [0, 1].
      adversary_steps: the steps of the attack.
      thermometer_levels: of the code of a pixel, where the network learns thermometer codes; 0 for pixels.
      class_weights: see `training.Settings`.
      image_size: height and width to which images of a folder are resized.
      jsma_features: the largest number of features JSMA may change.
      fgsm_epsilon: the radius for FGSM, in [0, 1], where tables have the range of each feature.
    """

    network: str
    optimizer: str
    momentum: float = 0.0
    nesterov: bool = False
    decay: float = 1.0
    decay_epochs: int = 0
    momentum_decays: bool = False
    weight_decay: float = 0.0
    inverse_decay: float = 0.0
    warm_start_epochs: int = 0
    augmentation: str | None = None
    transform: str | None = None
    adversary: str | None = None
    adversary_epsilon: float = 8 / 255
    adversary_steps: int = 7
    thermometer_levels: int = 0
    class_weights: bool = False
    image_size: int | None = None
    jsma_features: int = 112
    fgsm_epsilon: float = 0.3


# The same object for the same arguments, here and below, since programs are compiled for it.
@functools.cache
def make_network(recipe: Recipe, num_classes: int, channels: int) -> nn.Module:
    """The network of a recipe.

    Args:
      recipe: the settings.
      num_classes: the number of logits, at least 2.
      channels: of the images; of other inputs the places along the last axis.

    Raises:
      ValueError: for an unknown network or fewer than two classes.
    """
    network = models.build(recipe.network, num_classes)
    if not recipe.thermometer_levels:
        return network
    return thermometer.Encoded(network, levels=recipe.thermometer_levels, channels=channels)


@functools.cache
def make_optimizer(recipe: Recipe, steps_per_epoch: int) -> optax.GradientTransformation:
    """The optimizer of a recipe, whose epochs have so many steps.

    Raises:
      ValueError: for an unknown optimizer.
    """
    decayed = lambda start: optax.exponential_decay(
        start, recipe.decay_epochs * steps_per_epoch, recipe.decay, staircase=True
    )
    rate = recipe.learning_rate
    if recipe.decay_epochs:
        rate = decayed(recipe.learning_rate)
    elif recipe.inverse_decay:
        rate = lambda step: recipe.learning_rate / (1 + recipe.inverse_decay * jnp.asarray(step, jnp.float32))
    if recipe.optimizer == "adam":
        optimizer = optax.adam(rate)
    elif recipe.optimizer != "sgd":
        raise ValueError(f"unknown optimizer {recipe.optimizer!r}; known: adam, sgd")
    elif recipe.momentum_decays:
        momentum = decayed(recipe.momentum)
        optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=rate, momentum=momentum)
    else:
        optimizer = optax.sgd(rate, momentum=recipe.momentum or None, nesterov=recipe.nesterov)
    if recipe.weight_decay:
        is_kernel = lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
        optimizer = optax.chain(optax.add_decayed_weights(recipe.weight_decay, is_kernel), optimizer)
    return optimizer


@functools.cache
def make_settings(recipe: Recipe, num_classes: int, channels: int) -> training.Settings:
    """How a recipe trains the network of `make_network`.

    Raises:
      ValueError: for an unknown network, adversary or augmentation.
    """
    augment = adversary = None
    if recipe.augmentation is not None:
        augment = data.AUGMENTATIONS.find(recipe.augmentation).function
    if recipe.adversary is not None:
        adversaries.REGISTRY.collect(defenses)
        settings = {"epsilon": recipe.adversary_epsilon, "num_steps": recipe.adversary_steps}
        if recipe.thermometer_levels:
            settings["levels"] = recipe.thermometer_levels
        adversary = functools.partial(adversaries.REGISTRY.find(recipe.adversary).function, **settings)
    return training.Settings(
        network=make_network(recipe, num_classes, channels),
        optimizer=functools.partial(make_optimizer, recipe),
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        augment=augment,
        adversary=adversary,
        warm_start_epochs=recipe.warm_start_epochs,
        class_weights=recipe.class_weights,
        recipe=recipe.name,
    )
