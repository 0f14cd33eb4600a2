"""What all launchers share once they run: recipes, compiled programs, keys, reports. `_setup` has how they start."""

import contextlib
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from absl import flags

from ddjax import checkpoints, data, metrics, parallel, runs, training

from . import _setup, recipes

FLAGS = flags.FLAGS
# Launchers end in `common.run(main)`.
run = _setup.run

_ROWS_HASHED = 1024
tag = training.tag


@functools.cache
def mesh(axis: str, most: int | None = None) -> jax.sharding.Mesh:
    """The devices, along `"data"` for examples or `"sweep"` for networks; see `parallel.make_mesh`."""
    return parallel.make_mesh(axis, most)


def recipe_from_flags() -> recipes.Recipe:
    """The recipe with the flags' replacements."""
    recipe = recipes.get(FLAGS.recipe)
    if ":" in FLAGS.recipe:
        # Checkpoints and `config.json` name it so that it is found again.
        recipe = dataclasses.replace(recipe, name=FLAGS.recipe)
    return replaced_by_flags(recipe, ("dataset", "num_train", "num_test", "epochs", "image_size"))


def replaced_by_flags(recipe: Any, names: Sequence[str]) -> Any:
    """A recipe with the values of those of the named flags that were given."""
    if FLAGS.epochs is not None and FLAGS.epochs < 1:
        raise ValueError(f"--epochs must be at least 1, got {FLAGS.epochs}")
    return dataclasses.replace(recipe, **{name: FLAGS[name].value for name in names if FLAGS[name].value is not None})


def flags_of_training(*names: str) -> dict[str, Any]:
    """The flags that determine what is trained, and this launcher's own."""
    common = ("recipe", "dataset", "seed", "num_train", "num_test", "epochs", "matmul_precision")
    # Of folders alone; what they come to is in the fingerprint of the data.
    given = ("image_size",) if FLAGS.image_size is not None else ()
    return {name: FLAGS[name].value for name in (*common, *given, *names)}


def workdir(launcher: str) -> pathlib.Path:
    """The directory of the run."""
    return pathlib.Path(FLAGS.workdir or f"runs/{launcher}_{FLAGS.recipe.replace(':', '_')}")


def fingerprint(*arrays: Any) -> str:
    """A short hash of arrays: equal for equal contents."""
    digest = hashlib.sha256()
    for array in map(np.atleast_1d, arrays):
        # In parts, for what is on disk and may be larger than memory.
        for start in range(0, len(array), _ROWS_HASHED):
            digest.update(np.ascontiguousarray(array[start : start + _ROWS_HASHED]).tobytes())
    return digest.hexdigest()[:16]


def write_report(run: runs.Run, *, table: bool = True) -> None:
    """Writes the report of a run, prints its table and says where it is."""
    # Imported when needed: matplotlib and pandas take a second.
    from . import pages

    page = parallel.on_primary(lambda: pages.write(run.workdir))
    if table:
        print(parallel.on_primary(lambda: pages.table(run.workdir)))
    print(f"report: {page}")


@contextlib.contextmanager
def progress(total: int, description: str, unit: str) -> Iterator[tqdm.tqdm]:
    """A progress bar on a terminal, nothing in a pipe."""
    # None: not where there is no terminal.
    disable = None if parallel.is_primary() else True
    with tqdm.tqdm(total=total, desc=description, unit=unit, disable=disable, leave=False) as bar:
        yield bar


@functools.cache
def evaluator() -> parallel.Evaluator:
    """Applies programs to many examples, with the flags' batch size and a progress bar."""
    return parallel.Evaluator(FLAGS.batch_size, mesh("data"), progress)


def evaluate(function: Callable[..., Any], shared: Any, *columns: np.ndarray, **settings: Any) -> Any:
    """Applies `function(shared, *batch)` to any number of examples; see `parallel.Evaluator`."""
    return evaluator()(function, shared, *columns, **settings)


def key_data(indices: np.ndarray, purpose: int | None = None) -> np.ndarray:
    """A key for each example, by its position in its data set and the flag's seed, as the integers that keys are.

    Args:
      indices: the positions.
      purpose: tells keys apart that serve different ends; None for the attacks'.
    """
    key = jax.random.key(FLAGS.seed)
    key = key if purpose is None else jax.random.fold_in(key, purpose)
    return np.asarray(jax.random.key_data(jax.vmap(functools.partial(jax.random.fold_in, key))(indices)))


def classify(logits_fn: Any, images: np.ndarray) -> np.ndarray:
    """The logits of any number of images, bytes or in [0, 1]."""
    return evaluate(_logits, logits_fn, images)


def _logits(logits_fn: Any, images: jax.Array) -> jax.Array:
    return logits_fn(data.to_float(images))


def record_accuracy(
    run: runs.Run, where: dict[str, Any], state: training.TrainState, images: np.ndarray, labels: np.ndarray
) -> None:
    """Measures a network's accuracy, unless it is on disk."""
    if run.find(measure="accuracy", **where) is None:
        rate = metrics.accuracy(classify(state.logits_fn, images), labels)
        run.append(**where, measure="accuracy", correct=rate.successes, n=rate.n, accuracy=rate.value)


def print_accuracies(run: runs.Run) -> None:
    """Prints what `record_accuracy` measured, and where the networks are."""
    for path in parallel.on_primary(lambda: sorted((run.workdir / "checkpoints").glob("*/*"))):
        spec = checkpoints.read_spec(path)
        record = run.find(measure="accuracy", seed=spec.seed, network=spec.role)
        if record is not None:
            low, high = metrics.wilson_interval(record["correct"], record["n"])
            print(f"{path}: accuracy {record['accuracy']:.4f} [{low:.4f}, {high:.4f}] on {record['n']} test images")
