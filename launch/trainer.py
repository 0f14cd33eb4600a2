"""How launchers train: the networks of a run, as stacks, with checkpoints from which a stopped run goes on."""

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from ddjax import data, layers, parallel, recipes, runs, training
from ddjax.defenses import adversarial_training

from . import common

FLAGS = flags.FLAGS


@functools.cache
def _variations(recipe: recipes.Recipe, adversarial: bool) -> dict[str, Any]:
    """How a recipe varies the images of a step, and perhaps attacks them, as arguments of `training.train_step`."""
    found = {}
    if recipe.augmentation is not None:
        found["augment"] = data.AUGMENTATIONS.find(recipe.augmentation).function
    if recipe.adversary is not None and adversarial:
        attack = adversarial_training.ADVERSARIES[recipe.adversary]
        settings = {"epsilon": recipe.adversary_epsilon, "num_steps": recipe.adversary_steps}
        if recipe.thermometer_levels:
            settings["levels"] = recipe.thermometer_levels
        found["adversary"] = functools.partial(attack, **settings)
    return found


@functools.cache
def _compiled_epoch(
    batch_size: int, recipe: recipes.Recipe, adversarial: bool, stacking: str, over: jax.sharding.Mesh
) -> Any:
    train = functools.partial(training.train_member, batch_size=batch_size, **_variations(recipe, adversarial))
    train_all = parallel.over_members(train, over, stacking)

    def epoch(
        images: jax.Array, state: training.TrainState, targets: jax.Array, temperature: jax.Array, live: jax.Array
    ) -> Any:
        return train_all(images, training.Member(state, targets, temperature, live))

    return layers.jit(epoch, donate_argnums=1)


@functools.cache
def _compiled_step(recipe: recipes.Recipe, adversarial: bool, stacking: str, over: jax.sharding.Mesh) -> Any:
    """A step of `_compiled_epoch`, given its images."""
    one = functools.partial(training.step_member, **_variations(recipe, adversarial))
    step_all = parallel.over_members(lambda _, given: one(*given), over, stacking)

    def step(
        state: training.TrainState,
        targets: jax.Array,
        temperature: jax.Array,
        live: jax.Array,
        images: jax.Array,
        rows: jax.Array,
    ) -> Any:
        return step_all(None, (training.Member(state, targets, temperature, live), images, rows))

    return layers.jit(step, donate_argnums=0)


@functools.cache
def _compiled_rows(num_examples: int, batch_size: int, over: jax.sharding.Mesh) -> Any:
    return jax.jit(parallel.over_members(lambda _, s: training.epoch_rows(s, num_examples, batch_size), over))


def _soft_labels(shared: Any, images: jax.Array) -> jax.Array:
    logits_fn, temperature = shared
    return jax.nn.softmax(logits_fn(data.to_float(images)) / temperature)


@functools.cache
def _compiled_soft_labels(stacking: str, over: jax.sharding.Mesh) -> Any:
    label = lambda images, teacher: training.soft_labels(teacher[0], images, teacher[1])
    return layers.jit(parallel.over_members(label, over, stacking))


def _begun_from(start: training.TrainState, state: training.TrainState) -> training.TrainState:
    """A fresh state with the network of another."""
    return state.replace(params=start.params, batch_stats=start.batch_stats)


# Which key of a seed makes which network: the same initial parameters at every temperature.
_ROLES = ("baseline", "start", "teacher", "student", "source", "plain", "noisy_student", "finetuned", "substitute")
# Those that are trained on the true labels at temperature 1.
_UNDISTILLED = ("baseline", "start", "source", "plain", "substitute")


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
        return f"seed{self.seed}_{common.tag(None if self.role in _UNDISTILLED else self.temperature)}"


class Trainer:
    """Trains the networks of a run, or restores what an earlier process of the run has trained.

    Networks that do not depend on each other are one stack, trained as one program; see `parallel.over_members`.
    """

    def __init__(self, run: runs.Run, recipe: recipes.Recipe, train: data.Dataset, folder: str = "") -> None:
        """Takes the data; it goes to the devices when they train.

        Args:
          run: whose checkpoints are kept.
          recipe: the settings.
          train: the training set.
          folder: under the run's checkpoints, where several networks of a run have the same role.
        """
        self._directory = run.workdir / "checkpoints" / folder
        self._recipe, self._train = recipe, train
        self._images = functools.cache(functools.partial(parallel.replicate, train.images))
        self._batches = data.Batches(train.images)
        self._batch_size = min(recipe.batch_size, len(train))
        # Of images on disk, without the first batch of a training, which waits for the compiler.
        self._images_trained, self._seconds_training = 0, 0.0

    def rates(self) -> dict[str, float | None] | None:
        """Images a second, where they come from disk: decoded, read, and trained on; None where they do not.

        The last is unknown where there was a single batch.
        """
        if not self._batches.images_read:
            return None
        return {
            "decoded_per_second": self._train.decoded_per_second,
            "read_per_second": self._batches.images_read / self._batches.seconds_reading,
            "trained_per_second": self._images_trained / self._seconds_training if self._images_trained else None,
        }

    def plain(self, seed: int, temperature: float = 1.0, role: str = "baseline") -> training.TrainState:
        """A network trained on the true labels."""
        (state,) = self._train_all([Network(role, seed, temperature)])
        return state

    def distilled(self, seed: int, temperature: float) -> tuple[training.TrainState, training.TrainState]:
        """A teacher and its student."""
        _, (pair,) = self.sweep([], [(seed, temperature)])
        return pair

    def distilled_with_noise(
        self, seed: int, temperature: float, noise: float, finetune_epochs: int
    ) -> tuple[training.TrainState, training.TrainState]:
        """A teacher, and a student of its soft labels on noisy images, at the end on the true ones as they are.

        Args:
          seed: of the networks and of the noise.
          temperature: of both trainings, and of the last epochs.
          noise: the standard deviation of the normal noise on images in [0, 1], drawn once.
          finetune_epochs: how many epochs the student then learns the true labels of the images without noise.

        Returns:
          Teacher and student.

        Raises:
          ValueError: for images on disk, of which a noisy copy may not fit into memory.
        """
        if self._train.on_disk:
            raise ValueError("--label_noise needs the images in memory: give --num_train")
        (teacher,) = self._train_all([Network("teacher", seed, temperature)])
        noisy = training.with_noise(self._train.images, noise, jax.random.fold_in(jax.random.key(seed), 0x0153))
        images = functools.cache(functools.partial(parallel.replicate, noisy))
        labels = lambda: self._soft_labels([teacher], [temperature], images)
        (student,) = self._train_all([Network("noisy_student", seed, temperature)], labels, images=images)
        if finetune_epochs:
            network = Network("finetuned", seed, temperature)
            (student,) = self._train_all([network], start=student, epochs=finetune_epochs)
        return teacher, student

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

    def _soft_labels(
        self,
        teachers: list[training.TrainState],
        temperatures: list[float],
        images: Callable[[jax.sharding.Mesh], jax.Array] | None = None,
    ) -> np.ndarray:
        if self._train.on_disk:
            shared = [
                (training.logits_fn(teacher), np.float32(t)) for teacher, t in zip(teachers, temperatures, strict=True)
            ]
            return np.stack([common.evaluate(_soft_labels, each, self._train.images) for each in shared])
        members = [
            (training.logits_fn(teacher), np.float32(temperature))
            for teacher, temperature in zip(teachers, temperatures, strict=True)
        ]
        over = common.mesh("sweep", len(members))
        labels = _compiled_soft_labels(FLAGS.stacking, over)(
            (images or self._images)(over), parallel.stack(members, over)
        )
        return parallel.fetch(labels)[: len(teachers)]

    def _train_all(
        self,
        networks: list[Network],
        targets: Callable[[], np.ndarray] | None = None,
        size: int = 0,
        images: Callable[[jax.sharding.Mesh], jax.Array] | None = None,
        start: training.TrainState | None = None,
        epochs: int | None = None,
    ) -> list[training.TrainState]:
        """Trains networks of equal structure to their last epoch.

        Args:
          networks: that do not depend on each other.
          targets: makes a distribution over the classes for each network and image, `[S, N, K]`; default: the labels.
          size: the least size of the stack.
          images: places the training images on devices; default: those of the data set.
          start: whose parameters networks that have not begun get; default: as they are initialized.
          epochs: how many in all; default: the recipe's.
        """
        if not networks:
            return []
        with contextlib.ExitStack() as stack:
            epochs = self._epochs(networks[0]) if epochs is None else epochs
            checkpoints = [self._checkpoints(network, epochs) for network in networks]
            for each, _ in checkpoints:
                stack.callback(each.close)
            restored = [each.restore(fresh) for each, fresh in checkpoints]
            states, done = [state for state, _ in restored], [epoch for _, epoch in restored]
            if min(done) >= epochs:
                return states
            states = self._warm_started(networks, states, done)
            if start is not None:
                pairs = zip(states, done, strict=True)
                states = [state if epoch else _begun_from(start, state) for state, epoch in pairs]
            given = targets() if targets else [self._true_labels(network.role) for network in networks]
            members = [
                (state, labels, np.float32(network.temperature))
                for network, state, labels in zip(networks, states, given, strict=True)
            ]
            members += [members[-1]] * (size - len(members))
            over = common.mesh("sweep", len(members))
            stacked, labels, temperatures = parallel.stack(members, over)
            epoch_fn = self._epoch_fn(over, images or self._images, networks[0].role != "start")
            names = [f"{network.folder} {network.role}" for network in networks]
            description = names[0] if len(names) == 1 else f"{len(names)} networks"
            saved = time.monotonic()
            with common.progress(epochs, description, "epoch") as bar:
                bar.update(min(done))
                for epoch in range(min(done) + 1, epochs + 1):
                    # A process may have been killed between the checkpoints of two networks.
                    live = [before < epoch for before in done] + [False] * (len(temperatures) - len(done))
                    stacked, losses = epoch_fn(stacked, labels, temperatures, parallel.split(np.array(live), over))
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

    def _true_labels(self, role: str) -> np.ndarray:
        """One-hot labels, weighted by class where the recipe says so of this role."""
        labels, count = self._train.labels, self._train.num_classes
        one_hot = np.eye(count, dtype=np.float32)[labels]
        if not self._recipe.class_weights or role not in _UNDISTILLED:
            return one_hot
        from sklearn.utils.class_weight import compute_class_weight  # lazily: it takes a second

        weights = compute_class_weight("balanced", classes=np.arange(count), y=labels)
        return one_hot * weights.astype(np.float32)

    def _epoch_fn(
        self, over: jax.sharding.Mesh, images: Callable[[jax.sharding.Mesh], jax.Array], adversarial: bool
    ) -> Callable[..., Any]:
        """One epoch: from a stack of states, their targets and temperatures, and which are live, to states and losses.

        Images on disk come to the devices batch by batch.
        """
        if not self._train.on_disk:
            return functools.partial(
                _compiled_epoch(self._batch_size, self._recipe, adversarial, FLAGS.stacking, over), images(over)
            )
        rows_fn = _compiled_rows(len(self._train), self._batch_size, over)
        step_fn = _compiled_step(self._recipe, adversarial, FLAGS.stacking, over)
        compiled = False

        def epoch(states: Any, targets: jax.Array, temperatures: jax.Array, live: jax.Array) -> Any:
            nonlocal compiled
            rows = parallel.fetch(rows_fn(None, states)).swapaxes(0, 1)
            losses, started = [], time.monotonic()
            with common.progress(len(rows), "this epoch", "batch") as bar:
                for some, batch in zip(rows, self._batches.read(rows), strict=True):
                    given = parallel.split((batch, some), over)
                    states, loss = step_fn(states, targets, temperatures, live, *given)
                    losses.append(loss)
                    if compiled:
                        self._images_trained += some.size
                    else:
                        loss.block_until_ready()
                        compiled, started = True, time.monotonic()
                    # No further ahead of the devices than a batch, or batches would fill their memory.
                    losses[-2:][0].block_until_ready()
                    bar.update()
            mean = np.mean([parallel.fetch(loss) for loss in losses], axis=0)
            self._seconds_training += time.monotonic() - started
            return states, mean

        return epoch

    def _epochs(self, network: Network) -> int:
        return self._recipe.warm_start_epochs if network.role == "start" else self._recipe.epochs

    def _checkpoints(self, network: Network, epochs: int) -> tuple[runs.Checkpoints, training.TrainState]:
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
            epochs=epochs,
            num_train=len(self._train),
            batch_size=self._batch_size,
        )
        state = spec.build(jax.random.fold_in(jax.random.key(network.seed), _ROLES.index(network.role)))
        return runs.Checkpoints(self._directory / network.folder / network.role, spec), state

    def _warm_started(
        self, networks: list[Network], states: list[training.TrainState], done: list[int]
    ) -> list[training.TrainState]:
        """Gives networks that have not begun the parameters of their common start, where there is one."""
        roles = ("teacher", "student", "noisy_student", *(["baseline"] if self._recipe.adversary else []))
        begun = [bool(epoch) or network.role not in roles for network, epoch in zip(networks, done, strict=True)]
        if self._recipe.warm_start_epochs == 0 or all(begun):
            return states
        seeds = sorted({network.seed for network, is_begun in zip(networks, begun, strict=True) if not is_begun})
        starts = dict(zip(seeds, self._train_all([Network("start", seed) for seed in seeds]), strict=True))
        return [
            state if is_begun else _begun_from(starts[network.seed], state)
            for network, state, is_begun in zip(networks, states, begun, strict=True)
        ]
