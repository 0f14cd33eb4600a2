import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.optimize

from ddjax import attacks
from ddjax.classifier import transformed
from ddjax.defenses import squeezing


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(0), (3, 9, 7, 2))


@pytest.mark.parametrize("bits", [1, 2, 4, 5, 8])
@pytest.mark.parametrize("compiled", [False, True])
def test_bit_depth_is_numpys_to_the_bit(images, bits, compiled):
    function = functools.partial(squeezing.reduce_bit_depth, bits=bits)
    found = (jax.jit(function) if compiled else function)(images)
    levels = np.float32(2**bits - 1)
    np.testing.assert_array_equal(found, np.rint(np.asarray(images) * levels) / levels)
    np.testing.assert_array_equal(function(found), found)


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_median_is_scipys_to_the_bit(images, height, width):
    found = squeezing.median_filter(images, height=height, width=width)
    expected = scipy.ndimage.median_filter(np.asarray(images), size=(1, height, width, 1), mode="reflect")
    np.testing.assert_array_equal(found, expected)


def test_binary(images):
    found = squeezing.binarize(images, threshold=0.3)
    np.testing.assert_array_equal(found, (np.asarray(images) > 0.3).astype(np.float32))


def brute_force_means(image, search, block, strength):
    """One pixel after the other."""
    half, around = search // 2, block // 2
    reach = half + around
    wide = np.pad(image, ((half, half), (half, half), (0, 0)), mode="symmetric").astype(np.float64)
    rows, columns, channels = image.shape
    result = np.zeros(image.shape)
    # Differences of an offset exist inside the image alone, and are mirrored at its edges like the pixels.
    for i in range(rows):
        for j in range(columns):
            total, weights = np.zeros(channels), 0.0
            for a in range(search):
                for b in range(search):
                    squared = (255 * (image - wide[a : a + rows, b : b + columns])) ** 2
                    mirrored = np.pad(squared, ((around, around), (around, around), (0, 0)), mode="symmetric")
                    weight = np.exp(-mirrored[i : i + block, j : j + block].mean() / strength**2)
                    total += weight * wide[i + a, j + b]
                    weights += weight
            result[i, j] = total / weights
    assert reach < min(rows, columns)
    return result


def test_non_local_means_is_the_formula(images):
    found = squeezing.non_local_means(images[:1], search=5, block=3, strength=60.0)
    np.testing.assert_allclose(found[0], brute_force_means(np.asarray(images[0]), 5, 3, 60.0), rtol=1e-5)


def test_non_local_means_leaves_flat_images_and_can_be_differentiated(images):
    flat = jnp.full((1, 8, 8, 1), 0.25, jnp.float32)
    np.testing.assert_allclose(squeezing.non_local_means(flat), flat, rtol=1e-6)
    smooth = lambda strength: np.std(squeezing.non_local_means(images, search=5, strength=strength) - images)
    assert smooth(200.0) > smooth(5.0)
    gradient = jax.grad(lambda x: squeezing.non_local_means(x, search=3, strength=50.0).sum())(images)
    assert np.isfinite(gradient).all()
    # Averages: brighter by a tenth everywhere, brighter by a tenth.
    brighter = squeezing.non_local_means(0.9 * images + 0.1, search=3, strength=45.0)
    np.testing.assert_allclose(
        brighter, 0.9 * squeezing.non_local_means(images, search=3, strength=50.0) + 0.1, atol=1e-6
    )


def test_resampling_keeps_ramps_and_loses_checkerboards():
    ramp = jnp.broadcast_to(jnp.arange(16.0)[None, None, :, None], (1, 16, 16, 1))
    np.testing.assert_allclose(squeezing.resample(ramp)[:, :, 4:-4], ramp[:, :, 4:-4], atol=1e-5)
    board = (jnp.indices((8, 8)).sum(0) % 2).astype(jnp.float32)[None, :, :, None]
    np.testing.assert_allclose(squeezing.resample(board), jnp.full_like(board, 0.5), atol=0.2)


@pytest.mark.parametrize(
    ("name", "function", "settings"),
    [
        ("bit_depth_4", squeezing.reduce_bit_depth, {"bits": 4}),
        ("median_2_3", squeezing.median_filter, {"height": 2, "width": 3}),
        ("non_local_means_11_3_4", squeezing.non_local_means, {"search": 11, "block": 3, "strength": 4.0}),
        ("binary_0.25", squeezing.binarize, {"threshold": 0.25}),
        ("resample", squeezing.resample, {}),
    ],
)
def test_squeezers_by_name(images, name, function, settings):
    squeeze = squeezing.squeezer(name)
    assert squeeze == squeezing.squeezer(name)
    assert hash(squeeze) == hash(squeezing.squeezer(name))
    np.testing.assert_array_equal(squeeze(images), function(images, **settings))


@pytest.mark.parametrize("name", ["blur", "median_2", "median_a_b", "bit_depth_1_2", "bit_depthx", ""])
def test_names_that_are_none(name):
    with pytest.raises(ValueError, match=r"unknown squeezer .*; known: bit_depth_BITS"):
        squeezing.squeezer(name)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: squeezing.reduce_bit_depth(x, bits=0), "bits must be from 1 to 16, got 0"),
        (lambda x: squeezing.median_filter(x, height=0), "sides of at least 1, got 0 x 2"),
        (lambda x: squeezing.non_local_means(x, search=4), "search and block must be odd, got 4 and 3"),
        (lambda x: squeezing.non_local_means(x, strength=0.0), "strength must be a finite number above 0"),
        (lambda x: squeezing.resample(x, factor=8), "images of 9 x 7 cannot be scaled down by 8"),
        (lambda x: squeezing.detector_scores(lambda x: x[:, 0, 0], [], x), "at least one squeezer"),
    ],
)
def test_refuses(images, call, message):
    with pytest.raises(ValueError, match=message):
        call(images)


def test_scores_are_the_largest_distance_of_probabilities(images):
    weights = jax.random.normal(jax.random.key(1), (9 * 7 * 2, 4))
    logits_fn = lambda x: x.reshape(len(x), -1) @ weights
    squeezers = [squeezing.squeezer(name) for name in ("bit_depth_1", "median_3_3")]
    found = squeezing.detector_scores(logits_fn, squeezers, images)
    probs = lambda x: np.asarray(jax.nn.softmax(logits_fn(x)))
    by_hand = [np.abs(probs(images) - probs(squeeze(images))).sum(1) for squeeze in squeezers]
    np.testing.assert_allclose(found, np.max(by_hand, axis=0), rtol=1e-6)
    assert (found <= 2).all()


@pytest.mark.parametrize(("rate", "expected"), [(0.05, 95), (0.0, 100), (0.1, 90), (0.051, 95), (0.5, 50)])
def test_threshold_is_exceeded_by_its_share(rate, expected):
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 101.0))
    threshold = squeezing.calibrated_threshold(scores, rate)
    assert threshold == expected
    assert np.mean(np.asarray(squeezing.is_detected(jnp.asarray(scores), threshold))) <= rate


@pytest.mark.parametrize(
    ("scores", "rate", "message"),
    [([], 0.05, "finite scores"), ([np.nan], 0.05, "finite scores"), ([1.0], 1.0, r"must be in \[0, 1\), got 1.0")],
)
def test_thresholds_that_are_none(scores, rate, message):
    with pytest.raises(ValueError, match=message):
        squeezing.calibrated_threshold(np.asarray(scores), rate)


@pytest.fixture(scope="module")
def detected():
    """A classifier, clean images, and a detector whose squeezer sees what the plain attack does."""
    keys = jax.random.split(jax.random.key(3), 2)
    weights = 8 * jax.random.normal(keys[0], (36, 3))
    logits_fn = lambda x: (x.reshape(len(x), -1) - 0.5) @ weights
    # Flat, so that squeezing takes nothing from them.
    clean = jnp.broadcast_to(jax.random.uniform(keys[1], (16, 1, 1, 1), minval=0.2, maxval=0.8), (16, 6, 6, 1))
    squeezers = [squeezing.squeezer("resample_2"), squeezing.squeezer("median_2_2")]
    return logits_fn, clean, jnp.argmax(logits_fn(clean), axis=1), squeezers


def test_the_adaptive_attack_goes_undetected_where_the_plain_one_is_caught(detected):
    logits_fn, clean, labels, squeezers = detected
    threshold = float(squeezing.detector_scores(logits_fn, squeezers, clean).max()) + 0.05
    settings = {"learning_rate": 0.05, "initial_const": 0.1, "search_steps": 6, "num_steps": 150}
    caught = lambda result: squeezing.is_detected(
        squeezing.detector_scores(logits_fn, squeezers, result.inputs), threshold
    )
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
    np.testing.assert_array_equal(jnp.argmax(logits, axis=1) == 3, squeezing.is_detected(scores, threshold))
    with pytest.raises(ValueError, match="at least one squeezer"):
        squeezing.guarded_classifier(logits_fn, [], 0.5)


@pytest.mark.parametrize("targeted", [False, True])
def test_any_attack_on_the_detector_takes_the_closer_of_those_that_pass(detected, targeted):
    logits_fn, clean, labels, squeezers = detected
    threshold = float(squeezing.detector_scores(logits_fn, squeezers, clean).max()) + 0.05
    targets = (labels + 1) % 3 if targeted else None
    key = jax.random.key(0)
    both = jax.jit(
        lambda threshold: squeezing.attack_detector(
            attacks.ddn, logits_fn, clean, labels, key, squeezers, threshold, targets=targets, num_steps=60
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
    unseen = ~squeezing.is_detected(squeezing.detector_scores(logits_fn, squeezers, alone.inputs), threshold)
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


def test_a_squeezed_classifier_is_a_classifier(images):
    logits_fn = transformed(lambda x: x.mean((1, 2)), squeezing.squeezer("bit_depth_1"))
    np.testing.assert_allclose(logits_fn(images), np.rint(np.asarray(images)).mean((1, 2)), rtol=1e-6)
