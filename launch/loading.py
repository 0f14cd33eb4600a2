"""The data of a run, and how the launchers begin that train networks."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from ddjax import data, defenses, parallel, runs, training

from . import common, defending, recipes

FLAGS = flags.FLAGS


def load_split(
    dataset: str,
    split: str,
    num_examples: int | None,
    image_size: int | None,
    skip: int = 0,
    seed: int | None = None,
    at_most: bool = False,
) -> data.Dataset:
    """A split of a data set, by the flags that all launchers have; see `data.load`. The flag's seed is the default."""
    names = None
    if FLAGS.class_names is not None:
        pairs = [text.split("=") for text in FLAGS.class_names]
        if not all(len(pair) == 2 and all(pair) for pair in pairs):
            raise ValueError(f"--class_names must be DIRECTORY=NAME,..., got {','.join(FLAGS.class_names)}")
        names = dict(pairs)
    return data.load(
        dataset,
        split,
        data_dir=FLAGS.data_dir,
        num_examples=num_examples,
        at_most=at_most,
        seed=FLAGS.seed if seed is None else seed,
        skip=skip,
        image_size=image_size,
        class_names=names,
        unreadable=FLAGS.unreadable,
        cache_dir=FLAGS.cache_dir,
        progress=common.progress,
    )


def size_of(image_shape: tuple[int, ...]) -> int | None:
    """The size to which images are brought for a network: that of square ones, and None for other inputs."""
    is_square = len(image_shape) == 3 and image_shape[0] == image_shape[1]
    return image_shape[0] if is_square else None


def load_train(
    dataset: str, recipe: recipes.Recipe, num_examples: int | None, seed: int | None = None, at_most: bool = False
) -> data.Dataset:
    """Training inputs in a recipe's manner. The rows that it skips are those of its own data set."""
    skip = recipe.skip if dataset == recipes.get(recipe.name).dataset else 0
    return load_split(dataset, "train", num_examples, recipe.image_size, skip, seed, at_most)


def load_data(recipe: recipes.Recipe) -> tuple[data.Dataset, data.Dataset]:
    """The training and the test set of a recipe, as its transform shows them where it has one."""
    train = load_train(recipe.dataset, recipe, recipe.num_train)
    test = load_split(recipe.dataset, "test", recipe.num_test, recipe.image_size)
    if recipe.transform is None:
        return train, test
    defense = defending.prepared(defenses.parse(recipe.transform, recipe.dataset), train.images)
    return defending.transformed(defense, train), defending.transformed(defense, test)


@dataclasses.dataclass(frozen=True)
class Beginning:
    """A run that trains before anything is written: the rest of what a user gave can still be refused.

    Attributes:
      workdir: of the run.
      flags: that determine its numbers.
      recipe: with the flags' replacements.
      train: the training set.
      test: the test set.
    """

    workdir: pathlib.Path
    flags: dict[str, Any]
    recipe: recipes.Recipe
    train: data.Dataset
    test: data.Dataset

    def open(self, **resolved: Any) -> runs.Run:
        """Opens the run; `config.json` has what determines the numbers, and what else is given here."""
        settings = dataclasses.asdict(self.recipe)
        del settings["description"]
        settings |= {
            "class_names": list(self.train.class_names),
            "image_shape": list(self.train.image_shape),
            **({"feature_names": list(self.train.feature_names)} if self.train.feature_names else {}),
            "num_train": len(self.train),
            "num_test": len(self.test),
            "train_fingerprint": common.fingerprint(self.train.images, self.train.labels),
            "test_fingerprint": common.fingerprint(self.test.images, self.test.labels),
        }
        return runs.Run(self.workdir, self.flags, settings | resolved)


def begin(workdir: pathlib.Path, flags_of_run: dict[str, Any]) -> Beginning:
    """Loads the flags' recipe and its data; refuses a directory of another run, and data that the network cannot take.

    Args:
      workdir: of the run.
      flags_of_run: the flags that determine its numbers.
    """
    recipe = common.recipe_from_flags()
    runs.check_workdir(workdir, flags_of_run)
    train, test = load_data(recipe)
    module = recipes.make_network(recipe, train.num_classes, train.image_shape[-1])
    jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *train.image_shape)))
    training.steps_per_epoch(len(train), min(recipe.batch_size, len(train)))
    return Beginning(workdir, flags_of_run, recipe, train, test)


def trainer_of(run: runs.Run, recipe: recipes.Recipe, train: data.Dataset, folder: str = "") -> training.Trainer:
    """What trains the networks of a run by the flags; `folder` tells several networks of one role apart."""
    return training.Trainer(
        run.workdir / "checkpoints" / folder,
        recipes.make_settings(recipe, train.num_classes, train.image_shape[-1]),
        train,
        stacking=FLAGS.stacking,
        checkpoint_seconds=FLAGS.checkpoint_seconds,
        progress=common.progress,
        evaluator=parallel.Evaluator(FLAGS.batch_size),
    )
