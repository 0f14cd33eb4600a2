import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax.attacks import fgsm, pgd
from ddjax.binding import bind
from ddjax.classifier import at_temperature, in_bfloat16, normalized
from ddjax.models import ConvNet


def make(scale=1.0):
    module = ConvNet(num_classes=3, stages=((4,),), dense=(8,), dropout=(0.5,))
    variables = module.init(jax.random.key(0), jnp.zeros((1, 6, 6, 1)))
    return bind(module, jax.tree.map(lambda leaf: scale * leaf, variables), train=False)


IMAGES = jax.random.uniform(jax.random.key(1), (5, 6, 6, 1))


def test_bound_networks_share_one_program_and_can_be_stacked():
    traces = []

    @jax.jit
    def apply(logits_fn, images):
        traces.append(1)
        return logits_fn(images)

    one, two = make(), make(2.0)
    results = [apply(one, IMAGES), apply(two, IMAGES)]
    assert len(traces) == 1
    stack = jax.tree.map(lambda a, b: jnp.stack([a, b]), one, two)
    stacked = jax.vmap(lambda f: f(IMAGES))(stack)
    np.testing.assert_allclose(stacked, jnp.stack(results), atol=1e-5)


def test_temperature_divides_logits_keeps_decisions_and_may_be_traced():
    network = make()
    tempered = jax.jit(lambda t: at_temperature(network, t)(IMAGES))(jnp.float32(20))
    np.testing.assert_allclose(tempered, network(IMAGES) / 20, rtol=1e-6)
    np.testing.assert_array_equal(tempered.argmax(1), network(IMAGES).argmax(1))
    plain = at_temperature(lambda x: x.sum((1, 2))[:, :1] * jnp.ones((1, 3)), 4.0)
    assert jax.jit(lambda f, x: f(x))(plain, IMAGES).shape == (5, 3)


def test_softmax_limits_and_gradient_scale():
    logits = jnp.array([[3.0, 1.0, 0.5]])
    softmax = lambda z, t: jax.nn.softmax(z / t)
    np.testing.assert_allclose(softmax(logits, 1e6), 1 / 3, atol=1e-5)
    np.testing.assert_allclose(softmax(logits, 1e-3), [[1, 0, 0]], atol=1e-6)
    assert np.isfinite(jax.nn.log_softmax(logits * 1e4)).all()
    # At fixed logits, and towards uniform probabilities, the gradient falls as 1 / T.
    slope = lambda t: float(jax.grad(lambda z: softmax(z, t)[0, 0])(logits)[0, 0])
    assert slope(1e3) == pytest.approx(10 * slope(1e4), rel=1e-2)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_temperature(temperature):
    with pytest.raises(ValueError, match="a temperature must be positive and finite"):
        at_temperature(make(), temperature)


def test_a_normalizing_classifier_is_attacked_in_either_space():
    weights = jax.random.normal(jax.random.key(0), (48, 3))
    network = lambda x: x.reshape(x.shape[0], -1) @ weights
    mean, std = jnp.array([0.4, 0.5, 0.6]), jnp.array([0.2, 0.2, 0.2])
    images = jax.random.uniform(jax.random.key(1), (5, 4, 4, 3))
    pixels = normalized(network, mean, std)
    inside = (images - mean[None, None, None]) / std[None, None, None]
    np.testing.assert_allclose(pixels(images), network(inside), rtol=1e-5)
    labels = jnp.argmax(pixels(images), axis=1).astype(jnp.int32)
    bounds = ((0 - mean) / std, (1 - mean) / std)
    for attack, settings in ((fgsm, {"epsilon": 0.1}), (pgd, {"epsilon": 0.1, "random_start": False})):
        outside = attack(pixels, images, labels, **settings)
        settings |= {"epsilon": 0.5}
        own = attack(network, inside, labels, bounds=bounds, **settings)
        back = own.inputs * std[None, None, None] + mean[None, None, None]
        np.testing.assert_allclose(back, outside.inputs, atol=1e-5)
        np.testing.assert_array_equal(own.success, outside.success)
    assert len(jax.tree.leaves(pixels)) == 2


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.0), (0.5, jnp.array([0.2, -0.1, 0.2])), (jnp.zeros((2, 2)), 1.0)])
def test_normalization_refuses_bad_std_and_bad_rank(mean, std):
    # The wrong rank is refused by the type hints here, and by the function itself without them.
    with pytest.raises((ValueError, TypeError)):
        normalized(lambda x: x, mean, std)


def test_bfloat16_is_the_same_classifier_in_eight_bits_of_precision():
    network = make()
    low = in_bfloat16(network)
    logits, expected = low(IMAGES), network(IMAGES)
    assert logits.dtype == jnp.float32
    assert 0 < jnp.max(jnp.abs(logits - expected)) < 0.03 * jnp.max(jnp.abs(expected))
    gradient = jax.grad(lambda x: low(x)[:, 0].sum())(IMAGES)
    assert gradient.dtype == jnp.float32
    program = str(jax.make_jaxpr(lambda x: low(x))(IMAGES))
    assert "bf16" in program
    with pytest.raises(ValueError, match="parameters are leaves"):
        in_bfloat16(lambda x: x)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_bfloat16_gives_logits_and_gradients_of_the_inputs_dtype(dtype):
    network = in_bfloat16(make())
    with jax.enable_x64(dtype == "float64"):
        inputs = jnp.asarray(np.asarray(IMAGES)).astype(dtype)
        assert network(inputs).dtype == dtype
        assert jax.grad(lambda x: network(x)[:, 0].sum())(inputs).dtype == dtype
        expected = np.asarray(network(jnp.asarray(np.asarray(IMAGES), jnp.float32)), np.float32)
        np.testing.assert_allclose(np.asarray(network(inputs), np.float32), expected, atol=0.02)


@pytest.mark.parametrize("shape", [(5, 3), (5, 4, 3), (5, 4, 4, 3), (5, 2, 4, 4, 3)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_normalization_takes_inputs_of_any_shape_and_dtype(shape, dtype):
    values = np.random.default_rng(0).random(shape)
    mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.3, 0.4])
    with jax.enable_x64(dtype == "float64"):
        found = normalized(lambda x: x, jnp.asarray(mean), jnp.asarray(std))(jnp.asarray(values).astype(dtype))
        assert found.dtype == dtype
        tolerance = 1e-12 if dtype == "float64" else 0.05
        np.testing.assert_allclose(np.asarray(found, np.float64), (values - mean) / std, atol=tolerance)
