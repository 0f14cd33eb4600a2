"""Named settings of generative models, for `launch.train --recipe=NAME`."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from ddjax.generative import gan, pixelcnn
from ddjax.registry import Registry
from ddjax.state import TrainState

from .base import BaseRecipe

MODELS = ("pixelcnn", "gan")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class GenerativeRecipe(BaseRecipe):
    """How to train a generative model, by Adam.

    Attributes:
      model: one of `MODELS`.
      network: arguments of `pixelcnn.PixelCNN` but for the channels, or of `gan.create_state`.
      training: further arguments of the model's `train_epoch`.
      decay: what multiplies PixelCNN++'s rate at every step.
    """

    model: str
    network: Mapping[str, Any]
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    decay: float = 0.999995

    @property
    def role(self) -> str:
        """What the model is good for."""
        return {"pixelcnn": "density", "gan": "generator"}[self.model]


def create_state(recipe: GenerativeRecipe, image_shape: tuple[int, int, int], key: jax.Array) -> TrainState:
    """The model of a recipe for images of a shape (H, W, C), before training; `key` makes all its randomness."""
    if recipe.model == "gan":
        make = functools.partial(gan.create_state, image_shape, learning_rate=recipe.learning_rate, **recipe.network)
        # Compiled, the forward passes that tell the shapes of parameters are not run.
        return jax.jit(make)(key)
    network = pixelcnn.PixelCNN(channels=image_shape[2], **recipe.network)
    optimizer = pixelcnn.make_optimizer(recipe.learning_rate, recipe.decay)
    return pixelcnn.create_state(network, optimizer, image_shape, key)


@functools.cache
def epoch_fn(recipe: GenerativeRecipe) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """One epoch of a recipe, from a state and images; the same object for the same recipe."""
    train_epoch = {"pixelcnn": pixelcnn.train_epoch, "gan": gan.train_epoch}[recipe.model]
    return functools.partial(train_epoch, batch_size=recipe.batch_size, **recipe.training)


_PIXELCNN_CIFAR10 = GenerativeRecipe(
    name="pixelcnn_cifar10",
    description="""PixelCNN++ of the published size on CIFAR-10 (arXiv 1701.05517), which PixelDefend takes.

    python -m launch.train --recipe=pixelcnn_cifar10. Made for several GPUs and days. Published: 2.92 bits for each
    dimension after 5,000 epochs.""",
    dataset="cifar10", model="pixelcnn", epochs=5000, batch_size=96, learning_rate=1e-3, training={"ema_decay": 0.9995},
    network={"width": 160, "blocks": 5, "levels": 3, "mixtures": 10, "dropout": 0.5},
)  # fmt: skip

_PIXELCNN_MNIST = GenerativeRecipe(
    name="pixelcnn_mnist",
    description="""A small PixelCNN++ on 10,000 digits of MNIST: one unit at each of two resolutions, a tenth of the
    published width.

    python -m launch.train --recipe=pixelcnn_mnist. Under an hour on two CPU cores.""",
    dataset="mnist", model="pixelcnn", network={"width": 16, "blocks": 1, "levels": 2, "mixtures": 5, "dropout": 0.0},
    epochs=10, batch_size=32, learning_rate=2e-3, training={"ema_decay": 0.999}, skip=5000, num_train=10_000,
    num_test=500,
)  # fmt: skip

_GAN_MNIST = GenerativeRecipe(
    name="gan_mnist",
    description="""WGAN-GP of three eighths of the published width on MNIST, with three steps of the critic for each
    of the generator instead of five, and four times the rate.

    python -m launch.train --recipe=gan_mnist. Under an hour on two CPU cores.""",
    dataset="mnist", model="gan", network={"width": 24, "latent": 128}, epochs=15, batch_size=50, learning_rate=4e-4,
    training={"critic_steps": 3}, skip=5000, num_test=100,
)  # fmt: skip

_PIXELCNN_FASHION_MNIST = dataclasses.replace(
    _PIXELCNN_CIFAR10,
    name="pixelcnn_fashion_mnist",
    description="""PixelCNN++ of a quarter of the published width on Fashion-MNIST, as PixelDefend takes it.

    python -m launch.train --recipe=pixelcnn_fashion_mnist. Made for a GPU.""",
    dataset="fashion_mnist",
    network={**_PIXELCNN_CIFAR10.network, "width": 40},
)

_GAN_MNIST_FULL = dataclasses.replace(
    _GAN_MNIST,
    name="gan_mnist_full",
    description="""WGAN-GP of the size that Defense-GAN takes (arXiv 1805.06605): 200,000 steps of the generator.

    python -m launch.train --recipe=gan_mnist_full. Made for a GPU.""",
    network={"width": 64, "latent": 128}, epochs=1000, learning_rate=1e-4, training={"critic_steps": 5}, skip=10_000,
)  # fmt: skip

GENERATIVE_RECIPES = (_PIXELCNN_MNIST, _PIXELCNN_CIFAR10, _PIXELCNN_FASHION_MNIST, _GAN_MNIST, _GAN_MNIST_FULL)
RECIPES: Registry[GenerativeRecipe] = Registry("recipe of a generative model", "GENERATIVE_RECIPES")
for _recipe in GENERATIVE_RECIPES:
    RECIPES.register(_recipe)
