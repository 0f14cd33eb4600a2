"""Training at a temperature, and defensive distillation.

Temperature is an argument of every function here, so that one compiled program trains every network of a sweep:
teachers on one-hot labels and students on soft ones. A caller compiles `train_step` or `train_epoch`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from flax.training import train_state
from jax import lax
from jaxtyping import Array, Float, Int, Key, Num

from ddjax import layers, losses
from ddjax.classifier import LogitsFn, bind, check_temperature
from ddjax.generative.state import GenerativeState
from ddjax.rounding import to_float


class TrainState(train_state.TrainState):
    """Parameters, optimizer state and step count, with the key from which all randomness of training derives.

    Attributes:
      batch_stats: the running statistics of batch normalization; empty where there is none.
      key: order of the examples and dropout of any step follow from it and the step's number, so that training resumed
        from a checkpoint repeats what would have been.
    """

    # flax annotates a FrozenDict, which its own `init` no longer returns.
    params: Any  # pyright: ignore[reportIncompatibleVariableOverride]
    batch_stats: Any = struct.field(default_factory=dict)
    key: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """What the network is applied to."""
        return {"params": self.params} | self.statistics

    @property
    def statistics(self) -> dict[str, Any]:
        """The collections that a step changes without a gradient."""
        return {"batch_stats": self.batch_stats} if self.batch_stats else {}


Augmentation = Callable[[Float[Array, "B H W C"], Key[Array, " B"]], Float[Array, "B H W C"]]
# From the network as it is, images, labels and a key for each, to the images that are trained on.
Adversary = Callable[[LogitsFn, Float[Array, "B H W C"], Int[Array, " B"], Key[Array, " B"]], Float[Array, "B H W C"]]
Batch = tuple[Num[Array, "B H W C"], Float[Array, "B K"]]
Scalar = float | Float[Array, ""]


def create_state(
    module: nn.Module, optimizer: optax.GradientTransformation, image_shape: tuple[int, int, int], key: Key[Array, ""]
) -> TrainState:
    """Initializes a network and its optimizer.

    Args:
      module: maps images to logits and takes `train`.
      optimizer: from optax. States of equal programs need the same object.
      image_shape: (H, W, C).
      key: makes the parameters and all later randomness.

    Returns:
      The state before the first step.
    """
    init_key, train_key = jax.random.split(key)
    variables = _compiled_init(module)(init_key, jnp.zeros((1, *image_shape)))
    state = TrainState.create(
        apply_fn=module.apply,
        params=variables["params"],
        tx=optimizer,
        batch_stats=variables.get("batch_stats", {}),
        key=train_key,
    )
    # As it comes back from a step and from a checkpoint; a Python integer would be a program of its own.
    return state.replace(step=jnp.zeros((), jnp.int32))


@functools.cache
def _compiled_init(module: nn.Module) -> Callable[..., Any]:
    """Of a network's parameters; compiled, the forward pass that tells their shapes is not run."""
    return jax.jit(module.init)


def train_step(
    state: TrainState,
    batch: Batch,
    temperature: Scalar,
    *,
    augment: Augmentation | None = None,
    adversary: Adversary | None = None,
) -> tuple[TrainState, Float[Array, ""]]:
    """Takes one optimizer step on the mean cross-entropy of `softmax(logits / temperature)`.

    Args:
      state: parameters, optimizer state, key.
      batch: images, uint8 or floats in [0, 1], and a distribution over the classes for each: one-hot or soft labels,
        scaled by its weight where an example has one.
      temperature: T > 0; an argument, so that one compiled step serves every temperature.
      augment: varies images at random, with a key for each.
      adversary: puts adversarial images in the place of all, after `augment`; it sees the network without dropout and
        with its running statistics, and the likeliest class of each target as the label.

    Returns:
      The state after the step, and the loss before it.
    """
    images, targets = batch
    count = images.shape[0]
    # Batch normalization is of the whole batch.
    size = count if state.statistics else layers.images_at_once(count, images.shape[1:])
    step_key = jax.random.fold_in(state.key, state.step)
    if augment is not None:
        images = augment(to_float(images), _keys(step_key, 0xA06, images))

    def loss_fn(params: Any, images: Array, targets: Array, key: Array) -> tuple[Array, Any]:
        """The share of the mean that a part of the batch has, and the statistics after it."""
        if adversary is not None:
            fooling, keys = bind(state.apply_fn.__self__, state.variables), _keys(key, 0xAD5, images)
            images = lax.stop_gradient(adversary(fooling, to_float(images), jnp.argmax(targets, axis=1), keys))
        apply = functools.partial(state.apply_fn, train=True, rngs={"dropout": key})
        if state.statistics:
            variables = {"params": params} | state.statistics
            logits, changed = apply(variables, to_float(images), mutable=list(state.statistics))
        else:
            logits, changed = apply({"params": params}, to_float(images)), {}
        return jnp.sum(losses.cross_entropy_at_temperature(logits, targets, temperature)) / count, changed

    loss_and_gradients = jax.value_and_grad(loss_fn, has_aux=True)
    changed = {}
    if size == count:
        (loss, changed), gradients = loss_and_gradients(state.params, images, targets, step_key)
    else:

        def add(total: Any, part: Any) -> tuple[Any, None]:
            (loss, _), gradients = loss_and_gradients(state.params, *part)
            return jax.tree.map(jnp.add, total, (loss, gradients)), None

        parts = [array.reshape(count // size, size, *array.shape[1:]) for array in (images, targets)]
        nothing = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, state.params))
        (loss, gradients), _ = lax.scan(add, nothing, (*parts, jax.random.split(step_key, count // size)))
    return state.apply_gradients(grads=gradients, **changed), loss


def _keys(key: Array, purpose: int, images: Array) -> Array:
    """A key for each image."""
    return jax.random.split(jax.random.fold_in(key, purpose), images.shape[0])


def train_epoch(
    state: TrainState,
    images: Num[Array, "N H W C"],
    targets: Float[Array, "N K"],
    temperature: Scalar,
    *,
    batch_size: int,
    augment: Augmentation | None = None,
    adversary: Adversary | None = None,
) -> tuple[TrainState, Float[Array, ""]]:
    """Trains for one epoch: a scan over a random permutation of the data, which stays on the device.

    Args:
      state: at the start of an epoch.
      images: the training set, uint8 or floats in [0, 1].
      targets: a distribution over the classes for each image.
      temperature: T > 0.
      batch_size: the examples of a step, at most N; a rest smaller than that waits for another epoch's permutation.
      augment: as for `train_step`.
      adversary: as for `train_step`.

    Returns:
      The state after the epoch and its mean loss.
    """

    def step(state: TrainState, rows: Array) -> tuple[TrainState, Array]:
        batch = (images[rows], targets[rows])
        return train_step(state, batch, temperature, augment=augment, adversary=adversary)

    state, step_losses = lax.scan(step, state, epoch_rows(state, images.shape[0], batch_size))
    return state, jnp.mean(step_losses)


def epoch_rows(state: TrainState | GenerativeState, num_examples: int, batch_size: int) -> Int[Array, "steps batch"]:
    """The examples of each step of the epoch that a state is in: batches of a random permutation.

    Args:
      state: at the start of an epoch.
      num_examples: the size of the training set.
      batch_size: the examples of a step.

    Returns:
      Positions in the training set.
    """
    num_steps = steps_per_epoch(num_examples, batch_size)
    order_key = jax.random.fold_in(jax.random.fold_in(state.key, 0x0DE2), state.step // num_steps)
    order = jax.random.permutation(order_key, num_examples)[: num_steps * batch_size]
    return order.reshape(num_steps, batch_size)


class Member(NamedTuple):
    """One network of a stack that is trained as one program.

    Attributes:
      state: at the start of an epoch.
      targets: a distribution over the classes for each training image, `[N, K]`.
      temperature: T > 0.
      live: whether this epoch is the network's; else its state stays.
    """

    state: TrainState
    targets: Any
    temperature: Any
    live: Any


def train_member(
    images: Num[Array, "N H W C"],
    member: Member,
    *,
    batch_size: int,
    augment: Augmentation | None = None,
    adversary: Adversary | None = None,
) -> tuple[TrainState, Float[Array, ""]]:
    """`train_epoch` of one network of a stack, for `parallel.over_members`.

    Args:
      images: the training set, which the members share.
      member: the network; not trained where it is not live.
      batch_size: the examples of a step, at most N.
      augment: as for `train_step`.
      adversary: as for `train_step`.

    Returns:
      The state after the epoch and its mean loss; NaN where it is not live.
    """
    state, targets, temperature, live = member
    settings = {"batch_size": batch_size, "augment": augment, "adversary": adversary}
    train = lambda state: train_epoch(state, images, targets, temperature, **settings)
    return lax.cond(live, train, _keep, state)


def step_member(
    member: Member,
    images: Num[Array, "B H W C"],
    rows: Int[Array, " B"],
    *,
    augment: Augmentation | None = None,
    adversary: Adversary | None = None,
) -> tuple[TrainState, Float[Array, ""]]:
    """`train_step` of one network of a stack, on images that do not fit the device all at once.

    Args:
      member: the network; not trained where it is not live.
      images: of this step.
      rows: their positions in the training set, as `epoch_rows` gives them.
      augment: as for `train_step`.
      adversary: as for `train_step`.

    Returns:
      The state after the step and the loss before it; NaN where it is not live.
    """
    state, targets, temperature, live = member
    settings = {"augment": augment, "adversary": adversary}
    train = lambda state: train_step(state, (images, targets[rows]), temperature, **settings)
    return lax.cond(live, train, _keep, state)


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


# `train_epoch` with everything settled but its state, images, targets and temperature; usually compiled.
EpochFn = Callable[..., tuple[TrainState, Array]]


def fit(
    epoch_fn: EpochFn,
    state: TrainState,
    images: Num[Array, "N H W C"],
    targets: Float[Array, "N K"],
    temperature: Scalar,
    *,
    num_epochs: int,
    first_epoch: int = 0,
    after_epoch: Callable[[TrainState, int, float], None] | None = None,
) -> TrainState:
    """Trains from `first_epoch` to `num_epochs`.

    Args:
      epoch_fn: one epoch, `train_epoch` with its settings; it may donate its state.
      state: as it was after `first_epoch` epochs.
      images: the training set.
      targets: a distribution over the classes for each image.
      temperature: T > 0.
      num_epochs: the epochs in all.
      first_epoch: the epochs done already, when resuming.
      after_epoch: called with the state, the number of epochs done and the epoch's mean loss; for checkpoints and
        progress.

    Returns:
      The trained state.

    Raises:
      ValueError: when the temperature is not positive.
      FloatingPointError: when the loss is no longer finite: the training has diverged.
    """
    check_temperature(temperature)
    # A weak-typed Python number and an array would be two programs.
    temperature = jnp.float32(temperature)
    for epoch in range(first_epoch, num_epochs):
        state, loss = epoch_fn(state, images, targets, temperature)
        loss = float(loss)
        check_loss(loss, f"epoch {epoch + 1}")
        if after_epoch is not None:
            after_epoch(state, epoch + 1, loss)
    return state


def check_loss(loss: float, where: str) -> None:
    """Raises FloatingPointError for a loss that is not finite: the training has diverged."""
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss became {loss} in {where}: lower the learning rate")


def logits_fn(state: TrainState) -> jax.tree_util.Partial:
    """The classifier of a training state, dropout off."""
    return bind(state.apply_fn.__self__, state.variables)


def soft_labels(
    logits_fn: LogitsFn, images: Num[Array, "N H W C"], temperature: Scalar, *, batch_size: int = 1000
) -> Float[Array, "N K"]:
    """The teacher's probabilities at a temperature: `softmax(logits / temperature)`.

    Args:
      logits_fn: the teacher, with dropout off; logits, not probabilities.
      images: the training set, uint8 or floats in [0, 1].
      temperature: the one the teacher was trained at.
      batch_size: how many images go through the network at a time.

    Returns:
      A distribution over the classes for each image.

    Reference:
      Papernot et al., Distillation as a Defense, 2016 (arXiv 1511.04508).
    """

    def label(one_image: Array) -> Array:
        return jax.nn.softmax(logits_fn(to_float(one_image)[None])[0] / temperature)

    return lax.map(label, images, batch_size=min(batch_size, images.shape[0]))


def distill(
    fit_fn: Callable[[str, Array, Array], TrainState],
    images: Num[Array, "N H W C"],
    targets: Float[Array, "N K"],
    temperature: Scalar,
    *,
    soft_labels_fn: Callable[[LogitsFn, Array, Scalar], Array] = soft_labels,
) -> tuple[TrainState, TrainState]:
    """Defensive distillation: a teacher trained at T, and a student of the same architecture on its soft labels at T.

    The student is used at temperature 1; that is what makes its softmax saturate.

    Args:
      fit_fn: trains a fresh network at `temperature`: called with `"teacher"` and one-hot targets, then with
        `"student"` and soft ones. Where it keeps checkpoints, distillation resumes with them.
      images: the training set.
      targets: its one-hot labels.
      temperature: T > 0.
      soft_labels_fn: `soft_labels`, perhaps compiled.

    Returns:
      The teacher and the student.

    Raises:
      ValueError: when the temperature is not positive.

    Reference:
      Papernot et al., Distillation as a Defense, 2016 (arXiv 1511.04508).
    """
    check_temperature(temperature)
    teacher = fit_fn("teacher", images, targets)
    labels = soft_labels_fn(logits_fn(teacher), images, jnp.float32(temperature))
    return teacher, fit_fn("student", images, labels)


def with_noise(images: Num[np.ndarray, "N H W C"], deviation: float, key: Key[Array, ""]) -> Num[np.ndarray, "N H W C"]:
    """Images with small random noise, for soft labels that say something about their surroundings.

    Args:
      images: uint8 or floats in [0, 1].
      deviation: the standard deviation of the normal noise on images in [0, 1], at least 0.
      key: of the noise.

    Returns:
      Images of the same dtype in the same range, on the host; uint8 ones rounded.

    Raises:
      ValueError: when the deviation is negative or not finite.
    """
    if not 0 <= deviation < float("inf"):
        raise ValueError(f"the deviation of noise must be at least 0 and finite, got {deviation}")
    noise = np.asarray(jax.random.normal(key, images.shape, jnp.float32))
    noisy = np.clip(np.asarray(to_float(images)) + np.float32(deviation) * noise, 0, 1)
    return np.rint(255 * noisy).astype(np.uint8) if images.dtype == np.uint8 else noisy.astype(images.dtype)
