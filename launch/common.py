"""What all launchers share: flags, set-up of jax, data, trained networks, and errors that a person can read."""

import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import app, flags, logging

from ddjax import data, layers, metrics, models, parallel, recipes, runs, training

FLAGS = flags.FLAGS

flags.DEFINE_string("recipe", "digits", f"The settings, by name: {', '.join(recipes.RECIPES)}.")
flags.DEFINE_string("dataset", None, "Replaces the recipe's data set: digits, or an image set of tensorflow-datasets.")
flags.DEFINE_string(
    "data_dir", None, "Where tensorflow-datasets finds prepared sets; default: TFDS_DATA_DIR, then its own default."
)
flags.DEFINE_string("workdir", None, "Where the run is written; default: runs/LAUNCHER_RECIPE.")
flags.DEFINE_integer(
    "seed",
    0,
    "Makes all randomness: subsets of data, parameters, order of examples, attacks.",
    lower_bound=0,
    upper_bound=2**31 - 1,
)
flags.DEFINE_integer("num_examples", None, "How many test images are attacked; each launcher says what is the default.")
flags.DEFINE_integer("num_train", None, "Replaces the recipe's number of training images.")
flags.DEFINE_integer("num_test", None, "Replaces the recipe's number of test images.")
flags.DEFINE_integer("epochs", None, "Replaces the recipe's number of epochs.")
flags.DEFINE_integer(
    "batch_size", 512, "The largest batch for evaluation and attacks; not for training.", lower_bound=1
)
flags.DEFINE_enum("matmul_precision", "highest", ["default", "high", "highest"], "Of float32 products on accelerators.")
flags.DEFINE_float("checkpoint_seconds", 30.0, "The least time between two checkpoints of one training.")
flags.DEFINE_bool("traceback", False, "Shows where in the code an error was raised.")

_USER_ERRORS = (
    ValueError,
    OSError,
    runs.RunError,
    runs.CheckpointError,
    data.DatasetUnavailableError,
    FloatingPointError,
)


def run(main: Callable[[], None]) -> None:
    """Parses the flags, sets jax up and runs a launcher; errors of use end in one line and exit status 2."""

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"no positional arguments are taken, got {' '.join(argv[1:])}")
        if not FLAGS["verbosity"].present:
            # orbax tells of every step of every checkpoint, and warns of reading where it only reads.
            logging.set_verbosity(logging.ERROR)
        set_up_jax()
        try:
            main()
        except _USER_ERRORS as error:
            if FLAGS.traceback:
                raise
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    app.run(guarded)


def set_up_jax() -> None:
    """Sets the precision of matrix products and the persistent compilation cache."""
    jax.config.update("jax_default_matmul_precision", FLAGS.matmul_precision)
    if jax.config.values["jax_compilation_cache_dir"] is None:
        caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(caches / "ddjax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def recipe_from_flags() -> recipes.Recipe:
    """The recipe with the flags' replacements."""
    recipe = recipes.get(FLAGS.recipe)
    given = {
        name: FLAGS[name].value
        for name in ("dataset", "num_train", "num_test", "epochs")
        if FLAGS[name].value is not None
    }
    if FLAGS.epochs is not None and FLAGS.epochs < 1:
        raise ValueError(f"--epochs must be at least 1, got {FLAGS.epochs}")
    if given.get("dataset", recipe.dataset) != recipe.dataset:
        # Nothing was published about another data set.
        given |= {"published_jsma_success": {}, "published_source": ""}
    return dataclasses.replace(recipe, **given)


def flags_of_training(*names: str) -> dict[str, Any]:
    """The flags that determine what is trained, and this launcher's own."""
    common = ("recipe", "dataset", "seed", "num_train", "num_test", "epochs", "matmul_precision")
    return {name: FLAGS[name].value for name in (*common, *names)}


def workdir(launcher: str) -> pathlib.Path:
    """The directory of the run."""
    return pathlib.Path(FLAGS.workdir or f"runs/{launcher}_{FLAGS.recipe}")


def load_data(recipe: recipes.Recipe) -> tuple[data.Dataset, data.Dataset]:
    """The training and the test set of a recipe."""
    load = functools.partial(data.load, recipe.dataset, data_dir=FLAGS.data_dir, seed=FLAGS.seed)
    return (
        load("train", num_examples=recipe.num_train, skip=recipe.skip),
        load("test", num_examples=recipe.num_test),
    )


def rows_of(dataset: data.Dataset, rows: slice) -> data.Dataset:
    """Some rows of a data set."""
    columns = {name: getattr(dataset, name)[rows] for name in ("images", "labels", "indices")}
    return dataclasses.replace(dataset, **columns)


def first(dataset: data.Dataset, count: int) -> data.Dataset:
    """The first examples of a data set.

    Raises:
      ValueError: when there are not that many, or none are wanted.
    """
    if not 1 <= count <= len(dataset):
        raise ValueError(f"--num_examples must be from 1 to {len(dataset)}, the test images there are, got {count}")
    return rows_of(dataset, slice(count))


def check_network(recipe: recipes.Recipe, train: data.Dataset) -> None:
    """Refuses data that the recipe's network cannot take, before anything is written."""
    module = models.build(recipe.network, train.num_classes)
    jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *train.image_shape)))
    training.steps_per_epoch(len(train), min(recipe.batch_size, len(train)))


def fingerprint(*arrays: Any) -> str:
    """A short hash of arrays: equal for equal contents."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def describe(recipe: recipes.Recipe, train: data.Dataset, test: data.Dataset) -> dict[str, Any]:
    """What determines the numbers beyond the flags: the recipe's settings and the data."""
    settings = dataclasses.asdict(dataclasses.replace(recipe, published_jsma_success={}))
    del settings["description"], settings["published_jsma_success"]
    return settings | {
        "class_names": list(train.class_names),
        "image_shape": list(train.image_shape),
        "num_train": len(train),
        "num_test": len(test),
        "train_fingerprint": fingerprint(train.images, train.labels),
        "test_fingerprint": fingerprint(test.images, test.labels),
        "published_jsma_success": dict(recipe.published_jsma_success),
    }


def open_training_run(launcher: str, *names: str) -> tuple[runs.Run, recipes.Recipe, data.Dataset, data.Dataset]:
    """The run of a launcher that trains, opened once its flags and its data are known to be good."""
    recipe = recipe_from_flags()
    directory, flags_of_run = workdir(launcher), flags_of_training(*names)
    runs.check_workdir(directory, flags_of_run)
    train, test = load_data(recipe)
    check_network(recipe, train)
    return runs.Run(directory, flags_of_run, describe(recipe, train, test)), recipe, train, test


@contextlib.contextmanager
def progress(total: int, description: str, unit: str) -> Iterator[tqdm.tqdm]:
    """A progress bar on a terminal, nothing in a pipe."""
    with tqdm.tqdm(total=total, desc=description, unit=unit, disable=None, leave=False) as bar:
        yield bar


def jit(function: Callable[..., Any], **settings: Any) -> Any:
    """Compiles a function that differentiates a network in a loop, for what the backend can."""
    if jax.default_backend() != "cpu" or not _takes_compiler_options():
        return jax.jit(function, **settings)

    def unpadded(*arguments: Any, **named: Any) -> Any:
        with layers.unpadded():
            return function(*arguments, **named)

    return jax.jit(unpadded, compiler_options=layers.COMPILER_OPTIONS, **settings)


@functools.cache
def _takes_compiler_options() -> bool:
    """Whether this jaxlib knows the options; it tells by an error."""
    try:
        jax.jit(lambda x: x + 1, compiler_options=layers.COMPILER_OPTIONS)(0)
    except (jax.errors.JaxRuntimeError, ValueError):
        return False
    return True


@functools.cache
def _compiled_epoch(batch_size: int) -> training.EpochFn:
    epoch = functools.partial(training.train_epoch, batch_size=batch_size)
    return jit(epoch, donate_argnums=0)


soft_labels = jax.jit(training.soft_labels)
logits_of = jax.jit(lambda logits_fn, images: logits_fn(images))

# Which key of a seed makes which network: the same initial parameters at every temperature.
_ROLES = ("baseline", "start", "teacher", "student", "source", "plain")
# Those that are trained on the true labels at temperature 1.
_UNDISTILLED = ("baseline", "source", "plain")


class Trainer:
    """Trains the networks of a run, or restores what an earlier process of the run has trained."""

    def __init__(self, run: runs.Run, recipe: recipes.Recipe, train: data.Dataset) -> None:
        """Puts the data on the device."""
        self._run, self._recipe, self._train = run, recipe, train
        self._images = jnp.asarray(train.images)
        self._one_hot = jax.nn.one_hot(train.labels, train.num_classes)
        self._batch_size = min(recipe.batch_size, len(train))

    def plain(self, seed: int, temperature: float = 1.0, role: str = "baseline") -> training.TrainState:
        """A network trained on the true labels."""
        return self._fit(seed, None if role in _UNDISTILLED else temperature, role, temperature, self._one_hot)

    def distilled(self, seed: int, temperature: float) -> tuple[training.TrainState, training.TrainState]:
        """A teacher and its student."""
        fit = lambda role, _, targets: self._fit(seed, temperature, role, temperature, targets)
        return training.distill(fit, self._images, self._one_hot, temperature, soft_labels_fn=soft_labels)

    def _fit(
        self, seed: int, folder: float | None, role: str, temperature: float, targets: jax.Array
    ) -> training.TrainState:
        recipe = self._recipe
        epochs = recipe.warm_start_epochs if role == "start" else recipe.epochs
        spec = runs.NetworkSpec(
            recipe=recipe.name,
            network=recipe.network,
            dataset=recipe.dataset,
            num_classes=self._train.num_classes,
            image_shape=self._train.image_shape,
            role=role,
            temperature=float(temperature),
            seed=seed,
            epochs=epochs,
            num_train=len(self._train),
            batch_size=self._batch_size,
        )
        state = spec.build(jax.random.fold_in(jax.random.key(seed), _ROLES.index(role)))
        directory = self._run.workdir / "checkpoints" / f"seed{seed}_{tag(folder)}" / role
        checkpoints = runs.Checkpoints(directory, spec)
        try:
            state, done = checkpoints.restore(state)
            if done >= epochs:
                return state
            if done == 0 and recipe.warm_start_epochs and role in ("teacher", "student"):
                start = self._fit(seed, None, "start", 1.0, self._one_hot)
                # Copies, because the compiled epoch donates its state.
                state = state.replace(params=jax.tree.map(jnp.copy, start.params))
            saved = time.monotonic()
            with progress(epochs, f"{directory.parent.name} {role}", "epoch") as bar:
                bar.update(done)

                def after_epoch(state: training.TrainState, epoch: int, loss: float) -> None:
                    nonlocal saved
                    bar.set_postfix(loss=f"{loss:.4f}")
                    bar.update()
                    if epoch == epochs or time.monotonic() - saved > FLAGS.checkpoint_seconds:
                        checkpoints.save(epoch, state)
                        saved = time.monotonic()

                return training.fit(
                    _compiled_epoch(self._batch_size),
                    state,
                    self._images,
                    targets,
                    temperature,
                    num_epochs=epochs,
                    first_epoch=done,
                    after_epoch=after_epoch,
                )
        finally:
            checkpoints.close()


def tag(temperature: float | None) -> str:
    """A temperature in the name of a file."""
    return "none" if temperature is None else f"T{temperature:g}"


def classify(logits_fn: Any, images: np.ndarray) -> np.ndarray:
    """The logits of any number of images."""
    return parallel.map_batches(functools.partial(logits_of, logits_fn), images, batch_size=FLAGS.batch_size)


def record_accuracy(
    run: runs.Run, where: dict[str, Any], state: training.TrainState, images: np.ndarray, labels: np.ndarray
) -> None:
    """Measures a network's accuracy, unless it is on disk."""
    if run.find(measure="accuracy", **where) is None:
        rate = metrics.accuracy(classify(training.logits_fn(state), images), labels)
        run.append(**where, measure="accuracy", correct=rate.successes, n=rate.n, accuracy=rate.value)


def print_accuracies(run: runs.Run) -> None:
    """Prints what `record_accuracy` measured, and where the networks are."""
    for path in sorted((run.workdir / "checkpoints").glob("*/*")):
        spec = runs.read_spec(path)
        record = run.find(measure="accuracy", seed=spec.seed, network=spec.role)
        if record is not None:
            low, high = metrics.wilson_interval(record["correct"], record["n"])
            print(f"{path}: accuracy {record['accuracy']:.4f} [{low:.4f}, {high:.4f}] on {record['n']} test images")
