"""Closed forms on tables: a linear classifier of features of different ranges, of which some must not change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddjax

ROWS, FEATURES = 16, 12
RNG = np.random.default_rng(0)
LOW, WIDTH = RNG.normal(size=FEATURES), np.geomspace(0.5, 8, FEATURES)
# A constant column, whose bounds coincide, and a categorical one, which the mask keeps.
CONSTANT, CATEGORICAL = 3, 7
HIGH = np.where(np.arange(FEATURES) == CONSTANT, LOW, LOW + WIDTH).astype(np.float32)
LOW = LOW.astype(np.float32)
MASK = jnp.arange(FEATURES) != CATEGORICAL
FREE = np.asarray(MASK) & (HIGH > LOW)
INPUTS = jnp.asarray((LOW + HIGH) / 2 + RNG.uniform(-0.02, 0.02, (ROWS, FEATURES)) * (HIGH - LOW), jnp.float32)
SLOPE = jnp.asarray(RNG.normal(size=FEATURES) / WIDTH, jnp.float32)
LIMITS = {"bounds": (LOW, HIGH), "mask": MASK}


def logits_fn(inputs):
    """Two classes; the boundary is near the middle of the box."""
    height = (inputs - INPUTS.mean(0, keepdims=True)) @ SLOPE + 0.25
    return 10 * jnp.stack([height, -height], axis=1)


LABELS = jnp.argmax(logits_fn(INPUTS), axis=1).astype(jnp.int32)
# How far the two logits are apart, in units of the slope.
MARGIN = np.abs(np.asarray(logits_fn(INPUTS), np.float64) @ [1, -1]) / 20


def dual(order):
    """The distance of each row to the boundary when only free features move."""
    return MARGIN / np.linalg.norm(np.asarray(SLOPE, np.float64)[FREE], order)


def attacked(attack, **settings):
    result = jax.jit(functools.partial(attack, logits_fn, **LIMITS, **settings))(INPUTS, LABELS)
    result = jax.tree.map(np.asarray, result)
    change = result.inputs.astype(np.float64) - np.asarray(INPUTS, np.float64)
    assert not change[:, ~FREE].any()
    assert ((result.inputs >= LOW) & (result.inputs <= HIGH)).all()
    return result, change


def test_one_step_along_the_sign_crosses_the_boundary_at_just_the_least_radius():
    for share, crosses in ((0.999, False), (1.001, True)):
        result, _ = attacked(ddjax.fgsm, epsilon=jnp.asarray(share * dual(1), jnp.float32))
        np.testing.assert_array_equal(result.success, crosses)


def test_radius_is_a_share_of_the_range_of_each_feature_by_default_and_may_be_given_so():
    result, change = attacked(ddjax.fgsm)
    np.testing.assert_allclose(
        np.abs(change)[:, FREE], np.broadcast_to(0.3 * WIDTH[FREE], (ROWS, FREE.sum())), rtol=1e-4
    )
    for attack in (ddjax.fgsm, functools.partial(ddjax.bim, num_steps=5)):
        given, _ = attacked(attack, epsilon=jnp.asarray(0.3 * (HIGH - LOW))[None])
        np.testing.assert_allclose(given.inputs, result.inputs, atol=1e-5)
    with pytest.raises(
        ValueError, match=r"epsilon must broadcast against the inputs of shape \(16, 12\), got \(1, 5\)"
    ):
        ddjax.fgsm(logits_fn, INPUTS, LABELS, epsilon=jnp.ones((1, 5)), **LIMITS)


@pytest.mark.parametrize(
    ("attack", "order", "most"),
    [
        (functools.partial(ddjax.deepfool, norm="l2"), 2, 1.025),
        (functools.partial(ddjax.deepfool, norm="linf"), 1, 1.025),
        (functools.partial(ddjax.ddn, num_steps=100), 2, 1.05),
        (functools.partial(ddjax.carlini_wagner_l2, search_steps=6, num_steps=100, learning_rate=0.05), 2, 1.05),
    ],
    ids=["deepfool l2", "deepfool linf", "ddn", "carlini_wagner_l2"],
)
def test_distance_to_the_boundary_is_that_of_the_free_features(attack, order, most):
    result, change = attacked(attack)
    assert result.success.all()
    distance = np.linalg.norm(change, {2: 2, 1: np.inf}[order], axis=1)
    assert (distance >= 0.999 * dual(order)).all()
    assert (distance <= most * dual(order)).all()


def test_jsma_changes_pairs_of_free_features_to_their_bounds():
    result, change = attacked(ddjax.jsma, targets=1 - LABELS, gamma=1.0)
    assert result.success.all()
    moved = change != 0
    np.testing.assert_allclose(result.inputs[moved], np.broadcast_to(HIGH, moved.shape)[moved], rtol=1e-6)
    # Only those that rise the target, the most effective first: as few pairs as any choice needs.
    rise = np.where(np.asarray(LABELS)[:, None] == 0, -1, 1) * np.asarray(SLOPE) * (HIGH - np.asarray(INPUTS))
    assert (rise[moved] > 0).all() or moved.sum(1).max() <= 2 * FREE.sum() // 2


def test_ddn_rounds_images_only():
    result, _ = attacked(functools.partial(ddjax.ddn, num_steps=20))
    plain, _ = attacked(functools.partial(ddjax.ddn, num_steps=20, levels=0))
    np.testing.assert_array_equal(result.inputs, plain.inputs)
