import functools

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import models


def random_images(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


def initialize(module, images, seed=0):
    """Compiled, because that takes less time than operation by operation."""
    return jax.jit(module.init)(jax.random.key(seed), images)


def residual(units, width, stages):
    """The parameters of all units, and of the last normalization, with two means and variances a channel each."""
    total = 0
    for stage in stages:
        for _ in range(units):
            total += 4 * width + 9 * width * stage + stage + 4 * stage + 9 * stage * stage + stage
            width = stage
    return total + 4 * width


# The number of parameters follows from the papers' tables: convolutions, then the flattened features times the dense
# layers.
PARAMETERS = {
    "papernot_mnist": (28, 1, 320 + 9248 + 18496 + 36928 + (1024 + 1) * 200 + 201 * 200 + 201 * 10),
    "papernot_cifar10": (32, 3, 1792 + 36928 + 73856 + 147584 + (3200 + 1) * 256 + 257 * 256 + 257 * 10),
    "carlini_mnist": (28, 1, 320 + 9248 + 18496 + 36928 + (1024 + 1) * 200 + 201 * 200 + 201 * 10),
    "small_mnist": (28, 1, 320 + 18496 + (1600 + 1) * 128 + 129 * 10),
    # Each convolution has a scale and an offset by channel, and as many means and variances.
    "vgg10": (
        224,
        3,
        896
        + 9248
        + 18496
        + 36928
        + 73856
        + 5 * 147584
        + 4 * 2 * (32 + 64 + 3 * 128)
        + (6272 + 1) * 4096
        + 4097 * 4096
        + 4097 * 10,
    ),
    "lid_mnist": (28, 1, 640 + 36928 + (12 * 12 * 64 + 1) * 128 + 129 * 10),
    "lid_cifar10": (
        32,
        3,
        896 + 9248 + 18496 + 36928 + 73856 + 147584 + (2048 + 1) * 1024 + 1025 * 512 + 513 * 10,
    ),
    "small_cifar10": (32, 3, 448 + 2320 + 4640 + 9248 + (2048 + 1) * 128 + 129 * 10),
    "madry_cifar10": (32, 3, 448 + residual(5, 16, (160, 320, 640)) + 641 * 10),
    "resnet20": (32, 3, 448 + residual(3, 16, (16, 32, 64)) + 65 * 10),
    "mlp": (8, 1, (64 + 1) * 64 + 65 * 64 + 65 * 10),
    "digits": (8, 1, 160 + 4640 + (512 + 1) * 64 + 65 * 10),
}


@pytest.mark.parametrize("name", [network.name for network in models.NETWORKS])
def test_networks_have_the_papers_sizes(name):
    size, channels, expected = PARAMETERS[name]
    module = models.build(name, 10)
    images = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(variables)) == expected


@pytest.mark.parametrize("shape", [(30,), (5, 2), (4, 4, 3)])
def test_network_for_tables_takes_inputs_of_any_shape_and_convolutions_refuse_them(shape):
    inputs = jax.random.uniform(jax.random.key(0), (3, *shape))
    logits, variables = models.build("mlp", 2).init_with_output(jax.random.key(1), inputs)
    flat = models.build("mlp", 2).apply(variables, inputs.reshape(3, -1))
    np.testing.assert_allclose(logits, flat, atol=1e-6)
    if len(shape) != 3:
        for name in ("digits", "resnet20"):
            with pytest.raises(
                ValueError, match=r"convolutions need images \[B, H, W, C\], got inputs of the shape \(3, "
            ):
                jax.eval_shape(models.build(name, 2).init, jax.random.key(1), inputs)


def test_output_is_logits_and_lowerings_agree():
    images = random_images(4, 28, 28, 1)
    module = models.build("small_mnist", 7)
    variables = initialize(module, images)
    logits = np.asarray(jax.jit(module.apply)(variables, images))
    assert logits.shape == (4, 7)
    # A softmax inside the network would make every row sum to one.
    assert np.abs(np.sum(logits, axis=1) - 1).min() > 1e-3
    plain = jax.jit(models.build("small_mnist", 7, lowering="plain").apply)(variables, images)
    np.testing.assert_allclose(plain, logits, atol=1e-5)


def test_batch_normalization_takes_the_batch_in_training_and_running_statistics_else():
    module = models.ConvNet(
        num_classes=3,
        stages=((4,),),
        dense=(5,),
        dropout=(0.0,),
        center=(0.4, 0.5, 0.6),
        scale=(0.2, 0.25, 0.5),
        batch_norm=True,
    )
    images = random_images(6, 8, 8, 3)
    variables = jax.tree.map(np.asarray, initialize(module, images))
    params, stats = variables["params"], variables["batch_stats"]["BatchNorm_0"]
    normalized = (images - [0.4, 0.5, 0.6]) / [0.2, 0.25, 0.5]
    maps = jax.lax.conv_general_dilated(
        normalized.astype(np.float32),
        params["Conv_0"]["kernel"],
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    maps = np.asarray(maps)
    mean, variance = np.mean(maps, (0, 1, 2)), np.var(maps, (0, 1, 2))

    def logits(mean, variance):
        hidden = np.maximum((maps - mean) / np.sqrt(variance + 1e-5), 0).reshape(6, 3, 2, 3, 2, 4).max((2, 4))
        hidden = np.maximum(hidden.reshape(6, -1) @ params["Dense_0"]["kernel"], 0)
        return hidden @ params["Dense_1"]["kernel"]

    train = functools.partial(module.apply, train=True, mutable=["batch_stats"])
    trained, changed = jax.jit(train)(variables, images, rngs={"dropout": jax.random.key(2)})
    np.testing.assert_allclose(trained, logits(mean, variance), atol=1e-4)
    np.testing.assert_allclose(changed["batch_stats"]["BatchNorm_0"]["mean"], 0.1 * mean, atol=1e-5)
    np.testing.assert_allclose(changed["batch_stats"]["BatchNorm_0"]["var"], 0.9 + 0.1 * variance, atol=1e-5)
    # A new network's running mean is 0 and its variance 1.
    found = jax.jit(module.apply)(variables, images)
    np.testing.assert_allclose(found, logits(stats["mean"], stats["var"]), atol=1e-4)


def test_dropout_only_in_training_and_with_a_key():
    images = np.ones((2, 28, 28, 1), np.float32)
    module = models.build("carlini_mnist", 10)
    variables = initialize(module, images)
    train, predict = jax.jit(functools.partial(module.apply, train=True)), jax.jit(module.apply)
    once, again = (train(variables, images, rngs={"dropout": jax.random.key(i)}) for i in (1, 2))
    assert not np.allclose(once, again)
    np.testing.assert_array_equal(predict(variables, images), predict(variables, images))


def test_bad_arguments():
    with pytest.raises(ValueError, match="unknown network 'lenet'; known: papernot_mnist, papernot_cifar10"):
        models.build("lenet", 10)
    with pytest.raises(ValueError, match="at least two classes, got 1"):
        models.build("digits", 1)
    with pytest.raises(ValueError, match="too small"):
        initialize(models.build("papernot_mnist", 10), np.zeros((1, 10, 10, 1), np.float32))
    module = models.build("digits", 10)
    variables = initialize(module, np.zeros((1, 8, 8, 1), np.float32))
    with pytest.raises(flax.errors.ScopeParamShapeError):
        jax.jit(module.apply)(variables, np.zeros((1, 8, 8, 3), np.float32))


RESIDUAL = models.ResNet(num_classes=3, units=2, stem=4, widths=(4, 6, 8))
apply_residual = jax.jit(RESIDUAL.apply)


@pytest.fixture(scope="module")
def variables():
    return jax.tree.map(np.asarray, initialize(RESIDUAL, np.zeros((1, 8, 8, 3), np.float32)))


class TestResNet:
    @pytest.fixture
    def images(self):
        return random_images(3, 8, 8, 3)

    def test_each_image_is_standardized(self, variables, images):
        logits = np.asarray(apply_residual(variables, images))
        np.testing.assert_allclose(apply_residual(variables, 0.5 * images + 0.2), logits, atol=1e-4)
        assert np.abs(np.diff(logits, axis=0)).max() > 1e-3

    def test_a_constant_image_has_a_finite_gradient(self, variables):
        gradient = jax.jit(jax.grad(lambda x, variables: RESIDUAL.apply(variables, x).sum()))
        assert np.isfinite(gradient(np.full((1, 8, 8, 3), 0.5, np.float32), variables)).all()

    def test_without_branches_it_is_the_shortcuts(self, variables, images):
        # The branches end in convolutions: with zero kernels they add nothing. Left are stem, shortcuts and end.
        params = jax.tree.map(np.zeros_like, variables["params"])
        for name in ("Conv_0", "Dense_0"):
            params[name] = variables["params"][name]
        for name in params:
            if name.startswith("BatchNorm"):
                params[name]["scale"] = np.ones_like(params[name]["scale"])
        assert {"Conv_0", "Dense_0", "BatchNorm_0"} <= set(params)
        stem = images - images.mean((1, 2, 3), keepdims=True)
        stem = stem / images.std((1, 2, 3), keepdims=True)
        kernel, bias = params["Conv_0"]["kernel"], params["Conv_0"]["bias"]
        hidden = jax.lax.conv_general_dilated(stem, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        relu = lambda x: np.maximum(x, 0) / np.sqrt(1.001)
        hidden = relu(np.asarray(hidden) + bias)
        for pad in (1, 1):
            hidden = hidden.reshape(3, hidden.shape[1] // 2, 2, hidden.shape[2] // 2, 2, -1).mean((2, 4))
            hidden = np.pad(hidden, ((0, 0), (0, 0), (0, 0), (pad, pad)))
        hidden = (relu(hidden) * 1.0).mean((1, 2))
        kernel, bias = params["Dense_0"]["kernel"], params["Dense_0"]["bias"]
        expected = hidden @ kernel + bias
        found = apply_residual({"params": params, "batch_stats": variables["batch_stats"]}, images)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
