"""What a data set is, how one declares itself, and subsets of it."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Int32, UInt8

from ddjax.registry import Registry


class DatasetUnavailableError(RuntimeError):
    """A known data set is not on this machine, is damaged, or cannot be prepared or decoded here."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Inputs and labels of one split, or of a subset of it: images, or rows of a table, or inputs of another shape.

    Attributes:
      name: the name of the data set, as given to `load`.
      split: the name of the split, such as "train" or "test".
      images: the inputs, `[N, H, W, C]` for images: bytes, 0..255, or floats within `bounds`; a memory map where they
        are on disk.
      labels: class numbers, 0..num_classes-1.
      indices: the position of each example in the full split, which is its identity: random keys are derived from it.
      class_names: the names of the classes, in the order of their numbers.
      decoded_per_second: how many images were decoded in a second when a folder was; None for other sets.
      bounds: the least and the greatest value of each feature, as arrays that broadcast against one input; None for 0
        and 1, the range of bytes divided by 255. A feature whose two bounds coincide is constant.
      mask: which values an attack may change, booleans that broadcast against one input; None for all.
      feature_names: of the columns of a table; empty for none.

    Raises:
      ValueError: for columns of different lengths, images of another type, or labels that are no class.
    """

    name: str
    split: str
    images: UInt8[np.ndarray, "N ..."] | Float[np.ndarray, "N ..."]
    labels: Int32[np.ndarray, "N"]
    indices: Int32[np.ndarray, "N"]
    class_names: tuple[str, ...]
    decoded_per_second: float | None = None
    bounds: tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]] | None = None
    mask: Bool[np.ndarray, "..."] | None = None
    feature_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = f"split {self.split!r} of {self.name}"
        if not len(self.images) == len(self.labels) == len(self.indices):
            raise ValueError(
                f"{where} has {len(self.images)} images, {len(self.labels)} labels and {len(self.indices)} indices"
            )
        if self.images.dtype != np.uint8 and not np.issubdtype(self.images.dtype, np.floating):
            raise ValueError(f"{where} must have images of type uint8 or floats, got {self.images.dtype}")
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < self.num_classes:
            raise ValueError(
                f"{where} must have labels from 0 to {self.num_classes - 1}, got {self.labels.min()} to "
                f"{self.labels.max()}"
            )

    @property
    def on_disk(self) -> bool:
        """Whether the images are read when they are used."""
        return isinstance(self.images, np.memmap)

    @property
    def num_classes(self) -> int:
        """The number of classes, present in this subset or not."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of every input: height, width and channels of images, the number of features of a table."""
        return self.images.shape[1:]

    @property
    def limits(self) -> dict[str, Any]:
        """`bounds` and `mask` as arguments of attacks, as far as they are given."""
        given = {"bounds": self.bounds, "mask": self.mask}
        return {name: value for name, value in given.items() if value is not None}

    def __len__(self) -> int:
        return len(self.labels)


def from_arrays(
    name: str,
    split: str,
    images: UInt8[np.ndarray, "N ..."] | Float[np.ndarray, "N ..."],
    labels: Int[np.ndarray, "N"],
    class_names: Sequence[str],
    **fields: Any,
) -> Dataset:
    """Makes a whole split of arrays; for the arguments, the other fields and the errors see `Dataset`."""
    indices = np.arange(len(images), dtype=np.int32)
    return Dataset(name, split, images, np.asarray(labels, np.int32), indices, tuple(class_names), **fields)


@dataclasses.dataclass(frozen=True)
class Source:
    """The declaration of a data set; see `declare`."""

    load: Callable[..., Dataset]
    name: str
    takes_path: bool = False


# All data sets by name.
SOURCES: Registry[Source] = Registry("data set", "DATASETS")


def declare(load: Callable[..., Dataset], *, name: str | None = None, takes_path: bool = False) -> Source:
    """Declares a data set, in the tuple `DATASETS` at the end of its file.

    Args:
      load: a function of the split's name that returns the whole split; `ddjax.data.load` draws subsets. It raises
        ValueError for a split that it does not have (see `check_split`). Keyword-only parameters that are named like
        those of `ddjax.data.load` (`image_size`, `data_dir`, `progress`, ...) are passed on; others that are
        booleans, numbers or words are settings, `NAME:key=value`.
      name: what `ddjax.data.load` and `--dataset` take; by default the name of the function.
      takes_path: whether the name goes on, `NAME:PATH`. The path is then the first argument, and there are no settings.
    """
    return Source(load, name or load.__name__, takes_path)


def check_split(name: str, split: str, known: Sequence[str]) -> None:
    """Raises ValueError for a split that a set does not have; the message lists those it has."""
    if split not in known:
        raise ValueError(f"{name} has no split {split!r}; it has {', '.join(known)}")


_SLICED = re.compile(r"(?P<split>\w+)\[(?P<first>-?\d+%?)?:(?P<end>-?\d+%?)?\]")


def read_split(text: str) -> tuple[str, Callable[[int], slice] | None]:
    """The name of a split, and the slice of its rows that is wanted: `train[90%:]`, `train[:500]`; None for all.

    The slice depends on the number of rows. Numbers count rows, or percents of them to the nearest row; negative ones
    count from the end.

    Raises:
      ValueError: for a slice that cannot be read.
    """
    match = _SLICED.fullmatch(text)
    if match is None:
        if "[" in text:
            raise ValueError(f"a slice of a split is SPLIT[FIRST:END] in rows or percent, as train[90%:], got {text!r}")
        return text, None

    def rows(count: int) -> slice:
        ends = [
            None if end is None else round(int(end[:-1]) * count / 100) if end.endswith("%") else int(end)
            for end in match.group("first", "end")
        ]
        first, end, _ = slice(*ends).indices(count)
        if first >= end:
            raise ValueError(f"{text} holds no row: the split has {count}")
        return slice(first, end)

    return match["split"], rows


def check_fits(dataset: Dataset, image_shape: tuple[int, ...], num_classes: int, *, network: str) -> None:
    """Refuses inputs that a network cannot take; `network` is what the error calls it.

    Raises:
      ValueError: when their shape or the number of classes is not that of the network.
    """
    if dataset.image_shape != tuple(image_shape) or dataset.num_classes != num_classes:
        raise ValueError(
            f"{network} takes inputs of shape {tuple(image_shape)} in {num_classes} classes; "
            f"{dataset.name} has {dataset.image_shape} in {dataset.num_classes}"
        )


def check_images(dataset: Dataset, needed_by: str) -> tuple[int, int, int]:
    """Height, width and channels of a set of images; refuses one of other inputs.

    Raises:
      ValueError: for inputs of another shape; `needed_by` is what needs images.
    """
    if len(dataset.image_shape) != 3:
        raise ValueError(
            f"{needed_by} needs images [N, H, W, C]; {dataset.name} has inputs of shape {dataset.image_shape}"
        )
    height, width, channels = dataset.image_shape
    return height, width, channels


def rows_of(dataset: Dataset, rows: slice | Int[np.ndarray, "n"]) -> Dataset:
    """Some rows of a data set. A slice of inputs on disk stays on disk; rows by their positions come into memory."""
    columns = {name: getattr(dataset, name)[rows] for name in ("images", "labels", "indices")}
    return dataclasses.replace(dataset, **columns)


def first(dataset: Dataset, count: int) -> Dataset:
    """The first examples of a data set.

    Raises:
      ValueError: when there are not that many, or none are wanted.
    """
    if not 1 <= count <= len(dataset):
        raise ValueError(
            f"num_examples must be from 1 to {len(dataset)}, the examples of {dataset.name} ({dataset.split}) that "
            f"there are, got {count}"
        )
    return rows_of(dataset, slice(count))


def stratified(labels: Int[np.ndarray, "N"], num_examples: int, seed: int) -> Int[np.ndarray, "n"]:
    """Draws a subset that keeps the shares of the classes (largest remainder, and at least one of each class).

    Returns sorted positions in `labels`.

    Args:
      labels: class numbers.
      num_examples: the size of the subset, from the number of classes present to N.
      seed: of the draw, 0 or more; the same one draws the same subset on every platform.

    Raises:
      ValueError: if the size is out of range.
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
    # Random doubles are sorted, because the integer draws of Generator.permutation may change between NumPy releases.
    chosen = [
        np.flatnonzero(labels == label)[np.argsort(rng.random(count), kind="stable")[:take]]
        for label, count, take in zip(classes, counts, taken, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def choose(
    available: int,
    labels_at: Callable[[np.ndarray], np.ndarray],
    num_examples: int | None,
    seed: int,
    skip: int,
    at_most: bool = False,
) -> Int32[np.ndarray, "n"]:
    """The sorted positions of a subset of a split of `available` rows.

    `labels_at` gives the labels at some positions. It is called only where a subset is drawn, because reading labels
    may take time. For the other arguments see `ddjax.data.load`.
    """
    if not 0 <= skip < available:
        raise ValueError(f"skip is {skip}, expected 0..{available - 1} ({available} rows in the split)")
    positions = np.arange(skip, available, dtype=np.int32)
    if num_examples is None or (at_most and num_examples >= len(positions)):
        return positions
    _check_num_examples(num_examples, len(positions))
    return positions[stratified(labels_at(positions), num_examples, seed)]


def _check_num_examples(num_examples: int, available: int) -> None:
    if not 0 < num_examples <= available:
        raise ValueError(f"num_examples is {num_examples}, expected 1..{available} ({available} available)")
