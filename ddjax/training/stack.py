"""Trains stacks of networks as one program: the temperatures and seeds of a sweep, or a single network."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ddjax import layers, parallel
from ddjax.data import Batches
from ddjax.progress import Progress, silent
from ddjax.state import TrainState
from ddjax.training import step
from ddjax.training.loop import Store, train_epochs


class Reader:
    """Reads training inputs that are on disk batch by batch, and measures how fast they are read and trained on.

    Attributes:
      batches: the inputs.
      trained: the examples trained on, without the first batch, which waits for the compiler.
      seconds: what training on them took.
    """

    def __init__(self, inputs: np.ndarray) -> None:
        """Takes inputs on disk."""
        self.batches = Batches(inputs)
        self.trained, self.seconds = 0, 0.0

    def rates(self) -> dict[str, float | None] | None:
        """Examples a second that were read and trained on; None for nothing read, or a single batch trained on."""
        if not self.batches.images_read:
            return None
        return {
            "read_per_second": self.batches.images_read / self.batches.seconds_reading,
            "trained_per_second": self.trained / self.seconds if self.trained else None,
        }


def train_stack(
    states: Sequence[TrainState],
    inputs: Callable[[Mesh], jax.Array] | Reader,
    targets: Sequence[np.ndarray] | np.ndarray,
    temperatures: Sequence[float],
    *,
    num_examples: int,
    batch_size: int,
    epochs: int,
    names: Sequence[str],
    done: Sequence[int] | None = None,
    stores: Sequence[Store | None] = (),
    size: int = 0,
    stacking: str = "auto",
    checkpoint_seconds: float = 30.0,
    progress: Progress = silent,
    **settings: Any,
) -> list[TrainState]:
    """Trains networks of equal structure to their last epoch, on all devices.

    Args:
      states: of the networks, S of them, after the epochs that are done.
      inputs: the training set: a function that places it on the devices of a mesh, or a reader of inputs on disk.
      targets: a distribution over the classes for each network and example, `[S, N, K]`.
      temperatures: of the trainings.
      num_examples: N.
      batch_size: the examples of a step, at most N.
      epochs: the epochs in all.
      names: of the networks, for progress and errors.
      done: how many epochs each network has behind it; default: none.
      stores: where each network is kept, such as `checkpoints.Checkpoints`; empty for nowhere.
      size: the least size of the stack, so that stacks of one size share a program.
      stacking: how a device trains its share of the stack; see `parallel.over_members`.
      checkpoint_seconds: the least time between two checkpoints.
      progress: shows epochs and, for inputs on disk, batches.
      **settings: `augment`, `adversary` and `loss` of `train_step`; hashable, since programs are kept for them.

    Returns:
      The trained states.

    Raises:
      ValueError: when the examples do not fill a batch.
      FloatingPointError: when a loss is no longer finite: the training has diverged.
    """
    step.steps_per_epoch(num_examples, batch_size)
    done = [0] * len(states) if done is None else done
    members = [
        (state, labels, np.float32(temperature))
        for state, labels, temperature in zip(states, targets, temperatures, strict=True)
    ]
    members += [members[-1]] * (size - len(members))
    over = _sweep_mesh(len(members))
    stacked, labels, of_members = parallel.stack(members, over)
    chosen = tuple(sorted(settings.items()))
    if isinstance(inputs, Reader):
        epoch_fn = _epoch_from_disk(inputs, num_examples, batch_size, chosen, stacking, over, progress)
    else:
        epoch_fn = functools.partial(_compiled_epoch(batch_size, chosen, stacking, over), inputs(over))
    filling = len(of_members) - len(done)

    def one_epoch(stacked: Any, live: np.ndarray) -> tuple[Any, dict[str, Any]]:
        all_live = parallel.split(np.append(live, np.zeros(filling, bool)), over)
        stacked, losses = epoch_fn(stacked, labels, of_members, all_live)
        return stacked, {"loss": parallel.fetch(losses)[: len(names)]}

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
def _sweep_mesh(count: int) -> Mesh:
    return parallel.make_mesh("sweep", count)


@functools.cache
def _compiled_epoch(batch_size: int, settings: tuple[tuple[str, Any], ...], stacking: str, over: Mesh) -> Any:
    """One epoch: from inputs, states, targets, temperatures and which are live, to states and losses."""
    train = functools.partial(step.train_member, batch_size=batch_size, **dict(settings))
    train_all = parallel.over_members(train, over, stacking)

    def epoch(inputs: jax.Array, *of_members: Any) -> Any:
        return train_all(inputs, step.Member(*of_members))

    return layers.jit(epoch, donate_argnums=1)


@functools.cache
def _compiled_step(settings: tuple[tuple[str, Any], ...], stacking: str, over: Mesh) -> Any:
    """A step of `_compiled_epoch`, given its inputs."""
    one = functools.partial(step.step_member, **dict(settings))
    step_all = parallel.over_members(lambda _, given: one(*given), over, stacking)

    def take_step(*given: Any) -> Any:
        *of_members, inputs, rows = given
        return step_all(None, (step.Member(*of_members), inputs, rows))

    return layers.jit(take_step, donate_argnums=0)


@functools.cache
def _compiled_rows(num_examples: int, batch_size: int, over: Mesh) -> Any:
    return jax.jit(parallel.over_members(lambda _, state: step.epoch_rows(state, num_examples, batch_size), over))


def _epoch_from_disk(
    reader: Reader,
    num_examples: int,
    batch_size: int,
    settings: tuple[tuple[str, Any], ...],
    stacking: str,
    over: Mesh,
    progress: Progress,
) -> Callable[..., Any]:
    """`_compiled_epoch` of inputs that come to the devices batch by batch."""
    rows_fn = _compiled_rows(num_examples, batch_size, over)
    step_fn = _compiled_step(settings, stacking, over)
    compiled = False

    def epoch(states: Any, *of_members: jax.Array) -> Any:
        nonlocal compiled
        rows = parallel.fetch(rows_fn(None, states)).swapaxes(0, 1)
        losses, started = [], time.monotonic()
        with progress(len(rows), "this epoch", "batch") as bar:
            for some, batch in zip(rows, reader.batches.read(rows), strict=True):
                states, loss = step_fn(states, *of_members, *parallel.split((batch, some), over))
                losses.append(loss)
                if compiled:
                    reader.trained += some.size
                else:
                    loss.block_until_ready()
                    compiled, started = True, time.monotonic()
                # No further ahead of the devices than a batch, or batches would fill their memory.
                losses[-2:][0].block_until_ready()
                bar.update()
        mean = np.mean([parallel.fetch(loss) for loss in losses], axis=0)
        reader.seconds += time.monotonic() - started
        return states, mean

    return epoch
