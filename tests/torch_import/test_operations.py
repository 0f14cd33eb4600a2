"""Layers against loops in NumPy that say what PyTorch's documentation says. Nothing here needs PyTorch."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from ddjax.torch_import import operations


def maps(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def as_pair(size):
    return (size, size) if isinstance(size, int) else tuple(size)


def compute(function, *arrays, **settings):
    return np.asarray(jax.jit(lambda *arrays: function(*arrays, **settings))(*arrays))


def convolve(inputs, weight, bias, stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros"):
    (down, across), gaps = as_pair(stride), as_pair(dilation)
    _, taken, height, width = weight.shape
    padding = 0 if padding == "valid" else padding
    if padding == "same":
        totals = [gap * (taps - 1) for gap, taps in zip(gaps, (height, width), strict=True)]
        edges = [(total // 2, total - total // 2) for total in totals]
    else:
        edges = [(pad, pad) for pad in as_pair(padding)]
    mode = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}[padding_mode]
    padded = np.pad(inputs.astype(np.float64), ((0, 0), (0, 0), *edges), mode)
    rows = (padded.shape[2] - gaps[0] * (height - 1) - 1) // down + 1
    columns = (padded.shape[3] - gaps[1] * (width - 1) - 1) // across + 1
    outputs = np.zeros((len(inputs), len(weight), rows, columns))
    for b, f, y, x in np.ndindex(outputs.shape):
        group = f // (len(weight) // groups)
        for c, i, j in np.ndindex(taken, height, width):
            place = padded[b, group * taken + c, y * down + i * gaps[0], x * across + j * gaps[1]]
            outputs[b, f, y, x] += weight[f, c, i, j] * place
    return outputs + bias[None, :, None, None]


@pytest.mark.parametrize(
    "settings",
    [
        {"stride": 2, "padding": 1},
        {"stride": (1, 2), "padding": (0, 1), "dilation": (2, 1)},
        {"padding": "same", "dilation": 3},
        {"padding": "valid", "groups": 2},
        {"padding": 1, "groups": 4},
        {"padding": 2, "padding_mode": "reflect"},
        {"padding": (1, 2), "padding_mode": "replicate", "stride": 2},
        {"padding": 1, "padding_mode": "circular"},
    ],
)
def test_conv(settings):
    groups = settings.get("groups", 1)
    inputs, weight, bias = maps(2, 4, 6, 7), maps(4, 4 // groups, 3, 2, seed=1), maps(4, seed=2)
    got = compute(operations.conv2d, inputs, weight, bias, **settings)
    np.testing.assert_allclose(got, convolve(inputs, weight, bias, **settings), rtol=1e-4, atol=1e-5)


def windows_of(sizes, window, stride, padding, dilation=1, ceil_mode=False):
    """For each axis and each window, the places that it covers, which may lie outside."""
    found = []
    each = zip(sizes, as_pair(window), as_pair(stride or window), as_pair(padding), as_pair(dilation), strict=True)
    for size, taps, step, pad, gap in each:
        steps = (size + 2 * pad - gap * (taps - 1) - 1) / step
        count = (math.ceil(steps) if ceil_mode else math.floor(steps)) + 1
        starts = [step * i - pad for i in range(count)]
        # A window that begins in the padding on the right is left out.
        starts = [start for start in starts if start < size + (0 if ceil_mode else pad)]
        found.append([[start + gap * i for i in range(taps)] for start in starts])
    return found


POOLS = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (2, 3), "stride": (2, 1), "padding": (1, 1)},
    {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    # In both axes the last window begins in the padding, and is left out.
    {"kernel_size": 2, "stride": 3, "padding": 1, "ceil_mode": True},
]


@pytest.mark.parametrize("settings", [*POOLS, {"kernel_size": 2, "dilation": 3, "stride": 1, "padding": 1}])
def test_max_pool(settings):
    inputs = maps(2, 3, 8, 7) - 5
    known = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, **settings}
    rows, columns = windows_of((8, 7), known.pop("kernel_size"), **known)
    wanted = np.full((2, 3, len(rows), len(columns)), -np.inf)
    for y, x in np.ndindex(len(rows), len(columns)):
        for i, j in itertools.product(rows[y], columns[x]):
            if 0 <= i < 8 and 0 <= j < 7:
                wanted[:, :, y, x] = np.maximum(wanted[:, :, y, x], inputs[:, :, i, j])
    np.testing.assert_array_equal(compute(operations.max_pool2d, inputs, **settings), wanted.astype(np.float32))


@pytest.mark.parametrize(
    "settings",
    [
        *POOLS,
        {"kernel_size": 3, "padding": 1, "ceil_mode": True, "stride": 2, "count_include_pad": False},
        {"kernel_size": 3, "padding": 1, "divisor_override": 4},
    ],
)
def test_avg_pool(settings):
    inputs = maps(2, 3, 8, 7)
    known = {"stride": None, "padding": 0, "ceil_mode": False, **settings}
    include, divisor = known.pop("count_include_pad", True), known.pop("divisor_override", None)
    rows, columns = windows_of((8, 7), known.pop("kernel_size"), **known)
    (down, across), wanted = as_pair(known["padding"]), np.zeros((2, 3, len(rows), len(columns)))
    for y, x in np.ndindex(len(rows), len(columns)):
        count = 0
        for i, j in itertools.product(rows[y], columns[x]):
            inside = 0 <= i < 8 and 0 <= j < 7
            wanted[:, :, y, x] += inputs[:, :, i, j] if inside else 0
            count += inside or (include and -down <= i < 8 + down and -across <= j < 7 + across)
        wanted[:, :, y, x] /= divisor or count
    np.testing.assert_allclose(compute(operations.avg_pool2d, inputs, **settings), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, (3, 2), (None, 4)])
@pytest.mark.parametrize("name", ["avg", "max"])
def test_adaptive_pools(name, size):
    inputs = maps(2, 3, 8, 7)
    rows, columns = (whole if each is None else each for whole, each in zip((8, 7), as_pair(size), strict=True))
    wanted = np.zeros((2, 3, rows, columns))
    for y, x in np.ndindex(rows, columns):
        top, end = math.floor(y * 8 / rows), math.ceil((y + 1) * 8 / rows)
        left, right = math.floor(x * 7 / columns), math.ceil((x + 1) * 7 / columns)
        part = inputs[:, :, top:end, left:right]
        wanted[:, :, y, x] = part.mean((2, 3)) if name == "avg" else part.max((2, 3))
    function = getattr(operations, f"adaptive_{name}_pool2d")
    np.testing.assert_allclose(compute(function, inputs, output_size=size), wanted, rtol=1e-5, atol=1e-6)


def test_adaptive_max_pool_sends_ties_to_the_first():
    gradient = jax.grad(lambda x: jnp.sum(operations.adaptive_max_pool2d(x, 1)))(jnp.zeros((1, 2, 2, 3)))
    np.testing.assert_array_equal(np.asarray(gradient)[0, 0], [[1, 0, 0], [0, 0, 0]])


def test_normalizations():
    inputs, weight, bias = maps(2, 4, 3, 5), maps(4, seed=1), maps(4, seed=2)
    mean, var = maps(4, seed=3), np.abs(maps(4, seed=4))
    by_channel = lambda values: values[None, :, None, None]
    got = compute(operations.batch_norm, inputs, weight, bias, mean, var, eps=0.1)
    wanted = (inputs - by_channel(mean)) / np.sqrt(by_channel(var) + 0.1) * by_channel(weight) + by_channel(bias)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    grouped = inputs.reshape(2, 2, -1)
    wanted = (grouped - grouped.mean(2, keepdims=True)) / np.sqrt(grouped.var(2, keepdims=True) + 1e-5)
    wanted = wanted.reshape(inputs.shape) * by_channel(weight) + by_channel(bias)
    got = compute(lambda *arrays: operations.group_norm(arrays[0], 2, *arrays[1:]), inputs, weight, bias)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    wanted = (inputs - inputs.mean((2, 3), keepdims=True)) / np.sqrt(inputs.var((2, 3), keepdims=True) + 1e-5)
    got = compute(operations.layer_norm, inputs, normalized_shape=(3, 5))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_flatten_has_channels_first():
    inputs = jnp.asarray(maps(2, 3, 4, 5))
    np.testing.assert_array_equal(operations.flatten(inputs), inputs.reshape(2, -1))
    assert operations.flatten(inputs, 2).shape == (2, 3, 20)
    assert operations.flatten(inputs, 1, 2).shape == (2, 12, 5)


def test_attention():
    query, key, value = maps(2, 3, 4), maps(2, 5, 4, seed=1), maps(2, 5, 6, seed=2)
    for causal in (False, True):
        products = np.einsum("btd,bsd->bts", query, key) / 2
        products = np.where(np.tri(3, 5, dtype=bool), products, -np.inf) if causal else products
        weights = np.exp(products - products.max(2, keepdims=True))
        wanted = np.einsum("bts,bsv->btv", weights / weights.sum(2, keepdims=True), value)
        got = compute(operations.attention, query, key, value, is_causal=causal)
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


# Values by NumPy, and the derivatives at the kinks, which PyTorch documents in its kernels.
X = np.array([-30, -3.5, -3, -1, -0.5, 0, 0.5, 1, 3, 3.5, 30])
NUMPY = {
    "celu": np.maximum(X, 0) + np.minimum(np.expm1(np.minimum(X, 0)), 0),
    "elu": np.where(X > 0, X, np.expm1(np.minimum(X, 0))),
    "gelu": X * special.ndtr(X),
    "hardsigmoid": np.clip(X / 6 + 0.5, 0, 1),
    "hardswish": X * np.clip(X + 3, 0, 6) / 6,
    "hardtanh": np.clip(X, -1, 1),
    "leaky_relu": np.where(X > 0, X, 0.01 * X),
    "log_sigmoid": -np.logaddexp(0, -X),
    "mish": X * np.tanh(np.logaddexp(0, X)),
    "relu": np.maximum(X, 0),
    "relu6": np.clip(X, 0, 6),
    "selu": 1.0507009873554805 * np.where(X > 0, X, 1.6732632423543772 * np.expm1(np.minimum(X, 0))),
    "sigmoid": special.expit(X),
    "silu": X * special.expit(X),
    "softplus": np.logaddexp(0, X),
    "softsign": X / (1 + np.abs(X)),
    "tanh": np.tanh(X),
}


def test_activations():
    inputs = jnp.asarray(X, jnp.float32)
    found = jax.jit(lambda x: {name: function(x) for name, function in operations.ACTIVATIONS.items()})(inputs)
    assert set(found) == set(NUMPY)
    for name, values in found.items():
        np.testing.assert_allclose(values, NUMPY[name], rtol=2e-5, atol=1e-6, err_msg=name)


def test_derivatives_at_kinks():
    at = lambda function, x, **settings: float(jax.grad(lambda x: function(x, **settings))(x))
    assert at(operations.ACTIVATIONS["relu"], 0.0) == 0
    assert at(operations.leaky_relu, 0.0, negative_slope=0.25) == 0.25
    assert [at(operations.hardtanh, x) for x in (-1.0, 0.5, 1.0)] == [0, 1, 0]
    assert [at(operations.clamp, x, min=-1.0, max=1.0) for x in (-2.0, -1.0, 1.0, 2.0)] == [0, 1, 1, 0]


def test_settings_of_activations():
    inputs = jnp.asarray(X, jnp.float32)
    exact, approximate = operations.gelu(inputs), operations.gelu(inputs, "tanh")
    assert 1e-5 < np.abs(exact - approximate).max() < 1e-3
    np.testing.assert_allclose(operations.softplus(inputs, beta=2), np.logaddexp(0, 2 * X) / 2, rtol=1e-5, atol=1e-7)
    # Above the threshold it is the identity.
    np.testing.assert_array_equal(operations.softplus(inputs, threshold=0.9)[6:8], [np.float32(0.974077), 1.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: operations.conv2d(x[0], jnp.zeros((2, 3, 2, 2))), r"feature maps \[B, C, H, W\] are needed"),
        (lambda x: operations.conv2d(x, jnp.zeros((2, 4, 2, 2))), "the kernel takes 4 channels, the input has 3"),
        (lambda x: operations.conv2d(x, jnp.zeros((2, 3, 9, 9))), r"a kernel of \(9, 9\) is larger than the padded"),
        (lambda x: operations.conv2d(x, jnp.zeros((2, 3, 2, 2)), padding="full"), "unknown padding 'full'"),
        (lambda x: operations.conv2d(x, jnp.zeros((2, 3, 2, 2)), padding="same", stride=2), "'same' is for stride 1"),
        (lambda x: operations.conv2d(x, jnp.zeros((2, 3, 2, 2)), padding_mode="wrap"), "unknown padding_mode 'wrap'"),
        (lambda x: operations.max_pool2d(x, 9), "a window of 9 is larger than the padded input"),
        (lambda x: operations.avg_pool2d(x, 2, padding=2), "padding must be at most half of the window, got 2 for 2"),
        (lambda x: operations.linear(x, jnp.zeros((3, 4))), "the weight takes 4 features"),
        (lambda x: operations.gelu(x, "erf"), "unknown approximate 'erf'; known: none, tanh"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.zeros((1, 3, 6, 5)))
