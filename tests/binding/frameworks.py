"""One network, convolution, batch normalization, dropout, ReLU and two dense layers, in every framework.

`NETWORKS[name](weights)` binds it; each takes the same weights, `make_weights(seed)`. A framework that is not
installed skips the test that asks for it.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ddjax

SHAPE, WIDTH, HIDDEN, CLASSES = (6, 5, 2), 4, 8, 3
FLAT = (SHAPE[0] - 2) * (SHAPE[1] - 2) * WIDTH


def make_weights(seed, dtype=np.float32):
    draw = np.random.default_rng(seed)
    # Numbers of float32 in either type: a network of PyTorch is imported in it.
    normal = lambda *shape: draw.normal(size=shape).astype(np.float32)
    weights = {
        "conv": {"kernel": 0.5 * normal(3, 3, SHAPE[2], WIDTH), "bias": 0.1 * normal(WIDTH)},
        "scale": 1 + 0.1 * normal(WIDTH),
        "offset": 0.1 * normal(WIDTH),
        "mean": 0.3 * normal(WIDTH),
        "var": 0.5 + normal(WIDTH) ** 2,
        "hidden": {"kernel": normal(FLAT, HIDDEN) / 4, "bias": 0.1 * normal(HIDDEN)},
        "output": {"kernel": normal(HIDDEN, CLASSES), "bias": 0.1 * normal(CLASSES)},
    }
    return jax.tree.map(lambda leaf: leaf.astype(np.float32).astype(dtype), weights)


class Linen(nn.Module):
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(WIDTH, (3, 3), padding="VALID", name="conv")(x)
        x = nn.BatchNorm(use_running_average=not train, epsilon=1e-5, name="norm")(x)
        x = nn.relu(nn.Dropout(self.rate, deterministic=not train)(x)).reshape(len(x), -1)
        return nn.Dense(CLASSES, name="output")(nn.relu(nn.Dense(HIDDEN, name="hidden")(x)))


def linen_variables(weights):
    params = {name: weights[name] for name in ("conv", "hidden", "output")}
    params["norm"] = {"scale": weights["scale"], "bias": weights["offset"]}
    return {"params": params, "batch_stats": {"norm": {"mean": weights["mean"], "var": weights["var"]}}}


def linen(weights):
    return ddjax.bind(Linen(), linen_variables(weights))


class Nnx(nnx.Module):
    def __init__(self, *, rngs, rate=0.5):
        self.conv = nnx.Conv(SHAPE[2], WIDTH, (3, 3), padding="VALID", rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, epsilon=1e-5, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.hidden = nnx.Linear(FLAT, HIDDEN, rngs=rngs)
        self.output = nnx.Linear(HIDDEN, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.dropout(self.norm(self.conv(x)))).reshape(len(x), -1)
        return self.output(nnx.relu(self.hidden(x)))


def nnx_module(weights, rate=0.5):
    module = Nnx(rngs=nnx.Rngs(0), rate=rate)
    for name in ("conv", "hidden", "output"):
        for leaf, value in weights[name].items():
            setattr(getattr(module, name), leaf, nnx.Param(jnp.asarray(value)))
    norm = {"scale": "scale", "bias": "offset", "mean": "mean", "var": "var"}
    for leaf, value in norm.items():
        kind = nnx.Param if leaf in ("scale", "bias") else nnx.BatchStat
        setattr(module.norm, leaf, kind(jnp.asarray(weights[value])))
    return module


def nnx_(weights):
    return ddjax.bind(nnx_module(weights))


def channels_first(kernel):
    """The rows of a dense kernel for features that were flattened with channels first."""
    order = np.arange(FLAT).reshape(SHAPE[0] - 2, SHAPE[1] - 2, WIDTH).transpose(2, 0, 1).ravel()
    return kernel[order]


def equinox_module(weights):
    eqx = pytest.importorskip("equinox", reason="Equinox is not installed")

    class Network(eqx.Module):
        conv: eqx.nn.Conv2d
        norm: eqx.nn.BatchNorm
        dropout: eqx.nn.Dropout
        mlp: eqx.nn.MLP

        def __call__(self, x, state, key):
            x, state = self.norm(self.conv(x), state)
            return self.mlp(jax.nn.relu(self.dropout(x, key=key)).ravel()), state

    return _EQUINOX.setdefault("network", (eqx, Network))


_EQUINOX = {}


def equinox(weights):
    eqx, Network = equinox_module(weights)
    key = jax.random.key(0)
    make = lambda: Network(
        eqx.nn.Conv2d(SHAPE[2], WIDTH, 3, key=key),
        eqx.nn.BatchNorm(WIDTH, "batch", eps=1e-5, mode="batch"),
        eqx.nn.Dropout(0.5),
        eqx.nn.MLP(FLAT, CLASSES, HIDDEN, 1, key=key),
    )
    network, state = eqx.nn.make_with_state(make)()
    dense = [(channels_first(weights["hidden"]["kernel"]).T, weights["hidden"]["bias"])]
    dense += [(weights["output"]["kernel"].T, weights["output"]["bias"])]
    places = lambda n: (
        *(n.conv.weight, n.conv.bias, n.norm.weight, n.norm.bias),
        *(leaf for layer in n.mlp.layers for leaf in (layer.weight, layer.bias)),
    )
    conv = (weights["conv"]["kernel"].transpose(3, 2, 0, 1), weights["conv"]["bias"][:, None, None])
    values = (*conv, weights["scale"], weights["offset"], *(leaf for pair in dense for leaf in pair))
    network = eqx.tree_at(places, network, [jnp.asarray(value) for value in values])
    # Counts all examples since the start, which mode="batch" corrects for.
    state = state.set(network.norm.batch_state_index, (jnp.asarray(weights["mean"]), jnp.asarray(weights["var"])))
    return ddjax.bind(network, state)


@functools.cache
def haiku_function():
    hk = pytest.importorskip("haiku", reason="Haiku is not installed")

    def forward(x, is_training):
        x = hk.Conv2D(WIDTH, 3, padding="VALID", name="conv")(x)
        x = hk.BatchNorm(True, True, 0.9, eps=1e-5, name="norm")(x, is_training)
        if is_training:
            x = hk.dropout(hk.next_rng_key(), 0.5, x)
        x = jax.nn.relu(hk.Linear(HIDDEN, name="hidden")(jax.nn.relu(x).reshape(len(x), -1)))
        return hk.Linear(CLASSES, name="output")(x)

    return hk.transform_with_state(forward)


def haiku(weights):
    function = haiku_function()
    dense = lambda name: {"w": weights[name]["kernel"], "b": weights[name]["bias"]}
    row = lambda name: weights[name].reshape(1, 1, 1, -1)
    params = {name: dense(name) for name in ("conv", "hidden", "output")}
    params["norm"] = {"scale": row("scale"), "offset": row("offset")}
    average = lambda name: {"average": row(name), "hidden": row(name), "counter": np.int32(1)}
    return ddjax.bind(function, params, {"norm/~/mean_ema": average("mean"), "norm/~/var_ema": average("var")})


def plain(weights, x):
    """The network in jax.numpy alone."""
    dims = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, jnp.asarray(weights["conv"]["kernel"]), (1, 1), "VALID", dimension_numbers=dims)
    row = lambda values: jnp.asarray(values)[None, None, None]
    x = (x + row(weights["conv"]["bias"] - weights["mean"])) / jnp.sqrt(
        row(weights["var"]) + jnp.asarray(1e-5, x.dtype)
    )
    x = jax.nn.relu(x * row(weights["scale"]) + row(weights["offset"])).reshape(x.shape[0], -1)
    for name in ("hidden", "output"):
        x = x @ weights[name]["kernel"] + weights[name]["bias"][None]
        x = jax.nn.relu(x) if name == "hidden" else x
    return x


def function(weights):
    return ddjax.bind_function(plain, weights)


@functools.cache
def exported_function(dtype):
    pytest.importorskip("flatbuffers", reason="jax.export needs flatbuffers to serialize, which is not installed")
    (batch,) = jax.export.symbolic_shape("b")
    shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    weights = jax.tree.map(shape, make_weights(0, dtype))
    found = jax.export.export(jax.jit(plain))(weights, jax.ShapeDtypeStruct((batch, *SHAPE), dtype))
    return jax.export.deserialize(found.serialize(vjp_order=1))


def exported(weights):
    return ddjax.bind(exported_function(weights["scale"].dtype), weights)


@functools.cache
def keras_model(dtype):
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    if keras.backend.backend() != "jax":
        pytest.skip("Keras does not compute with JAX: KERAS_BACKEND=jax is not set")
    layers = keras.layers
    body = [layers.Conv2D(WIDTH, 3, dtype=dtype), layers.BatchNormalization(epsilon=1e-5, dtype=dtype)]
    body += [layers.Dropout(0.5, dtype=dtype), layers.ReLU(dtype=dtype), layers.Flatten(dtype=dtype)]
    body += [layers.Dense(HIDDEN, "relu", dtype=dtype), layers.Dense(CLASSES, dtype=dtype)]
    return keras.Sequential([keras.Input(SHAPE, dtype=dtype), *body])


def keras(weights):
    model = keras_model(weights["scale"].dtype.name)
    dense = lambda name: [weights[name]["kernel"], weights[name]["bias"]]
    norm = [weights[name] for name in ("scale", "offset", "mean", "var")]
    model.set_weights([*dense("conv"), *norm, *dense("hidden"), *dense("output")])
    return ddjax.bind(model)


def torch_(weights):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    network = torch.nn.Sequential(
        torch.nn.Conv2d(SHAPE[2], WIDTH, 3), torch.nn.BatchNorm2d(WIDTH), torch.nn.Dropout(), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(FLAT, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, CLASSES),
    )  # fmt: skip
    state = {
        "0.weight": weights["conv"]["kernel"].transpose(3, 2, 0, 1),
        "0.bias": weights["conv"]["bias"],
        **{f"1.{name}": weights[own] for name, own in (("weight", "scale"), ("bias", "offset"))},
        **{f"1.running_{name}": weights[name] for name in ("mean", "var")},
        "5.weight": channels_first(weights["hidden"]["kernel"]).T,
        "5.bias": weights["hidden"]["bias"],
        "7.weight": weights["output"]["kernel"].T,
        "7.bias": weights["output"]["bias"],
    }
    to_tensor = lambda value: torch.from_numpy(np.array(value, np.float32))
    network.load_state_dict({name: to_tensor(value) for name, value in state.items()}, strict=False)
    return ddjax.from_torch(network, SHAPE)


NETWORKS = {
    "linen": linen,
    "nnx": nnx_,
    "equinox": equinox,
    "haiku": haiku,
    "keras": keras,
    "exported": exported,
    "function": function,
    "torch": torch_,
}
