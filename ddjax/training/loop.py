"""The one loop that trains everything: epochs, checkpoints, progress, and an error where training diverges."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ddjax import parallel
from ddjax.checkpoints import Checkpoints
from ddjax.progress import Progress, silent
from ddjax.state import TrainState


def train_epochs(
    epoch_fn: Callable[[Any, np.ndarray], tuple[Any, Mapping[str, Any]]],
    states: Any,
    *,
    names: Sequence[str],
    done: Sequence[int],
    epochs: int,
    stores: Sequence[Checkpoints | None] = (),
    unstack: Callable[[Any], Sequence[TrainState]] = lambda state: [state],
    after_epoch: Callable[[Any, int, dict[str, Any]], dict[str, Any]] | None = None,
    checkpoint_seconds: float = 30.0,
    progress: Progress = silent,
) -> Any:
    """Trains one network or a stack of networks to the last epoch, and returns their states.

    A training that was stopped and goes on from its checkpoints ends with the same parameters, bit for bit.

    Args:
      epoch_fn: from the states and whether each network is trained in this epoch, `[S]`, to the states after one epoch
        and metrics by name: each a number, or one for each network. It may donate the states.
      states: of one network or a stack, after the epochs that are done.
      names: of the networks, for errors; there may be more members in a stack than names.
      done: how many epochs each network has behind it. A process may have been killed between the checkpoints of two.
      epochs: the epochs in all.
      stores: where each network is kept; None for nowhere, and empty where none is.
      unstack: from the states to one for each name.
      after_epoch: called with the states, the number of epochs done, and the metrics; returns the metrics to show.
      checkpoint_seconds: the least time between two checkpoints. The last epoch is always kept.
      progress: shows the epochs and their metrics.

    Raises:
      FloatingPointError: when a metric is no longer finite: the training has diverged.
    """
    saved = time.monotonic()
    description = names[0] if len(names) == 1 else f"{len(names)} networks"
    with progress(epochs, description, "epoch") as bar:
        bar.update(min(done))
        for epoch in range(min(done) + 1, epochs + 1):
            live = np.array([before < epoch for before in done])
            states, told = epoch_fn(states, live)
            known: dict[str, Any] = {name: parallel.fetch(values) for name, values in told.items()}
            for metric, values in known.items():
                _check_finite(metric, values, names, live, epoch)
            if after_epoch is not None:
                known = after_epoch(states, epoch, known)
            bar.set_postfix(**{name: f"{np.nanmean(values):.4f}" for name, values in known.items()})
            bar.update()
            if any(stores) and (epoch == epochs or _is_time(saved, checkpoint_seconds)):
                for store, state, is_live in zip(stores, unstack(states), live, strict=False):
                    if is_live and store is not None:
                        store.save(epoch, state)
                saved = time.monotonic()
    return states


def _is_time(saved: float, seconds: float) -> bool:
    """Whether a checkpoint is due; process 0 decides for all."""
    return parallel.on_primary(lambda: time.monotonic() - saved > seconds)


def _check_finite(metric: str, values: Any, names: Sequence[str], live: np.ndarray, epoch: int) -> None:
    """Raises FloatingPointError for a live network's metric that is not finite."""
    of_members = np.broadcast_to(values, max(np.size(values), len(names)))
    # `zip` drops members that only fill a stack up.
    for name, value, is_live in zip(names, of_members, live, strict=False):
        if is_live and not math.isfinite(float(value)):
            raise FloatingPointError(f"the {metric} of {name} became {value} in epoch {epoch}: lower the learning rate")
