"""Generative models: the density of PixelDefend and the generator of Defense-GAN."""

import jax

from ddjax.generative import gan, pixelcnn
from ddjax.state import TrainState


def model_fn(state: TrainState) -> jax.tree_util.Partial:
    """The part of a trained model that a defense uses: the density of a PixelCNN++, the generator of a GAN."""
    if isinstance(state.network, gan.Gan):
        return gan.generator_fn(state.network, state.trained)
    return pixelcnn.density(state.network, state.trained)


def latent_of(state: TrainState) -> int:
    """The length of the codes of a generator; 0 for a density."""
    return state.network.generator.latent if isinstance(state.network, gan.Gan) else 0
