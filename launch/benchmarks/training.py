"""Training, stacks of networks and Jacobians, beside the same in PyTorch."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ddjax import data, jacobian, layers, models, parallel, training

from .. import recipes
from . import measure, peers, sweeps
from .attacks import input_gradients
from .measure import Context, Maker, Side, Sides

# Steps inside one call, so that what surrounds the loop does not count.
_STEPS = 5
# Of a work whose slow sides are slow enough for few steps and turns to tell.
_SLOW_STEPS, _SLOW_TURNS = 2, 3
# An epoch is cut to so many steps.
_EPOCH_STEPS = 20
# At which the teacher trains; the cost does not depend on it.
_TEMPERATURE = 20.0
_STACKS = (4, 9)


def _training_images(context: Context, count: int) -> tuple[jax.Array, jax.Array]:
    """Images as launchers keep them, and their one-hot labels."""
    labels = jax.nn.one_hot(context.train.labels[:count], context.test.num_classes)
    return jnp.asarray(context.train.images[:count]), labels


def _fresh(context: Context, lowering: str = "auto", seed: int = 0) -> training.TrainState:
    """An untrained network with the recipe's optimizer."""
    module = models.build(context.recipe.network, context.test.num_classes, lowering=lowering)
    optimizer = recipes.make_optimizer(context.recipe, len(context.train) // context.training_batch)
    key = jax.random.fold_in(jax.random.key(context.seed), seed)
    return training.create_state(module, optimizer, context.train.image_shape, key)


def _train(
    steps: int, state: training.TrainState, images: jax.Array, targets: jax.Array, temperature: jax.Array
) -> Any:
    """Training steps in a scan, as launchers run them."""
    one = lambda state, _: training.train_step(state, (images, targets), temperature)
    return lax.scan(one, state, length=steps)


def _layers(context: Context) -> None:
    """Training in a scan and input gradients in a loop, in each lowering of `ddjax.layers`."""
    for work, make in (("layers_training", _our_steps), ("layers_gradient", _our_gradients)):
        sides = {
            "ddjax" if lowering == "auto" else lowering: functools.partial(make, context, _SLOW_STEPS, lowering)
            for lowering in layers.LOWERINGS
        }
        measure.compare(context, work, sides, unit="step", most_turns=_SLOW_TURNS, batch=context.training_batch)


def _our_steps(context: Context, steps: int, lowering: str = "auto") -> Maker:
    arguments = (
        _fresh(context, lowering),
        *_training_images(context, context.training_batch),
        jnp.float32(_TEMPERATURE),
    )
    state, images, targets, temperature = arguments
    # The operations of a part of the batch, since those of a loop over the parts count once.
    size = layers.images_at_once(len(images), images.shape[1:])
    part = layers.jit(training.train_step).lower(state, (images[:size], targets[:size]), temperature).compile()
    flops = measure.flops_of(part)
    fields = {"flops": None if flops is None else flops * len(images) / size}
    return measure.program(functools.partial(_train, steps), *arguments, units=steps, fields=fields)


def _our_gradients(context: Context, steps: int, lowering: str) -> Maker:
    images, targets = _training_images(context, context.training_batch)
    arguments = (_fresh(context, lowering).logits_fn, data.to_float(images), targets.argmax(1))
    return measure.program(functools.partial(input_gradients, steps), *arguments, units=steps)


def _torch_sides(context: Context, make: Any, *arguments: Any) -> Sides:
    """A side for each memory format; none without PyTorch, which `Peers.announce` has told."""
    if context.peers.torch is None:
        return {}
    names = {"contiguous": "torch", "channels_last": "torch, channels last"}
    return {name: functools.partial(make, context, *arguments, formatted) for formatted, name in names.items()}


def _train_step(context: Context) -> None:
    """Steps of the recipe's training at a temperature, dropout included, in a scan as launchers run them."""
    sides = {"ddjax": functools.partial(_our_steps, context, _STEPS), **_torch_sides(context, _torch_steps)}
    measure.compare(context, "train_step", sides, unit="step", batch=context.training_batch)


def _torch_steps(context: Context, formatted: str) -> Side:
    arguments = peers.training_arguments(context.recipe, context.train, context.training_batch, formatted)

    def steps() -> None:
        for _ in range(_STEPS):
            peers.torch_training().train_step(*arguments, _TEMPERATURE)
        peers.block_until_ready(None)

    return Side(steps, _STEPS, {"memory_format": formatted})


def _train_epoch(context: Context) -> None:
    """An epoch in a random order, the data on the device; cut to some steps where it is long."""
    batch = context.training_batch
    count = min(len(context.train) // batch, _STEPS if context.quick else _EPOCH_STEPS) * batch
    sides = {"ddjax": functools.partial(_our_epoch, context, count), **_torch_sides(context, _torch_epoch, count)}
    measure.compare(context, "train_epoch", sides, batch=batch)


def _our_epoch(context: Context, count: int) -> Maker:
    epoch = functools.partial(training.train_epoch, batch_size=context.training_batch)
    arguments = (_fresh(context), *_training_images(context, count), jnp.float32(_TEMPERATURE))
    return measure.program(epoch, *arguments, units=count, fields={"steps": count // context.training_batch})


def _torch_epoch(context: Context, count: int, formatted: str) -> Side:
    arguments = peers.training_arguments(context.recipe, context.train, count, formatted)
    settings = (_TEMPERATURE, context.training_batch, formatted)
    return Side(lambda: peers.torch_training().train_epoch(*arguments, *settings), count, {"memory_format": formatted})


def _jacobian(context: Context) -> None:
    """The Jacobian of the logits, as saliency maps need it."""
    # A backward pass for each class.
    counted, logits_fn = {"gradients": float(context.test.num_classes)}, context.state.logits_fn
    for batch in context.batches:
        images, *_ = context.first(batch)
        ours = measure.program(jacobian.jacobian, logits_fn, images, units=batch, fields=counted)
        sides: dict[str, Maker] = {"ddjax": ours}
        for name in ("loop", "vmap", "jacrev") if context.peers.torch is not None else ():
            sides[f"torch, {name}"] = functools.partial(_torch_jacobian, context, images, name, counted)
        measure.compare(context, "jacobian", sides, batch=batch)


def _torch_jacobian(context: Context, images: jax.Array, name: str, counted: Mapping[str, Any]) -> Side:
    network = peers.fastest(context.state, np.asarray(images), context.labels[: len(images)])
    function = getattr(peers.torch_training(), f"jacobian_by_{name}")
    # The gradients of parameters are not asked for, and must not be made.
    network.module.requires_grad_(False)
    inputs = network.images(np.asarray(images))

    def describe(found: Any) -> dict[str, Any]:
        ours = np.asarray(layers.jit(jacobian.jacobian)(context.state.logits_fn, images))
        difference = np.abs(found.detach().cpu().numpy().transpose(0, 1, 3, 4, 2) - ours).max()
        # Relative to the largest entry.
        relative = float(difference / np.abs(ours).max())
        return {"max_difference": relative, "memory_format": network.memory_format, **counted}

    return Side(lambda: peers.block_until_ready(function(network.module, inputs)), len(images), describe)


def _stack(context: Context) -> None:
    """Networks trained as one program, in each stacking of `parallel.over_members`, and one program after the other."""
    for size in _STACKS[:1] if context.quick else _STACKS:
        sides: dict[str, Maker] = {
            "ddjax" if stacking == "auto" else stacking: functools.partial(stack_side, context, size, stacking)
            for stacking in parallel.STACKINGS
        }
        sides["separate programs"] = functools.partial(_separate_side, context, size)
        if context.peers.torch is not None:
            sides["torch, in turn"] = functools.partial(_torch_stack, context, size)
        measure.compare(context, "stack", sides, unit="step of a network", batch=context.training_batch, networks=size)


def _members(context: Context, size: int) -> list[tuple[Any, ...]]:
    """What `_train` takes, for networks at temperatures from 1 to 100."""
    temperatures = np.linspace(1, 100, size, dtype=np.float32)
    images, targets = _training_images(context, context.training_batch)
    return [(_fresh(context, seed=i), images, targets, jnp.float32(t)) for i, t in enumerate(temperatures)]


def stack_side(context: Context, count: int, stacking: str = "auto", **fields: Any) -> Maker:
    """Networks trained as one program; `traces` says how often the training step was traced."""
    traces = 0

    def train(images: jax.Array, member: Any) -> Any:
        state, targets, temperature = member

        def one(state: training.TrainState, _: None) -> Any:
            nonlocal traces
            traces += 1
            return training.train_step(state, (images, targets), temperature)

        return lax.scan(one, state, length=_STEPS)

    states, (images, *_), targets, temperatures = zip(*_members(context, count), strict=True)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *zip(states, targets, temperatures, strict=True))
    # One device, whatever there is: the question is how it runs its share.
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:1]), ("sweep",))
    program, describe = parallel.over_members(train, mesh, stacking), lambda _: {"traces": traces, **fields}
    return measure.program(program, images, stacked, units=count * _STEPS, fields=describe)


def _separate_side(context: Context, size: int) -> Side:
    members = _members(context, size)
    compiled = layers.jit(functools.partial(_train, _STEPS)).lower(*members[0]).compile()
    run_all = lambda: jax.block_until_ready([compiled(*member) for member in members])
    return Side(run_all, size * _STEPS, {"program_bytes": measure.bytes_of(compiled)})


def _torch_stack(context: Context, size: int) -> Side:
    sides = [_torch_steps(context, "contiguous") for _ in range(size)]
    return Side(lambda: [side.call() for side in sides], size * _STEPS)


WORK = {
    "layers": _layers,
    "train_step": _train_step,
    "train_epoch": _train_epoch,
    "jacobian": _jacobian,
    "stack": _stack,
    "sweep": sweeps.sweep,
}
