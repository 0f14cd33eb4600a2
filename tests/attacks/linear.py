"""Linear classifiers, on which the least perturbation is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np

# Shape of an image, number of classes, number of images.
CASES = [((3, 4, 1), 2, 1), ((2, 3, 3), 3, 3), ((4, 4, 1), 10, 8), ((6, 5, 2), 5, 8), ((1, 7, 1), 4, 3)]
# The order of the dual norm.
DUAL = {"l1": np.inf, "l2": 2, "linf": 1}

# Compiled: operation by operation each operation is a program of its own.
evaluate = jax.jit(lambda logits_fn, inputs: logits_fn(inputs))


def _logits(weights, images):
    return (images - 0.5).reshape(images.shape[0], -1) @ weights


def problem(shape, classes, batch):
    """A classifier, images close enough to the grey image that all boundaries are far inside the box, and labels."""
    rng = np.random.default_rng([*shape, classes, batch])
    weights = jnp.asarray(rng.normal(size=(np.prod(shape), classes)), jnp.float32)
    images = jnp.asarray(0.5 + rng.uniform(-0.05, 0.05, (batch, *shape)), jnp.float32)
    logits_fn = jax.tree_util.Partial(_logits, weights)
    return logits_fn, images, jnp.argmax(logits_fn(images), axis=1).astype(jnp.int32)


def least(logits_fn, images, labels, norm):
    """The distance of each image to the nearest other class, and which that is."""
    weights = np.asarray(logits_fn.args[0], np.float64)
    points = np.asarray(images, np.float64).reshape(len(images), -1) - 0.5
    distances = np.full((len(images), weights.shape[1]), np.inf)
    for row, (point, label) in enumerate(zip(points, np.asarray(labels), strict=True)):
        for other in range(weights.shape[1]):
            if other != label:
                slope = weights[:, label] - weights[:, other]
                distances[row, other] = point @ slope / np.linalg.norm(slope, DUAL[norm])
    return distances.min(1), jnp.asarray(distances.argmin(1), jnp.int32)


def size(change, norm):
    """The norm of each change, in float64."""
    flat = np.asarray(change, np.float64).reshape(len(change), -1)
    return np.linalg.norm(flat, {"l1": 1, "l2": 2, "linf": np.inf}[norm], axis=1)
