"""Folders of photographs: a directory for each class, images of any format and size.

All images are decoded once, in parallel and to one size, into a cache on disk. From there they are read as a memory
map, so that a set may be larger than memory; `Batches` reads it ahead of a training.
"""

import collections
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageOps
from tqdm import tqdm

from ddjax import data, parallel

# The Italian names of the directories of Animals-10 (kaggle.com/datasets/alessiocorrado99/animals10).
ANIMALS10: Mapping[str, str] = MappingProxyType(
    {
        "farfalla": "butterfly",
        "gatto": "cat",
        "gallina": "chicken",
        "mucca": "cow",
        "cane": "dog",
        "elefante": "elephant",
        "cavallo": "horse",
        "pecora": "sheep",
        "ragno": "spider",
        "scoiattolo": "squirrel",
    }
)
UNREADABLE = ("refuse", "skip")
_TEST_SHARE = 0.2
# Directories that hold a split rather than a class.
_SPLITS = {"train": ("train", "training"), "test": ("test", "val", "valid", "validation")}
# What is kept in memory before it is written.
_FILES_AT_ONCE = 256
_MOST_NAMED = 10
# To be raised when other pixels come out of the same files.
_FORMAT = 1


class UnreadableImageError(ValueError):
    """A folder holds files that should be images and are not."""


def load(
    name: str,
    split: str,
    *,
    image_size: int,
    class_names: Mapping[str, str] | None = None,
    unreadable: str = "refuse",
    cache_dir: str | os.PathLike[str] | None = None,
) -> data.Dataset:
    """Opens a folder of photographs.

    A directory `train` beside one `test` (or `val`) holds the split; else a fifth of each class's files, drawn by their
    names alone, are the test set. Files that begin with a dot, and those whose extension Pillow does not know, are no
    images. An image is turned as its EXIF data say, resized to a square whatever its ratio of sides, and made RGB.

    Args:
      name: `"folder:PATH"`.
      split: `"train"` or `"test"`.
      image_size: height and width in pixels.
      class_names: from directories to names of classes; by default Animals-10's names are translated to English, and
        others are taken as they are. Classes are numbered in the order of their names.
      unreadable: of files that cannot be decoded, `"refuse"` raises an error that names them, `"skip"` leaves them out
        and warns.
      cache_dir: where decoded images are kept, `3 image_size^2` bytes for each; default: `ddjax` in XDG_CACHE_HOME or
        in `~/.cache`. Another content of the folder takes the place of the one before.

    Returns:
      The split, its classes mixed. Its images are a memory map, on disk until they are used.

    Raises:
      ValueError: for an unknown split, `unreadable` or class name, an impossible size, or a class of too few images.
      UnreadableImageError: for files that cannot be decoded.
      data.DatasetUnavailableError: where there is no such folder, or no room for the cache.
    """
    data.check_split(name, split, list(_SPLITS))
    if unreadable not in UNREADABLE:
        raise ValueError(f"unknown way with unreadable images {unreadable!r}; known: {', '.join(UNREADABLE)}")
    if image_size < 1:
        raise ValueError(f"the image size must be at least 1, got {image_size}")
    root = Path(name.removeprefix(data.FOLDER)).expanduser()
    if not root.is_dir():
        raise data.DatasetUnavailableError(
            f"there is no folder {root}: --dataset=folder:PATH takes one that holds a directory of images for each "
            "class (Animals-10: `kaggle datasets download alessiocorrado99/animals10 --unzip`, then folder:raw-img)"
        )
    classes, files = _find(root, class_names)
    cache = _cached(root, classes, files, image_size, cache_dir)
    bad = cache.index["unreadable"]
    if bad:
        message = f"{len(bad)} of {sum(map(len, files.values()))} images in {root} cannot be read: {_listed(bad)}"
        if unreadable == "refuse":
            raise UnreadableImageError(f"{message}\nRemove them, or leave them out with --unreadable=skip")
        warnings.warn(f"{message}; they are left out", stacklevel=2)
    labels = np.array(cache.index["labels"][split], np.int32)
    for number, class_name in enumerate(classes):
        if number not in labels:
            raise ValueError(f"{root}: there is no readable image of class {class_name!r} for split {split!r}")
    shape = (len(labels), image_size, image_size, 3)
    images = np.memmap(cache.directory / split, np.uint8, "r", shape=shape)
    rate = cache.index["images_per_second"]
    return data.Dataset(name, split, images, labels, np.arange(len(labels), dtype=np.int32), tuple(classes), rate)


def _find(root: Path, class_names: Mapping[str, str] | None) -> tuple[list[str], dict[str, list[tuple[int, Path]]]]:
    """The names of the classes, and class number and file for each image of each split."""
    below = _directories(root)
    given = {split: [below[name] for name in names if name in below] for split, names in _SPLITS.items()}
    if all(given.values()) and sum(map(len, given.values())) == len(below):
        directories = {split: [_directories(path) for path in paths] for split, paths in given.items()}
    else:
        directories = {"": [below]}
    folders = sorted({folder for parts in directories.values() for part in parts for folder in part})
    if len(folders) < 2:
        raise ValueError(f"{root} must hold a directory of images for each of at least two classes, found {folders}")
    if class_names is None:
        class_names = ANIMALS10 if set(folders) <= set(ANIMALS10) else {}
    elif set(class_names) - set(folders):
        unknown = ", ".join(sorted(set(class_names) - set(folders)))
        raise ValueError(f"{root} has no directory {unknown} to name; it has {', '.join(folders)}")
    names = {folder: class_names.get(folder, folder) for folder in folders}
    classes = sorted(set(names.values()))
    if len(classes) < len(folders):
        raise ValueError(f"{root}: two directories would have one class name: {names}")
    Image.init()
    known = {extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found = {
        split: [
            (classes.index(names[folder]), path)
            for part in parts
            for folder in sorted(part)
            for path in sorted(part[folder].iterdir())
            if path.suffix.lower() in known and not path.name.startswith(".") and path.is_file()
        ]
        for split, parts in directories.items()
    }
    for folder in folders:
        number = classes.index(names[folder])
        for split, examples in found.items():
            count = sum(label == number for label, _ in examples)
            if count < (1 if split else 2):
                raise ValueError(
                    f"{root}: class {folder!r} has {count} images{f' for split {split!r}' if split else ''}; "
                    f"at least {1 if split else 2} are needed"
                )
    if "" in found:
        examples = found[""]
        chosen = set(_test_positions(np.array([label for label, _ in examples])).tolist())
        found = {
            "train": [example for row, example in enumerate(examples) if row not in chosen],
            "test": [example for row, example in enumerate(examples) if row in chosen],
        }

    def place(example: tuple[int, Path]) -> bytes:
        label, path = example
        return hashlib.sha256(f"{classes[label]}/{path.name}".encode(errors="surrogateescape")).digest()

    # Mixed, since the first examples of a set should be of all classes; by name, since that is the same everywhere.
    return classes, {split: sorted(examples, key=place) for split, examples in found.items()}


def _directories(root: Path) -> dict[str, Path]:
    return {path.name: path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}


def _test_positions(labels: Int[np.ndarray, " N"]) -> Int[np.ndarray, " n"]:
    count = max(round(_TEST_SHARE * len(labels)), len(np.unique(labels)))
    return data.stratified(labels, count, seed=0)


@dataclasses.dataclass(frozen=True)
class _Cache:
    """Decoded images: a directory with the bytes of each split, and what they are."""

    directory: Path
    index: dict[str, Any]


def _cached(
    root: Path,
    classes: Sequence[str],
    files: Mapping[str, Sequence[tuple[int, Path]]],
    image_size: int,
    cache_dir: str | os.PathLike[str] | None,
) -> _Cache:
    """The cache of a folder, made where there is none of exactly these files."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddjax"
    parent = Path(cache_dir or caches).expanduser() / "folders"
    content = hashlib.sha256(json.dumps([_FORMAT, image_size, list(classes)]).encode())
    for split, examples in sorted(files.items()):
        for label, path in examples:
            state = path.stat()
            line = f"\n{split} {label} {path.relative_to(root)} {state.st_size} {state.st_mtime_ns}"
            content.update(line.encode(errors="surrogateescape"))
    place = hashlib.sha256(f"{root.resolve()} {image_size}".encode(errors="surrogateescape")).hexdigest()[:12]
    directory = parent / f"{root.resolve().name}-{place}" / content.hexdigest()[:16]
    index = _read_index(directory, image_size)
    if index is None:
        index = _decode_all(root, files, image_size, directory)
        for other in directory.parent.iterdir():
            if other != directory and not other.name.startswith("."):
                shutil.rmtree(other, ignore_errors=True)
    return _Cache(directory, index)


def _read_index(directory: Path, image_size: int) -> dict[str, Any] | None:
    """What a cache holds; None where it is missing or not whole."""
    try:
        index = json.loads((directory / "index.json").read_text())
        for split in _SPLITS:
            if (directory / split).stat().st_size != len(index["labels"][split]) * 3 * image_size**2:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return index


def _decode_all(
    root: Path, files: Mapping[str, Sequence[tuple[int, Path]]], image_size: int, directory: Path
) -> dict[str, Any]:
    """Writes a cache beside its place and moves it there once it is whole."""
    total = sum(map(len, files.values()))
    needed = total * 3 * image_size**2
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        room = shutil.disk_usage(directory.parent).free
    except OSError as error:
        raise _no_cache(directory.parent, str(error)) from error
    if room < needed:
        raise _no_cache(directory.parent, f"it needs {needed / 1e9:.1f} GB, and {room / 1e9:.1f} GB are free")
    index: dict[str, Any] = {"root": str(root), "labels": {}, "unreadable": {}}
    started = time.monotonic()
    try:
        with (
            tempfile.TemporaryDirectory(dir=directory.parent, prefix=".decoding-") as staging,
            ThreadPoolExecutor(parallel.cores()) as pool,
            tqdm(total=total, desc=f"decoding {root}", unit="image", leave=False, disable=None) as bar,
        ):
            whole = Path(staging) / "whole"
            whole.mkdir()
            for split, examples in files.items():
                labels = index["labels"][split] = []
                with open(whole / split, "wb") as file:
                    for start in range(0, len(examples), _FILES_AT_ONCE):
                        some = examples[start : start + _FILES_AT_ONCE]
                        decoded = pool.map(lambda example: _decode(example[1], image_size), some)
                        for (label, path), image in zip(some, decoded, strict=True):
                            if isinstance(image, str):
                                index["unreadable"][str(path.relative_to(root))] = image
                            else:
                                file.write(image.tobytes())
                                labels.append(label)
                            bar.update()
            index["images_per_second"] = total / (time.monotonic() - started)
            (whole / "index.json").write_text(json.dumps(index))
            # Another process may have made the same one meanwhile.
            if _read_index(directory, image_size) is None:
                shutil.rmtree(directory, ignore_errors=True)
                os.rename(whole, directory)
    except OSError as error:
        raise _no_cache(directory.parent, str(error)) from error
    return index


def _decode(path: Path, size: int) -> UInt8[np.ndarray, "size size 3"] | str:
    """The pixels of an image, or why there are none."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                return f"it has more than 8 bits for a pixel (mode {image.mode})"
            upright = ImageOps.exif_transpose(image).convert("RGB")
            return np.asarray(upright.resize((size, size), Image.Resampling.BILINEAR))
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        return str(error).strip() or type(error).__name__


def _no_cache(directory: Path, reason: str) -> data.DatasetUnavailableError:
    return data.DatasetUnavailableError(
        f"decoded images cannot be kept in {directory}: {reason}; choose another --cache_dir"
    )


def _listed(bad: Mapping[str, str]) -> str:
    named = [f"{path} ({reason})" for path, reason in list(bad.items())[:_MOST_NAMED]]
    return "; ".join(named + ([f"and {len(bad) - _MOST_NAMED} more"] if len(bad) > _MOST_NAMED else []))


class Batches:
    """Batches of images that are on disk, read ahead on threads.

    Attributes:
      images_read: how many so far.
      seconds_reading: what reading them took, on all threads together.
    """

    def __init__(self, images: UInt8[np.ndarray, "N H W C"], *, ahead: int = 2) -> None:
        """Takes the images and how many batches to hold in memory beside the one in use."""
        self._images, self._ahead = images, ahead
        self.images_read, self.seconds_reading = 0, 0.0

    def read(self, rows: Iterable[Int[np.ndarray, "..."]]) -> Iterator[UInt8[np.ndarray, "... H W C"]]:
        """Yields the images at each of some arrays of positions, in their order."""
        under_way: collections.deque[Future[np.ndarray]] = collections.deque()
        with ThreadPoolExecutor(self._ahead) as pool:
            for some in rows:
                under_way.append(pool.submit(self._read, some))
                if len(under_way) > self._ahead:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()

    def _read(self, rows: np.ndarray) -> np.ndarray:
        started = time.monotonic()
        images = np.asarray(self._images[rows])
        self.seconds_reading += time.monotonic() - started
        self.images_read += rows.size
        return images
