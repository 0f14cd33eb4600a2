"""Arrays in an `.npz` file as a data set: images, tables, or inputs of another shape."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddjax.data.dataset import Dataset, DatasetUnavailableError, declare, from_arrays
from ddjax.data.tables import divided, split_of_table

_NEEDED = ("inputs", "labels")
_OF_TEST = ("test_inputs", "test_labels")
_KNOWN = (*_NEEDED, *_OF_TEST, "bounds", "mask", "class_names", "feature_names")


def load_npz(path: str | os.PathLike[str], split: str) -> Dataset:
    """Loads a split of the arrays in a file, as `np.savez` writes it.

    The file holds `inputs` `[N, ...]` and `labels` `[N]`, classes from 0 to K - 1, and may hold:

    - `test_inputs` and `test_labels`; without them, a quarter of each class is the test split.
    - `bounds` `[2, ...]`, the least and the greatest value, which broadcast against one input, in its units.
    - `mask`, which values an attack may change, booleans that broadcast against one input.
    - `class_names` `[K]` and `feature_names`, one for each place along the last axis, as strings.

    Bytes are images or other values from 0 to 255, and stay as they are. Images `[N, H, W, C]` of floats are in [0, 1],
    or in the bounds. All other inputs are scaled by their training rows, or by the bounds; see
    `ddjax.data.tables.split_of_table`.

    Args:
      path: of the file. Pickled objects in it are refused.
      split: "train" or "test".

    Raises:
      ValueError: for another split, and for arrays that are missing or of other shapes, types or values.
      DatasetUnavailableError: where there is no such file, or one that cannot be read.
    """
    name, arrays = f"npz:{path}", _read(path)
    missing = [key for key in _NEEDED if key not in arrays]
    unknown = [key for key in arrays if key not in _KNOWN]
    if missing or unknown:
        what = f"no {missing[0]}" if missing else f"unknown arrays: {', '.join(unknown)}"
        raise ValueError(f"{name} has {what}; it takes {', '.join(_KNOWN)}, of which the first two are needed")
    inputs, labels = _examples(name, arrays, *_NEEDED)
    test = None
    if any(key in arrays for key in _OF_TEST):
        if not all(key in arrays for key in _OF_TEST):
            raise ValueError(f"{name}: test_inputs and test_labels go together")
        test = _examples(name, arrays, *_OF_TEST)
        if (test[0].shape[1:], test[0].dtype) != (inputs.shape[1:], inputs.dtype):
            raise ValueError(
                f"{name}: test_inputs must be {inputs.dtype} of shape [M, {str(inputs.shape[1:])[1:-1].rstrip(',')}] "
                f"as inputs are, got {test[0].dtype} of shape {test[0].shape}"
            )
    num_classes = 1 + int(max(part.max() for part in (labels, *(test[1:] if test else ()))))
    absent = np.setdiff1d(np.arange(num_classes), labels)
    if num_classes < 2 or len(absent):
        raise ValueError(
            f"{name}: labels must be classes from 0 to K - 1, at least two and each of them at least once, got "
            f"{', '.join(map(str, np.unique(labels)[:10]))}"
        )
    fields: dict[str, Any] = {"feature_names": _names(name, arrays, "feature_names", inputs.shape[-1])}
    class_names = _names(name, arrays, "class_names", num_classes) or tuple(map(str, range(num_classes)))
    if "mask" in arrays:
        mask = arrays["mask"]
        if mask.dtype != np.bool or not _broadcasts(mask.shape, inputs.shape[1:]):
            raise ValueError(f"{name}: mask must be {_LIKE_ONE_INPUT}, got {mask.dtype} of shape {mask.shape}")
        fields["mask"] = mask
    bounds = _bounds(name, arrays, inputs)
    if inputs.dtype == np.uint8:
        train, held_out = divided(name, split, inputs, labels, test)
        return from_arrays(name, split, *(train if split == "train" else held_out), class_names, **fields)
    return split_of_table(name, split, inputs, labels, class_names, test=test, bounds=bounds, **fields)


_LIKE_ONE_INPUT = "booleans that broadcast against one input"


def _read(path: str | os.PathLike[str]) -> Mapping[str, np.ndarray]:
    """All arrays of the file."""
    try:
        file = Path(path).expanduser()
        with open(file, "rb") as opened:
            if not zipfile.is_zipfile(opened):
                raise DatasetUnavailableError(f"{file} is no .npz file, as np.savez writes it")
        with np.load(file, allow_pickle=False) as found:
            return dict(found)
    except RuntimeError as error:
        if isinstance(error, DatasetUnavailableError):
            raise
        raise DatasetUnavailableError(f"there is no home directory for {path}: give the whole path") from error
    except OSError as error:
        raise DatasetUnavailableError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        if "pickle" in str(error):
            raise ValueError(f"npz:{path} holds objects; its arrays must be of numbers, booleans or strings") from error
        raise DatasetUnavailableError(f"{path} is damaged: {error}") from error
    except (zipfile.BadZipFile, EOFError, KeyError) as error:
        raise DatasetUnavailableError(f"{path} is damaged: {error}") from error


def _examples(
    name: str, arrays: Mapping[str, np.ndarray], of_inputs: str, of_labels: str
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels, checked; inputs that are no bytes are floats."""
    inputs, labels = arrays[of_inputs], arrays[of_labels]
    number = np.issubdtype(inputs.dtype, np.number) and not np.issubdtype(inputs.dtype, np.complexfloating)
    if inputs.ndim < 2 or 0 in inputs.shape or not (number or inputs.dtype == np.bool):
        raise ValueError(
            f"{name}: {of_inputs} must be numbers of shape [N, ...], got {inputs.dtype} of shape {inputs.shape}"
        )
    if labels.shape != inputs.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{name}: {of_labels} must be {len(inputs)} integers, one for each input, got {labels.dtype} of shape "
            f"{labels.shape}"
        )
    if labels.min() < 0:
        raise ValueError(f"{name}: {of_labels} must be classes from 0, got {labels.min()}")
    if inputs.dtype != np.uint8:
        inputs = inputs.astype(np.float64)
        bad = int((~np.isfinite(inputs)).reshape(len(inputs), -1).any(1).sum())
        if bad:
            raise ValueError(f"{name}: {of_inputs} must be finite, but {bad} rows hold NaN or infinity")
    return inputs, labels


def _names(name: str, arrays: Mapping[str, np.ndarray], key: str, count: int) -> tuple[str, ...]:
    """The names, or none."""
    if key not in arrays:
        return ()
    if arrays[key].shape != (count,) or arrays[key].dtype.kind != "U":
        found = f"{arrays[key].dtype} of shape {arrays[key].shape}"
        raise ValueError(f"{name}: {key} must be {count} strings, got {found}")
    return tuple(map(str, arrays[key]))


def _bounds(name: str, arrays: Mapping[str, np.ndarray], inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The least and the greatest value; those of images are 0 and 1 where the file does not say."""
    if "bounds" not in arrays:
        return (np.zeros(()), np.ones(())) if inputs.ndim == 4 else None
    bounds = arrays["bounds"]
    if inputs.dtype == np.uint8:
        raise ValueError(f"{name}: bytes go from 0 to 255 and take no bounds")
    is_real = np.issubdtype(bounds.dtype, np.integer) or np.issubdtype(bounds.dtype, np.floating)
    if not is_real or bounds.shape[:1] != (2,) or not _broadcasts(bounds.shape[1:], inputs.shape[1:]):
        raise ValueError(
            f"{name}: bounds must be the least and the greatest value, [2, ...], which broadcast against one input of "
            f"shape {inputs.shape[1:]}, got {bounds.dtype} of shape {bounds.shape}"
        )
    if not np.isfinite(bounds).all() or not (bounds[0] <= bounds[1]).all() or (bounds[0] == bounds[1]).all():
        raise ValueError(f"{name}: bounds must be finite, and the least value below the greatest")
    return np.asarray(bounds[0]), np.asarray(bounds[1])


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, to) == to
    except ValueError:
        return False


DATASETS = (declare(load_npz, name="npz", takes_path=True),)
