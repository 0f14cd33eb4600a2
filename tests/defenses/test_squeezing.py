import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from ddjax import attacks
from ddjax.defenses import detector, squeezing
from ddjax.defenses.squeezers import squeezer


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(0), (3, 9, 7, 2))


def test_scores_need_a_squeezer(images):
    with pytest.raises(ValueError, match="at least one squeezer"):
        squeezing.detector_scores(lambda x: x[:, 0, 0], [], images)


def test_scores_are_the_largest_distance_of_probabilities(images):
    weights = jax.random.normal(jax.random.key(1), (9 * 7 * 2, 4))
    logits_fn = lambda x: x.reshape(len(x), -1) @ weights
    squeezers = [squeezer(name) for name in ("bit_depth_1", "median_3_3")]
    found = squeezing.detector_scores(logits_fn, squeezers, images)
    probs = lambda x: np.asarray(jax.nn.softmax(logits_fn(x)))
    by_hand = [np.abs(probs(images) - probs(squeeze(images))).sum(1) for squeeze in squeezers]
    np.testing.assert_allclose(found, np.max(by_hand, axis=0), rtol=1e-6)
    assert (found <= 2).all()


@pytest.mark.parametrize(("rate", "expected"), [(0.05, 95), (0.0, 100), (0.1, 90), (0.051, 95), (0.5, 50)])
def test_threshold_is_exceeded_by_its_share(rate, expected):
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 101.0))
    threshold = detector.calibrated_threshold(scores, rate)
    assert threshold == expected
    assert np.mean(scores > threshold) <= rate


@pytest.mark.parametrize(
    ("scores", "rate", "message"),
    [([], 0.05, "finite scores"), ([np.nan], 0.05, "finite scores"), ([1.0], 1.0, "at least 0 and below 1, got 1.0")],
)
def test_calibration_refuses_bad_scores_and_rates(scores, rate, message):
    with pytest.raises(ValueError, match=message):
        detector.calibrated_threshold(np.asarray(scores), rate)


@pytest.fixture(scope="module")
def detected():
    """A classifier, clean images, and a detector whose squeezer sees what the plain attack does."""
    keys = jax.random.split(jax.random.key(3), 2)
    weights = 8 * jax.random.normal(keys[0], (36, 3))
    logits_fn = lambda x: (x.reshape(len(x), -1) - 0.5) @ weights
    # Flat, so that squeezing takes nothing from them.
    clean = jnp.broadcast_to(jax.random.uniform(keys[1], (16, 1, 1, 1), minval=0.2, maxval=0.8), (16, 6, 6, 1))
    squeezers = [squeezer("resample_2"), squeezer("median_2_2")]
    return logits_fn, clean, jnp.argmax(logits_fn(clean), axis=1), squeezers


def test_the_adaptive_attack_goes_undetected_where_the_plain_one_is_caught(detected):
    logits_fn, clean, labels, squeezers = detected
    threshold = float(squeezing.detector_scores(logits_fn, squeezers, clean).max()) + 0.05
    settings = {"learning_rate": 0.05, "initial_const": 0.1, "search_steps": 6, "num_steps": 150}
    caught = lambda result: squeezing.detector_scores(logits_fn, squeezers, result.inputs) > threshold
    plain = attacks.carlini_wagner_l2(logits_fn, clean, labels, **settings)
    assert plain.success.all()
    assert caught(plain).mean() > 0.5
    found = jax.jit(
        lambda threshold: squeezing.adaptive_attack(logits_fn, clean, labels, squeezers, threshold, **settings)
    )(threshold)
    assert found.success.mean() > 0.7
    # To rounding of the scores.
    scores = squeezing.detector_scores(logits_fn, squeezers, found.inputs)[found.success]
    assert (scores <= threshold + 1e-5).all()
    distance = lambda result: np.linalg.norm((result.inputs - clean).reshape(len(clean), -1), axis=1)
    assert (distance(found) >= distance(plain) - 1e-3)[np.asarray(found.success)].all()
    # A misclassified image that the detector knows is no success.
    wrong = (labels + 1) % 3
    none = squeezing.adaptive_attack(logits_fn, clean, wrong, squeezers, -1.0, **settings | {"search_steps": 1})
    assert not none.success.any()
    np.testing.assert_array_equal(none.inputs, clean)


@pytest.mark.parametrize("temperature", [1.0, 50.0])
def test_the_class_more_is_the_decision_where_the_detector_fires(detected, temperature):
    logits_fn, clean, _, squeezers = detected
    noisy = jnp.clip(clean + 0.1 * jax.random.normal(jax.random.key(5), clean.shape), 0, 1)
    scores = squeezing.detector_scores(logits_fn, squeezers, noisy)
    threshold = float(jnp.median(scores))
    logits = squeezing.guarded_classifier(logits_fn, squeezers, threshold, temperature)(noisy)
    assert logits.shape == (16, 4)
    np.testing.assert_allclose(logits[:, :3], logits_fn(noisy) / temperature, rtol=1e-5)
    np.testing.assert_array_equal(jnp.argmax(logits, axis=1) == 3, scores > threshold)
    with pytest.raises(ValueError, match="at least one squeezer"):
        squeezing.guarded_classifier(logits_fn, [], 0.5)(noisy)


@pytest.mark.parametrize("targeted", [False, True])
def test_any_attack_on_the_detector_takes_the_closer_of_those_that_pass(detected, targeted):
    logits_fn, clean, labels, squeezers = detected
    threshold = float(squeezing.detector_scores(logits_fn, squeezers, clean).max()) + 0.05
    targets = (labels + 1) % 3 if targeted else None
    key = jax.random.key(0)
    both = jax.jit(
        lambda threshold: squeezing.attack_detector(
            attacks.ddn, logits_fn, clean, labels, squeezers, threshold, key=key, targets=targets, num_steps=60
        )
    )(threshold)
    decisions = jnp.argmax(logits_fn(both.inputs), axis=1)
    scores = squeezing.detector_scores(logits_fn, squeezers, both.inputs)
    passed = (decisions == targets if targeted else decisions != labels) & (scores <= threshold + 1e-5)
    np.testing.assert_array_equal(both.success, passed)
    assert both.success.mean() > 0.7
    np.testing.assert_allclose(both.logits, logits_fn(both.inputs), atol=1e-4)
    # An attack on the views together ends on their boundary, where the detector fires.
    joint = squeezing.joint_classifier(logits_fn, squeezers)
    alone = attacks.ddn(joint, clean, labels, key=key, targets=targets, num_steps=60)
    unseen = squeezing.detector_scores(logits_fn, squeezers, alone.inputs) <= threshold
    wrong = jnp.argmax(logits_fn(alone.inputs), axis=1) != labels
    assert (unseen & wrong).mean() < both.success.mean()
    assert (both.gradients > alone.gradients).all()


def test_a_constraint_that_holds_changes_nothing_and_the_optimum_is_the_quadratic_programs(detected):
    logits_fn, clean, labels, _ = detected
    settings = {"learning_rate": 0.05, "initial_const": 0.1, "search_steps": 7, "num_steps": 200}
    plain = attacks.carlini_wagner_l2(logits_fn, clean[:2], labels[:2], **settings)
    free = attacks.carlini_wagner_l2(
        logits_fn, clean[:2], labels[:2], constraint=lambda x: 0.0 * x[:, 0, 0, 0], **settings
    )
    np.testing.assert_allclose(plain.inputs, free.inputs, atol=1e-6)
    # Two classes, and the mean of the image may not rise above where it was: a quadratic program.
    two = lambda x: logits_fn(x)[:, :2]
    image, label = clean[:1], jnp.argmax(two(clean[:1]), axis=1)
    constraint = lambda x: 40 * jax.nn.relu(x.mean((1, 2, 3)) - image.mean() + 0.02)
    found = attacks.carlini_wagner_l2(
        two,
        image,
        label,
        constraint=constraint,
        **settings | {"num_steps": 1000, "search_steps": 9, "learning_rate": 0.01},
    )
    flat = np.asarray(image, np.float64).ravel()
    slope = np.diff(np.asarray(jax.jacobian(two)(image), np.float64).reshape(2, -1), axis=0)[0] * (
        1 - 2 * int(label[0])
    )
    margin = np.diff(np.asarray(two(image), np.float64)[0])[0] * (1 - 2 * int(label[0]))
    best = scipy.optimize.minimize(
        lambda x: ((x - flat) ** 2).sum(),
        flat,
        jac=lambda x: 2 * (x - flat),
        bounds=[(0, 1)] * len(flat),
        constraints=[
            {"type": "ineq", "fun": lambda x: margin + slope @ (x - flat), "jac": lambda _: slope},
            {"type": "ineq", "fun": lambda x: flat.mean() - 0.02 - x.mean(), "jac": lambda _: np.full(36, -1 / 36)},
        ],
        method="SLSQP",
    )
    assert best.success
    assert found.success.all()
    distance = np.linalg.norm(np.asarray(found.inputs, np.float64).ravel() - flat)
    assert distance == pytest.approx(np.sqrt(best.fun), rel=0.02)
    assert distance >= np.sqrt(best.fun) * 0.999
