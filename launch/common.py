"""What all launchers share once they run: recipes, compiled programs, keys, reports. `_setup` has how they start."""

import contextlib
import dataclasses
import functools
import hashlib
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
import tqdm
from absl import flags

from ddjax import checkpoints, checks, data, evaluation, metrics, parallel, runs

from . import _setup, recipes

FLAGS = flags.FLAGS
R = TypeVar("R")
# Launchers end in `common.run(main)`.
run = _setup.run

# Flags that replace what a recipe says.
_REPLACING = ("dataset", "num_train", "num_test", "epochs", "image_size")
_ROWS_HASHED = 1024


def recipe_from_flags() -> recipes.Recipe:
    """The recipe of a classifier with the flags' replacements."""
    return replaced_by_flags(recipes.get(FLAGS.recipe))


def replaced_by_flags(recipe: R) -> R:
    """The recipe that the flag names with the flags' replacements; a user's is named so that it is found again."""
    if FLAGS.epochs is not None and FLAGS.epochs < 1:
        raise ValueError(f"--epochs must be at least 1, got {FLAGS.epochs}")
    given = {name: FLAGS[name].value for name in _REPLACING if hasattr(recipe, name) and FLAGS[name].value is not None}
    return dataclasses.replace(recipe, name=FLAGS.recipe, **given)  # pyright: ignore[reportArgumentType]


def flags_of_training(*names: str) -> dict[str, Any]:
    """The flags that determine what is trained, and this launcher's own."""
    common = ("recipe", "dataset", "seed", "num_train", "num_test", "epochs", "matmul_precision")
    # Of folders alone; what they come to is in the fingerprint of the data.
    given = ("image_size",) if FLAGS.image_size is not None else ()
    return {name: FLAGS[name].value for name in (*common, *given, *names)}


def workdir(launcher: str, recipe: str | None = None) -> pathlib.Path:
    """The directory of the run; by default that of the launcher and the recipe, or of the flag's."""
    return pathlib.Path(FLAGS.workdir or f"runs/{launcher}_{(recipe or FLAGS.recipe).replace(':', '_')}")


def check_different(*names: str) -> None:
    """Refuses flags that have a value twice."""
    for name in names:
        values = FLAGS[name].value or []
        if len(set(values)) < len(values):
            raise ValueError(f"--{name} must be different ones, got {', '.join(values)}")


def numbers(flag: str, kind: type = float, least: float = 0, most: float = math.inf) -> list[Any]:
    """The different numbers of a flag that takes a list, in ascending order."""
    texts = FLAGS[flag].value or []
    try:
        found = [kind(text) for text in texts]
    except ValueError:
        raise ValueError(f"--{flag} must be numbers separated by commas, got {','.join(texts)}") from None
    if not found or len(set(found)) != len(found):
        raise ValueError(f"--{flag} must be one or more different numbers, got {','.join(texts)}")
    for number in found:
        checks.check_number(f"--{flag}", number, least=least, most=most)
    return sorted(found)


def file_name(*words: str) -> str:
    """Words without what a file name cannot hold."""
    return re.sub(r"[^A-Za-z0-9_.=+-]+", "_", "_".join(words))


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
    return parallel.Evaluator(FLAGS.batch_size, progress=progress)


def evaluate(function: Callable[..., Any], shared: Any, *columns: np.ndarray, **settings: Any) -> Any:
    """Applies `function(shared, *batch)` to any number of examples; see `parallel.Evaluator`."""
    return evaluator()(function, shared, *columns, **settings)


def key(purpose: int) -> jax.Array:
    """The key of the flag's seed that serves one purpose."""
    return jax.random.fold_in(jax.random.key(FLAGS.seed), purpose)


def key_data(indices: np.ndarray, purpose: int) -> np.ndarray:
    """A key of one purpose for each example, by its position in its data set; see `evaluation.key_data`."""
    return evaluation.key_data(key(purpose), indices)


def counted(dataset: data.Dataset) -> str:
    """The distance that counts changes: of pixels, or of the values of inputs that are no images."""
    return "l0_pixels" if len(dataset.image_shape) == 3 else "l0_values"


def classify(logits_fn: Any, images: np.ndarray) -> np.ndarray:
    """The logits of any number of inputs, bytes or floats."""
    return evaluate(_logits, logits_fn, images)


def _logits(logits_fn: Any, images: jax.Array) -> jax.Array:
    return logits_fn(data.to_float(images))


def record_accuracy(run: runs.Run, where: dict[str, Any], logits_fn: Any, test: data.Dataset) -> None:
    """Measures a network's accuracy, unless it is on disk."""
    if run.find(measure="accuracy", **where) is None:
        rate = metrics.accuracy(classify(logits_fn, test.images), test.labels)
        run.append(**where, measure="accuracy", correct=rate.successes, n=rate.n, accuracy=rate.value)


def record_accuracies(run: runs.Run, networks: Mapping[str, tuple[Any, float | None]], test: data.Dataset) -> None:
    """Measures the accuracies of classifiers of the flag's seed, by their names, each with its temperature."""
    for name, (logits_fn, temperature) in networks.items():
        record_accuracy(run, {"seed": FLAGS.seed, "temperature": temperature, "network": name}, logits_fn, test)


def print_accuracies(run: runs.Run) -> None:
    """Prints what `record_accuracy` measured, and where the networks are."""
    for path in parallel.on_primary(lambda: sorted((run.workdir / "checkpoints").glob("*/*"))):
        spec = checkpoints.read_spec(path)
        record = run.find(measure="accuracy", seed=spec.seed, network=spec.role)
        if record is not None:
            low, high = metrics.wilson_interval(record["correct"], record["n"])
            print(f"{path}: accuracy {record['accuracy']:.4f} [{low:.4f}, {high:.4f}] on {record['n']} test images")
