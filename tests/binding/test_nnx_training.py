"""Networks of flax.nnx are trained and distilled as those of linen are."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ddjax
from ddjax.binding.nnx import NnxNetwork
from ddjax.checkpoints import build, describe
from ddjax.training import create_state
from tests.binding import frameworks

DRAW = np.random.default_rng(0)
LABELS = DRAW.integers(0, 3, 48)
# Three classes, each with a pixel of its own.
INPUTS = DRAW.random((48, *frameworks.SHAPE), np.float32) * 0.5
INPUTS[np.arange(48), LABELS + 1, 2] += 0.5


def test_steps_equal_those_of_the_same_linen_network():
    weights, optimizer = frameworks.make_weights(0), optax.sgd(0.1, momentum=0.9)
    start = lambda network: create_state(network, optimizer, frameworks.SHAPE, jax.random.key(0))
    variables = frameworks.linen_variables(weights)
    linen = start(frameworks.Linen(0.0)).replace(
        params=variables["params"], statistics={"batch_stats": variables["batch_stats"]}
    )
    own = start(ddjax.binding.trainable(frameworks.nnx_module(weights, rate=0.0)))
    targets = jnp.eye(3)[LABELS]
    step = jax.jit(ddjax.train_step)
    for _ in range(3):
        (linen, loss), (own, own_loss) = (step(state, (INPUTS, targets), 2.0) for state in (linen, own))
        np.testing.assert_allclose(loss, own_loss, rtol=1e-5)
    params, statistics = own.params["nnx"], own.statistics["batch_stats"]["nnx"]
    np.testing.assert_allclose(params["conv"]["kernel"], linen.params["conv"]["kernel"], atol=1e-5)
    np.testing.assert_allclose(params["norm"]["scale"], linen.params["norm"]["scale"], atol=1e-5)
    expected = linen.statistics["batch_stats"]["norm"]
    for name in ("mean", "var"):
        np.testing.assert_allclose(statistics["norm"][name], expected[name], rtol=1e-4, atol=1e-6)
    inputs = jnp.asarray(INPUTS)
    np.testing.assert_allclose(own.logits_fn(inputs), linen.logits_fn(inputs), atol=1e-4)
    np.testing.assert_allclose(
        ddjax.bind(own.network.module(own.variables))(inputs), own.logits_fn(inputs), rtol=1e-4, atol=1e-5
    )


def test_class_is_distilled_and_attacked():
    network = functools.partial(frameworks.Nnx, rate=0.1)
    teacher, student = ddjax.distill(
        NnxNetwork(network), optax.adam(0.01), INPUTS, LABELS, temperature=5.0, epochs=60, batch_size=16,
        key=jax.random.key(1),
    )  # fmt: skip
    for state in (teacher, student):
        assert (np.argmax(state.logits_fn(jnp.asarray(INPUTS)), axis=1) == LABELS).mean() > 0.9
    assert not np.array_equal(teacher.params["nnx"]["conv"]["kernel"], student.params["nnx"]["conv"]["kernel"])
    # Training uses dropout, with new draws at each step; evaluation does not.
    ddjax.check_classifier(student.logits_fn, INPUTS)
    attacked = ddjax.pgd(
        student.logits_fn, jnp.asarray(INPUTS), jnp.asarray(LABELS), epsilon=0.5, key=jax.random.key(2), num_steps=10
    )
    assert attacked.success.mean() > 0.5


def test_dropout_draws_anew_at_each_step():
    network = NnxNetwork(frameworks.Nnx)
    variables = network.init(jax.random.key(0), jnp.asarray(INPUTS))
    call = lambda key: network.apply(
        variables, jnp.asarray(INPUTS), train=True, rngs={"dropout": key}, mutable=["batch_stats"]
    )[0]
    one, again, other = (call(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)


def test_checkpoint_names_the_class():
    network = NnxNetwork(frameworks.Nnx)
    assert build(describe(network)) == network
    with pytest.raises(ValueError, match="cannot"):
        describe(ddjax.binding.trainable(frameworks.nnx_module(frameworks.make_weights(0))))


def test_class_goes_straight_into_training_and_a_module_keeps_its_mode():
    state = ddjax.train(
        frameworks.Nnx, optax.adam(0.01), INPUTS, LABELS, epochs=1, batch_size=16, key=jax.random.key(0)
    )
    assert isinstance(state.network, NnxNetwork)
    module = frameworks.nnx_module(frameworks.make_weights(0))
    before = jax.tree.map(np.asarray, nnx.state(module, nnx.Param))
    ddjax.train(module, optax.adam(0.01), INPUTS, LABELS, epochs=1, batch_size=16, key=jax.random.key(0))
    assert not module.dropout.deterministic
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, nnx.state(module, nnx.Param)))


def test_linen_network_is_left_as_it_is():
    network = nn.Dense(3)
    assert ddjax.binding.trainable(network) is network
