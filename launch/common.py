"""What all launchers share: flags, set-up of jax, data, trained networks, and errors that a person can read."""

import contextlib
import dataclasses
import functools
import gc
import hashlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from absl import app, flags, logging

from ddjax import data, folders, layers, metrics, parallel, recipes, runs, training
from ddjax.generative import recipes as generative_recipes

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "recipe", "digits", f"The settings, by name: {', '.join((*recipes.RECIPES, *generative_recipes.RECIPES))}."
)
flags.DEFINE_string(
    "dataset", None, "Replaces the recipe's data set: digits, an image set of tensorflow-datasets, or folder:PATH."
)
flags.DEFINE_string(
    "data_dir", None, "Where tensorflow-datasets finds prepared sets; default: TFDS_DATA_DIR, then its own default."
)
flags.DEFINE_integer("image_size", None, "Replaces the recipe's height and width of a folder's images.", lower_bound=1)
flags.DEFINE_list("class_names", None, "Names of a folder's classes, as DIRECTORY=NAME,...; Animals-10's are known.")
flags.DEFINE_enum("unreadable", "refuse", folders.UNREADABLE, "What to do with images of a folder that are damaged.")
flags.DEFINE_string("cache_dir", None, "Where a folder's decoded images are kept; default: ddjax in the user's cache.")
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
flags.DEFINE_integer(
    "devices", None, "Runs on so many CPU devices, for trying out; default: accelerators, or else one.", lower_bound=1
)
flags.DEFINE_bool(
    "distributed", False, "One of several processes; finds the others under Slurm, Open MPI, GKE and on Cloud TPU."
)
flags.DEFINE_string("coordinator", None, "With --distributed, where nothing finds it: HOST:PORT of process 0.")
flags.DEFINE_integer("num_processes", None, "With --coordinator: how many processes there are.", lower_bound=1)
flags.DEFINE_integer("process_id", None, "With --coordinator: which of them this is, from 0.", lower_bound=0)
flags.DEFINE_enum("stacking", "auto", parallel.STACKINGS, "How a device trains its share of a sweep's networks.")
flags.DEFINE_bool("traceback", False, "Shows where in the code an error was raised.")

_ROWS_HASHED = 1024
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
        try:
            set_up_jax()
            # What is imported stays; nothing of it need be looked at again.
            gc.freeze()
            if not parallel.is_primary():
                # What all would say alike is said once; errors are not.
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            main()
        except _USER_ERRORS as error:
            if FLAGS.traceback:
                raise
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        finally:
            # The interpreter looks for garbage once more when it ends, among all that was traced and compiled.
            gc.freeze()

    app.run(guarded)


def set_up_jax() -> None:
    """Sets devices and processes, the precision of matrix products and the persistent compilation cache."""
    if FLAGS.devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", FLAGS.devices)
    # Else a CPU is one device, although a sweep takes a tenth to a quarter less time on one for each of two cores: if
    # two share a batch, XLA may compute a convolution wrongly; see tests/wrong_on_two_devices.py.
    _join_processes()
    jax.config.update("jax_default_matmul_precision", FLAGS.matmul_precision)
    if jax.config.values["jax_compilation_cache_dir"] is None:
        caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(caches / "ddjax" / "xla"))
    # Beside a few large programs a launcher has a hundred small ones, which take a second or more to compile again.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _join_processes() -> None:
    """Makes this process one of several, where the flags say so."""
    coordinator, count, index = FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id
    given = [value is not None for value in (coordinator, count, index)]
    if not FLAGS.distributed:
        if any(given):
            raise ValueError("--coordinator, --num_processes and --process_id need --distributed")
        return
    if any(given) and not all(given):
        raise ValueError("--coordinator, --num_processes and --process_id go together")
    if all(given) and index >= count:
        raise ValueError(f"--process_id must be from 0 to {count - 1}, got {index}")
    try:
        jax.distributed.initialize(coordinator, count, index)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            "--distributed found no other processes: start it under Slurm or Open MPI, or name --coordinator, "
            f"--num_processes and --process_id ({error})"
        ) from error


@functools.cache
def mesh(axis: str, most: int | None = None) -> jax.sharding.Mesh:
    """The devices, along `"data"` for examples or `"sweep"` for networks; see `parallel.make_mesh`."""
    return parallel.make_mesh(axis, most)


def recipe_from_flags() -> recipes.Recipe:
    """The recipe with the flags' replacements."""
    recipe = recipes.get(FLAGS.recipe)
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
    return pathlib.Path(FLAGS.workdir or f"runs/{launcher}_{FLAGS.recipe}")


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
def batched(function: Callable[..., Any], donate: tuple[int, ...] = (), in_parts: bool = True) -> Any:
    """Compiles `function(shared, *batch)` for batches that all devices share; see `parallel.over_examples`."""
    return jit(parallel.over_examples(function, mesh("data"), in_parts=in_parts), donate_argnums=donate)


def evaluate(
    function: Callable[..., Any],
    shared: Any,
    *columns: np.ndarray,
    batch_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
    in_parts: bool = True,
) -> Any:
    """Applies `function(shared, *batch)` to any number of examples, on all devices.

    Args:
      function: one object for each program, since it is compiled for it.
      shared: what all examples need, such as the network.
      *columns: the examples.
      batch_size: the largest batch; default: the flag's.
      progress: see `parallel.map_batches`.
      in_parts: see `parallel.over_examples`.

    Returns:
      The results for all examples, as NumPy arrays, in every process.
    """
    size = FLAGS.batch_size if batch_size is None else batch_size
    program = batched(function, in_parts=in_parts)
    return parallel.map_batches(program, shared, *columns, batch_size=size, mesh=mesh("data"), progress=progress)


def compiled_batched(
    function: Callable[..., Any], shared: Any, *columns: np.ndarray, in_parts: bool = True
) -> Callable[[Callable[[int], Any] | None], Any]:
    """`evaluate`, with everything compiled before it starts, so that the time it takes is that of its work.

    Args:
      function: as for `evaluate`; an attack, whose images take the place of the first column's on the device.
      shared: as for `evaluate`.
      *columns: the examples.
      in_parts: see `parallel.over_examples`.

    Returns:
      What evaluates, given `progress`.
    """
    over = mesh("data")
    _, size = parallel.batches(len(columns[0]), FLAGS.batch_size, over.size)
    shared = parallel.replicate(shared, over)
    key = (function, jax.tree.structure(shared), size, *((c.shape[1:], c.dtype) for c in columns))
    if key not in _programs:
        rows = np.zeros(size, np.int32)
        batch = [parallel.split(column[rows], over) for column in columns]
        _programs[key] = batched(function, donate=(1,), in_parts=in_parts).lower(shared, *batch).compile()
    return lambda progress: parallel.map_batches(
        _programs[key], shared, *columns, batch_size=FLAGS.batch_size, mesh=over, progress=progress
    )


_programs: dict[Any, Any] = {}


def tag(temperature: float | None) -> str:
    """A temperature in the name of a file."""
    return "none" if temperature is None else f"T{temperature:g}"


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
        rate = metrics.accuracy(classify(training.logits_fn(state), images), labels)
        run.append(**where, measure="accuracy", correct=rate.successes, n=rate.n, accuracy=rate.value)


def print_accuracies(run: runs.Run) -> None:
    """Prints what `record_accuracy` measured, and where the networks are."""
    for path in parallel.on_primary(lambda: sorted((run.workdir / "checkpoints").glob("*/*"))):
        spec = runs.read_spec(path)
        record = run.find(measure="accuracy", seed=spec.seed, network=spec.role)
        if record is not None:
            low, high = metrics.wilson_interval(record["correct"], record["n"])
            print(f"{path}: accuracy {record['accuracy']:.4f} [{low:.4f}, {high:.4f}] on {record['n']} test images")
