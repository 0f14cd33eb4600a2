"""Image-classification data as plain arrays: the embedded digits, any set of tensorflow-datasets, folders of images.

A prepared set is read as a random-access source, which needs no TensorFlow; only preparing one does. Folders are
`ddjax.folders`.
"""

import contextlib
import dataclasses
import difflib
import importlib.util
import io
import os
import re
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Int, Int32, UInt8
from PIL import Image
from tqdm import tqdm

from ddjax.rounding import to_float as to_float

ArrayT = TypeVar("ArrayT", np.ndarray, jax.Array)

DIGITS = "digits"
# What the name of a folder of images begins with.
FOLDER = "folder:"
_DIGITS_TEST_EXAMPLES = 450
_ROWS_PER_READ = 1024
_PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class DatasetUnavailableError(RuntimeError):
    """A known data set is not prepared on this machine and could not be prepared here."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels of one split, or of a subset of it.

    Attributes:
      name: The data set's name, as given to `load`.
      split: The split's name, such as "train" or "test".
      images: The images, 0..255; where they are on disk, a memory map.
      labels: Class numbers, 0..num_classes-1.
      indices: Each example's position in the full split, its identity: random keys are derived from it.
      class_names: The classes' names, in the order of their numbers.
      decoded_per_second: How many images were decoded in a second when a folder was; None for other sets.
    """

    name: str
    split: str
    images: UInt8[np.ndarray, "N H W C"]
    labels: Int32[np.ndarray, "N"]
    indices: Int32[np.ndarray, "N"]
    class_names: tuple[str, ...]
    decoded_per_second: float | None = None

    @property
    def on_disk(self) -> bool:
        """Whether the images are read when they are used."""
        return isinstance(self.images, np.memmap)

    @property
    def num_classes(self) -> int:
        """The number of classes, present in this subset or not."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    def __len__(self) -> int:
        return len(self.labels)


def load(
    name: str,
    split: str,
    *,
    data_dir: str | None = None,
    num_examples: int | None = None,
    seed: int = 0,
    skip: int = 0,
    folder: Mapping[str, Any] | None = None,
) -> Dataset:
    """Loads a split, or a stratified subset of it.

    Args:
      name: "digits" (embedded in scikit-learn, 8x8 gray, 1797 images), an image-classification set of
          tensorflow-datasets, such as "mnist" or "cifar10", or "folder:PATH", a directory for each class. All but a
          whole folder come into memory.
      split: "train" or "test", or another split the set has.
      data_dir: Folder of the prepared sets; None means the environment variable TFDS_DATA_DIR, then the default of
          tensorflow-datasets. Reading never writes to it; preparing a set that is missing does.
      num_examples: Size of the subset, from one per class to the number of rows after `skip`; None takes all of them.
      seed: Chooses the subset, 0 or more; the splits themselves do not depend on it.
      skip: Rows dropped from the start of the split before the subset is chosen, in the order of the prepared set.
      folder: Keyword arguments of `ddjax.folders.load`, at least `image_size`; for other sets they are ignored.

    Returns:
      The examples in the order of the split.

    Raises:
      ValueError: If the name, the split or a number is out of range, or the set is no image classification.
      DatasetUnavailableError: If the set is not prepared and cannot be prepared here, or the folder not decoded.
    """
    if name.startswith(FOLDER):
        return _load_folder(name, split, num_examples, seed, skip, folder or {})
    if name == DIGITS:
        return _load_digits(split, num_examples, seed, skip)
    return _load_tfds(name, split, data_dir, num_examples, seed, skip)


def stratified(labels: Int[np.ndarray, "N"], num_examples: int, seed: int) -> Int[np.ndarray, "n"]:
    """Draws a subset that keeps the classes' shares (largest remainder, and at least one of each class).

    Args:
      labels: Class numbers.
      num_examples: Size of the subset, from the number of classes present to N.
      seed: Seed of the draw, 0 or more; the same one draws the same subset on every platform.

    Returns:
      Sorted positions in `labels`.

    Raises:
      ValueError: If the size is out of range.
    """
    labels = np.asarray(labels)
    _check_num_examples(num_examples, len(labels))
    classes, counts = np.unique(labels, return_counts=True)
    if num_examples < len(classes):
        raise ValueError(f"num_examples is {num_examples}, fewer than one for each of {len(classes)} classes")
    # Whole numbers throughout: shares are compared as (exact share - taken) * N, so no rounding can break a tie.
    shares = counts.astype(np.int64) * int(num_examples)
    taken = np.maximum(shares // len(labels), 1)
    while taken.sum() < num_examples:
        taken[np.argmax(shares - taken * len(labels))] += 1
    while taken.sum() > num_examples:
        surplus = np.where(taken > 1, taken * len(labels) - shares, np.iinfo(np.int64).min)
        taken[np.argmax(surplus)] -= 1
    rng = np.random.Generator(np.random.PCG64(seed))
    # Sorting random doubles rather than Generator.permutation: its integer draws may change between NumPy releases.
    chosen = [
        np.flatnonzero(labels == label)[np.argsort(rng.random(count), kind="stable")[:take]]
        for label, count, take in zip(classes, counts, taken, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def _check_num_examples(num_examples: int, available: int) -> None:
    if not 0 < num_examples <= available:
        raise ValueError(f"num_examples is {num_examples}, expected 1..{available} ({available} available)")


def check_split(name: str, split: str, known: list[str]) -> None:
    """Raises ValueError for a split that a set does not have; the message lists those it has."""
    if split not in known:
        raise ValueError(f"{name} has no split {split!r}; it has {', '.join(known)}")


def _choose(
    available: int, labels_at: Callable[[np.ndarray], np.ndarray], num_examples: int | None, seed: int, skip: int
) -> Int32[np.ndarray, "n"]:
    """Positions to load; labels are asked for only where a subset is drawn, since reading them takes time."""
    if not 0 <= skip < available:
        raise ValueError(f"skip is {skip}, expected 0..{available - 1} ({available} rows in the split)")
    positions = np.arange(skip, available, dtype=np.int32)
    if num_examples is None:
        return positions
    _check_num_examples(num_examples, len(positions))
    return positions[stratified(labels_at(positions), num_examples, seed)]


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels [1797, 64] in 0 to 16 and classes [1797], from the file that scikit-learn brings."""
    # Importing scikit-learn for it takes a second, of a sweep that takes twenty.
    with contextlib.suppress(metadata.PackageNotFoundError):
        file = str(metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz"))
        if os.path.exists(file):
            table = np.loadtxt(file, delimiter=",")
            return table[:, :-1], table[:, -1].astype(int)
    from sklearn.datasets import load_digits  # where it is not installed as a wheel is

    found: Any = load_digits(return_X_y=True)
    return found


def _load_digits(split: str, num_examples: int | None, seed: int, skip: int) -> Dataset:
    check_split(DIGITS, split, ["train", "test"])
    pixels, targets = _digits()
    test = stratified(targets, _DIGITS_TEST_EXAMPLES, seed=0)
    rows = test if split == "test" else np.setdiff1d(np.arange(len(targets)), test)
    images = np.rint(pixels[rows] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = targets[rows].astype(np.int32)
    positions = _choose(len(rows), lambda chosen: labels[chosen], num_examples, seed, skip)
    return Dataset(DIGITS, split, images[positions], labels[positions], positions, tuple("0123456789"))


def _load_folder(
    name: str, split: str, num_examples: int | None, seed: int, skip: int, settings: Mapping[str, Any]
) -> Dataset:
    from ddjax import folders

    if settings.get("image_size") is None:
        raise ValueError(f"{name}: photographs are resized to one size, which must be given (--image_size)")
    whole = folders.load(name, split, **settings)
    positions = _choose(len(whole), lambda chosen: whole.labels[chosen], num_examples, seed, skip)
    # A slice stays on disk.
    rows = slice(skip, None) if num_examples is None else positions
    return dataclasses.replace(whole, images=whole.images[rows], labels=whole.labels[rows], indices=positions)


def _load_tfds(name: str, split: str, data_dir: str | None, num_examples: int | None, seed: int, skip: int) -> Dataset:
    import tensorflow_datasets as tfds  # lazily: the embedded digits must not wait for it

    folder = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = os.path.abspath(os.path.expanduser(folder))
    builder = _builder(name, root)
    image_key, label_key = _feature_keys(name, builder.info.features)
    if not builder.is_prepared():
        _prepare(name, root, builder)
        builder = _builder(name, root)
    check_split(name, split, list(builder.info.splits))
    try:
        # Images stay encoded, so that a pass over the labels does not decode them.
        source = builder.as_data_source(split, decoders={image_key: tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise DatasetUnavailableError(
            f"{name} in {root} is prepared in a format without random access; give another data_dir, and prepare it"
            f" there, on a machine with network:\n  {_prepare_command(name, 'DIR')}"
        ) from error

    def labels_at(positions: np.ndarray) -> np.ndarray:
        examples = _examples(source, positions, f"{name} {split} labels")
        return np.fromiter((example[label_key] for example in examples), np.int32, len(positions))

    positions = _choose(len(source), labels_at, num_examples, seed, skip)
    labels = np.empty(len(positions), np.int32)
    images = np.empty(0, np.uint8)
    mode = _PIL_MODES[builder.info.features[image_key].shape[-1]]
    for row, example in enumerate(_examples(source, positions, f"{name} {split} images")):
        image = _decode(example[image_key], mode)
        if row == 0:
            images = np.empty((len(positions), *image.shape), np.uint8)
        elif image.shape != images.shape[1:]:
            raise ValueError(
                f"{name} has images of varying sizes, which one array cannot hold: {images.shape[1:]} at row"
                f" {positions[0]}, {image.shape} at row {positions[row]}"
            )
        images[row], labels[row] = image, example[label_key]
    if labels.min() < 0:
        raise ValueError(f"{name}: {np.count_nonzero(labels < 0)} examples of split {split!r} have no label")
    return Dataset(name, split, images, labels, positions, tuple(builder.info.features[label_key].names))


def _examples(source: Any, positions: np.ndarray, description: str) -> Iterator[dict[str, Any]]:
    """Yields the rows at `positions`, read in batches, which is several times faster than one by one."""
    with tqdm(total=len(positions), desc=description, unit="row", leave=False, disable=None) as bar:
        for start in range(0, len(positions), _ROWS_PER_READ):
            batch = positions[start : start + _ROWS_PER_READ].tolist()
            yield from source.__getitems__(batch)
            bar.update(len(batch))


def _decode(encoded: bytes, mode: str) -> UInt8[np.ndarray, "H W C"]:
    # Pillow directly: TFDS's own decoder gives other JPEG pixels where OpenCV happens to be installed.
    with Image.open(io.BytesIO(encoded)) as image:
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels.reshape(*pixels.shape[:2], -1)


def _builder(name: str, root: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        # TFDS prints its advice on standard output, which belongs to the caller's results.
        with contextlib.redirect_stdout(sys.stderr):
            return tfds.builder(name, data_dir=root)
    except ImportError as error:
        raise _unavailable(name, root, f"{type(error).__name__}: {error}") from error
    except (ValueError, AssertionError) as error:
        known = [DIGITS, *tfds.list_builders(with_community_datasets=False)]
        base = re.split("[/:]", name)[0]
        if base in known:  # the configuration or the version is what is wrong, and TFDS says so
            raise ValueError(str(error)) from error
        close = [match for match in difflib.get_close_matches(base, known, n=5) if match != DIGITS]
        hint = f"; close matches: {', '.join(close)}" if close else ""
        # Without the cause: TFDS's message lists every set it knows.
        raise ValueError(
            f"unknown data set {name!r}; use {DIGITS!r} or an image-classification set of tensorflow-datasets{hint}"
        ) from None


def _feature_keys(name: str, features: Any) -> tuple[str, str]:
    """Keys of the one image and of the label, for a set that is an image classification of 8-bit images."""
    import tensorflow_datasets as tfds

    items = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    images = [key for key, feature in items.items() if isinstance(feature, tfds.features.Image)]
    labels = [key for key, feature in items.items() if isinstance(feature, tfds.features.ClassLabel)]
    label = "label" if "label" in labels else next(iter(labels), None)
    if len(images) != 1 or label is None or (len(labels) > 1 and label != "label"):
        found = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in items.items())
        raise ValueError(
            f"{name} is no image classification with one image and one label; its features: {found or features}"
        )
    image: Any = items[images[0]]
    if np.dtype(image.np_dtype) != np.uint8 or image.shape[-1] not in _PIL_MODES:
        raise ValueError(
            f"{name}: images must be uint8 with 1, 3 or 4 channels, not {np.dtype(image.np_dtype)} {image.shape}"
        )
    return images[0], label


def _prepare(name: str, root: str, builder: Any) -> None:
    """Downloads and prepares a set in a folder beside its destination, and moves it there once it is whole."""
    import tensorflow_datasets as tfds

    obstacle = _obstacle(builder.info.homepage)
    if obstacle:
        raise _unavailable(name, root, obstacle)
    parent = next(path for path in (Path(root), *Path(root).parents) if path.is_dir())
    try:
        with (
            tempfile.TemporaryDirectory(dir=parent, prefix=".preparing-") as staging,
            contextlib.redirect_stdout(sys.stderr),
        ):
            staged = tfds.builder(name, data_dir=staging, file_format="array_record")
            # Files that a user has to fetch by hand stay where TFDS documents them.
            config = tfds.download.DownloadConfig(manual_dir=os.path.join(root, "downloads", "manual"))
            staged.download_and_prepare(download_dir=os.path.join(staging, "downloads"), download_config=config)
            target = Path(root) / Path(staged.data_dir).relative_to(staging)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged.data_dir, target)
    except Exception as error:  # whatever a set's own script raises, the remedy is the same
        raise _unavailable(name, root, f"{type(error).__name__}: {error}") from error


def _obstacle(homepage: str | None) -> str | None:
    """What would make preparation fail, found in seconds; TFDS itself retries a dead network for minutes."""
    for module in ("tensorflow", "importlib_resources"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
    for url in ("https://storage.googleapis.com", homepage):
        with contextlib.suppress(OSError, ValueError):
            try:
                urllib.request.urlopen(url or "", timeout=5).close()
            except urllib.error.HTTPError as answer:
                answer.close()
            return None
    return "the network cannot be reached"


def _prepare_command(name: str, root: str) -> str:
    return (
        "pip install -e '.[prepare]' && python -c \"import tensorflow_datasets as tfds;"
        f" tfds.builder('{name}', data_dir='{root}', file_format='array_record').download_and_prepare()\""
    )


def _unavailable(name: str, root: str, reason: str) -> DatasetUnavailableError:
    return DatasetUnavailableError(
        f"{name} is not prepared in {root} and cannot be prepared here: {reason}\n"
        f"On a machine with network, run:\n  {_prepare_command(name, root)}"
    )
