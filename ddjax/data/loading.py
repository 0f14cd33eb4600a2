"""Loading a split of a data set by its name."""

import dataclasses
import functools
import inspect
import os
from collections.abc import Mapping
from typing import Any

from ddjax.data.dataset import SOURCES, Dataset, choose, read_split, rows_of
from ddjax.data.tfds import load_tfds
from ddjax.progress import Progress, silent
from ddjax.registry import read_settings, settings_of


def load(
    name: str,
    split: str,
    *,
    num_examples: int | None = None,
    at_most: bool = False,
    seed: int = 0,
    skip: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    class_names: Mapping[str, str] | None = None,
    unreadable: str = "refuse",
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> Dataset:
    """Loads a split, or a stratified subset of it.

    Args:
      name: "digits" (embedded in scikit-learn, 8x8 gray, 1797 images); "breast_cancer" and "wine", tables that are
        embedded there, too; "npz:PATH", arrays in a file (see `ddjax.data.npz.load_npz`); "folder:PATH", a directory
        for each class (see `ddjax.data.folders.load_folder`); another registered set; the import path of a set that a
        module declares, "package.module:name", perhaps with settings, "package.module:name:key=value"; or else an
        image-classification set of tensorflow-datasets, such as "mnist" or "cifar10". All but a whole folder come into
        memory.
      split: "train" or "test", or another split that the set has, or a slice of one, such as "train[90%:]"; see
        `ddjax.data.dataset.read_split`. Of a set of tensorflow-datasets without "test" it is the split "validation" or,
        where there is one split alone, a fifth of that, drawn at random; "train" is then the rest.
      num_examples: the size of the subset, from one for each class to the number of rows after `skip`; None for all.
      at_most: whether a split that has fewer rows than `num_examples` is taken whole, and not refused.
      seed: chooses the subset, 0 or more; the splits themselves do not depend on it.
      skip: the first rows of the split that are left out before the subset is chosen.
      data_dir: the directory of the prepared sets of tensorflow-datasets; default: the environment variable
        TFDS_DATA_DIR, then the default of tensorflow-datasets. Reading never writes to it; preparing a set that is
        missing does.
      image_size: height and width to which images of a folder are resized, and those of a set of tensorflow-datasets
        whose images have several sizes; both need it.
      class_names: from directories of a folder to names of classes.
      unreadable: what to do with images of a folder that cannot be decoded, "refuse" or "skip".
      cache_dir: where decoded images of a folder are kept.
      progress: shows the progress; see `ddjax.progress`.

    Returns:
      The examples in the order of the split.

    Raises:
      ValueError: if the name, the split, a setting or a number is wrong, or the set is no image classification.
      DatasetUnavailableError: if the set is not on this machine and cannot be prepared here, is damaged, or a folder
        cannot be decoded.
    """
    chosen = functools.partial(choose, num_examples=num_examples, seed=seed, skip=skip, at_most=at_most)
    base, rest = SOURCES.split(name)
    if base not in SOURCES and ":" not in base:
        return load_tfds(name, split, chosen, data_dir=data_dir, image_size=image_size, progress=progress)
    options: dict[str, Any] = {
        "data_dir": data_dir,
        "image_size": image_size,
        "class_names": class_names,
        "unreadable": unreadable,
        "cache_dir": cache_dir,
        "progress": progress,
    }
    split_name, sliced = read_split(split)
    whole = _load_whole(base, name, split_name, rest, options)
    if sliced is not None:
        whole = dataclasses.replace(rows_of(whole, sliced(len(whole))), split=split)
    positions = chosen(len(whole), lambda rows: whole.labels[rows])
    # A slice of images on disk stays on disk.
    return rows_of(whole, slice(skip, None) if num_examples is None else positions)


def _load_whole(base: str, name: str, split: str, rest: str, options: Mapping[str, Any]) -> Dataset:
    """The whole split of a declared set; `rest` is what stands behind its name, a path or settings."""
    source = SOURCES.find(base)
    arguments, settings = (split,), {}
    if source.takes_path:
        if not rest:
            raise ValueError(f"data set {name!r} needs a path, as in {base}:PATH")
        arguments = (rest, split)
    else:
        settings = read_settings("dataset", base, rest, settings_of(source.load, tuple(options)))
    taken = inspect.signature(source.load).parameters
    whole = source.load(*arguments, **{key: value for key, value in options.items() if key in taken}, **settings)
    if not isinstance(whole, Dataset):
        raise ValueError(f"data set {name!r} must be loaded as a ddjax.data.Dataset, got {type(whole).__name__}")
    return dataclasses.replace(whole, name=name)
