"""What a user writes: networks of their own are distilled and attacked in a few lines."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import ddjax
from ddjax import data

pytestmark = pytest.mark.usefixtures("optax_promotion")


class Normalized(nn.Module):
    """A convolutional network with batch normalization and dropout."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(16, (3, 3))(x)))
        x = nn.avg_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1)
        x = nn.Dropout(0.25, deterministic=not train)(nn.relu(nn.Dense(64)(x)))
        return nn.Dense(10)(x)


class Plain(nn.Module):
    """A network without an argument that switches it to training."""

    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(16, (3, 3))(x)), (2, 2), (2, 2)).reshape(x.shape[0], -1)
        return nn.Dense(10)(nn.relu(nn.Dense(64)(x)))


@pytest.mark.parametrize("network", [Normalized(), Plain()], ids=["batch_normalization", "plain"])
def test_network_of_a_user_is_distilled_and_attacked(network):
    train, test = (data.load("digits", split) for split in ("train", "test"))

    teacher, student = ddjax.distill(
        network,
        optax.adam(1e-3),
        train.images,
        train.labels,
        temperature=20.0,
        epochs=40,
        batch_size=32,
        key=jax.random.key(0),
    )
    images = data.to_float(test.images)
    for state in (teacher, student):
        accuracy = np.mean(np.asarray(jax.jit(state.logits_fn)(images)).argmax(1) == test.labels)
        assert accuracy >= 0.95

    # At temperature 20: at 1 the softmax of the student saturates.
    attacked = ddjax.at_temperature(student.logits_fn, 20.0)
    attack = jax.jit(lambda images, labels: ddjax.pgd(attacked, images, labels, key=jax.random.key(1), epsilon=0.2))
    result = attack(images[:64], test.labels[:64])
    decisions = np.asarray(jax.jit(student.logits_fn)(result.inputs)).argmax(1)
    np.testing.assert_array_equal(decisions != test.labels[:64], result.success)
    assert result.success.mean() > 0.5
