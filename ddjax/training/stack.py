"""Trains stacks of networks as one program: the temperatures and seeds of a sweep, or a single network."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ddjax import layers, parallel
from ddjax.checkpoints import Checkpoints
from ddjax.data import Batches
from ddjax.progress import Progress, silent
from ddjax.state import TrainState
from ddjax.training import step
from ddjax.training.loop import train_epochs

# A function that places the training set on the devices of a mesh, or batches of inputs on disk.
Inputs = Callable[[Mesh], jax.Array] | Batches


def train_stack(
    states: Sequence[TrainState],
    inputs: Inputs,
    targets: Sequence[np.ndarray] | np.ndarray,
    temperatures: Sequence[float],
    *,
    num_examples: int,
    batch_size: int,
    epochs: int,
    names: Sequence[str],
    done: Sequence[int],
    stores: Sequence[Checkpoints | None],
    size: int = 0,
    stacking: str = "auto",
    checkpoint_seconds: float = 30.0,
    progress: Progress = silent,
    **settings: Any,
) -> list[TrainState]:
    """Trains networks of equal structure to their last epoch, on all devices, and returns their states.

    Each of the S networks has a state, a temperature, and a distribution over the classes for each of the N examples of
    the training set, `[S, N, K]`. The epochs, names, stores and progress are those of `train_epochs`, the stacking is
    that of `parallel.over_members`, and the settings are `augment`, `adversary` and `loss` of `train_step`. They must
    be hashable, since programs are kept for them. `size` is the least size of the stack: stacks of one size share a
    program.

    Raises:
      ValueError: when the examples do not fill a batch.
      FloatingPointError: when a loss is no longer finite: the training has diverged.
    """
    step.steps_per_epoch(num_examples, batch_size)
    members = list(zip(states, targets, map(np.float32, temperatures), strict=True))
    members += [members[-1]] * (size - len(members))
    over = parallel.make_mesh("sweep", len(members))
    stacked, labels, of_members = parallel.stack(members, over)
    # Members that only fill the stack up have all epochs behind them.
    done = [*done, *[epochs] * (len(of_members) - len(done))]
    if isinstance(inputs, Batches):
        rows_fn = _compiled_rows(num_examples, batch_size, over)
        step_fn = _compiled(_step, tuple(sorted(settings.items())), stacking, over)
        epoch_fn = _epoch_from_disk(inputs, rows_fn, step_fn, over, progress)
    else:
        settings |= {"batch_size": batch_size}
        epoch_of_stack = _compiled(step.train_member, tuple(sorted(settings.items())), stacking, over)
        epoch_fn = functools.partial(epoch_of_stack, inputs(over))

    def one_epoch(stacked: Any, live: np.ndarray) -> tuple[Any, dict[str, Any]]:
        stacked, losses = epoch_fn(stacked, labels, of_members, parallel.split(live, over))
        return stacked, {"loss": losses}

    stacked = train_epochs(
        one_epoch,
        stacked,
        names=names,
        done=done,
        epochs=epochs,
        stores=stores,
        unstack=lambda stacked: parallel.unstack(stacked, len(names)),
        checkpoint_seconds=checkpoint_seconds,
        progress=progress,
    )
    return parallel.unstack(stacked, len(names))


@functools.cache
def _compiled(train: Callable[..., Any], settings: tuple[tuple[str, Any], ...], stacking: str, over: Mesh) -> Any:
    """`train(shared, member, *columns, **settings)` of a stack: an epoch or a step of it. It donates the states."""
    train_all = parallel.over_members(lambda shared, given: train(shared, *given, **dict(settings)), over, stacking)

    def train_stacked(
        shared: Any, states: Any, targets: Any, temperatures: Any, live: Any, *columns: Any
    ) -> tuple[Any, Any]:
        return train_all(shared, (step.Member(states, targets, temperatures, live), *columns))

    return layers.jit(train_stacked, donate_argnums=1)


def _step(_: None, member: step.Member, inputs: jax.Array, rows: jax.Array, **settings: Any) -> tuple[Any, Any]:
    return step.step_member(member, inputs, rows, **settings)


@functools.cache
def _compiled_rows(num_examples: int, batch_size: int, over: Mesh) -> Any:
    return jax.jit(parallel.over_members(lambda _, state: step.epoch_rows(state, num_examples, batch_size), over))


def _epoch_from_disk(
    batches: Batches, rows_fn: Callable[..., Any], step_fn: Callable[..., Any], over: Mesh, progress: Progress
) -> Callable[..., Any]:
    """An epoch of inputs that come to the devices batch by batch."""
    compiled = False

    def epoch(states: Any, *of_members: jax.Array) -> tuple[Any, Any]:
        nonlocal compiled
        rows = parallel.fetch(rows_fn(None, states)).swapaxes(0, 1)
        losses, started = [], time.monotonic()
        with progress(len(rows), "this epoch", "batch") as bar:
            for some, batch in zip(rows, batches.read(rows), strict=True):
                states, loss = step_fn(None, states, *of_members, *parallel.split((batch, some), over))
                losses.append(loss)
                if compiled:
                    batches.images_trained += some.size
                else:
                    loss.block_until_ready()
                    compiled, started = True, time.monotonic()
                # No further ahead of the devices than a batch, or batches would fill their memory.
                losses[-2:][0].block_until_ready()
                bar.update()
        mean = np.mean([parallel.fetch(loss) for loss in losses], axis=0)
        batches.seconds_training += time.monotonic() - started
        return states, mean

    return epoch
