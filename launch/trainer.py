"""How launchers train: the networks of a run, as stacks, with checkpoints from which a stopped run goes on."""

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from ddjax import data, parallel, recipes, runs, training
from launch import common

FLAGS = flags.FLAGS


@functools.cache
def _compiled_epoch(batch_size: int, stacking: str, over: jax.sharding.Mesh) -> Any:
    train = functools.partial(training.train_member, batch_size=batch_size)
    train_all = parallel.over_members(train, over, stacking)

    def epoch(
        images: jax.Array, state: training.TrainState, targets: jax.Array, temperature: jax.Array, live: jax.Array
    ) -> Any:
        return train_all(images, training.Member(state, targets, temperature, live))

    return common.jit(epoch, donate_argnums=1)


@functools.cache
def _compiled_soft_labels(stacking: str, over: jax.sharding.Mesh) -> Any:
    label = lambda images, teacher: training.soft_labels(teacher[0], images, teacher[1])
    return common.jit(parallel.over_members(label, over, stacking))


# Which key of a seed makes which network: the same initial parameters at every temperature.
_ROLES = ("baseline", "start", "teacher", "student", "source", "plain", "noisy_student", "finetuned")
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
        return f"seed{self.seed}_{common.tag(None if self.role in _UNDISTILLED else self.temperature)}"


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
        """
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
                states = [state if epoch else state.replace(params=start.params) for state, epoch in pairs]
            one_hot = lambda: np.broadcast_to(self._one_hot, (len(networks), *self._one_hot.shape))
            members = [
                (state, labels, np.float32(network.temperature))
                for network, state, labels in zip(networks, states, (targets or one_hot)(), strict=True)
            ]
            members += [members[-1]] * (size - len(members))
            over = common.mesh("sweep", len(members))
            stacked, labels, temperatures = parallel.stack(members, over)
            epoch_fn = _compiled_epoch(self._batch_size, FLAGS.stacking, over)
            names = [f"{network.folder} {network.role}" for network in networks]
            description = names[0] if len(names) == 1 else f"{len(names)} networks"
            saved = time.monotonic()
            with common.progress(epochs, description, "epoch") as bar:
                bar.update(min(done))
                for epoch in range(min(done) + 1, epochs + 1):
                    # A process may have been killed between the checkpoints of two networks.
                    live = [before < epoch for before in done] + [False] * (len(temperatures) - len(done))
                    stacked, losses = epoch_fn(
                        (images or self._images)(over),
                        stacked,
                        labels,
                        temperatures,
                        parallel.split(np.array(live), over),
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
        directory = self._run.workdir / "checkpoints" / network.folder / network.role
        return runs.Checkpoints(directory, spec), state

    def _warm_started(
        self, networks: list[Network], states: list[training.TrainState], done: list[int]
    ) -> list[training.TrainState]:
        """Gives teachers and students that have not begun the parameters of their common start, where there is one."""
        begun = [
            bool(epoch) or network.role not in ("teacher", "student", "noisy_student")
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
