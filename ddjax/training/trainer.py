"""The networks of a run: baselines, teachers, students and others by role, kept in checkpoints.

A run that was stopped goes on from them. Networks that do not depend on each other are one stack.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import Mesh

from ddjax import layers, parallel
from ddjax.checkpoints import Checkpoints, NetworkSpec
from ddjax.data import Batches, Dataset
from ddjax.files import PathLike, local_path
from ddjax.progress import Progress, silent
from ddjax.state import TrainState, create_state
from ddjax.training import distillation, step
from ddjax.training.stack import Inputs, train_stack

# Which key of a seed makes which network: the same initial parameters at every temperature.
_ROLES = ("baseline", "start", "teacher", "student", "source", "plain", "noisy_student", "finetuned", "substitute")
# Those that are trained on the true labels at temperature 1.
_UNDISTILLED = ("baseline", "start", "source", "plain", "substitute")
_NOISE = 0x0153


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the networks of a run are trained.

    Attributes:
      network: the module; the same for all.
      optimizer: makes it from the steps of an epoch; the same object for the same number, since programs are kept for
        it.
      epochs: passes over the training set, for each network.
      batch_size: the examples of a step; fewer where the data set is smaller.
      augment: see `train_step`; the same object for equal settings.
      adversary: see `train_step`; likewise.
      warm_start_epochs: epochs at temperature 1 on the true labels and clean images, before teacher and student, both
        from the same start, and before adversarial training.
      class_weights: whether an example of the true labels weighs the inverse of its class's share, so that all classes
        weigh the same; teachers and students go without.
      recipe: the name of these settings, for the description of a checkpoint.
    """

    network: nn.Module
    optimizer: Callable[[int], optax.GradientTransformation]
    epochs: int
    batch_size: int
    augment: step.Augmentation | None = None
    adversary: step.Adversary | None = None
    warm_start_epochs: int = 0
    class_weights: bool = False
    recipe: str = ""


class Network(NamedTuple):
    """One network of a run: its role, one of `_ROLES`, and the seed and the temperature of its training."""

    role: str
    seed: int
    temperature: float = 1.0

    @property
    def folder(self) -> str:
        """The directory that it shares with the others of its temperature."""
        return f"seed{self.seed}_{tag(None if self.role in _UNDISTILLED else self.temperature)}"


def tag(temperature: float | None) -> str:
    """A temperature in the name of a file."""
    return "none" if temperature is None else f"T{temperature:g}"


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Trains the networks of a run, or restores what an earlier process of the run has trained.

    Attributes:
      directory: of the checkpoints.
      settings: how to train.
      train: the training set; it goes to the devices when they train.
      stacking: see `parallel.over_members`.
      checkpoint_seconds: the least time between two checkpoints of one training.
      progress: shows epochs and batches.
      evaluator: computes the soft labels of images on disk.
    """

    directory: PathLike
    settings: Settings
    train: Dataset
    _: dataclasses.KW_ONLY
    stacking: str = "auto"
    checkpoint_seconds: float = 30.0
    progress: Progress = silent
    evaluator: parallel.Evaluator = dataclasses.field(default_factory=parallel.Evaluator)

    @functools.cached_property
    def _inputs(self) -> Inputs:
        return Batches(self.train.images) if self.train.on_disk else _placed(self.train.images)

    @property
    def _batch_size(self) -> int:
        return min(self.settings.batch_size, len(self.train))

    def rates(self) -> dict[str, float | None] | None:
        """Images a second, where they come from disk: decoded, read, and trained on; None where they do not.

        The last is unknown where there was a single batch.
        """
        found = self._inputs.rates() if isinstance(self._inputs, Batches) else None
        return {"decoded_per_second": self.train.decoded_per_second, **found} if found else None

    def plain(self, seed: int, temperature: float = 1.0, role: str = "baseline") -> TrainState:
        """A network trained on the true labels."""
        (state,) = self._train_all([Network(role, seed, temperature)])
        return state

    def distilled(self, seed: int, temperature: float) -> tuple[TrainState, TrainState]:
        """A teacher and its student."""
        _, (pair,) = self.sweep([], [(seed, temperature)])
        return pair

    def distilled_with_noise(
        self, seed: int, temperature: float, noise: float, finetune_epochs: int
    ) -> tuple[TrainState, TrainState]:
        """A teacher, and a student of its soft labels on noisy images, at the end on the true labels without noise.

        Args:
          seed: of the networks and of the noise.
          temperature: of both trainings, and of the last epochs.
          noise: the standard deviation of the normal noise on images in [0, 1], drawn once.
          finetune_epochs: how many epochs the student then learns the true labels of the images without noise.

        Raises:
          ValueError: for images on disk, of which a noisy copy may not fit into memory.
        """
        if self.train.on_disk:
            raise ValueError("training on noisy images needs the images in memory: take a subset of the training set")
        teacher = self.plain(seed, temperature, "teacher")
        key, bounds = jax.random.fold_in(jax.random.key(seed), _NOISE), self.train.bounds or (0.0, 1.0)
        noisy = distillation.with_noise(self.train.images, noise, key, bounds)
        inputs = _placed(noisy)
        labels = lambda: self._soft_labels([teacher], [temperature], inputs)
        (student,) = self._train_all([Network("noisy_student", seed, temperature)], labels, inputs=inputs)
        if finetune_epochs:
            network = Network("finetuned", seed, temperature)
            (student,) = self._train_all([network], start=student, epochs=finetune_epochs)
        return teacher, student

    def sweep(
        self, baselines: Sequence[int], distilled: Sequence[tuple[int, float]]
    ) -> tuple[list[TrainState], list[tuple[TrainState, TrainState]]]:
        """All networks of a sweep: first the undistilled ones and the teachers together, then the students.

        Takes the seeds of the undistilled ones, and a seed and a temperature for each pair of teacher and student.
        Returns the undistilled networks, and the pairs.

        Reference:
          Papernot et al., Distillation as a Defense, 2016 (arXiv 1511.04508).
        """
        first = [Network("baseline", seed) for seed in baselines]
        first += [Network("teacher", *each) for each in distilled]
        trained = self._train_all(first)
        undistilled, teachers = trained[: len(baselines)], trained[len(baselines) :]
        soft_labels = lambda: self._soft_labels(teachers, [temperature for _, temperature in distilled])
        # Of one size, so that one program trains both.
        students = self._train_all([Network("student", *each) for each in distilled], soft_labels, size=len(first))
        return undistilled, list(zip(teachers, students, strict=True))

    def _soft_labels(
        self, teachers: list[TrainState], temperatures: list[float], inputs: Inputs | None = None
    ) -> np.ndarray:
        members = [(each.logits_fn, np.float32(t)) for each, t in zip(teachers, temperatures, strict=True)]
        inputs = inputs or self._inputs
        if isinstance(inputs, Batches):
            label = distillation.soft_labels_of_batch
            return np.stack([self.evaluator(label, member, self.train.images) for member in members])
        over = parallel.make_mesh("sweep", len(members))
        labels = _compiled_soft_labels(self.stacking, over)(inputs(over), parallel.stack(members, over))
        return parallel.fetch(labels)[: len(teachers)]

    def _train_all(
        self,
        networks: list[Network],
        targets: Callable[[], np.ndarray] | None = None,
        *,
        size: int = 0,
        inputs: Inputs | None = None,
        start: TrainState | None = None,
        epochs: int | None = None,
    ) -> list[TrainState]:
        """Trains networks that do not depend on each other to their last epoch; see `train_stack`.

        Targets, inputs and epochs are by default those of the data set and the settings. Networks that have not begun
        get the parameters of `start`, where it is given.
        """
        if not networks:
            return []
        role = networks[0].role
        if epochs is None:
            epochs = self.settings.warm_start_epochs if role == "start" else self.settings.epochs
        with contextlib.ExitStack() as stack:
            stores = [stack.enter_context(contextlib.closing(self._checkpoints(each, epochs))) for each in networks]
            restored = [store.restore(self._fresh(each)) for store, each in zip(stores, networks, strict=True)]
            states, done = [state for state, _ in restored], [epoch for _, epoch in restored]
            if min(done) >= epochs:
                return states
            new = [network for network, epoch in zip(networks, done, strict=True) if epoch == 0]
            starts = self._starts(new) if start is None else dict.fromkeys(new, start)
            for place, network in enumerate(networks):
                if network in starts:
                    given = starts[network]
                    states[place] = states[place].replace(params=given.params, statistics=given.statistics)
            return train_stack(
                states,
                inputs or self._inputs,
                targets() if targets else [self._true_labels(network.role) for network in networks],
                [network.temperature for network in networks],
                num_examples=len(self.train),
                batch_size=self._batch_size,
                epochs=epochs,
                names=[f"{network.folder} {network.role}" for network in networks],
                done=done,
                stores=stores,
                size=size,
                augment=self.settings.augment,
                adversary=None if role == "start" else self.settings.adversary,
                stacking=self.stacking,
                checkpoint_seconds=self.checkpoint_seconds,
                progress=self.progress,
            )

    def _starts(self, networks: Sequence[Network]) -> dict[Network, TrainState]:
        """The trained network that those with a warm start begin from, which those of one seed share."""
        if self.settings.warm_start_epochs == 0:
            return {}
        roles = ("teacher", "student", "noisy_student", *(["baseline"] if self.settings.adversary else []))
        warm = [network for network in networks if network.role in roles]
        seeds = sorted({network.seed for network in warm})
        trained = dict(zip(seeds, self._train_all([Network("start", seed) for seed in seeds]), strict=True))
        return {network: trained[network.seed] for network in warm}

    def _true_labels(self, role: str) -> np.ndarray:
        """One-hot labels, weighted by class where the settings say so of this role."""
        labels, count = self.train.labels, self.train.num_classes
        one_hot = np.eye(count, dtype=np.float32)[labels]
        if not self.settings.class_weights or role not in _UNDISTILLED:
            return one_hot
        from sklearn.utils.class_weight import compute_class_weight  # lazily: it takes a second

        weights = compute_class_weight("balanced", classes=np.arange(count), y=labels)
        return one_hot * weights.astype(np.float32)

    def _fresh(self, network: Network) -> TrainState:
        """A network before training."""
        optimizer = self.settings.optimizer(step.steps_per_epoch(len(self.train), self._batch_size))
        key = jax.random.fold_in(jax.random.key(network.seed), _ROLES.index(network.role))
        return create_state(self.settings.network, optimizer, self.train.image_shape, key)

    def _checkpoints(self, network: Network, epochs: int) -> Checkpoints:
        """Where a network is kept."""
        spec = NetworkSpec.of(
            self.settings.network,
            recipe=self.settings.recipe,
            dataset=self.train.name,
            num_classes=self.train.num_classes,
            image_shape=self.train.image_shape,
            role=network.role,
            temperature=float(network.temperature),
            seed=network.seed,
            epochs=epochs,
            num_train=len(self.train),
            batch_size=self._batch_size,
        )
        return Checkpoints(local_path(self.directory) / network.folder / network.role, spec)


def _placed(images: np.ndarray) -> Inputs:
    """The same arrays for the same mesh."""
    return functools.cache(functools.partial(parallel.replicate, images))


@functools.cache
def _compiled_soft_labels(stacking: str, over: Mesh) -> Any:
    label = lambda images, teacher: distillation.soft_labels(teacher[0], images, teacher[1])
    return layers.jit(parallel.over_members(label, over, stacking))
