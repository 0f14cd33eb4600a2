"""Trains one classifier, or distills one, from arrays: what most users call."""

import contextlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, Num

from ddjax import losses, parallel
from ddjax.binding import trainable
from ddjax.checkpoints import Checkpoints, NetworkSpec
from ddjax.checks import check_number, check_whole_number
from ddjax.data import Batches
from ddjax.files import PathLike, local_path
from ddjax.progress import Progress, silent
from ddjax.rounding import to_float
from ddjax.state import TrainState, check_network, create_state
from ddjax.training import distillation, step
from ddjax.training.stack import train_stack

# How far the sum of a distribution may be from 1.
_SUM_TOLERANCE = 1e-3


def train(
    network: nn.Module | Any,
    optimizer: optax.GradientTransformation,
    inputs: Num[np.ndarray | Array, "N ..."],
    labels: Int[np.ndarray | Array, " N"] | Float[np.ndarray | Array, "N K"],
    *,
    temperature: float = 1.0,
    epochs: int,
    batch_size: int = 128,
    key: Key[Array, ""],
    loss: step.Loss = losses.cross_entropy_at_temperature,
    augment: step.Augmentation | None = None,
    adversary: step.Adversary | None = None,
    checkpoints: PathLike | None = None,
    checkpoint_seconds: float = 30.0,
    progress: Progress = silent,
) -> TrainState:
    """Trains a classifier.

    It compiles what it runs, and is not to be called inside of a compiled function. Training stops on the way are
    harmless where `checkpoints` is given: called again with the same arguments, it goes on from the last checkpoint and
    ends with the same parameters, bit for bit.

    Args:
      network: a flax.linen module from inputs `[B, ...]` to logits `[B, K]`, with or without batch statistics, dropout
        and an argument `train`, `training`, `deterministic` or `use_running_average`. Dropout takes its key from the
        stream `dropout`. Or a flax.nnx class that is made by `rngs=` alone, or such a module, which stays as it is:
        the network starts from its parameters. `state.network.module(state.variables)` is the trained module.
      optimizer: from optax.
      inputs: uint8, which are divided by 255, or finite floats, which are left as they are. A `np.memmap` is read batch
        by batch.
      labels: classes from 0 to K - 1, or a distribution over the classes for each example.
      temperature: T > 0; the loss is that of `softmax(logits / T)`.
      epochs: passes over the data, at least 1.
      batch_size: the examples of a step; all of them where there are fewer. The rest of an epoch that fills no batch is
        left out; another epoch has another order.
      key: a typed key; makes the parameters and all randomness of training.
      loss: from logits `[B, K]`, targets `[B, K]` and T to a loss for each example.
      augment: varies inputs at random, with a key for each example.
      adversary: replaces the inputs of each batch by adversarial ones; see `train_step`.
      checkpoints: a directory of this network alone; None to keep none.
      checkpoint_seconds: the least time between two checkpoints.
      progress: shows the epochs.

    Returns:
      The trained state. `state.logits_fn` is the classifier, to be attacked or used at temperature 1.

    Raises:
      ValueError: for a network that is no flax module, does not take the inputs or does not return logits; for
        labels, inputs or settings out of their range. The message says what was wanted.
      FloatingPointError: when the loss is no longer finite: the training has diverged.
      CheckpointError: when the directory holds another network, or cannot be written.
    """
    check_number("temperature", temperature, above=0.0)
    check_whole_number("epochs", epochs, least=1)
    check_whole_number("batch_size", batch_size, least=1)
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0):
        raise ValueError(f"key must be one typed key, such as jax.random.key(0), got {getattr(key, 'aval', key)}")
    inputs, network = _checked_inputs(inputs), trainable(network)
    num_classes = check_network(network, inputs.shape[1:])
    targets = _checked_targets(labels, len(inputs), num_classes)
    batch_size = min(batch_size, len(inputs))
    state, done = create_state(network, optimizer, inputs.shape[1:], key), 0
    with contextlib.ExitStack() as stack:
        store = None
        if checkpoints is not None:
            high, low = (int(part) for part in np.asarray(jax.random.key_data(key)).ravel()[-2:])
            spec = NetworkSpec.of(
                network,
                dataset="",
                num_classes=num_classes,
                image_shape=tuple(inputs.shape[1:]),
                role="classifier",
                temperature=float(temperature),
                # That of `jax.random.key(seed)`.
                seed=high << 32 | low,
                epochs=epochs,
                num_train=len(inputs),
                batch_size=batch_size,
            )
            store = stack.enter_context(contextlib.closing(Checkpoints(checkpoints, spec)))
            state, done = store.restore(state)
        if done >= epochs:
            return state
        on_disk = isinstance(inputs, np.memmap)
        (state,) = train_stack(
            [state],
            Batches(inputs) if on_disk else lambda mesh: parallel.replicate(inputs, mesh),
            [targets],
            [temperature],
            num_examples=len(inputs),
            batch_size=batch_size,
            epochs=epochs,
            names=["the network"],
            done=[done],
            stores=[store],
            checkpoint_seconds=checkpoint_seconds,
            progress=progress,
            loss=loss,
            augment=augment,
            adversary=adversary,
        )
    return state


def distill(
    network: nn.Module | Any,
    optimizer: optax.GradientTransformation,
    inputs: Num[np.ndarray | Array, "N ..."],
    labels: Int[np.ndarray | Array, " N"] | Float[np.ndarray | Array, "N K"],
    *,
    temperature: float,
    epochs: int,
    batch_size: int = 128,
    key: Key[Array, ""],
    checkpoints: PathLike | None = None,
    **settings: Any,
) -> tuple[TrainState, TrainState]:
    """Defensive distillation: a teacher trained at T, and a student of the same architecture on its soft labels at T.

    The student is used at temperature 1; that is what makes its softmax saturate.

    Args:
      network: see `train`.
      optimizer: see `train`; of both networks.
      inputs: see `train`.
      labels: of the teacher; see `train`.
      temperature: T > 0, of the teacher, of its soft labels and of the student.
      epochs: of each network.
      batch_size: see `train`.
      key: makes the parameters and all randomness of both.
      checkpoints: a directory, in which `teacher` and `student` are kept; None to keep none.
      **settings: further arguments of `train`, for both.

    Returns:
      The teacher and the student.

    Raises:
      ValueError, FloatingPointError, CheckpointError: as `train` does.

    Reference:
      Papernot et al., Distillation as a Defense, 2016 (arXiv 1511.04508).
    """
    network = trainable(network)
    settings |= {"temperature": temperature, "epochs": epochs, "batch_size": batch_size}

    def one(number: int, role: str, labels: Any) -> TrainState:
        place = None if checkpoints is None else local_path(checkpoints) / role
        own_key = jax.random.fold_in(key, number)
        return train(network, optimizer, inputs, labels, key=own_key, checkpoints=place, **settings)

    teacher = one(0, "teacher", labels)
    shared = (teacher.logits_fn, np.float32(temperature))
    soft = parallel.Evaluator()(distillation.soft_labels_of_batch, shared, _checked_inputs(inputs))
    return teacher, one(1, "student", soft)


def _checked_inputs(inputs: Any) -> np.ndarray | jax.Array:
    """The inputs as an array, bytes or float32."""
    found = inputs if isinstance(inputs, np.ndarray | jax.Array) else np.asarray(inputs)
    if found.ndim < 2 or len(found) == 0:
        raise ValueError(f"the inputs must be an array [N, ...] of at least one example, got the shape {found.shape}")
    # Refuses what is neither bytes nor floats.
    to_float(np.asarray(found[:1]))
    if isinstance(found, np.memmap) or found.dtype == np.uint8:
        return found
    if not np.isfinite(np.asarray(found, np.float32)).all():
        raise ValueError("the inputs must be finite numbers; some are not")
    return found.astype(np.float32)


def _checked_targets(labels: Any, count: int, num_classes: int) -> np.ndarray:
    """A distribution over the classes for each example."""
    found = np.asarray(labels)
    if found.shape == (count,) and np.issubdtype(found.dtype, np.integer):
        if found.min() < 0 or found.max() >= num_classes:
            raise ValueError(
                f"the labels must be classes from 0 to {num_classes - 1}, got some from {found.min()} to {found.max()}"
            )
        return np.eye(num_classes, dtype=np.float32)[found]
    if found.shape != (count, num_classes) or not np.issubdtype(found.dtype, np.floating):
        raise ValueError(
            f"the labels must be integers [{count}] or distributions [{count}, {num_classes}], one for each input; got "
            f"{found.dtype} of shape {found.shape}"
        )
    if not ((found >= 0).all() and np.allclose(found.sum(axis=1), 1, rtol=0, atol=_SUM_TOLERANCE)):
        raise ValueError("the labels must be distributions over the classes: at least 0, and with a sum of 1 each")
    return found.astype(np.float32)
