"""A plain stack of PyTorch's layers as a classifier, of its description and its weights; PyTorch is not needed."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from ddjax.checks import check_choice, first_line
from ddjax.torch_import import operations

Layer = str | tuple[str, Mapping[str, Any]]


class _Kind(NamedTuple):
    """A kind of layer: its function, the parameters that it needs, and those that it may have."""

    function: Callable[..., Array]
    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


LAYERS = {
    "conv": _Kind(operations.conv2d, ("weight",), ("bias",)),
    "linear": _Kind(operations.linear, ("weight",), ("bias",)),
    "batch_norm": _Kind(operations.batch_norm, ("running_mean", "running_var"), ("weight", "bias")),
    "max_pool": _Kind(operations.max_pool2d),
    "avg_pool": _Kind(operations.avg_pool2d),
    "adaptive_avg_pool": _Kind(operations.adaptive_avg_pool2d),
    "adaptive_max_pool": _Kind(operations.adaptive_max_pool2d),
    "flatten": _Kind(operations.flatten),
    "dropout": _Kind(lambda inputs, p=0.5: inputs),
    "identity": _Kind(lambda inputs: inputs),
} | {name: _Kind(function) for name, function in operations.ACTIVATIONS.items()}
# Axes of the weight of a layer that has one.
_AXES = {"conv": 4, "linear": 2, "batch_norm": 1}
# What PyTorch counts and no network needs.
_IGNORED = "num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A layer without its parameters; `label` tells it in errors."""

    kind: str
    settings: tuple[tuple[str, Any], ...]
    label: str


@dataclasses.dataclass(frozen=True)
class _Stack:
    """The stack without its parameters; compared by value, so that equal ones share one compiled program."""

    layers: tuple[_Layer, ...]

    def __call__(self, parameters: Sequence[Mapping[str, Array]], inputs: Float[Array, "B ..."]) -> Array:
        outputs = inputs.transpose(0, 3, 1, 2) if inputs.ndim == 4 else inputs
        for layer, own in zip(self.layers, parameters, strict=True):
            given = {"weight": None, "bias": None} if layer.kind == "batch_norm" else {}
            try:
                outputs = LAYERS[layer.kind].function(outputs, **{**given, **own}, **dict(layer.settings))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{layer.label}: {first_line(error)}") from error
        if outputs.ndim != 2:
            raise ValueError(f"the last layer must return logits [B, K], got {outputs.shape}; is 'flatten' missing?")
        return outputs


def sequential(spec: Sequence[Layer], state: Mapping[str, Any]) -> Partial:
    """Makes a classifier of a stack of PyTorch's layers, one after the other, and of its `state_dict`.

    `sequential([("conv", {"stride": 2, "padding": 1}), "relu", "flatten", "linear"], state)`

    Args:
      spec: the layers, each the name of one of `LAYERS`, or that and its settings. Settings, and their defaults, are
        those of `operations`, and so of PyTorch; sizes of channels and kernels come from the weights. A layer takes the
        parameters of one module of the state: the one that its setting `name` says, as in `("conv", {"name":
        "features.0"})`; else the next one in the order of the state, where PyTorch's own order is that of the layers.
        Dropout does nothing. `"flatten"` has the order C, H, W.
      state: arrays by PyTorch's names, `"0.weight"` or `"conv1.weight"`, in PyTorch's shapes; floating ones become
        float32.

    Returns:
      A classifier of inputs `[B, H, W, C]`, or `[B, D]` where the first layer takes vectors. Its leaves are the
      weights: two of one description share one compiled program.

    Raises:
      ValueError: for an unknown layer or setting, a missing or surplus parameter, or one of a wrong shape, with the
        layer. What depends on the size of the inputs is found when these are known, at the first call.
    """
    if isinstance(spec, str) or not spec:
        raise ValueError(f"the description must be a sequence of layers, got {spec!r}")
    modules: dict[str, dict[str, Any]] = {}
    for key, value in state.items():
        prefix, _, name = key.rpartition(".")
        if name != _IGNORED:
            modules.setdefault(prefix, {})[name] = value
    layers, names = zip(*(_read(number, each) for number, each in enumerate(spec)), strict=True)
    waiting = [prefix for prefix in modules if prefix not in names]
    parameters, width = [], None
    for layer, name in zip(layers, names, strict=True):
        kind, own = LAYERS[layer.kind], {}
        if kind.needed:
            if name is None and not waiting:
                raise ValueError(f"{layer.label}: no parameters are left in the state; it has {_told(state)}")
            prefix = waiting.pop(0) if name is None else name
            if prefix not in modules:
                raise ValueError(f"{layer.label}: the state has no {prefix!r}; it has {_told(state)}")
            found = modules[prefix]
            missing = [each for each in kind.needed if each not in found]
            surplus = [each for each in found if each not in kind.needed + kind.optional]
            if missing or surplus:
                what = f"misses {_told(missing)}" if missing else f"has {_told(surplus)}, which such a layer has not"
                raise ValueError(f"{layer.label}: the state {what} at {prefix!r}")
            own = {each: _as_float(f"{prefix}.{each}", value) for each, value in found.items()}
            width = _check_shapes(layer, own, width)
        elif layer.kind == "flatten":
            width = None
        parameters.append(own)
    if waiting:
        raise ValueError(f"the state has parameters that no layer takes: {_told(waiting)}")
    return Partial(_Stack(layers), tuple(parameters))


def _told(names: Any) -> str:
    return ", ".join(names) or "nothing"


def _read(number: int, layer: Layer) -> tuple[_Layer, str | None]:
    """A layer of a description, and the name of its module in the state, if it is given."""
    kind, settings = (layer, {}) if isinstance(layer, str) else layer
    check_choice("layer", kind, LAYERS)
    settings, label = dict(settings), f"layer {number}, {kind}"
    name = settings.pop("name", None)
    _, *known = inspect.signature(LAYERS[kind].function).parameters.values()
    known = {each.name: each for each in known if each.name not in LAYERS[kind].needed + LAYERS[kind].optional}
    for setting in settings:
        if setting not in known:
            raise ValueError(f"{label}: unknown setting {setting!r}; known: {_told(['name', *known])}")
    for setting, each in known.items():
        if each.default is inspect.Parameter.empty and setting not in settings:
            raise ValueError(f"{label}: the setting {setting!r} is needed")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    return _Layer(kind, tuple(sorted(values.items())), label), name


def _as_float(name: str, value: Any) -> Array:
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"the state's {name} must be of floating numbers, got {array.dtype}")
    return array.astype(jnp.float32)


def _check_shapes(layer: _Layer, own: Mapping[str, Array], width: int | None) -> int:
    """Checks shapes against one another and against the features that come in, if known; those that go out."""
    weight = own.get("weight", own.get("running_mean"))
    assert weight is not None
    if weight.ndim != _AXES[layer.kind]:
        raise ValueError(f"{layer.label}: the weight must have {_AXES[layer.kind]} axes, got {weight.shape}")
    for name, array in own.items():
        if name != "weight" and array.shape != weight.shape[:1]:
            raise ValueError(f"{layer.label}: {name} must be {weight.shape[:1]}, got {array.shape}")
    taken = weight.shape[0] if layer.kind == "batch_norm" else weight.shape[1] * dict(layer.settings).get("groups", 1)
    if width is not None and taken != width:
        raise ValueError(f"{layer.label}: the weight takes {taken} features, and {width} come in")
    return weight.shape[0]
