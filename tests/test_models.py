import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import models

# The number of parameters follows from the papers' tables: convolutions, then the flattened features times the dense
# layers.
PARAMETERS = {
    "papernot_mnist": (28, 1, 320 + 9248 + 18496 + 36928 + (1024 + 1) * 200 + 201 * 200 + 201 * 10),
    "papernot_cifar10": (32, 3, 1792 + 36928 + 73856 + 147584 + (3200 + 1) * 256 + 257 * 256 + 257 * 10),
    "carlini_mnist": (28, 1, 320 + 9248 + 18496 + 36928 + (1024 + 1) * 200 + 201 * 200 + 201 * 10),
    "small_mnist": (28, 1, 320 + 18496 + (1600 + 1) * 128 + 129 * 10),
    "digits": (8, 1, 160 + 4640 + (512 + 1) * 64 + 65 * 10),
}


@pytest.mark.parametrize("name", models.NETWORKS)
def test_networks_have_the_papers_sizes(name):
    size, channels, expected = PARAMETERS[name]
    module = models.build(name, 10)
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, size, size, channels)))
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(variables)) == expected


def test_output_is_logits_and_lowerings_agree():
    images = jax.random.uniform(jax.random.key(0), (4, 28, 28, 1))
    module = models.build("small_mnist", 7)
    variables = module.init(jax.random.key(1), images)
    logits = module.apply(variables, images)
    assert logits.shape == (4, 7)
    # A softmax inside the network would make every row sum to one.
    assert np.abs(np.sum(logits, axis=1) - 1).min() > 1e-3
    plain = models.build("small_mnist", 7, lowering="plain").apply(variables, images)
    np.testing.assert_allclose(plain, logits, atol=1e-5)


def test_dropout_only_in_training_and_with_a_key():
    images = jnp.ones((2, 28, 28, 1))
    module = models.build("carlini_mnist", 10)
    variables = module.init(jax.random.key(0), images)
    once, again = (module.apply(variables, images, train=True, rngs={"dropout": jax.random.key(i)}) for i in (1, 2))
    assert not np.allclose(once, again)
    np.testing.assert_array_equal(module.apply(variables, images), module.apply(variables, images))


def test_bad_arguments():
    with pytest.raises(ValueError, match="unknown network 'lenet'; known: papernot_mnist, papernot_cifar10"):
        models.build("lenet", 10)
    with pytest.raises(ValueError, match="at least two classes, got 1"):
        models.build("digits", 1)
    with pytest.raises(ValueError, match="too small"):
        models.build("papernot_mnist", 10).init(jax.random.key(0), jnp.zeros((1, 10, 10, 1)))
    module = models.build("digits", 10)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    with pytest.raises(flax.errors.ScopeParamShapeError):
        module.apply(variables, jnp.zeros((1, 8, 8, 3)))
