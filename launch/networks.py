"""The networks that are attacked: checkpoints, and anyone's own by `--model` or `--torch_model`.

`--model=package.module:factory` names a function, or a class, that makes the model. With `--weights=FILE` it is called
with the weights, as `ddjax.load_weights` reads them; one that takes no argument is called without, and the weights are
bound to what it returns. The model is whatever `ddjax.bind` takes, or a tuple of its arguments: a module and its
variables, a function and its arrays, a classifier. `--torch_model=package.module:Class` names a PyTorch module, whose
state dict `--weights` is.
"""

import dataclasses
import importlib
import inspect
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import ddjax
from ddjax import binding, checkpoints, data, registry, weights

from . import attacking, common, loading, recipes

FLAGS = flags.FLAGS
_MODEL = flags.DEFINE_string("model", None, "Your own network: package.module:factory, a function or class to call.")
_TORCH_MODEL = flags.DEFINE_string("torch_model", None, "Your own PyTorch network: package.module:Class.")
_WEIGHTS = flags.DEFINE_string("weights", None, "Its weights: .safetensors, .pt, .npz, .msgpack or a directory.")
_MEAN = flags.DEFINE_list("mean", None, "What it subtracts from inputs in [0, 1]: a number, or one for each channel.")
_STD = flags.DEFINE_list("std", None, "What it then divides them by.")
_OUTPUTS = flags.DEFINE_enum("outputs", "logits", binding.OUTPUTS, "What your own network returns.")
# The name of one's own network in results.
OWN = "model"


def is_own() -> bool:
    """Whether the flags name one's own network.

    Raises:
      ValueError: for flags that do not go together.
    """
    given = _MODEL.value or _TORCH_MODEL.value
    if _MODEL.value and _TORCH_MODEL.value:
        raise ValueError("--model and --torch_model name one network; give one of them")
    for flag in (_WEIGHTS, _MEAN, _STD):
        if flag.value is not None and not given:
            raise ValueError(f"--{flag.name} belongs to --model or --torch_model")
    if (_MEAN.value is None) != (_STD.value is None):
        raise ValueError("--mean and --std go together")
    for flag in (_MEAN, _STD):
        if flag.value is not None:
            _by_channel(flag)
    return bool(given)


def chosen(checkpoint: str | None) -> str | None:
    """The checkpoint to attack; None for one's own network.

    Raises:
      ValueError: for both.
    """
    if is_own() and checkpoint is not None:
        raise ValueError("--checkpoint names one network and --model or --torch_model another; give one of them")
    return checkpoint


def flags_of_run() -> dict[str, Any]:
    """The flags of one's own network that determine its numbers; none without one."""
    if not is_own():
        return {}
    found = {flag.name: flag.value for flag in (_MODEL, _TORCH_MODEL, _MEAN, _STD) if flag.value is not None}
    if _WEIGHTS.value is not None:
        found["weights"] = str(pathlib.Path(_WEIGHTS.value).resolve())
    return found if _OUTPUTS.value == "logits" else found | {"outputs": _OUTPUTS.value}


def read_spec(checkpoint: str | None) -> checkpoints.NetworkSpec:
    """What is known of a network before its data are loaded: of a checkpoint, or of one's own, for None.

    Raises:
      CheckpointError: for a checkpoint that is none.
    """
    if checkpoint is not None:
        return checkpoints.read_spec(checkpoint)
    return checkpoints.NetworkSpec(
        network=_MODEL.value or _TORCH_MODEL.value or "",
        arguments={},
        dataset=FLAGS.dataset or "",
        num_classes=0,
        image_shape=(),
        role=OWN,
        temperature=1.0,
        seed=0,
        epochs=0,
        num_train=0,
        batch_size=0,
    )


def dataset_for(spec: checkpoints.NetworkSpec) -> str:
    """The data set on which a network is attacked: the flag's, else the one that it was trained on.

    Raises:
      ValueError: for one's own network without the flag.
    """
    if not (FLAGS.dataset or spec.dataset):
        raise ValueError("a network of your own needs --dataset, the data set on which it is attacked")
    return FLAGS.dataset or spec.dataset


def run_name(spec: checkpoints.NetworkSpec) -> str:
    """What the directory of a run on this network is named by."""
    return spec.recipe or (spec.network if spec.role == OWN else "")


def size_for(spec: checkpoints.NetworkSpec) -> int | None:
    """The size to which images are brought for a network; for one's own the flag's."""
    return loading.size_of(spec.image_shape) if spec.image_shape else FLAGS.image_size


def recipe_for(spec: checkpoints.NetworkSpec, dataset: str) -> recipes.Recipe:
    """The recipe by which a substitute of a network is trained: its own, else the first one of the data set."""
    of_dataset = [name for name, recipe in recipes.RECIPES.items() if recipe.dataset == dataset]
    recipe = recipes.get(spec.recipe or (of_dataset or [FLAGS.recipe])[0])
    return dataclasses.replace(recipe, image_size=loading.size_of(spec.image_shape))


def load(checkpoint: str | None, test: data.Dataset) -> attacking.Network:
    """A network from its checkpoints, or one's own for None; refused where it does not take the inputs."""
    if checkpoint is not None:
        return attacking.load_network(checkpoint, test)
    logits_fn, shape = _load_own(test), tuple(test.image_shape)
    spec = dataclasses.replace(read_spec(None), num_classes=test.num_classes, image_shape=shape)
    return attacking.Network(logits_fn, spec, common.fingerprint(*jax.tree.leaves(logits_fn)))


def fingerprint_of(own: attacking.Network | None) -> dict[str, str]:
    """What a run keeps of the parameters of one's own network, so that it does not go on with others."""
    return {} if own is None else {"parameters_fingerprint": own.fingerprint}


def _load_own(test: data.Dataset) -> Any:
    """One's own network as a classifier of the inputs of a data set, checked on two of them."""
    flag, text = ("model", _MODEL.value) if _MODEL.value else ("torch_model", _TORCH_MODEL.value)
    make, name = _imported(flag, str(text)), f"--{flag}={text}"
    inputs = jnp.asarray(data.to_float(test.images[:2]))
    logits_fn = _of_torch(make, name, inputs) if flag == "torch_model" else _of_jax(make, name)
    if _OUTPUTS.value == "probabilities" and not binding.takes_logarithm(logits_fn):
        logits_fn = binding.from_probabilities(logits_fn)
    if _MEAN.value is not None:
        logits_fn = ddjax.normalized(logits_fn, _by_channel(_MEAN), _by_channel(_STD))
    binding.check_classifier(logits_fn, inputs, name)
    if binding.takes_logarithm(logits_fn):
        print(f"note: {binding.LOGARITHM}")
    count = jax.eval_shape(logits_fn, inputs).shape[1]
    if count != test.num_classes:
        raise ValueError(f"{name} returns {count} logits, and {test.name} has {test.num_classes} classes")
    return logits_fn


def _imported(flag: str, text: str) -> Any:
    """The object of an import path."""
    path, _, attribute = text.partition(":")
    if not attribute:
        raise ValueError(f"--{flag} must be an import path, package.module:name, got {text!r}")
    module = registry.import_module(path, "network")
    found = getattr(module, attribute, None)
    if not callable(found):
        names = ", ".join(each for each, value in vars(module).items() if callable(value) and each[0] != "_")
        raise ValueError(f"{path} has no function or class {attribute!r}; it has: {names}")
    return found


def _of_jax(make: Any, name: str) -> Any:
    """The classifier that a factory makes, with the flag's weights."""
    given = () if _WEIGHTS.value is None else (weights.load_weights(_WEIGHTS.value),)
    takes_weights = any(
        each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) and each.default is each.empty
        for each in inspect.signature(make).parameters.values()
    )
    if takes_weights and not given:
        raise ValueError(f"{name} takes weights: give --weights")
    try:
        made = make(*given) if takes_weights else make()
    except Exception as error:  # whatever the user's function raises
        raise ValueError(f"{name} raised {type(error).__name__}: {error}") from error
    arguments = made if isinstance(made, tuple) and type(made) is tuple else (made,)
    if given and not takes_weights:
        found = given[0]
        if isinstance(made, nn.Module) and "params" not in found:
            # Names such as params/Dense_0/kernel, or the parameters alone.
            found = weights.load_weights(str(_WEIGHTS.value), separator="/")
            found = found if "params" in found else {"params": found}
        arguments = (*arguments, found)
    return binding.bind(*arguments)


def _of_torch(make: Any, name: str, inputs: jax.Array) -> Any:
    """The classifier of a PyTorch class with the flag's state dict."""
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise ValueError(f"--torch_model needs PyTorch: pip install 'ddjax[torch]' ({error})") from error
    try:
        module = make()
    except Exception as error:  # whatever the user's class raises
        raise ValueError(f"{name} raised {type(error).__name__}: {error}") from error
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"{name} makes a {type(module).__name__}, no torch.nn.Module")
    if _WEIGHTS.value is not None:
        state = weights.load_weights(_WEIGHTS.value)
        own = {key: value for key, value in module.state_dict().items() if not key.endswith("num_batches_tracked")}
        weights.check_match(state, own, what=name)
        # PyTorch takes no bfloat16 of NumPy's.
        as_float = lambda value: value.astype(np.float32) if jnp.issubdtype(value.dtype, jnp.floating) else value.copy()
        module.load_state_dict({key: torch.from_numpy(as_float(value)) for key, value in state.items()}, strict=False)
    return ddjax.from_torch(module, inputs)


def _by_channel(flag: flags.FlagHolder) -> jax.Array:
    """The number of a flag, or one for each channel."""
    try:
        values = [float(text) for text in flag.value]
    except ValueError:
        raise ValueError(f"--{flag.name} must be numbers separated by commas, got {flag.value}") from None
    return jnp.asarray(values if len(values) > 1 else values[0], jnp.float32)
