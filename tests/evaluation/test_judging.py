import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddjax
from ddjax import evaluation
from ddjax.classifier import Randomized

WEIGHTS = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)


def _linear(weights, inputs):
    return (inputs - 0.5).reshape(inputs.shape[0], -1) @ weights


LINEAR = jax.tree_util.Partial(_linear, jnp.asarray(WEIGHTS))
INPUTS = np.random.default_rng(1).uniform(0.3, 0.7, (40, 4, 4, 1)).astype(np.float32)
LABELS = np.asarray(LINEAR(jnp.asarray(INPUTS))).argmax(1).astype(np.int32)


def _noisy(inputs, keys):
    """Logits with noise that is larger than the margins of what an attack finds for one draw."""
    noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    return LINEAR(inputs) + noise


NOISY = Randomized(jax.tree_util.Partial(_noisy))


def test_judge_of_a_fixed_classifier_is_its_decision():
    found = ddjax.judge(LINEAR, INPUTS, LABELS)
    assert found.predictions.shape == (1, 40)
    np.testing.assert_array_equal(found.predictions[0], LABELS)
    assert not found.success.any()
    targets = (LABELS + 1) % 3
    assert ddjax.judge(LINEAR, INPUTS, targets, LABELS).success.all()


def test_judge_draws_anew_what_an_attack_has_seen():
    key = jax.random.key(0)
    one_draw = ddjax.single_draw(NOISY, key)
    labels = np.asarray(one_draw(jnp.asarray(INPUTS))).argmax(1).astype(np.int32)
    result = ddjax.carlini_wagner_l2(one_draw, jnp.asarray(INPUTS), jnp.asarray(labels), num_steps=50, search_steps=4)
    assert result.success.all()
    found = ddjax.judge(NOISY, np.asarray(result.inputs), labels, key=jax.random.key(1), num_draws=200)
    # The attack stops just past the boundary of its draw, so other draws decide by their own noise.
    assert found.mean().mean() < 0.9
    assert found.success.shape == (200, 40)


def test_judge_agrees_with_the_rate_of_the_noise():
    # Of two logits that differ by d, with unit noise in each, the lower one wins with probability Phi(-d / sqrt 2).
    shift = jnp.array([[1.0, 0.0, -100.0]])
    noisy = Randomized(
        jax.tree_util.Partial(lambda inputs, keys: shift + jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys))
    )
    found = ddjax.judge(noisy, INPUTS, np.zeros(40, np.int32), key=jax.random.key(2), num_draws=100)
    rate = float(jax.scipy.stats.norm.cdf(-1 / np.sqrt(2)))
    assert abs(found.success.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / 4000)


def test_draws_depend_on_the_index_and_not_on_the_batch():
    key, indices = jax.random.key(3), np.arange(100, 140)
    whole = ddjax.judge(NOISY, INPUTS, LABELS, key=key, indices=indices, num_draws=3)
    part = ddjax.judge(NOISY, INPUTS[5:9], LABELS[5:9], key=key, indices=indices[5:9], num_draws=3)
    np.testing.assert_array_equal(whole.predictions[:, 5:9], part.predictions)


def test_judge_of_a_random_classifier_needs_a_key():
    with pytest.raises(TypeError, match="needs a key"):
        ddjax.judge(NOISY, INPUTS, LABELS)


def test_logits_that_are_no_decision_are_no_success():
    logits = np.array([[0.0, np.nan, 1.0], [0.0, np.inf, 1.0], [-np.inf, 2.0, 1.0], [-np.inf] * 3], np.float32)
    np.testing.assert_array_equal(evaluation.decisions(logits), [-1, -1, 1, -1])
