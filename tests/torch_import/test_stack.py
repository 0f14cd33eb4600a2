import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddjax
from ddjax import data
from ddjax.torch_import import sequential
from tests.torch_import.networks import PUBLISHED, path_of, published
from tests.torch_import.test_operations import convolve, maps

SPEC = [
    ("conv", {"stride": 2, "padding": 1}),
    "batch_norm",
    ("leaky_relu", {"negative_slope": 0.1}),
    ("dropout", {"p": 0.5}),
    "flatten",
    "linear",
]


def state(seed=0):
    """Of two filters on images of 4 x 4 with two channels."""
    shapes = {
        "0.weight": (2, 2, 3, 3),
        "0.bias": (2,),
        "1.weight": (2,),
        "1.bias": (2,),
        "1.running_mean": (2,),
        "1.running_var": (2,),
        "5.weight": (3, 8),
        "5.bias": (3,),
    }
    arrays = {name: maps(*shape, seed=seed + i) for i, (name, shape) in enumerate(shapes.items())}
    return arrays | {"1.running_var": np.abs(arrays["1.running_var"]), "1.num_batches_tracked": np.int64(7)}


def by_numpy(arrays, images):
    hidden = convolve(images.transpose(0, 3, 1, 2), arrays["0.weight"], arrays["0.bias"], stride=2, padding=1)
    each = {
        name: arrays[f"1.{name}"][None, :, None, None] for name in ("weight", "bias", "running_mean", "running_var")
    }
    hidden = (hidden - each["running_mean"]) / np.sqrt(each["running_var"] + 1e-5) * each["weight"] + each["bias"]
    hidden = np.where(hidden > 0, hidden, 0.1 * hidden).reshape(len(images), -1)
    return hidden @ arrays["5.weight"].T + arrays["5.bias"]


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(9).random((3, 4, 4, 2), np.float32))


def test_stack_is_what_its_layers_are(images):
    found = jax.jit(sequential(SPEC, state()))(images)
    np.testing.assert_allclose(found, by_numpy(state(), np.asarray(images)), rtol=1e-4, atol=1e-5)


def test_names_are_free_and_may_be_given(images):
    named = {"features.conv.": "0.", "norm.": "1.", "head.": "5."}
    arrays = {
        new + key.removeprefix(old): value
        for new, old in named.items()
        for key, value in state().items()
        if key.startswith(old)
    }
    # Of another order.
    head = {key: arrays.pop(key) for key in list(arrays) if key.startswith("head")}
    spec = [*SPEC[:-1], ("linear", {"name": "head"})]
    expected = sequential(SPEC, state())(images)
    np.testing.assert_array_equal(sequential(spec, head | arrays)(images), expected)
    np.testing.assert_array_equal(sequential(SPEC, arrays | head)(images), expected)


def test_two_sets_of_weights_share_one_program(images):
    traces = []

    @jax.jit
    def gradient(logits_fn, images):
        traces.append(1)
        return jax.grad(lambda x: jnp.sum(logits_fn(x) ** 2))(images)

    first, second = (np.asarray(gradient(sequential(SPEC, state(seed)), images)) for seed in (0, 1))
    assert len(traces) == 1
    assert np.abs(first - second).max() > 0
    gradient(sequential(["flatten", "linear"], {"weight": np.ones((3, 32), np.float32)}), images)
    assert len(traces) == 2


def test_classifier_is_one_of_the_library(images):
    classifier = ddjax.at_temperature(ddjax.in_bfloat16(sequential(SPEC, state())), 2.0)
    np.testing.assert_allclose(classifier(images), by_numpy(state(), np.asarray(images)) / 2, rtol=0.1, atol=0.2)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(sequential(SPEC, state()))} == {"float32"}


def test_vectors_go_in_as_they_are():
    classifier = sequential(["linear", "relu", "linear"], {"a.weight": maps(4, 5), "b.weight": maps(2, 4)})
    inputs = jnp.asarray(maps(3, 5, seed=1))
    np.testing.assert_allclose(classifier(inputs), np.maximum(inputs @ maps(4, 5).T, 0) @ maps(2, 4).T, rtol=1e-4)


@pytest.mark.parametrize(
    ("spec", "change", "message"),
    [
        ([], {}, "the description must be a sequence of layers"),
        ([*SPEC, "softmax"], {}, "unknown layer 'softmax'; known: conv, linear, batch_norm"),
        ([("conv", {"pad": 1}), *SPEC[1:]], {}, "layer 0, conv: unknown setting 'pad'; known: name, stride, padding"),
        ([*SPEC[:4], "max_pool", *SPEC[4:]], {}, "layer 4, max_pool: the setting 'kernel_size' is needed"),
        ([*SPEC, "relu", "linear"], {}, "layer 7, linear: no parameters are left in the state; it has 0.weight"),
        ([("conv", {"name": "stem"}), *SPEC[1:]], {}, "layer 0, conv: the state has no 'stem'"),
        (SPEC[:-1], {}, "the state has parameters that no layer takes: 5"),
        (SPEC, {"1.running_var": None}, "layer 1, batch_norm: the state misses running_var at '1'"),
        (SPEC, {"5.scale": maps(3)}, "layer 5, linear: the state has scale, which such a layer has not at '5'"),
        (SPEC, {"0.weight": maps(2, 2, 3)}, r"layer 0, conv: the weight must have 4 axes, got \(2, 2, 3\)"),
        (SPEC, {"0.bias": maps(3)}, r"layer 0, conv: bias must be \(2,\), got \(3,\)"),
        (SPEC, {"0.weight": maps(3, 2, 3, 3), "0.bias": maps(3)}, "layer 1, batch_norm: the weight takes 2 features"),
        (SPEC, {"0.bias": np.arange(2)}, "the state's 0.bias must be of floating numbers, got int32"),
    ],
)
def test_refuses(spec, change, message):
    arrays = {key: value for key, value in (state() | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        sequential(spec, arrays)


def test_refuses_inputs_of_another_size(images):
    with pytest.raises(ValueError, match="layer 5, linear: the weight takes 8 features"):
        sequential(SPEC, state())(jnp.zeros((1, 6, 6, 2)))
    unflattened = sequential(["conv"], {"weight": maps(2, 2, 3, 3)})
    with pytest.raises(ValueError, match=r"must return logits \[B, K\], got \(3, 2, 2, 2\); is 'flatten' missing"):
        unflattened(images)


def correct_on_mnist(classifier):
    """How many of the 10,000 test images are classified correctly."""
    test = data.load("mnist", "test")
    predict = jax.jit(lambda images: jnp.argmax(classifier(images), 1))
    parts = [np.asarray(predict(data.to_float(part))) for part in np.split(test.images, 5)]
    return int(np.sum(np.concatenate(parts) == test.labels))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_their_accuracy(name, tfds_data_dir):
    spec, accuracy = PUBLISHED[name]
    # To the image.
    assert correct_on_mnist(sequential(spec, published(name))) == round(accuracy * 10_000)


def test_published_arrays_have_their_accuracy_as_a_function(tfds_data_dir):
    def two_layers(weights, images):
        hidden = images.reshape(len(images), -1) @ weights["W1"] + weights["B1"].reshape(1, -1)
        return jax.nn.relu(hidden) @ weights["W2"] + weights["B2"].reshape(1, -1)

    weights = ddjax.load_weights(path_of("rsl18a"))
    assert correct_on_mnist(ddjax.bind_function(two_layers, weights)) == 9582
