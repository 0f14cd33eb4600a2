"""Training, stacks of networks and Jacobians, beside the same in PyTorch."""

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ddjax import data, jacobian, layers, losses, models, parallel, training

from .. import recipes
from . import measure, peers, sweeps
from .measure import Context, Side

Sides = dict[str, Side | Callable[[], Side]]
# Steps inside one call, so that what surrounds the loop does not count.
_STEPS = 5
# An epoch is cut to so many steps.
_EPOCH_STEPS = 20
# At which the teacher trains; the cost does not depend on it.
_TEMPERATURE = 20.0
_STACKS = (4, 9)


def _batch_size(context: Context) -> int:
    return min(context.recipe.batch_size, len(context.train))


def _training_batch(context: Context) -> tuple[jax.Array, jax.Array]:
    """Images as launchers keep them, and their one-hot labels."""
    rows = slice(_batch_size(context))
    labels = jax.nn.one_hot(context.train.labels[rows], context.num_classes)
    return jnp.asarray(context.train.images[rows]), labels


def _fresh(context: Context, lowering: str = "auto", seed: int = 0) -> training.TrainState:
    """An untrained network with the recipe's optimizer."""
    module = models.build(context.network, context.num_classes, lowering=lowering)
    optimizer = recipes.make_optimizer(context.recipe, len(context.train) // _batch_size(context))
    key = jax.random.fold_in(jax.random.key(context.seed), seed)
    return training.create_state(module, optimizer, context.train.image_shape, key)


def _call(compiled: Any, *arguments: Any) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(compiled(*arguments))


def _layers(context: Context) -> None:
    """Training in a scan and input gradients in a loop, in each lowering of `ddjax.layers`."""
    batch = _batch_size(context)
    where = {"network": context.network, "batch": batch}
    # The slow ones are slow enough for two steps to tell.
    steps = 2
    for work, make in (("layers_training", _training_side), ("layers_gradient", _gradient_side)):
        sides: Sides = {
            "ddjax" if lowering == "auto" else lowering: functools.partial(make, context, lowering, steps)
            for lowering in layers.LOWERINGS
        }
        repetitions = min(context.repetitions, 3)
        measure.compare(context.run, {"work": work, **where}, sides, unit="step", repetitions=repetitions)


def _training_side(context: Context, lowering: str, steps: int) -> Side:
    state, (images, targets) = _fresh(context, lowering), _training_batch(context)

    def train(state: training.TrainState, images: jax.Array, targets: jax.Array, temperature: jax.Array) -> Any:
        one = lambda state, _: training.train_step(state, (images, targets), temperature)
        return lax.scan(one, state, length=steps)

    arguments = (state, images, targets, jnp.float32(_TEMPERATURE))
    compiled = layers.jit(train).lower(*arguments).compile()
    # The operations of a part of the batch, since those of a loop over the parts count once.
    size = layers.images_at_once(len(images), images.shape[1:])
    part = layers.jit(training.train_step).lower(state, (images[:size], targets[:size]), arguments[3]).compile()
    flops = measure.flops_of(part)
    fields = {
        "flops": None if flops is None else flops * len(images) / size,
        "program_bytes": measure.bytes_of(compiled),
    }
    return Side(_call(compiled, *arguments), steps, fields)


def _gradient_side(context: Context, lowering: str, steps: int) -> Side:
    """Each gradient at a point that depends on the last."""
    images, targets = _training_batch(context)
    logits_fn = _fresh(context, lowering).logits_fn

    def ascend(logits_fn: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        gradient = jax.grad(lambda x: jnp.sum(losses.cross_entropy(logits_fn(x), labels)))
        return lax.fori_loop(0, steps, lambda _, x: x + 1e-3 * gradient(x), images)

    arguments = (logits_fn, data.to_float(images), targets.argmax(1))
    return Side(_call(layers.jit(ascend).lower(*arguments).compile(), *arguments), steps)


def _train_step(context: Context) -> None:
    """Steps of the recipe's training at a temperature, dropout included, in a scan as launchers run them."""
    batch = _batch_size(context)
    sides: Sides = {"ddjax": functools.partial(_training_side, context, "auto", _STEPS)}
    sides |= _torch_sides(context, functools.partial(_torch_steps, context))
    where = {"work": "train_step", "network": context.network, "batch": batch}
    measure.compare(context.run, where, sides, unit="step", repetitions=context.repetitions)


def _train_epoch(context: Context) -> None:
    """An epoch in a random order, the data on the device; cut to some steps where it is long."""
    batch = _batch_size(context)
    count = min(len(context.train) // batch, _STEPS if context.quick else _EPOCH_STEPS) * batch
    sides: Sides = {"ddjax": functools.partial(_epoch_side, context, count)}
    sides |= _torch_sides(context, functools.partial(_torch_epoch, context, count))
    where = {"work": "train_epoch", "network": context.network, "batch": batch}
    measure.compare(context.run, where, sides, repetitions=context.repetitions)


def _epoch_side(context: Context, count: int) -> Side:
    state, images = _fresh(context), jnp.asarray(context.train.images[:count])
    targets = jax.nn.one_hot(context.train.labels[:count], context.num_classes)
    epoch = functools.partial(training.train_epoch, batch_size=_batch_size(context))
    arguments = (state, images, targets, jnp.float32(_TEMPERATURE))
    compiled = layers.jit(epoch).lower(*arguments).compile()
    fields = {"steps": count // _batch_size(context), "program_bytes": measure.bytes_of(compiled)}
    return Side(_call(compiled, *arguments), count, fields)


def _torch_sides(context: Context, make: Callable[[str], Side]) -> Sides:
    """A side for each memory format; none without PyTorch, which `Peers.announce` has told."""
    if context.peers.torch is None:
        return {}
    names = {"contiguous": "torch", "channels_last": "torch, channels last"}
    return {name: functools.partial(make, formatted) for formatted, name in names.items()}


def _torch_network(context: Context, formatted: str) -> tuple[Any, Any]:
    """A fresh network and its optimizer."""
    theirs = sweeps.torch_training()
    network = sweeps.network_fields(context.network, context.num_classes)
    module = theirs.build(network, context.train.image_shape, sweeps.torch_device(), formatted)
    return module, theirs.make_optimizer(module, sweeps.recipe_fields(context.recipe))


def _torch_data(context: Context, count: int, formatted: str) -> tuple[Any, Any]:
    """Centered images and one-hot labels."""
    theirs, torch = sweeps.torch_training(), context.peers.torch
    center = models.build(context.network, context.num_classes).center
    images = np.ascontiguousarray(data.to_float(context.train.images[:count]).transpose(0, 3, 1, 2)) - center
    tensor = torch.from_numpy(images.astype(np.float32)).to(sweeps.torch_device())
    one_hot = np.eye(context.num_classes, dtype=np.float32)[context.train.labels[:count]]
    targets = torch.from_numpy(one_hot).to(sweeps.torch_device())
    return tensor.contiguous(memory_format=theirs.memory_format(formatted)), targets


def _torch_steps(context: Context, formatted: str) -> Side:
    theirs = sweeps.torch_training()
    module, optimizer = _torch_network(context, formatted)
    images, targets = _torch_data(context, _batch_size(context), formatted)

    def steps() -> None:
        for _ in range(_STEPS):
            theirs.train_step(module, optimizer, images, targets, _TEMPERATURE)
        peers.synchronize()

    return Side(steps, _STEPS, {"memory_format": formatted})


def _torch_epoch(context: Context, count: int, formatted: str) -> Side:
    theirs = sweeps.torch_training()
    module, optimizer = _torch_network(context, formatted)
    images, targets = _torch_data(context, count, formatted)
    batch = _batch_size(context)
    epoch = lambda: theirs.train_epoch(module, optimizer, images, targets, _TEMPERATURE, batch, formatted)
    return Side(epoch, count, {"memory_format": formatted})


def _jacobian(context: Context) -> None:
    """The Jacobian of the logits, as saliency maps need it."""
    for batch in context.batches:
        images = context.images[:batch]
        compiled = layers.jit(jacobian.jacobian).lower(context.logits_fn, jnp.asarray(images)).compile()
        ours = _call(compiled, context.logits_fn, jnp.asarray(images))
        reference = np.asarray(ours())
        # A backward pass for each class.
        counted = {"gradients": float(context.num_classes), "program_bytes": measure.bytes_of(compiled)}
        sides: Sides = {"ddjax": Side(ours, batch, counted)}
        if context.peers.torch is not None:
            for name in ("loop", "vmap", "jacrev"):
                sides[f"torch, {name}"] = functools.partial(_torch_jacobian, context, images, name, reference)
        where = {"work": "jacobian", "network": context.network, "batch": batch}
        measure.compare(context.run, where, sides, repetitions=context.repetitions)


def _torch_jacobian(context: Context, images: np.ndarray, name: str, reference: np.ndarray) -> Side:
    network = peers.fastest(context.state, images, context.labels[: len(images)])
    function = getattr(sweeps.torch_training(), f"jacobian_by_{name}")
    # The gradients of parameters are not asked for, and must not be made.
    network.module.requires_grad_(False)
    inputs = network.images(images)

    def call() -> Any:
        found = function(network.module, inputs)
        peers.synchronize()
        return found

    def describe(found: Any) -> dict[str, Any]:
        difference = np.abs(found.detach().cpu().numpy().transpose(0, 1, 3, 4, 2) - reference).max()
        # Relative to the largest entry.
        return {
            "max_difference": float(difference / np.abs(reference).max()),
            "memory_format": network.memory_format,
            "gradients": float(context.num_classes),
        }

    return Side(call, len(images), describe)


def _stack(context: Context) -> None:
    """Networks trained as one program, in each stacking of `parallel.over_members`, and one program after the other."""
    batch = _batch_size(context)
    for size in _STACKS[:1] if context.quick else _STACKS:
        sides: Sides = {
            "ddjax" if stacking == "auto" else stacking: functools.partial(_stack_side, context, size, stacking)
            for stacking in parallel.STACKINGS
        }
        sides["separate programs"] = functools.partial(_separate_side, context, size)
        if context.peers.torch is not None:
            sides["torch, in turn"] = functools.partial(_torch_stack, context, size)
        where = {"work": "stack", "network": context.network, "batch": batch, "networks": size}
        measure.compare(context.run, where, sides, unit="step of a network", repetitions=context.repetitions)


def _members(context: Context, size: int) -> tuple[jax.Array, list[Any]]:
    """Images that all share, and for each network its state, targets and temperature."""
    images, targets = _training_batch(context)
    temperatures = np.linspace(1, 100, size, dtype=np.float32)
    return images, [(_fresh(context, seed=i), targets, jnp.float32(temperatures[i])) for i in range(size)]


def _train_member(images: jax.Array, member: Any) -> Any:
    state, targets, temperature = member
    one = lambda state, _: training.train_step(state, (images, targets), temperature)
    return lax.scan(one, state, length=_STEPS)


def _stack_side(context: Context, size: int, stacking: str) -> Side:
    images, members = _members(context, size)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    # One device, whatever there is: the question is how it runs its share.
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:1]), ("sweep",))
    compiled = layers.jit(parallel.over_members(_train_member, mesh, stacking)).lower(images, stacked).compile()
    return Side(_call(compiled, images, stacked), size * _STEPS, {"program_bytes": measure.bytes_of(compiled)})


def _separate_side(context: Context, size: int) -> Side:
    images, members = _members(context, size)
    compiled = layers.jit(_train_member).lower(images, members[0]).compile()
    run_all = lambda: jax.block_until_ready([compiled(images, member) for member in members])
    return Side(run_all, size * _STEPS, {"program_bytes": measure.bytes_of(compiled)})


def _torch_stack(context: Context, size: int) -> Side:
    sides = [_torch_steps(context, "contiguous") for _ in range(size)]
    return Side(lambda: [side.call() for side in sides], size * _STEPS)


WORK: Mapping[str, measure.Work] = types.MappingProxyType(
    {
        "layers": _layers,
        "train_step": _train_step,
        "train_epoch": _train_epoch,
        "jacobian": _jacobian,
        "stack": _stack,
        "sweep": sweeps.sweep,
    }
)
