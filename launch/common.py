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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import app, flags, logging

from ddjax import data, layers, metrics, models, parallel, recipes, report, runs, training

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
flags.DEFINE_integer(
    "devices", None, "Runs on so many CPU devices; default: accelerators, or else one for each core.", lower_bound=1
)
flags.DEFINE_bool(
    "distributed", False, "One of several processes; finds the others under Slurm, Open MPI, GKE and on Cloud TPU."
)
flags.DEFINE_string("coordinator", None, "With --distributed, where nothing finds it: HOST:PORT of process 0.")
flags.DEFINE_integer("num_processes", None, "With --coordinator: how many processes there are.", lower_bound=1)
flags.DEFINE_integer("process_id", None, "With --coordinator: which of them this is, from 0.", lower_bound=0)
flags.DEFINE_enum("stacking", "auto", parallel.STACKINGS, "How a device trains its share of a sweep's networks.")
flags.DEFINE_bool("traceback", False, "Shows where in the code an error was raised.")

_MOST_CPU_DEVICES = 8
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
            if not parallel.is_primary():
                # What all would say alike is said once; errors are not.
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            main()
        except _USER_ERRORS as error:
            if FLAGS.traceback:
                raise
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    app.run(guarded)


def set_up_jax() -> None:
    """Sets devices and processes, the precision of matrix products and the persistent compilation cache."""
    if FLAGS.devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", FLAGS.devices)
    elif not FLAGS.distributed and not _cpu_devices_are_set():
        # Without an accelerator, networks of a sweep and examples of a batch side by side keep cores busier than one
        # program does: by a third on two cores. More than a few have not been measured.
        jax.config.update("jax_num_cpu_devices", min(len(os.sched_getaffinity(0)), _MOST_CPU_DEVICES))
    _join_processes()
    jax.config.update("jax_default_matmul_precision", FLAGS.matmul_precision)
    if jax.config.values["jax_compilation_cache_dir"] is None:
        caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(caches / "ddjax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _cpu_devices_are_set() -> bool:
    """Whether the environment says how many CPU devices there are."""
    return "JAX_NUM_CPU_DEVICES" in os.environ or "device_count" in os.environ.get("XLA_FLAGS", "")


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


def write_report(run: runs.Run, *, table: bool = True) -> None:
    """Writes the report of a run, prints its table and says where it is."""
    page = parallel.on_primary(lambda: report.write(run.workdir))
    if table:
        print(parallel.on_primary(lambda: report.readme_table(run.workdir)))
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
def batched(function: Callable[..., Any], donate: tuple[int, ...] = ()) -> Any:
    """Compiles `function(shared, *batch)` for batches that all devices share; see `parallel.over_examples`."""
    return jit(parallel.over_examples(function, mesh("data")), donate_argnums=donate)


def evaluate(
    function: Callable[..., Any],
    shared: Any,
    *columns: np.ndarray,
    batch_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Any:
    """Applies `function(shared, *batch)` to any number of examples, on all devices.

    Args:
      function: one object for each program, since it is compiled for it.
      shared: what all examples need, such as the network.
      *columns: the examples.
      batch_size: the largest batch; default: the flag's.
      progress: see `parallel.map_batches`.

    Returns:
      The results for all examples, as NumPy arrays, in every process.
    """
    size = FLAGS.batch_size if batch_size is None else batch_size
    return parallel.map_batches(
        batched(function), shared, *columns, batch_size=size, mesh=mesh("data"), progress=progress
    )


def compiled_batched(
    function: Callable[..., Any], shared: Any, *columns: np.ndarray
) -> Callable[[Callable[[int], Any] | None], Any]:
    """`evaluate`, with everything compiled before it starts, so that the time it takes is that of its work.

    Args:
      function: as for `evaluate`; an attack, whose images take the place of the first column's on the device.
      shared: as for `evaluate`.
      *columns: the examples.

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
        _programs[key] = batched(function, donate=(1,)).lower(shared, *batch).compile()
    return lambda progress: parallel.map_batches(
        _programs[key], shared, *columns, batch_size=FLAGS.batch_size, mesh=over, progress=progress
    )


_programs: dict[Any, Any] = {}


@functools.cache
def _compiled_epoch(batch_size: int, stacking: str, over: jax.sharding.Mesh) -> Any:
    train = functools.partial(training.train_member, batch_size=batch_size)
    train_all = parallel.over_members(train, over, stacking)

    def epoch(
        images: jax.Array, state: training.TrainState, targets: jax.Array, temperature: jax.Array, live: jax.Array
    ) -> Any:
        return train_all(images, training.Member(state, targets, temperature, live))

    return jit(epoch, donate_argnums=1)


@functools.cache
def _compiled_soft_labels(stacking: str, over: jax.sharding.Mesh) -> Any:
    label = lambda images, teacher: training.soft_labels(teacher[0], images, teacher[1])
    return jit(parallel.over_members(label, over, stacking))


# Which key of a seed makes which network: the same initial parameters at every temperature.
_ROLES = ("baseline", "start", "teacher", "student", "source", "plain")
# Those that are trained on the true labels at temperature 1.
_UNDISTILLED = ("baseline", "start", "source", "plain")


class Network(NamedTuple):
    """One network of a run.

    Attributes:
      role: one of `_ROLES`.
      seed: of its training.
      temperature: of its training.
    """

    role: str
    seed: int
    temperature: float = 1.0

    @property
    def folder(self) -> str:
        """The directory that it shares with the others of its temperature."""
        return f"seed{self.seed}_{tag(None if self.role in _UNDISTILLED else self.temperature)}"


class Trainer:
    """Trains the networks of a run, or restores what an earlier process of the run has trained.

    Networks that do not depend on each other are one stack, trained as one program; see `parallel.over_members`.
    """

    def __init__(self, run: runs.Run, recipe: recipes.Recipe, train: data.Dataset) -> None:
        """Takes the data; it goes to the devices when they train."""
        self._run, self._recipe, self._train = run, recipe, train
        self._images = functools.cache(functools.partial(parallel.replicate, train.images))
        self._one_hot = np.eye(train.num_classes, dtype=np.float32)[train.labels]
        self._batch_size = min(recipe.batch_size, len(train))

    def plain(self, seed: int, temperature: float = 1.0, role: str = "baseline") -> training.TrainState:
        """A network trained on the true labels."""
        (state,) = self._train_all([Network(role, seed, temperature)])
        return state

    def distilled(self, seed: int, temperature: float) -> tuple[training.TrainState, training.TrainState]:
        """A teacher and its student."""
        _, (pair,) = self.sweep([], [(seed, temperature)])
        return pair

    def sweep(
        self, baselines: Sequence[int], distilled: Sequence[tuple[int, float]]
    ) -> tuple[list[training.TrainState], list[tuple[training.TrainState, training.TrainState]]]:
        """All networks of a sweep: first the undistilled ones and the teachers together, then the students.

        Args:
          baselines: the seeds of the undistilled ones.
          distilled: seeds and temperatures of teachers and students.

        Returns:
          The undistilled networks, and teacher and student for each of `distilled`.

        Reference:
          Papernot et al., Distillation as a Defense, 2016 (arXiv 1511.04508).
        """
        first = [Network("baseline", seed) for seed in baselines]
        first += [Network("teacher", seed, temperature) for seed, temperature in distilled]
        trained = self._train_all(first)
        teachers = trained[len(baselines) :]
        students = [Network("student", seed, temperature) for seed, temperature in distilled]
        temperatures = [temperature for _, temperature in distilled]
        # Of one size, so that one program trains both.
        soft_labels = lambda: self._soft_labels(teachers, temperatures)
        return trained[: len(baselines)], list(
            zip(teachers, self._train_all(students, soft_labels, size=len(first)), strict=True)
        )

    def _soft_labels(self, teachers: list[training.TrainState], temperatures: list[float]) -> np.ndarray:
        members = [
            (training.logits_fn(teacher), np.float32(temperature))
            for teacher, temperature in zip(teachers, temperatures, strict=True)
        ]
        over = mesh("sweep", len(members))
        labels = _compiled_soft_labels(FLAGS.stacking, over)(self._images(over), parallel.stack(members, over))
        return parallel.fetch(labels)[: len(teachers)]

    def _train_all(
        self, networks: list[Network], targets: Callable[[], np.ndarray] | None = None, size: int = 0
    ) -> list[training.TrainState]:
        """Trains networks of equal structure to their last epoch.

        Args:
          networks: that do not depend on each other.
          targets: makes a distribution over the classes for each network and image, `[S, N, K]`; default: the labels.
          size: the least size of the stack.
        """
        if not networks:
            return []
        with contextlib.ExitStack() as stack:
            checkpoints = [self._checkpoints(network) for network in networks]
            for each, _ in checkpoints:
                stack.callback(each.close)
            restored = [each.restore(fresh) for each, fresh in checkpoints]
            states, done = [state for state, _ in restored], [epoch for _, epoch in restored]
            epochs = self._epochs(networks[0])
            if min(done) >= epochs:
                return states
            states = self._warm_started(networks, states, done)
            one_hot = lambda: np.broadcast_to(self._one_hot, (len(networks), *self._one_hot.shape))
            members = [
                (state, labels, np.float32(network.temperature))
                for network, state, labels in zip(networks, states, (targets or one_hot)(), strict=True)
            ]
            members += [members[-1]] * (size - len(members))
            over = mesh("sweep", len(members))
            stacked, labels, temperatures = parallel.stack(members, over)
            epoch_fn = _compiled_epoch(self._batch_size, FLAGS.stacking, over)
            names = [f"{network.folder} {network.role}" for network in networks]
            description = names[0] if len(names) == 1 else f"{len(names)} networks"
            saved = time.monotonic()
            with progress(epochs, description, "epoch") as bar:
                bar.update(min(done))
                for epoch in range(min(done) + 1, epochs + 1):
                    # A process may have been killed between the checkpoints of two networks.
                    live = [before < epoch for before in done] + [False] * (len(temperatures) - len(done))
                    stacked, losses = epoch_fn(
                        self._images(over), stacked, labels, temperatures, parallel.split(np.array(live), over)
                    )
                    known = parallel.fetch(losses)
                    # `zip` drops those that only fill the stack up.
                    for name, loss, is_live in zip(names, known, live, strict=False):
                        if is_live:
                            training.check_loss(float(loss), f"epoch {epoch} of {name}")
                    bar.set_postfix(loss=f"{np.nanmean(known):.4f}")
                    bar.update()
                    if epoch == epochs or parallel.on_primary(
                        lambda saved=saved: time.monotonic() - saved > FLAGS.checkpoint_seconds
                    ):
                        states = parallel.unstack(stacked, len(networks))
                        for (each, _), state, is_live in zip(checkpoints, states, live, strict=False):
                            if is_live:
                                each.save(epoch, state)
                        saved = time.monotonic()
            return states

    def _epochs(self, network: Network) -> int:
        return self._recipe.warm_start_epochs if network.role == "start" else self._recipe.epochs

    def _checkpoints(self, network: Network) -> tuple[runs.Checkpoints, training.TrainState]:
        """Where a network is kept, and the network before training."""
        spec = runs.NetworkSpec(
            recipe=self._recipe.name,
            network=self._recipe.network,
            dataset=self._recipe.dataset,
            num_classes=self._train.num_classes,
            image_shape=self._train.image_shape,
            role=network.role,
            temperature=float(network.temperature),
            seed=network.seed,
            epochs=self._epochs(network),
            num_train=len(self._train),
            batch_size=self._batch_size,
        )
        state = spec.build(jax.random.fold_in(jax.random.key(network.seed), _ROLES.index(network.role)))
        directory = self._run.workdir / "checkpoints" / network.folder / network.role
        return runs.Checkpoints(directory, spec), state

    def _warm_started(
        self, networks: list[Network], states: list[training.TrainState], done: list[int]
    ) -> list[training.TrainState]:
        """Gives teachers and students that have not begun the parameters of their common start, where there is one."""
        begun = [
            bool(epoch) or network.role not in ("teacher", "student")
            for network, epoch in zip(networks, done, strict=True)
        ]
        if self._recipe.warm_start_epochs == 0 or all(begun):
            return states
        seeds = sorted({network.seed for network, is_begun in zip(networks, begun, strict=True) if not is_begun})
        starts = dict(zip(seeds, self._train_all([Network("start", seed) for seed in seeds]), strict=True))
        return [
            state if is_begun else state.replace(params=starts[network.seed].params)
            for network, state, is_begun in zip(networks, states, begun, strict=True)
        ]


def tag(temperature: float | None) -> str:
    """A temperature in the name of a file."""
    return "none" if temperature is None else f"T{temperature:g}"


def classify(logits_fn: Any, images: np.ndarray) -> np.ndarray:
    """The logits of any number of images."""
    return evaluate(_logits, logits_fn, images)


def _logits(logits_fn: Any, images: jax.Array) -> jax.Array:
    return logits_fn(images)


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
