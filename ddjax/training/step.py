"""Training steps and epochs of a classifier, at a temperature.

Temperature is an argument of every function here, so that one compiled program trains every network of a sweep:
teachers on one-hot labels and students on soft ones. A caller compiles `train_step` or `train_epoch`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key, Num

from ddjax import layers, losses
from ddjax.binding.modes import training_arguments
from ddjax.classifier import LogitsFn
from ddjax.platforms import by_platform
from ddjax.rounding import to_float
from ddjax.state import TrainState

# From inputs and a key for each to inputs.
Augmentation = Callable[[Float[Array, "B ..."], Key[Array, " B"]], Float[Array, "B ..."]]
# From the network as it is, inputs, labels and a key for each, to the inputs that are trained on.
Adversary = Callable[[LogitsFn, Float[Array, "B ..."], Int[Array, " B"], Key[Array, " B"]], Float[Array, "B ..."]]
# From logits [B, K], targets [B, K] and the temperature to a loss for each example.
Loss = Callable[[Float[Array, "B K"], Float[Array, "B K"], Any], Float[Array, " B"]]
Batch = tuple[Num[Array, "B ..."], Float[Array, "B K"]]
Scalar = float | Float[Array, ""]
# What tells the keys of a step apart.
_AUGMENTATION, _ADVERSARY, _ORDER = 0xA06, 0xAD5, 0x0DE2


def train_step(
    state: TrainState,
    batch: Batch,
    temperature: Scalar,
    *,
    augment: Augmentation | None = None,
    adversary: Adversary | None = None,
    loss: Loss = losses.cross_entropy_at_temperature,
) -> tuple[TrainState, Float[Array, ""]]:
    """Takes one optimizer step on the mean loss, by default the cross-entropy of `softmax(logits / temperature)`.

    A CPU goes through the batch in parts that fit its cache, other devices through all parts at once. The parts, and so
    the keys of dropout, depend on the shape of the batch alone: one seed trains the same network on all platforms, up
    to rounding.

    Args:
      state: parameters, optimizer state, key.
      batch: inputs, uint8 or floats, and a distribution over the classes for each: one-hot or soft labels, scaled by
        its weight where an example has one. Bytes are divided by 255.
      temperature: T > 0; an argument, so that one compiled step serves every temperature.
      augment: varies inputs at random, with a key for each.
      adversary: replaces all inputs by adversarial ones, after `augment`. It sees the network without dropout and with
        its running statistics, and the likeliest class of each target as the label.
      loss: from logits, targets and the temperature to a loss for each example.

    Returns:
      The state after the step, and the loss before it.
    """
    inputs, targets = batch
    count = inputs.shape[0]
    # Batch normalization is of the whole batch, and only images have a known cost.
    whole = bool(state.statistics) or inputs.ndim != 4
    size = count if whole else layers.images_at_once(count, inputs.shape[1:])
    step_key = jax.random.fold_in(state.key, state.step)
    if augment is not None:
        inputs = augment(to_float(inputs), _keys(step_key, _AUGMENTATION, count))

    def attacked(inputs: Array, targets: Array, keys: Array) -> Array:
        if adversary is None:
            return to_float(inputs)
        found = adversary(state.logits_fn, to_float(inputs), jnp.argmax(targets, axis=1), keys)
        return lax.stop_gradient(found)

    def loss_fn(params: Any, inputs: Array, targets: Array, key: Array) -> tuple[Array, Any]:
        """The share of the mean that a part of the batch has, and the statistics after it."""
        apply = functools.partial(state.network.apply, **training_arguments(state.network), rngs={"dropout": key})
        if state.statistics:
            logits, changed = apply({"params": params, **state.statistics}, inputs, mutable=list(state.statistics))
        else:
            logits, changed = apply({"params": params}, inputs), {}
        return jnp.sum(loss(logits, targets, temperature)) / count, changed

    loss_and_gradients = jax.value_and_grad(loss_fn, has_aux=True)
    columns = (inputs, targets, _keys(step_key, _ADVERSARY, count))
    if size == count:
        (value, changed), gradients = loss_and_gradients(state.params, attacked(*columns), targets, step_key)
        return state.apply_gradients(gradients).replace(statistics=dict(changed)), value

    def split(array: Array) -> Array:
        return array.reshape(count // size, size, *array.shape[1:])

    def one_by_one(columns: Any, keys: Array) -> Any:
        def add(total: Any, part: Any) -> tuple[Any, None]:
            *columns, key = part
            (value, _), gradients = loss_and_gradients(state.params, attacked(*columns), columns[1], key)
            return jax.tree.map(jnp.add, total, (value, gradients)), None

        nothing = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, state.params))
        return lax.scan(add, nothing, (*map(split, columns), keys))[0]

    def at_once(columns: Any, keys: Array) -> Any:
        parts = split(attacked(*columns)), split(columns[1]), keys
        total = lambda params: jnp.sum(jax.vmap(lambda *part: loss_fn(params, *part)[0])(*parts))
        return jax.value_and_grad(total)(state.params)

    part_keys = jax.random.split(step_key, count // size)
    value, gradients = by_platform(columns, part_keys, cpu=one_by_one, default=at_once)
    return state.apply_gradients(gradients), value


def _keys(key: Array, purpose: int, count: int) -> Array:
    """A key for each example."""
    return jax.random.split(jax.random.fold_in(key, purpose), count)


def train_epoch(
    state: TrainState,
    inputs: Num[Array, "N ..."],
    targets: Float[Array, "N K"],
    temperature: Scalar,
    *,
    batch_size: int,
    **settings: Any,
) -> tuple[TrainState, Float[Array, ""]]:
    """Trains for one epoch: a scan over a random permutation of the data, which stays on the device.

    Returns the state after the epoch and its mean loss.

    Args:
      state: at the start of an epoch.
      inputs: the training set, uint8 or floats.
      targets: a distribution over the classes for each example.
      temperature: T > 0.
      batch_size: the examples of a step, at most N. The rest that fills no batch is left out of this epoch.
      **settings: `augment`, `adversary` and `loss` of `train_step`.
    """

    def step(state: TrainState, rows: Array) -> tuple[TrainState, Array]:
        return train_step(state, (inputs[rows], targets[rows]), temperature, **settings)

    state, step_losses = lax.scan(step, state, epoch_rows(state, inputs.shape[0], batch_size))
    return state, jnp.mean(step_losses)


def epoch_rows(state: TrainState, num_examples: int, batch_size: int) -> Int[Array, "steps batch"]:
    """The positions of the examples of each step of an epoch that a state begins: a random permutation of all."""
    num_steps = steps_per_epoch(num_examples, batch_size)
    order_key = jax.random.fold_in(jax.random.fold_in(state.key, _ORDER), state.step // num_steps)
    order = jax.random.permutation(order_key, num_examples)[: num_steps * batch_size]
    return order.reshape(num_steps, batch_size)


class Member(NamedTuple):
    """One network of a stack, the targets `[N, K]` and the temperature of its training, and whether it goes on."""

    state: TrainState
    targets: Any
    temperature: Any
    live: Any


def train_member(inputs: Num[Array, "N ..."], member: Member, **settings: Any) -> tuple[TrainState, Float[Array, ""]]:
    """`train_epoch` of one network of a stack; one that is not live keeps its state and has the loss NaN."""
    train = lambda state: train_epoch(state, inputs, member.targets, member.temperature, **settings)
    return lax.cond(member.live, train, _keep, member.state)


def step_member(
    member: Member, inputs: Num[Array, "B ..."], rows: Int[Array, " B"], **settings: Any
) -> tuple[TrainState, Float[Array, ""]]:
    """`train_step` of one network of a stack, on some rows of the training set and their inputs; see `train_member`."""
    train = lambda state: train_step(state, (inputs, member.targets[rows]), member.temperature, **settings)
    return lax.cond(member.live, train, _keep, member.state)


def _keep(state: TrainState) -> tuple[TrainState, Array]:
    return state, jnp.float32(jnp.nan)


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """The number of whole batches in the data.

    Raises:
      ValueError: when there is none.
    """
    if not 0 < batch_size <= num_examples:
        raise ValueError(f"batches of {batch_size} cannot be drawn from {num_examples} examples")
    return num_examples // batch_size
