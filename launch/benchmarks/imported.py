"""Attacks on networks as PyTorch's weights are imported, beside the same networks in linen. No PyTorch is needed."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float

import ddjax
from ddjax import layers

from . import measure
from .attacks import jsma_without_success
from .measure import Context, Side

# A layer: a convolution with its filters, their size, stride and padding; a dense layer with its width; or a name.
_Layer = str | int | tuple[int, int, int, int]
_NETWORKS: dict[str, tuple[_Layer, ...]] = {
    # Of TRADES (Zhang et al. 2019, arXiv 1901.08573), for MNIST.
    "small_cnn": (
        *((32, 3, 1, 0), "relu") * 2, "max_pool", *((64, 3, 1, 0), "relu") * 2, "max_pool",
        "flatten", 200, "relu", 200, "relu", 10,
    ),
    # Of Wong and Kolter 2018 (arXiv 1711.00851), for MNIST.
    "wong_kolter": ((16, 4, 2, 1), "relu", (32, 4, 2, 1), "relu", "flatten", 100, "relu", 10),
}  # fmt: skip
_LEAST_SIZE = {"small_cnn": 16, "wong_kolter": 4}
_PGD_STEPS, _JSMA_STEPS = 40, 10


class _Linen(nn.Module):
    """A network as one would write it in linen with `ddjax.layers`."""

    layers: tuple[_Layer, ...]

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"]) -> Float[Array, "B K"]:
        hidden = images
        for layer in self.layers:
            if isinstance(layer, tuple):
                features, size, stride, pad = layer
                edges = ((pad, pad), (pad, pad))
                if stride == 1 and not pad:
                    hidden = layers.Conv(features, (size, size))(hidden)
                else:
                    hidden = nn.Conv(features, (size, size), stride, padding=edges)(hidden)
            elif isinstance(layer, int):
                hidden = nn.Dense(layer)(hidden)
            elif layer == "flatten":
                # As PyTorch does, so that both have the same dense weights.
                hidden = hidden.transpose(0, 3, 1, 2).reshape(len(hidden), -1)
            else:
                hidden = layers.max_pool(hidden) if layer == "max_pool" else nn.relu(hidden)
        return hidden


def _imported(network: tuple[_Layer, ...], params: Mapping[str, Any]) -> Callable[[Array], Array]:
    """The same function of the same weights, as PyTorch has them."""
    spec: list[Any] = []
    state: dict[str, np.ndarray] = {}
    names = {
        "conv": iter(sorted(name for name in params if "Conv" in name)),
        "linear": iter(sorted(name for name in params if "Dense" in name)),
    }
    for layer in network:
        if isinstance(layer, str):
            spec.append((layer, {"kernel_size": 2}) if layer == "max_pool" else layer)
            continue
        kind = "conv" if isinstance(layer, tuple) else "linear"
        spec.append((kind, {"stride": layer[2], "padding": layer[3]}) if isinstance(layer, tuple) else kind)
        own = params[next(names[kind])]
        kernel = np.asarray(own["kernel"])
        state[f"{len(spec)}.weight"] = kernel.transpose(3, 2, 0, 1) if kind == "conv" else kernel.T
        state[f"{len(spec)}.bias"] = np.asarray(own["bias"])
    return ddjax.sequential(spec, state)


def _pgd(logits_fn: Any, images: Array, labels: Array, targets: Array) -> Any:
    return ddjax.pgd(logits_fn, images, labels, key=jax.random.key(0), epsilon=0.3, num_steps=_PGD_STEPS)


def _jsma(logits_fn: Any, images: Array, labels: Array, targets: Array) -> Any:
    return jsma_without_success(_JSMA_STEPS, "probs", logits_fn, images, labels, targets)


def _side(network: str, attack: Callable[..., Any], classifiers: list[Any], arguments: tuple[Array, ...]) -> Side:
    """An attack on the first classifier; the second one, of the same form, must not be compiled for."""
    traces = 0

    def counted(*arguments: Any) -> Any:
        nonlocal traces
        traces += 1
        return attack(*arguments)

    compiled = layers.jit(counted)

    def describe(result: Any) -> dict[str, Any]:
        jax.block_until_ready(compiled(classifiers[1], *arguments))
        return {"note": f"{network}; programs for two sets of weights: {traces}", "traces": traces}

    return Side(lambda: jax.block_until_ready(compiled(classifiers[0], *arguments)), len(arguments[0]), describe)


def _measure(context: Context, attack: Callable[..., Any], work: str) -> None:
    shape = context.test.image_shape
    for name, network in _NETWORKS.items():
        if min(shape[:2]) < _LEAST_SIZE[name]:
            continue
        module, (image, *_) = _Linen(network), context.first(1)
        keys = jax.random.split(jax.random.key(context.seed), 2)
        variables = [jax.jit(module.init)(key, image) for key in keys]
        in_linen = [ddjax.bind(module, each) for each in variables]
        imported = [_imported(network, each["params"]) for each in variables]
        np.testing.assert_allclose(imported[0](image), in_linen[0](image), rtol=1e-4, atol=1e-5)
        for batch in context.batches:
            arguments = context.first(batch)
            sides = {
                side: functools.partial(_side, name, attack, classifiers, arguments)
                for side, classifiers in (("linen", in_linen), ("imported", imported))
            }
            measure.compare(context, work, sides, network=name, batch=batch)


WORK = {
    work: functools.partial(_measure, attack=attack, work=work)
    for work, attack in (("imported_pgd", _pgd), ("imported_jsma", _jsma))
}
