"""Classifiers that attacks are tested on."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from ddjax.binding import bind
from ddjax.models import ConvNet
from tests.attacks import linear


@pytest.fixture
def as_a_user():
    """Without the checks of types that only tests have: users meet the checks of the library itself."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def network():
    """A small random network on 6 x 6 images in 4 classes."""
    module = ConvNet(num_classes=4, stages=((8,),), dense=(16,), dropout=(0.0,))
    return bind(module, jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 6, 6, 1))))


@pytest.fixture(scope="session")
def batch(network):
    """Images with values at both ends, the network's own decisions as labels, and other classes as targets."""
    images = jnp.clip(1.5 * jax.random.uniform(jax.random.key(1), (24, 6, 6, 1)) - 0.25, 0, 1)
    labels = jnp.argmax(linear.evaluate(network, images), axis=1).astype(jnp.int32)
    targets = (labels + 1 + jnp.arange(24) % 3) % 4
    return images, labels, targets


def _affine(parameters, images):
    return (images - 0.5).reshape(images.shape[0], -1) @ parameters["weights"] + parameters["biases"]


@pytest.fixture(scope="session")
def far_linear():
    """Linear classifiers whose boundaries are far for an attack's first steps, but in the box.

    The logits are so large that the softmax is about the nearest class only.

    Returns:
      A function of the shape of an image, the numbers of classes and images, and the order of a norm. It gives the
      classifier, images, labels (0), and the distance in that norm to each class, infinity to the label's own.
    """

    def make(shape, classes, batch, order):
        rng = np.random.default_rng([*shape, classes, batch])
        size = np.prod(shape)
        weights = rng.normal(size=(size, classes)) / np.sqrt(size)
        biases = -rng.uniform(0, 0.5, (1, classes))
        biases[0, 0] = 0.4 if order == 2 else 0.2 * np.abs(weights).sum(0).mean()
        images = 0.5 + rng.uniform(-0.05, 0.05, (batch, *shape))
        parameters = jax.tree.map(
            lambda leaf: jnp.asarray(20 * leaf, jnp.float32), {"weights": weights, "biases": biases}
        )
        logits_fn = jax.tree_util.Partial(_affine, parameters)
        images = jnp.asarray(images, jnp.float32)
        dual = {2: 2, np.inf: 1}[order]
        logits = np.asarray(logits_fn(images), np.float64)
        distances = np.full((batch, classes), np.inf)
        for other in range(1, classes):
            slope = np.asarray(parameters["weights"][:, 0] - parameters["weights"][:, other], np.float64)
            distances[:, other] = (logits[:, 0] - logits[:, other]) / np.linalg.norm(slope, dual)
        assert (distances > 0.05).all()
        return logits_fn, images, jnp.zeros(batch, jnp.int32), distances

    return make
