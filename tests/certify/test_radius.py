import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddjax
from ddjax import certify, classifier, losses, models
from ddjax.certify import Conv, Dense, MaxPool, Relu, Shift

NORMS = certify.NORMS
# What the guard against rounding may take from a bound.
GUARD = 1e-4


# Shared by tests, for the sake of compilation.
margin_bounds = jax.jit(certify.margin_bounds, static_argnames=("norm", "method"))
evaluate = jax.jit(lambda logits_fn, images: logits_fn(images))
apply = jax.jit(lambda logits_fn, images: certify.apply(certify.layers_of(logits_fn), images))


def normal(key, *shape):
    return jax.random.normal(key, shape)


def conv(key, channels, features, *, padding="VALID", size=3):
    kernel, bias = jax.random.split(key)
    scale = 1.5 / (size * channels**0.5)
    return Conv(scale * normal(kernel, size, size, channels, features), 0.3 * normal(bias, features), padding)


def dense(key, inputs, outputs):
    kernel, bias = jax.random.split(key)
    return Dense(1.5 / inputs**0.5 * normal(kernel, inputs, outputs), 0.3 * normal(bias, outputs))


def random_network(name, key):
    """The layers of a family, drawn at random, and the shape of its images."""
    a, b, c, d = jax.random.split(key, 4)
    if name == "dense":
        return (2, 2, 1), (Shift(-0.5), dense(a, 4, 8), Relu(), dense(b, 8, 6), Relu(), dense(c, 6, 3))
    if name == "conv":
        # 9 x 8, 8 x 7, pooled to 4 x 3, 3 x 2.
        first = (Shift(-0.5), conv(a, 2, 2), Relu(), conv(b, 2, 3, size=2), Relu(), MaxPool())
        return (11, 10, 2), (*first, conv(c, 3, 3, size=2), Relu(), dense(d, 3 * 2 * 3, 4))
    # Odd and padded: the row that pooling drops still sees what the others see. And pooling before the ReLU.
    first = (Shift(-0.5), conv(a, 1, 3, padding="SAME"), MaxPool(), Relu())
    return (5, 5, 1), (*first, conv(b, 3, 3, padding="SAME", size=2), Relu(), dense(c, 2 * 2 * 3, 3))


FAMILIES = ("dense", "conv", "padded")
# Networks of each family, and a radius and a key for each.
COUNT = 150
RADII_AND_KEYS = jnp.tile(jnp.array([0.0, 0.03, 0.3]), COUNT // 3), jax.random.split(jax.random.key(7), COUNT)


@functools.cache
def stack(name, count):
    """Random networks, each with an image, partly at the ends of the box, and its decision."""

    def make(key):
        key, image_key = jax.random.split(key)
        shape, network = random_network(name, key)
        image = jnp.clip(2 * jax.random.uniform(image_key, (1, *shape)) - 0.5, 0, 1)
        return network, image, jnp.argmax(certify.apply(network, image), 1).astype(jnp.int32)

    return jax.jit(jax.vmap(make))(jax.random.split(jax.random.key(FAMILIES.index(name)), count))


def project(delta, radius, norm):
    """Into the ball of perturbations, `[N, H, W, C]`."""
    if norm == "linf":
        return jnp.clip(delta, -radius, radius)
    size = jnp.abs(delta) if norm == "l1" else delta**2
    size = jnp.sum(size, (1, 2, 3), keepdims=True)
    size = size if norm == "l1" else jnp.sqrt(size)
    return delta * jnp.minimum(1, radius / jnp.maximum(size, 1e-12))


def steepest(gradient, norm):
    if norm == "linf":
        return jnp.sign(gradient)
    if norm == "l2":
        return gradient
    largest = jnp.max(jnp.abs(gradient), (1, 2, 3), keepdims=True)
    return jnp.where(jnp.abs(gradient) == largest, jnp.sign(gradient), 0)


def scatter(image, radius, norm, key, count):
    """Random points and corners of the ball, within the box."""
    inner, outer = jax.random.split(key)
    shape = (count // 2, *image.shape[1:])
    corners = steepest(jax.random.normal(outer, shape), norm)
    delta = jnp.concatenate([jax.random.uniform(inner, shape, minval=-1), corners])
    sizes = jnp.tile(jnp.linspace(0.1, 4, count // 2), 2)[:, None, None, None]
    return jnp.clip(image + project(delta * radius * sizes, radius, norm), 0, 1)


def search(network, image, label, radius, norm, key, *, count=12, steps=6):
    """The least margin found in the ball, by descent on the margin over each class from many places."""
    start = scatter(image, radius, norm, key, count) - image
    num_classes = jax.eval_shape(certify.apply, network, image).shape[1]
    rivals = jnp.repeat(jnp.arange(num_classes), count)
    delta = jnp.tile(start, (num_classes, 1, 1, 1))
    difference = jax.nn.one_hot(label, num_classes) - jax.nn.one_hot(rivals, num_classes)

    def step(delta, _):
        def total(delta):
            logits = certify.apply(network, image + delta)
            return jnp.sum(logits * difference), losses.margin(logits, jnp.broadcast_to(label, rivals.shape))

        gradient, margins = jax.grad(total, has_aux=True)(delta)
        gradient = steepest(gradient, norm)
        size = jnp.sqrt(jnp.sum(gradient**2, (1, 2, 3), keepdims=True)) if norm == "l2" else 1.0
        delta = project(delta - 0.5 * radius * gradient / jnp.maximum(size, 1e-12), radius, norm)
        # Clipping brings a point closer to the image: it stays in the ball.
        return jnp.clip(image + delta, 0, 1) - image, jnp.min(margins)

    return jnp.min(jax.lax.scan(step, delta, length=steps + 1)[1])


@pytest.mark.parametrize(("name", "norm"), [("dense", "linf"), ("conv", "linf"), ("padded", "l2"), ("dense", "l1")])
def test_nothing_in_the_ball_that_was_proved_is_decided_otherwise(name, norm):
    networks, images, labels = stack(name, COUNT)

    def attack(case):
        network, image, label, key = case
        radius = certify.largest_radius(network, image, label, norm=norm, num_bisections=8)[0]
        # Half as far again some decisions change, or else the search would show nothing.
        radii = jnp.stack([radius, 1.5 * radius + 0.05])
        return radius, jax.lax.map(lambda radius: search(network, image, label, radius, norm, key), radii)

    keys = RADII_AND_KEYS[1]
    radii, (least, further) = jax.tree.map(
        np.asarray, jax.jit(lambda *stacked: unzip(jax.lax.map(attack, stacked)))(networks, images, labels, keys)
    )
    assert np.mean(radii > 0) > 0.95
    assert least[radii > 0].min() >= 0
    assert np.mean(further < 0) > 0.2


def unzip(results):
    radii, margins = results
    return radii, margins.T


@pytest.mark.parametrize(("name", "norm"), [("conv", "linf"), ("padded", "l2")])
def test_every_neuron_stays_within_its_bounds(name, norm):
    def violations(case):
        network, image, _, radius, key = case
        values = scatter(image, radius, norm, key, 200)
        outside = []
        enclosed = certify.layer_bounds(network, image, radius, norm=norm)
        for layer, (lower, upper) in zip(network, enclosed, strict=True):
            values = certify.apply((layer,), values)
            outside.append(jnp.max(jnp.maximum(lower - values, values - upper)))
        return jnp.stack(outside)

    run = jax.jit(lambda *stacked: jax.lax.map(violations, stacked))
    assert float(run(*stack(name, COUNT), *RADII_AND_KEYS).max()) <= 1e-6


@pytest.mark.parametrize(("norm", "method"), [("l1", "crown"), ("l2", "crown-ibp"), ("linf", "interval")])
def test_every_margin_stays_above_its_bound(norm, method):
    def violation(case):
        network, image, label, radius, key = case
        logits = certify.apply(network, scatter(image, radius, norm, key, 200))
        margins = jnp.take_along_axis(logits, jnp.broadcast_to(label, (len(logits), 1)), 1) - logits
        least = certify.margin_bounds(network, image, label, radius, norm=norm, method=method)
        # Infinite for the label itself.
        return jnp.max(jnp.where(jnp.isinf(least), -1.0, least - margins))

    run = jax.jit(lambda *stacked: jax.lax.map(violation, stacked))
    assert float(run(*stack("dense", COUNT), *RADII_AND_KEYS).max()) <= 1e-6


def linear_network(scale, seed=5):
    """A linear classifier with weights of a size, images, and the closed-form radii in each norm, in float64."""
    rng = np.random.default_rng(seed)
    kernel = (scale * rng.normal(size=(12, 4))).astype(np.float32)
    bias = (scale * rng.normal(size=4)).astype(np.float32)
    images = rng.uniform(0.4, 0.6, size=(20, 3, 4, 1)).astype(np.float32)
    wide, offset = kernel.astype(np.float64), bias.astype(np.float64)
    logits = images.reshape(20, -1).astype(np.float64) @ wide + offset
    labels = logits.argmax(1)
    exact, points = {}, np.zeros_like(images, np.float64)
    for norm, dual in (("linf", 1), ("l2", 2), ("l1", np.inf)):
        exact[norm] = np.full(20, np.inf)
        for row, label in enumerate(labels):
            for rival in set(range(4)) - {label}:
                slope = wide[:, label] - wide[:, rival]
                radius = (logits[row, label] - logits[row, rival]) / np.linalg.norm(slope / scale, dual) / scale
                if norm == "l2" and radius < exact[norm][row]:
                    # Just across the boundary.
                    direction = (slope / np.linalg.norm(slope / scale) / scale).reshape(3, 4, 1)
                    points[row] = images[row] - 1.01 * radius * direction
                exact[norm][row] = min(exact[norm][row], radius)
    network = (Dense(jnp.asarray(kernel), jnp.asarray(bias)),)
    return network, jnp.asarray(images), jnp.asarray(labels, jnp.int32), exact, points


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e-30])
@pytest.mark.parametrize("norm", NORMS)
def test_radius_on_linear_classifier_is_the_closed_form(norm, scale):
    network, images, labels, exact, points = linear_network(scale)
    found = certify.largest_radius(network, images, labels, norm=norm, num_bisections=24, bounds=(-50.0, 50.0))
    assert np.all(found <= exact[norm])
    np.testing.assert_allclose(found, exact[norm], rtol=0.02 if scale == 1e-30 else 1e-3)
    if norm == "l2":
        # Points that are decided otherwise in float64 are outside of what is proved.
        kernel, bias = (np.asarray(leaf, np.float64) for leaf in (network[0].kernel, network[0].bias))
        assert np.all((points.reshape(20, -1) @ kernel + bias).argmax(1) != np.asarray(labels))
        assert np.all(np.linalg.norm((points - images).reshape(20, -1), axis=1) > np.asarray(found))


@pytest.mark.parametrize("method", certify.METHODS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-10, 1e-15, 1e-19])
def test_deep_network_of_tiny_activations_proves_nothing_that_float64_refutes(norm, method, scale):
    # Products of two activations or weights underflow, in the chords of the ReLUs and in the coefficients.
    rng = np.random.default_rng(3)
    shapes = ((4, 6), (6, 5), (5, 3))
    wide = [
        (scale**0.5 * rng.normal(size=shape), scale ** (0.5 * depth + 0.5) * rng.normal(size=shape[1]))
        for depth, shape in enumerate(shapes)
    ]
    wide = [(np.float32(kernel).astype(np.float64), np.float32(bias).astype(np.float64)) for kernel, bias in wide]
    layers = [Dense(jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32)) for kernel, bias in wide]
    network = (layers[0], Relu(), layers[1], Relu(), layers[2])

    def logits(points):
        hidden = points.reshape(len(points), -1)
        for depth, (kernel, bias) in enumerate(wide):
            hidden = (np.maximum(hidden, 0) if depth else hidden) @ kernel + bias
        return hidden

    images = np.float32(rng.uniform(0.2, 0.8, (8, 2, 2, 1)))
    labels = logits(images.astype(np.float64)).argmax(1).astype(np.int32)
    for radius in (0.1, 0.5):
        least = np.asarray(
            margin_bounds(
                network, jnp.asarray(images), jnp.asarray(labels, jnp.int32), radius, norm=norm, method=method
            )
        ).astype(np.float64)
        away = rng.normal(size=(8, 500, 4))
        order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
        away *= radius / np.linalg.norm(away, order, axis=2, keepdims=True)
        points = np.clip(images.reshape(8, 1, 4) + away, 0, 1)
        values = logits(points.reshape(-1, 4)).reshape(8, 500, 3)
        margins = (np.take_along_axis(values, labels[:, None, None], 2) - values).min(1)
        others = np.arange(3)[None] != labels[:, None]
        assert np.all(least[others] <= margins[others])


@pytest.mark.parametrize("lower", [-1e-20, -1e-30, -1e10])
@pytest.mark.parametrize("upper", [1e-20, 1e-30, 1e10])
def test_relaxed_layers_of_tiny_or_unequal_intervals_lie_above_and_below(lower, upper):
    network = (Relu(), Dense(jnp.array([[1.0, -1.0]]), jnp.zeros(2)))
    center, radius = np.float32((lower + upper) / 2), np.float32((upper - lower) / 2)
    least = np.asarray(
        margin_bounds(
            network, jnp.full((1, 1, 1, 1), center), jnp.array([1]), radius, norm="linf", bounds=(-1e11, 1e11)
        )
    )[0, 0]
    # The margin of the second logit over the first is -2 relu(x).
    assert least <= -2 * max(float(center) + float(radius), 0)
    assert least >= -2.1 * max(float(center) + float(radius), 0) - 1e-4 * float(radius) - 1e-33


@pytest.mark.parametrize("of_network", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("of_images", [jnp.float32, jnp.float64])
def test_float64_networks_and_images_are_certified_in_float64(of_network, of_images):
    with jax.enable_x64(True):
        shape, network = random_network("conv", jax.random.key(0, impl="threefry2x32"))
        images = jax.random.uniform(jax.random.key(1), (2, *shape), jnp.float32)
        labels = certify.apply(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), network), images).argmax(1)
        wide = jnp.float64 in (of_network, of_images)
        cast = jax.tree.map(lambda leaf: jnp.asarray(leaf, of_network), network)
        images = images.astype(of_images)

        @jax.jit
        def run(network, images):
            found = certify.largest_radius(network, images, labels, num_bisections=6, norm="l2", method="crown-ibp")
            return found, certify.margin_bounds(network, images, labels, found, norm="l2", method="crown-ibp")

        found, least = run(cast, images)
        assert found.dtype == least.dtype == (jnp.float64 if wide else jnp.float32)
        assert found.min() > 0
        assert least.min() > 0
        lower, upper = jax.eval_shape(lambda *given: certify.layer_bounds(*given, 0.01)[-1], cast, images)
        assert lower.dtype == upper.dtype == found.dtype


def test_vectors_have_the_radii_of_the_images_that_they_fill():
    network, images, labels, exact, _ = linear_network(1.0)
    run = functools.partial(certify.largest_radius, network, labels=labels, num_bisections=12, bounds=(-50.0, 50.0))
    for norm in NORMS:
        np.testing.assert_allclose(run(images.reshape(20, 12), norm=norm), exact[norm], rtol=0.01)


def test_linf_meets_the_pixels_bounds_exactly():
    # The logits part by 1 - 2 x_0 - 2 x_1 + x_2, and x_1 = 0.1, x_2 = 0 can fall no further.
    kernel = jnp.array([[-1.0, 1.0], [1.0, -1.0], [0.5, -0.5]])
    network = (Dense(kernel, jnp.array([0.5, -0.5])),)
    images, labels = jnp.array([0.2, 0.1, 0.0]).reshape(1, 1, 3, 1), jnp.array([0])
    least = certify.margin_bounds(network, images, labels, 0.3)[0, 1]
    np.testing.assert_allclose(least, 1 - 2 * 0.5 + 2 * 0.0 + 0.0, atol=GUARD)
    # In L2 the pixel at its bound takes no part, the one near it does.
    least = certify.margin_bounds(network, images, labels, 0.05, norm="l2")[0, 1]
    np.testing.assert_allclose(least, 1 - 2 * 0.2 + 2 * 0.1 - 0.05 * 8**0.5, atol=GUARD)


def test_between_brute_force_and_a_third_of_it_on_two_pixels():
    def make(key):
        a, b, c = jax.random.split(key, 3)
        return (Shift(-0.5), dense(a, 2, 8), Relu(), dense(b, 8, 6), Relu(), dense(c, 6, 3))

    count = 40
    networks = jax.vmap(make)(jax.random.split(jax.random.key(1), count))
    image = jnp.array([0.55, 0.4]).reshape(1, 1, 2, 1)
    axis = jnp.linspace(0, 1, 301)
    grid = jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 1, 2, 1)
    away = np.asarray(grid - image).reshape(-1, 2)
    distance = np.linalg.norm(away, axis=1)

    def run(network):
        label = jnp.argmax(certify.apply(network, image), 1).astype(jnp.int32)
        proved = certify.largest_radius(network, image, label, norm="l2")[0]
        return proved, jnp.argmax(certify.apply(network, grid), 1) != label[0]

    proved, changed = jax.jit(jax.vmap(run))(networks)
    true = np.array([distance[row].min(initial=np.inf) for row in np.asarray(changed)])
    assert np.all(proved <= true)
    inside = true < 0.4
    assert inside.sum() > 10
    ratio = np.asarray(proved)[inside] / true[inside]
    assert np.median(ratio) > 0.6
    assert ratio.min() > 1 / 3


@pytest.fixture(scope="module")
def trained_like():
    """A padded and an unpadded network of `ddjax.models`, centered, with two stages."""
    found = []
    for padding in ("VALID", "SAME"):
        module = models.ConvNet(num_classes=4, stages=((3,), (4,)), dense=(8,), dropout=(0.5,), padding=padding)
        images = jnp.clip(1.5 * jax.random.uniform(jax.random.key(1), (3, 10, 11, 2)) - 0.25, 0, 1)
        logits_fn = ddjax.bind(module, jax.jit(module.init)(jax.random.key(2), images))
        found.append((logits_fn, images, jnp.argmax(evaluate(logits_fn, images), 1).astype(jnp.int32)))
    return found


def test_layers_say_the_same_as_the_module(trained_like):
    for logits_fn, images, _ in trained_like:
        network = certify.layers_of(logits_fn)
        assert certify.layers_of(network) is network
        np.testing.assert_allclose(apply(logits_fn, images), evaluate(logits_fn, images), rtol=1e-5, atol=1e-6)
        # Temperature changes no decision, hence no radius.
        tempered = classifier.at_temperature(logits_fn, 20.0)
        np.testing.assert_allclose(apply(tempered, images), evaluate(tempered, images), rtol=1e-5, atol=1e-6)


def test_patches_bound_what_whole_images_bound(trained_like):
    logits_fn, images, _ = trained_like[0]
    network = certify.layers_of(logits_fn)
    # A padded convolution that changes nothing, after which no layer is taken for free of padding.
    identity = Conv(jnp.eye(2)[None, None], jnp.zeros(2), "SAME")
    run = jax.jit(lambda network: certify.layer_bounds(network, images[:1], 0.05))
    for patched, whole in zip(run(network), run((identity, *network))[1:], strict=True):
        for one, other in zip(patched, whole, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


def test_methods_are_ordered_and_bounds_fall_with_the_radius(trained_like):
    radii = [0.0, 0.01, 0.02, 0.05, 0.1]
    for logits_fn, images, labels in trained_like:
        interval, crown_ibp, crown = (
            np.stack([margin_bounds(logits_fn, images, labels, radius, norm="l2", method=method) for radius in radii])
            for method in certify.METHODS
        )
        tolerance = 1e-3 * np.abs(np.where(np.isinf(interval), 0, interval)) + 1e-4
        assert np.all(crown_ibp >= interval - tolerance)
        assert np.all(crown >= interval - tolerance)
        # As a rule only: tighter intervals may choose the other line under a ReLU.
        assert np.mean(crown >= crown_ibp - tolerance) > 0.9
        # Without a radius, all are the margin itself, but for the guard.
        logits = np.asarray(evaluate(logits_fn, images))
        margins = np.take_along_axis(logits, np.asarray(labels)[:, None], 1) - logits
        for values in (interval, crown_ibp, crown):
            others = np.isfinite(values[0])
            assert np.array_equal(~others, np.arange(4)[None] == np.asarray(labels)[:, None])
            np.testing.assert_allclose(values[0][others], margins[others], atol=0.02 * margins.max())
            finite = np.where(np.isinf(values), 0, values)
            assert np.all(finite[1:] <= finite[0] + 1e-6)
            # From one radius to the next, other lines under the ReLUs may let the others rise a little.
            if values is interval:
                assert np.all(np.diff(finite, axis=0) <= 1e-6)


def test_radius_is_zero_for_a_wrong_label_and_below_highest_for_each(trained_like):
    logits_fn, images, labels = trained_like[1]
    highest = jnp.array([1e-3, 0.0, 10.0])
    run = jax.jit(functools.partial(certify.largest_radius, num_bisections=6, method="crown-ibp", norm="l2"))
    right = run(logits_fn, images, labels, highest=highest)
    assert np.all(right <= highest)
    assert right[0] > 0.8e-3
    assert right[2] > 1e-3
    wrong = run(logits_fn, images, (labels + 1) % 4, highest=highest)
    assert not wrong.any()
    # What is returned was itself proved.
    assert margin_bounds(logits_fn, images, labels, right, norm="l2", method="crown-ibp").min() > 0


def test_what_is_no_radius_or_no_image_proves_nothing():
    network, images, labels = jax.tree.map(lambda leaf: leaf[0], stack("dense", COUNT))
    for norm in NORMS:
        run = jax.jit(functools.partial(certify.margin_bounds, norm=norm))
        assert run(network, images, labels, 1e-3).min() > 0
        for radius in (-0.1, float("nan"), float("inf")):
            assert run(network, images, labels, radius).min() <= 0, (norm, radius)
        assert run(network, images * jnp.nan, labels, 1e-3).min() == -jnp.inf
    # Values that overflow.
    huge = jax.tree.map(lambda leaf: leaf * 1e30, network)
    assert run(huge, images, labels, 1e-3).min() == -jnp.inf


def test_an_example_has_its_radius_whatever_its_batch(trained_like):
    logits_fn, images, labels = trained_like[0]
    radii = jnp.array([0.01, 0.02, 0.03])
    together = margin_bounds(logits_fn, images, labels, radii, norm="linf", method="interval")
    for row in range(3):
        one = slice(row, row + 1)
        alone = margin_bounds(logits_fn, images[one], labels[one], radii[row], norm="linf", method="interval")
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-5, atol=1e-5)


def test_refuses_what_it_cannot_certify(trained_like):
    logits_fn, images, labels = trained_like[0]
    network = certify.layers_of(logits_fn)
    bound = functools.partial(certify.margin_bounds, images=images, labels=labels, radius=0.1)
    for unknown in (lambda x: x.reshape(3, -1), jax.tree_util.Partial(jnp.sin)):
        with pytest.raises(ValueError, match="ConvNet"):
            bound(unknown)
    with pytest.raises(ValueError, match="ends in a Dense"):
        bound(network[:-1])
    with pytest.raises(ValueError, match="ends in a Dense"):
        bound(())
    training = ddjax.bind(logits_fn.func.module, logits_fn.args[0], train=True)
    with pytest.raises(ValueError, match="dropout"):
        bound(training)
    with pytest.raises(ValueError, match="known: linf, l2, l1"):
        bound(logits_fn, norm="l0")
    with pytest.raises(ValueError, match="known: interval, crown-ibp, crown"):
        bound(logits_fn, method="exact")
    for radius in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="radius must be"):
            bound(logits_fn, radius=radius)
    with pytest.raises(ValueError, match="inside the bounds"):
        bound(logits_fn, images=images + 1)
    with pytest.raises(ValueError, match="classes from 0 to 3"):
        bound(logits_fn, labels=labels + 4)
    search = functools.partial(certify.largest_radius, logits_fn, images, labels)
    with pytest.raises(ValueError, match="lowest"):
        search(lowest=0.0)
    with pytest.raises(ValueError, match="highest"):
        search(highest=float("nan"))
    with pytest.raises(ValueError, match="num_bisections"):
        search(num_bisections=0)
