import collections

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from ddjax import layers, models
from ddjax.binding import bind
from ddjax.defenses import lid

DIMENSIONALITY = jax.jit(lid.local_intrinsic_dimensionality, static_argnames="neighbors")
ACTIVATIONS = jax.jit(lid.activations)
SCORES = jax.jit(lid.Detector.scores)
IMAGES = jax.random.uniform(jax.random.key(0), (5, 3, 3, 1))
REFERENCES = jax.random.uniform(jax.random.key(1), (9, 3, 3, 1))


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class Head(nn.Module):
    @nn.compact
    def __call__(self, hidden):
        return nn.Dense(3)(hidden)


class Network(nn.Module):
    """A layer of each kind, and one that is called twice."""

    @nn.compact
    def __call__(self, images):
        hidden = layers.Conv(2, (2, 2))(images)
        hidden = nn.BatchNorm(use_running_average=True)(hidden)
        again = layers.ReLU()
        hidden = again(again(hidden + 1) - 0.5).reshape(images.shape[0], -1)
        return Head()(nn.Dropout(0.5, deterministic=True)(hidden))


@pytest.fixture(scope="module")
def network():
    module = Network()
    return bind(module, jax.jit(module.init)(jax.random.key(2), IMAGES))


def oracle(queries, references, neighbors):
    distances = np.sort(cdist(np.asarray(queries, np.float64), np.asarray(references, np.float64)), axis=1)
    nearest = distances[:, 1 : neighbors + 1]
    return -neighbors / np.log(nearest / nearest[:, -1:]).sum(1)


def rounding(queries, references, neighbors):
    """A bound of the relative error, from that of squared distances: some units in the last place of squared norms."""
    center = np.asarray(references, np.float64).mean(0)
    queries, references = (np.asarray(points, np.float64) - center for points in (queries, references))
    squared = cdist(queries, references) ** 2
    order = np.argsort(squared, axis=1)[:, 1 : neighbors + 1]
    sizes = (queries**2).sum(1)[:, None] + (references**2).sum(1)[None]
    lost = 8 * np.finfo(np.float32).eps * np.take_along_axis(sizes / np.maximum(squared, 1e-30), order, axis=1)
    # The estimate is the inverse of the mean of half the logarithms of ratios of squared distances.
    return oracle(queries, references, neighbors) * (lost.mean(1) + lost[:, -1]) / 2 + 1e-5


@pytest.mark.parametrize(("size", "neighbors", "offset"), [(1, 2, 0.0), (3, 5, 0.0), (400, 20, 0.0), (30, 49, 10.0)])
def test_is_the_naive_one(size, neighbors, offset):
    rng = np.random.default_rng(size)
    references = (rng.normal(size=(50, size)) + offset).astype(np.float32)
    # Queries elsewhere, near a reference as adversarial images are, and references themselves.
    queries = np.concatenate([references[:5] + np.float32(0.7), references[5:10] * np.float32(1.001), references[10:]])
    found = DIMENSIONALITY(queries, references, neighbors=neighbors)
    expected, relative = oracle(queries, references, neighbors), rounding(queries, references, neighbors)
    # Most estimates are far more accurate: the bound is loose where a neighbor is very near.
    assert np.median(relative) < 1e-3
    assert (np.abs(found - expected) <= relative * expected).all()
    eager = lid.local_intrinsic_dimensionality(jnp.asarray(queries[:2]), jnp.asarray(references), neighbors=neighbors)
    assert (np.abs(eager - found[:2]) <= (2 * relative * expected)[:2]).all()


@pytest.mark.parametrize("dimension", [1, 2, 5, 10])
def test_balls_have_the_dimension_that_they_have(dimension):
    rng = np.random.default_rng(dimension)
    directions = rng.normal(size=(4000, dimension))
    points = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    points = points * rng.uniform(size=(4000, 1)) ** (1 / dimension)
    points[::100] = 0
    # In a space of more dimensions. The center, which is a reference of each minibatch too, sees no edge.
    turn = np.linalg.qr(rng.normal(size=(dimension + 3,) * 2))[0]
    minibatches = jnp.asarray((points @ turn[:dimension]).reshape(40, 100, dimension + 3), jnp.float32)
    found = jax.vmap(lambda references: DIMENSIONALITY(references[:1], references)[0])(minibatches)
    # Nineteen of twenty terms have a mean of 1 / d, the last is zero.
    inverse = 20 / 19 / np.asarray(found)
    assert abs(inverse.mean() - 1 / dimension) <= 3 * inverse.std() / np.sqrt(40)
    assert float(found.mean()) == pytest.approx(dimension, rel=0.2)


def test_scale_place_and_order_do_not_matter():
    points = normal(3, 40, 6)
    queries = points[:8] + np.float32(0.1)
    found = DIMENSIONALITY(queries, points)
    for scale in np.float32([1e-6, 1e6]):
        np.testing.assert_allclose(DIMENSIONALITY(scale * queries, scale * points), found, rtol=1e-4)
    three = np.float32(3)
    np.testing.assert_allclose(DIMENSIONALITY(queries + three, points + three), found, rtol=1e-3)
    np.testing.assert_allclose(DIMENSIONALITY(queries[::-1], points[::-1]), np.asarray(found)[::-1], rtol=1e-5)


def test_the_closest_does_not_count():
    points = normal(4, 30, 6)
    nearer = np.concatenate([points[:1] * np.float32(1.0001), points[1:]])
    query = points[:1]
    found = np.asarray(DIMENSIONALITY(query, points))
    np.testing.assert_allclose(found, DIMENSIONALITY(query, nearer), rtol=1e-4)
    assert abs(np.asarray(DIMENSIONALITY(query, points, neighbors=19))[0] - found[0]) > 1e-3


def test_duplicates_give_numbers_and_gradients():
    points = normal(5, 1, 4)
    some = np.concatenate([np.broadcast_to(points, (12, 4)), normal(6, 12, 4)])
    value_and_gradient = jax.jit(jax.value_and_grad(lambda q, r: DIMENSIONALITY(q, r).sum()))
    for references in (some, np.broadcast_to(points, (24, 4)), np.zeros((24, 4), np.float32)):
        for query in (points, references[:1]):
            value, gradient = value_and_gradient(query, references)
            assert 0 < float(value) <= 1.1e6
            assert np.isfinite(gradient).all()
    # Eleven neighbors at no distance, of twenty: hardly any dimension.
    assert float(value_and_gradient(points, some)[0]) < 0.4


def test_gradient_is_the_difference():
    points = normal(7, 25, 3)
    query, direction = normal(8, 2, 1, 3)
    slope = jax.jit(lambda q, d: jax.jvp(lambda q: DIMENSIONALITY(q, points), (q,), (d,))[1])(query, direction)
    ends = [oracle(query + np.float32(h) * direction, points, 20) for h in (-1e-3, 1e-3)]
    np.testing.assert_allclose(slope, (ends[1] - ends[0]) / 2e-3, rtol=1e-2)


@pytest.mark.parametrize(("neighbors", "count"), [(1, 10), (0, 10), (10, 10), (20, 5)])
def test_too_few(neighbors, count):
    with pytest.raises(ValueError, match=f"got {neighbors} neighbors and {count} references"):
        lid.local_intrinsic_dimensionality(jnp.zeros((3, 2)), jnp.zeros((count, 2)), neighbors=neighbors)


def test_activations_are_those_of_each_layer_in_order(network):
    logits, found = jax.jit(lambda f, x: (f(x), lid.activations(f, x)))(network, IMAGES)
    names = ["input", "Conv_0", "BatchNorm_0", "ReLU_0", "ReLU_0#2", "Head_0/Dense_0"]
    assert isinstance(found, collections.OrderedDict)
    assert list(found) == names
    found, images = jax.tree.map(np.asarray, (found, IMAGES))
    np.testing.assert_array_equal(found["input"], images.reshape(5, -1))
    np.testing.assert_allclose(found["ReLU_0"], np.maximum(found["BatchNorm_0"] + 1, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["ReLU_0#2"], np.maximum(found["ReLU_0"] - 0.5, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["Head_0/Dense_0"], logits, rtol=1e-5, atol=1e-6)
    kernel = np.asarray(network.args[0]["params"]["Conv_0"]["kernel"])
    by_hand = sum(
        np.tensordot(images[:, i : i + 2, j : j + 2], kernel[i, j], axes=1) for i in range(2) for j in range(2)
    )
    np.testing.assert_allclose(found["Conv_0"], by_hand.reshape(5, -1), rtol=1e-5, atol=1e-6)
    assert {values.shape[0] for values in found.values()} == {5}


def test_which_layers_count_is_a_setting_and_the_root_has_a_name(network):
    assert list(lid.activations(network, IMAGES, after=(nn.Dense,))) == ["input", "Head_0/Dense_0"]
    root = nn.Dense(2)
    images = IMAGES[:, :1, :1]
    logits_fn = bind(root, jax.jit(root.init)(jax.random.key(0), images))
    assert list(lid.activations(lambda x: logits_fn(x) + logits_fn(1 - x), images)) == ["input", "Dense", "Dense#2"]


def test_the_papers_networks_show_all_layers():
    module, images = models.build("digits", 10), jnp.zeros((2, 8, 8, 1))
    network = bind(module, jax.eval_shape(module.init, jax.random.key(0), images))
    found = jax.eval_shape(lid.activations, network, images)
    names = ["input", "Conv_0", "ReLU_0", "Conv_1", "ReLU_1", "Dense_0", "ReLU_2", "Dense_1"]
    assert [(name, values.shape[1]) for name, values in found.items()] == list(
        zip(names, [64, 1024, 1024, 2048, 2048, 64, 64, 10], strict=True)
    )


def test_classifiers_without_layers(network):
    with pytest.raises(ValueError, match="calls no module of the types flax.linen.linear.Embed"):
        lid.activations(network, IMAGES, after=(nn.Embed,))
    with pytest.raises(ValueError, match="no layers to see"):
        lid.features(lambda x: x.sum((1, 2)), IMAGES, REFERENCES, neighbors=4)
    # Nothing listens any more.
    assert network(IMAGES).shape == (5, 3)


def test_features_are_the_dimensionalities_of_each_layer(network):
    found = np.asarray(jax.jit(lambda f, q, r: lid.features(f, q, r, neighbors=4))(network, IMAGES, REFERENCES))
    queries, references = (ACTIVATIONS(network, images) for images in (IMAGES, REFERENCES))
    assert found.shape == (5, 6)
    for column, name in enumerate(queries):
        np.testing.assert_allclose(found[:, column], oracle(queries[name], references[name], 4), rtol=2e-3)
    few = jax.jit(lambda f, q, r: lid.features(f, q, r, neighbors=4, after=(layers.Conv,)))
    alone = few(network, np.asarray(IMAGES)[3:4], REFERENCES)
    np.testing.assert_allclose(alone, found[3:4, :2], rtol=1e-3)


def test_noise_is_as_large_as_the_attack():
    images = np.float32(0.5) + np.float32(0.05) * np.asarray(IMAGES)
    change = np.arange(5.0)[:, None, None, None] * np.linspace(-0.02, 0.02, 9).reshape(1, 3, 3, 1)
    like = images + change.astype(np.float32)
    keys = jax.random.split(jax.random.key(9), 5)
    noisy = jax.jit(lid.noisy)
    found = np.asarray(noisy(images, like, keys))
    sizes = lambda values: np.linalg.norm(values.reshape(5, -1), axis=1)
    np.testing.assert_allclose(sizes(found - images), sizes(like - images), rtol=1e-4)
    np.testing.assert_array_equal(found[0], images[0])
    np.testing.assert_allclose(noisy(images[2:3], like[2:3], keys[2:3])[0], found[2], rtol=1e-6)
    cut = np.asarray(noisy(images, 5 * like - 4 * images + 1, keys))
    assert cut.min() == 0
    assert cut.max() == 1


def kinds(seed, count=30, shift=3.0):
    """Features of three layers, of which the second tells."""
    rng = np.random.default_rng(seed)
    clean, noisy, adversarial = rng.normal([5, 10, 300], [1, 2, 50], (3, count, 3))
    adversarial[:, 1] += 2 * shift
    return clean, noisy, adversarial


@pytest.fixture(scope="module")
def fitted():
    return lid.fit_detector(*kinds(0))


def test_detector_separates_what_it_has_not_seen(fitted):
    clean, noisy, adversarial = kinds(1)
    scores = np.asarray(SCORES(fitted, np.concatenate([clean, noisy, adversarial]).astype(np.float32)))
    truth = np.repeat([0, 0, 1], 30)
    assert roc_auc_score(truth, scores) > 0.95
    assert ((scores > 0.5) == truth).mean() > 0.85


def test_detector_is_that_of_scikit_learn(fitted):
    search = GridSearchCV(
        make_pipeline(MinMaxScaler(), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": np.logspace(-4, 4, 10)},
        cv=StratifiedKFold(5, shuffle=True, random_state=0),
    ).fit(np.concatenate(kinds(0)), np.repeat([0, 0, 1], 30))
    # Values outside of the range that was fitted as well.
    values = np.concatenate(kinds(1, shift=5.0))
    found = SCORES(fitted, values.astype(np.float32))
    np.testing.assert_allclose(found, search.predict_proba(values)[:, 1], atol=1e-4)
    odds = fitted.log_odds(jnp.asarray(values, jnp.float32))
    np.testing.assert_allclose(odds, search.decision_function(values), rtol=1e-3, atol=1e-3)


def test_detector_is_the_same_for_the_same_seed_and_a_constant_layer_decides_nothing(fitted):
    dull = [jnp.asarray(np.concatenate([kind, np.full((30, 1), 7.0)], axis=1), jnp.float32) for kind in kinds(0)]
    found = lid.fit_detector(*dull)
    np.testing.assert_allclose(found.weights, [*fitted.weights, 0.0], rtol=1e-2, atol=1e-4)
    np.testing.assert_allclose(found.bias, fitted.bias, rtol=1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b, c: (a, b, c[:4]), r"5 or more features of each kind from the same layers, got \(30, 3\)"),
        (lambda a, b, c: (a, b, c * np.nan), "finite"),
    ],
)
def test_features_that_fit_nothing(change, message):
    with pytest.raises(ValueError, match=message):
        lid.fit_detector(*change(*kinds(0)))


def test_features_of_other_layers_fit_nothing():
    clean, noisy, adversarial = kinds(0)
    # Refused by the type hints here, and by the function itself without them.
    with pytest.raises((ValueError, TypeError)):
        lid.fit_detector(clean, noisy[:, :2], adversarial)


def test_images_are_scored_by_one_differentiable_function(network):
    detector = lid.Detector(jnp.array([0.1, -0.2, 0.3, 0.1, 0.0, 0.2]), jnp.float32(-1))

    def score(logits_fn, detector, images):
        found = lid.detector_scores(logits_fn, detector, images, REFERENCES, neighbors=4)
        return found[1], found

    gradient, found = jax.jit(jax.grad(score, argnums=2, has_aux=True))(network, detector, IMAGES)
    expected = SCORES(detector, jax.jit(lambda x: lid.features(network, x, REFERENCES, neighbors=4))(IMAGES))
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert np.isfinite(gradient).all()
    # An image's score is its own affair.
    moved = np.abs(np.asarray(gradient)).max((1, 2, 3)) > 0
    np.testing.assert_array_equal(moved, [False, True, False, False, False])
    few = lid.Detector(jnp.ones(2), 0.0)
    apart = lambda x: lid.detector_scores(network, few, x, REFERENCES, neighbors=4, after=(nn.Dense,))
    assert jax.eval_shape(apart, IMAGES).shape == (5,)
