"""Classifiers that attacks are tested on."""

import jax
import jax.numpy as jnp
import pytest

from ddjax.classifier import bind
from ddjax.models import ConvNet


@pytest.fixture(scope="session")
def network():
    """A small random network on 6 x 6 images in 4 classes."""
    module = ConvNet(num_classes=4, stages=((8,),), dense=(16,), dropout=(0.0,))
    return bind(module, module.init(jax.random.key(0), jnp.zeros((1, 6, 6, 1))))


@pytest.fixture(scope="session")
def batch(network):
    """Images with values at both ends, the network's own decisions as labels, and other classes as targets."""
    images = jnp.clip(1.5 * jax.random.uniform(jax.random.key(1), (24, 6, 6, 1)) - 0.25, 0, 1)
    labels = jnp.argmax(network(images), axis=1).astype(jnp.int32)
    targets = (labels + 1 + jnp.arange(24) % 3) % 4
    return images, labels, targets
