"""Folders of photographs: a directory for each class, images of any format and size.

All images are decoded once, in parallel and to one size, into a cache on disk; see `ddjax.data.decoded`. From there
they are read as a memory map, so that a set may be larger than memory.
"""

import dataclasses
import functools
import hashlib
import mimetypes
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image

from ddjax.checks import check_choice, listed
from ddjax.data import decoded
from ddjax.data.dataset import Dataset, DatasetUnavailableError, check_split, declare, from_arrays, stratified
from ddjax.progress import Progress, silent

# The directories of Animals-10 (kaggle.com/datasets/alessiocorrado99/animals10) have Italian names.
_ITALIAN = "farfalla gatto gallina mucca cane elefante cavallo pecora ragno scoiattolo"
_ENGLISH = "butterfly cat chicken cow dog elephant horse sheep spider squirrel"
ANIMALS10: Mapping[str, str] = MappingProxyType(dict(zip(_ITALIAN.split(), _ENGLISH.split(), strict=True)))
UNREADABLE = ("refuse", "skip")
_TEST_SHARE = 0.2
# Names of directories that hold a split, in any case of letters.
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_SPLITS |= dict.fromkeys(("val", "valid", "validation"), "validation")


class UnreadableImageError(ValueError):
    """A folder holds files that should be images and are not."""


def load_folder(
    path: str | os.PathLike[str],
    split: str,
    *,
    image_size: int | None = None,
    class_names: Mapping[str, str] | None = None,
    unreadable: str = "refuse",
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> Dataset:
    """Opens a folder of photographs.

    The folder holds a directory for each class, or a directory for each split that holds them. A class has all images
    below its directory, at any depth. Splits are recognized by their names in any case of letters: `train` or
    `training`; `test` or `testing`; `val`, `valid` or `validation`.

    - With `train` and `test`, and perhaps `val`, these are the splits "train", "test" and "validation".
    - With `train` and `val` alone, the validation images are the split "validation". They also serve as "test", with a
      warning that says so.
    - With `train` alone, or without directories of splits, a fifth of the files of each class are "test". They are
      drawn by their names alone.

    Hidden files and directories and `__MACOSX` are ignored, and so are files that are no images by their extension. An
    image is turned as its EXIF data say, resized to a square whatever its ratio of sides, and made RGB.

    Args:
      path: the folder.
      split: "train", "test" or, where there is one, "validation".
      image_size: height and width in pixels; it must be given.
      class_names: from directories to names of classes. By default the names of Animals-10 are translated to English,
        and others are taken as they are. Classes are numbered in the order of their names.
      unreadable: of files that cannot be decoded, "refuse" raises an error that names them, "skip" leaves them out and
        warns.
      cache_dir: where decoded images are kept, `3 image_size^2` bytes for each; default: `ddjax` in XDG_CACHE_HOME or
        in `~/.cache`. When the content of the folder changes, the new cache replaces the old one.
      progress: shows how many images are decoded.

    Returns:
      The split, its classes mixed. Its images are a memory map, on disk until they are used. The validation images that
      serve as "test" keep "validation" as the name of their split.

    Raises:
      ValueError: for an unknown split, `unreadable` or class name, an impossible size, directories that cannot be
        understood, or a class with too few images.
      UnreadableImageError: for files that cannot be decoded.
      DatasetUnavailableError: where there is no such folder, or no room for the cache.
    """
    check_choice("way with unreadable images", unreadable, UNREADABLE)
    name = f"folder:{path}"
    if image_size is None:
        raise ValueError(f"{name}: photographs are resized to one size, which must be given (image_size)")
    if image_size < 1:
        raise ValueError(f"the image size must be at least 1, got {image_size}")
    root = _open(path)
    classes, files = _find(root, class_names)
    if split == "test" and "test" not in files and "validation" in files:
        warnings.warn(
            f"{root} has no directory of test images; its validation images are the test images", stacklevel=2
        )
        split = "validation"
    check_split(name, split, list(files))
    cache = decoded.decode(root, files, classes, image_size=image_size, cache_dir=cache_dir, progress=progress)
    if cache.unreadable:
        bad = listed([f"{path} ({reason})" for path, reason in cache.unreadable.items()], "; ")
        message = f"{len(cache.unreadable)} of {sum(map(len, files.values()))} images in {root} cannot be read: {bad}"
        if unreadable == "refuse":
            raise UnreadableImageError(f"{message}\nRemove them, or leave them out with unreadable=skip")
        warnings.warn(f"{message}; they are left out", stacklevel=2)
    for number, class_name in enumerate(classes):
        if number not in cache.labels[split]:
            raise ValueError(f"{root}: there is no readable image of class {class_name!r} for split {split!r}")
    whole = from_arrays(name, split, cache.images(split), cache.labels[split], classes)
    return dataclasses.replace(whole, decoded_per_second=cache.images_per_second)


def _open(path: str | os.PathLike[str]) -> Path:
    """The folder, which is there."""
    try:
        root = Path(path).expanduser()
    except RuntimeError as error:
        raise DatasetUnavailableError(f"there is no home directory for {path}: give the whole path") from error
    if not root.is_dir():
        raise DatasetUnavailableError(
            f"there is no folder {root}: folder:PATH takes one that holds a directory of images for each class "
            "(Animals-10: `kaggle datasets download alessiocorrado99/animals10 --unzip`, then folder:raw-img)"
        )
    return root


# The class and the file of an image, and what it is called wherever the folder is.
_Found = tuple[int, Path, str]


def _find(root: Path, class_names: Mapping[str, str] | None) -> tuple[list[str], dict[str, list[tuple[int, Path]]]]:
    """The names of the classes, and class number and file for each image of each split."""
    directories = {split: _class_directories(path) for split, path in _split_directories(root).items()}
    folders = sorted({folder for part in directories.values() for folder in part})
    names = _names_of(root, folders, class_names)
    classes = sorted(names.values())
    found: dict[str, list[_Found]] = {}
    for split, part in directories.items():
        found[split], least = [], 1 if split else 2
        for folder, name in names.items():
            paths = _images(part[folder]) if folder in part else []
            if len(paths) < least:
                where = f" for split {split!r}" if split else ""
                raise ValueError(
                    f"{root}: class {folder!r} has {len(paths)} images{where}; at least {least} are needed"
                )
            for path in paths:
                called = f"{name}/{path.relative_to(part[folder]).as_posix()}"
                found[split].append((classes.index(name), path, called))
    if "" in found:
        found = _divided(found[""])
    # Mixed, because the first examples of a set should be of all classes; by name, which is the same everywhere.
    place = lambda image: hashlib.sha256(image[2].encode(errors="surrogateescape")).digest()
    return classes, {
        split: [(number, path) for number, path, _ in sorted(images, key=place)] for split, images in found.items()
    }


def _names_of(root: Path, folders: list[str], class_names: Mapping[str, str] | None) -> dict[str, str]:
    """The name of the class of each directory."""
    if len(folders) < 2:
        there = f"{folders[0]}; if the classes are below it, name that directory" if folders else "none"
        raise ValueError(f"{root} must hold a directory of images for each of at least two classes, found {there}")
    if class_names is None:
        class_names = ANIMALS10 if set(folders) <= set(ANIMALS10) else {}
    elif set(class_names) - set(folders):
        unknown = ", ".join(sorted(set(class_names) - set(folders)))
        raise ValueError(f"{root} has no directory {unknown} to name; it has {', '.join(folders)}")
    names = {folder: class_names.get(folder, folder) for folder in folders}
    if len(set(names.values())) < len(folders):
        raise ValueError(f"{root}: two directories would have one class name: {names}")
    return names


def _divided(images: list[_Found]) -> dict[str, list[_Found]]:
    """A training and a test split; at least one image of each class is in the latter."""
    labels = np.array([number for number, _, _ in images])
    count = max(round(_TEST_SHARE * len(images)), len(np.unique(labels)))
    chosen = set(stratified(labels, count, seed=0).tolist())
    return {
        split: [image for row, image in enumerate(images) if (row in chosen) == (split == "test")]
        for split in ("train", "test")
    }


def _split_directories(root: Path) -> dict[str, Path]:
    """The directory of each split; that of all classes under `""` where no more than the training split is named."""
    below = _directories(root)
    named = _named_splits(below)
    others = [name for name in below if name not in named]
    if others and named:
        # One class may be called "train". Then it holds images, while a split holds classes.
        if len(named) > 1 or any(_directories(below[name]) for name in named):
            raise ValueError(
                f"{root} holds {listed(named)}, which name splits, beside {listed(others)}, which do not: it must "
                "hold either one directory for each split, with the classes in them, or one for each class"
            )
        named = {}
    if not named:
        return {"": root}
    found: dict[str, Path] = {}
    for name, split in named.items():
        if split in found:
            raise ValueError(f"{root} holds two directories for split {split!r}: {found[split].name} and {name}")
        found[split] = below[name]
    if "train" not in found:
        raise ValueError(f"{root} holds {listed(named)}, but no directory train")
    return found if len(found) > 1 else {"": found["train"]}


def _class_directories(directory: Path) -> dict[str, Path]:
    """The directory of each class below that of a split."""
    below = _directories(directory)
    loose = [path.name for path in directory.iterdir() if _is_image(path)]
    if loose and not below:
        raise ValueError(f"{directory} holds images, but no directory for each class")
    if loose:
        warnings.warn(
            f"{len(loose)} images in {directory} are in no directory of a class and are left out, such as {loose[0]}",
            stacklevel=4,
        )
    for path in below.values():
        inner = _named_splits(_directories(path))
        if len(set(inner.values())) > 1:
            raise ValueError(f"{path} holds {listed(inner)}, which name splits: splits must stand above the classes")
    return below


def _named_splits(names: Iterable[str]) -> dict[str, str]:
    """Those names of directories that name a split, and which."""
    return {name: _SPLITS[name.casefold()] for name in names if name.casefold() in _SPLITS}


def _directories(root: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(root.iterdir()) if path.is_dir() and not _is_ignored(path.name)}


def _images(directory: Path) -> list[Path]:
    """All images below a directory, in the order of their paths."""
    found, seen = [], set()
    for place, names, files in os.walk(directory, onerror=_raise, followlinks=True):
        # Links may lead in a circle.
        here = os.path.realpath(place)
        names[:] = [name for name in names if not _is_ignored(name)] if here not in seen else []
        if here not in seen:
            found += filter(_is_image, (Path(place, name) for name in files))
        seen.add(here)
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def _is_ignored(name: str) -> bool:
    # The second is what macOS puts into archives.
    return name.startswith(".") or name == "__MACOSX"


def _is_image(path: Path) -> bool:
    """Whether a file is an image by its extension, also if Pillow cannot read it: what is left out must be told."""
    kind = _TYPES.guess_type(path.name, strict=False)[0] or ""
    known = path.suffix.lower() in _readable_extensions() or kind.startswith("image/")
    return known and not _is_ignored(path.name) and path.is_file()


# Without the lists of the system, which differ.
_TYPES = mimetypes.MimeTypes()


@functools.cache
def _readable_extensions() -> frozenset[str]:
    return frozenset(extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN)


DATASETS = (declare(load_folder, name="folder", takes_path=True),)
