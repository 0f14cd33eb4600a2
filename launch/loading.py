"""The data of a run: the splits of a recipe, what of it a network can take, and the run of a launcher that trains."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from ddjax import data, defenses, runs, training

from . import common, defending, recipes

FLAGS = flags.FLAGS


def load_split(
    dataset: str, split: str, num_examples: int | None, image_size: int | None, skip: int = 0, seed: int | None = None
) -> data.Dataset:
    """A split of a data set, by the flags that all launchers have.

    Args:
      dataset: its name.
      split: `"train"` or `"test"`.
      num_examples: the size of a subset; None for all.
      image_size: of the images of a folder.
      skip: the first rows that are left out.
      seed: of the subset; default: the flag's.
    """
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
        seed=FLAGS.seed if seed is None else seed,
        skip=skip,
        image_size=image_size,
        class_names=names,
        unreadable=FLAGS.unreadable,
        cache_dir=FLAGS.cache_dir,
        progress=common.progress,
    )


def load_train(dataset: str, recipe: recipes.Recipe, num_examples: int | None, seed: int | None = None) -> data.Dataset:
    """Training images in a recipe's manner. The rows that it skips are those of its own data set."""
    skip = recipe.skip if dataset == recipes.get(recipe.name).dataset else 0
    return load_split(dataset, "train", num_examples, recipe.image_size, skip, seed)


def load_data(recipe: recipes.Recipe) -> tuple[data.Dataset, data.Dataset]:
    """The training and the test set of a recipe, as its transform shows them where it has one."""
    train = load_train(recipe.dataset, recipe, recipe.num_train)
    test = load_split(recipe.dataset, "test", recipe.num_test, recipe.image_size)
    if recipe.transform is None:
        return train, test
    defense = defending.prepared(defenses.parse(recipe.transform, recipe.dataset), train.images)
    return defending.transformed(defense, train), defending.transformed(defense, test)


def check_network(recipe: recipes.Recipe, train: data.Dataset) -> None:
    """Refuses data that the recipe's network cannot take, before anything is written."""
    module = recipes.make_network(recipe, train.num_classes, train.image_shape[2])
    jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *train.image_shape)))
    training.steps_per_epoch(len(train), min(recipe.batch_size, len(train)))


def describe(recipe: recipes.Recipe, train: data.Dataset, test: data.Dataset) -> dict[str, Any]:
    """What determines the numbers beyond the flags: the recipe's settings and the data."""
    settings = dataclasses.asdict(recipe)
    del settings["description"]
    return settings | {
        "class_names": list(train.class_names),
        "image_shape": list(train.image_shape),
        "num_train": len(train),
        "num_test": len(test),
        "train_fingerprint": common.fingerprint(train.images, train.labels),
        "test_fingerprint": common.fingerprint(test.images, test.labels),
    }


def open_training_run(launcher: str, *names: str) -> tuple[runs.Run, recipes.Recipe, data.Dataset, data.Dataset]:
    """The run of a launcher that trains, opened once its flags and its data are known to be good."""
    recipe = common.recipe_from_flags()
    directory, flags_of_run = common.workdir(launcher), common.flags_of_training(*names)
    runs.check_workdir(directory, flags_of_run)
    train, test = load_data(recipe)
    check_network(recipe, train)
    return runs.Run(directory, flags_of_run, describe(recipe, train, test)), recipe, train, test
