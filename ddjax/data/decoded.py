"""Decoded images on disk: a directory with an array for each split, and what they are."""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image, ImageOps

from ddjax.data.dataset import DatasetUnavailableError
from ddjax.progress import Progress, silent

# What is kept in memory before it is written.
_FILES_AT_ONCE = 256
# Another number makes all caches anew: for other pixels from the same files, or another format.
_FORMAT = 2

# Class number and file of each image, by split.
Files = Mapping[str, Sequence[tuple[int, Path]]]


@dataclasses.dataclass(frozen=True)
class Decoded:
    """Decoded images.

    Attributes:
      directory: holds `SPLIT.npy` for each split.
      labels: the class numbers of each split.
      unreadable: files without images, relative to their folder, and why.
      images_per_second: how fast they were decoded.
    """

    directory: Path
    labels: Mapping[str, Int32[np.ndarray, "N"]]
    unreadable: Mapping[str, str]
    images_per_second: float

    def images(self, split: str) -> UInt8[np.memmap, "N size size 3"]:
        """The images of a split, a memory map that cannot be written."""
        return np.lib.format.open_memmap(self.directory / f"{split}.npy", mode="r")


def decode(
    root: Path,
    files: Files,
    classes: Sequence[str],
    *,
    image_size: int,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> Decoded:
    """Decodes images into a cache, or opens the cache of exactly these files, which are below `root`.

    The cache is written beside its place and moved there once it is whole. For the arguments see
    `ddjax.data.folders.load_folder`.

    Raises:
      DatasetUnavailableError: where the cache cannot be written.
    """
    content = hashlib.sha256(json.dumps([_FORMAT, image_size, list(classes)]).encode())
    for split, examples in sorted(files.items()):
        for label, path in examples:
            state = path.stat()
            line = f"\n{split} {label} {path.relative_to(root)} {state.st_size} {state.st_mtime_ns}"
            content.update(line.encode(errors="surrogateescape"))
    place = hashlib.sha256(f"{root.resolve()} {image_size}".encode(errors="surrogateescape")).hexdigest()[:12]
    caches = _caches(cache_dir) / f"{root.resolve().name}-{place}"
    directory = caches / content.hexdigest()[:16]
    found = _read(directory, list(files))
    if found is None:
        _write(root, files, image_size, directory, progress)
        found = _read(directory, list(files))
        if found is None:
            raise _no_cache(caches, "they are damaged as soon as they are written")
        for other in caches.iterdir():
            if other != directory and not other.name.startswith("."):
                shutil.rmtree(other, ignore_errors=True)
    return found


def _caches(cache_dir: str | os.PathLike[str] | None) -> Path:
    """Where the caches of all folders are."""
    default = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "ddjax")
    try:
        return Path(cache_dir or default).expanduser() / "folders"
    except RuntimeError as error:
        raise _no_cache(cache_dir or default, "there is no home directory") from error


def _read(directory: Path, splits: Sequence[str]) -> Decoded | None:
    """The content of a cache; None where it is missing or not whole."""
    try:
        index = json.loads((directory / "index.json").read_text())
        labels = {split: np.array(index["labels"][split], np.int32) for split in splits}
        found = Decoded(directory, labels, index["unreadable"], index["images_per_second"])
        # Opening fails where a file is shorter than its header says.
        whole = all(len(found.images(split)) == len(labels[split]) for split in splits)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if whole else None


def _write(root: Path, files: Files, image_size: int, directory: Path, progress: Progress) -> None:
    total = sum(map(len, files.values()))
    needed = total * 3 * image_size**2
    index: dict[str, Any] = {"root": str(root), "labels": {}, "unreadable": {}}
    started = time.monotonic()
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        room = shutil.disk_usage(directory.parent).free
        if room < needed:
            raise _no_cache(directory.parent, f"{needed / 1e9:.1f} GB are needed, and {room / 1e9:.1f} GB are free")
        with (
            tempfile.TemporaryDirectory(dir=directory.parent, prefix=".decoding-") as staging,
            ThreadPoolExecutor() as pool,
            progress(total, f"decoding {root}", "image") as bar,
        ):
            whole = Path(staging) / "whole"
            whole.mkdir()
            for split, examples in files.items():
                labels = index["labels"][split] = []
                with open(whole / f"{split}.npy", "wb") as file:
                    _write_header(file, 0, image_size)
                    for start in range(0, len(examples), _FILES_AT_ONCE):
                        some = examples[start : start + _FILES_AT_ONCE]
                        images = pool.map(lambda example: decode_image(example[1], image_size), some)
                        for (label, path), image in zip(some, images, strict=True):
                            if isinstance(image, str):
                                index["unreadable"][str(path.relative_to(root))] = image
                            else:
                                file.write(image.tobytes())
                                labels.append(label)
                            bar.update()
                    # How many can be decoded is known now. Headers have room for that.
                    file.seek(0)
                    _write_header(file, len(labels), image_size)
            index["images_per_second"] = total / (time.monotonic() - started)
            (whole / "index.json").write_text(json.dumps(index))
            # Another process may have made the same one meanwhile.
            if _read(directory, list(files)) is None:
                shutil.rmtree(directory, ignore_errors=True)
                os.rename(whole, directory)
    except OSError as error:
        raise _no_cache(directory.parent, str(error)) from error


def _write_header(file: BinaryIO, count: int, size: int) -> None:
    # The file is not written as a memory map, because a full disk ends a process that writes to one.
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size, 3)}
    np.lib.format.write_array_header_1_0(file, header)


def decode_image(path: Path, size: int) -> UInt8[np.ndarray, "size size 3"] | str:
    """The pixels of an image, or why there are none."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                return f"it has more than 8 bits for a pixel (mode {image.mode})"
            upright = ImageOps.exif_transpose(image).convert("RGB")
            return np.asarray(upright.resize((size, size), Image.Resampling.BILINEAR))
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        return str(error).strip() or type(error).__name__


def _no_cache(directory: str | os.PathLike[str], reason: str) -> DatasetUnavailableError:
    return DatasetUnavailableError(f"decoded images cannot be kept in {directory}: {reason}; choose another cache_dir")
