"""Image-classification sets of tensorflow-datasets.

A prepared set is read as a random-access source, which needs no TensorFlow; only preparing one does.
"""

import contextlib
import difflib
import importlib.util
import io
import os
import re
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ddjax.data.dataset import SOURCES, Dataset, DatasetUnavailableError, check_split, read_split
from ddjax.progress import Progress, silent

_ROWS_PER_READ = 1024
# Of the only split of a set: as much as folders have.
_TEST_SHARE = 0.2
_PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def load_tfds(
    name: str,
    split: str,
    chosen: Callable[[int, Callable[[np.ndarray], np.ndarray]], np.ndarray],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    progress: Progress = silent,
) -> Dataset:
    """Loads a subset of a split, which comes into memory; see `ddjax.data.load`.

    The name is one that tensorflow-datasets takes, NAME/CONFIGURATION:VERSION; all but NAME may be left out. `chosen`
    gives the positions of the subset, from the size of the split and a function from positions to labels.

    Raises:
      ValueError: if the name or the split is wrong, or the set is no image classification.
      DatasetUnavailableError: if the set is damaged, or is not prepared and cannot be prepared here.
    """
    import tensorflow_datasets as tfds  # lazily, because other sets do not need it

    root = _root(data_dir)
    builder = _builder(name, root)
    image_key, label_key = _feature_keys(name, builder.info.features)
    if not builder.is_prepared():
        _prepare(name, root, builder)
        builder = _builder(name, root)
    if image_size is not None and image_size < 1:
        raise ValueError(f"the image size must be at least 1, got {image_size}")
    # A set that declares one size keeps it.
    size = image_size if None in builder.info.features[image_key].shape[:2] else None
    own, part = _part(name, split, list(builder.info.splits))
    with _reading(name, root, builder):
        # Images stay encoded, so that a pass over the labels does not decode them.
        source = builder.as_data_source(own, decoders={image_key: tfds.decode.SkipDecoding()})
        available = np.arange(len(source), dtype=np.int32)
    available = available[part(len(available))]

    def examples(positions: np.ndarray, what: str) -> Iterator[dict[str, Any]]:
        """Yields rows, read in batches, which is several times faster than one by one."""
        with progress(len(positions), f"{name} {split} {what}", "row") as bar:
            for start in range(0, len(positions), _ROWS_PER_READ):
                batch = positions[start : start + _ROWS_PER_READ].tolist()
                with _reading(name, root, builder):
                    rows = source.__getitems__(batch)
                yield from rows
                bar.update(len(batch))

    def labels_at(positions: np.ndarray) -> np.ndarray:
        return np.fromiter((row[label_key] for row in examples(positions, "labels")), np.int32, len(positions))

    positions = available[chosen(len(available), lambda places: labels_at(available[places]))]
    labels = np.empty(len(positions), np.int32)
    images = np.empty(0, np.uint8)
    mode = _PIL_MODES[builder.info.features[image_key].shape[-1]]
    for row, example in enumerate(examples(positions, "images")):
        with _reading(name, root, builder):
            image = _decode(example[image_key], mode, size)
        if row == 0:
            images = np.empty((len(positions), *image.shape), np.uint8)
        elif image.shape != images.shape[1:]:
            raise ValueError(
                f"{name} has images of varying sizes, which one array cannot hold: {images.shape[1:]} at row"
                f" {positions[0]}, {image.shape} at row {positions[row]}; give the size to bring them to (image_size)"
            )
        images[row], labels[row] = image, example[label_key]
    if labels.min() < 0:
        raise ValueError(f"{name}: {np.count_nonzero(labels < 0)} examples of split {split!r} have no label")
    return Dataset(name, split, images, labels, positions, tuple(builder.info.features[label_key].names))


def _part(name: str, split: str, known: list[str]) -> tuple[str, Callable[[int], Any]]:
    """The split of the set that holds the rows of `split`, and which of its rows these are, by their number."""
    own, sliced = read_split(split)
    if sliced is None and own in ("train", "test") and len(known) == 1:
        return known[0], lambda count: _drawn(count, own)
    if own == "test" and "test" not in known and "validation" in known:
        own = "validation"
    check_split(name, own, known)
    return own, sliced or (lambda count: slice(None))


def _drawn(count: int, split: str) -> np.ndarray:
    """The rows of the training and the test split that the only split of a set is divided into."""
    # Doubles are sorted for the same reason as in `stratified`.
    order = np.argsort(np.random.Generator(np.random.PCG64(0)).random(count), kind="stable")
    test = max(1, round(_TEST_SHARE * count))
    return np.sort(order[:test] if split == "test" else order[test:])


def _root(data_dir: str | os.PathLike[str] | None) -> str:
    """The directory of the prepared sets."""
    given = os.fspath(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    if "://" in given:
        raise ValueError(f"data_dir must be a directory of this machine, got {given}")
    path = os.path.expanduser(given)
    if path.startswith("~"):
        raise DatasetUnavailableError(f"there is no home directory for {given}; set data_dir or TFDS_DATA_DIR")
    return os.path.abspath(path)


@contextlib.contextmanager
def _reading(name: str, root: str, builder: Any) -> Iterator[None]:
    """Turns errors of reading a prepared set into a sentence; the libraries below raise many kinds."""
    try:
        yield
    except NotImplementedError as error:
        raise DatasetUnavailableError(
            f"{name} in {root} is prepared in a format without random access; set another data_dir, and prepare it"
            f" there, on a machine with network:\n  {_prepare_command(name, 'DIR')}"
        ) from error
    except Exception as error:
        raise _damaged(name, root, builder.data_dir, error) from error


def _decode(encoded: bytes, mode: str, size: int | None) -> UInt8[np.ndarray, "H W C"]:
    # Pillow directly: TFDS's own decoder gives other JPEG pixels where OpenCV happens to be installed.
    with Image.open(io.BytesIO(encoded)) as image:
        found = image if image.mode == mode else image.convert(mode)
        if size is not None and found.size != (size, size):
            found = found.resize((size, size), Image.Resampling.BILINEAR)
        pixels = np.asarray(found)
    return pixels.reshape(*pixels.shape[:2], -1)


def _builder(name: str, root: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        return _construct(name, root)
    except ImportError as error:
        raise _unavailable(name, root, _told(error)) from error
    except Exception as error:
        directory = _directory(name, root)
        if directory is not None:
            raise _damaged(name, root, directory, error) from error
        known = tfds.list_builders(with_community_datasets=False)
        base = re.split("[/:]", name)[0]
        if base in known:  # the configuration or the version is what is wrong, and TFDS says so
            raise ValueError(" ".join(str(error).split())) from error
        if os.path.isdir(os.path.join(root, base)):
            raise DatasetUnavailableError(
                f"{os.path.join(root, base)} cannot be read as a prepared set of tensorflow-datasets: {_told(error)}"
            ) from error
        close = difflib.get_close_matches(base, known, n=5)
        hint = f"; close matches: {', '.join(close)}" if close else ""
        # Without the cause, because TFDS's message lists every set it knows.
        raise ValueError(
            f"unknown data set {name!r}; known: {', '.join(SOURCES)}, and the image-classification sets of"
            f" tensorflow-datasets{hint}; or the import path of another one, package.module:name"
        ) from None


def _directory(name: str, root: str) -> Path | None:
    """Where a known set is prepared; None for an unknown name, configuration or version."""
    nowhere = os.path.join(root, ".nothing")
    with contextlib.suppress(Exception):
        return Path(root) / Path(_construct(name, nowhere).data_dir).relative_to(nowhere)
    return None


def _construct(name: str, root: str) -> Any:
    import tensorflow_datasets as tfds

    # TFDS prints its advice on standard output, which belongs to the caller's results.
    with contextlib.redirect_stdout(sys.stderr):
        return tfds.builder(name, data_dir=root)


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
        raise _unavailable(name, root, _told(error)) from error


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


def _damaged(name: str, root: str, directory: Any, error: Exception) -> DatasetUnavailableError:
    return DatasetUnavailableError(
        f"{name} in {directory} is damaged or cannot be read: {_told(error)}\n"
        f"Remove that directory and, on a machine with network, run:\n  {_prepare_command(name, root)}"
    )


def _told(error: Exception) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
